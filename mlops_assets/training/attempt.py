"""A training as the lifecycle asks for it: from a `TrainContext` to a `Trained` folder that is whole or not there.

Belongs here: what is the same whatever is trained. Does not belong here: the run itself (`trainer.py`), what a system's weights are.
"""

from __future__ import annotations

import json
import shutil
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
    )
    figures = {f"validation_{name}" if name != "train_minutes" else name: value for name, value in fitted.metrics.items()}
    return fitted, figures | {"train_rows": float(len(train)), "steps": float(fitted.steps), "best_step": float(fitted.best_step)}


def keep(
    context: TrainContext, fitted: trainer.Fitted, metrics: Mapping[str, float], flat: Mapping[str, Any], write: Callable[[Path], None]
) -> Trained:
    """What `write` puts into a folder as `workdir/trained`, sealed; the checkpoints go."""
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
