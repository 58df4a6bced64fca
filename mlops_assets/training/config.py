"""What the sections `training` and `models` of a configuration have, whatever the system, and overrides of them as one flat set of
parameters. No torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError, field_validator, model_validator

from mlops_assets.settings import SettingsError, Strict
from mlops_assets.training.trainer import OPTIMIZERS, UnsupportedOptimizer

Built = TypeVar("Built")


class TrainingSection(Strict):
    """How a model is trained. A system's own section adds to this and has its own defaults."""

    epochs: PositiveFloat = 3
    min_steps: NonNegativeInt = 0
    """On few rows, train for more epochs until this many steps are made (unless `epochs` is overridden)."""
    batch_size: PositiveInt = 64
    learning_rate: PositiveFloat = 5e-4
    optimizer_type: str = "adamw"
    """One of `training.trainer.OPTIMIZERS`."""
    weight_decay: NonNegativeFloat = 0.01
    warmup_ratio: float = Field(default=0.06, ge=0, lt=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    monitor: Literal["accuracy", "f1", "loss"] = "accuracy"
    """The validation figure whose best moment is kept."""
    evaluations_per_epoch: PositiveInt = 1
    checkpoints_per_epoch: PositiveInt = 1
    max_minutes: PositiveFloat | None = None
    """Stop (and keep the best so far) after this long; null: no limit."""
    bf16: bool | None = None
    """null: where the processor or GPU has it."""

    @field_validator("optimizer_type")
    @classmethod
    def _known_optimizer(cls, value: str) -> str:
        if value not in OPTIMIZERS:
            raise UnsupportedOptimizer(value)
        return value


class TextTrainingSection(TrainingSection):
    """How a model of texts is trained."""

    early_stopping_patience: int = Field(default=2, ge=1)
    """Evaluations on validation without improvement before training stops."""
    evaluations_per_epoch: PositiveInt = 2
    checkpoints_per_epoch: PositiveInt = 4
    bucketing: bool = True
    """Batches of texts of like length."""


class BertSection(Strict):
    """A BERT by name (`kcbert`)."""

    pretrained: str | None = None
    """Hub name or local folder (`beomi/kcbert-base`); null trains the architecture below from scratch."""
    vocabulary: str | None = None
    """A WordPiece vocab.txt; null learns one from the training texts."""
    vocabulary_size: int = Field(default=16000, ge=100)
    layers: int = Field(default=2, ge=1)
    hidden_size: int = Field(default=128, ge=16)
    attention_heads: int = Field(default=2, ge=1)
    intermediate_size: int = Field(default=512, ge=16)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    initializer_range: float = Field(default=0.02, gt=0)
    """Spread of the random weights from scratch. BERT's 0.02 is for layers 768 wide: narrow ones learn sooner with 1 / sqrt(width)."""
    unfrozen_layers: NonNegativeInt | None = None
    """How many of the last encoder layers train when fine-tuning; null: all. Embeddings train only when all do."""
    word_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the words hidden from the model while it trains, so that it does not lean on single ones."""
    guess_weight: float = Field(default=0.0, ge=0)
    """Weight of guessing the hidden words, beside the label, in the loss: what a model from scratch has instead of pretraining. 0: off."""
    int8: bool = True
    """Quantize the served model's weights and activations."""
    training: TextTrainingSection = TextTrainingSection()

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.pretrained is None and self.hidden_size % self.attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of attention_heads {self.attention_heads}")
        return self


#: What `mlops train` and the launchpad may override of any training.
TRAINING_PARAMETERS: Mapping[str, type] = {
    "epochs": float,
    "min_steps": int,
    "batch_size": int,
    "learning_rate": float,
    "optimizer_type": str,
    "weight_decay": float,
    "warmup_ratio": float,
    "label_smoothing": float,
    "monitor": str,
    "early_stopping_patience": int,
    "evaluations_per_epoch": int,
    "checkpoints_per_epoch": int,
    "bf16": bool,
}
#: What `mlops train` and the launchpad may override of a BERT and of the data set that it reads.
BERT_PARAMETERS: Mapping[str, type] = {
    "dataset": str,
    "sampling_rate": float,
    "max_length": int,
    "pretrained": str,
    "vocabulary": str,
    "vocabulary_size": int,
    "layers": int,
    "hidden_size": int,
    "attention_heads": int,
    "intermediate_size": int,
    "dropout": float,
    "initializer_range": float,
    "unfrozen_layers": int,
    "word_dropout": float,
    "guess_weight": float,
    "int8": bool,
    "max_minutes": float,
    "bucketing": bool,
    **TRAINING_PARAMETERS,
}
OF_DATASET = ("sampling_rate", "max_length")

Section = TypeVar("Section", bound=Strict)
Model = TypeVar("Model", bound=BertSection)


def flat(name: str, dataset: Strict, model: BertSection) -> dict[str, Any]:
    """The sections as parameters, plain JSON values; `name` is the data set's."""
    values = model.model_dump(mode="json")
    training = values.pop("training")
    return {"dataset": name, **{name: getattr(dataset, name) for name in OF_DATASET}, **values, **training}


def unflat(values: Mapping[str, Any], dataset: Section, model: Model) -> tuple[Section, Model]:
    """`dataset` and `model` with the parameters over them.

    Raises:
        ValidationError: a value that the section does not take.
        SettingsError: `vocabulary` names no file here.
    """
    training = {name: values[name] for name in type(model.training).model_fields}
    own = {name: values[name] for name in type(model).model_fields if name != "training"}
    if own["vocabulary"] is not None and not Path(own["vocabulary"]).is_file():
        raise SettingsError(f"vocabulary {own['vocabulary']!r} is no file here: give a WordPiece vocab.txt, or leave it out to learn one")
    read = dataset.model_dump() | {name: values[name] for name in OF_DATASET}
    return type(dataset).model_validate(read), type(model).model_validate(own | {"training": training})


def override(given: Mapping[str, Any], known: Collection[str], sections: Callable[[Mapping[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """`given` over the values of the data set's and the model's section that it names, which `sections(given)` gives, flat.

    What is given wins, also where it equals a default: from the whole result comes the same again.

    Raises:
        SettingsError: an unknown name, with the choices.
    """
    if unknown := sorted(set(given) - set(known)):
        raise SettingsError(f"unknown parameter {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    chosen = sections(given)
    if "epochs" in given:
        chosen["min_steps"] = 0  # who asks for one epoch wants one epoch
    return {**chosen, **given}


def valid(build: Callable[[], Built]) -> Built:
    """What `build` makes of parameters. Raises SettingsError, which says of each bad one what is wrong with it."""
    try:
        return build()
    except ValidationError as error:
        found = [(str(e["loc"][-1]) + ": " if e["loc"] else "", e["msg"].removeprefix("Value error, ")) for e in error.errors()]
        problems = "; ".join(where + what for where, what in found)  # what is wrong between fields stands nowhere
        raise SettingsError(problems) from None


def chosen(kind: str, name: str, known: Mapping[str, Built]) -> Built:
    """The section `name`. Raises SettingsError in the team's words, with the choices; `kind` is Korean, such as 데이터셋."""
    if name not in known:
        raise SettingsError(
            f"지원되지 않는 {kind} 타입입니다.: {name} (not in the configuration; choose one of {', '.join(sorted(known))})"
        )
    return known[name]
