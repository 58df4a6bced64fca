"""An MLflow that is away costs a training neither its run nor its curves."""

from __future__ import annotations

from typing import Any, cast

from mlflow import MlflowClient

from mlops_assets.tracking import TrackedRun


class Server:
    """As much of a client as a run needs, whose server can be away."""

    def __init__(self) -> None:
        self.away, self.asked, self.steps, self.status = False, 0, list[int](), ""

    def log_batch(self, run_id: str, metrics: Any) -> None:
        self.asked += 1
        if self.away:
            raise ConnectionError("refused")
        self.steps += [metric.step for metric in metrics]

    def set_terminated(self, run_id: str, status: str) -> None:
        self.status = status


def test_metrics_wait_for_a_server_that_is_away() -> None:
    server = Server()
    run = TrackedRun(cast(MlflowClient, server), "r")
    run.FLUSH_SECONDS = 0.0  # type: ignore[misc]
    run.log_metrics({"loss": 1.0}, 1)
    server.away = True
    for step in range(2, 2_000):
        run.log_metrics({"loss": 1.0}, step)
    assert server.asked == 2, "a training does not wait for it at every step"
    server.away = False
    run.finish()
    assert server.steps == list(range(1, 2_000)) and server.status == "FINISHED"
