"""A job that a command runs in its own process."""

from __future__ import annotations

import socket

from dagster import DagsterInstance

from mlops_assets.jobs import run_job
from mlops_assets.lifecycle import signing
from mlops_assets.resources.launcher import HOST_TAG


def test_its_run_says_where_its_process_is_and_why_it_did_nothing(dagster_settings):
    signing.ensure_key(dagster_settings)
    outcome = run_job(dagster_settings, "sentiment_rollback", config={"ops": {"sentiment_rollback_op": {"config": {"reason": "a test"}}}})
    assert not outcome.success and "no champion to roll back from" in (outcome.reason or "")
    with DagsterInstance.get() as instance:
        run = instance.get_run_by_id(outcome.run_id)
    assert run is not None and run.tags[HOST_TAG] == socket.gethostname()
