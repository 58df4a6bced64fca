"""`SentimentPredictor`: the champion (or a named version) in this process, through the server's own predictor. Torch is not needed."""

from __future__ import annotations

from typing import Any, Literal, overload

from mlops_assets.lifecycle import bundle, promotion
from mlops_assets.settings import Settings, load_settings


class NoModel(LookupError):
    """Nothing to predict with. The message has the next command."""


class SentimentPredictor:
    """Predicts with a registered, verified bundle.

    Args:
        version: a registered version's number, `champion` (the model in production, the default) or `candidate` (the staged one).
        settings: default: the environment's.

    Raises:
        NoModel: no such version.
        BadSignature, BadBundle: what the ledger or the store holds is not what was registered.
    """

    def __init__(self, version: int | Literal["champion", "candidate"] = "champion", *, settings: Settings | None = None) -> None:
        from mlops_assets.lifecycle.pipeline import connect
        from mlops_assets.serving.text import load_text_predictor

        settings = settings or load_settings()
        platform = connect(settings)
        with platform.engine.connect() as connection:
            if isinstance(version, int):
                receipt = promotion.receipt(connection, "sentiment", version)
            else:
                found, _ = promotion.latest_verified(connection, "sentiment", version, settings.public_keys_path)
                receipt = found.receipt if found else None
        if receipt is None:
            raise NoModel(
                f"sentiment has no {f'v{version}' if isinstance(version, int) else version}: `mlops history sentiment` shows what there is"
            )
        promotion.verify_receipt(receipt, settings.public_keys_path)
        self.version = receipt.version
        self.bundle_sha256 = receipt.bundle_sha256
        folder = bundle.fetch(platform.store, receipt.bundle_sha256, receipt.files, settings.home / "bundles")
        self._predictor = load_text_predictor(folder, settings.threads)

    @overload
    def predict(self, text: str, return_probs: bool = True) -> dict[str, Any]: ...

    @overload
    def predict(self, text: list[str], return_probs: bool = True) -> list[dict[str, Any]]: ...

    def predict(self, text: str | list[str], return_probs: bool = True) -> dict[str, Any] | list[dict[str, Any]]:
        """`{"text", "label" (긍정 or 부정), "confidence", "probs"}`; one for one text, a list for a list."""
        answers = self._predictor.predict([text] if isinstance(text, str) else text)
        if not return_probs:
            answers = [{name: value for name, value in answer.items() if name != "probs"} for answer in answers]
        return answers[0] if isinstance(text, str) else answers
