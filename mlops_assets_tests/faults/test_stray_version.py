"""Somebody can write into MLflow: a version with the tags of the champion and another source is none of ours."""

from __future__ import annotations

import logging
import uuid

import pytest

from mlops_assets.lifecycle.mirror import Mirror
from mlops_assets.tracking import Tracking
from mlops_assets_tests.factories import GOOD, World, config_of


@pytest.fixture
def world(engine, settings, store, mlflow_server):
    name = f"toy-{uuid.uuid4().hex[:8]}"
    settings = settings.model_copy(update={"mlflow_tracking_uri": mlflow_server})
    return World(engine, settings, store, system=name, config=config_of(name))


def test_the_alias_never_moves_to_a_foreign_version_with_copied_tags(world, caplog):
    client = Tracking(world.settings.mlflow_tracking_uri).client
    mirror = Mirror(world.engine, client, world.settings.public_keys_path)
    first = world.registered("v1", content="a").receipt
    second = world.registered("v2", {**GOOD, "f1": 0.9}, content="b").receipt
    # Before ours is there, and with the tags that it will have.
    client.create_registered_model(world.system)
    tags = {"bundle_sha256": second.bundle_sha256, "receipt_version": "2", "status": "candidate"}
    evil = client.create_model_version(world.system, "s3://evil/model", await_creation_for=0, tags=tags)
    renumbered = client.create_model_version(
        world.system, f"bundle:///{second.bundle_sha256}", await_creation_for=0, tags=tags | {"receipt_version": "7"}
    )
    client.set_registered_model_alias(world.system, "champion", evil.version)
    naive = {v.tags["bundle_sha256"]: v.version for v in reversed(client.search_model_versions(f"name = '{world.system}'"))}
    assert naive[second.bundle_sha256] in (evil.version, renumbered.version), "control: what was looked for before"
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            mirror.deliver(lambda message: None)
            mirror.align(world.system)
    aliases = client.get_registered_model(world.system).aliases
    champion = client.get_model_version(world.system, aliases["champion"])
    assert champion.source == f"bundle:///{second.bundle_sha256}" and champion.tags["receipt_version"] == "2"
    assert client.get_model_version(world.system, aliases["archive"]).source == f"bundle:///{first.bundle_sha256}"
    strays = [record.getMessage() for record in caplog.records if "it is none of ours" in record.getMessage()]
    assert len(strays) == 2 and any("s3://evil/model" in line for line in strays), "each is told of once"
