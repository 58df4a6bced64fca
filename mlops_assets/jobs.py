"""Running a Dagster job from a command: in this process, against the running platform's instance, so that the event log has it.

Belongs here: starting a job and reading its outcome. Does not belong here: words for people (`cli.py`), the jobs themselves.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from mlops_assets.dagster_api import OUTCOME, WHY
from mlops_assets.definitions import build_defs
from mlops_assets.lifecycle.actor import as_command
from mlops_assets.resources.console import ON_A_TERMINAL
from mlops_assets.resources.launcher import HOST_TAG
from mlops_assets.settings import Settings, export


@dataclass(frozen=True)
class Outcome:
    """`reason` is the failed step's own sentence; `refused`: the gate or the registrar said no, nothing is broken."""

    run_id: str
    success: bool
    refused: bool
    reason: str | None


def run_job(
    settings: Settings,
    job: str,
    *,
    config: Mapping[str, Any] | None = None,
    partition: str | None = None,
    assets: Sequence[Sequence[str]] | None = None,
) -> Outcome:
    """Execute `job` now and wait for it.

    Args:
        config: Dagster run config.
        assets: only these of the job's assets, by the parts of their keys.
        partition: the dataset version; it becomes a partition when it is not one yet.

    Raises:
        SettingsError: the platform is not running.
    """
    settings.require("dagster_database_url")
    export(settings)
    definitions = build_defs(settings)
    with dg.DagsterInstance.get() as instance:
        if partition is not None:
            instance.add_dynamic_partitions(f"{job.rsplit('_', 1)[0]}_dataset_version", [partition])
        with as_command():
            result = definitions.resolve_job_def(job).execute_in_process(
                instance=instance,
                run_config={**ON_A_TERMINAL, **(config or {})},
                partition_key=partition,
                asset_selection=[dg.AssetKey(list(parts)) for parts in assets] if assets else None,
                tags={HOST_TAG: socket.gethostname()},
                raise_on_error=False,
            )
        run = instance.get_run_by_id(result.run_id)
        refused = run is not None and run.tags.get(OUTCOME) == "refused"
    reasons = [
        event.step_failure_data.user_failure_data.description
        if event.step_failure_data.user_failure_data
        else (event.step_failure_data.error.message if event.step_failure_data.error else None)
        for event in result.all_events
        if event.is_step_failure
    ]
    checks = [e.description for e in result.get_asset_check_evaluations() if not e.passed and e.blocking]
    sentence = next((reason for reason in [*checks, *reasons] if reason), None)
    if refused and run is not None:
        sentence = run.tags.get(WHY, sentence)
    return Outcome(result.run_id, result.success, refused, sentence)
