"""Comments by the sensor, the nightly job and the command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import yaml
from sqlalchemy import Engine

from mlops_assets.ingest.sensors import comments_reconciliation, comments_sensor
from mlops_assets.resources.postgres import PostgresResource
from mlops_assets.settings import Settings, process_environment
from mlops_assets_tests.ingest.commented import Application, section, stored


@pytest.fixture
def definitions(comment_settings: Settings) -> dg.Definitions:
    """What a system adds to its own definitions, here alone."""
    return dg.Definitions.merge(
        dg.Definitions(
            sensors=[comments_sensor("toy", section(), comment_settings)], resources={"postgres": PostgresResource.of(comment_settings)}
        ),
        comments_reconciliation("toy", section(), comment_settings),
    )


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def evaluate(definitions: dg.Definitions, instance: dg.DagsterInstance) -> str:
    """One tick, as the daemon does it; what it says."""
    sensor = definitions.resolve_sensor_def("toy_comments")
    with dg.build_sensor_context(instance=instance, resources=dict(definitions.resources or {})) as context:
        done = sensor.evaluate_tick(context)
    assert not done.run_requests, "it starts no run"
    return done.skip_message or ""


def test_the_sensor_reads_comments(app: Application, engine: Engine, definitions: dg.Definitions, instance: dg.DagsterInstance) -> None:
    app.add("하나", "둘", status="spam")
    said = evaluate(definitions, instance)
    assert said.startswith("app: 2 new") and "status=spam (2)" in said
    assert stored(engine) == app.comments()
    assert evaluate(definitions, instance) == "app: nothing new"


def test_without_an_address_the_sensor_skips(settings: Settings, instance: dg.DagsterInstance) -> None:
    alone = dg.Definitions(sensors=[comments_sensor("toy", section(), settings)], resources={"postgres": PostgresResource.of(settings)})
    assert "MLOPS_COMMENTS_URL" in evaluate(alone, instance)
    job = dg.Definitions.merge(alone, comments_reconciliation("toy", section(), settings)).resolve_job_def("toy_comments_reconciliation")
    assert job.execute_in_process(instance=instance).success


def test_the_nightly_job(app: Application, engine: Engine, definitions: dg.Definitions, instance: dg.DagsterInstance) -> None:
    (schedule,) = definitions.schedules or []
    assert isinstance(schedule, dg.ScheduleDefinition)
    assert (schedule.execution_timezone, schedule.default_status) == ("Asia/Seoul", dg.DefaultScheduleStatus.RUNNING)
    app.add(*map(str, range(50)))
    evaluate(definitions, instance)
    job = definitions.resolve_job_def("toy_comments_reconciliation")
    app.run("DELETE FROM comments WHERE id = 1")
    assert job.execute_in_process(instance=instance).success and stored(engine) == app.comments()
    app.run("TRUNCATE comments")
    done = job.execute_in_process(instance=instance, raise_on_error=False)
    (failure,) = [event.step_failure_data for event in done.all_events if event.is_step_failure]
    assert failure.user_failure_data is not None and "another database" in (failure.user_failure_data.description or "")
    assert len(stored(engine)) == 49


def test_the_sensors_import_no_driver() -> None:
    code = "import sys; import mlops_assets.ingest.sensors; print([m for m in ('pymysql', 'pandas', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120).stdout.strip() == "[]"


def command(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = process_environment() | settings.environment()
    line = [sys.executable, "-m", "mlops_assets.cli", "ingest", "comments", *arguments]
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120)


def test_the_command(app: Application, engine: Engine, comment_settings: Settings, tmp_path: Path) -> None:
    configured = section().model_dump(mode="json", exclude_unset=True)
    (tmp_path / "hate_speech.yaml").write_text(yaml.safe_dump({"comments": configured}, allow_unicode=True))
    (tmp_path / "sentiment.yaml").write_text("project: {}")
    settings = comment_settings.model_copy(update={"configs": tmp_path})
    app.add("하나", "둘")
    done = command(settings, "hate_speech", "--once", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["new"] == 2, done.stderr
    app.run("UPDATE comments SET text = '셋' WHERE id = 1")
    done = command(settings, "hate_speech", "--reconcile")
    assert done.stdout.strip() == "app: 1 changed" and stored(engine) == app.comments()
    app.run("TRUNCATE comments")
    done = command(settings, "hate_speech", "--reconcile")
    assert done.returncode == 2 and "--accept-deletions" in done.stderr and len(stored(engine)) == 2
    assert command(settings, "hate_speech", "--reconcile", "--accept-deletions").stdout.strip() == "app: 2 deleted"
    for arguments, said in (
        (["hate_speech", "--once", "--reconcile"], "exclude each other"),
        (["sentiment"], "no section `comments`"),
        (["none"], "unknown system"),
    ):
        done = command(settings, *arguments)
        assert done.returncode == 2 and said in done.stderr
