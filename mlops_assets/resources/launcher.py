"""The run launcher: Dagster's own, plus the health check that it lacks, so that a run whose worker is gone does not stay STARTED.

Belongs here: how to tell whether a run's worker lives, and which workers outlived their runs. Does not belong here: what happens then
(`run_monitoring` and `run_retries` in dagster.yaml, the sensor `stray_workers`).
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagster import DagsterEventType, DagsterInstance, DagsterRun, Field, RunsFilter
from dagster._core.launcher import DefaultRunLauncher
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster._core.storage.dagster_run import FINISHED_STATUSES, NOT_FINISHED_STATUSES
from dagster._core.storage.tags import GRPC_INFO_TAG, HIDDEN_TAG_PREFIX

from mlops_assets.dagster_api import is_run_worker

if TYPE_CHECKING:
    import psutil
    from dagster._config.config_schema import UserConfigSchema
    from dagster._grpc.client import DagsterGrpcClient
    from dagster._serdes import ConfigurableClassData

#: Of a run's worker: the run's id, pid and birth. Hidden: it says nothing to people, and the retry of a run copies it.
WORKER_TAG = f"{HIDDEN_TAG_PREFIX}mlops_worker"

#: On a run that a command executes in its own process: the machine or container whose pids its worker's is one of.
HOST_TAG = "mlops/host"

#: Code servers whose pids are ours to look at; None: the run was started by no code server (`mlops train`), so here, or at `HOST_TAG`.
LOCAL_HOSTS: tuple[str | None, ...] = (None, "localhost", "127.0.0.1", "::1", socket.gethostname())

#: A process is older than the event in which it says its pid, but for the grain of two clocks.
CLOCK_SLACK_SECONDS = 2.0


class PidRunLauncher(DefaultRunLauncher):
    """Checks a local worker by its pid and start time, and a worker in another container by asking the code server that started it.

    A crashed run is retried by Dagster's daemon, which asks the code server for the job once: when it is away just then (it was killed
    together with its worker), the retry is given up for good. So a run whose worker is gone is called so only when its code server has
    answered for `settled_seconds`, or has been away for `patience_seconds`.
    """

    def __init__(self, inst_data: ConfigurableClassData | None = None, patience_seconds: int = 60, settled_seconds: int = 12) -> None:
        super().__init__(inst_data)
        self._patience, self._settled = patience_seconds, settled_seconds
        self._gone: dict[str, _Gone] = {}

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        return {
            "patience_seconds": Field(int, default_value=60, description="How long a run waits for a code server that is away."),
            "settled_seconds": Field(int, default_value=12, description="Longer than the daemon takes to notice a new code server: 10 s."),
        }

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]) -> PidRunLauncher:
        return cls(inst_data, **config_value)

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        info = json.loads(run.tags.get(GRPC_INFO_TAG, "{}"))
        if info.get("host") not in LOCAL_HOSTS:
            return self._ask_code_server(run, info["host"])
        if not info and (host := run.tags.get(HOST_TAG)) not in LOCAL_HOSTS:
            return CheckRunHealthResult(WorkerStatus.RUNNING, f"the run's process is on {host} and cannot be seen from here")
        worker = json.loads(run.tags.get(WORKER_TAG, "{}"))
        return self._known_worker(run, worker) if worker.get("run_id") == run.run_id else self._first_sight(run)

    def terminate(self, run_id: str) -> bool:
        """An interrupt straight to a worker of this machine; the run is then canceled by itself, or given up after its timeout.

        Dagster asks the code server instead, which waits for the worker to wake up and holds meanwhile the lock that it needs to start any
        run: one worker that hangs, and nothing is ever started again, not even after that worker was killed.
        """
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        said = said_pid(self._instance, run_id)
        here = GRPC_INFO_TAG in run.tags and json.loads(run.tags[GRPC_INFO_TAG]).get("host") in LOCAL_HOSTS
        worker = worker_of(*said) if here and said is not None else None
        if worker is None:
            ask_code_server: Any = super().terminate  # untyped in Dagster
            return bool(ask_code_server(run_id))
        self._instance.report_run_canceling(run)
        worker.send_signal(signal.SIGINT)
        return True

    def _known_worker(self, run: DagsterRun, worker: Mapping[str, Any]) -> CheckRunHealthResult:
        pid = int(worker["pid"])
        process = _process(pid)
        if process is not None and _birth(process) == worker["birth"]:
            return CheckRunHealthResult(WorkerStatus.RUNNING, run_worker_id=str(pid))
        return self._lost(run, _killed(pid))

    def _first_sight(self, run: DagsterRun) -> CheckRunHealthResult:
        """The pid stands in an engine event; its birth is kept in a tag, with the run's id, because a retry copies its parent's tags."""
        said = said_pid(self._instance, run.run_id)
        if said is None:
            return CheckRunHealthResult(WorkerStatus.RUNNING, "the run has not said its pid yet")
        pid, at = said
        process = worker_of(pid, at)
        if process is None:
            return self._lost(run, _killed(pid))
        worker = {"run_id": run.run_id, "pid": pid, "birth": _birth(process)}
        self._instance.add_run_tags(run.run_id, {WORKER_TAG: json.dumps(worker)})
        return CheckRunHealthResult(WorkerStatus.RUNNING, run_worker_id=str(pid))

    def _lost(self, run: DagsterRun, why: str) -> CheckRunHealthResult:
        gone = self._gone.setdefault(run.run_id, _Gone(time.monotonic()))
        if GRPC_INFO_TAG in run.tags and not gone.enough(self._code_server_answers(run.run_id), self._patience, self._settled):
            return CheckRunHealthResult(WorkerStatus.RUNNING, f"{why}; waiting for a code server that can retry the run", transient=True)
        del self._gone[run.run_id]
        return CheckRunHealthResult(WorkerStatus.NOT_FOUND, why)

    def _code_server_answers(self, run_id: str) -> bool:
        from dagster._core.errors import DagsterUserCodeUnreachableError

        find: Any = self._get_grpc_client_for_termination  # untyped in Dagster
        client: DagsterGrpcClient | None = find(run_id)
        try:
            return client is not None and bool(client.get_server_id(timeout=2))
        except DagsterUserCodeUnreachableError:
            return False

    def _ask_code_server(self, run: DagsterRun, host: str) -> CheckRunHealthResult:
        """A code server knows the runs that it started; one that was replaced took them with it, one that is away says nothing."""
        from dagster._core.errors import DagsterUserCodeUnreachableError
        from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult
        from dagster._serdes import deserialize_value

        find: Any = self._get_grpc_client_for_termination  # untyped in Dagster
        client: DagsterGrpcClient | None = find(run.run_id)
        if client is None:
            return CheckRunHealthResult(WorkerStatus.SUCCESS, "the run has ended")
        try:
            reply = client.can_cancel_execution(CanCancelExecutionRequest(run_id=run.run_id), timeout=5)
        except DagsterUserCodeUnreachableError:
            return CheckRunHealthResult(WorkerStatus.RUNNING, f"the code server at {host} does not answer just now", transient=True)
        if deserialize_value(reply, CanCancelExecutionResult).can_cancel:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return self._lost(run, f"the code server at {host} was replaced and its run went with it")


class _Gone:
    """How long a run's worker has been missed, and how long its code server has answered since."""

    def __init__(self, now: float) -> None:
        self.missed = now
        self.answered: float | None = None

    def enough(self, answers: bool, patience: float, settled: float) -> bool:
        now = time.monotonic()
        self.answered = (now if self.answered is None else self.answered) if answers else None
        return now - self.missed >= patience if self.answered is None else now - self.answered >= settled


