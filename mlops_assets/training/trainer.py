"""One training run of one PyTorch model: `transformers.Trainer` with checkpoints that survive a kill, bucketing, early stopping and logs.

Belongs here: everything about a run that does not depend on what the model reads. Does not belong here: data and tokenizers (`text.py`),
architectures (`systems/*/model.py`), Dagster, MLflow.

A checkpoint is a folder `step-<n>` under `<workdir>/checkpoints`: weights and the best weights so far (safetensors), optimizer, schedule
and random state (torch, read back with `weights_only`), and `checkpoint.json`, which lists the SHA-256 of all of them. It is written aside,
synced and renamed: under its own name it is whole, and a disk that lied about that shows in the hashes.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mlops_assets import crash
from mlops_assets.settings import canonical
from mlops_assets.store import sha256_file

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn
    from torch.utils.tensorboard import SummaryWriter
    from transformers import TrainerCallback

log = logging.getLogger(__name__)

#: Rows that are sorted by length together. Long enough for batches of like length, short enough that a batch is still a random draw.
BUCKET_BATCHES = 50
KEEP_CHECKPOINTS = 2
BEAT_SECONDS = 5.0
LOGS_PER_EPOCH = 40
MANIFEST = "checkpoint.json"
TARGETS_REACHED = "targets_reached"
MAX_MINUTES = "max_minutes"
#: glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


@dataclass(frozen=True)
class Beat:
    """How far a run is. `seconds_left` is of all its steps: it may stop sooner."""

    step: int
    steps: int
    loss: float | None
    seconds_left: float

    def sentence(self) -> str:
        loss = "" if self.loss is None else f"loss {self.loss:.3f}, "
        left = f"{self.seconds_left / 60:.0f} min" if self.seconds_left >= 90 else f"{self.seconds_left:.0f} s"
        return f"step {self.step} of {self.steps}, {loss}at most about {left} left"


class UnsupportedOptimizer(ValueError):
    """`optimizer_type` names no optimizer that we have."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"지원되지 않는 옵티마이저 타입입니다.: {name} (optimizer_type {name!r} is not known; choose one of {', '.join(OPTIMIZERS)})"
        )


class Diverged(ArithmeticError):
    """The validation figure that decides was never a number: the training has no best moment, and nothing of it is worth keeping."""

    def __init__(self, monitor: str, steps: int, learning_rate: float) -> None:
        super().__init__(
            f"the training diverged: in {steps} steps the validation {monitor} was never a number. Nothing was kept; train with a lower "
            f"learning_rate than {learning_rate:g}."
        )


class Examples(Protocol):
    """A data set that hands out whole batches.

    Attributes:
        lengths: length of each row, for bucketing; None when all rows are of one size.
    """

    @property
    def lengths(self) -> np.ndarray | None: ...

    def __len__(self) -> int: ...

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """The model's keyword arguments for these rows, `labels` among them."""


@dataclass(frozen=True)
class Recipe:
    """How to train. The fields mean what they mean in `configs/<system>.yaml`."""

    epochs: float = 3
    min_steps: int = 0
    batch_size: int = 64
    learning_rate: float = 5e-4
    optimizer_type: str = "adamw"
    weight_decay: float = 0.01
    warmup_ratio: float = 0.06
    max_grad_norm: float = 1.0
    early_stopping_patience: int = 2
    evaluations_per_epoch: int = 2
    checkpoints_per_epoch: int = 4
    max_minutes: float | None = None
    bucketing: bool = True
    bf16: bool | None = None
    monitor: str = "accuracy"
    """The validation metric whose best moment is kept. `loss` is minimized, everything else maximized."""
    targets: Mapping[str, float] = field(default_factory=dict)
    """Validation metrics that, once all are reached at an evaluation, end the run with that moment's weights."""
    watched: Mapping[str, float] = field(default_factory=dict)
    """Validation metric -> the improvement on it that starts patience anew; empty: any on `monitor`."""
    evaluation_batch_size: int = 256
    log_every_step: bool = False


