"""Editing `configs/` changes no run that waits or that is tried again: it goes by what it was asked for with, and says what was changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest
import yaml
from sqlalchemy import text

from mlops_assets.ingest.sensors import landing_sensor
from mlops_assets.lifecycle import promotion, sections
from mlops_assets.lifecycle.pipeline import Platform
from mlops_assets.lifecycle.sections import SECTIONS
from mlops_assets.resources.object_store import ObjectStoreResource
from mlops_assets.resources.postgres import PostgresResource
from mlops_assets.settings import SystemConfig, load_config
from mlops_assets.tracking import Tracking
from mlops_assets_tests.factories import World, config_of
from mlops_assets_tests.ingest.arrivals import put, ready
from mlops_assets_tests.toy import toy_definitions

DIRECTIONS: dict[str, Any] = {"f1": "more", "loss": "less"}


@pytest.fixture
def world(engine, settings, store) -> World:
    return World(engine, settings, store)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as found:
        yield found


def seeded(seed: int, **more: Any) -> SystemConfig:
    config = config_of(**more)
    return config.model_copy(update={"project": config.project.model_copy(update={"seed": seed})})


class Runs:
    """The toy's pipeline, whose definitions are loaded anew for each run, as a run's process does it."""

    def __init__(self, world: World, instance: dg.DagsterInstance, quality: Any = 0.86) -> None:
        self.world, self.instance, self.quality = world, instance, quality
        world.dataset("v1")
        instance.add_dynamic_partitions("toy_dataset_version", ["v1"])

    def run(self, config: SystemConfig, tags: dict[str, str] | None = None) -> dg.DagsterRun:
        platform = Platform(self.world.settings, self.world.engine, self.world.store, Tracking(None))
        job = toy_definitions(platform, config, {"v1": self.quality}).resolve_job_def("toy_pipeline")
        done = job.execute_in_process(instance=self.instance, partition_key="v1", tags=tags, raise_on_error=False)
        found = self.instance.get_run_by_id(done.run_id)
        assert found is not None
        return found

    def seed(self) -> int:
        with self.world.engine.connect() as connection:
            return int(connection.execute(text("SELECT seed FROM attempt ORDER BY id DESC LIMIT 1")).scalar_one())

    def said(self, run: dg.DagsterRun) -> str:
        return "\n".join(entry.user_message for entry in self.instance.all_logs(run.run_id))


def test_a_run_goes_by_what_it_was_asked_for_with_and_says_what_was_changed(world, instance):
    before, now = seeded(1), seeded(2)
    with world.engine.begin() as connection:
        digest = sections.keep(connection, before)
    runs = Runs(world, instance)
    run = runs.run(now, {SECTIONS: digest})
    assert runs.seed() == 1
    assert "configs/toy.yaml was changed since this run was asked for (project.seed is 2, was 1)" in runs.said(run)
    with world.engine.connect() as connection:
        receipt = promotion.receipt(connection, "toy", 1)
    assert receipt is not None and receipt.body["sections_sha256"] == digest
    # A control: asked for anew, it goes by what is there now.
    run = runs.run(now)
    assert runs.seed() == 2 and "was changed" not in runs.said(run)


def test_a_retry_of_a_run_launched_by_hand_keeps_its_sections(world, instance):
    runs = Runs(world, instance, "broken")
    failed = runs.run(seeded(1))
    assert failed.status == dg.DagsterRunStatus.FAILURE
    runs.quality = 0.86
    inherited = {name: value for name, value in failed.tags.items() if name.startswith("mlops/")}
    assert runs.run(seeded(2), inherited).status == dg.DagsterRunStatus.SUCCESS and runs.seed() == 1


@pytest.mark.parametrize(
    ("asked", "now", "promoted"),
    [(0.8, 0.8, True), (0.8, 0.5, True), (0.9, 0.5, False), (0.5, 0.9, False)],
)
def test_no_edit_loosens_the_gate_of_a_run_that_waits(world, instance, asked, now, promoted):
    """Neither what the file says now nor what it said may be undercut."""
    with world.engine.begin() as connection:
        digest = sections.keep(connection, config_of(threshold=asked))
    run = Runs(world, instance).run(config_of(threshold=now), {SECTIONS: digest})
    assert run.tags["mlops/outcome"] == ("promoted" if promoted else "refused")


def test_the_stricter_threshold_is_so_in_its_own_direction():
    one = config_of().model_copy(update={"register_threshold": {"f1": 0.8, "loss": 0.5}})
    other = config_of().model_copy(update={"register_threshold": {"f1": 0.7, "loss": 0.4, "odd": 1.0}})
    for first, second in ((one, other), (other, one)):
        assert sections.judged_by(first, second, DIRECTIONS).register_threshold == {"f1": 0.8, "loss": 0.4, "odd": 1.0}


def test_sections_that_are_not_kept_are_said_to_be_so(world, instance):
    runs = Runs(world, instance)
    run = runs.run(seeded(2), {SECTIONS: "0" * 64})
    assert run.status == dg.DagsterRunStatus.SUCCESS and runs.seed() == 2
    assert "(000000000000) are not kept: it goes by those of now" in runs.said(run)


def test_sections_of_other_code_are_said_to_be_so(world, engine):
    with engine.begin() as connection:
        body = sections.text_of(seeded(1)).replace('"metric":"f1"', '"metrics":"f1"')
        digest = sections.hashlib.sha256(body.encode()).hexdigest()
        connection.execute(text("INSERT INTO sections (sha256, system, body) VALUES (:d, 'toy', :b)"), {"d": digest, "b": body})
    asked = sections.of_run(engine, seeded(2), digest)
    assert (
        asked.config == seeded(2)
        and "not valid any more (promotion.metrics)" in asked.changed
        and "project.seed is 2, was 1" in asked.changed
    )


def test_what_is_kept_cannot_be_changed(engine):
    from sqlalchemy.exc import DBAPIError

    with engine.begin() as connection:
        sections.keep(connection, seeded(1))
        sections.keep(connection, seeded(1))
    for sql in ("UPDATE sections SET body = '{}'", "DELETE FROM sections", "TRUNCATE run_sections"):
        with pytest.raises(DBAPIError), engine.begin() as connection:
            connection.execute(text(sql))


def test_many_differences_are_counted():
    before = {"a": {str(number): number for number in range(9)}}
    found = sections.differences(before, {"a": {}, "b": 1})
    assert found[0] == "a is {}, was not there" and found[-1].startswith("and ") and len(found) == sections.NAMED + 1


def test_a_request_keeps_the_sections_of_the_moment_it_was_made(settings, engine, store, instance, tmp_path):
    """The sensor hands a request out again until its run is there: with what it was made with, whatever the file says by then."""
    file = tmp_path / "configs" / "sentiment.yaml"
    file.parent.mkdir()

    def write(seed: int) -> str:
        file.write_text(yaml.safe_dump(seeded(seed, system="sentiment").model_dump(mode="json")), encoding="utf-8")
        return sections.digest_of(load_config(SystemConfig, "sentiment", file.parent))

    sensor = landing_sensor(
        "sentiment",
        "sentiment_pipeline",
        settings.model_copy(update={"settle_seconds": 3600.0}),
        lambda: load_config(SystemConfig, "sentiment", file.parent),
    )

    def tick() -> dg.SensorResult:
        services = {"store": ObjectStoreResource.of(settings), "postgres": PostgresResource.of(settings)}
        with dg.build_sensor_context(instance=instance, resources=services) as context:
            found = sensor(context)
        assert isinstance(found, dg.SensorResult)
        return found

    first = write(1)
    put(store, "v1", "a", "1")
    ready(store, "v1")
    assert [request.tags[SECTIONS] for request in tick().run_requests or []] == [first]
    second = write(2)
    put(store, "v2", "a", "2")
    ready(store, "v2")
    assert {request.partition_key: request.tags[SECTIONS] for request in tick().run_requests or []} == {"v1": first, "v2": second}
    file.write_text("project: [unclosed")
    put(store, "v3", "a", "3")
    ready(store, "v3")
    waiting = tick()
    assert not waiting.run_requests and "sentiment.yaml line" in str(waiting.skip_reason)
    third = write(3)
    assert {request.partition_key: request.tags[SECTIONS] for request in tick().run_requests or []} == {
        "v1": first,
        "v2": second,
        "v3": third,
    }
