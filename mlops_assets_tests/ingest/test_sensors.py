"""The landing sensor as Dagster runs it: one run per request, none twice, no heavy import; the data assets through a real job."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from sqlalchemy import Engine, text

from mlops_assets.ingest import objects
from mlops_assets.ingest.sensors import landing_sensor, reconciliation
from mlops_assets.lifecycle import dataset
from mlops_assets.resources.object_store import ObjectStoreResource
from mlops_assets.resources.postgres import PostgresResource
from mlops_assets.resources.spark import SparkResource
from mlops_assets.sample_data import write_reviews
from mlops_assets.settings import Settings, SettingsError, load_config
from mlops_assets.store import ObjectStore
from mlops_assets.systems.sentiment import assets, data
from mlops_assets.systems.sentiment.config import SentimentConfig
from mlops_assets_tests.ingest.arrivals import SYSTEM, ledger, put, ready, states

JOB = "sentiment_pipeline"


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def resources(settings: Settings) -> dict[str, object]:
    return {
        "store": ObjectStoreResource.of(settings),
        "postgres": PostgresResource.of(settings),
        "spark": SparkResource.of(settings),
    }


@pytest.fixture
def evaluate(settings: Settings, instance: dg.DagsterInstance, resources: dict[str, object]):
    """A function (cursor) -> the sensor's result."""
    sensor = landing_sensor(SYSTEM, JOB, settings.model_copy(update={"settle_seconds": 3600.0}))

    def run(cursor: str | None = None) -> dg.SensorResult:
        services = {name: resources[name] for name in ("store", "postgres")}
        with dg.build_sensor_context(instance=instance, cursor=cursor, resources=services) as context:
            result = sensor(context)
        assert isinstance(result, dg.SensorResult)
        return result

    return run


def launched(instance: dg.DagsterInstance, request: dg.RunRequest, status: dg.DagsterRunStatus) -> None:
    tags = {**request.tags, "dagster/run_key": request.run_key or ""}
    instance.add_run(dg.DagsterRun(job_name=JOB, tags=tags, status=status))


def test_a_complete_version_starts_one_run_on_its_partition(store: ObjectStore, engine: Engine, instance, evaluate) -> None:
    assert evaluate().skip_reason is not None
    put(store, "v1", "a", "1")
    assert not evaluate().run_requests, "not complete yet"
    ready(store, "v1")
    result = evaluate()
    (request,) = result.run_requests
    assert (request.run_key, request.partition_key) == ("sentiment:v1:1", "v1")
    assert request.tags["mlops/system"] == SYSTEM and request.tags["mlops/dataset_version"] == "v1"
    assert "dagster/max_retries" not in request.tags
    (added,) = result.dynamic_partitions_requests
    assert (added.partitions_def_name, added.partition_keys) == ("sentiment_dataset_version", ["v1"])
    launched(instance, request, dg.DagsterRunStatus.STARTED)
    assert not evaluate(result.cursor).run_requests and not evaluate().run_requests, "with or without the cursor"


@pytest.mark.parametrize("lost", ["before the launch", "created, not launched"])
def test_a_request_that_was_lost_is_made_again(store: ObjectStore, engine: Engine, instance, evaluate, lost: str) -> None:
    put(store, "v1", "a", "1")
    ready(store, "v1")
    (request,) = evaluate().run_requests
    if lost == "created, not launched":
        launched(instance, request, dg.DagsterRunStatus.NOT_STARTED)
    (again,) = evaluate().run_requests
    assert again.run_key == request.run_key, "Dagster starts one run for a key"


def test_a_failed_run_is_not_repeated_but_can_be_asked_for(store: ObjectStore, engine: Engine, instance, evaluate) -> None:
    put(store, "v1", "a", "1")
    ready(store, "v1")
    result = evaluate()
    launched(instance, result.run_requests[0], dg.DagsterRunStatus.FAILURE)
    assert not evaluate(result.cursor).run_requests, "a sensor never retries"
    with engine.begin() as connection:
        objects.request_run(connection, SYSTEM, "v1", "mended")
    (request,) = evaluate(result.cursor).run_requests
    assert request.run_key == "sentiment:v1:2"


@pytest.mark.parametrize("cursor", ["nonsense", "2999-01-01T00:00:00+00:00", "2020-01-01T00:00:00"])
def test_the_cursor_is_only_a_hint(store: ObjectStore, engine: Engine, evaluate, cursor: str) -> None:
    put(store, "v1", "a", "1")
    ready(store, "v1")
    assert [request.run_key for request in evaluate(cursor).run_requests] == ["sentiment:v1:1"]


def test_one_bad_version_stops_no_other(store: ObjectStore, engine: Engine, evaluate, tmp_path: Path) -> None:
    put(store, "Bad Name", "a", "1")
    put(store, "v1", "_PARENT", b"\xff\xfe")
    put(store, "v1", "a", "1")
    ready(store, "v1")
    put(store, "v2", "a", "2")
    ready(store, "v2")
    assert [request.partition_key for request in evaluate().run_requests] == ["v2"]
    with engine.connect() as connection:
        reason = connection.execute(text("SELECT reason FROM dataset_version WHERE version = 'v1'")).scalar_one()
    assert "correct the marker" in reason


def test_without_a_database_the_sensor_says_what_to_do(settings: Settings) -> None:
    with pytest.raises(SettingsError, match="mlops up"), PostgresResource.of(settings.model_copy(update={"database_url": None})).engine():
        pass


def test_the_sensor_imports_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "mlflow", "pyspark", "pysail", "pandas", "pandera", "pyarrow", "onnxruntime")
    code = f"import sys; import mlops_assets.ingest.sensors; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120).stdout.strip() == "[]"