@dataclass(frozen=True)
class Fitted:
    """What a run did. The model that was passed in holds the best weights.

    Attributes:
        metrics: those of `measure` on validation at the best moment, with `train_minutes`.
        stopped: `finished`, `early_stopping`, `max_minutes` or `targets_reached`.
    """

    steps: int
    best_step: int
    metrics: Mapping[str, float]
    stopped: str
    resumed_from_step: int | None
    skipped_checkpoints: Sequence[str] = ()


OPTIMIZERS = ("adamw", "adam", "sgd", "adafactor")


def optimizer_of(recipe: Recipe) -> tuple[type[Any], dict[str, Any]]:
    """The optimizer's class and arguments. Raises UnsupportedOptimizer."""
    import torch
    from transformers import Adafactor

    if recipe.optimizer_type not in OPTIMIZERS:
        raise UnsupportedOptimizer(recipe.optimizer_type)
    known: dict[str, tuple[type[Any], dict[str, Any]]] = {
        "adamw": (torch.optim.AdamW, {"fused": True}),
        "adam": (torch.optim.Adam, {"fused": True}),
        "sgd": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "fused": True}),
        "adafactor": (Adafactor, {"scale_parameter": False, "relative_step": False}),
    }
    cls, extra = known[recipe.optimizer_type]
    return cls, {"lr": recipe.learning_rate, **extra}


def has_bf16() -> bool:
    """Whether bf16 is faster than fp32 here: a GPU that has it, or a processor with bf16 instructions (AMX, AVX512-BF16)."""
    import torch

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def gain(metric: str, value: float, than: float | None) -> float:
    """How much better `value` is than `than` (infinitely, when there is nothing to compare with); of `loss` less is better."""
    sign = -1.0 if metric == "loss" else 1.0
    return sign * value + math.inf if than is None else sign * (value - than)


# --- batches --------------------------------------------------------------------------------------------------------------------


