"""One `mlops up` in a process of its own, as a user runs it, for the tests that need the whole platform."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from mlops_assets import up
from mlops_assets.settings import SERVICES_FILE
from mlops_assets.supervise import marked


def until(condition: Callable[[], object], seconds: float = 60, what: str = "the condition") -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true"
        time.sleep(0.1)


def free_base() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Running:
    """One `mlops up` in a process of its own, in a session of its own, as a terminal would have it."""

    home: Path
    environment: dict[str, str]
    arguments: tuple[str, ...] = ()
    starts: int = 0
    process: subprocess.Popen[bytes] | None = None
    known: dict[str, Any] = field(default_factory=dict)

    @property
    def output(self) -> Path:
        return self.home.parent / f"output-{self.starts}.txt"

    def start(self) -> None:
        self.starts += 1
        with self.output.open("wb") as file:
            self.process = subprocess.Popen(
                [str(Path(sys.executable).with_name("mlops")), "up", *self.arguments],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
            )

        def is_up() -> bool:
            assert self.process is not None
            text = self.output.read_text()
            assert self.process.poll() is None, text
            return "the platform is up after" in text

        until(is_up, 180, "`mlops up`")
        self.known = json.loads((self.home / SERVICES_FILE).read_text())

    @property
    def text(self) -> str:
        return self.output.read_text()

    def mlops(self, *arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        """A command as its user runs it beside the platform."""
        command = [str(Path(sys.executable).with_name("mlops")), *arguments]
        return subprocess.run(command, env=self.environment, cwd=folder, capture_output=True, text=True, timeout=580)

    def everything(self) -> list[int]:
        """Every process of the platform: the supervisor, the marked ones, PostgreSQL."""
        found = set(marked(f"*:{self.home}"))
        for process in psutil.process_iter(["cmdline"]):
            line = process.info["cmdline"] or []
            if str(self.home / "postgres") in line or (line[1:3] == ["-m", "mlops_assets.supervise"] and str(self.home) in line[-1]):
                found.add(process.pid)
        return sorted(found)

    def kill(self) -> None:
        """SIGKILL to every process at once: what a power cut leaves behind, but for the disk's own cache."""
        first = [self.process.pid] if self.process is not None else []  # the supervisor would start the others again
        for pid in [*first, *self.everything()]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.process is not None:
            self.process.wait()

    def pid_of(self, name: str) -> int:
        """The leader of a service: the marked process that is the first of its session and was started by the supervisor."""
        commands = {"code": ["grpc"], "mlflow": ["server"], "daemon": ["dagster._daemon"]}
        commands |= {name: ["web", name] for name in ("dagster", "dashboard", "tensorboard")}
        for pid in marked(f"*:{self.home}"):
            process = psutil.Process(pid)
            if process.ppid() == self.known["pid"] and set(commands[name]) <= set(process.cmdline()):
                return pid
        raise AssertionError(f"{name} does not run")


@contextmanager
def running_platform(*arguments: str, **settings: str) -> Iterator[Running]:
    """Not started yet; whatever is left of it at the end is killed.

    Args:
        arguments: of `mlops up`.
        settings: further MLOPS_* variables, by their names.
    """
    with tempfile.TemporaryDirectory(prefix="mlops-up-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o755)
        home = Path(folder).resolve() / "home"
        own = {f"MLOPS_{name.upper()}": str(free_base()) for name in up.PORTS} | {"MLOPS_HOME": str(home)} | settings
        running = Running(home, {k: v for k, v in os.environ.items() if not k.startswith(("MLOPS_", "DAGSTER_"))} | own, arguments)
        try:
            yield running
        finally:
            if running.process is not None and running.process.poll() is None:
                running.process.terminate()
                try:
                    running.process.wait(60)
                except subprocess.TimeoutExpired:
                    running.process.kill()
            running.kill()
