"""Examples/s of fine-tuning a KcBERT-base-sized model (random weights) on reviews of NSMC's lengths: ours against transformers' Trainer.

    python benchmarks/finetune.py [--quick]

Peers, in the same run on the same model, texts and batch size: `Trainer` as its documentation shows it (padded to 128, fp32; goal 10),
and `Trainer` tuned (grouped by length, padded by the batch, bf16, fused AdamW, freed memory kept as ours does; goal 1.0, the headline).
MLOPS_REAL_DATA gives real reviews and the real vocabulary. That padding changes no answer, and bf16 hardly any, is asserted first. Each
side first sees every length once: a processor's kernels are made for a shape when it first comes, which a fine-tuning of thousands of
steps does once, and 16 steps in each.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from _common import pressure, report
from _kcbert import reviews, vocabulary

from mlops_assets.settings import load_settings
from mlops_assets.training import bert as kcbert
from mlops_assets.training import metrics, text, trainer
from mlops_assets.training.config import BertSection

BATCH = 32
LENGTH = 128


def same_answers(net: torch.nn.Module, examples: text.TextExamples) -> float:
    """Asserts that a batch padded to its longest and one padded to LENGTH, in bf16 and in fp32, are answered alike."""
    net.eval()
    batch = examples.batch(range(8))
    del batch["labels"]
    wide = {name: torch.nn.functional.pad(tensor, (0, LENGTH - tensor.shape[1])) for name, tensor in batch.items()}
    with torch.inference_mode():
        narrow, padded = net(**batch).logits, net(**wide).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = net(**batch).logits.float()
    assert (narrow - padded).abs().max() < 1e-4, "padding changes the answers"
    assert (narrow - low).abs().max() < 0.05, "bf16 changes the answers"
    return float((narrow - low).abs().max())


class Stamps:
    """The rate of the steps that follow the first `warm` ones, from the moments at which they end."""

    def __init__(self, warm: int) -> None:
        self.warm = warm
        self.ends: list[float] = []
        self.rows: list[int] = []

    def rate(self) -> float:
        return sum(self.rows[self.warm + 1 : len(self.ends)]) / (self.ends[-1] - self.ends[self.warm])


def peer(net: torch.nn.Module, rows: list[list[int]], steps: int, *, tuned: bool) -> float:
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    stamps = Stamps(steps if tuned else 0)  # as documented there is one shape: its first step is enough

    class Stamp(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            stamps.ends.append(time.perf_counter())

    data = [{"input_ids": ids, "labels": len(ids) % 2, "length": len(ids)} for ids in rows[: steps * BATCH]]

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """transformers' DataCollatorWithPadding: to the longest, in multiples of 8; as documented: to LENGTH."""
        stamps.rows.append(len(batch))
        width = -(-max(len(row["input_ids"]) for row in batch) // 8) * 8 if tuned else LENGTH
        ids = torch.tensor([row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in batch])
        return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": torch.tensor([row["labels"] for row in batch])}

    chosen: dict[str, Any] = (
        {"bf16": trainer.has_bf16(), "train_sampling_strategy": "group_by_length", "optim": "adamw_torch_fused"} if tuned else {}
    )
    with tempfile.TemporaryDirectory() as folder:
        run = Trainer(
            model=net,
            args=TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=BATCH,
                max_steps=2 * steps if tuned else steps,
                save_strategy="no",
                report_to="none",
                use_cpu=True,
                disable_tqdm=True,
                remove_unused_columns=False,
                dataloader_pin_memory=False,
                **chosen,
            ),
            train_dataset=data,  # type: ignore[arg-type]
            data_collator=collate,
            callbacks=[Stamp()],
        )
        run.remove_callback(PrinterCallback)
        trainer.keep_freed_memory(tuned)
        run.train()
        trainer.keep_freed_memory(False)
    return stamps.rate()


def ours(net: torch.nn.Module, examples: text.TextExamples, section: BertSection, tokenizer: Any, threads: int) -> float:
    stamps = Stamps(len(examples) // BATCH)

    class Stamped:
        lengths = examples.lengths

        def __len__(self) -> int:
            return len(examples)

        def batch(self, rows: Any) -> dict[str, torch.Tensor]:
            stamps.rows.append(len(rows))
            return examples.batch(rows)

    wrapped = kcbert.trainable(net, section, tokenizer)
    few = text.TextExamples(tokenizer, ["좋다"], [1], LENGTH)
    recipe = trainer.Recipe(epochs=2, batch_size=BATCH, learning_rate=5e-5, evaluations_per_epoch=1, checkpoints_per_epoch=1)
    # Zeroing the gradients ends a step on both sides; the last one is followed by validation and a checkpoint, which are not timed.
    zero = wrapped.zero_grad
    wrapped.zero_grad = lambda *given, **named: (zero(*given, **named), stamps.ends.append(time.perf_counter()))[0]  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        trainer.fit(
            wrapped,
            Stamped(),
            few,
            recipe,
            lambda logits, labels: metrics.classification(metrics.softmax(logits), labels),
            workdir=Path(folder),
            fingerprint="benchmark",
            seed=0,
            threads=threads,
        )
    stamps.ends = stamps.ends[1:]  # the first is before the first step
    return stamps.rate()


def main() -> None:
    from transformers import BertConfig, BertForSequenceClassification

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="within a minute on a quiet machine")
    arguments = parser.parse_args()
    load = pressure()
    threads = load_settings().threads
    torch.set_num_threads(threads)
    steps, documented_steps, rounds = (6, 2, 1) if arguments.quick else (16, 3, 2)
    tokenizer = text.wordpiece(vocabulary(), lowercase=False)
    texts = reviews(max(steps, documented_steps) * BATCH)
    examples = text.TextExamples(tokenizer, texts, [len(t) % 2 for t in texts], LENGTH)
    rows = list(text.encode(tokenizer, texts, LENGTH))
    torch.manual_seed(0)
    base = BertForSequenceClassification(BertConfig(vocab_size=30_000, max_position_embeddings=300, num_labels=2))
    difference = same_answers(base, examples)
    section = BertSection(word_dropout=0.0, guess_weight=0.0)
    mine, tuned, documented = [], [], []
    for _ in range(rounds):
        mine.append(ours(copy.deepcopy(base), examples, section, tokenizer, threads))
        tuned.append(peer(copy.deepcopy(base), rows, steps, tuned=True))
        documented.append(peer(copy.deepcopy(base), rows, documented_steps, tuned=False))
    best, plain = statistics.median(mine), statistics.median(documented)
    report(
        "fine-tuning examples/s, KcBERT-base, against Trainer tuned",
        best,
        statistics.median(tuned),
        1.0,
        load=load,
        documented=round(plain, 3),
        ratio_documented=round(best / plain, 2),
        goal_documented=10.0,
        mean_tokens=round(float(examples.lengths.mean()), 1),
        bf16_difference=round(difference, 4),
    )


if __name__ == "__main__":
    main()
