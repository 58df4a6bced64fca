"""A code location with one job that waits in the pool `training`; loaded by the real code servers of the tests."""

import time
from pathlib import Path

import dagster as dg

from mlops_assets.resources.executor import run_executor


class Wait(dg.Config):
    until: str = ""
    """The file whose coming ends the run."""


@dg.op(pool="training")
def sleep(config: Wait):
    while not (config.until and Path(config.until).exists()):
        time.sleep(0.1)


@dg.job(executor_def=run_executor)
def sleeper():
    sleep()
