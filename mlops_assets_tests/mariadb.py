"""A private MariaDB: a real server on a free port with small buffers, started and stopped by the tests, beside whatever else runs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pymysql

from mlops_assets_tests.conftest import free_port, wait_for

SEARCH = f"{os.environ['PATH']}:/usr/sbin"  # not everybody has sbin in PATH
PROGRAM, INSTALL = shutil.which("mariadbd", path=SEARCH), shutil.which("mariadb-install-db", path=SEARCH)
MISSING = None if PROGRAM and INSTALL else "no MariaDB: apt-get install mariadb-server"


class MariaDB:
    """A running server. `root` may do everything, `reader` has only SELECT; neither has a password."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._as = [f"--user={'mysql' if os.getuid() == 0 else _user()}"]
        common = ["--no-defaults", *self._as, f"--datadir={folder / 'data'}"]
        made = subprocess.run([str(INSTALL), *common, "--auth-root-authentication-method=normal", "--skip-test-db"], capture_output=True)
        assert made.returncode == 0, made.stderr.decode(errors="replace")[-3000:]
        self._command = [str(PROGRAM), *common, f"--port={self.port}", "--bind-address=127.0.0.1", f"--socket={folder / 'socket'}"]
        self._command += [
            f"--pid-file={folder / 'pid'}",
            f"--tmpdir={folder / 'data'}",  # at its start a server removes what others have in a folder that they share
            "--skip-name-resolve",
            "--innodb-buffer-pool-size=64M",
            "--max-connections=100",
            "--lock-wait-timeout=20",
        ]
        # A test's data need not survive the machine; the kills of the tests are of processes.
        self._command += ["--innodb-flush-log-at-trx-commit=0", "--character-set-server=utf8mb4", "--default-time-zone=+00:00"]

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, start_new_session=True)
        wait_for(self._answers, "MariaDB answers", 60)

    def _answers(self) -> bool:
        assert self._process and self._process.poll() is None, (self.folder / "log").read_text(errors="replace")[-3000:]
        try:
            pymysql.connect(host="127.0.0.1", port=self.port, user="root").close()
        except pymysql.err.OperationalError:
            return False
        return True

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(how)
            self._process.wait(60)

    def connect(self, database: str | None = None, **options: Any) -> pymysql.connections.Connection[Any]:
        """A connection of the application's own, that commits by itself unless `autocommit=False`."""
        # Without TLS, for which PyMySQL would read the machine's certificates at every connection: 22 ms.
        given = {"user": "root", "autocommit": True, "charset": "utf8mb4", "ssl_disabled": True} | options
        return pymysql.connect(host="127.0.0.1", port=self.port, database=database, **given)

    def run(self, *statements: str, database: str | None = None) -> list[tuple[Any, ...]]:
        """The rows of the last statement."""
        connection = self.connect(database)
        try:
            with connection.cursor() as cursor:
                for statement in statements:
                    cursor.execute(statement)
                return list(cursor.fetchall())
        finally:
            connection.close()

    def url(self, database: str, user: str = "reader", port: int | None = None) -> str:
        return f"mysql+pymysql://{user}@127.0.0.1:{port or self.port}/{database}"


def _user() -> str:
    import getpass

    return getpass.getuser()


@contextmanager
def running() -> Iterator[MariaDB]:
    with tempfile.TemporaryDirectory(prefix="mlops-mariadb-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if os.getuid() == 0:
            shutil.chown(folder, "mysql")  # the server refuses to run as root
        server = MariaDB(folder)
        try:
            server.start()
            server.run("CREATE USER reader@'127.0.0.1'", "GRANT SELECT ON *.* TO reader@'127.0.0.1'")
            yield server
        finally:
            server.stop()
