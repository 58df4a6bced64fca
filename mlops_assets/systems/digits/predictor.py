"""`DigitsPredictor`: the champion (or a named version) in this process, through the server's own predictor. Torch is not needed."""

from __future__ import annotations

from mlops_assets.lifecycle.registered import NoModel, RegisteredPredictor

__all__ = ["NoModel", "DigitsPredictor"]


class DigitsPredictor(RegisteredPredictor):
    """An answer is `{"label", "confidence", "sure", "probs"}`; inputs are encoded pictures (bytes), one digit each."""

    system = "digits"
