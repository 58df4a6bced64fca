"""The sections of `configs/digits.yaml` and what each setting means. No behaviour."""

from __future__ import annotations

from typing import Final

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from mlops_assets.ingest.official import OfficialFile
from mlops_assets.settings import Strict, SystemConfig
from mlops_assets.training import config as training

#: Two ways to the same network: anew from all digits, or on from the champion's weights.
VARIANTS: Final = ("anew", "from_champion")
LABELS: Final = tuple("0123456789")
#: Where digits come from, as reports tell them apart.
ORIGINS: Final = ("mnist", "emnist", "drawn", "users")
#: Drawings that users of one-time codes gave: learned from and never measured on, as some users may want to write the exam.
USERS: Final = "users"


class IdxSection(Strict):
    """A pair of IDX files, plain or gzipped, by glob patterns of their names."""

    images: str
    labels: str
    origin: str = "mnist"
    holdout: bool = False
    """Only ever measured on."""
    transposed: bool = False
    """EMNIST has rows and columns the other way round than MNIST."""


class DrawnSection(Strict):
    """An index of pictures, one digit each: CSV (`image,label`) or JSON lines (`{"file", "label", "writer"}`), paths from its folder."""

    index: str
    origin: str = "drawn"
    holdout: bool = False


class DatasetSection(Strict):
    """A data set by name (`mnist`): which files of a landing are what, and how versions are split."""

    idx: tuple[IdxSection, ...] = ()
    drawn: tuple[DrawnSection, ...] = ()
    ignored_files: tuple[str, ...] = ()
    """Glob patterns (file name only) of what is not digits: EMNIST's letters."""
    near_duplicate_bits: int = Field(default=4, ge=0, le=64)
    """Drawings of which at most so many of 1,024 cells differ are never in two splits."""
    holdout_fraction: float = Field(default=0.25, gt=0, lt=0.5)
    """Share of the writers of drawings that are only measured on."""
    validation_fraction: float = Field(default=0.08, gt=0, lt=0.5)
    sampling_rate: float = Field(default=1.0, gt=0, le=1)
    """Fraction of the training digits that is used: quick experiments. The holdout is never sampled."""
    licence: str = ""
    attribution: str = ""
    official: tuple[OfficialFile, ...] = ()

    @model_validator(mode="after")
    def _origins_are_known(self) -> DatasetSection:
        named = {*(source.origin for source in self.idx), *(source.origin for source in self.drawn)}
        if unknown := sorted(named - set(ORIGINS)):
            raise ValueError(f"origin {', '.join(unknown)}: choose from {', '.join(ORIGINS)}")
        return self


class TrainingSection(training.TrainingSection):
    """How a model is trained."""

    epochs: PositiveFloat = 10
    batch_size: PositiveInt = 256
    learning_rate: PositiveFloat = 3e-3
    early_stopping_patience: int = Field(default=100, ge=1)
    """Evaluations on validation without improvement before training stops."""


class ModelSection(Strict):
    """A way of training by name."""

    width: int = Field(default=32, ge=4, le=256)
    """Channels of the first layer; the later ones have two and four times as many."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    augment: float = Field(default=1.0, ge=0, le=2)
    """How much training digits are bent, turned and sized; 0: not at all."""
    drawn_share: float = Field(default=0.2, ge=0, lt=1)
    """Drawings are seen again until they are this share of an epoch, but each at most `drawn_repeats` times."""
    drawn_repeats: PositiveInt = 8
    int8: bool = False
    """Quantize the served model. Off: a network this small answers as fast without."""
    training: TrainingSection = TrainingSection()


class CodesSection(Strict):
    """The one-time codes that the digits are of."""

    length: int = Field(default=6, ge=4, le=8)
    """Digits of the code that `code_success` is about."""
    asking_rate: float = Field(default=0.02, gt=0, lt=0.5)
    """Share of the digits that may be asked again: `ask_below` of a bundle is chosen for it on validation."""


class DigitsConfig(SystemConfig):
    datasets: dict[str, DatasetSection]
    models: dict[str, ModelSection]
    codes: CodesSection = CodesSection()

    @model_validator(mode="after")
    def _names_exist(self) -> DigitsConfig:
        if self.project.dataset not in self.datasets:
            raise ValueError(f"project.dataset {self.project.dataset!r} is not one of {sorted(self.datasets)}")
        if set(self.models) != set(VARIANTS):
            raise ValueError(f"models must be exactly {' and '.join(VARIANTS)}")
        if self.project.model not in VARIANTS:
            raise ValueError(f"project.model {self.project.model!r} is not one of {', '.join(VARIANTS)}")
        return self

    @property
    def dataset(self) -> DatasetSection:
        return self.datasets[self.project.dataset]
