"""Starting, watching and stopping child processes, so that none is ever left behind. Knows nothing of what the children are.

Belongs here: processes, signals, ports. Does not belong here: which services there are (`up.py`), settings, Dagster.

Who kills what, so that nothing survives `mlops up`:
- every child asks the kernel to be killed when its parent dies (PR_SET_PDEATHSIG), and has a session of its own, so that Ctrl-C in the
  terminal reaches only the supervisor, which then stops them in order;
- grandchildren (Dagster's run workers, MLflow's web workers) carry a mark in their environment: the supervisor sweeps them at the end, and
  a guard process, which notices the supervisor's death as the end of a pipe, sweeps them when it was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

#: The environment variable that every process below one `mlops up` carries. Not MLOPS_*: it is no setting.
MARK = "_MLOPS_UP"

# Runs between fork and the service: takes back what the parent changed, drops root where asked, ties its life to the parent's.
_EXEC = """
import ctypes, os, signal, sys
parent, uid, gid, on_parent_death = map(int, sys.argv[1:5])
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
    signal.signal(number, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_SETMASK, ())
if uid != os.geteuid():
    os.setgroups([gid]); os.setgid(gid); os.setuid(uid)
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, on_parent_death)
if os.getppid() != parent:
    sys.exit(1)
os.execv(sys.argv[5], sys.argv[5:])
"""


@dataclass(frozen=True)
class Service:
    """One long-running program.

    Attributes:
        command: absolute program first.
        is_ready: asked until it is true; quick, never raises.
        after: names of services that are started first (and are ready, or have failed again and again).
        needs: names of services without which this one cannot run: while one of them is away, its own ends are no failures of its own
            and it is started again when they are back.
        uid, gid: run as somebody else (only root may).
        gentle: the signal that asks it to stop; sent to the whole group unless `leader_only`.
        address: shown to people once it is ready.
    """

    name: str
    command: Sequence[str]
    is_ready: Callable[[], bool]
    title: str = ""
    address: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    after: Sequence[str] = ()
    needs: Sequence[str] = ()
    folder: Path | None = None
    uid: int | None = None
    gid: int | None = None
    gentle: signal.Signals = signal.SIGTERM
    leader_only: bool = False


@dataclass(frozen=True)
class Patience:
    """How long to wait for what, in seconds, and how long a log may become."""

    first_backoff: float = 0.5
    longest_backoff: float = 30.0
    restarts: int = 5
    """This many failures in a row, and people are told with the end of its log. It is started again and again all the same: what a full
    disk or a database that is away stops must go on by itself when that is over."""
    stable: float = 60.0
    """Up for this long, and earlier failures are forgotten."""
    slow_start: float = 120.0
    stop: float = 10.0
    log_bytes: int = 20 * 1024 * 1024
    """A log that is longer becomes `<name>.log.1`, in place of the one of before."""


@dataclass
class Child:
    service: Service
    process: subprocess.Popen[bytes] | None = None
    due: float = 0.0
    started: float = 0.0
    asked: float = 0.0
    failures: int = 0
    ready: bool = False
    was_ready: bool = False
    failing: bool = False
    waits: bool = False
    said_slow: bool = False

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None


class Supervisor:
    """Children that are started in order, started again when they end, and stopped in the opposite order.

    All calls come from the main thread: the kernel's parent-death signal follows the thread that forked.
    """

    def __init__(self, logs: Path, say: Callable[[str, str], None], patience: Patience | None = None) -> None:
        self.logs = logs
        self.patience = patience or Patience()
        self.children: dict[str, Child] = {}
        self._look_at_logs = 0.0
        self._say = say
        logs.mkdir(parents=True, exist_ok=True)

    def add(self, service: Service) -> Child:
        child = self.children[service.name] = Child(service)
        return child

    @property
    def settled(self) -> bool:
        """Each is ready, or has failed so often that nobody waits for it."""
        return all(c.ready or c.failing for c in self.children.values())

    @property
    def failed(self) -> list[str]:
        return [name for name, c in self.children.items() if c.failing]

    def tick(self) -> None:
        """Look once at every child: start what is due, notice what ended or became ready; and at the size of their logs."""
        if time.monotonic() >= self._look_at_logs:
            self._look_at_logs = time.monotonic() + 1
            for name in self.children:
                self._rotate(self.log(name))
        for child in self.children.values():
            now = time.monotonic()
            if child.process is None:
                if now >= child.due and self._may_start(child):
                    self._start(child)
            elif child.process.poll() is not None:
                self._ended(child)
            elif not child.ready and now >= child.asked:
                child.asked = now + 0.25
                self._ask(child)
            elif child.ready and child.failures and now - child.started > self.patience.stable:
                child.failures = 0

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def tail(self, name: str, lines: int = 5) -> str:
        try:
            text = self.log(name).read_bytes()[-20_000:].decode(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join("    " + line for line in text.rstrip().splitlines()[-lines:])

    def _rotate(self, path: Path) -> None:
        """Keep a log's last whole part beside it. Its writer goes on in the same file (O_APPEND), so the file itself is emptied."""
        with contextlib.suppress(OSError):  # none yet; or a full disk, where emptying comes first
            if path.stat().st_size <= self.patience.log_bytes:
                return
            try:
                shutil.copyfile(path, path.with_suffix(".log.1"))
            finally:
                os.truncate(path, 0)

    def _start(self, child: Child) -> None:
        service = child.service
        path = self.log(service.name)
        self._rotate(path)
        uid = os.geteuid() if service.uid is None else service.uid
        gid = os.getegid() if service.gid is None else service.gid
        # PostgreSQL (leader_only) is never killed outright: its own fast shutdown is the signal it gets.
        death = service.gentle if service.leader_only else signal.SIGKILL
        tie = [sys.executable, "-I", "-S", "-c", _EXEC, *map(str, (os.getpid(), uid, gid, int(death)))]
        with path.open("ab") as log:
            child.process = subprocess.Popen(
                [*tie, *service.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(service.environment),
                cwd=service.folder,
                start_new_session=True,
            )
        child.started = time.monotonic()
        child.ready = child.said_slow = False

    def _ask(self, child: Child) -> None:
        service = child.service
        if service.is_ready():
            took = time.monotonic() - child.started
            child.ready, child.failing = True, False
            again = " again" if child.was_ready else ""
            child.was_ready = True
            self._say(
                "ok", f"{service.title or service.name} is ready{again}{' at ' + service.address if service.address else ''} ({took:.1f} s)"
            )
        elif not child.said_slow and time.monotonic() - child.started > self.patience.slow_start:
            child.said_slow = True
            self._say(
                "warn", f"{service.name} is still starting after {self.patience.slow_start:.0f} s; its log is {self.log(service.name)}"
            )

    def _may_start(self, child: Child) -> bool:
        away = self._away(child)
        if away and not child.waits and child.was_ready:
            child.waits = True
            self._say("warn", f"{child.service.name} waits for {' and '.join(away)}")
        child.waits = child.waits and bool(away)
        return not away and all(self.children[n].ready or self.children[n].failing for n in child.service.after)

    def _away(self, child: Child) -> list[str]:
        needed = [self.children[name] for name in child.service.needs]
        return [one.service.title or one.service.name for one in needed if not one.ready]

    def _ended(self, child: Child) -> None:
        assert child.process is not None
        name, code = child.service.name, child.process.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        _signal_group(child.process.pid, signal.SIGKILL)  # what it left behind would hold its port
        child.process, child.ready = None, False
        if away := self._away(child):
            child.waits, child.due = True, 0.0
            self._say("warn", f"{name} {how}; it waits for {' and '.join(away)}")
            return
        child.failures += 1
        wait = min(self.patience.first_backoff * 2.0 ** min(child.failures - 1, 30), self.patience.longest_backoff)
        child.due = time.monotonic() + wait
        if child.failures <= self.patience.restarts:
            self._say("warn", f"{name} {how}; starting it again in {wait:g} s (failure {child.failures}), log {self.log(name)}")
        elif not child.failing or child.failures & (child.failures - 1) == 0:  # once, then at 8, 16, 32 ...
            self._say(
                "fail",
                f"{name} {how}, {child.failures} times in a row; it is tried again every {wait:g} s. "
                f"Its log, {self.log(name)}, ends with:\n{self.tail(name)}",
            )
        child.failing = child.failures > self.patience.restarts

    def stop(self, names: Iterable[str], hurry: Callable[[], bool] = lambda: False) -> None:
        """Ask these to stop, together; kill those that do not within the patience, or at once when `hurry()` turns true."""
        asked = [c for n in names if (c := self.children.pop(n, None)) is not None and c.process is not None]
        for child in asked:
            assert child.process is not None
            if child.service.leader_only:
                with contextlib.suppress(ProcessLookupError):
                    child.process.send_signal(child.service.gentle)
            else:
                _signal_group(child.process.pid, child.service.gentle)
        deadline = time.monotonic() + self.patience.stop
        while any(c.alive for c in asked) and time.monotonic() < deadline and not hurry():
            time.sleep(0.05)
        for child in asked:
            assert child.process is not None
            if child.alive or not child.service.leader_only:
                _signal_group(child.process.pid, signal.SIGKILL)
            child.process.wait()


def _signal_group(leader: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def marked(mark: str, *, but: Iterable[int] = (), spare: Iterable[int] = ()) -> list[int]:
    """Pids of the living processes that carry the mark; of every mark of a home with `*:<home>`.

    Args:
        but: pids to leave out.
        spare: sessions to leave out; a service's session is its leader's pid.
    """
    import psutil

    found = []
    pids, sessions = {os.getpid(), *but}, set(spare)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            value = process.environ().get(MARK, "")
            same = value == mark or (mark.startswith("*") and value.endswith(mark[1:]))
            if same and process.pid not in pids and os.getsid(process.pid) not in sessions and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def sweep(mark: str, *, but: Iterable[int] = (), spare: Iterable[int] = (), seconds: float = 10.0) -> int:
    """Kill every marked process, until there is none (they may be forking). Returns how many were killed."""
    killed: set[int] = set()
    but, spare = set(but), set(spare)
    deadline = time.monotonic() + seconds
    while (found := marked(mark, but=but, spare=spare)) and time.monotonic() < deadline:
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        killed.update(found)
        time.sleep(0.05)
    return len(killed)


class Guard:
    """The process that sweeps when the supervisor was killed: it waits for the end of a pipe that only the supervisor holds."""

    def __init__(self, mark: str, services_file: Path) -> None:
        command = [sys.executable, "-m", "mlops_assets.supervise", mark, str(services_file)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def release(self) -> None:
        """A clean end: there is nothing left to sweep."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(b"done\n")
            self._process.stdin.close()
        self._process.wait()


def _guard(mark: str, services_file: Path, pipe: IO[bytes]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if pipe.read() == b"done\n":
        return
    sweep(mark)
    with contextlib.suppress(OSError, ValueError):
        if json.loads(services_file.read_text())["mark"] == mark:
            services_file.unlink()


def free_port(host: str, wanted: int, taken: set[int]) -> int:
    """`wanted`, or the next one above it that nobody listens on; added to `taken`."""
    for port in range(wanted, min(wanted + 200, 65536)):
        if port not in taken and is_free(host, port):
            taken.add(port)
            return port
    raise OSError(f"no free port from {wanted} to {wanted + 199} on {host}: set another one (see the table of settings in README.md)")


class PortTaken(OSError):
    """Something else listens there. The message names the setting that changes the port."""


def listen(host: str, port: int, setting: str) -> socket.socket:
    """A bound socket of the port that `setting` names.

    Raises:
        PortTaken
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise PortTaken(f"{host}:{port} cannot be listened on ({error.strerror}): set {setting} to a free port") from None
    return listener


def is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


if __name__ == "__main__":
    _guard(sys.argv[1], Path(sys.argv[2]), sys.stdin.buffer)