def test_the_nightly_reconciliation(store: ObjectStore, engine: Engine, instance, evaluate, resources) -> None:
    definitions = dg.Definitions.merge(reconciliation(SYSTEM), dg.Definitions(resources={k: resources[k] for k in ("store", "postgres")}))
    (schedule,) = definitions.schedules or []
    assert isinstance(schedule, dg.ScheduleDefinition)
    assert (schedule.execution_timezone, schedule.default_status) == ("Asia/Seoul", dg.DefaultScheduleStatus.RUNNING)
    put(store, "v1", "a", "1")
    ready(store, "v1")
    evaluate()
    put(store, "v1", "b", "2")
    assert definitions.resolve_job_def("sentiment_reconciliation").execute_in_process(instance=instance).success
    assert ledger(engine, "v1") == [("a", "pending", None), ("b", "quarantined", "late")]


# --- the data assets, materialized -----------------------------------------------------------------------------------------------


@pytest.fixture
def materialize(settings: Settings, instance: dg.DagsterInstance, resources: dict[str, object]):
    """A function (version, config) -> the run's result, with the assets and checks of the platform itself."""
    made = assets.data_assets(load_config(SentimentConfig, SYSTEM, settings.configs), settings)

    def run(version: str, **config: object) -> dg.ExecuteInProcessResult:
        instance.add_dynamic_partitions("sentiment_dataset_version", [version])
        return dg.materialize(
            made,
            instance=instance,
            partition_key=version,
            resources=resources,
            run_config={"ops": {"sentiment__dataset": {"config": config}}} if config else None,
            raise_on_error=False,
        )

    return run


def test_from_landing_to_the_cleaned_table(store: ObjectStore, engine: Engine, evaluate, materialize, tmp_path: Path) -> None:
    write_reviews(tmp_path / "source", train=200, test=50)
    for file in (tmp_path / "source").iterdir():
        put(store, "v1", file.name, file.read_bytes())
    put(store, "v1", "notes.txt", "nobody asked for this")
    ready(store, "v1")
    evaluate()
    result = materialize("v1")
    assert result.success
    events = {e.asset_key.to_user_string(): e.step_materialization_data.materialization for e in result.get_asset_materialization_events()}
    frozen, cleaned = (events[f"sentiment/{name}"].metadata for name in ("dataset", "cleaned"))
    manifest = dataset.read_manifest(engine, store, SYSTEM, "v1")
    assert frozen["manifest_sha256"].value == cleaned["manifest_sha256"].value == manifest.sha256
    assert cleaned["rows_in"].value == cleaned["rows_accepted"].value + cleaned["rows_quarantined"].value == 255
    assert {"dagster/row_count", "dagster/uri", "dagster/column_schema", "git_commit", "dataset_version"} <= set(cleaned)
    assert "unexpected_file" in str(cleaned["refused_files"].value)
    assert events["sentiment/dataset"].tags["dagster/data_version"] == manifest.sha256
    checks = {check.check_name: check for check in result.get_asset_check_evaluations()}
    assert set(checks) == {"contract", "row_accounting"} and all(check.passed and check.blocking for check in checks.values())
    again = materialize("v1", deep=False)
    assert again.success
    last = again.asset_materializations_for_node("sentiment__cleaned")[0]
    assert last.metadata["unchanged"].value and last.tags == events["sentiment/cleaned"].tags | {
        k: v for k, v in (last.tags or {}).items() if k not in ("dagster/data_version",)
    }


def test_a_bad_table_fails_its_check_and_blocks(store: ObjectStore, engine: Engine, evaluate, materialize, tmp_path: Path) -> None:
    write_reviews(tmp_path / "source", train=100, test=30)
    for file in (tmp_path / "source").iterdir():
        put(store, "v1", file.name, file.read_bytes())
    ready(store, "v1")
    evaluate()
    assert materialize("v1").success
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM quarantined_row WHERE line = (SELECT min(line) FROM quarantined_row)"))
    result = materialize("v1")
    failed = [check for check in result.get_asset_check_evaluations() if not check.passed]
    assert [check.check_name for check in failed] == ["row_accounting"] and "≠" in (failed[0].description or "")


def test_a_refused_version_is_red_tagged_and_not_retried(store: ObjectStore, engine: Engine, instance, evaluate, materialize) -> None:
    put(store, "v1", "readme.md", "no review at all")
    ready(store, "v1")
    evaluate()
    result = materialize("v1")
    assert not result.success and states(engine) == {"v1": "refused"}
    run = instance.get_run_by_id(result.run_id)
    assert run is not None and run.tags["mlops/outcome"] == "refused"
    (failure,) = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert failure.user_failure_data is not None
    assert "is refused: no train and no holdout row" in failure.user_failure_data.description
    materialize("v1")
    with engine.connect() as connection:
        (told,) = connection.execute(text("SELECT payload ->> 'text' FROM outbox WHERE topic = 'slack'")).scalars()
    assert told.startswith(f"refused: {SYSTEM} v1: no train and no holdout row"), "people hear of it once"
    assert data.SYSTEM == SYSTEM


def test_an_unknown_or_open_version_fails_with_a_sentence(store: ObjectStore, engine: Engine, evaluate, materialize) -> None:
    put(store, "v1", "a", "1")
    evaluate()
    for version, sentence in (("v1", "still arriving"), ("v9", "has no dataset version 'v9'; known are: v1")):
        result = materialize(version)
        (failure,) = [event.step_failure_data for event in result.all_events if event.is_step_failure]
        assert failure.user_failure_data is not None and sentence in (failure.user_failure_data.description or "")
