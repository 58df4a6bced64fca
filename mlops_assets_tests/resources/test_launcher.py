"""A run whose worker is gone fails at the next look of run monitoring: with a real code server, run worker and monitoring."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
import yaml
from dagster import DagsterInstance, DagsterRunStatus, MetadataValue
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.events import EngineEventData
from dagster._core.launcher import DefaultRunLauncher
from dagster._core.launcher.base import WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import GrpcServerTarget
from dagster._daemon.monitoring.run_monitoring import execute_run_monitoring_iteration
from dagster._grpc.types import CanCancelExecutionRequest, CancelExecutionRequest

from mlops_assets.resources.launcher import HOST_TAG, WORKER_TAG, PidRunLauncher, kill, strays, worker_of

JOBS = Path(__file__).parent / "jobs_for_launcher.py"


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.05)
    return found


@pytest.fixture
def database(make_database: Callable[..., str]) -> str:
    """Dagster's own."""
    return make_database("template1")


@contextmanager
def sleeping_run(
    folder: Path, database: str, launcher: dict[str, Any]
) -> Iterator[tuple[WorkspaceProcessContext, str, int, subprocess.Popen[bytes]]]:
    """An instance, and a run in progress in it: (workspace, run id, the worker's pid, the code server)."""
    folder.mkdir()
    storage = {"postgres": {"postgres_url": database}}  # a worker that is stopped would take SQLite's lock with it
    config = {
        "storage": storage,
        "run_launcher": launcher,
        "run_monitoring": {"enabled": True, "start_timeout_seconds": 120},
        "telemetry": {"enabled": False},
    }
    (folder / "dagster.yaml").write_text(yaml.safe_dump(config))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = code_server(folder, port)
    worker = None
    try:
        with DagsterInstance.from_config(str(folder)) as instance:
            target = GrpcServerTarget(host="127.0.0.1", port=port, socket=None, location_name="here")
            with WorkspaceProcessContext(instance, target) as workspace:
                context = workspace.create_request_context()
                location = context.get_code_location("here")
                (repository,) = location.get_repositories().values()
                job = repository.get_full_job("sleeper")
                run = instance.create_run_for_job(
                    _definition(), remote_job_origin=job.get_remote_origin(), job_code_origin=job.get_python_origin()
                )
                instance.launch_run(run.run_id, context)
                until(lambda: instance.get_run_by_id(run.run_id).status == DagsterRunStatus.STARTED)
                worker = until(lambda: _worker(server.pid))
                yield workspace, run.run_id, worker, server
    finally:
        for pid in (worker, server.pid):
            if pid is not None and psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)
        server.wait()


