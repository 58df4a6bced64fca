"""Jobs over what users gave, with what starts them: `<system>_cut` (a later dataset version, of labelled comments or of drawings) and
`<system>_score_comments` (the order of the review queue).

Belongs here: these shells. Does not belong here: when a cut is due and what it holds (`cuts.py`, `drawn.py`), which comments are scored
(`scores.py`).
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from mlops_assets.ingest import cuts
from mlops_assets.lifecycle.pipeline import scratch_folder
from mlops_assets.resources.object_store import ObjectStoreResource
from mlops_assets.resources.postgres import PostgresResource
from mlops_assets.settings import CutsSection, DrawingsSection, ReviewSection, Settings

if TYPE_CHECKING:
    from mlops_assets.lifecycle.pipeline import Platform
    from mlops_assets.lifecycle.system import ModelSystem

#: A job whose last run failed is not started again by a sensor before this.
PAUSE = timedelta(minutes=10)


class CutConfig(dg.Config):
    asked: bool = Field(default=False, description="Cut now, however little is new, and while comments still arrive.")


def cut_definitions(system: str, section: CutsSection, settings: Settings) -> dg.Definitions:
    """The job that cuts a version and lands it, the sensor that starts it when a cut is due or one was not landed to its end, and the
    schedule where `when` is `schedule`. From there the landing sensor is the one trigger path."""

    @dg.op(name=f"{system}_cut_op")
    def cut_op(context: dg.OpExecutionContext, config: CutConfig, store: ObjectStoreResource, postgres: PostgresResource) -> None:
        with postgres.engine() as engine, scratch_folder(settings) as scratch:
            done = cuts.run(engine, store.open(), system, section, scratch, asked=config.asked)
        context.log.info(f"landed {', '.join(done.landed) or 'nothing'}: {done.why}")

    @dg.job(
        name=f"{system}_cut",
        description="Cut the comments whose label is new into a dataset version that extends the newest frozen one, and land it.",
        tags={"mlops/system": system},
    )
    def cut_job() -> None:
        cut_op()

    @dg.sensor(
        name=f"{system}_cuts",
        job_name=cut_job.name,
        minimum_interval_seconds=max(30, settings.sensor_interval_seconds),
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Starts {system}_cut when a version is due (cuts.when: {section.when}).",
    )
    def cut_sensor(context: dg.SensorEvaluationContext, postgres: PostgresResource) -> dg.SensorResult:
        if busy := _busy(context.instance, cut_job.name):
            return dg.SensorResult(skip_reason=busy, cursor=context.cursor)
        with postgres.engine() as engine, engine.connect() as connection:
            if waiting := cuts.unfinished(connection, system):
                why = f"{waiting[0].version} is not landed yet"
                return dg.SensorResult(run_requests=[dg.RunRequest(tags={"mlops/why": why})], cursor=context.cursor)
            if section.when == "schedule":
                return dg.SensorResult(skip_reason=f"cut at {section.cron}", cursor=context.cursor)
            hint = cuts.hint(connection, system)
            if hint == context.cursor:
                return dg.SensorResult(skip_reason="nothing was said since the last look", cursor=hint)
            if section.when == "collection_end" and cuts.arriving(connection, section):
                return dg.SensorResult(skip_reason="comments still arrive", cursor=context.cursor)
            decided = cuts.due(cuts.look(connection, system, section), section)
        if decided.cut:
            return dg.SensorResult(run_requests=[dg.RunRequest(tags={"mlops/why": decided.why})], cursor=context.cursor)
        return dg.SensorResult(skip_reason=decided.why, cursor=hint)

    schedules = []
    if section.when == "schedule":
        schedules.append(
            dg.ScheduleDefinition(
                name=f"{system}_cut_schedule",
                job=cut_job,
                cron_schedule=section.cron,
                execution_timezone="Asia/Seoul",
                default_status=dg.DefaultScheduleStatus.RUNNING,
                run_config={"ops": {f"{system}_cut_op": {"config": {"asked": True}}}},
            )
        )
    return dg.Definitions(jobs=[cut_job], sensors=[cut_sensor], schedules=schedules)


def drawn_definitions(system: "ModelSystem", section: DrawingsSection, open_platform: "Callable[[], Platform]") -> dg.Definitions:
    """The job that cuts a version of drawings and lands it, and the sensor that starts it when one is due or was not landed to its end."""

    @dg.op(name=f"{system.name}_cut_op")
    def cut_op(context: dg.OpExecutionContext, config: CutConfig) -> None:
        from mlops_assets.ingest import drawn

        platform = open_platform()
        with scratch_folder(platform.settings) as scratch:
            done = drawn.run(platform, system, section, scratch, asked=config.asked)
        context.log.info(f"landed {', '.join(done.landed) or 'nothing'}: {done.why}")

    @dg.job(
        name=f"{system.name}_cut",
        description="Cut drawings that users gave and the champion does not find absurd into a dataset version, and land it.",
        tags={"mlops/system": system.name},
    )
    def cut_job() -> None:
        cut_op()

    @dg.sensor(
        name=f"{system.name}_cuts",
        job_name=cut_job.name,
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Starts {system.name}_cut when {section.min_new} drawings of {section.min_writers} users are new.",
    )
    def cut_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        from mlops_assets.ingest import drawn

        if busy := _busy(context.instance, cut_job.name):
            return dg.SensorResult(skip_reason=busy)
        with open_platform().engine.connect() as connection:
            waiting = drawn.unfinished(connection, system.name)
            decided = drawn.due(drawn.look(connection, system.name), section)
        if waiting or decided.cut:
            why = f"{waiting[0].version} is not landed yet" if waiting else decided.why
            return dg.SensorResult(run_requests=[dg.RunRequest(tags={"mlops/why": why})])
        return dg.SensorResult(skip_reason=decided.why)

    return dg.Definitions(jobs=[cut_job], sensors=[cut_sensor])


def score_definitions(system: "ModelSystem", section: ReviewSection, open_platform: "Callable[[], Platform]") -> dg.Definitions:
    """The job that scores unlabelled comments with the champion, and the sensor that starts it when some have no score by it."""

    @dg.op(name=f"{system.name}_score_comments_op")
    def score_op(context: dg.OpExecutionContext) -> None:
        from mlops_assets.ingest import scores

        platform = open_platform()
        with scratch_folder(platform.settings) as scratch:
            done = scores.score(platform.engine, platform.store, platform.settings, system, scratch, section)
        if done is None:
            context.log.info(f"{system.name} has no champion: nothing is scored")
            return
        more = "; more are waiting" if done.more else ""
        context.log.info(f"{done.scored} comments scored by {done.bundle_sha256[:12]}, {done.unreadable} it does not take{more}")

    @dg.job(
        name=f"{system.name}_score_comments",
        description="What the champion says of comments that nobody has labelled: the order of the review queue.",
        tags={"mlops/system": system.name},
    )
    def score_job() -> None:
        score_op()

    @dg.sensor(
        name=f"{system.name}_unscored_comments",
        job_name=score_job.name,
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Starts {system.name}_score_comments when comments are new or the champion is.",
    )
    def score_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        from mlops_assets.ingest import scores
        from mlops_assets.lifecycle import promotion

        if busy := _busy(context.instance, score_job.name):
            return dg.SensorResult(skip_reason=busy)
        platform = open_platform()
        with platform.engine.connect() as connection:
            champion, _ = promotion.latest_verified(connection, system.name, "champion", platform.settings.public_keys_path)
            if champion is None:
                return dg.SensorResult(skip_reason=f"{system.name} has no champion")
            if not scores.unscored(connection, system.name, champion.bundle_sha256):
                return dg.SensorResult(skip_reason=f"every unlabelled comment has a score by v{champion.version}")
        return dg.SensorResult(run_requests=[dg.RunRequest(tags={"mlops/why": f"comments without a score by v{champion.version}"})])

    return dg.Definitions(jobs=[score_job], sensors=[score_sensor])


def _busy(instance: dg.DagsterInstance, job: str) -> str | None:
    """Why a sensor does not start the job now: it runs, or has just failed. These runs have no run key, which would suppress for ever."""
    records = instance.get_run_records(dg.RunsFilter(job_name=job), limit=1)
    if not records:
        return None
    run = records[0].dagster_run
    if not run.is_finished:
        return f"run {run.run_id} is {run.status.value.lower()}"
    age = datetime.now(UTC) - records[0].update_timestamp.replace(tzinfo=UTC)
    if run.status == dg.DagsterRunStatus.FAILURE and age < PAUSE:
        return f"run {run.run_id} failed: tried again {PAUSE.total_seconds() / 60:.0f} minutes after it"
    return None
