"""Ed25519 signatures over reports, receipts and promotions: they stop accidents and writes from outside
(psql, the MLflow UI, a copied row).

They do not stop code that runs inside the platform's own processes: that code can read the key. Belongs here: keys, sign, verify.
"""

from __future__ import annotations

import base64
import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nacl.signing import SigningKey, VerifyKey

    from mlops_assets.settings import Settings


class BadSignature(Exception):
    """A row that was not written by the platform, or was changed since."""


class KeyProblem(RuntimeError):
    """The signing key is missing or readable by others. The message has the command that mends it."""


@dataclass(frozen=True)
class Signer:
    key: SigningKey
    key_id: str

    def sign(self, payload: str) -> str:
        return base64.b64encode(self.key.sign(payload.encode()).signature).decode()


def _key_id(public: VerifyKey) -> str:
    return hashlib.sha256(bytes(public)).hexdigest()[:16]


def _write(path: Path, data: bytes, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".new")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    aside.chmod(mode)
    os.replace(aside, path)


def rotate_key(settings: Settings) -> str:
    """Make a new signing key; the old public half stays, so that what it signed still verifies. Returns the new key id."""
    from nacl.signing import SigningKey

    with suppress(KeyProblem):  # there is none, or one that cannot be used any more
        _publish(settings, load_signer(settings).key.verify_key)
    key = SigningKey.generate()
    # The public half first: a signature must never exist before what verifies it.
    _publish(settings, key.verify_key)
    settings.signing_key_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _write(settings.signing_key_path, bytes(key).hex().encode(), 0o600)
    return _key_id(key.verify_key)


def _publish(settings: Settings, public: VerifyKey) -> None:
    path = settings.public_keys_path / f"{_key_id(public)}.pub"
    if not path.exists():
        _write(path, bytes(public).hex().encode(), 0o644)


def ensure_key(settings: Settings) -> str:
    """The id of the signing key, made on first use. A lost public half is made again: nothing else than the private one can."""
    if not settings.signing_key_path.exists():
        return rotate_key(settings)
    signer = load_signer(settings)
    _publish(settings, signer.key.verify_key)
    return signer.key_id


def load_signer(settings: Settings) -> Signer:
    """The platform's key.

    Raises:
        KeyProblem: no key, not a key, or others may read it.
    """
    from nacl.signing import SigningKey

    path = settings.signing_key_path
    if not path.exists():
        raise KeyProblem(f"no signing key at {path}: start the platform once with `mlops up`, it makes one")
    if path.stat().st_mode & 0o077:
        raise KeyProblem(f"{path} can be read by others: run `chmod 600 {path}`, then `mlops doctor --rotate-key` if it was exposed")
    try:
        key = SigningKey(bytes.fromhex(path.read_text().strip()))
    except ValueError as error:
        raise KeyProblem(f"{path} holds no Ed25519 key ({error}): restore it, or make a new one with `mlops doctor --rotate-key`") from None
    return Signer(key, _key_id(key.verify_key))


def verify(payload: str, signature: str, key_id: str, public_keys: Path) -> None:
    """Raises BadSignature unless `signature` over `payload` was made by the key `key_id` whose public half is in `public_keys`."""
    from nacl.exceptions import BadSignatureError
    from nacl.signing import VerifyKey

    path = public_keys / f"{key_id}.pub"
    if not key_id.isalnum() or not path.exists():
        raise BadSignature(f"signed by the key {key_id!r}, which is not in {public_keys}")
    public = VerifyKey(bytes.fromhex(path.read_text().strip()))
    try:
        public.verify(payload.encode(), base64.b64decode(signature, validate=True))
    except (BadSignatureError, ValueError):
        raise BadSignature(f"the signature does not belong to the row (key {key_id})") from None
