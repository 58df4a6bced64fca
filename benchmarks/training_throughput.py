"""Examples/s of training, ours (Trainer with checkpoints, logs and early stopping) against a plain PyTorch loop over the same batches.

    python benchmarks/training_throughput.py [--quick]

MLOPS_REAL_DATA gives real reviews; without it they are made up with NSMC's lengths. Model, optimizer, schedule, clipping, precision and
order of batches are the same on both sides, and that both end with the same weights is asserted first. Timed from the 10th batch to
the last of each run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from _common import interleave, pressure, report
from _kcbert import reviews

from mlops_assets.settings import REPOSITORY, load_config, load_settings
from mlops_assets.systems.sentiment.config import SentimentConfig
from mlops_assets.training import bert as kcbert
from mlops_assets.training import metrics, text, trainer

WARM = 10


class Clocked:
    """Examples that note when each batch is asked for."""

    def __init__(self, examples: text.TextExamples) -> None:
        self.examples, self.lengths = examples, examples.lengths
        self.moments: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        self.moments.append((time.perf_counter(), len(rows)))
        return self.examples.batch(rows)

    def rate(self) -> float:
        """Examples/s between batch WARM and the last."""
        timed = self.moments[WARM:]
        return sum(rows for _, rows in timed[:-1]) / (timed[-1][0] - timed[0][0])


def plain(net: torch.nn.Module, examples: Clocked, recipe: trainer.Recipe, seed: int) -> torch.nn.Module:
    """The loop that one writes by hand."""
    from transformers import get_linear_schedule_with_warmup

    torch.manual_seed(seed)
    sampler = trainer.LengthBatches(len(examples), recipe.batch_size, seed, examples.lengths)
    no_decay = [p for name, p in net.named_parameters() if name.endswith(("bias", "guess.2.weight")) or "norm" in name.lower()]
    decay = [p for p in net.parameters() if not any(p is other for other in no_decay)]
    groups = [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": no_decay, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)
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


def ours(net: torch.nn.Module, examples: Clocked, validation: Any, recipe: trainer.Recipe, seed: int, threads: int) -> torch.nn.Module:
    with tempfile.TemporaryDirectory() as folder:
        trainer.fit(
            net,
            examples,
            validation,
            recipe,
            lambda logits, labels: metrics.classification(metrics.softmax(logits), labels),
            workdir=Path(folder),
            fingerprint="benchmark",
            seed=seed,
            threads=threads,
            log_dir=Path(folder) / "logs",
            log_metrics=lambda values, step: None,
        )
    return net


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="within a minute")
    arguments = parser.parse_args()
    load = pressure()
    settings = load_settings()
    torch.set_num_threads(settings.threads)
    section = load_config(SentimentConfig, "sentiment", REPOSITORY / "configs").model
    steps, rounds = (50, 2) if arguments.quick else (250, 5)
    count = steps * section.training.batch_size
    texts = reviews(count)
    tokenizer = text.learn_tokenizer(texts, section.vocabulary_size)
    examples = text.TextExamples(tokenizer, texts, [len(t) % 2 for t in texts], 48)
    validation = text.TextExamples(tokenizer, texts[:64], [len(t) % 2 for t in texts[:64]], 48)
    recipe = trainer.Recipe(
        epochs=1,
        batch_size=section.training.batch_size,
        learning_rate=section.training.learning_rate,
        weight_decay=section.training.weight_decay,
        evaluations_per_epoch=1,
        checkpoints_per_epoch=1,
        bf16=trainer.has_bf16(),
        early_stopping_patience=99,
    )

    def network(chosen: Any) -> torch.nn.Module:
        torch.manual_seed(0)
        return kcbert.trainable(kcbert.from_scratch(chosen, ("부정", "긍정"), tokenizer, 48), chosen, tokenizer)

    # Without dropout no random number is drawn, so both sides must end with the same weights.
    still = section.model_copy(update={"dropout": 0.0, "word_dropout": 0.0, "guess_weight": 0.0})
    few = text.TextExamples(tokenizer, texts[:960], [len(t) % 2 for t in texts[:960]], 48)
    first = ours(network(still), Clocked(few), validation, recipe, 0, settings.threads)
    second = plain(network(still), Clocked(few), recipe, 0)
    difference = max(float((a - b).abs().max()) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))
    assert difference < 1e-3, f"the two sides do not train alike: weights differ by {difference:.2g}"

    def ours_rate() -> float:
        clocked = Clocked(examples)
        ours(network(section), clocked, validation, recipe, 0, settings.threads)
        return clocked.rate()

    def plain_rate() -> float:
        clocked = Clocked(examples)
        plain(network(section), clocked, recipe, 0)
        return clocked.rate()

    mine, theirs = interleave(ours_rate, plain_rate, rounds)
    report(
        "training examples/s against a plain PyTorch loop", mine, theirs, 0.90, load=load, steps=steps, weights_differ=round(difference, 7)
    )


if __name__ == "__main__":
    main()
