"""Sensors that watch: runs that failed, workers that outlive them, champions that do badly. They start no run; what people must hear goes
through the outbox.

Belongs here: the shells, and reading Dagster's event log. Does not belong here: figures and limits (`live.py`), delivery (`mirror_sensor`).
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg

from mlops_assets.lifecycle.assets import REFUSAL
from mlops_assets.settings import MonitoringPolicy

if TYPE_CHECKING:
    from mlops_assets.lifecycle.pipeline import Platform

#: Failures this much older than the cursor are looked at again, and at the first tick ever.
OVERLAP = timedelta(minutes=10)
KIND = "run_ended_badly"
#: An error's first line is shown up to here.
LINE = 300
#: A run that has ended may take so long to leave: it closes a checkpoint, its files and connections.
GRACE_SECONDS = 20.0


def failure_sensor(open_platform: Callable[[], "Platform"]) -> dg.SensorDefinition:
    """One sensor for every run of the instance, those that commands execute themselves among them.

    Not `dg.run_failure_sensor`: that one moves its cursor past a run although telling of it failed, and the run is never heard of. Here the
    table `alert` is the truth, and the cursor only a hint.
    """

    @dg.sensor(
        name="run_failures",
        minimum_interval_seconds=15,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Tells people of every failed run, once. A refusal by the gate is not a failure.",
    )
    def run_failures(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        since = _parse(context.cursor) or datetime.now(UTC)
        failed = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], updated_after=since - OVERLAP)
        records = context.instance.get_run_records(failed, order_by="update_timestamp", ascending=True)
        told = [sentence for record in records if (sentence := _tell(open_platform(), context.instance, record.dagster_run))]
        newest = max([since, *(record.update_timestamp.replace(tzinfo=UTC) for record in records)])
        return dg.SensorResult(skip_reason="; ".join(told)[:1000] or "no new failure", cursor=newest.isoformat())

    return run_failures


def _parse(cursor: str | None) -> datetime | None:
    """A cursor that cannot be read starts over: the table has what was told."""
    try:
        found = datetime.fromisoformat(cursor or "")
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _tell(platform: "Platform", instance: dg.DagsterInstance, run: dg.DagsterRun) -> str | None:
    """Tell people of the run unless they were told before, or it was only refused; returns the sentence."""
    from mlops_assets.lifecycle import outbox

    with platform.engine.begin() as connection:
        if outbox.state_of(connection, KIND, run.run_id):
            return None
        broken = next(breakdowns(instance, run.run_id), None)
        if not outbox.became(connection, KIND, run.run_id, "failed" if broken else "refused") or broken is None:
            return None
        over = run.tags.get("dagster/partition")
        job = " ".join(part for part in (run.job_name, over) if part)
        again = " (Dagster tries it again)" if run.tags.get("dagster/will_retry") == "true" else ""
        address = platform.settings.dagster_url
        link = f"{address.rstrip('/')}/runs/{run.run_id}" if address else f"run {run.run_id}"
        sentence = f"run failed: {job}: {broken}{again}"
        outbox.tell(connection, sentence, "실행 중 오류가 발생하였습니다.", link)
    return sentence


def breakdowns(instance: dg.DagsterInstance, run_id: str) -> Iterator[str]:
    """The first lines of what broke in a failed run; none when all that failed in it are refusals.

    One model of a run may be refused and another one break: each failed step counts, not the run's tag.
    """
    kinds = {dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.ASSET_CHECK_EVALUATION, dg.DagsterEventType.RUN_FAILURE}
    events = [entry.dagster_event for entry in instance.all_logs(run_id, of_type=kinds) if entry.dagster_event]
    checks = [event for event in events if event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION]
    refused = {e.step_key for e in checks if not (c := e.asset_check_evaluation_data).passed and c.check_name == "register_threshold"}
    steps = [event for event in events if event.is_step_failure]
    for event in steps:
        given, error = event.step_failure_data.user_failure_data, event.step_failure_data.error
        if event.step_key in refused and error and error.cls_name == "DagsterAssetCheckFailedError":
            continue
        if given and REFUSAL in given.metadata:
            continue
        cause = error.cause or error if error else None
        yield _line(given.description if given and given.description else cause.message if cause else event.message)
    for event in events:
        # The run itself broke (its process died, its time was over), whatever its steps had said before.
        if event.is_failure and not event.is_step_failure and not _only_steps_failed(event):
            yield _line(event.message)
    if not steps and not any(event.is_job_failure for event in events):
        yield "it has no event that says why"


def _only_steps_failed(event: dg.DagsterEvent) -> bool:
    data = event.event_specific_data
    return getattr(getattr(data, "failure_reason", None), "value", None) == "STEP_FAILURE"


def _line(message: str | None) -> str:
    lines = [line.strip() for line in (message or "").splitlines() if line.strip()]
    return lines[0][:LINE] if lines else "no message"


def stray_sensor() -> dg.SensorDefinition:
    """One sensor for every code server: it is evaluated there, where the workers are."""

    @dg.sensor(
        name="stray_workers",
        minimum_interval_seconds=15,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Kills the process of a run that has ended (canceled, over its time) and does not heed it: it would hold training up.",
    )
    def stray_workers(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        from mlops_assets.resources.launcher import kill, strays

        killed = []
        for run, process in strays(context.instance, GRACE_SECONDS):
            kill(process)
            killed.append(f"process {process.pid} outlived its run {run.run_id} ({run.status.value}) and was killed")
            context.instance.report_engine_event(killed[-1], run)
        return dg.SkipReason("; ".join(killed)[:1000] or "no worker outlives its run")

    return stray_workers


def live_sensors(system: str, policy: MonitoringPolicy, open_platform: Callable[[], "Platform"]) -> list[dg.SensorDefinition]:
    """The sensor that watches the system's champion; none when the system has no limit."""
    if policy.min_live_accuracy is None:
        return []

    @dg.sensor(
        name=f"{system}_live_performance",
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Tells people when the champion of {system} is right less often than `monitoring.min_live_accuracy`, and when again.",
    )
    def live_performance(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        from mlops_assets.lifecycle import promotion
        from mlops_assets.monitoring import live

        platform = open_platform()
        with platform.engine.begin() as connection:
            champion, _ = promotion.latest_verified(connection, system, "champion", platform.settings.public_keys_path)
            return dg.SkipReason(live.watch(connection, champion, policy) if champion else f"{system} has no champion")

    return [live_performance]
