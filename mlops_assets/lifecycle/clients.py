"""Files for clients that read no ledger: each registered version as `params.yaml` and a torch state dict, and `latest_model.yaml`, which
names the champion's.

They are filled from the outbox: a version's files when it is registered, `latest_model.yaml` by a promotion or rollback alone, after the
files that it names are there. Nothing of the platform reads them. Everything here may run twice. Belongs here: those files, and reading
`params.yaml` as the input of a training. Does not belong here: deciding, serving.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mlops_assets import crash
from mlops_assets.lifecycle import ledger, promotion
from mlops_assets.settings import SettingsError, read_yaml
from mlops_assets.store import sha256_file

if TYPE_CHECKING:
    from mlops_assets.lifecycle.pipeline import Platform
    from mlops_assets.lifecycle.promotion import Receipt

TOPIC: Final = "clients"
WEIGHTS: Final = "model.safetensors"
STATE_DICT: Final = "model.pt"
PARAMETERS: Final = "params.yaml"
LATEST: Final = "latest_model.yaml"
#: What `params.yaml` says beside how to train again: read by people, not by `read_parameters`.
_TOLD: Final = frozenset({"version", "dataset_version", "bundle_sha256", "state_dict_sha256", "metrics", "git_commit"})


def prefix_of(system: str, version: int) -> str:
    return f"clients/{system}/v{version}"


def latest_key(system: str) -> str:
    return f"clients/{system}/{LATEST}"


def receiver(platform: Platform) -> Callable[[Mapping[str, Any]], None]:
    """What takes the outbox's rows of TOPIC."""

    def hear(payload: Mapping[str, Any]) -> None:
        with platform.engine.connect() as connection:
            receipt = promotion.receipt(connection, payload["system"], payload["version"])
        if receipt is not None:
            ensure_version(platform, receipt)
        if payload["promoted"]:
            crash.reach("clients.before_latest")
            point_at_champion(platform, payload["system"])

    return hear


def ensure_version(platform: Platform, receipt: Receipt) -> bool:
    """The version's two files, made where they are missing; False when its weights are gone (retention deletes old ones)."""
    import yaml

    promotion.verify_receipt(receipt, platform.settings.public_keys_path)
    prefix, store = prefix_of(receipt.system, receipt.version), platform.store
    if store.exists(f"{prefix}/{PARAMETERS}"):  # written last
        return True
    if not store.exists(f"weights/{receipt.bundle_sha256}/{WEIGHTS}"):
        return False
    with platform.engine.connect() as connection:
        attempt = ledger.attempt(connection, receipt.body["attempt_id"])
    body = receipt.body
    told = {
        "system": receipt.system,
        "variant": receipt.variant,
        "seed": attempt.seed,
        "parameters": dict(attempt.config),
        "version": receipt.version,
        "dataset_version": receipt.dataset_version,
        "bundle_sha256": receipt.bundle_sha256,
        "state_dict_sha256": _write_state_dict(platform, receipt.bundle_sha256, f"{prefix}/{STATE_DICT}"),
        "metrics": dict(receipt.metrics),
        "git_commit": body["git_commit"],
    }
    store.put(f"{prefix}/{PARAMETERS}", yaml.safe_dump(told, allow_unicode=True, sort_keys=False).encode())
    return True


def _write_state_dict(platform: Platform, bundle_sha256: str, key: str) -> str:
    """The weights as `torch.load(..., weights_only=True)` reads them; the file's SHA-256."""
    import torch
    from safetensors.torch import load_file

    home = platform.settings.home
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home) as scratch:
        source, target = Path(scratch) / WEIGHTS, Path(scratch) / STATE_DICT
        platform.store.download(f"weights/{bundle_sha256}/{WEIGHTS}", source)
        torch.save(load_file(source), target)
        platform.store.put(key, target)
        return sha256_file(target)


def point_at_champion(platform: Platform, system: str) -> None:
    """`latest_model.yaml` names the newest verified champion, as long as its files are there.

    Raises:
        FileNotFoundError: they are not; the file keeps naming what it named.
    """
    import yaml

    with platform.engine.connect() as connection:
        champion, _ = promotion.latest_verified(connection, system, "champion", platform.settings.public_keys_path)
    if champion is None:
        return
    prefix, store = prefix_of(system, champion.version), platform.store
    if not ensure_version(platform, champion.receipt) or not store.exists(f"{prefix}/{STATE_DICT}"):
        raise FileNotFoundError(f"{store.uri(prefix)} lacks {STATE_DICT}: {LATEST} stays as it is")
    told = {
        "system": system,
        "version": champion.version,
        "state_dict": f"{prefix}/{STATE_DICT}",
        "params": f"{prefix}/{PARAMETERS}",
        "bundle_sha256": champion.bundle_sha256,
        "dataset_version": champion.dataset_version,
        "sequence": champion.sequence,
        "promoted_at": champion.at.isoformat(),
    }
    store.put(latest_key(system), yaml.safe_dump(told, allow_unicode=True, sort_keys=False).encode())


# --- params.yaml as an input ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Given:
    """What a `params.yaml` asks for."""

    parameters: Mapping[str, Any]
    variant: str | None = None
    seed: int | None = None


def read_parameters(path: Path, system: str) -> Given:
    """A `params.yaml`: one of ours, or one that was written by hand: `parameters`, and perhaps `variant` and `seed`.

    Names and values of the parameters are the caller's to check.

    Raises:
        SettingsError: with the file, the key and what it wants.
    """
    found = read_yaml(path)
    known = {"system": str, "variant": str, "seed": int, "parameters": dict}
    if unknown := sorted(set(found) - set(known) - _TOLD):
        raise SettingsError(
            f"{path}: {', '.join(unknown)} is unknown; a params.yaml has {', '.join(known)}. Training parameters go under `parameters`."
        )
    for name, kind in known.items():
        if name in found and (not isinstance(found[name], kind) or isinstance(found[name], bool)):
            raise SettingsError(f"{path}: {name} must be of type {kind.__name__}, it is {found[name]!r}")
    if found.get("system", system) != system:
        raise SettingsError(f"{path} is of {found['system']}, not of {system}")
    return Given(found.get("parameters", {}), found.get("variant") or None, found.get("seed"))
