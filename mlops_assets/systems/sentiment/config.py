"""The sections of `configs/sentiment.yaml` and what each setting means. No behaviour."""

from __future__ import annotations

from pydantic import Field, PositiveInt, model_validator

from mlops_assets.settings import Strict, SystemConfig
from mlops_assets.training import config as training


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


class TrainingSection(training.TrainingSection):
    """How a model is trained."""

    early_stopping_patience: int = Field(default=2, ge=1)
    """Evaluations on validation without improvement before training stops."""
    evaluations_per_epoch: PositiveInt = 2
    checkpoints_per_epoch: PositiveInt = 4
    bucketing: bool = True
    """Batches of texts of like length."""


class ModelSection(Strict):
    """A model by name (`kcbert`)."""

    pretrained: str | None = None
    """Hub name or local folder (`beomi/kcbert-base`); null trains the architecture below from scratch."""
    vocabulary: str | None = None
    """A WordPiece vocab.txt; null learns one from the training reviews."""
    vocabulary_size: int = Field(default=16000, ge=100)
    layers: int = Field(default=2, ge=1)
    hidden_size: int = Field(default=128, ge=16)
    attention_heads: int = Field(default=2, ge=1)
    intermediate_size: int = Field(default=512, ge=16)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    unfrozen_layers: int | None = None
    """How many of the last encoder layers train when fine-tuning; null: all. Embeddings train only when all do."""
    word_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the words hidden from the model while it trains, so that it does not lean on single ones."""
    guess_weight: float = Field(default=0.0, ge=0)
    """Weight of guessing the hidden words, beside the label, in the loss: what a model from scratch has instead of pretraining. 0: off."""
    int8: bool = True
    """Quantize the served model's weights and activations."""
    training: TrainingSection = TrainingSection()


class SentimentConfig(SystemConfig):
    datasets: dict[str, DatasetSection]
    models: dict[str, ModelSection]

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
    def model(self) -> ModelSection:
        return self.models[self.project.model]
