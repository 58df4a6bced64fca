"""Runs that fail: people hear of each once, of a refusal never; against Dagster's storage in PostgreSQL."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import dagster as dg
import pytest
from dagster._core.events import EngineEventData

from mlops_assets.definitions import build_defs
from mlops_assets.lifecycle import outbox
from mlops_assets.monitoring import sensors
from mlops_assets.monitoring.sensors import failure_sensor, stray_sensor
from mlops_assets_tests.conftest import wait_for
from mlops_assets_tests.factories import config_of
from mlops_assets_tests.monitoring.watched import Watched, kinds, refuse_to_connect


@pytest.fixture
def instance(dagster_settings) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.get() as instance:
        yield instance


def test_a_failed_run_is_told_once_with_its_first_line_and_link(world, instance):
    settings = world.settings.model_copy(update={"dagster_url": "http://dagster:3000/"})
    watched = Watched(world, instance, {"good": 0.86, "torn": "broken"}, settings=settings)
    assert watched.run("pipeline", "good").success
    failed = watched.run("pipeline", "torn")
    assert not failed.success
    assert watched.tick("failures").startswith("run failed: toy_pipeline torn: ")
    assert watched.tick("failures") == "no new failure"
    watched.cursors.clear()
    assert watched.tick("failures") == "no new failure", "the cursor is only a hint"
    watched.cursors["failures"] = "not a date"
    assert watched.tick("failures") == "no new failure"
    (message,) = watched.outbox("run failed")
    first, korean, link = message.splitlines()
    assert first == "run failed: toy_pipeline torn: ValueError: could not convert string to float: 'broken'"
    assert korean == "실행 중 오류가 발생하였습니다." and link == f"http://dagster:3000/runs/{failed.run_id}"
    watched.run("pipeline", "torn")
    watched.tick("failures")
    assert len(watched.outbox("run failed")) == 2, "another run is another message"


def test_no_refusal_is_a_failure_by_whatever_door(world, instance):
    watched = Watched(world, instance, {"bad": 0.5, "good": 0.86})
    refused = [
        watched.run("pipeline", "bad"),  # by the check
        watched.run("register", "bad", ["registered_model"]),  # by the registrar
        watched.run("rollback", reason="there is no champion"),
    ]
    watched.run("pipeline", "good")
    refused.append(watched.run("models", "good", ["champion"]))  # it is champion already
    assert [result.success for result in refused] == [False] * 4
    assert watched.tick("failures") == "no new failure"
    assert kinds(watched.outbox()) == {"trained": 2, "refused": 1, "promoted": 1}


def test_what_breaks_beside_a_refusal_is_told(world, instance):
    """The run's tag says `refused`: it is of one model of several."""
    config = config_of()
    config = config.model_copy(update={"project": config.project.model_copy(update={"scenario": ("weak", "torn")})})
    watched = Watched(world, instance, {"v1": None}, config=config, variants={"weak": 0.5, "torn": "broken"})
    result = watched.run("pipeline", "v1")
    run = instance.get_run_by_id(result.run_id)
    assert run is not None and run.tags["mlops/outcome"] == "refused"
    assert "could not convert string to float" in watched.tick("failures")
    assert [m.splitlines()[0] for m in watched.outbox("refused")] == ["refused: toy weak v1: F1 0.500 < 0.800"]


def test_a_run_whose_process_died_is_told_even_after_a_refusal(world, instance):
    watched = Watched(world, instance, {"bad": 0.5})
    alone = dg.DagsterRun(job_name="toy_produce", status=dg.DagsterRunStatus.STARTED)
    instance.add_run(alone)
    refused = instance.get_run_by_id(watched.run("pipeline", "bad").run_id)
    assert refused is not None
    for run in (alone, refused):
        instance.report_run_failed(run, "its process is gone\nand more")
    watched.tick("failures")
    told = {message.splitlines()[0] for message in watched.outbox("run failed")}
    again = " (Dagster tries it again)"  # it says so by a tag
    assert {sentence.removesuffix(again) for sentence in told} == {
        "run failed: toy_produce: its process is gone",
        "run failed: toy_pipeline bad: its process is gone",
    }
    assert any(sentence.endswith(again) for sentence in told)


def test_what_could_not_be_written_is_told_by_the_next_tick(world, instance):
    watched = Watched(world, instance, {"torn": "broken"})
    watched.tick("failures")
    watched.run("pipeline", "torn")
    there, watched.sensors["failures"] = watched.sensors["failures"], failure_sensor(refuse_to_connect())
    with pytest.raises(ConnectionError):
        watched.tick("failures")
    watched.sensors["failures"] = there
    watched.tick("failures")
    assert len(watched.outbox("run failed")) == 1


def test_control_dagsters_own_failure_sensor_loses_what_could_not_be_written(world, instance):
    watched = Watched(world, instance, {"torn": "broken"})
    told = []

    @dg.run_failure_sensor(name="naive")
    def naive(context: dg.RunFailureSensorContext) -> None:
        told.append(context.dagster_run.run_id)
        raise ConnectionError("the database is away")

    cursor = None

    def tick() -> None:
        nonlocal cursor
        with dg.build_sensor_context(instance=instance, cursor=cursor) as context:
            cursor = naive.evaluate_tick(context).cursor

    tick()
    watched.run("pipeline", "torn")
    tick(), tick()
    assert len(told) == 1, "it failed once and was never tried again"


def test_of_two_ticks_at_the_same_time_one_tells(engine):
    def once(number: int) -> bool:
        with engine.begin() as connection:
            return outbox.became(connection, "run_ended_badly", "r", "failed")

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(once, range(8))) == 1


def test_the_platform_watches_by_itself(settings):
    running = {s.name for s in build_defs(settings).sensors or [] if s.default_status == dg.DefaultSensorStatus.RUNNING}
    assert running >= {"run_failures", "stray_workers", "mlflow_mirror", "sentiment_live_performance", "tires_live_performance"}


def test_the_process_of_an_ended_run_that_heeds_nothing_is_killed_and_the_run_says_so(instance, monkeypatch):
    sensor = stray_sensor()

    def tick() -> str:
        with dg.build_sensor_context(instance=instance) as context:
            return sensor.evaluate_tick(context).skip_message or ""

    worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    worker.start()
    try:
        os.kill(worker.pid, signal.SIGSTOP)
        run = dg.DagsterRun(job_name="toy_train", status=dg.DagsterRunStatus.STARTED)
        instance.add_run(run)
        instance.report_engine_event("Started process for run", run, EngineEventData.in_process(worker.pid))
        assert tick() == "no worker outlives its run"
        instance.report_run_failed(run, "Exceeded maximum runtime of 5 seconds.")
        assert tick() == "no worker outlives its run"  # it may still close its checkpoint
        monkeypatch.setattr(sensors, "GRACE_SECONDS", 0.0)
        wait_for(lambda: f"process {worker.pid} outlived its run {run.run_id} (FAILURE)" in tick(), "the end of the grace")
        worker.join(10)
        assert worker.exitcode == -signal.SIGKILL
    finally:
        worker.kill()
        worker.join()
    assert tick() == "no worker outlives its run"
    told = [entry.message for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)]
    assert any("was killed" in message for message in told)
