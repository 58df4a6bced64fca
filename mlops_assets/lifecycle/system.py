"""What a system hands to the lifecycle: one `ModelSystem`, and the plain values that pass between its functions and ours.

Belongs here: types. Does not belong here: what the lifecycle does with them, Dagster.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from mlops_assets.lifecycle.report import CLASSIFIER, METRICS, Direction, UnknownMetric, directions_of
from mlops_assets.settings import SettingsError, SystemConfig

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from mlops_assets.store import ObjectStore


@dataclass(frozen=True)
class CleanedTable:
    """The cleaned rows of one dataset version.

    `folder` holds Parquet files (downloaded from the store, read only); every row has a `split` of train, validation or holdout.
    `forgotten`: files of the version that had been deleted on request when it was made; other rows then, under the same manifest.
    `sha256`: of its rows as they are stored. Cleaning again under other rules makes other rows under the same manifest, too.
    """

    system: str
    dataset_version: str
    manifest_sha256: str
    folder: Path
    rows: int
    forgotten: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class Picture:
    """A PNG for people. At most 64 KiB go into an event, the rest is a link."""

    title: str
    png: bytes


@dataclass(frozen=True)
class TrainContext:
    """All that a training may depend on, and where it may write.

    Attributes:
        parameters: the sections of the configuration that the caller chose, with the overrides applied (plain JSON values).
        fingerprint: SHA-256 over data, variant, parameters, seed and code: checkpoints of another fingerprint are not resumed.
        workdir: private to the fingerprint and kept across kills: checkpoints go to `workdir/checkpoints`.
        log_metrics: called with (metrics, step), those of an evaluation as `validation_<name>`; goes to MLflow. Cheap. It raises only to
            give a training up (a pruned trial): let that pass.
        say: told now and then how far the training is, in a sentence for people.
        log_dir: TensorBoard folder, `<system>/<dataset version>/<model version>`.
        parent: folder of the champion's fp32 weights to fine-tune from, or None.
    """

    system: str
    variant: str
    table: CleanedTable
    config: SystemConfig
    parameters: Mapping[str, Any]
    seed: int
    fingerprint: str
    workdir: Path
    log_dir: Path
    log_metrics: Callable[[Mapping[str, float], int], None]
    threads: int
    parent: Path | None = None
    say: Callable[[str], None] = lambda _: None


@dataclass(frozen=True)
class Trained:
    """What `train` returns. `folder` holds the fp32 weights (safetensors), tokenizer and configuration."""

    folder: Path
    metrics: Mapping[str, float]
    parameters: Mapping[str, Any]
    pictures: Sequence[Picture] = ()
    resumed_from_step: int | None = None


class Predictor(Protocol):
    """The one inference path: used by evaluation, server, CLI and Python callers alike."""

    @property
    def labels(self) -> Sequence[str]: ...

    def predict(self, inputs: Sequence[Any], /) -> list[dict[str, Any]]:
        """One answer per input, in order. Raises ValueError for an input that breaks a limit."""


@dataclass(frozen=True)
class Evaluation:
    """What a bundle did on the holdout.

    Attributes:
        metrics: overall figures by name (loss, accuracy, precision, recall, f1, ece, ...).
        correct: per holdout row (in the table's order), whether the answer was right: for the paired test against the champion.
        slices: slice name -> metrics with `rows`.
        tables: title -> rows (worst errors, confusion matrix).
        support: metric -> holdout rows behind it, where these are not all: `recall_긍정` is of the positive ones. Classes that do not occur
            have 0, and no figure. The gate asks for a least number of each.
        trivial: what needs no model ("always 긍정") -> its metrics on the same rows; the gate refuses a model that is no better.
    """

    metrics: Mapping[str, float]
    rows: int
    holdout_sha256: str
    correct: Sequence[bool]
    slices: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    pictures: Sequence[Picture] = ()
    support: Mapping[str, int] = field(default_factory=dict)
    trivial: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelSystem:
    """Everything the model half needs to know of a system.

    Attributes:
        variants: names of its models, in the order in which they are trained; "" is one that needs no name.
        baseline: the variant that is trained in a minute, before the others, which must be better than it to be promoted.
        variant_parameters: (config, variant, overrides) -> all parameters of a training of that variant, plain JSON values: the overrides
            over those of the sections that they choose. Given its own result it returns the same. Raises SettingsError for a bad one.
        parameter_names: the overrides that `mlops train` and the launchpad may give -> their type.
        train: trains; must resume from `context.workdir` when a verified checkpoint is there.
        export: (trained, context, folder) writes the bundle's files (see `lifecycle/bundle.py`) into `folder`.
        evaluate: (bundle folder, table, threads) runs the bundle through `load_predictor` over the holdout rows.
        open_table: (store, engine, dataset version, folder) downloads and verifies the cleaned rows.
        asked_with: what `mlops predict` is given: texts, or the names of files.
        load_predictor: (bundle folder, threads) -> Predictor; imports nothing heavier than ONNX Runtime.
        loaded_by_name: the modules that a training of a variant imports by a name put together while it runs: what `train`'s own module
            imports is the variant's code version, and these, which cannot be seen there.
        aliases: other names of variants, as users know them.
        metrics: what a model may be chosen by. Which is the default, `promotion.metric` says.
        directions: of every figure that `evaluate` reports, whether more or less of it is better; `recall_*` names a family. What is not
            named decides nothing: the gate refuses it.
        from_champion: those variants that go on from the champion's weights; without a champion whose data theirs extends they are skipped.
    """

    name: str
    config_type: type[SystemConfig]
    train: Callable[[TrainContext], Trained]
    export: Callable[[Trained, TrainContext, Path], None]
    evaluate: Callable[[Path, CleanedTable, int], Evaluation]
    load_predictor: Callable[[Path, int], Predictor]
    open_table: Callable[[ObjectStore, Engine, str, Path], CleanedTable]
    variant_parameters: Callable[[Any, str, Mapping[str, Any]], Mapping[str, Any]]
    parameter_names: Mapping[str, type]
    variants: Sequence[str] = ("",)
    aliases: Mapping[str, str] = field(default_factory=dict)
    metrics: Sequence[str] = METRICS
    directions: Mapping[str, Direction] = field(default_factory=lambda: CLASSIFIER)
    baseline: str | None = None
    from_champion: Sequence[str] = ()
    asked_with: Literal["texts", "files"] = "texts"
    loaded_by_name: Callable[[str], Sequence[str]] = lambda variant: ()

    @property
    def searched(self) -> Sequence[str]:
        """The variants that a sweep tries: those that are trained anew, for longer than a minute."""
        return [variant for variant in self.variants if variant != self.baseline and variant not in self.from_champion]

    def direction_of(self, metric: str) -> Direction:
        """Whether more or less of `metric` is better. Raises UnknownMetric: the system does not say."""
        found = directions_of(self.directions, [metric])
        if not found:
            raise UnknownMetric(f"{self.name} does not say whether more or less {metric} is better: declare it in its `directions`")
        return found[metric]

    def choices(self, default: str) -> dict[str, Direction]:
        """What a model may be chosen by, each with its direction: `default`, which is `promotion.metric`, first. Raises UnknownMetric."""
        return {metric: self.direction_of(metric) for metric in dict.fromkeys((default.lower(), *self.metrics))}

    def variant_of(self, name: str) -> str:
        """The variant that users mean by `name`; what no variant is called is a model of the one without a name, where there is one.

        Raises:
            SettingsError: there is none; the message lists the choices.
        """
        variant = self.aliases.get(name, name)
        if variant not in self.variants and "" in self.variants:
            return ""
        if variant not in self.variants:
            raise SettingsError(f"지원되지 않는 모델 타입입니다.: {name} (choose one of {', '.join(self.variants)})")
        return variant
