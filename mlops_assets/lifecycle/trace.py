"""From an answer to the bytes that trained it: request id -> bundle digest -> receipt -> report -> dataset manifest -> commit.

Belongs here: joining what the ledgers hold, and checking each link. Does not belong here: printing (`cli.py`).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_assets.lifecycle import promotion
from mlops_assets.lifecycle.dataset import COPIES_AT_ONCE, DatasetError, Entry, Manifest, object_key, read_manifest
from mlops_assets.lifecycle.signing import BadSignature

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from mlops_assets.store import ObjectStore


class NotFound(LookupError):
    """No such request. The message says why it may be missing."""


def trace(connection: Connection, store: ObjectStore, public_keys: Path, request_id: str) -> dict[str, Any]:
    """Everything that stands behind one answer.

    `verified` is true only when the receipt's signature holds, the manifest, read from the store, has the digest that was signed, and
    every file that it names, its parents' included, is in the store with its size. The files are not hashed here, they may be many
    gigabytes: `dataset.objects_checked` says so. Materializing the version's `dataset` again reads every byte of them.

    Raises:
        NotFound: no answer with that id was recorded.
    """
    from sqlalchemy import text

    answer = (
        connection.execute(text("SELECT * FROM answer WHERE request_id = :id ORDER BY at DESC LIMIT 1"), {"id": request_id})
        .mappings()
        .first()
    )
    if answer is None:
        raise NotFound(
            f"no answer with the request id {request_id!r} was recorded (they are written within seconds; check the X-Request-ID header)"
        )
    system = answer["system"]
    receipt = promotion.receipt(connection, system, answer["version"])
    if receipt is None:
        raise NotFound(f"the answer names {system} v{answer['version']}, which has no receipt")
    problems = []
    try:
        promotion.verify_receipt(receipt, public_keys)
    except BadSignature as error:
        problems.append(str(error))
    if receipt.bundle_sha256 != answer["bundle_sha256"]:
        problems.append("the answer's bundle is not the receipt's")
    body = receipt.body
    dataset = (
        connection.execute(
            text("SELECT * FROM dataset_version WHERE system = :s AND version = :v"), {"s": system, "v": receipt.dataset_version}
        )
        .mappings()
        .first()
    )
    objects: list[dict[str, Any]] = []
    try:
        manifest = read_manifest(connection.engine, store, system, receipt.dataset_version)
    except DatasetError as error:
        problems.append(str(error))
    else:
        if manifest.sha256 != body["manifest_sha256"]:
            problems.append("the dataset version's manifest is not the one that trained the model")
        objects = _objects(connection, store, manifest, problems)
    promotions = [
        {"sequence": p.sequence, "channel": p.channel, "kind": p.kind, "actor": p.actor, "reason": p.reason, "at": p.at.isoformat()}
        for p in promotion.history(connection, system)
        if p.version == receipt.version
    ]
    return {
        "request_id": request_id,
        "answered_at": answer["at"].isoformat(),
        "system": system,
        "version": receipt.version,
        "bundle_sha256": receipt.bundle_sha256,
        "receipt": body,
        "promotions": promotions,
        "dataset": {
            "version": receipt.dataset_version,
            "manifest_sha256": body["manifest_sha256"],
            "manifest": store.uri(dataset["manifest_key"]) if dataset and dataset["manifest_key"] else None,
            "frozen_at": dataset["frozen_at"].isoformat() if dataset and dataset["frozen_at"] else None,
            "objects": objects,
            "objects_checked": "present with their size, not hashed",
        },
        "git_commit": body["git_commit"],
        "mlflow_run_id": body.get("mlflow_run_id"),
        "dagster_run_id": body.get("dagster_run_id"),
        "problems": problems,
        "verified": not problems,
    }


def _objects(connection: Connection, store: ObjectStore, manifest: Manifest, problems: list[str]) -> list[dict[str, Any]]:
    """Every file of the manifest, in the order of keys; one that is not in the store with its size is a problem."""
    from sqlalchemy import text

    deleted: dict[str, str] = {}
    if manifest.forgotten:
        rows = connection.execute(
            text("SELECT key, at FROM forgotten_object WHERE system = :s AND key = ANY(:k)"),
            {"s": manifest.system, "k": [entry.key for entry in manifest.forgotten]},
        )
        deleted = {row.key: row.at.isoformat() for row in rows}

    def look(entry: Entry) -> tuple[dict[str, Any], str | None]:
        one = {"key": entry.key, "size": entry.size, "sha256": entry.sha256}
        if entry.key in deleted:
            return one | {"deleted_on_request": deleted[entry.key]}, None
        frozen = object_key(entry.sha256)
        one["frozen"] = store.uri(frozen)
        try:
            size = store.head(frozen).size
        except FileNotFoundError:
            return one, f"the frozen bytes of {entry.key} are gone"
        return one, None if size == entry.size else f"the frozen bytes of {entry.key} are {size}, not {entry.size}: they were changed"

    entries = sorted([*manifest.entries, *manifest.forgotten], key=lambda entry: entry.key)
    with ThreadPoolExecutor(COPIES_AT_ONCE) as pool:
        looked = list(pool.map(look, entries))
    problems += [problem for _, problem in looked if problem]
    return [one for one, _ in looked]
