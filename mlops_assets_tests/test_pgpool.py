"""PostgreSQL behind pgpool, as production may have it: a real pgpool with the shipped `deploy/pgpool/` in front of a real PostgreSQL.

Only addresses, ports and folders differ from what is shipped. Both ask for passwords (SCRAM), as compose's do.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine, text

from mlops_assets import database
from mlops_assets.lifecycle import promotion
from mlops_assets.resources import embedded
from mlops_assets.settings import REPOSITORY, load_settings, process_environment
from mlops_assets.store import ObjectStore
from mlops_assets_tests.conftest import free_port, wait_for
from mlops_assets_tests.factories import GOOD, World

PROGRAM = shutil.which("pgpool", path=f"{os.environ.get('PATH', '')}:/usr/sbin")  # Debian's; sbin is not in everybody's PATH
SHIPPED = REPOSITORY / "deploy" / "pgpool"
PASSWORD = "a password"

pytestmark = pytest.mark.skipif(not PROGRAM, reason="no pgpool: apt-get install pgpool2")


@contextmanager
def running(command: list[str], log: Path, **options) -> Iterator[subprocess.Popen[bytes]]:
    """The program, in a process group of its own; stopped at the end, killed when it does not stop."""
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True, **options)
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """At once and without waiting for sessions to end (SIGINT: the "fast" shutdown of PostgreSQL and of pgpool)."""
    import signal

    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@dataclass
class Postgres:
    """A PostgreSQL that wants a password over TCP (as pgpool comes) and none through its socket (as the test comes)."""

    folder: Path
    made: embedded.EmbeddedPostgres
    port: int

    @property
    def command(self) -> list[str]:
        return [*self.made.command, "--listen_addresses=127.0.0.1", f"--port={self.port}", "--fsync=off"]

    def direct(self, name: str) -> str:
        return f"{self.made.url(name)}&port={self.port}"

    def ask(self, sql: str, name: str = "mlops", **parameters) -> list[tuple]:
        """The answer of PostgreSQL itself, past pgpool."""
        with psycopg.connect(self.direct(name), autocommit=True) as connection:
            cursor = connection.execute(sql, parameters)
            return cursor.fetchall() if cursor.description else []

    def is_ready(self) -> bool:
        try:
            self.ask("SELECT 1", "postgres")
        except psycopg.OperationalError:
            return False
        return True


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with tempfile.TemporaryDirectory(prefix="mlops-pool-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)  # the server runs as another user when the tests run as root
        made = embedded.prepare(folder / "data")
        (made.data / "pg_hba.conf").write_text(
            "local all all trust\nlocal replication all trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
        )
        server = Postgres(folder, made, free_port())
        with running(server.command, folder / "postgres.log", user=made.uid, group=made.gid):
            wait_for(server.is_ready, "PostgreSQL is ready")
            server.ask(f"ALTER ROLE postgres PASSWORD '{PASSWORD}'", "postgres")
            for database_name in embedded.DATABASES:
                server.ask(f"CREATE DATABASE {database_name}", "postgres")
            yield server


class Pool:
    """The shipped pgpool in front of `server`; `changes` are lines of pgpool.conf that a test wants otherwise."""

    def __init__(self, server: Postgres, folder: Path, changes: dict[str, object] | None = None) -> None:
        self.port = free_port()
        self.folder = folder
        self._started: subprocess.Popen[bytes] | None = None
        places = {"listen_addresses": "127.0.0.1", "port": self.port, "pcp_port": free_port(), "backend_hostname0": "127.0.0.1"}
        places |= {"backend_port0": server.port, "pid_file_name": folder / "pid"}
        places |= dict.fromkeys(("socket_dir", "pcp_socket_dir", "logdir"), folder)
        conf = (SHIPPED / "pgpool.conf").read_text()
        folder.mkdir()
        (folder / "pgpool.conf").write_text(conf + "".join(f"{k} = '{v}'\n" for k, v in (places | (changes or {})).items()))
        shutil.copy(SHIPPED / "pool_hba.conf", folder)
        (folder / "pool_passwd").write_text(f"postgres:TEXT{PASSWORD}\n")
        (folder / "pool_passwd").chmod(0o600)

    def url(self, name: str = "mlops", password: str = PASSWORD) -> str:
        from urllib.parse import quote

        return f"postgresql+psycopg://postgres:{quote(password)}@127.0.0.1:{self.port}/{name}"

    def start(self) -> None:
        assert PROGRAM
        with (self.folder / "log").open("ab") as out:
            command = [PROGRAM, "-n", "-D", "-f", str(self.folder / "pgpool.conf"), "-a", str(self.folder / "pool_hba.conf")]
            self._started = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
        try:
            wait_for(self.is_ready, "pgpool is ready", 15)
        except AssertionError as error:
            raise AssertionError((self.folder / "log").read_text()[-3000:]) from error

    def stop(self) -> None:
        if self._started:
            stop(self._started)

    def is_ready(self) -> bool:
        assert self._started and self._started.poll() is None, (self.folder / "log").read_text()
        try:
            psycopg.connect(self.url().replace("+psycopg", ""), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True


@pytest.fixture(scope="module")
def pool(server: Postgres) -> Iterator[Pool]:
    pool = Pool(server, server.folder / "pool")
    try:
        pool.start()
        database.migrate(pool.url())
        yield pool
    finally:
        pool.stop()


def test_start(pool, server):
    print(server.ask("select version()"))
    print((pool.folder/"log").read_text())