class LengthBatches:
    """Batches of row numbers for one epoch: every row exactly once, in an order that depends on the seed and the epoch alone.

    With lengths, rows are shuffled, then sorted by length within runs of BUCKET_BATCHES batches, and the batches are shuffled. Under DDP
    each rank takes every world-th batch; the ranks get equally many, the few rows that are left wait for the next epoch.
    """

    def __init__(self, rows: int, batch_size: int, seed: int, lengths: np.ndarray | None = None, *, rank: int = 0, world: int = 1) -> None:
        self.rows, self.batch_size, self.seed, self.lengths = rows, batch_size, seed, lengths
        self.rank, self.world = rank, world
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return max(1, math.ceil(self.rows / self.batch_size) // self.world)

    def __iter__(self) -> Iterator[list[int]]:
        import numpy as np

        random = np.random.default_rng([self.seed, self.epoch])
        order = random.permutation(self.rows)
        if self.lengths is not None:
            run = self.batch_size * BUCKET_BATCHES
            parts = [order[i : i + run] for i in range(0, self.rows, run)]
            order = np.concatenate([part[np.argsort(self.lengths[part], kind="stable")] for part in parts])
        starts = random.permutation(np.arange(0, self.rows, self.batch_size))
        for start in starts[self.rank :: self.world][: len(self)]:
            yield order[start : start + self.batch_size].tolist()


class _Rows:
    """`Examples` as the data set of a torch DataLoader, which asks for whole batches through `__getitems__`."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitems__(self, rows: list[int]) -> dict[str, Tensor]:
        return self.examples.batch(rows)


def _as_is(batch: Any) -> Any:
    return batch


def predict(model: nn.Module, examples: Examples, batch_size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """The model's logits and the labels of every row, in order. Draws no random number, so it may happen amid training."""
    import numpy as np
    import torch

    lengths = examples.lengths if examples.lengths is not None else np.zeros(len(examples), np.int64)
    order = np.argsort(lengths, kind="stable")
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            batch = examples.batch(order[start : start + batch_size].tolist())
            labels.append(batch.pop("labels"))
            logits.append(model(**{name: tensor.to(device) for name, tensor in batch.items()})["logits"].float().cpu())
    model.train(was_training)
    back = np.argsort(order, kind="stable")
    return torch.cat(logits).numpy()[back], torch.cat(labels).numpy()[back]


# --- checkpoints ----------------------------------------------------------------------------------------------------------------


@dataclass
class Progress:
    """What early stopping and `max_minutes` remember across a kill."""

    best_step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    unimproved: int = 0
    seconds: float = 0.0
    stopped: str = "finished"
    watched: dict[str, float] = field(default_factory=dict)
    """The figures that the next evaluations must improve on."""


def checkpoint_step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _at_the_end(checkpoint: Path) -> bool:
    """Whether no step is left; resumed there, transformers makes one more when the last epoch is not a whole one."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return int(state["global_step"]) >= int(state["max_steps"])


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints under `folder`, newest first, whether they verify or not."""
    return sorted((p for p in folder.glob("step-*") if p.name.removeprefix("step-").isdigit()), key=checkpoint_step, reverse=True)


def fault_of(checkpoint: Path, fingerprint: str, name: str = MANIFEST) -> str | None:
    """What is wrong with a sealed folder, or None when every byte of it is as it was written, for this training."""
    try:
        manifest = json.loads((checkpoint / name).read_text(encoding="utf-8"))
        if manifest["fingerprint"] != fingerprint:
            return "belongs to another training (data, parameters, seed or code differ)"
        for path, sha256 in manifest["files"].items():
            if sha256_file(checkpoint / path) != sha256:
                return f"{path} has other bytes than were written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{name} cannot be read ({error})"
    return None


def newest_verified(folder: Path, fingerprint: str) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and a sentence for each newer one that did not (those are deleted)."""
    skipped: list[str] = []
    for checkpoint in checkpoints(folder):
        fault = fault_of(checkpoint, fingerprint)
        if fault is None:
            return checkpoint, skipped
        skipped.append(f"{checkpoint.name}: {fault}")
        log.warning("checkpoint %s is skipped: %s", checkpoint, fault)
        shutil.rmtree(checkpoint, ignore_errors=True)
    return None, skipped


def seal(folder: Path, content: Mapping[str, Any], name: str = MANIFEST) -> None:
    """Hash and sync every file of `folder` and write the manifest that `fault_of` checks."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = sha256_file(path)
    with (folder / name).open("w", encoding="utf-8") as file:
        file.write(canonical({**content, "files": files}))
        file.flush()
        os.fsync(file.fileno())


def publish(aside: Path, final: Path) -> None:
    """Give a sealed folder its name, durably."""
    if final.exists():
        shutil.rmtree(final)
    os.rename(aside, final)
    parent = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def close(workdir: Path) -> None:
    """Remove the checkpoints: the training is done and its weights are elsewhere."""
    shutil.rmtree(workdir / "checkpoints", ignore_errors=True)


# --- the run --------------------------------------------------------------------------------------------------------------------


def fit(
    model: nn.Module,
    train: Examples,
    validation: Examples,
    recipe: Recipe,
    measure: Callable[[np.ndarray, np.ndarray], dict[str, float]],
    *,
    workdir: Path,
    fingerprint: str,
    seed: int,
    threads: int,
    log_dir: Path | None = None,
    log_metrics: Callable[[Mapping[str, float], int], None] | None = None,
    beat: Callable[[Beat], None] | None = None,
) -> Fitted:
    """Train `model` in place and leave its best weights in it.

    Args:
        model: called with a batch's keyword arguments; gives a mapping with `logits`, and `loss` when `labels` are among them.
        measure: (logits, labels) of the validation rows -> metrics; `recipe.monitor` must be one of them.
        workdir: checkpoints live in its `checkpoints`; they stay until `close(workdir)`.
        beat: told at the first step, and then about every BEAT_SECONDS, how far the run is.

    Raises:
        UnsupportedOptimizer: the recipe names an optimizer that we do not have.
        ValueError: no rows to train on or to validate with.
        Diverged: `recipe.monitor` was never a number. The checkpoints are gone.
    """
    import torch

    if not len(train) or not len(validation):
        raise ValueError(
            f"{len(train)} rows to train on and {len(validation)} to validate with: both must be more than 0. Land more rows, or "
            "raise sampling_rate."
        )
    optimizer = optimizer_of(recipe)
    folder = workdir / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    for aside in folder.glob(".aside-*"):
        shutil.rmtree(aside, ignore_errors=True)
    checkpoint, skipped = newest_verified(folder, fingerprint)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    writer = _writer(log_dir, checkpoint_step(checkpoint) if checkpoint else None)
    keep_freed_memory(True)
    try:
        run = _trainer_class()(model, train, validation, recipe, measure, optimizer, folder, fingerprint, seed, log_metrics, writer)
        run.beat = beat
        steps = run.go(checkpoint)
        if run.best_weights is None:
            close(workdir)
            raise Diverged(recipe.monitor, steps, recipe.learning_rate)
        run.restore_best()
        progress = run.progress
    finally:
        keep_freed_memory(False)
        torch.set_num_threads(threads_before)
        if writer is not None:
            writer.close()
    return Fitted(
        steps=steps,
        best_step=progress.best_step,
        metrics={**progress.best, "train_minutes": progress.seconds / 60},
        stopped=progress.stopped,
        resumed_from_step=checkpoint_step(checkpoint) if checkpoint else None,
        skipped_checkpoints=skipped,
    )


def keep_freed_memory(keep: bool) -> None:
    """Let glibc keep what one step frees for the next one, or (False) give it back as it usually does.

    Usually every tensor above 128 KiB goes back to the kernel when it is freed and comes again as new zeroed pages: 65,000 page faults
    in each step of KcBERT-base. Other C libraries are left alone.
    """
    import ctypes

    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return
    libc.mallopt(_M_MMAP_MAX, 0 if keep else 65_536)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1 if keep else 131_072)
    if not keep:
        libc.malloc_trim(0)


