"""A toy whose training climbs to a height that its model and learning rate decide; it counts how often it is trained."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from mlops_assets import crash
from mlops_assets.lifecycle.pipeline import Platform
from mlops_assets.lifecycle.system import CleanedTable, ModelSystem, TrainContext, Trained
from mlops_assets.settings import Settings, SystemConfig, load_settings
from mlops_assets.store import ObjectStore
from mlops_assets.tracking import Tracking
from mlops_assets_tests.factories import config_of, manifest_of

EVALUATIONS = 4
#: Model -> the best that it can.
HEIGHTS = {"good": 0.9, "poor": 0.4}


def trainings(settings: Settings) -> list[str]:
    """The fingerprints of the trainings that went to their end, in order."""
    log = settings.home / "trained.log"
    return log.read_text().split() if log.exists() else []


def height(variant: str, learning_rate: float) -> float:
    return HEIGHTS[variant] * math.exp(-((math.log10(learning_rate) + 2) ** 2))


def train(context: TrainContext) -> Trained:
    """Climbs in equal steps; a finished training is not done again."""
    rate = context.parameters["learning_rate"]
    if rate > 1:
        raise RuntimeError("out of memory")
    best = math.nan if rate > 0.5 else height(context.variant, rate)
    folder = context.workdir / "trained"
    if not folder.exists():
        (context.workdir / "checkpoints").mkdir(exist_ok=True)
        for step in range(1, EVALUATIONS + 1):
            context.log_metrics({"loss": 1.0}, step)
            context.log_metrics({"validation_f1": best * step / EVALUATIONS, "validation_loss": 1 - best}, step)
            crash.reach(f"trainer.step_{step}")
        folder.mkdir()
        (folder / "weights.txt").write_text("w")
        with (context.workdir.parent.parent / "trained.log").open("a") as log:
            log.write(f"{context.fingerprint}\n")
    return Trained(folder, {"validation_f1": best, "validation_loss": 1 - best}, {**context.parameters, "quality": best})


def never(*_: Any) -> Any:
    raise AssertionError("a sweep exports and evaluates nothing")


def export(trained: Trained, context: TrainContext, folder: Path) -> None:
    (folder / "bundle.json").write_text("{}")


def system_of(name: str = "toy") -> ModelSystem:
    return ModelSystem(
        name=name,
        config_type=SystemConfig,
        train=train,
        export=export,
        evaluate=never,
        load_predictor=never,
        open_table=lambda store, engine, version, folder: CleanedTable(name, version, manifest_of(version), folder, 1000),
        variant_parameters=lambda config, variant, given: {"epochs": 1, "learning_rate": 0.01, **given},
        parameter_names={"epochs": int, "learning_rate": float},
        variants=tuple(HEIGHTS),
    )


def platform_of(settings: Settings) -> Platform:
    from mlops_assets import database

    assert settings.database_url
    return Platform(
        settings, database.connect(settings.database_url, pool_size=0), ObjectStore.of(settings), Tracking(settings.mlflow_tracking_uri)
    )


def run(settings: Settings, **given: Any) -> Any:
    """One sweep of the toy; what its process does when it is killed in a test, too."""
    from mlops_assets.lifecycle import sweep

    system, config = system_of(), config_of()
    planned = sweep.plan(system, config, dataset_version="v1", **given)
    return sweep.run(platform_of(settings), system, config, planned, run_id="run")


def main(trials: int) -> None:
    run(load_settings(), trials=trials)
