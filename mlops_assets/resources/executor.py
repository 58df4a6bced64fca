"""The executor of every launched run: Dagster's in-process one (a run is a process already), which keeps its database connections.

dagster-postgres opens a connection for each event that it stores: half of what an asset costs beside its own work. Dagster's webserver
keeps them (`DagsterInstance.optimize_for_webserver`), and so may a run. What stays open for hours may be dead when it is needed, so a
connection is tried before it is used, and a dead one replaced: a database that was restarted meanwhile fails no run.

Belongs here: how runs execute. Does not belong here: how they start (`launcher.py`).
"""

from __future__ import annotations

from typing import Any

import dagster as dg

from mlops_assets.database import CONNECT_ARGUMENTS

#: A statement that takes longer is given up. A webserver gives up sooner: nobody waits here.
STATEMENT_SECONDS = 3600
#: A connection that is older is replaced untried: after a long step the database may have moved, and the old one may answer still.
RECYCLE_SECONDS = 60
#: Beside the one that is kept: a run stores its events on one thread, others seldom need a connection.
MORE_CONNECTIONS = 4


_config: Any = dg.in_process_executor.config_schema
_create: Any = dg.in_process_executor.executor_creation_fn


@dg.executor(name="in_process", config_schema=_config)
def run_executor(context: dg.InitExecutorContext) -> dg.Executor:
    """Executes all steps in the run's own process, as `dagster.in_process_executor`, whose name and configuration it has."""
    keep_connections(context.instance)
    executor: dg.Executor = _create(context)
    return executor


def keep_connections(instance: dg.DagsterInstance) -> None:
    """One open connection for each of the storages that are in PostgreSQL; others stay as they are."""
    from sqlalchemy import event

    instance.optimize_for_webserver(1000 * STATEMENT_SECONDS, RECYCLE_SECONDS, MORE_CONNECTIONS)
    storages: tuple[Any, ...] = (instance.run_storage, instance.event_log_storage, instance.schedule_storage)
    for storage in storages:
        if hasattr(storage, "postgres_url"):
            event.listen(storage._engine, "do_connect", _notice_silence)
            event.listen(storage._engine, "checkout", _try_connection)


def _notice_silence(dialect: Any, record: Any, arguments: Any, options: dict[str, Any]) -> None:
    """As connections of our own: a peer that vanished without a word would hold the trial up for a quarter of an hour."""
    options.update(CONNECT_ARGUMENTS)


def _try_connection(connection: Any, record: Any, proxy: Any) -> None:
    """SQLAlchemy replaces the connection when this raises DisconnectionError, and connects anew, as often as dagster-postgres retries."""
    import psycopg2
    from sqlalchemy.exc import DisconnectionError

    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except psycopg2.Error:
        raise DisconnectionError from None
