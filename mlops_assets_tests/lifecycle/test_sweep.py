"""Sweeps through their own doors: the Dagster job, MLflow's nested runs, pruning, and a process killed in the middle."""

from __future__ import annotations

import base64
import dataclasses
import io
import subprocess
import sys
import uuid

import dagster as dg
import pytest
from sqlalchemy import text

from mlops_assets.lifecycle import pipeline, sweep
from mlops_assets.lifecycle.assets import model_lifecycle
from mlops_assets.lifecycle.jobs import lifecycle_jobs
from mlops_assets.lifecycle.pipeline import UnknownParameter
from mlops_assets.lifecycle.report import UnknownMetric
from mlops_assets.lifecycle.signing import ensure_key
from mlops_assets.lifecycle.system import CleanedTable
from mlops_assets.resources.executor import run_executor
from mlops_assets.settings import SettingsError, process_environment
from mlops_assets.training import tuning
from mlops_assets_tests.factories import config_of
from mlops_assets_tests.lifecycle import sweeps


def job(settings, name="toy", **config):
    """The Dagster job `<name>_sweep` over v1; its result."""
    ensure_key(settings)  # a sweep's outcome is a signed value
    platform, system = sweeps.platform_of(settings), sweeps.system_of(name)
    half = model_lifecycle(system, config_of(name), lambda: platform)
    definitions = dg.Definitions(
        assets=[dg.AssetSpec([name, "cleaned"]), *half.assets],
        asset_checks=list(half.checks),
        jobs=lifecycle_jobs(system, config_of(name), lambda: platform),
        executor=run_executor,
    )
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(f"{name}_dataset_version", ["v1"])
        return definitions.resolve_job_def(f"{name}_sweep").execute_in_process(
            instance=instance, partition_key="v1", raise_on_error=False, run_config={"ops": {f"{name}_sweep_op": {"config": config}}}
        )


def metadata_of(result):
    (event,) = [event for event in result.all_events if event.is_step_materialization]
    assert event.partition == "v1" and event.asset_key.path[1:] == ["sweep"]
    return event.step_materialization_data.materialization.metadata


def test_a_sweep_shows_its_trials_and_pictures_and_registers_nothing(settings, engine):
    from PIL import Image

    result = job(settings, trials=6)
    assert result.success
    metadata = metadata_of(result)
    rows = [record.data for record in metadata["trials"].records]
    assert [row["trial"] for row in rows] == [str(n) for n in range(6)]
    best = metadata["best"].value
    assert best["state"] == "complete" and f"{best['f1']:.4f}" == max(row["f1"] for row in rows)
    for title in ("parallel_coordinates", "optimisation_history"):
        png = base64.b64decode(metadata[title].value.split("base64,")[1].rstrip(")"))
        assert len(png) <= 64 * 1024 and Image.open(io.BytesIO(png)).format == "PNG"
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM attempt")).scalar_one() == 0
        ours = set(connection.execute(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).scalars())
        theirs = set(connection.execute(text("SELECT tablename FROM pg_tables WHERE schemaname = 'optuna'")).scalars())
    assert "attempt" in ours and {"trials", "studies"} <= theirs and not ours & {"trials", "studies"}
    assert len(sweeps.trainings(settings)) == sum(row["state"] == "complete" for row in rows)


def test_what_the_best_trial_trained_is_what_mlops_train_takes_up(settings, world):
    """The command has the trial's parameters to the last digit: its training is already done, and only the best one's is kept."""
    swept = sweeps.run(settings, trials=3)
    kept = list((settings.home / "training").iterdir())
    assert len(kept) == 1 and (kept[0] / "trained").is_dir()
    words = swept.command.split()
    assert words[:5] == ["mlops", "train", "toy", "--dataset-version", "v1"]
    given = dict(zip(words[5::2], words[6::2], strict=True))
    done = pipeline.train(
        sweeps.platform_of(settings),
        sweeps.system_of(),
        config_of(),
        variant=given["--model-type"],
        dataset_version="v1",
        run_id="r",
        overrides={"learning_rate": float(given["--learning-rate"])},
    )
    assert done.attempt.metrics["validation_f1"] == swept.best["f1"] and len(sweeps.trainings(settings)) == 3


def test_trials_are_nested_runs_of_the_sweeps_run(settings, mlflow_server):
    name = f"toy-{uuid.uuid4().hex[:8]}".replace("-", "_")
    result = job(settings.model_copy(update={"mlflow_tracking_uri": mlflow_server}), name, trials=6, metric="Loss")
    assert result.success
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_server)
    runs = client.search_runs([client.get_experiment_by_name(name).experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run is not parent]
    assert len(children) == 6 and {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    rows = [record.data for record in metadata_of(result)["trials"].records]
    of = {int(run.data.tags["sweep_trial"].split("/")[1]): run for run in children}
    for row in rows:
        run = of[int(row["trial"])]
        assert run.data.tags["state"] == row["state"]
        assert run.info.status == {"complete": "FINISHED", "pruned": "KILLED"}[row["state"]]
        assert f"{float(run.data.params['learning_rate']):.4f}" == row["learning_rate"] and run.data.tags["variant"] == row["model_type"]
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "validation_loss") if metric.step]
        assert steps == list(range(1, len(steps) + 1)) and steps
    assert metadata_of(result)["mlflow_run"].value.endswith(parent.info.run_id) and parent.info.status == "FINISHED"
    assert {"sweep/parallel_coordinates.png", "sweep/optimisation_history.png"} == {
        file.path for file in client.list_artifacts(parent.info.run_id, "sweep")
    }


