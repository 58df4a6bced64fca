"""A bundle: the folder of files that is served, and the one digest that covers every byte of it.

Belongs here: digest, publishing, fetching with verification. Does not belong here: what the files mean (`training/export.py` writes
them, `serving/` reads them).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from mlops_assets.settings import canonical
from mlops_assets.store import sha256_file

if TYPE_CHECKING:
    from mlops_assets.store import ObjectStore

#: Files of a bundle may have these endings only: none of them can hold code.
ALLOWED_SUFFIXES = frozenset({".onnx", ".json", ".txt", ".safetensors"})
MAX_BUNDLE_BYTES = 4 * 1024**3


class File(NamedTuple):
    sha256: str
    size: int


Files = dict[str, File]


class BadBundle(Exception):
    """A bundle that must not be served. `code` is stable; the message says what is wrong."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def files_of(folder: Path) -> Files:
    """Path (POSIX, relative) -> digest and size of every file under `folder`.

    Raises:
        BadBundle: `unsafe_file` for links and for endings that are not in ALLOWED_SUFFIXES; `missing_file` when there is nothing.
    """
    found: Files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise BadBundle("unsafe_file", f"{name} is a link")
        if path.is_file():
            _check_name(name)
            found[name] = File(sha256_file(path), path.stat().st_size)
    if not found:
        raise BadBundle("missing_file", f"{folder} holds no file")
    return found


def digest_of(files: Files) -> str:
    """The bundle's digest: SHA-256 over the canonical JSON of its files."""
    return hashlib.sha256(canonical({name: list(file) for name, file in files.items()}).encode()).hexdigest()


def key_of(digest: str, name: str) -> str:
    return f"bundles/{digest}/{name}"


def publish(store: ObjectStore, folder: Path) -> tuple[str, Files]:
    """Copy `folder` into the store under its digest. Publishing the same bytes again writes nothing new."""
    files = files_of(folder)
    digest = digest_of(files)
    for name, file in files.items():
        if not store.holds(key_of(digest, name), file.sha256):  # what lies there may have been put there by somebody
            store.put(key_of(digest, name), folder / name)
    return digest, files


def fetch(store: ObjectStore, digest: str, files: Files, target: Path) -> Path:
    """The verified bundle as the folder `target/<digest>`; files are checked while they stream, the folder appears whole or not at all.

    Args:
        files: the listing from the signed receipt; it must have the digest `digest`.

    Raises:
        BadBundle: `wrong_digest`, `missing_file`, `too_large`, `unsafe_file`.
    """
    if digest_of(files) != digest:
        raise BadBundle("wrong_digest", f"the receipt's file list has the digest {digest_of(files)[:12]}, not {digest[:12]}")
    if sum(file.size for file in files.values()) > MAX_BUNDLE_BYTES:
        raise BadBundle("too_large", f"the bundle is larger than {MAX_BUNDLE_BYTES} bytes")
    final = target / digest
    if final.is_dir():
        verify(final, digest)
        return final
    target.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{digest[:12]}-", dir=target))
    try:
        for name, file in files.items():
            _check_name(name)
            try:
                found = store.download(key_of(digest, name), aside / name, limit=file.size)
            except FileNotFoundError:
                raise BadBundle("missing_file", f"{name} is not in the store") from None
            except ValueError as error:
                raise BadBundle("too_large", f"{error}, the receipt says {file.size}") from None
            if found != file.sha256:
                raise BadBundle("wrong_digest", f"{name} has the digest {found[:12]}, the receipt says {file.sha256[:12]}")
        try:
            os.rename(aside, final)
        except OSError:
            # Another process was first: its copy counts only if it verifies.
            verify(final, digest)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return final


def publish_weights(store: ObjectStore, digest: str, folder: Path) -> Files:
    """Keep every file under `folder`, the fp32 weights that a bundle was made of, beside it; returns what names them in the attempt."""
    files: Files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        files[name] = File(sha256_file(path), path.stat().st_size)
        store.put(weights_key(digest, name), path)
    return files


def weights_key(digest: str, name: str) -> str:
    return f"weights/{digest}/{name}"


def fetch_weights(store: ObjectStore, digest: str, files: Files, folder: Path) -> Path:
    """The weights kept beside a bundle, each file verified against `files` of the signed receipt.

    Raises:
        FileNotFoundError: they are gone. BadBundle: `wrong_digest`, they were changed; `unsafe_file`.
    """
    for name, file in files.items():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise BadBundle("unsafe_file", f"{name} may not be among the weights")
        key = weights_key(digest, name)
        try:
            found = store.download(key, folder / name)
        except FileNotFoundError:
            raise FileNotFoundError(f"the fp32 weights of bundle {digest[:12]} are not in the store ({store.uri(key)})") from None
        if found != file.sha256:
            raise BadBundle(
                "wrong_digest", f"{store.uri(key)} was changed: it has the digest {found[:12]}, the receipt says {file.sha256[:12]}"
            )
    return folder


def verify(folder: Path, digest: str) -> None:
    """Raises BadBundle `wrong_digest` unless the files under `folder` are exactly those of `digest`; the bad folder is moved aside."""
    try:
        found = digest_of(files_of(folder))
    except BadBundle as error:
        found = error.code
    if found != digest:
        shutil.rmtree(folder, ignore_errors=True)
        raise BadBundle("wrong_digest", f"{folder.name[:12]} on disk is {found[:12]}: deleted, it will be fetched again")


def _check_name(name: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or path.suffix not in ALLOWED_SUFFIXES:
        raise BadBundle("unsafe_file", f"{name} may not be in a bundle: allowed are {', '.join(sorted(ALLOWED_SUFFIXES))}")