def code_server(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """Returns once it listens."""
    command = [sys.executable, "-m", "dagster", "api", "grpc", "--host", "127.0.0.1", "--port", str(port), "--python-file", str(JOBS)]
    server = subprocess.Popen(command, env=os.environ | {"DAGSTER_HOME": str(folder)}, stderr=subprocess.DEVNULL)

    def listening() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    until(listening)
    return server


def _definition():
    from dagster import reconstructable

    from mlops_assets_tests.resources import jobs_for_launcher

    return reconstructable(jobs_for_launcher.sleeper).get_definition()


def _worker(server: int) -> int | None:
    found = [p.pid for p in psutil.Process(server).children() if any("spawn_main" in part for part in p.cmdline())]
    return found[0] if found else None


def monitor(workspace: WorkspaceProcessContext) -> None:
    assert [error for error in execute_run_monitoring_iteration(workspace, logging.getLogger("test")) if error] == []


def kill_both(worker: int, server: subprocess.Popen[bytes]) -> None:
    """The machine's memory ran out, or it was switched off: nobody is left who could report it."""
    server.kill()
    server.wait()
    os.kill(worker, signal.SIGKILL)
    until(lambda: not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE)


OURS = {"module": "mlops_assets.resources.launcher", "class": "PidRunLauncher"}
#: Nothing is waited for: what is gone is called gone.
AT_ONCE = OURS | {"config": {"patience_seconds": 0, "settled_seconds": 0}}


def test_a_run_whose_process_is_gone_is_failed_and_a_living_one_is_not(tmp_path, database, monkeypatch):
    with sleeping_run(tmp_path / "home", database, AT_ONCE) as (workspace, run_id, worker, server):
        instance = workspace.instance
        ours = instance.run_launcher
        assert isinstance(ours, PidRunLauncher)

        def status() -> DagsterRunStatus:
            return instance.get_run_by_id(run_id).status

        monitor(workspace)
        assert status() == DagsterRunStatus.STARTED
        run = instance.get_run_by_id(run_id)
        known = json.loads(run.tags[WORKER_TAG])
        assert (known["run_id"], known["pid"]) == (run_id, worker)

        # Seen from another container a pid means nothing: the code server is asked. It has this run, and not one that it never started,
        # which is what a server says that was replaced.
        lost = instance.create_run_for_job(_definition(), tags={GRPC_INFO_TAG: run.tags[GRPC_INFO_TAG]})
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr("mlops_assets.resources.launcher.LOCAL_HOSTS", ())
            assert ours.check_run_worker_health(run).status == WorkerStatus.RUNNING
            assert ours.check_run_worker_health(lost).status == WorkerStatus.NOT_FOUND

        kill_both(worker, server)
        instance._run_launcher = DefaultRunLauncher()
        instance._run_launcher.register_instance(instance)
        monitor(workspace)
        assert status() == DagsterRunStatus.STARTED  # a control: with Dagster's own launcher it would stay so
        instance._run_launcher = ours
        monitor(workspace)
        assert status() == DagsterRunStatus.FAILURE

        # The pid is used again, by this very test: it was born at another time.
        again = run.with_tags({**run.tags, WORKER_TAG: json.dumps(known | {"pid": os.getpid()})})
        assert ours.check_run_worker_health(again).status == WorkerStatus.NOT_FOUND
        # A retry has copied the tags of its parent: they say nothing about it, and it has not said its own pid yet.
        retry = instance.create_run_for_job(_definition(), tags={WORKER_TAG: run.tags[WORKER_TAG]})
        assert ours.check_run_worker_health(retry).status == WorkerStatus.RUNNING
        # A code server that is just now away says nothing about its runs.
        away = {GRPC_INFO_TAG: json.dumps({"host": "code.invalid", "port": 4266})}
        instance.add_run_tags(retry.run_id, away)
        assert ours.check_run_worker_health(retry.with_tags(away)).status == WorkerStatus.RUNNING


@pytest.mark.parametrize(
    ("tags", "health"),
    [
        ({HOST_TAG: "another-container"}, WorkerStatus.RUNNING),
        ({HOST_TAG: socket.gethostname()}, WorkerStatus.NOT_FOUND),
        ({}, WorkerStatus.NOT_FOUND),
        ({HOST_TAG: "another-container", GRPC_INFO_TAG: json.dumps({"host": "localhost", "port": 1})}, WorkerStatus.NOT_FOUND),
    ],
    ids=["elsewhere", "here", "untagged", "a code server here ran it again, with the tags of before"],
)
def test_a_commands_run_is_judged_by_its_pid_only_where_the_pid_is_known(tags, health):
    ours = PidRunLauncher(patience_seconds=0, settled_seconds=0)
    with subprocess.Popen([sys.executable, "-c", ""]) as ended, DagsterInstance.ephemeral() as instance:
        ended.wait()
        ours.register_instance(instance)
        run = instance.create_run_for_job(_definition(), tags=tags)
        instance.report_engine_event("started", run, EngineEventData(metadata={"pid": MetadataValue.text(str(ended.pid))}))
        assert ours.check_run_worker_health(run).status == health


def test_a_run_is_failed_only_when_its_code_server_can_retry_it(tmp_path, database):
    """Killed together with its worker, as when a machine's memory runs out: Dagster asks it for the job once and gives the retry up."""
    patient = OURS | {"config": {"patience_seconds": 3600, "settled_seconds": 0}}
    with sleeping_run(tmp_path / "home", database, patient) as (workspace, run_id, worker, server):
        instance = workspace.instance
        port = json.loads(instance.get_run_by_id(run_id).tags[GRPC_INFO_TAG])["port"]
        kill_both(worker, server)
        monitor(workspace)
        assert instance.get_run_by_id(run_id).status == DagsterRunStatus.STARTED
        health = instance.run_launcher.check_run_worker_health(instance.get_run_by_id(run_id))
        assert health.transient and "waiting for a code server" in health.msg
        again = code_server(tmp_path / "home", port)
        try:
            monitor(workspace)
        finally:
            again.kill()
            again.wait()
        assert instance.get_run_by_id(run_id).status == DagsterRunStatus.FAILURE


def test_a_code_server_that_stays_away_does_not_hold_its_run_up_for_good(tmp_path, database):
    with sleeping_run(tmp_path / "home", database, OURS | {"config": {"patience_seconds": 0, "settled_seconds": 3600}}) as (
        workspace,
        run_id,
        *both,
    ):
        kill_both(*both)
        monitor(workspace)
        assert workspace.instance.get_run_by_id(run_id).status == DagsterRunStatus.FAILURE


def test_a_worker_that_outlives_its_run_is_found_and_killed_and_a_living_runs_worker_is_not(tmp_path, database):
    with sleeping_run(tmp_path / "home", database, AT_ONCE) as (workspace, run_id, worker, server):
        instance = workspace.instance
        os.kill(worker, signal.SIGSTOP)  # it heeds no interrupt
        assert list(strays(instance, 0, code_server=server.pid)) == []  # its run is in progress
        instance.report_run_canceled(instance.get_run_by_id(run_id))
        assert list(strays(instance, 3600, code_server=server.pid)) == []  # it may need so long to leave
        assert list(strays(instance, 0)) == [], "another code server's worker"
        until(lambda: list(strays(instance, 0, code_server=server.pid)))
        ((run, process),) = strays(instance, 0, code_server=server.pid)
        assert (run.run_id, process.pid) == (run_id, worker)
        kill(process)
        until(lambda: not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE)
        assert list(strays(instance, 0, code_server=server.pid)) == []


def test_a_pid_that_was_said_before_its_process_began_is_anothers():
    began = psutil.Process().create_time()
    assert worker_of(os.getpid(), began + 1) is not None
    assert worker_of(os.getpid(), began - 30) is None  # after a restart of the machine pids begin anew


def test_a_worker_that_hangs_while_it_is_canceled_does_not_stop_its_code_server(tmp_path, database):
    with sleeping_run(tmp_path / "home", database, AT_ONCE) as (workspace, run_id, worker, server):
        instance = workspace.instance
        launcher = instance.run_launcher
        client = launcher._get_grpc_client_for_termination(run_id)

        def answers() -> bool:
            """Whether the lock is free that the code server takes to start a run."""
            try:
                return bool(client.can_cancel_execution(CanCancelExecutionRequest(run_id=run_id), timeout=3))
            except DagsterUserCodeUnreachableError:
                return False

        os.kill(worker, signal.SIGSTOP)
        assert launcher.terminate(run_id)
        assert instance.get_run_by_id(run_id).status == DagsterRunStatus.CANCELING
        assert answers()

        def ask() -> None:
            with suppress(DagsterUserCodeUnreachableError):
                client.cancel_execution(CancelExecutionRequest(run_id=run_id))

        control = Thread(target=ask)  # a control: as Dagster's own launcher asks
        control.start()
        until(lambda: not answers())
        os.kill(worker, signal.SIGKILL)
        assert not answers(), "not even the end of the worker frees it"
        server.kill()
        control.join()


def test_a_worker_that_is_well_heeds_the_interrupt(tmp_path, database):
    with sleeping_run(tmp_path / "home", database, AT_ONCE) as (workspace, run_id, worker, _):
        assert workspace.instance.run_launcher.terminate(run_id)
        until(lambda: workspace.instance.get_run_by_id(run_id).status == DagsterRunStatus.CANCELED)
        until(lambda: not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE)
        assert not workspace.instance.run_launcher.terminate(run_id)
