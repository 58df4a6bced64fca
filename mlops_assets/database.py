"""Our own PostgreSQL schema: the engine, migrations (`migrations/`, Alembic) and COPY. SQL itself stands where it is used.

Belongs here: how to connect, migrate and write in bulk. Does not belong here: any table's meaning, Dagster.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

MIGRATIONS = Path(__file__).parent / "migrations"
#: A peer that vanishes without a word (a failover, a cut cable) is noticed within half a minute, not after two hours.
CONNECT_ARGUMENTS = {"options": "-c timezone=UTC", "connect_timeout": 5, "keepalives_idle": 15, "tcp_user_timeout": 30_000}


class SchemaTooNew(RuntimeError):
    """The database was migrated by a newer mlops_assets than this one."""


def connect(url: str, *, pool_size: int = 5) -> Engine:
    """An engine on `url` (psycopg 3). Sessions are UTC; a dead pooled connection is noticed before it is used.

    Args:
        pool_size: connections kept open; 0 keeps none, for callers that live long and ask seldom (runs, sensors, commands).
    """
    from sqlalchemy import NullPool, create_engine

    url = with_driver(url)
    if pool_size == 0:
        return create_engine(url, poolclass=NullPool, connect_args=CONNECT_ARGUMENTS)
    return create_engine(url, pool_pre_ping=True, pool_size=pool_size, max_overflow=10, connect_args=CONNECT_ARGUMENTS)


def with_driver(url: str) -> str:
    """`url` with the driver that we use named in it."""
    for plain in ("postgresql://", "postgres://"):
        if url.startswith(plain):
            return "postgresql+psycopg://" + url.removeprefix(plain)
    return url


@contextmanager
def lock(connection: Connection, name: str) -> Iterator[None]:
    """A transaction-wide advisory lock by name: held until the surrounding transaction ends."""
    from sqlalchemy import text

    connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": name})
    yield


def copy_rows(connection: Connection, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> int:
    """COPY `rows` into `table` inside the connection's transaction; returns how many."""
    count = 0
    cursor = connection.connection.cursor()
    with cursor.copy(f"COPY {table} ({', '.join(columns)}) FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)
            count += 1
    return count


def migrate(url: str) -> str:
    """Bring the schema to this version's head; returns the revision. Safe to call at the same time from several processes.

    Raises:
        SchemaTooNew: the database knows a revision that this version does not; nothing is changed.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    script = ScriptDirectory.from_config(config)
    engine = connect(url)
    try:
        with engine.begin() as connection, lock(connection, "mlops_assets.migrate"):
            current = MigrationContext.configure(connection).get_current_revision()
            known = {revision.revision for revision in script.walk_revisions()}
            if current is not None and current not in known:
                raise SchemaTooNew(
                    f"the database is at schema {current}, this mlops_assets knows up to {script.get_current_head()}. "
                    "Install the newer version that migrated it, or restore the backup taken before."
                )
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    finally:
        engine.dispose()
    return str(script.get_current_head())