def test_a_hopeless_trial_is_pruned_and_leaves_nothing(settings):
    swept = sweeps.run(settings, trials=12)
    pruned = [row for row in swept.rows if row["state"] == "pruned"]
    assert pruned and all("worse than the median" in row["why"] for row in pruned)
    assert all(row["f1"] < swept.best["f1"] for row in pruned)
    assert len(sweeps.trainings(settings)) == 12 - len(pruned), "they did not train to their end"
    assert len(list((settings.home / "training").iterdir())) == 1
    # Control: the same sweep without a pruner trains each to its end.
    unpruned = sweeps.run(settings, trials=12, prune=False)
    assert {row["state"] for row in unpruned.rows} == {"complete"} and unpruned.study != swept.study


def test_a_trial_that_diverges_or_fails_does_not_end_the_sweep(settings):
    swept = sweeps.run(settings, trials=12, learning_rate=(0.001, 10.0), prune=False)
    why = {row["state"]: row["why"] for row in swept.rows}
    assert "diverged" in why["pruned"] and "out of memory" in why["fail"] and why["complete"] == ""
    with pytest.raises(RuntimeError, match="out of memory"):  # when nothing ever went well, the first says why
        sweeps.run(settings, trials=12, learning_rate=(2.0, 10.0))


def killed(settings, point, trials):
    command = [sys.executable, "-c", f"from mlops_assets_tests.lifecycle import sweeps; sweeps.main({trials})"]
    environment = {**process_environment(), **settings.environment(), "MLOPS_CRASH_AT": point}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == -9, done.stderr


def rows_of(swept):
    """What of a sweep does not depend on the clock."""
    return [{**row, "minutes": None} for row in swept.rows]


WHOLE: list[dict[str, object]] = []


@pytest.fixture
def whole(settings, make_database, tmp_path):
    """The rows of a sweep that nobody killed."""
    if not WHOLE:
        other = settings.model_copy(update={"home": tmp_path / "other", "database_url": make_database()})
        WHOLE.extend(rows_of(sweeps.run(other, trials=4)))
    return WHOLE


@pytest.mark.parametrize("point", ["sweep.begun_2", "trainer.step_3", "sweep.trained_2", "sweep.told_2"])
def test_a_killed_sweep_goes_on_and_ends_as_an_unbroken_one(settings, whole, point):
    killed(settings, point, 4)
    swept = sweeps.run(settings, trials=4)
    assert rows_of(swept) == whole and [row["trial"] for row in whole] == [0, 1, 2, 3]
    done = sweeps.trainings(settings)
    assert len(set(done)) == len(done) == sum(row["state"] == "complete" for row in swept.rows), "none twice"
    # Its trials are there: the same sweep again has nothing to do, one with more goes on.
    assert sweeps.run(settings, trials=4).rows == swept.rows and sweeps.trainings(settings) == done
    assert len(sweeps.run(settings, trials=5).rows) == 5


def test_a_trial_that_kills_its_process_again_and_again_is_given_up(settings, monkeypatch):
    killed(settings, "sweep.begun_1", 3)
    monkeypatch.setattr(tuning, "MAX_STARTS", 1)
    swept = sweeps.run(settings, trials=3)
    assert [row["state"] == "fail" for row in swept.rows] == [False, True, False] and "its process died" in swept.rows[1]["why"]


def test_a_sweep_stopped_in_good_order_takes_the_trial_up(settings, monkeypatch):
    def interrupted(context):
        raise KeyboardInterrupt

    stopped = dataclasses.replace(sweeps.system_of(), train=interrupted)
    for _ in range(tuning.MAX_STARTS + 1):
        with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
            patch.setattr(sweeps, "system_of", lambda: stopped)
            sweeps.run(settings, trials=2)
    assert [row["state"] for row in sweeps.run(settings, trials=2).rows] == ["complete", "complete"]


def test_one_process_at_a_time_works_on_a_study(settings, tmp_path):
    system, config = sweeps.system_of(), config_of()
    planned = sweep.plan(system, config, dataset_version="v1", trials=2)
    name = sweep.study_name(system, config, planned, CleanedTable("toy", "v1", "m", tmp_path, 1000))
    with (
        tuning.open_study(settings.database_url, name, direction="maximize", prune=True),
        pytest.raises(tuning.StudyBusy, match="another process works on the sweep"),
    ):
        sweeps.run(settings, trials=2)
    assert len(sweeps.run(settings, trials=2).rows) == 2


def test_minutes_end_a_sweep_between_two_trials(settings, monkeypatch):
    clock = iter(range(0, 10_000, 50))
    monkeypatch.setattr(tuning.time, "monotonic", lambda: next(clock))
    assert 1 <= len(sweeps.run(settings, trials=50, minutes=2).rows) < 5


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"model_types": ["best"]}, SettingsError, "best .*choose one of good, poor"),
        ({"learning_rate": (0.1, 0.01)}, SettingsError, "LOW < HIGH"),
        ({"learning_rate": (0.0, 0.01)}, SettingsError, "LOW < HIGH"),
        ({"trials": 0}, SettingsError, "at least 1"),
        ({"minutes": 0}, SettingsError, "more than 0"),
        ({"metric": "BLEU"}, UnknownMetric, "choose one of accuracy, f1"),
        ({"overrides": {"epoch": 1}}, UnknownParameter, "choose from epochs"),
    ],
)
def test_bad_plans_are_refused_with_the_choices(given, error, message):
    with pytest.raises(error, match=message):
        sweep.plan(sweeps.system_of(), config_of(), dataset_version="v1", **given)


def test_a_metric_that_the_system_does_not_measure_names_those_it_does(settings):
    with pytest.raises(UnknownMetric, match="choose one of f1, loss"):
        sweeps.run(settings, trials=2, metric="recall")
