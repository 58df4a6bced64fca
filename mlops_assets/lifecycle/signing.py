"""Ed25519 signatures over the rows of the ledgers: they stop accidents and writes from outside
(psql, the MLflow UI, a copied row).

They do not stop code that runs inside the platform's own processes: that code can read the key. Belongs here: keys, sign, verify.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from nacl.signing import SigningKey, VerifyKey

    from mlops_assets.settings import Settings


class BadSignature(Exception):
    """A row that was not written by the platform, or was changed since."""


class KeyProblem(RuntimeError):
    """The signing key is missing or readable by others. The message has the command that mends it; `fix` is that alone."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(f"{message}: {fix}")
        self.message, self.fix = message, fix


@dataclass(frozen=True)
class Signer:
    key: SigningKey
    key_id: str

    def sign(self, payload: str) -> str:
        return base64.b64encode(self.key.sign(payload.encode()).signature).decode()

    def sign_row(self, kind: str, payload: str) -> Signature:
        """Sign `payload` as a row of this kind: what one kind signs never passes for another."""
        return Signature(self.sign(_of_kind(kind, payload)), self.key_id)


class Signature(NamedTuple):
    """What a signed row carries beside its payload; both None in rows that nobody signed."""

    signature: str | None
    key_id: str | None


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

    path = settings.signing_key_path
    if path.is_symlink():
        fix = "change it there (a Kubernetes Secret: in the Secret), then start again; `mlops up` publishes its public half"
        raise KeyProblem(f"{path} is a link to {os.readlink(path)}: the key comes from elsewhere", fix)
    with suppress(KeyProblem):  # there is none, or one that cannot be used any more
        _publish(settings, load_signer(settings).key.verify_key)
    key = SigningKey.generate()
    # The public half first: a signature must never exist before what verifies it.
    _publish(settings, key.verify_key)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _write(path, bytes(key).hex().encode(), 0o600)
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
    try:
        with path.open() as file:
            if _others_read(os.fstat(file.fileno())):
                fix = f"chmod 600 {path}, then `mlops doctor --rotate-key` if it was exposed"
                raise KeyProblem(f"{path} can be read by others", fix)
            text = file.read()
    except FileNotFoundError:
        raise KeyProblem(f"no signing key at {path}", "start the platform once with `mlops up`, it makes one") from None
    except OSError as error:
        fix = "give it to the account of this process (a Kubernetes Secret: fsGroup in the pod's securityContext, defaultMode 0400)"
        raise KeyProblem(f"{path} cannot be read ({error.strerror})", fix) from None
    try:
        key = SigningKey(bytes.fromhex(text.strip()))
    except ValueError as error:
        raise KeyProblem(
            f"{path} holds no Ed25519 key ({error})", "restore it, or make a new one with `mlops doctor --rotate-key`"
        ) from None
    return Signer(key, _key_id(key.verify_key))


def _others_read(info: os.stat_result) -> bool:
    """Whether an account that is not ours may read (or write) the file. root's file for our own group is how Kubernetes hands out a Secret:
    with `fsGroup` its mode 0400 becomes 0440, and nobody but root and that group is let in."""
    for_our_group = info.st_uid == 0 and info.st_gid in {os.getegid(), *os.getgroups()}
    return bool(info.st_mode & 0o077 & ~(0o040 if for_our_group else 0))


def who_reads(path: Path) -> str:
    """The mode of a key that was accepted, for people."""
    info = path.stat()
    mode = f"mode {info.st_mode & 0o777:04o}"
    return f"{mode}: root's, and readable by the group {info.st_gid}, which is ours" if info.st_mode & 0o040 else mode


def verify(payload: str, signature: str, key_id: str, public_keys: Path) -> None:
    """Raises BadSignature unless `signature` over `payload` was made by the key `key_id` whose public half is in `public_keys`."""
    path = public_keys / f"{key_id}.pub"
    if not _KEY_ID.fullmatch(key_id) or not path.exists():
        raise BadSignature(f"signed by the key {key_id[:80]!r}, which is not in {public_keys}")
    if not _holds(bytes.fromhex(path.read_text().strip()), payload, signature):
        raise BadSignature(f"the signature does not belong to the row (key {key_id})")


def verify_row(kind: str, payload: str, signed: Signature, public_keys: Path) -> None:
    """Raises BadSignature unless `payload` was signed as a row of this kind."""
    if signed.signature is None or signed.key_id is None:
        raise BadSignature("it is not signed")
    verify(_of_kind(kind, payload), signed.signature, signed.key_id, public_keys)


def _of_kind(kind: str, payload: str) -> str:
    """No JSON, so that it never passes for the payload of a receipt or a promotion, which the same key signs as they are."""
    return f"{kind}\n{payload}"


_KEY_ID: Final = re.compile(r"[0-9a-f]{16}")
#: What was found of signatures that were looked at before: ledgers are read again and again, and forged rows lie in them for ever.
_found: dict[bytes, bool] = {}
_FOUND_AT_MOST: Final = 100_000


def _holds(public: bytes, payload: str, signature: str) -> bool:
    from nacl.exceptions import BadSignatureError
    from nacl.signing import VerifyKey

    said, written = payload.encode(), signature.encode()
    known_as = hashlib.sha256(public + hashlib.sha256(said).digest() + written).digest()
    if known_as not in _found:
        try:
            VerifyKey(public).verify(said, base64.b64decode(written, validate=True))
            holds = True
        except (BadSignatureError, ValueError):
            holds = False
        if len(_found) >= _FOUND_AT_MOST:
            _found.clear()
        _found[known_as] = holds
    return _found[known_as]
