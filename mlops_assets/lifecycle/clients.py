"""Files for clients that read no ledger: each registered version as `params.yaml` and a torch state dict, and `latest_model.yaml`, which
names the champion's.

They are filled from the outbox: a version's files when it is registered, `latest_model.yaml` by a promotion or rollback alone, after the
files that it names are there. Nothing of the platform reads them. Everything here may run twice. Belongs here: those files, and reading
`params.yaml` as the input of a training. Does not belong here: deciding, serving.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mlops_assets import crash, names
from mlops_assets.lifecycle import bundle, ledger, promotion
from mlops_assets.lifecycle.signing import load_signer
from mlops_assets.settings import SettingsError, read_yaml
from mlops_assets.store import sha256_file

if TYPE_CHECKING:
    from mlops_assets.lifecycle.pipeline import Platform
    from mlops_assets.lifecycle.promotion import Receipt

logger = logging.getLogger(__name__)

TOPIC: Final = "clients"
WEIGHTS: Final = "model.safetensors"
STATE_DICT: Final = "model.pt"
PARAMETERS: Final = "params.yaml"
LATEST: Final = "latest_model.yaml"
#: What `params.yaml` says beside how to train again: read by people, not by `read_parameters`.
_TOLD: Final = frozenset({"version", "dataset_version", "bundle_sha256", "state_dict_sha256", "metrics", "git_commit"})


def prefix_of(system: str, version: int) -> str:
    """Raises BadName."""
    names.system(system)
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


def ensure_version(platform: Platform, receipt: Receipt) -> dict[str, str] | None:
    """The digests of the version's two files, which are made where they are not those that were recorded when they were made: whoever can
    write into the store may have put others there. None when they cannot be made: the weights are gone (retention deletes old ones), or
    the receipt does not name them (older than schema 0016).
    """
    import yaml

    keys = platform.settings.public_keys_path
    promotion.verify_receipt(receipt, keys)
    prefix, store, asset = prefix_of(receipt.system, receipt.version), platform.store, f"{receipt.system}/clients"
    with platform.engine.connect() as connection:
        made = ledger.get_value(connection, asset, f"v{receipt.version}", "", keys)
    if made is not None and all(store.holds(f"{prefix}/{name}", digest) for name, digest in made.items()):
        return made
    if WEIGHTS not in receipt.weights or not store.exists(bundle.weights_key(receipt.bundle_sha256, WEIGHTS)):
        return None
    body = receipt.body
    made = {STATE_DICT: _write_state_dict(platform, receipt, f"{prefix}/{STATE_DICT}")}
    told = {
        "system": receipt.system,
        "variant": receipt.variant,
        "seed": body["seed"],
        "parameters": body["parameters"],
        "version": receipt.version,
        "dataset_version": receipt.dataset_version,
        "bundle_sha256": receipt.bundle_sha256,
        "state_dict_sha256": made[STATE_DICT],
        "metrics": dict(receipt.metrics),
        "git_commit": body["git_commit"],
    }
    parameters = yaml.safe_dump(told, allow_unicode=True, sort_keys=False).encode()
    store.put(f"{prefix}/{PARAMETERS}", parameters)
    made[PARAMETERS] = hashlib.sha256(parameters).hexdigest()
    with platform.engine.begin() as connection:
        ledger.put_value(connection, asset, f"v{receipt.version}", "", made, load_signer(platform.settings))
    return made


def _write_state_dict(platform: Platform, receipt: Receipt, key: str) -> str:
    """The weights as `torch.load(..., weights_only=True)` reads them; the file's SHA-256."""
    import torch
    from safetensors.torch import load_file

    home = platform.settings.home
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home) as scratch:
        target = Path(scratch) / STATE_DICT
        only = {WEIGHTS: receipt.weights[WEIGHTS]}
        source = bundle.fetch_weights(platform.store, receipt.bundle_sha256, only, Path(scratch) / "weights") / WEIGHTS
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
    prefix, store, named = prefix_of(system, champion.version), platform.store, (system, champion.version)
    made = ensure_version(platform, champion.receipt)
    if made is None and WEIGHTS not in champion.receipt.weights:  # of an older installation, or no network: no later champion waits for it
        logger.warning("%s v%s has no recorded weights of a network: %s stays as it is until one of a network is champion", *named, LATEST)
        return
    if made is None:
        raise FileNotFoundError(f"{store.uri(prefix)} lacks {STATE_DICT}: {LATEST} stays as it is")
    told = {
        "system": system,
        "version": champion.version,
        "state_dict": f"{prefix}/{STATE_DICT}",
        "state_dict_sha256": made[STATE_DICT],
        "params": f"{prefix}/{PARAMETERS}",
        "params_sha256": made[PARAMETERS],
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