def _writer(log_dir: Path | None, step: int | None) -> SummaryWriter | None:
    if log_dir is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    # What the killed run logged after its last checkpoint happens again: hide the first time.
    return SummaryWriter(str(log_dir), purge_step=step)


@functools.cache
def _trainer_class() -> type[Any]:
    """Our Trainer, defined on first use: loading definitions must not import torch."""
    import torch
    from safetensors.torch import load_file, save_file
    from torch.utils.data import DataLoader
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    class Run(Trainer):
        """`Trainer` with our batches, our checkpoints, and best weights that are kept in memory and in each checkpoint."""

        def __init__(
            self,
            model: nn.Module,
            train: Examples,
            validation: Examples,
            recipe: Recipe,
            measure: Callable[[np.ndarray, np.ndarray], dict[str, float]],
            optimizer: tuple[type[Any], dict[str, Any]],
            folder: Path,
            fingerprint: str,
            seed: int,
            log_metrics: Callable[[Mapping[str, float], int], None] | None,
            writer: SummaryWriter | None,
        ) -> None:
            self.examples, self.validation, self.recipe, self.measure = train, validation, recipe, measure
            self.folder, self.fingerprint = folder, fingerprint
            self.log_metrics, self.writer = log_metrics, writer
            self.beat: Callable[[Beat], None] | None = None
            self.progress = Progress()
            self.best_weights: dict[str, Tensor] | None = None
            self.resumed: Path | None = None
            self.sampler = LengthBatches(len(train), recipe.batch_size, seed, train.lengths if recipe.bucketing else None)
            # Few rows: more epochs, with as many evaluations and checkpoints over the whole run as there would have been.
            stretch = max(1.0, recipe.min_steps / (recipe.epochs * len(self.sampler)))
            steps = round(stretch * len(self.sampler))
            arguments = TrainingArguments(
                output_dir=str(folder),
                num_train_epochs=recipe.epochs * stretch,
                per_device_train_batch_size=recipe.batch_size,
                learning_rate=recipe.learning_rate,
                weight_decay=recipe.weight_decay,
                warmup_steps=recipe.warmup_ratio,
                max_grad_norm=recipe.max_grad_norm,
                lr_scheduler_type="linear",
                bf16=has_bf16() if recipe.bf16 is None else recipe.bf16,
                use_cpu=not torch.cuda.is_available(),
                seed=seed,
                eval_strategy="steps",
                eval_steps=max(1, steps // recipe.evaluations_per_epoch),
                save_strategy="steps",
                save_steps=max(1, steps // recipe.checkpoints_per_epoch),
                logging_steps=1 if recipe.log_every_step else max(1, steps // LOGS_PER_EPOCH),
                logging_nan_inf_filter=False,
                report_to="none",
                disable_tqdm=True,
                remove_unused_columns=False,
                dataloader_pin_memory=torch.cuda.is_available(),
            )
            super().__init__(
                model=model,
                args=arguments,
                train_dataset=_Rows(train),
                eval_dataset=_Rows(validation),
                optimizer_cls_and_kwargs=optimizer,
                callbacks=[_watcher(self)],
            )
            self.remove_callback(PrinterCallback)
            self.sampler.rank, self.sampler.world = self.args.process_index, self.args.world_size

        def go(self, checkpoint: Path | None) -> int:
            """Train to the end, from the checkpoint where there is one; the number of steps."""
            if checkpoint is not None:
                self._load_from_checkpoint(str(checkpoint))
                if self.progress.stopped in (TARGETS_REACHED, MAX_MINUTES) or _at_the_end(checkpoint):
                    return checkpoint_step(checkpoint)
                if self.progress.unimproved >= self.recipe.early_stopping_patience:
                    self.progress.stopped = "early_stopping"  # killed after it had decided to stop
                    return checkpoint_step(checkpoint)
            return int(self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None).global_step)

        # Batches: a plain loader, because the sampler already knows rank and epoch.

        def get_train_dataloader(self) -> DataLoader[Any]:
            rows: Any = _Rows(self.examples)
            return DataLoader(rows, batch_sampler=self.sampler, collate_fn=_as_is, pin_memory=self.args.dataloader_pin_memory)

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
            outputs = model(**inputs)
            return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

        def floating_point_ops(self, inputs: Any) -> int:
            return 0  # nobody reads it, and counting walks every parameter each step

        # Validation.

        def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
            metrics = self.measure(*predict(self._net(), self.validation, self.recipe.evaluation_batch_size))
            self._remember(metrics)
            named = {f"validation_{name}": value for name, value in metrics.items()}
            self.log(dict(named))
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, named)
            return named

        def _remember(self, metrics: dict[str, float]) -> None:
            """Keep the weights when they are the best so far or reach the targets; count towards early stopping."""
            recipe, progress = self.recipe, self.progress
            # NaN compares false: it is never an improvement.
            improved = gain(recipe.monitor, metrics[recipe.monitor], progress.best.get(recipe.monitor)) > 0
            reached = bool(recipe.targets) and all(gain(name, metrics[name], target) >= 0 for name, target in recipe.targets.items())
            if improved or reached:
                progress.best_step, progress.best = self.state.global_step, dict(metrics)
                self.best_weights = {key: tensor.detach().cpu().clone() for key, tensor in self._weights().items()}
            if reached:
                progress.stopped = TARGETS_REACHED
            if recipe.watched:
                improved = any(gain(name, metrics[name], progress.watched.get(name)) >= delta for name, delta in recipe.watched.items())
            if improved:
                progress.watched = {name: metrics[name] for name in recipe.watched}
            progress.unimproved = 0 if improved else progress.unimproved + 1

        def restore_best(self) -> None:
            """Put the best weights into the model and take the autocast wrapper off its forward."""
            plain = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
            plain.load_state_dict(self.best_weights)
            plain.to("cpu").eval()

        def _net(self) -> nn.Module:
            assert self.model is not None
            return self.model

        def _weights(self) -> dict[str, Tensor]:
            return dict(self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=True).state_dict())

        # Checkpoints.

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            step = self.state.global_step
            aside, final = self.folder / f".aside-{step}", self.folder / f"step-{step}"
            aside.mkdir(parents=True, exist_ok=True)
            self._save_rng_state(str(aside))
            if self.args.should_save:
                save_file({key: tensor.contiguous() for key, tensor in self._weights().items()}, str(aside / "model.safetensors"))
                self._save_best(aside / "best.safetensors")
                self._save_optimizer_and_scheduler(str(aside))
                self.state.save_to_json(str(aside / "trainer_state.json"))
                self._clock()
                (aside / "progress.json").write_text(canonical(asdict(self.progress)), encoding="utf-8")
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                seal(aside, {"format": 1, "fingerprint": self.fingerprint, "step": step})
                crash.reach(f"trainer.aside_{step}")
                publish(aside, final)
                for old in checkpoints(self.folder)[KEEP_CHECKPOINTS:]:
                    shutil.rmtree(old, ignore_errors=True)
                crash.reach(f"trainer.saved_{step}")

        def _save_best(self, target: Path) -> None:
            """The best weights; a link to the last checkpoint's copy when they have not changed since."""
            if self.best_weights is None:
                return
            for earlier in checkpoints(self.folder)[:1]:
                if checkpoint_step(earlier) >= self.progress.best_step and (earlier / target.name).exists():
                    os.link(earlier / target.name, target)
                    return
            save_file(self.best_weights, str(target))

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            folder = Path(resume_from_checkpoint)
            self._net().load_state_dict(load_file(folder / "model.safetensors"))
            self.progress = Progress(**json.loads((folder / "progress.json").read_text(encoding="utf-8")))
            if (folder / "best.safetensors").exists():
                self.best_weights = load_file(folder / "best.safetensors")

        # Time.

        def start_clock(self) -> None:
            self._begun = time.monotonic()
            self._first_step, self._next_beat = self.state.global_step, 0.0
            self._started = self._begun - self.progress.seconds

        def tell(self) -> None:
            """Say how far the run is, when it is time."""
            now, step, steps = time.monotonic(), self.state.global_step, self.state.max_steps
            if self.beat is None or now < self._next_beat or not self.state.is_world_process_zero:
                return
            self._next_beat = now + BEAT_SECONDS
            left = (now - self._begun) / max(1, step - self._first_step) * (steps - step)
            if self.recipe.max_minutes is not None:
                left = min(left, max(0.0, 60 * self.recipe.max_minutes - self._clock()))
            losses = (float(entry["loss"]) for entry in reversed(self.state.log_history) if "loss" in entry)
            self.beat(Beat(step, steps, next(losses, None), left))

        def _clock(self) -> float:
            self.progress.seconds = time.monotonic() - self._started
            return self.progress.seconds

        def out_of_time(self) -> bool:
            return self.recipe.max_minutes is not None and self._clock() > 60 * self.recipe.max_minutes

    return Run


def _watcher(run: Any) -> TrainerCallback:
    """The callback that steers `run`: epochs, early stopping, time, logs."""
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            run.start_clock()

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            run.sampler.set_epoch(state.global_step // len(run.sampler))

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
            crash.reach(f"trainer.step_{state.global_step}")
            if not control.should_training_stop and run.out_of_time():
                run.progress.stopped = MAX_MINUTES
                control.should_training_stop = True
            control.should_evaluate = control.should_evaluate or control.should_training_stop
            run.tell()
            return control

        def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
            if run.progress.stopped == TARGETS_REACHED:
                control.should_training_stop = True
            if not control.should_training_stop and run.progress.unimproved >= run.recipe.early_stopping_patience:
                run.progress.stopped = "early_stopping"
                control.should_training_stop = True
            return control

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            run._clock()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            values = {k: float(v) for k, v in (logs or {}).items() if k not in ("total_flos", "epoch")}
            if not state.is_world_process_zero or not values:
                return
            if run.writer is not None:
                for name, value in values.items():
                    run.writer.add_scalar(name, value, state.global_step)
            if run.log_metrics is not None:
                run.log_metrics(values, state.global_step)

    return Watcher()
