"""Keys that no tool of ours would write: put into a store behind its back, as strangers' tools do."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

from sqlalchemy import Engine, text

from mlops_assets.store import ObjectStore

#: The account that moto gives whoever comes.
ACCOUNT = "123456789012"


def put_raw(store: ObjectStore, key: str, data: bytes = b"odd") -> None:
    """An object under exactly this key (bytes that are not UTF-8 as surrogates). In a file store a slash at the end makes a folder."""
    if store.local_root is not None:
        path = Path(store.local_root, key)
        if key.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return
    from moto.s3.models import s3_backends

    bucket, _, base = store.url.removeprefix("s3://").partition("/")
    s3_backends[ACCOUNT]["aws"].put_object(bucket, f"{base}/{key}", data)


def link(store: ObjectStore, key: str, target: Path | str) -> None:
    assert store.local_root is not None
    path = store.local_root / key
    path.parent.mkdir(parents=True, exist_ok=True)
    os.symlink(target, path)


def arrived(store: ObjectStore, key: str, seconds: int) -> None:
    """An object came so many seconds from now: S3 has whole seconds, a test has not."""
    if store.local_root is None:
        from moto.s3.models import s3_backends

        bucket, _, base = store.url.removeprefix("s3://").partition("/")
        found = s3_backends[ACCOUNT]["aws"].get_object(bucket, f"{base}/{key}")
        assert found is not None
        found.last_modified += timedelta(seconds=seconds)


def rows(engine: Engine, version: str) -> dict[str, tuple[str, str]]:
    """Key -> state or reason code, and reason."""
    with engine.connect() as connection:
        found = connection.execute(
            text("SELECT key, coalesce(reason_code, state) AS code, coalesce(reason, '') AS reason FROM landing_object WHERE version = :v"),
            {"v": version},
        )
        return {row.key: (row.code, row.reason) for row in found}
