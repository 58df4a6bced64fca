"""Helpers of the arrival tests: what is in the ledger, freezing, and the naive ways of noticing objects that must lose."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from pathlib import Path

from sqlalchemy import Engine, text

from mlops_assets.ingest import objects
from mlops_assets.lifecycle import dataset
from mlops_assets.store import ObjectStore

SYSTEM = "sentiment"


def put(store: ObjectStore, version: str, name: str, data: bytes | str) -> str:
    key = f"landing/{SYSTEM}/{version}/{name}"
    store.put(key, data if isinstance(data, bytes) else data.encode())
    return key


def ready(store: ObjectStore, version: str) -> None:
    put(store, version, "_READY", b"")


def tick(engine: Engine, store: ObjectStore, settle_seconds: float = 3600) -> objects.Tick:
    return objects.tick(engine, store, SYSTEM, settle_seconds=settle_seconds)


def freeze(engine: Engine, store: ObjectStore, version: str, tmp_path: Path, limit: int = 10**9, deep: bool = True) -> dataset.Manifest:
    return dataset.freeze(engine, store, SYSTEM, version, max_object_bytes=limit, scratch=tmp_path / "freeze", deep=deep)


def ledger(engine: Engine, version: str) -> list[tuple[str, str, str | None]]:
    """(name, state, reason code) of every row, sorted."""
    with engine.connect() as connection:
        rows = connection.execute(
            text("SELECT key, state, reason_code FROM landing_object WHERE system = :s AND version = :v"), {"s": SYSTEM, "v": version}
        )
        return sorted((row.key.rsplit("/", 1)[-1], row.state, row.reason_code) for row in rows)


def states(engine: Engine) -> dict[str, str]:
    with engine.connect() as connection:
        return {r.version: r.state for r in connection.execute(text("SELECT version, state FROM dataset_version"))}


def requests(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return [request.run_key for request in objects.runs_asked(connection, SYSTEM)]


def content(store: ObjectStore, manifest: dataset.Manifest) -> Counter[bytes]:
    """The frozen bytes of every entry."""
    return Counter(b"".join(dataset.open_entry(store, entry)) for entry in manifest.entries)


class SinceKey:
    """What `dagster_aws.s3.sensor.get_s3_keys(since_key=...)` does: objects by LastModified, those after the last key."""

    def __init__(self) -> None:
        self.last: str | None = None

    def __call__(self, store: ObjectStore, prefix: str) -> list[str]:
        keys = [info.key for info in sorted(store.list(prefix), key=lambda info: info.last_modified)]
        if self.last in keys:
            keys = keys[keys.index(self.last) + 1 :]
        if keys:
            self.last = keys[-1]
        return keys


class ModifiedAfter:
    """A cursor on LastModified with a strict `>`; object stores give it in whole seconds."""

    def __init__(self) -> None:
        self.last: datetime | None = None

    def __call__(self, store: ObjectStore, prefix: str) -> list[str]:
        found = [(info.last_modified.replace(microsecond=0), info.key) for info in store.list(prefix)]
        new = [(at, key) for at, key in found if self.last is None or at > self.last]
        if new:
            self.last = max(at for at, _ in new)
        return [key for _, key in new]
