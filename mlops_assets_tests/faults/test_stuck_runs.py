"""kill -9 of run worker, code server and daemon, with production's dagster.yaml: the run ends, its slot goes on, its retry is made.

What stands around is real but small: PostgreSQL, a code server and a daemon under the supervisor of `mlops up`, a job that waits in the
pool `training`. With the whole platform and trainings, thirty times, beside Dagster's default: benchmarks/stuck_runs.py.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from dagster import DagsterInstance, DagsterRunStatus
from dagster._core.execution.api import create_execution_plan
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import GrpcServerTarget

from mlops_assets.resources.launcher import said_pid
from mlops_assets.supervise import Child, Patience, Service, Supervisor
from mlops_assets.up import listens
from mlops_assets_tests.conftest import free_port, wait_for
from mlops_assets_tests.resources.jobs_for_launcher import sleeper
from mlops_assets_tests.resources.test_launcher import JOBS

QUEUED, FAILURE, SUCCESS = DagsterRunStatus.QUEUED, DagsterRunStatus.FAILURE, DagsterRunStatus.SUCCESS


class Dagster:
    """Code server and daemon, started again when they are killed, and the runs of `sleeper`."""

    def __init__(self, home: Path, instance: DagsterInstance, supervisor: Supervisor) -> None:
        self.home, self.instance, self.supervisor = home, instance, supervisor
        self.port = free_port()
        python = [sys.executable, "-m", "dagster"]
        (home / "workspace.yaml").write_text(
            yaml.safe_dump({"load_from": [{"grpc_server": {"host": "127.0.0.1", "port": self.port, "location_name": "here"}}]})
        )
        server = [*python, "api", "grpc", "--host", "127.0.0.1", "--port", str(self.port), "--python-file", str(JOBS)]
        daemon = [sys.executable, "-m", "dagster._daemon", "run", "-w", str(home / "workspace.yaml")]
        self.code = self._service("code", server, lambda: listens("127.0.0.1", self.port))
        self.daemon = self._service("daemon", daemon, lambda: True, after=["code"])

    def _service(self, name: str, command: list[str], is_ready: Callable[[], bool], **more: Any) -> Child:
        return self.supervisor.add(Service(name, command, is_ready, environment=dict(os.environ), **more))

    def until(self, condition: Callable[[], Any], what: str, seconds: float = 120) -> Any:
        def look() -> Any:
            self.supervisor.tick()
            return condition()

        return wait_for(look, what, seconds)

    def submit(self, until: Path) -> str:
        target = GrpcServerTarget(host="127.0.0.1", port=self.port, socket=None, location_name="here")
        with WorkspaceProcessContext(self.instance, target) as workspace:
            context = workspace.create_request_context()
            (repository,) = context.get_code_location("here").get_repositories().values()
            job = repository.get_full_job("sleeper")
            config = {"ops": {"sleep": {"config": {"until": str(until)}}}}
            run = self.instance.create_run_for_job(
                sleeper,
                run_config=config,
                execution_plan=create_execution_plan(sleeper, config),  # it says which pools the run needs
                remote_job_origin=job.get_remote_origin(),
                job_code_origin=job.get_python_origin(),
            )
            self.instance.submit_run(run.run_id, context)
            return run.run_id

    def status(self, run_id: str) -> DagsterRunStatus:
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run.status

    def works(self, run_id: str) -> bool:
        return self.status(run_id) == DagsterRunStatus.STARTED and said_pid(self.instance, run_id) is not None

    def kill_worker(self, run_id: str) -> None:
        pid, _ = said_pid(self.instance, run_id) or (0, 0.0)
        assert psutil.Process(pid).ppid() == self.code.process.pid
        os.kill(pid, signal.SIGKILL)

    def retry_of(self, run_id: str) -> str | None:
        run = self.instance.get_run_by_id(run_id)
        return None if run is None else run.tags.get("dagster/auto_retry_run_id")


def is_blocked(dagster: Dagster, run_id: str) -> bool:
    """Whether the daemon has looked at a queued run and left it where it was: it says so in its log."""
    return f"{run_id} is blocked by global concurrency limits" in dagster.supervisor.log("daemon").read_text()


@pytest.fixture
def dagster(dagster_settings, tmp_path: Path) -> Iterator[Dagster]:
    supervisor = Supervisor(tmp_path / "logs", lambda kind, text: None, Patience(first_backoff=0.1))
    with DagsterInstance.get() as instance:
        try:
            yield Dagster(dagster_settings.dagster_home, instance, supervisor)
        finally:
            supervisor.stop(["daemon", "code"])


def test_whatever_is_killed_the_run_ends_its_slot_goes_on_and_its_retry_is_made(dagster: Dagster, tmp_path: Path) -> None:
    go = tmp_path / "go"
    dagster.until(lambda: dagster.code.ready and dagster.daemon.ready, "code server and daemon")
    first = dagster.submit(go)
    dagster.until(lambda: dagster.works(first), "the first run")
    second = dagster.submit(go)
    dagster.until(lambda: is_blocked(dagster, second), "the second run's turn in the queue")
    assert dagster.status(second) == QUEUED, "the pool has one slot: this would show nothing"

    dagster.kill_worker(first)
    dagster.until(lambda: dagster.status(first) == FAILURE, "the end of the run whose worker was killed")
    dagster.until(lambda: dagster.works(second), "its slot to be the second run's")
    third = dagster.until(lambda: dagster.retry_of(first), "its retry")

    dagster.code.process.kill()  # and its group, the worker among it, by the supervisor
    dagster.until(lambda: dagster.status(second) == FAILURE, "the end of the run whose code server was killed")
    fourth = dagster.until(lambda: dagster.retry_of(second), "its retry: it was failed when a code server could give the job")
    dagster.until(lambda: dagster.works(third), "its slot to be the retry's")

    dagster.daemon.process.kill()
    go.touch()
    dagster.until(lambda: dagster.status(third) == SUCCESS, "the end of the run that a killed daemon does not concern")
    dagster.until(lambda: dagster.status(fourth) == SUCCESS, "the waiting run, by the next daemon")
    assert [dagster.retry_of(run_id) for run_id in (third, fourth)] == [None, None]
    assert len(dagster.instance.get_runs()) == 4
