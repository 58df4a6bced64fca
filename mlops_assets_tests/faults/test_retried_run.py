"""The daemon runs a rollback again whose worker died after its commit: through Dagster's own run records, as the daemon makes them."""

from __future__ import annotations

import dagster as dg
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run

from mlops_assets.lifecycle import promotion
from mlops_assets.lifecycle.pipeline import Platform
from mlops_assets.tracking import Tracking
from mlops_assets_tests.factories import GOOD
from mlops_assets_tests.toy import toy_definitions


def test_the_retry_of_a_rollback_run_finds_what_its_root_did(world):
    for number in (1, 2, 3):
        world.registered(f"v{number}", {**GOOD, "f1": 0.85 + number / 100}, content=f"c{number}")
    platform = Platform(world.settings, world.engine, world.store, Tracking(None))
    job = toy_definitions(platform).resolve_job_def("toy_rollback")
    config = {"ops": {"toy_rollback_op": {"config": {"reason": "bad"}}}}
    with dg.DagsterInstance.ephemeral() as instance:

        def run(root: str | None = None) -> str:
            made = instance.create_run_for_job(job, run_config=config, parent_run_id=root, root_run_id=root)
            assert execute_run(InMemoryJob(job), made, instance).success
            return made.run_id

        first = run()
        run(first)
        with world.engine.connect() as connection:
            champions = promotion.verified_history(connection, "toy", "champion", world.settings.public_keys_path)
        assert [(found.sequence, found.version) for found in champions] == [(4, 2), (3, 3), (2, 2), (1, 1)]
        assert champions[0].body["root_run_id"] == first
        run()  # control: a run of its own goes further back, as every retry did before
        with world.engine.connect() as connection:
            found, _ = promotion.latest_verified(connection, "toy", "champion", world.settings.public_keys_path)
        assert found is not None and found.version == 1
