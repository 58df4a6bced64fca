"""`HateSpeechPredictor`: the champion (or a named version) in this process, through the server's own predictor. Torch is not needed."""

from __future__ import annotations

from typing import Any, overload

from mlops_assets.lifecycle.registered import NoModel, Version, load_registered
from mlops_assets.settings import Settings

__all__ = ["NoModel", "HateSpeechPredictor"]


class HateSpeechPredictor:
    """Predicts with a registered, verified bundle.

    Args:
        version: a registered version's number, `champion` (the model in production, the default) or `candidate` (the staged one).
        settings: default: the environment's.

    Raises:
        NoModel: no such version.
        BadSignature, BadBundle: what the ledger or the store holds is not what was registered.
    """

    def __init__(self, version: Version = "champion", *, settings: Settings | None = None) -> None:
        self.version, self.bundle_sha256, self._predictor = load_registered("hate_speech", version, settings)

    @overload
    def predict(self, text: str, return_probs: bool = True) -> dict[str, Any]: ...

    @overload
    def predict(self, text: list[str], return_probs: bool = True) -> list[dict[str, Any]]: ...

    def predict(self, text: str | list[str], return_probs: bool = True) -> dict[str, Any] | list[dict[str, Any]]:
        """`{"text", "label" (all in one line), "labels", "confidence", "probs"}`; one for one text, a list for a list."""
        answers = self._predictor.predict([text] if isinstance(text, str) else text)
        if not return_probs:
            answers = [{name: value for name, value in answer.items() if name != "probs"} for answer in answers]
        return answers[0] if isinstance(text, str) else answers
