"""`HateSpeechPredictor`: the champion (or a named version) in this process, through the server's own predictor. Torch is not needed."""

from __future__ import annotations

from mlops_assets.lifecycle.registered import NoModel, RegisteredPredictor

__all__ = ["NoModel", "HateSpeechPredictor"]


class HateSpeechPredictor(RegisteredPredictor):
    """An answer is `{"text", "label" (all in one line), "labels", "confidence", "probs"}`."""

    system = "hate_speech"
