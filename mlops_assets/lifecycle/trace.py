"""From an answer to the bytes that trained it: request id -> bundle digest -> receipt -> report -> dataset manifest -> commit.

Belongs here: joining what the ledgers hold, and checking each link. Does not belong here: printing (`cli.py`).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_assets.lifecycle import ledger, promotion
from mlops_assets.lifecycle.bundle import key_of, weights_key
from mlops_assets.lifecycle.dataset import COPIES_AT_ONCE, DatasetError, Entry, Manifest, find_table, object_key, read_manifest
from mlops_assets.lifecycle.signing import BadSignature

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from mlops_assets.lifecycle.promotion import Receipt
    from mlops_assets.store import ObjectStore


class NotFound(LookupError):
    """No such request. The message says why it may be missing."""


def trace(connection: Connection, store: ObjectStore, public_keys: Path, request_id: str, *, read_bytes: bool = True) -> dict[str, Any]:
    """Everything that stands behind one answer.

    `verified` is true only when every link was followed and holds: the receipt, the attempt and the report that it names are signed, and
    the bundle, the table, the manifest and every file of it, its parents' included, have in the store the very bytes that they had.

    Args:
        read_bytes: without, files are only looked for, with their size; that finds problems, but verifies nothing.

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
        objects = _objects(connection, store, manifest, problems, read_bytes)
    problems += _evidence(connection, receipt, public_keys)
    if read_bytes:
        problems += _model(connection, store, receipt)
    promotions = [
        {"sequence": p.sequence, "channel": p.channel, "kind": p.kind, "actor": p.actor, "reason": p.reason, "at": p.at.isoformat()}
        for p in promotion.verified(connection, system, public_keys)
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
            "objects_checked": "every byte read" if read_bytes else "present with their size, not read",
        },
        "git_commit": body["git_commit"],
        "mlflow_run_id": body.get("mlflow_run_id"),
        "dagster_run_id": body.get("dagster_run_id"),
        "problems": problems,
        "verified": read_bytes and not problems,
    }


def _evidence(connection: Connection, receipt: Receipt, public_keys: Path) -> list[str]:
    """What is wrong with the rows that the receipt names. Receipts older than schema 0016 name no signed attempt: theirs is the word."""
    body, wrong = receipt.body, []
    try:
        report = ledger.report(connection, body["report_id"], public_keys)
        if report is None or report.sha256 != body["report_sha256"]:
            wrong.append(f"report {body['report_id']} is not the one that the receipt names")
    except ledger.UnverifiedReport as error:
        wrong.append(str(error))
    if "attempt_sha256" in body:
        try:
            if ledger.attempt(connection, body["attempt_id"], public_keys).sha256 != body["attempt_sha256"]:
                wrong.append(f"attempt {body['attempt_id']} is not the one that the receipt names")
        except ledger.LedgerError as error:
            wrong.append(str(error))
    return wrong


def _model(connection: Connection, store: ObjectStore, receipt: Receipt) -> list[str]:
    """What is wrong with the stored bytes of the bundle and its weights, where retention has not deleted them, and of the table."""
    body, named = receipt.body, {}
    if promotion.deleted(connection, store, receipt) is None:
        named = {key_of(receipt.bundle_sha256, name): file.sha256 for name, file in receipt.files.items()}
        named |= {weights_key(receipt.bundle_sha256, name): file.sha256 for name, file in receipt.weights.items()}
    table = find_table(connection.engine, receipt.system, receipt.dataset_version, body["manifest_sha256"])
    if table is not None and table.sha256 == body.get("table_sha256"):  # cleaned again to other rows, the former table is gone
        named |= {f"{table.prefix}/{part.name}": part.sha256 for part in table.parts}

    def look(key: str) -> str | None:
        try:
            return None if store.digest(key) == named[key] else f"the bytes of {store.uri(key)} were changed"
        except FileNotFoundError:
            return f"{store.uri(key)} is gone"

    with ThreadPoolExecutor(COPIES_AT_ONCE) as pool:
        return [problem for problem in pool.map(look, named) if problem]


def _objects(connection: Connection, store: ObjectStore, manifest: Manifest, problems: list[str], read_bytes: bool) -> list[dict[str, Any]]:
    """Every file of the manifest, in the order of keys; one that is not in the store with its bytes is a problem."""
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
        if size != entry.size:
            return one, f"the frozen bytes of {entry.key} are {size}, not {entry.size}: they were changed"
        if read_bytes and store.digest(frozen) != entry.sha256:
            return one, f"the frozen bytes of {entry.key} were changed"
        return one, None

    entries = sorted([*manifest.entries, *manifest.forgotten], key=lambda entry: entry.key)
    with ThreadPoolExecutor(COPIES_AT_ONCE) as pool:
        looked = list(pool.map(look, entries))
    problems += [problem for _, problem in looked if problem]
    return [one for one, _ in looked]
