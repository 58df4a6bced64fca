"""The run launcher: Dagster's own, plus the health check that it lacks, so that a run whose worker is gone does not stay STARTED.

Belongs here: how to tell whether a run's worker lives. Does not belong here: what happens then (`run_monitoring` and `run_retries` in
dagster.yaml).
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagster import DagsterEventType, DagsterRun
from dagster._core.launcher import DefaultRunLauncher
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG

if TYPE_CHECKING:
    import psutil
    from dagster._grpc.client import DagsterGrpcClient

WORKER_TAG = "mlops/worker"

#: Code servers whose pids are ours to look at; None: the run was started by no code server (`mlops train`), so by this machine.
LOCAL_HOSTS: tuple[str | None, ...] = (None, "localhost", "127.0.0.1", "::1", socket.gethostname())

#: Between the start of a process and the event that names its pid: imports on a busy machine.
_CLOCK_SLACK_SECONDS = 60.0


class PidRunLauncher(DefaultRunLauncher):
    """Checks a local worker by its pid and start time, and a worker in another container by asking the code server that started it."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        info = json.loads(run.tags.get(GRPC_INFO_TAG, "{}"))
        if info.get("host") not in LOCAL_HOSTS:
            return self._ask_code_server(run, info["host"])
        worker = json.loads(run.tags.get(WORKER_TAG, "{}"))
        return self._known_worker(worker) if worker.get("run_id") == run.run_id else self._first_sight(run)

    def _known_worker(self, worker: dict[str, Any]) -> CheckRunHealthResult:
        pid = int(worker["pid"])
        process = _process(pid)
        if process is not None and _birth(process) == worker["birth"]:
            return CheckRunHealthResult(WorkerStatus.RUNNING, run_worker_id=str(pid))
        return _gone(pid)

    def _first_sight(self, run: DagsterRun) -> CheckRunHealthResult:
        """The pid stands in an engine event; its birth is kept in a tag, with the run's id, because a retry copies its parent's tags."""
        for record in reversed(self._instance.get_records_for_run(run.run_id, of_type=DagsterEventType.ENGINE_EVENT).records):
            event = record.event_log_entry.dagster_event
            value = event.engine_event_data.metadata.get("pid") if event is not None else None
            if value is None:
                continue
            pid = int(str(value.value))
            process = _process(pid)
            if process is None or process.create_time() > record.timestamp + _CLOCK_SLACK_SECONDS:
                return _gone(pid)
            worker = {"run_id": run.run_id, "pid": pid, "birth": _birth(process)}
            self._instance.add_run_tags(run.run_id, {WORKER_TAG: json.dumps(worker)})
            return CheckRunHealthResult(WorkerStatus.RUNNING, run_worker_id=str(pid))
        return CheckRunHealthResult(WorkerStatus.RUNNING, "the run has not said its pid yet")

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
        return CheckRunHealthResult(WorkerStatus.NOT_FOUND, f"the code server at {host} was replaced and its run went with it")


def _gone(pid: int) -> CheckRunHealthResult:
    return CheckRunHealthResult(
        WorkerStatus.NOT_FOUND, f"the run's process {pid} is gone (killed, out of memory, or a restart)", run_worker_id=str(pid)
    )


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
