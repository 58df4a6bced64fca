"""MLflow tracking: one MLflow run per Dagster run and variant, in the convention of dagster-mlflow (tag `dagster_run_id`).

Training never fails because tracking does: metrics wait until the server is back, what else cannot be logged is said and dropped.
Belongs here: the tracking half of MLflow. Does not belong here: the model registry (`lifecycle/mirror.py`).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlops_assets.settings import shown

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)


class Tracking:
    """A client of one MLflow server.

    Args:
        uri: the server's address; None turns tracking off.
    """

    def __init__(self, uri: str | None) -> None:
        self.uri = uri
        self._client: MlflowClient | None = None

    @property
    def client(self) -> MlflowClient:
        """Raises RuntimeError when tracking is off."""
        if self.uri is None:
            raise RuntimeError("MLflow is not set: start the platform with `mlops up`, or set MLOPS_MLFLOW_TRACKING_URI")
        if self._client is None:
            from mlflow import MlflowClient
            from mlflow import environment_variables as variables

            variables.MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT.set(True)  # type: ignore[no-untyped-call]  # stdout is the commands' own
            # By itself it tries for four minutes, and whoever trains, stages or mirrors would wait: what is mirrored is tried again anyway.
            for variable, value in ((variables.MLFLOW_HTTP_REQUEST_MAX_RETRIES, 2), (variables.MLFLOW_HTTP_REQUEST_TIMEOUT, 20)):
                if not variable.is_set():  # type: ignore[no-untyped-call]
                    variable.set(value)  # type: ignore[no-untyped-call]
            self._client = MlflowClient(self.uri)
        return self._client

    def start(
        self,
        experiment: str,
        name: str,
        *,
        dagster_run_id: str,
        tags: Mapping[str, str],
        parent: TrackedRun | None = None,
        known_by: Sequence[str] = ("dagster_run_id", "variant"),
    ) -> TrackedRun:
        """The MLflow run of this Dagster run (found again after a restart), or a silent one when MLflow is away.

        Args:
            parent: nest the run in this one.
            known_by: the tags that are this run's alone: one that has them is gone on with.
        """
        if self.uri is None:
            return TrackedRun(None, None)
        try:
            nested = {"mlflow.parentRunId": parent.run_id} if parent and parent.run_id else {}
            run_id = self._run_id(experiment, name, {"dagster_run_id": dagster_run_id, "variant": "", **tags, **nested}, known_by)
            return TrackedRun(self.client, run_id, uri=self.uri)
        except Exception as error:  # any failure of the tracking server must not stop a training
            logger.warning("MLflow at %s is not reachable, this run is not tracked: %s", shown(self.uri), shown(str(error)))
            return TrackedRun(None, None)

    def _run_id(self, experiment: str, name: str, tags: Mapping[str, str], known_by: Sequence[str]) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(experiment)
        if found is None:
            try:
                experiment_id = self.client.create_experiment(experiment)
            except MlflowException:  # another run was first
                return self._run_id(experiment, name, tags, known_by)
        else:
            experiment_id = found.experiment_id
        same = " and ".join(f"tags.{tag} = '{tags[tag]}'" for tag in known_by)
        runs = self.client.search_runs([experiment_id], same, max_results=1)
        if runs:
            run_id = str(runs[0].info.run_id)
            self.client.update_run(run_id, status="RUNNING")
            return run_id
        made = self.client.create_run(experiment_id, run_name=name, tags=dict(tags))
        return str(made.info.run_id)


class TrackedRun:
    """One MLflow run, or nothing at all. No method raises."""

    #: Metrics are sent in batches: a training step must not wait for a server.
    FLUSH_SECONDS = 2.0
    #: While the server is away they wait, so many of them, and it is asked again so often.
    AWAY_SECONDS = 30.0
    KEPT = 100_000

    def __init__(self, client: MlflowClient | None, run_id: str | None, uri: str | None = None) -> None:
        self.client = client
        self.run_id = run_id
        self.uri = uri
        self._waiting: list[Any] = []
        self._flushed = time.monotonic()
        self._away_until = 0.0

    @property
    def link(self) -> str | None:
        if self.client is None or self.run_id is None:
            return None
        try:
            experiment = self.client.get_run(self.run_id).info.experiment_id
        except Exception:  # only a link
            return None
        return f"{shown(self.uri or '')}/#/experiments/{experiment}/runs/{self.run_id}"

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        if self.client is None:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._waiting += [Metric(name, float(value), now, step) for name, value in metrics.items() if math.isfinite(value)]
        if len(self._waiting) >= 500 or time.monotonic() - self._flushed > self.FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        self._flushed = time.monotonic()
        if self._flushed < self._away_until:
            return
        while self._waiting and self._try("log_batch", self.run_id, metrics=self._waiting[:1000]):
            del self._waiting[:1000]
        del self._waiting[: -self.KEPT]

    def log_params(self, parameters: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        entries = [Param(name, str(value)[:6000]) for name, value in parameters.items()]
        for start in range(0, len(entries), 100):
            self._try("log_batch", self.run_id, params=entries[start : start + 100])

    def tag(self, name: str, value: str) -> None:
        self._try("set_tag", self.run_id, name, value)

    def log_bytes(self, name: str, data: bytes) -> None:
        """One artifact file under `name` (POSIX path)."""
        import tempfile
        from pathlib import Path, PurePosixPath

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / PurePosixPath(name).name
            path.write_bytes(data)
            parent = str(PurePosixPath(name).parent)
            self._try("log_artifact", self.run_id, str(path), None if parent == "." else parent)

    def finish(self, status: str = "FINISHED") -> None:
        self._away_until = 0.0
        self.flush()
        self._try("set_terminated", self.run_id, status=status)

    def _try(self, method: str, *arguments: Any, **named: Any) -> bool:
        if self.client is None:
            return True
        try:
            getattr(self.client, method)(*arguments, **named)
        except Exception as error:  # see the class: tracking never stops a training
            self._away_until = time.monotonic() + self.AWAY_SECONDS
            logger.warning("MLflow %s failed: %s", method, shown(str(error)))
            return False
        return True
