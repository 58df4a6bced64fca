"""Nobody chooses the name that the ledger signs: a tag of a run is whatever its launcher wrote."""

from __future__ import annotations

import getpass
import socket

import dagster as dg
import pytest
from sqlalchemy import text

from mlops_assets.definitions import build_defs
from mlops_assets.jobs import run_job
from mlops_assets_tests.factories import GOOD, World, config_of

FORGED = {"mlops/actor": "the CEO", "user": "the CEO"}
PROMOTE = {"ops": {"sentiment_produce_op": {"config": {"reason": "because"}}}}


@pytest.fixture
def world(engine, dagster_settings, store) -> World:
    world = World(engine, dagster_settings, store, "sentiment", config_of("sentiment", mode="manual"))
    world.registered("v1", GOOD)
    return world


def actors(world: World) -> set[str]:
    """Everybody whom the latest promotion names, its signed text included."""
    with world.engine.connect() as connection:
        row = connection.execute(text("SELECT actor, payload FROM promotion ORDER BY sequence DESC LIMIT 1")).one()
    assert f'"actor":"{row.actor}"' in row.payload
    return {row.actor}


def test_a_name_in_a_runs_tags_is_no_actor(world, dagster_settings):
    with dg.DagsterInstance.get() as instance:
        job = build_defs(dagster_settings).resolve_job_def("sentiment_produce")
        done = job.execute_in_process(instance=instance, run_config=PROMOTE, tags=FORGED)
    assert actors(world) == {f"run:{done.run_id[:8]}"}


def test_a_command_is_known_by_its_account_and_machine(world, dagster_settings):
    assert run_job(dagster_settings, "sentiment_produce", config=PROMOTE).success
    assert actors(world) == {f"cli:{getpass.getuser()}@{socket.gethostname()}"}
