"""Our own PostgreSQL schema: the engine, migrations (`migrations/`, Alembic) and COPY. SQL itself stands where it is used.

A pooler may stand between us and PostgreSQL. What a session needs is said in SQL after connecting, never by the parameter `options`,
which pgbouncer refuses. A session must stay ours until we give it back (pool_mode = session): LISTEN, prepared statements and the locks of
sweeps live in it.

Belongs here: how to connect, migrate and write in bulk. Does not belong here: any table's meaning, Dagster.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mlops_assets.settings import SettingsError

if TYPE_CHECKING:
    import psycopg
    from sqlalchemy import Connection, Engine

MIGRATIONS = Path(__file__).parent / "migrations"
#: A peer that vanishes without a word (a failover, a cut cable) is noticed within half a minute, not after two hours.
CONNECT_ARGUMENTS: Final[dict[str, Any]] = {"connect_timeout": 5, "keepalives_idle": 15, "tcp_user_timeout": 30_000}

#: The settings that name a PostgreSQL of the platform.
URLS: Final = ("database_url", "dagster_database_url", "mlflow_database_url")


class SchemaTooNew(RuntimeError):
    """The database was migrated by a newer mlops_assets than this one."""


def connect(url: str, *, pool_size: int = 5, schema: str | None = None) -> Engine:
    """An engine on `url` (psycopg 3). Sessions are UTC; a dead pooled connection is noticed before it is used.

    Args:
        pool_size: connections kept open; 0 keeps none, for callers that live long and ask seldom (runs, sensors, commands).
        schema: where names without a schema are looked up; None: where PostgreSQL does.
    """
    from sqlalchemy import NullPool, create_engine, event

    kept: dict[str, Any] = {"pool_pre_ping": True, "pool_size": pool_size, "max_overflow": 10} if pool_size else {"poolclass": NullPool}
    engine = create_engine(with_driver(url), connect_args=CONNECT_ARGUMENTS, **kept)

    @event.listens_for(engine, "connect")
    def begin(connection: psycopg.Connection[Any], _: Any) -> None:
        connection.autocommit = True
        connection.execute("SET TIME ZONE 'UTC'")
        if schema:
            connection.execute("SELECT set_config('search_path', %s, false)", (schema,))
        connection.autocommit = False

    return engine


def with_driver(url: str) -> str:
    """`url` with the driver that we use named in it."""
    for plain in ("postgresql://", "postgres://"):
        if url.startswith(plain):
            return "postgresql+psycopg://" + url.removeprefix(plain)
    return url


def refuse_transaction_pooling(url: str | None, name: str, patience: float = 5.0) -> None:
    """Look whether the database that the setting `name` gives is reached through a pooler of transactions. No `url`: it is embedded.

    Raises:
        SettingsError: it is.
    """
    if url and pools_transactions(url, patience):
        raise SettingsError(
            f"MLOPS_{name.upper()} goes through a pooler that gives each transaction another session (pgbouncer: pool_mode = transaction), "
            "so that prepared statements, LISTEN and locks are lost: set `pool_mode = session` for this database in pgbouncer.ini, or give "
            "the address of PostgreSQL itself."
        )


#: So often a pooler is tried: in a busy one the first other session may be a third one.
_TRIES: Final = 5


def pools_transactions(url: str, patience: float = 5.0) -> bool:
    """Whether a pooler gives each transaction another session. What does not answer within `patience` (seconds) is not known to.

    Two clients are connected. With sessions of their own they never meet in one; where transactions are pooled, the second is given the
    session that the first has just left.
    """
    found: list[bool] = []
    looking = threading.Thread(target=lambda: found.append(_meet(url)), daemon=True)  # a full pool makes its clients wait for minutes
    looking.start()
    looking.join(patience)
    return bool(found and found[0])


def _meet(url: str) -> bool:
    import psycopg

    def session(client: psycopg.Connection[Any]) -> int:
        row = client.execute("SELECT pg_backend_pid()", prepare=False).fetchone()
        return int(row[0]) if row else 0

    plain = with_driver(url).replace("+psycopg", "", 1)
    try:
        with psycopg.connect(plain, **CONNECT_ARGUMENTS) as one, psycopg.connect(plain, **CONNECT_ARGUMENTS) as other:
            for _ in range(_TRIES):
                mine = session(one)
                one.commit()
                if session(other) == mine:  # and keeps it, until its transaction ends
                    return True
                if session(one) != mine:
                    return True
                one.commit()
                other.commit()
    except psycopg.Error as error:
        return "transaction blocks not allowed in statement pooling mode" in str(error)
    return False


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
