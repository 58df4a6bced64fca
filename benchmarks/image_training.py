"""Photos/s of training, ours (Trainer with checkpoints, logs and early stopping) against a plain PyTorch loop over the same batches.

    python benchmarks/image_training.py [--quick]

The model is tires' resnet18 on photos of 128 pixels in the configured precision. Augmentation, optimizer, schedule, clipping and order of
batches are the same on both sides; that both end with the same weights (photos as they are) is asserted first. Goal: at most 10 % more.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import interleave, pressure, report

from mlops_assets.settings import load_settings
from mlops_assets.systems.tires import models
from mlops_assets.training import image, metrics, trainer

SIZE, BATCH, WARM = 128, 32, 3


class Clocked(image.ImageExamples):
    """Examples that note when each batch is asked for."""

    def __init__(self, cache: image.ImageCache) -> None:
        super().__init__(cache)
        self.moments: list[float] = []

    def batch(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        self.moments.append(time.perf_counter())
        return super().batch(rows)

    def rate(self) -> float:
        """Photos/s between batch WARM and the last."""
        timed = self.moments[WARM:]
        return BATCH * (len(timed) - 1) / (timed[-1] - timed[0])


def photos(count: int) -> image.ImageCache:
    """Noise of the real size: what is on them changes no time."""
    random = np.random.default_rng(0)
    names = [str(i) for i in range(count)]
    rows = image.Rows(names, np.arange(count) % 2, names, names)
    return image.ImageCache(rows, random.integers(0, 256, (count, SIZE, SIZE, 3), np.uint8))


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return image.classifier(models.build("resnet18", 2))


def plain(net: torch.nn.Module, examples: Clocked, recipe: trainer.Recipe) -> torch.nn.Module:
    """The loop that one writes by hand."""
    from transformers import get_linear_schedule_with_warmup

    torch.manual_seed(0)
    sampler = trainer.LengthBatches(len(examples), recipe.batch_size, 0, None)
    optimizer = torch.optim.Adam(net.parameters(), lr=recipe.learning_rate, fused=True)
    steps = len(sampler)
    schedule = get_linear_schedule_with_warmup(optimizer, -(-int(steps * recipe.warmup_ratio * 1000) // 1000), steps)
    net.train()
    for rows in sampler:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bool(recipe.bf16)):
            loss = net(**examples.batch(rows))["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), recipe.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return net.eval()


def ours(net: torch.nn.Module, examples: Clocked, validation: Any, recipe: trainer.Recipe, threads: int) -> torch.nn.Module:
    with tempfile.TemporaryDirectory() as folder:
        trainer.fit(
            net,
            examples,
            validation,
            recipe,
            lambda logits, labels: metrics.classification(metrics.softmax(logits), labels),
            workdir=Path(folder),
            fingerprint="benchmark",
            seed=0,
            threads=threads,
            log_dir=Path(folder) / "logs",
            log_metrics=lambda values, step: None,
        )
    return net


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="within a minute")
    quick = parser.parse_args().quick
    load, threads = pressure(), load_settings().threads
    torch.set_num_threads(threads)
    steps, rounds = (8, 2) if quick else (25, 5)
    cache, few = photos(steps * BATCH), photos(3 * BATCH)
    recipe = trainer.Recipe(
        epochs=1,
        batch_size=BATCH,
        learning_rate=1e-3,
        optimizer_type="adam",
        weight_decay=0.0,
        evaluations_per_epoch=1,
        checkpoints_per_epoch=1,
        early_stopping_patience=99,
        bucketing=False,
        bf16=trainer.has_bf16(),
        log_every_step=True,
    )
    validation = image.ImageExamples(photos(BATCH))
    # Chance out of it, which the two sides draw in another order: both must then end with the same weights.
    augment, image.augment = image.augment, lambda images, how: images.float()
    pairs = zip(
        ours(network(), Clocked(few), validation, recipe, threads).state_dict().values(),
        plain(network(), Clocked(few), recipe).state_dict().values(),
        strict=True,
    )
    image.augment = augment
    difference = max(float((a.float() - b.float()).abs().max()) for a, b in pairs)
    assert difference < 1e-3, f"the two sides do not train alike: weights differ by {difference:.2g}"

    def ours_rate() -> float:
        examples = Clocked(cache)
        ours(network(), examples, validation, recipe, threads)
        return examples.rate()

    def plain_rate() -> float:
        examples = Clocked(cache)
        plain(network(), examples, recipe)
        return examples.rate()

    mine, theirs = interleave(ours_rate, plain_rate, rounds)
    report("training photos/s against a plain PyTorch loop", mine, theirs, 0.90, load=load, unit="photos/s", weights_differ=difference)


if __name__ == "__main__":
    main()
