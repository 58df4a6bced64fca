"""The sensors of what arrives and the nightly reconciliations: thin Dagster shells around `objects.py` and `comments.py`.

Belongs here: what to hand to Dagster, and when. Does not belong here: when a version is complete (`objects.py`), which comments are new
(`comments.py`), anything slow to import: a sensor's process starts often.
"""

from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg

from mlops_assets.ingest import comments, objects
from mlops_assets.ingest.comment_source import CommentsError, CommentsSection
from mlops_assets.lifecycle import sections
from mlops_assets.lifecycle.assets import dataset_versions
from mlops_assets.lifecycle.sections import SECTIONS
from mlops_assets.resources.object_store import ObjectStoreResource
from mlops_assets.resources.postgres import PostgresResource
from mlops_assets.settings import Settings, SettingsError, Strict

if TYPE_CHECKING:
    from sqlalchemy import Engine

#: Requests this much older than the cursor are looked at again: a transaction that began earlier may commit later.
OVERLAP = timedelta(hours=1)
RUN_KEY_TAG = "dagster/run_key"


def landing_sensor(system: str, job_name: str, settings: Settings, read_config: Callable[[], Strict] | None = None) -> dg.SensorDefinition:
    """Records what arrived for `system` and starts `job_name` once for each run that the ledger asks for.

    The ledger is the truth, the cursor only a hint of which requests were handed over already.

    Args:
        read_config: the configuration as its file has it now: what a run is asked for with. While it cannot be read, runs wait.
    """
    partitions = dataset_versions(system)

    @dg.sensor(
        name=f"{system}_landing",
        job_name=job_name,
        minimum_interval_seconds=settings.sensor_interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"New objects under landing/{system}/ become dataset versions; each complete version starts one run.",
    )
    def landing(context: dg.SensorEvaluationContext, store: ObjectStoreResource, postgres: PostgresResource) -> dg.SensorResult:
        since = _parse(context.cursor)
        with postgres.engine() as engine:
            done = objects.tick(engine, store.open(), system, settle_seconds=settings.settle_seconds)
            with engine.connect() as connection:
                asked = objects.runs_asked(connection, system, since - OVERLAP if since else None)
            try:
                digests = _sections(engine, system, asked, read_config)
            except SettingsError as error:  # a run would only fail over it
                return dg.SensorResult(skip_reason=f"runs wait until the configuration can be read: {error}", cursor=context.cursor)
        for version, problem in done.problems.items():
            context.log.error(f"{system} {version}: {problem}")
        started = _started(context.instance, [request.run_key for request in asked])
        missing = [request for request in asked if request.run_key not in started]
        newest = max([request.requested_at for request in asked] + ([since] if since else []), default=None)
        return dg.SensorResult(
            run_requests=[
                dg.RunRequest(
                    run_key=request.run_key,
                    partition_key=request.version,
                    tags={
                        "mlops/system": system,
                        "mlops/dataset_version": request.version,
                        "mlops/why": request.reason,
                        **({SECTIONS: digest} if (digest := digests.get((request.version, request.attempt))) else {}),
                    },
                )
                for request in missing
            ],
            dynamic_partitions_requests=[partitions.build_add_request(sorted({r.version for r in missing}))] if missing else [],
            skip_reason=None if missing else _nothing(done),
            cursor=newest.isoformat() if newest else None,
        )

    return landing


def _sections(
    engine: "Engine", system: str, asked: Sequence[objects.RunAsked], read_config: Callable[[], Strict] | None
) -> dict[tuple[str, int], str]:
    """(version, attempt) of each request -> the digest of its sections, which it gets when it is first seen."""
    if read_config is None or not asked:
        return {}
    with engine.begin() as connection:
        known = sections.asked_with(connection, system)
        if new := [key for request in asked if (key := (request.version, request.attempt)) not in known]:
            sections.ask_with(connection, new, read_config())
            known = sections.asked_with(connection, system)
    return known


