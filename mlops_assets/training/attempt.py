"""A training as the lifecycle asks for it: from a `TrainContext` to a `Trained` folder that is whole or not there.

Belongs here: what is the same whatever is trained. Does not belong here: the run itself (`trainer.py`), what a system's weights are.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_assets.lifecycle.system import TrainContext, Trained
from mlops_assets.training import trainer

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

#: Seals a finished training's folder.
TRAINED = "trained.json"
#: How far a training is, in its folder; older than this it is of one that was killed.
NOW, ALIVE_SECONDS = "now.json", 120.0
#: A run's log hears of it so often.
SAY_SECONDS = 30.0


def fit(
    context: TrainContext,
    model: nn.Module,
    train: trainer.Examples,
    validation: trainer.Examples,
    recipe: trainer.Recipe,
    measure: Callable[[np.ndarray, np.ndarray], dict[str, float]] | None = None,
) -> tuple[trainer.Fitted, dict[str, float]]:
    """`trainer.fit` in the context, and its figures by the names that an attempt has them under.

    Args:
        measure: default: those of a classifier of exclusive classes.
    """
    from mlops_assets.training.metrics import classification, softmax

    fitted = trainer.fit(
        model,
        train,
        validation,
        recipe,
        measure or (lambda logits, labels: classification(softmax(logits), labels)),
        workdir=context.workdir,
        fingerprint=context.fingerprint,
        seed=context.seed,
        threads=context.threads,
        log_dir=context.log_dir,
        log_metrics=context.log_metrics,
        beat=_heart(context),
    )
    figures = {f"validation_{name}" if name != "train_minutes" else name: value for name, value in fitted.metrics.items()}
    return fitted, figures | {"train_rows": float(len(train)), "steps": float(fitted.steps), "best_step": float(fitted.best_step)}


def _heart(context: TrainContext) -> Callable[[trainer.Beat], None]:
    """Tells the run's log now and then how far the training is, and NOW in its folder all the time."""
    said = 0.0

    def beat(found: trainer.Beat) -> None:
        nonlocal said
        if (now := time.monotonic()) - said > SAY_SECONDS:
            said = now
            context.say(found.sentence())
        of = {"system": context.system, "variant": context.variant, "dataset_version": context.table.dataset_version}
        aside = context.workdir / f".aside-{NOW}"
        aside.write_text(json.dumps({**of, "step": found.step, "said": found.sentence()}), encoding="utf-8")
        aside.replace(context.workdir / NOW)

    return beat


def trainings(home: Path, system: str, dataset_version: str) -> list[dict[str, Any]]:
    """How far each training over the version is that goes on on this machine: `variant`, `step`, `said`."""
    found = []
    for path in (home / "training").glob(f"*/{NOW}"):
        with contextlib.suppress(OSError, ValueError):  # it may end at this moment
            if time.time() - path.stat().st_mtime < ALIVE_SECONDS:
                found.append(json.loads(path.read_text(encoding="utf-8")))
    return [one for one in found if (one.get("system"), one.get("dataset_version")) == (system, dataset_version)]


def keep(
    context: TrainContext, fitted: trainer.Fitted, metrics: Mapping[str, float], flat: Mapping[str, Any], write: Callable[[Path], None]
) -> Trained:
    """What `write` puts into a folder as `workdir/trained`, sealed; the checkpoints go."""
    (context.workdir / NOW).unlink(missing_ok=True)
    aside = context.workdir / ".aside-trained"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    write(aside)
    summary = {"metrics": dict(metrics), "stopped": fitted.stopped, "resumed_from_step": fitted.resumed_from_step}
    trainer.seal(aside, {"format": 1, "fingerprint": context.fingerprint, "variant": context.variant, **summary}, TRAINED)
    trainer.publish(aside, context.workdir / "trained")
    trainer.close(context.workdir)
    return Trained(context.workdir / "trained", metrics, flat, resumed_from_step=fitted.resumed_from_step)


def log_curves(context: TrainContext, labels: Sequence[str], probabilities: np.ndarray, truth: np.ndarray, step: int) -> None:
    """The precision-recall curve of every label into TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(context.log_dir)) as writer:
        for label, scores, true in zip(labels, probabilities.T, truth.T, strict=True):
            writer.add_pr_curve(f"validation/{label}", true > 0, scores, step)


def finished(context: TrainContext, flat: Mapping[str, Any]) -> Trained | None:
    """What an earlier, killed run of this very training had finished."""
    folder = context.workdir / "trained"
    if not folder.is_dir() or trainer.fault_of(folder, context.fingerprint, TRAINED) is not None:
        return None
    summary = json.loads((folder / TRAINED).read_text(encoding="utf-8"))
    context.log_metrics(summary["metrics"], int(summary["metrics"]["steps"]))
    return Trained(folder, summary["metrics"], flat, resumed_from_step=summary["resumed_from_step"])
