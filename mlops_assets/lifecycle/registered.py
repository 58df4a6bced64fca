"""A registered model in this process, without a server: fetched, verified and loaded as the server does it. Torch is not needed.

Belongs here: from a version's name to its predictor. Does not belong here: the systems' own predictor classes, HTTP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from mlops_assets.lifecycle import bundle, promotion
from mlops_assets.settings import Settings, load_settings

if TYPE_CHECKING:
    from mlops_assets.serving.text import TextPredictor

Version = int | Literal["champion", "candidate"]


class NoModel(LookupError):
    """Nothing to predict with. The message has the next command."""


class Registered(NamedTuple):
    version: int
    bundle_sha256: str
    predictor: TextPredictor


def load_registered(system: str, version: Version, settings: Settings | None = None) -> Registered:
    """A registered version by number, the `champion` (the model in production) or the `candidate` (the staged one).

    Raises:
        NoModel: no such version.
        BadSignature, BadBundle: what the ledger or the store holds is not what was registered.
    """
    from mlops_assets.lifecycle.pipeline import connect
    from mlops_assets.serving.text import load_text_predictor

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
    return Registered(receipt.version, receipt.bundle_sha256, load_text_predictor(folder, settings.threads))
