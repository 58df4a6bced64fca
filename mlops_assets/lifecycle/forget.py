"""Files of dataset versions that somebody asked to be deleted: their bytes go everywhere, manifests keep names and digests, and the models
that were trained on them are named.

That a file is forgotten is committed first, its bytes are deleted then: after a kill in between, the next call deletes what was left, and
a manifest never misses bytes without saying why. Belongs here: what is the same whatever the files are. Does not belong here: whose they
are (`ingest/drawn.py`), what a manifest without them is (`dataset.py`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_assets import crash, names
from mlops_assets.ingest.objects import prefix_of
from mlops_assets.lifecycle import promotion
from mlops_assets.lifecycle.dataset import object_key

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from mlops_assets.store import ObjectStore


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class File:
    """One file of a version: where it landed, and the digest of its bytes."""

    version: str
    key: str
    sha256: str


def record(connection: Connection, system: str, files: Iterable[File]) -> None:
    """Say, in the caller's transaction, that the files are forgotten. Their bytes are still there: `finish` follows."""
    from sqlalchemy import text

    sql = text("INSERT INTO forgotten_object (system, version, key, sha256) VALUES (:s, :v, :k, :d) ON CONFLICT DO NOTHING")
    for file in files:
        connection.execute(sql, {"s": system, "v": file.version, "k": file.key, "d": file.sha256})


def finish(engine: Engine, store: ObjectStore, system: str) -> list[str]:
    """Delete the bytes of what is forgotten and not yet gone, and every table that was cleaned from it (they are made again without).

    Returns:
        The versions that it was in.
    """
    from sqlalchemy import text

    with engine.connect() as connection:
        sql = text("SELECT version, key FROM forgotten_object WHERE system = :s AND NOT finished ORDER BY version, key")
        files = connection.execute(sql, {"s": system}).all()
        versions = sorted({str(file.version) for file in files})
        affected = _with_heirs(connection, system, versions)
    for version in versions:
        delete_bytes(engine, store, system, version)
    crash.reach("forget.after_bytes")
    for version in affected:
        for info in list(store.list(f"cleaned/{system}/{version}")):
            store.delete(info.key)
    with engine.begin() as connection:
        # These alone: of what others had forgotten meanwhile the bytes may still be there.
        mark = text("UPDATE forgotten_object SET finished = true WHERE system = :s AND key = ANY(:k)")
        connection.execute(mark, {"s": system, "k": [file.key for file in files]})
    return versions


def delete_bytes(engine: Engine, store: ObjectStore, system: str, version: str) -> int:
    """Delete the landed and the frozen bytes of the version's forgotten files; returns how many files these are.

    Also called when a version was frozen: freezing may have copied a file while it was being forgotten.
    """
    from sqlalchemy import text

    # The same bytes may stand in another file that nobody asked to delete.
    sql = text(
        "SELECT f.key, f.sha256, EXISTS (SELECT FROM landing_object l WHERE l.sha256 = f.sha256 AND NOT EXISTS "
        "(SELECT FROM forgotten_object g WHERE (g.system, g.key) = (l.system, l.key))) AS needed "
        "FROM forgotten_object f WHERE f.system = :s AND f.version = :v"
    )
    with engine.connect() as connection:
        files = connection.execute(sql, {"s": system, "v": version}).all()
    for file in files:
        if not file.key.startswith(f"{prefix_of(system, version)}/") or not names.DIGEST.fullmatch(file.sha256):
            # Not written by `record`: whoever inserted it has no other file deleted, and holds up nothing that others asked for.
            logger.error("forgotten_object: %r is no file of %s %s, it is left alone", file.key[:200], system, version)
            continue
        store.delete(file.key)
        if not file.needed:
            store.delete(object_key(file.sha256))
    return len(files)


def trained_on(connection: Connection, system: str, versions: Sequence[str], public_keys: Path) -> dict[str, Any]:
    """The dataset versions that hold what `versions` landed, and the models trained on them or going on from one that was.

    Returns:
        `dataset_versions`: names; `models`: of each attempt its `variant`, `dataset_version`, `bundle_sha256`, `version` (None: it is not
        registered) and `state`: `champion`, `candidate`, `former champion`, `registered` or `not registered`.
    """
    from sqlalchemy import text

    affected = _with_heirs(connection, system, versions)
    # Attempts that nobody signed too: it is better to name one too many.
    rows = connection.execute(
        text(
            "WITH RECURSIVE taught AS ("
            "  SELECT a.id, a.variant, a.dataset_version, a.bundle_sha256 FROM attempt a "
            "    WHERE a.system = :s AND a.dataset_version = ANY(:v)"
            "  UNION SELECT b.id, b.variant, b.dataset_version, b.bundle_sha256 FROM attempt b JOIN taught t "
            "    ON b.system = :s AND b.parent_bundle_sha256 = t.bundle_sha256"
            ") SELECT variant, dataset_version, bundle_sha256 FROM taught ORDER BY id"
        ),
        {"s": system, "v": affected},
    ).mappings()
    registered = {receipt.bundle_sha256: receipt.version for receipt in promotion.genuine_receipts(connection, system, public_keys)}
    states = dict.fromkeys(registered.values(), "registered")
    for channel in ("candidate", "champion"):
        promoted = promotion.verified_history(connection, system, channel, public_keys)
        states |= {found.version: "former champion" for found in promoted if channel == "champion"}
        states |= {found.version: channel for found in promoted[:1]}
    models = [dict(row) | {"version": registered.get(row["bundle_sha256"])} for row in rows]
    for model in models:
        model["state"] = states.get(model["version"], "not registered")
    models.sort(key=lambda model: math.inf if model["version"] is None else model["version"])
    return {"dataset_versions": affected, "models": models}


def _with_heirs(connection: Connection, system: str, versions: Sequence[str]) -> list[str]:
    """The versions and all that extend them."""
    from sqlalchemy import text

    rows = connection.execute(
        text(
            "WITH RECURSIVE line AS (SELECT version FROM dataset_version WHERE system = :s AND version = ANY(:v) UNION "
            "SELECT d.version FROM dataset_version d JOIN line ON d.parent = line.version WHERE d.system = :s) "
            "SELECT version FROM line ORDER BY version"
        ),
        {"s": system, "v": list(versions)},
    )
    return [str(version) for version in rows.scalars()]
