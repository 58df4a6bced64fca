"""What every system's `training` section of a configuration has, and overrides of it as one flat set of parameters. No torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, TypeVar

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError, field_validator

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


def override(
    given: Mapping[str, Any], defaults: Mapping[str, Any], known: Collection[str], sections: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    """`given` (the defaults with overrides in them), where `sections(overrides)` gives the values of the sections that these name.

    Another data set or model brings its own section's values; only what differs from the defaults overrides those.

    Raises:
        SettingsError: an unknown name, with the choices.
    """
    if unknown := sorted(set(given) - set(known)):
        raise SettingsError(f"unknown parameter {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    overrides = {name: value for name, value in given.items() if value != defaults[name]}
    chosen = sections(overrides)
    if "epochs" in overrides:
        chosen["min_steps"] = 0  # who asks for one epoch wants one epoch
    return {**chosen, **overrides}


def valid(build: Callable[[], Built]) -> Built:
    """What `build` makes of parameters. Raises SettingsError, which says of each bad one what is wrong with it."""
    try:
        return build()
    except ValidationError as error:
        problems = "; ".join(f"{e['loc'][-1]}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors())
        raise SettingsError(problems) from None


def chosen(kind: str, name: str, known: Mapping[str, Built]) -> Built:
    """The section `name`. Raises SettingsError in the team's words, with the choices; `kind` is Korean, such as 데이터셋."""
    if name not in known:
        raise SettingsError(
            f"지원되지 않는 {kind} 타입입니다.: {name} (not in the configuration; choose one of {', '.join(sorted(known))})"
        )
    return known[name]
