"""Digits drawn by hand, for one-time codes. Python callers need one name: `DigitsPredictor`; it is loaded when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlops_assets.systems.digits.predictor import DigitsPredictor

__all__ = ["DigitsPredictor"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(name)
    from mlops_assets.systems.digits import predictor

    return getattr(predictor, name)
