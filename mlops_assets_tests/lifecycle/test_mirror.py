"""The MLflow mirror against a real MLflow server: filled once, put back when moved, complete after a kill anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid

import dagster as dg
import pytest
from sqlalchemy import text

from mlops_assets import crash
from mlops_assets.lifecycle.mirror import Mirror
from mlops_assets.lifecycle.pipeline import Platform
from mlops_assets.lifecycle.sensors import mirror_sensor
from mlops_assets.tracking import Tracking
from mlops_assets_tests.conftest import wait_for
from mlops_assets_tests.factories import BAD, GOOD, World, config_of


@pytest.fixture
def world(engine, settings, store, mlflow_server):
    """A system of its own name: the MLflow server is shared by all tests."""
    name = f"toy-{uuid.uuid4().hex[:8]}"
    settings = settings.model_copy(update={"mlflow_tracking_uri": mlflow_server})
    return World(engine, settings, store, system=name, config=config_of(name))


@pytest.fixture
def mirror(world):
    return Mirror(world.engine, Tracking(world.settings.mlflow_tracking_uri).client, world.settings.public_keys_path)


def aliases(mirror, world):
    return {name: int(version) for name, version in mirror.client.get_registered_model(world.system).aliases.items()}


def versions(mirror, world):
    found = mirror.client.search_model_versions(f"name = '{world.system}'")
    return sorted((int(v.tags["receipt_version"]), v.tags["bundle_sha256"]) for v in found)


def test_versions_aliases_and_messages_come_from_the_outbox_once(world, mirror):
    told: list[str] = []
    first = world.registered(content="a")
    world.registered("v2", {**GOOD, "f1": 0.9}, content="b")
    world.registrar().stage("Loss")
    mirror.deliver(told.append)
    assert aliases(mirror, world) == {"champion": 2, "archive": 1}, "the best one is champion already: no candidate"
    assert [number for number, _ in versions(mirror, world)] == [1, 2]
    assert any(message.startswith(f"promoted: {world.system} v1 (v1) by test: {first.verdict.sentence}") for message in told)
    before = len(told)
    assert mirror.deliver(told.append) == 0 and len(told) == before


def test_an_alias_moved_by_hand_is_put_back(world, mirror):
    """To an older receipted version, and to a version that no receipt knows: neither is what the ledger says."""
    world.registered(content="a")
    world.registered("v2", {**GOOD, "f1": 0.9}, content="b")
    mirror.deliver(lambda message: None)
    stray = mirror.client.create_model_version(world.system, source="s3://elsewhere/model")
    for target in ("1", str(stray.version)):
        mirror.client.set_registered_model_alias(world.system, "champion", target)
        mirror.client.set_registered_model_alias(world.system, "prod", target)
        moved = mirror.align(world.system)
        assert len(moved) == 2 and "the ledger says 2" in moved[0]
        assert aliases(mirror, world) == {"champion": 2, "archive": 1}
    assert mirror.align(world.system) == []


def test_a_system_whose_aliases_cannot_be_put_back_does_not_keep_the_others_waiting(world, mirror, monkeypatch):
    bad_name = f"{world.system}-broken"
    broken = World(world.engine, world.settings, world.store, system=bad_name, config=config_of(bad_name))
    for one in (world, broken):
        one.registered(content=f"{one.system}-a")
        one.registered("v2", {**GOOD, "f1": 0.9}, content=f"{one.system}-b")
        mirror.deliver(lambda message: None)
    # MLflow takes no colon.
    monkeypatch.setattr("mlops_assets.lifecycle.mirror.model_name", lambda system: f"{system}:" if system == bad_name else system)
    platform = Platform(world.settings, world.engine, world.store, Tracking(world.settings.mlflow_tracking_uri))
    sensor = mirror_sensor([broken.system, world.system], lambda: platform)
    mirror.client.set_registered_model_alias(world.system, "champion", "1")
    with dg.build_sensor_context() as context, pytest.raises(RuntimeError, match="1 of 2 systems") as failure:
        sensor.evaluate_tick(context)
    assert aliases(mirror, world) == {"champion": 2, "archive": 1}
    assert f"{bad_name}: " in str(failure.value)


def test_a_refused_model_never_reaches_mlflow_but_people_hear_of_it(world, mirror):
    told: list[str] = []
    attempt = world.attempt()
    world.registrar().register(attempt.id, world.report(attempt, BAD))
    mirror.deliver(told.append)
    assert mirror.client.search_model_versions(f"name = '{world.system}'") == []
    assert len(told) == 1 and "F1 0.500 < 0.800" in told[0] and "최소값을 넘지 못해" in told[0]


def test_while_mlflow_is_away_nothing_is_lost_and_slack_still_hears(world, mirror, free_port_url):
    told: list[str] = []
    world.registered()
    away = Mirror(world.engine, Tracking(free_port_url).client, world.settings.public_keys_path)
    away.deliver(told.append)
    assert len(told) == 1
    with world.engine.connect() as connection:
        errors = list(connection.execute(text("SELECT error FROM outbox WHERE delivered_at IS NULL ORDER BY id")).scalars())
    assert len(errors) == 2 and errors[0]
    mirror.deliver(told.append)
    assert aliases(mirror, world) == {"champion": 1} and len(told) == 1


@pytest.fixture
def free_port_url(monkeypatch):
    """An address where nothing listens; the client gives up at once."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return "http://127.0.0.1:9"


@pytest.mark.parametrize("point", [p for p in crash.REGISTRAR_POINTS if p.startswith("mirror.")])
def test_killed_at_every_point_it_completes_without_a_second_version(world, mirror, point):
    world.registered()
    code = (
        "from mlops_assets.settings import load_settings; from mlops_assets import database\n"
        "from mlops_assets.lifecycle.mirror import Mirror; from mlops_assets.tracking import Tracking\n"
        "s = load_settings(); e = database.connect(s.database_url)\n"
        "Mirror(e, Tracking(s.mlflow_tracking_uri).client, s.public_keys_path).deliver(print)\n"
    )
    environment = {**os.environ, **world.settings.environment(), "MLOPS_CRASH_AT": point}
    killed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=120)
    assert killed.returncode == -9, killed.stderr.decode()

    def delivered() -> bool:
        # PostgreSQL may take a moment to notice that the killed process, which had the rows locked, is gone.
        mirror.deliver(lambda message: None)
        with world.engine.connect() as connection:
            return not connection.execute(text("SELECT count(*) FROM outbox WHERE delivered_at IS NULL")).scalar_one()

    wait_for(delivered, "the outbox is empty")
    assert aliases(mirror, world) == {"champion": 1} and len(versions(mirror, world)) == 1
