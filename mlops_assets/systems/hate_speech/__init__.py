"""Hateful comments, several labels each. Python callers need one name: `HateSpeechPredictor`; it is loaded when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlops_assets.systems.hate_speech.predictor import HateSpeechPredictor

__all__ = ["HateSpeechPredictor"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(name)
    from mlops_assets.systems.hate_speech import predictor

    return getattr(predictor, name)
