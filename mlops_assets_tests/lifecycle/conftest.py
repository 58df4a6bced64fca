"""What the toy's graph runs on: a platform without MLflow, and a Dagster instance in memory."""

from __future__ import annotations

import dagster as dg
import pytest

from mlops_assets.lifecycle import pipeline
from mlops_assets.tracking import Tracking


@pytest.fixture
def platform(world):
    return pipeline.Platform(world.settings, world.engine, world.store, Tracking(None))


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance
