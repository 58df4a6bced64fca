"""A whole system without a model: its "training" writes how good it is into the bundle, so that every verdict can be had at will.

The lifecycle around it is the real one: PostgreSQL, object store, signatures, Dagster.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from mlops_assets.lifecycle.assets import dataset_versions, model_lifecycle
from mlops_assets.lifecycle.dataset import DatasetError
from mlops_assets.lifecycle.jobs import lifecycle_jobs
from mlops_assets.lifecycle.pipeline import Platform
from mlops_assets.lifecycle.system import CleanedTable, Evaluation, ModelSystem, Picture, TrainContext, Trained
from mlops_assets.resources.console import LOGGERS
from mlops_assets.resources.executor import run_executor
from mlops_assets.settings import SystemConfig
from mlops_assets_tests.factories import config_of, manifest_of

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c63f8cfc0f01f0005000180a1d3f37e0000000049454e44ae426082"
)


def _train(context: TrainContext) -> Trained:
    folder = context.workdir / "trained"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.txt").write_text("w")
    context.log_metrics({"loss": 0.5}, 1)
    quality = context.parameters["quality"]
    return Trained(folder, {"validation_f1": 0.5 if isinstance(quality, dict) else float(quality)}, context.parameters)


def _export(trained: Trained, context: TrainContext, folder: Path) -> None:
    (folder / "bundle.json").write_text(json.dumps({"system": context.system, "f1": trained.parameters["quality"], "seed": context.seed}))


@dataclass(frozen=True)
class Holdout:
    """What a version is measured on: `rows` of a `world`. A model may be good in one world and know nothing of another."""

    world: str = "holdout"
    rows: int = 1000


def _evaluate(folder: Path, holdout: Holdout, trivial: Mapping[str, float] | None = None) -> Evaluation:
    f1 = json.loads((folder / "bundle.json").read_text())["f1"]
    f1 = f1.get(holdout.world, 0.0) if isinstance(f1, dict) else f1
    f1 = float("nan") if f1 == "nan" else float(f1)
    right = [index / holdout.rows < f1 for index in range(holdout.rows)]
    return Evaluation(
        {"f1": f1, "accuracy": f1, "loss": 1 - f1},
        holdout.rows,
        holdout.world,
        right,
        {"all": {"rows": holdout.rows, "f1": f1}},
        {"worst": [{"text": "나쁨"}]},
        [Picture("dot", PNG)],
        trivial={name: {"f1": value} for name, value in (trivial or {}).items()},
    )


@dataclass(frozen=True)
class ToyPredictor:
    labels: Sequence[str] = ("no", "yes")

    def predict(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        return [{"text": text, "label": "yes"} for text in inputs]


def toy_system(
    name: str = "toy",
    qualities: Mapping[str, Any] | None = None,
    variants: Mapping[str, float] | None = None,
    holdouts: Mapping[str, Holdout | None] | None = None,
    baseline: str | None = None,
    trivial: Mapping[str, float] | None = None,
) -> ModelSystem:
    """`qualities`: dataset version -> the F1 that a model trained on it has (default 0.86), or what it has in each world; `variants`: the
    same by variant, `baseline` one of them; `holdouts`: dataset version -> what it is measured on, where that is not the same 1,000 rows;
    None: no table; `trivial`: the F1 of trivial answers."""
    given, measured_on = qualities or {}, holdouts or {}
    by_variant = variants or {}

    def open_table(store: Any, engine: Any, version: str, folder: Path) -> CleanedTable:
        if measured_on.get(version, Holdout()) is None:
            raise DatasetError(f"{name} {version} is not cleaned yet: materialize `{name}/cleaned` for it first")
        return CleanedTable(name, version, manifest_of(version), folder, 1000)

    def train(context: TrainContext) -> Trained:
        quality = context.parameters.get("quality", given.get(context.table.dataset_version, 0.86))
        return _train(TrainContext(**{**context.__dict__, "parameters": {**context.parameters, "quality": quality}}))

    return ModelSystem(
        name=name,
        config_type=SystemConfig,
        train=train,
        export=_export,
        evaluate=lambda folder, table, threads: _evaluate(folder, measured_on.get(table.dataset_version) or Holdout(), trivial),
        load_predictor=lambda folder, threads: ToyPredictor(),
        open_table=open_table,
        variant_parameters=lambda config, variant, given: {"epochs": 1} | ({"quality": by_variant[variant]} if variant else {}) | given,
        parameter_names={"quality": float, "epochs": int},
        variants=tuple(by_variant) or ("",),
        baseline=baseline,
    )


def toy_definitions(
    platform: Platform,
    config: SystemConfig | None = None,
    qualities: Mapping[str, Any] | None = None,
    variants: Mapping[str, float] | None = None,
    holdouts: Mapping[str, Holdout | None] | None = None,
    **more: Any,
) -> dg.Definitions:
    """The toy's data assets (which only exist) and its real lifecycle."""
    config = config or config_of()
    name = config.project.name
    system = toy_system(name, qualities, variants, holdouts, **more)

    @dg.asset(key=[name, "dataset"], group_name=name, partitions_def=dataset_versions(name))
    def dataset() -> None: ...

    @dg.asset(key=[name, "cleaned"], group_name=name, deps=[[name, "dataset"]], partitions_def=dataset_versions(name))
    def cleaned() -> None: ...

    made = model_lifecycle(system, config, lambda: platform)
    return dg.Definitions(
        assets=[dataset, cleaned, *made.assets],
        asset_checks=list(made.checks),
        jobs=lifecycle_jobs(system, config, lambda: platform),
        executor=run_executor,
        loggers=LOGGERS,
    )
