"""The sections of `configs/tires.yaml` and what each setting means. No behaviour."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator

from mlops_assets.ingest import examples
from mlops_assets.settings import Strict, SystemConfig
from mlops_assets.training import config as training

#: The models, in the order of the seed. Each is a variant with its own assets.
VARIANTS: Final = ("efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "resnet18", "resnet50", "tinyvgg", "cnn")
#: Other names that people know a model by.
ALIASES: Final = {"efficientnet": "efficientnet_b0"}
#: The number of a label in every table -> its name in the configuration.
LABELS: Final = {0: "good", 1: "defective"}


def _is_pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return value


Pattern = Annotated[str, AfterValidator(_is_pattern)]


class DatasetSection(Strict):
    """A data set by name (`magnetic_tile`): how a photo's label and group are read, and how versions are split."""

    labels: dict[str, tuple[str, ...]]
    """`good` and `defective` -> the names of folders and the values of `label_value` that mean it; case does not matter."""
    index_files: tuple[str, ...] = ("*.json",)
    """Glob patterns (file name only) of indexes: `annotation.data[]` with `FilePath` and `label_value`."""
    ignored_files: tuple[str, ...] = ()
    """Glob patterns (file name only) of masks: set aside where another picture of the same stem lies beside them."""
    set_aside: tuple[examples.Kind, ...] = examples.KINDS
    """Kinds of pictures that are no examples wherever they lie (`ingest/examples.py`); leave one out where the photos look like it."""
    group_pattern: Pattern | None = None
    """What this finds in a file's name (its first parenthesis, if any) is the photo's group; a name without it is a group of its own."""
    series_gap: int | None = Field(default=None, ge=1)
    """Groups are frame numbers, and frames of one label no further apart than this show the same piece; null: they are only names."""
    near_duplicate_bits: int = Field(default=16, ge=0, le=64)
    """Photos of which at most this many of 256 bits of perceptual hash differ are never in two splits; fewer for a camera that never moves.

    256 bits, not 64: of the 568 photos of magnetic_tile, all grey and smooth, 4 of 64 bits chain 172 into one family, 16 of 256 at most 11.
    """
    holdout_fraction: float = Field(default=0.25, gt=0, lt=0.5)
    validation_fraction: float = Field(default=0.15, gt=0, lt=0.5)
    image_size: int = Field(default=256, ge=32, le=1024)
    """Side of the square that photos are resized to, in pixels."""
    sampling_rate: float = Field(default=1.0, gt=0, le=1)
    """Fraction of the training photos that is used: quick experiments. The holdout is never sampled."""
    licence: str = ""
    attribution: str = ""

    @field_validator("labels")
    @classmethod
    def _labels_are_ours(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        if set(value) != set(LABELS.values()):
            raise ValueError(f"name exactly {' and '.join(LABELS.values())}, found {', '.join(sorted(value)) or 'nothing'}")
        names = [name for spelled in value.values() for name in {name.casefold() for name in spelled}]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} would mean both labels")
        return value


class TrainingSection(training.TrainingSection):
    """How a model is trained."""

    epochs: PositiveFloat = 5
    batch_size: PositiveInt = 32
    learning_rate: PositiveFloat = 1e-3
    optimizer_type: str = "adam"
    weight_decay: NonNegativeFloat = 0.0
    monitor: Literal["accuracy", "f1", "loss"] = "loss"
    min_loss: float | None = Field(default=None, gt=0)
    """With `min_accuracy`: both reached on validation, training stops, and only then may the model register; null: no condition."""
    min_accuracy: float | None = Field(default=None, gt=0, le=1)
    patience: int = Field(default=5, ge=1)
    """Evaluations on validation in which neither loss nor accuracy improves by `delta` before training stops."""
    delta: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _both_or_neither(self) -> TrainingSection:
        if (self.min_loss is None) != (self.min_accuracy is None):
            raise ValueError("min_loss and min_accuracy are one condition: set both or neither")
        return self


class ModelSection(Strict):
    """A model by name (`resnet18`)."""

    pretrained: str | None = None
    """torchvision's weights by name (`IMAGENET1K_V1`) or a local file; null trains from scratch."""
    image_size: int | None = Field(default=None, ge=32, le=1024)
    """null: the data set's."""
    rotation: float = Field(default=30.0, ge=0, le=180)
    """In training, a photo is turned by up to so many degrees either way."""
    mirror_vertical: bool = False
    """In training, photos are mirrored upside down as well: for what has no upper side."""
    standardize: bool = False
    """Each photo gets mean 0 and deviation 1 of its own instead of ImageNet's: what light it was taken in then says nothing."""
    training: TrainingSection = TrainingSection()


class TiresConfig(SystemConfig):
    datasets: dict[str, DatasetSection]
    models: dict[str, ModelSection]

    @model_validator(mode="after")
    def _names_exist(self) -> TiresConfig:
        if self.project.dataset not in self.datasets:
            raise ValueError(f"project.dataset {self.project.dataset!r} is not one of {sorted(self.datasets)}")
        if unknown := sorted(set(self.models) - set(VARIANTS)):
            raise ValueError(f"models {', '.join(unknown)} do not exist: choose from {', '.join(VARIANTS)}")
        if ALIASES.get(self.project.model, self.project.model) not in self.models:
            raise ValueError(f"project.model {self.project.model!r} is not one of {sorted(self.models)}")
        return self

    @property
    def dataset(self) -> DatasetSection:
        return self.datasets[self.project.dataset]

    def model_of(self, variant: str) -> ModelSection:
        """The section of a variant; one that the file leaves out has the defaults."""
        return self.models.get(variant, ModelSection())
