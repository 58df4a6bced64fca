"""The object store: one small class over `file://` and `s3://` (obstore). Keys are relative to the store's URL.

Belongs here: bytes in, bytes out, listing, conditional put. Does not belong here: what a key means (see `ingest/`, `lifecycle/`), Dagster.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from obstore.store import ObjectStore as AnyStore

    from mlops_assets.settings import Settings

CHUNK = 8 * 1024 * 1024
PIECE = 64 * 1024


@dataclass(frozen=True)
class ObjectInfo:
    """One object as a listing shows it. `etag` is the store's own identity of these bytes; `last_modified` is aware UTC."""

    key: str
    size: int
    etag: str
    last_modified: datetime
    version: str | None = None


class ObjectStore:
    """Objects under one URL.

    Raises (every method): FileNotFoundError for a missing key; OSError for what the store answers otherwise. A listing that fails raises,
    it never looks empty.
    """

    def __init__(self, url: str, endpoint_url: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._endpoint_url = endpoint_url
        self.local_root: Path | None = None
        if url.startswith("file://"):
            self.local_root = Path(url.removeprefix("file://"))
            self.local_root.mkdir(parents=True, exist_ok=True)

    @cached_property
    def _store(self) -> AnyStore:
        """Made on first use: a server that finds its bundles on disk never needs it."""
        from obstore.store import LocalStore, S3Store

        if self.local_root is not None:
            return LocalStore(self.local_root, mkdir=True)
        endpoint = self._endpoint_url
        options: dict[str, Any] = {"endpoint": endpoint, "virtual_hosted_style_request": False} if endpoint else {}
        if endpoint and endpoint.startswith("http://"):
            options["client_options"] = {"allow_http": True}
        return S3Store.from_url(self.url, **options)

    @classmethod
    def of(cls, settings: Settings) -> ObjectStore:
        return cls(settings.store_url, settings.s3_endpoint_url)

    def uri(self, key: str) -> str:
        return f"{self.url}/{key}"

    def list(self, prefix: str, *, after: str | None = None) -> Iterator[ObjectInfo]:
        """Every object under `prefix` (folder semantics), streamed in pages; after key `after` where given."""
        import obstore

        for page in obstore.list(self._store, prefix=prefix, offset=after, chunk_size=1000):
            for meta in page:
                yield _info(meta)

    def folders(self, prefix: str) -> Sequence[str]:
        """Names of the folders directly under `prefix`, sorted: one request per 1,000, whatever they hold."""
        import obstore

        result = obstore.list_with_delimiter(self._store, prefix=prefix)
        return sorted(p.rstrip("/").rsplit("/", 1)[-1] for p in result["common_prefixes"])

    def head(self, key: str) -> ObjectInfo:
        import obstore

        return _info(obstore.head(self._store, key))

    def exists(self, key: str) -> bool:
        try:
            self.head(key)
        except FileNotFoundError:
            return False
        return True

    def get(self, key: str) -> bytes:
        """The whole object; only for what is small by contract (reports, receipts)."""
        import obstore

        return bytes(obstore.get(self._store, key).bytes())

    def stream(self, key: str, *, etag: str | None = None) -> Iterator[bytes]:
        """The object's bytes in chunks. With `etag`: FileNotFoundError/OSError when the object is no longer that one."""
        import obstore

        options: Any = {"if_match": etag} if etag and self.local_root is None else None
        for chunk in obstore.get(self._store, key, options=options).stream(min_chunk_size=CHUNK):
            yield bytes(chunk)

    def digest(self, key: str) -> str:
        """SHA-256 (hex) of the object's bytes."""
        digest = hashlib.sha256()
        for chunk in self.stream(key):
            digest.update(chunk)
        return digest.hexdigest()

    def put(self, key: str, data: bytes | Path) -> None:
        import obstore

        obstore.put(self._store, key, data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Atomic create. False when the key exists already (nothing is written)."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        try:
            obstore.put(self._store, key, data, mode="create")
        except (AlreadyExistsError, FileExistsError):
            return False
        return True

    def delete(self, key: str) -> None:
        """Missing is fine."""
        import contextlib

        import obstore

        with contextlib.suppress(FileNotFoundError):
            obstore.delete(self._store, key)

    def download(self, key: str, target: Path, *, limit: int | None = None) -> str:
        """Stream to `target`; returns the SHA-256 (hex). ValueError when longer than `limit` bytes (nothing is left behind)."""
        digest = hashlib.sha256()
        size = 0
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with target.open("wb") as file:
                for chunk in self.stream(key):
                    size += len(chunk)
                    if limit is not None and size > limit:
                        raise ValueError(f"{key} is longer than {limit} bytes")
                    digest.update(chunk)
                    # In small pieces: what is written at once is cached in huge pages, which a server that maps a row of it holds whole.
                    for start in range(0, len(chunk), PIECE):
                        file.write(memoryview(chunk)[start : start + PIECE])
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        return digest.hexdigest()


def _info(meta: Any) -> ObjectInfo:
    return ObjectInfo(meta["path"], meta["size"], (meta["e_tag"] or "").strip('"'), meta["last_modified"], meta["version"])


def sha256_file(path: Path) -> str:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(1024**2))  # large pieces: the interpreter's lock is fought over once per piece
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(buffer[:size])
    return digest.hexdigest()
