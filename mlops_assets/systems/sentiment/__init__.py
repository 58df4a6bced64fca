"""Film reviews, 긍정 or 부정. Python callers need two names: `SentimentPredictor` and `ModelTrainer`; they are loaded when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlops_assets.systems.sentiment.predictor import SentimentPredictor
    from mlops_assets.systems.sentiment.trainer import ModelTrainer

__all__ = ["ModelTrainer", "SentimentPredictor"]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    modules = {"SentimentPredictor": "predictor", "ModelTrainer": "trainer"}
    if name not in modules:
        raise AttributeError(name)
    return getattr(import_module(f"{__name__}.{modules[name]}"), name)