def _parse(cursor: str | None) -> datetime | None:
    """A cursor that cannot be read starts over: the ledger has everything."""
    try:
        found = datetime.fromisoformat(cursor or "")
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _started(instance: dg.DagsterInstance, run_keys: Sequence[str]) -> set[str]:
    """Keys whose run got further than being created: a run that was created and never launched is handed to Dagster again."""
    if not run_keys:
        return set()
    runs = instance.get_runs(filters=dg.RunsFilter(tags={RUN_KEY_TAG: list(run_keys)}))
    return {run.tags[RUN_KEY_TAG] for run in runs if run.status != dg.DagsterRunStatus.NOT_STARTED}


def _nothing(done: objects.Tick) -> str:
    said = [f"{version}: {why}" for version, why in {**done.waiting, **done.problems}.items()]
    return "; ".join(said)[:1000] or "nothing new"


def reconciliation(system: str, systems: Collection[str] = ()) -> dg.Definitions:
    """The job that reads the system's landing folder again, and its nightly schedule. `systems`: all that exist."""

    @dg.op(name=f"{system}_reconcile_landing_zone")
    def reconcile(context: dg.OpExecutionContext, store: ObjectStoreResource, postgres: PostgresResource) -> None:
        with postgres.engine() as engine:
            done = objects.reconcile(engine, store.open(), system, systems=systems)
        context.log.info(
            f"{done.objects} objects; new in quarantine: {done.late} late, {done.strays} outside any version, {done.odd} not usable; "
            f"{done.deleted} accepted ones were deleted since (their frozen bytes stay)"
        )

    @dg.job(
        name=f"{system}_reconciliation",
        description="Look at closed versions again: what came late is quarantined, what is deleted noted.",
        tags={"mlops/system": system},
    )
    def landing_reconciliation() -> None:
        reconcile()

    nightly = dg.ScheduleDefinition(
        name=f"{system}_reconciliation_nightly",
        job=landing_reconciliation,
        cron_schedule="30 3 * * *",
        execution_timezone="Asia/Seoul",
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )
    return dg.Definitions(jobs=[landing_reconciliation], schedules=[nightly])


NO_COMMENTS = "comments_url is not set: set MLOPS_COMMENTS_URL (mysql+pymysql://...) to read the application's comments"


def comments_sensor(system: str, section: CommentsSection, settings: Settings) -> dg.SensorDefinition:
    """Reads the application's comments into PostgreSQL. It starts no run: dataset versions are cut from what is there."""

    @dg.sensor(
        name=f"{system}_comments",
        minimum_interval_seconds=settings.sensor_interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"New, edited and deleted comments of {section.table}, each exactly once.",
    )
    def read_comments(context: dg.SensorEvaluationContext, postgres: PostgresResource) -> dg.SkipReason:
        if not settings.comments_url:
            return dg.SkipReason(NO_COMMENTS)
        with postgres.engine() as engine:
            done = comments.tick(engine, settings, section)
        for problem in done.problems:
            context.log.error(f"{section.source}: {problem}")
        return dg.SkipReason("; ".join([done.sentence(), *done.problems])[:1000])

    return read_comments


def comments_reconciliation(system: str, section: CommentsSection, settings: Settings) -> dg.Definitions:
    """The job that compares every comment with its source, and its nightly schedule."""

    @dg.op(name=f"{system}_reconcile_comments_op")
    def reconcile(context: dg.OpExecutionContext, postgres: PostgresResource) -> None:
        if not settings.comments_url:
            context.log.info(NO_COMMENTS)
            return
        try:
            with postgres.engine() as engine:
                done = comments.reconcile(engine, settings, section)
        except CommentsError as error:
            raise dg.Failure(str(error), allow_retries=False) from None
        for problem in done.problems:
            context.log.error(f"{section.source}: {problem}")
        context.log.info(f"{done.compared} comments compared; {done.sentence()}")

    @dg.job(
        name=f"{system}_comments_reconciliation",
        description="Compare count and hash of every bucket of comments with the source, and mend what differs.",
        tags={"mlops/system": system},
    )
    def reconciling() -> None:
        reconcile()

    nightly = dg.ScheduleDefinition(
        name=f"{system}_comments_reconciliation_nightly",
        job=reconciling,
        cron_schedule="0 4 * * *",
        execution_timezone="Asia/Seoul",
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )
    return dg.Definitions(jobs=[reconciling], schedules=[nightly])
