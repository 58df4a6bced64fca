"""A registered model in this process, without a server: fetched, verified and loaded as the server does it. Torch is not needed.

Belongs here: from a version's name to its predictor, and what the systems' predictor classes share. Does not belong here: HTTP.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, overload

from mlops_assets.lifecycle import bundle, promotion
from mlops_assets.settings import Settings, load_settings

if TYPE_CHECKING:
    from mlops_assets.kinds.text.predict import TextPredictor
    from mlops_assets.serving.images import ImagePredictor

Version = int | Literal["champion", "candidate"]


class NoModel(LookupError):
    """Nothing to predict with. The message has the next command."""


class Registered(NamedTuple):
    version: int
    bundle_sha256: str
    predictor: TextPredictor | ImagePredictor


def load_registered(system: str, version: Version, settings: Settings | None = None) -> Registered:
    """A registered version by number, the `champion` (the model in production) or the `candidate` (the staged one).

    Raises:
        NoModel: no such version.
        BadSignature, BadBundle: what the ledger or the store holds is not what was registered.
    """
    from mlops_assets.kinds.text.predict import load_text_predictor
    from mlops_assets.lifecycle.pipeline import connect
    from mlops_assets.serving.images import KIND, load_image_predictor

    settings = settings or load_settings()
    platform = connect(settings)
    with platform.engine.connect() as connection:
        if isinstance(version, int):
            receipt = promotion.receipt(connection, system, version)
        else:
            found, _ = promotion.latest_verified(connection, system, version, settings.public_keys_path)
            receipt = found.receipt if found else None
    if receipt is None:
        named = f"v{version}" if isinstance(version, int) else version
        raise NoModel(f"{system} has no {named}: `mlops history {system}` shows what there is")
    promotion.verify_receipt(receipt, settings.public_keys_path)
    folder = bundle.fetch(platform.store, receipt.bundle_sha256, receipt.files, settings.home / "bundles")
    kind = json.loads((folder / "bundle.json").read_text(encoding="utf-8")).get("kind")
    predictor = load_image_predictor(folder, settings.threads) if kind == KIND else load_text_predictor(folder, settings.threads)
    return Registered(receipt.version, receipt.bundle_sha256, predictor)


class RegisteredPredictor:
    """Predicts texts (or, of a system of pictures, encoded pictures) with a registered, verified bundle of `system`.

    Args:
        version: a registered version's number, `champion` (the model in production, the default) or `candidate` (the staged one).
        settings: default: the environment's.

    Raises:
        NoModel: no such version.
        BadSignature, BadBundle: what the ledger or the store holds is not what was registered.
    """

    system: ClassVar[str]

    def __init__(self, version: Version = "champion", *, settings: Settings | None = None) -> None:
        self.version, self.bundle_sha256, self._predictor = load_registered(self.system, version, settings)

    @overload
    def predict(self, text: str | bytes, return_probs: bool = True) -> dict[str, Any]: ...

    @overload
    def predict(self, text: list[str] | list[bytes], return_probs: bool = True) -> list[dict[str, Any]]: ...

    def predict(self, text: str | bytes | list[str] | list[bytes], return_probs: bool = True) -> dict[str, Any] | list[dict[str, Any]]:
        """The server's own answer: one dict for one input, a list for a list."""
        inputs: list[Any] = [text] if isinstance(text, str | bytes) else list(text)
        answers = self._predictor.predict(inputs)
        if not return_probs:
            answers = [{name: value for name, value in answer.items() if name != "probs"} for answer in answers]
        return answers[0] if isinstance(text, str | bytes) else answers
