"""A model that trains in a second, and a program to kill that trains it: `python -m mlops_assets_tests.training.tiny WORKDIR [EPOCHS]`."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlops_assets.training import metrics, trainer

if TYPE_CHECKING:
    from torch import Tensor, nn

ROWS, BATCH = 96, 8
STEPS_PER_EPOCH = ROWS // BATCH
RECIPE = trainer.Recipe(
    epochs=3,
    batch_size=BATCH,
    learning_rate=0.05,
    warmup_ratio=0.1,
    early_stopping_patience=100,
    evaluations_per_epoch=2,
    checkpoints_per_epoch=3,
    bf16=False,
)


class Numbers:
    """Rows of 1 to 9 numbers; the label says whether their sum is positive."""

    def __init__(self, rows: int = ROWS, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.lengths = random.integers(1, 10, rows)
        self.values = np.where(np.arange(9) < self.lengths[:, None], random.normal(size=(rows, 9)), 0.0).astype(np.float32)
        self.labels = (self.values.sum(axis=1) > 0).astype(np.int64)
        self.asked: list[list[int]] = []

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        import torch

        self.asked.append(list(rows))
        return {"values": torch.from_numpy(self.values[rows]), "labels": torch.from_numpy(self.labels[rows])}


@functools.cache
def _network() -> type[Any]:
    import torch
    from torch import nn

    class Network(nn.Module):
        """Dropout makes the weights depend on the random state: a resumed run that does not restore it ends elsewhere."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(9, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2))

        def forward(self, values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            logits = self.layers(values)
            return {"logits": logits} if labels is None else {"logits": logits, "loss": torch.nn.functional.cross_entropy(logits, labels)}

    return Network


def network(seed: int = 0) -> nn.Module:
    import torch

    torch.manual_seed(seed)
    made: nn.Module = _network()()
    return made


def measure(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    return metrics.classification(metrics.softmax(logits), labels)


def fit(
    workdir: Path,
    model: nn.Module | None = None,
    *,
    recipe: trainer.Recipe = RECIPE,
    train: Numbers | None = None,
    fingerprint: str = "tiny",
    measured: Callable[[np.ndarray, np.ndarray], dict[str, float]] = measure,
    log_dir: Path | None = None,
    log_metrics: Callable[[Mapping[str, float], int], None] | None = None,
    seed: int = 0,
    beat: Callable[[trainer.Beat], None] | None = None,
) -> trainer.Fitted:
    return trainer.fit(
        model if model is not None else network(seed),
        train if train is not None else Numbers(),
        Numbers(64, seed=1),
        recipe,
        measured,
        workdir=workdir,
        fingerprint=fingerprint,
        seed=seed,
        threads=1,
        log_dir=log_dir,
        log_metrics=log_metrics,
        beat=beat,
    )


if __name__ == "__main__":
    epochs = float(sys.argv[2]) if len(sys.argv) > 2 else RECIPE.epochs
    print(json.dumps({"steps": fit(Path(sys.argv[1]), recipe=replace(RECIPE, epochs=epochs)).steps}))
