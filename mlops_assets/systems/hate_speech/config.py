"""The sections of `configs/hate_speech.yaml` and what each setting means. No behaviour."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field, field_validator, model_validator

from mlops_assets.ingest.cleaning import CleaningRules
from mlops_assets.ingest.comment_source import CommentsSection
from mlops_assets.kinds.text.config import LINEAR, LinearSection
from mlops_assets.settings import Strict, SystemConfig
from mlops_assets.training.config import BertSection, TextTrainingSection

#: The ways of training a network.
NETWORKS: Final = ("anew", "from_champion")
#: Each has its own assets, and the gate chooses on the same holdout. The baseline comes first.
VARIANTS: Final = (LINEAR, *NETWORKS)
#: Joins labels where one value has to hold them all; no label may contain it.
JOINT: Final = ", "


class TableSection(Strict):
    """Tab-separated files of labelled comments. The number of a row's line is its id, and so one version has one file of each table."""

    files: tuple[str, ...]
    """Glob patterns (file name only)."""
    text: str
    """The column with the comment."""
    personal: str | None = None
    """A column of 0 and 1 that is kept apart: nothing learns it."""
    holdout: bool = False
    """Its rows are only measured on."""
    label: str | None = None
    """The column whose values `labels` maps to ours; null: a column of 0 and 1 for each of our labels."""
    labels: dict[str, tuple[str, ...]] = {}
    """A value of `label` -> our labels. A row with any other value is quarantined (`unmapped_label`)."""

    @model_validator(mode="after")
    def _maps_or_has_columns(self) -> TableSection:
        if (self.label is None) != (not self.labels):
            raise ValueError("label and labels belong together: the column, and what its values mean")
        return self


class DatasetSection(Strict):
    """A data set by name (`unsmile`): its labels, which files of a landing hold comments, and how versions are split."""

    labels: tuple[str, ...] = Field(min_length=2)
    """As the files spell them, in the order of the model's outputs."""
    clean: str
    """The label of a comment that has none of the others."""
    tables: dict[str, TableSection]
    """The comments' source -> its files."""
    comment_files: tuple[str, ...] = ("comments*.jsonl",)
    """Glob patterns of files with a comment a line, as cut from the ledger of comments: `source`, `id`, `text`, `labels`, `deleted`."""
    groups: dict[str, tuple[str, ...]] = {}
    """Label -> words that only name its group. Clean comments with one of them must not be flagged: `false_flag_rate_named`."""
    max_false_flags: float = Field(default=0.35, gt=0, lt=1)
    """Of the clean comments of validation, the share that may be flagged: the cut on 1 - clean is chosen under it."""
    cleaning: CleaningRules = CleaningRules()
    validation_fraction: float = Field(default=0.1, gt=0, lt=0.5)
    holdout_fraction: float = Field(default=0.2, gt=0, lt=0.5)
    """Of a version without a held-out file."""
    sampling_rate: float = Field(default=1.0, gt=0, le=1)
    """Fraction of the training rows that is used: quick experiments. The holdout is never sampled."""
    max_length: int = Field(default=64, ge=8, le=512)
    """Longest model input, in tokens."""
    licence: str = ""
    attribution: str = ""

    @field_validator("labels")
    @classmethod
    def _can_be_joined(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [label for label in value if "," in label or not label.strip()]:
            raise ValueError(f"a label may not contain a comma or be empty: {wrong}")
        return value

    @model_validator(mode="after")
    def _labels_are_known(self) -> DatasetSection:
        mapped = {label for table in self.tables.values() for labels in table.labels.values() for label in labels}
        if unknown := sorted({self.clean, *self.groups, *mapped} - set(self.labels)):
            raise ValueError(f"{', '.join(unknown)} is none of `labels`: {', '.join(self.labels)}")
        return self


class TrainingSection(TextTrainingSection):
    """How a model is trained."""

    monitor: Literal["lrap", "f1", "loss", "accuracy"] = "lrap"  # type: ignore[assignment]


class ModelSection(BertSection):
    """A way of training by name."""

    training: TrainingSection = TrainingSection()


class BaselineSection(LinearSection):
    """The linear model, which is also shown that a group's name is no hate."""

    swaps: int = Field(default=4, ge=0, le=20)
    """How often a clean comment that names a group is learned once more, with the names of others in place of it."""


class HateSpeechConfig(SystemConfig):
    datasets: dict[str, DatasetSection]
    linear: BaselineSection = BaselineSection()
    models: dict[str, ModelSection]
    comments: CommentsSection | None = None
    """The application's table of new comments; null: there is none."""

    @model_validator(mode="after")
    def _names_exist(self) -> HateSpeechConfig:
        if self.project.dataset not in self.datasets:
            raise ValueError(f"project.dataset {self.project.dataset!r} is not one of {sorted(self.datasets)}")
        if set(self.models) != set(NETWORKS):
            raise ValueError(f"models must be exactly {' and '.join(NETWORKS)}")
        if self.project.model not in VARIANTS:
            raise ValueError(f"project.model {self.project.model!r} is not one of {', '.join(VARIANTS)}")
        moderation = self.comments and self.comments.moderation
        if moderation and (unknown := sorted(moderation.labels - set(self.dataset.labels))):
            raise ValueError(f"comments.moderation gives {', '.join(unknown)}, none of the labels of {self.project.dataset}")
        return self

    @property
    def dataset(self) -> DatasetSection:
        return self.datasets[self.project.dataset]
