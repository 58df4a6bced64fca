"""The sections of `configs/sentiment.yaml` and what each setting means. No behaviour."""

from __future__ import annotations

from pydantic import Field, model_validator

from mlops_assets.kinds.text.config import LinearSection
from mlops_assets.settings import Strict, SystemConfig
from mlops_assets.training.config import BertSection


class OfficialFile(Strict):
    """One file of a data set at its official source."""

    name: str
    url: str
    sha256: str | None = None


class DatasetSection(Strict):
    """A data set by name (`nsmc`): which files of a landing are reviews, and what becomes of them."""

    train_files: tuple[str, ...] = ("ratings_train*.txt", "*.tsv")
    """Glob patterns (file name only) of labelled reviews that are split into train and validation by their text."""
    holdout_files: tuple[str, ...] = ("ratings_test*.txt",)
    """Glob patterns of labelled reviews that are only ever measured on. A version without one holds out `holdout_fraction`."""
    sampling_rate: float = Field(default=1.0, gt=0, le=1)
    """Fraction of the training rows that is used: quick experiments. The holdout is never sampled."""
    validation_fraction: float = Field(default=0.05, gt=0, lt=0.5)
    holdout_fraction: float = Field(default=0.2, gt=0, lt=0.5)
    max_length: int = Field(default=48, ge=8, le=512)
    """Longest model input, in tokens."""
    licence: str = ""
    attribution: str = ""
    official: tuple[OfficialFile, ...] = ()


class SentimentConfig(SystemConfig):
    datasets: dict[str, DatasetSection]
    linear: LinearSection = LinearSection()
    models: dict[str, BertSection]

    @model_validator(mode="after")
    def _names_exist(self) -> SentimentConfig:
        if self.project.dataset not in self.datasets:
            raise ValueError(f"project.dataset {self.project.dataset!r} is not one of {sorted(self.datasets)}")
        if self.project.model not in self.models:
            raise ValueError(f"project.model {self.project.model!r} is not one of {sorted(self.models)}")
        return self

    @property
    def dataset(self) -> DatasetSection:
        return self.datasets[self.project.dataset]

    @property
    def model(self) -> BertSection:
        return self.models[self.project.model]
