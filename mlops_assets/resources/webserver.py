"""Dagster's own webserver behind the guard and with limits: `mlops web dagster`. Its UI, GraphQL and subscriptions are Dagster's.

Belongs here: how it is started. Does not belong here: who may ask (`guard.py`).
"""

from __future__ import annotations

import socket

from mlops_assets.settings import Settings, export

#: A request that asks the database for longer is given up: nobody waits in front of the page for so long.
STATEMENT_MILLISECONDS = 15_000
RECYCLE_SECONDS = 3600
MORE_CONNECTIONS = 20
#: The largest thing that is sent to it is a launchpad's run config.
MAX_BODY_BYTES = 8 * 1024 * 1024


def run(settings: Settings, listener: socket.socket) -> None:
    """Answer until a signal. The workspace is `<DAGSTER_HOME>/workspace.yaml`."""
    from dagster import DagsterInstance
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import WorkspaceFileTarget
    from dagster_webserver.app import create_app_from_workspace_process_context
    from dagster_webserver.version import __version__

    from mlops_assets import limits
    from mlops_assets.guard import Guard

    export(settings)
    target = WorkspaceFileTarget([str(settings.dagster_home / "workspace.yaml")])
    with DagsterInstance.get() as instance:
        instance.optimize_for_webserver(STATEMENT_MILLISECONDS, RECYCLE_SECONDS, MORE_CONNECTIONS)
        with WorkspaceProcessContext(instance, version=__version__, read_only=False, workspace_load_target=target) as workspace:
            app = create_app_from_workspace_process_context(workspace, live_data_poll_rate=2000)
            limits.run(Guard(app, settings), listener, limits.Limits.of(settings, MAX_BODY_BYTES), ws="websockets-sansio")
