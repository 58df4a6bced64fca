"""What the benchmarks of digits share: landing and cleaning a version, one way of training through evaluation and registrar, figures."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SYSTEM = "digits"


@dataclass
class Tried:
    """One training with its exported bundle and its report."""

    folder: Path
    minutes: float
    outcome: str
    sentence: str
    metrics: Mapping[str, float]
    evaluation: Any
    attempt: Any


def cleaned(there: Any, config: Any, folder: Path, version: str, scratch: Path, parent: str | None = None) -> Any:
    """Land the files, find them as the sensor does, freeze and clean them."""
    from mlops_assets.ingest.objects import discover, land
    from mlops_assets.lifecycle import dataset
    from mlops_assets.systems.digits import data

    engine, store, settings = there.engine, there.store, there.settings
    land(settings, store, SYSTEM, folder, version, engine=engine, parent=parent)
    discover(engine, store, settings, SYSTEM)
    scratch.mkdir(parents=True)
    manifest = dataset.freeze(engine, store, SYSTEM, version, max_object_bytes=settings.max_object_bytes, scratch=scratch)
    started = time.monotonic()
    done = data.clean(engine, store, manifest, config.dataset, scratch / "cleaned", threads=settings.threads)
    print(
        f"{version}: {done.rows_in} digits = {done.accepted} + {sum(done.quarantined.values())} quarantined, {dict(done.splits)}, "
        f"{dict(done.origins)}, cleaned in {time.monotonic() - started:.0f} s",
        flush=True,
    )
    return done


def tried(there: Any, config: Any, version: str, variant: str, folder: Path, overrides: Mapping[str, Any] | None = None) -> Tried:
    """Training, evaluation and the registrar; the bundle is fetched into `folder`."""
    from mlops_assets.lifecycle import bundle, pipeline
    from mlops_assets.lifecycle.registrar import Registrar
    from mlops_assets.systems.digits.training import SYSTEM as digits

    started = time.monotonic()
    done = pipeline.train(
        there, digits, config, variant=variant, dataset_version=version, run_id="benchmark", overrides=overrides or {}, say=print
    )
    minutes = (time.monotonic() - started) / 60
    evaluated = pipeline.evaluate(there, digits, done.attempt.id, run_id="benchmark")
    registered = Registrar(there.engine, there.settings, config, actor="benchmark").register(done.attempt.id, evaluated.report_id)
    found = bundle.fetch(there.store, done.attempt.bundle_sha256, done.attempt.bundle_files, folder)
    metrics = evaluated.report.metrics
    print(f"{variant}: {minutes:.1f} min, {registered.verdict.outcome}: {registered.verdict.sentence}", flush=True)
    print({name: round(value, 4) for name, value in metrics.items()}, flush=True)
    print(evaluated.report.tables["canary"], flush=True)
    return Tried(found, minutes, registered.verdict.outcome, registered.verdict.sentence, metrics, evaluated.evaluation, done.attempt)


def holdout(there: Any, version: str, folder: Path) -> Any:
    """The held-out digits with their pictures."""
    from mlops_assets.systems.digits import data

    return data.read_digits(data.load_cleaned(there.store, there.engine, version, folder), "holdout", files=True)