def _killed(pid: int) -> str:
    return f"process {pid} is gone: it was killed, or the machine was started again"


def said_pid(instance: DagsterInstance, run_id: str) -> tuple[int, float] | None:
    """The pid that a run's worker last said is its own, and when it did (seconds since the epoch)."""
    for record in reversed(instance.get_records_for_run(run_id, of_type=DagsterEventType.ENGINE_EVENT).records):
        event = record.event_log_entry.dagster_event
        value = event.engine_event_data.metadata.get("pid") if event is not None else None
        if value is not None:
            return int(str(value.value)), record.timestamp
    return None


def worker_of(pid: int, at: float) -> psutil.Process | None:
    """The living process that said at that time that `pid` is its own; None when it is gone, or the pid has become another's."""
    process = _process(pid)
    return process if process is not None and process.create_time() <= at + CLOCK_SLACK_SECONDS else None


def strays(instance: DagsterInstance, grace_seconds: float, code_server: int | None = None) -> Iterator[tuple[DagsterRun, psutil.Process]]:
    """Workers of a code server (its pid; default: this process) whose runs ended more than `grace_seconds` ago: stuck where no interrupt
    reaches them.

    Such a worker holds the lock of training, its memory and its processors, and every later training would wait for it. Costs a look at
    its children, and a query per run in progress while there are any.
    """
    import psutil

    workers = {child.pid: child for child in psutil.Process(code_server).children() if is_run_worker(child.pid)}
    if not workers:
        return
    for run in instance.get_runs(RunsFilter(statuses=NOT_FINISHED_STATUSES)):
        workers.pop((said_pid(instance, run.run_id) or (0, 0.0))[0], None)
    now = datetime.now(UTC)
    ended = RunsFilter(statuses=FINISHED_STATUSES, updated_after=now - timedelta(days=1))
    for record in instance.get_run_records(ended, limit=100) if workers else ():
        pid, at = said_pid(instance, record.dagster_run.run_id) or (0, 0.0)
        if pid in workers and (record.end_time or now.timestamp()) + grace_seconds < now.timestamp() and worker_of(pid, at) is not None:
            yield record.dagster_run, workers.pop(pid)


def kill(worker: psutil.Process) -> None:
    """The worker and what it started."""
    import psutil

    processes = [worker]
    with contextlib.suppress(psutil.NoSuchProcess):
        processes += worker.children(recursive=True)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _process(pid: int) -> psutil.Process | None:
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process
    except psutil.NoSuchProcess:
        return None


def _birth(process: psutil.Process) -> str:
    """When the process began, by a clock that nobody sets: which boot, and ticks since then. A pid alone is soon used again."""
    stat = Path(f"/proc/{process.pid}/stat")
    if not stat.exists():
        return str(process.create_time())
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + ":" + stat.read_text().rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return "gone"
