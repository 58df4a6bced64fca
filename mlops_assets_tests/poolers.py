"""What stands before a real PostgreSQL in production: servers that tests start, stop and kill."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from mlops_assets.resources import embedded
from mlops_assets_tests.conftest import free_port, wait_for

PASSWORD = "a %s$HOME word"


class Program(ABC):
    """A server in a process group of its own, started (again) and stopped by the test."""

    def __init__(self, command: list[str], log: Path, **options: Any) -> None:
        self.command, self.log, self._options = command, log, options
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def answers(self) -> bool: ...

    def is_ready(self) -> bool:
        assert self._process and self._process.poll() is None, self.log.read_text()[-3000:]
        try:
            return self.answers()
        except psycopg.OperationalError:
            return False

    def launch(self) -> None:
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(self.command, stdout=out, stderr=out, start_new_session=True, **self._options)

    def start(self) -> None:
        self.launch()
        try:
            wait_for(self.is_ready, "ready", 15)
        except AssertionError as error:
            raise AssertionError(self.log.read_text()[-3000:]) from error

    def kill(self) -> None:
        """It and its children, as when the machine loses its power: nothing is tidied up."""
        assert self._process
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """Without waiting for its clients: SIGINT is the "fast" shutdown of both programs."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()


class Postgres(Program):
    """A PostgreSQL that wants a password over TCP (as pgpool comes) and none through its socket (as the test comes)."""

    def __init__(self, made: embedded.EmbeddedPostgres, folder: Path) -> None:
        self.made, self.port = made, free_port()
        options = ["--listen_addresses=127.0.0.1", f"--port={self.port}", "--fsync=off"]
        super().__init__([*made.command, *options], folder / f"{made.data.name}.log", user=made.uid, group=made.gid)

    def ask(self, sql: str, name: str = "mlops") -> list[tuple]:
        """The answer of PostgreSQL itself, past pgpool."""
        with psycopg.connect(f"{self.made.url(name)}&port={self.port}", autocommit=True) as connection:
            cursor = connection.execute(sql)
            return cursor.fetchall() if cursor.description else []

    def answers(self) -> bool:
        return bool(self.ask("SELECT 1", "postgres"))


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL with the platform's three databases, empty; the password of `postgres` is PASSWORD."""
    with tempfile.TemporaryDirectory(prefix="mlops-pool-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)  # the server runs as another user when the tests run as root
        made = embedded.prepare(folder / "data")
        rules = ["local all all trust", "local replication all trust", "host all all 127.0.0.1/32 scram-sha-256"]
        (made.data / "pg_hba.conf").write_text("".join(f"{rule}\n" for rule in rules))
        server = Postgres(made, folder)
        try:
            server.start()
            server.ask(f"ALTER ROLE postgres PASSWORD '{PASSWORD}'", "postgres")
            for each in embedded.DATABASES:
                server.ask(f"CREATE DATABASE {each}", "postgres")
            yield server
        finally:
            server.stop()
