"""`SentimentPredictor`: the champion (or a named version) in this process, through the server's own predictor. Torch is not needed."""

from __future__ import annotations

from mlops_assets.lifecycle.registered import NoModel, RegisteredPredictor

__all__ = ["NoModel", "SentimentPredictor"]


class SentimentPredictor(RegisteredPredictor):
    """An answer is `{"text", "label" (긍정 or 부정), "confidence", "probs"}`."""

    system = "sentiment"
