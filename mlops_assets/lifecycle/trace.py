"""From an answer to the bytes that trained it: request id -> bundle digest -> receipt -> report -> dataset manifest -> commit.

Belongs here: joining what the ledgers hold, and checking each link. Does not belong here: printing (`cli.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_assets.lifecycle import promotion
from mlops_assets.lifecycle.signing import BadSignature

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from mlops_assets.store import ObjectStore


class NotFound(LookupError):
    """No such request. The message says why it may be missing."""


def trace(connection: Connection, store: ObjectStore, public_keys: Path, request_id: str) -> dict[str, Any]:
    """Everything that stands behind one answer. `verified` is true only when the receipt's signature and the manifest's digest hold.

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
    if dataset is None or dataset["manifest_sha256"] != body["manifest_sha256"]:
        problems.append("the dataset version's manifest is not the one that trained the model")
    objects = _objects(connection, store, system, receipt.dataset_version, problems)
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
        },
        "git_commit": body["git_commit"],
        "mlflow_run_id": body.get("mlflow_run_id"),
        "dagster_run_id": body.get("dagster_run_id"),
        "problems": problems,
        "verified": not problems,
    }


def _objects(connection: Connection, store: ObjectStore, system: str, version: str, problems: list[str]) -> list[dict[str, Any]]:
    from sqlalchemy import text

    rows = connection.execute(
        text(
            "SELECT l.key, l.size, l.sha256, f.at AS forgotten_at FROM landing_object l LEFT JOIN forgotten_object f USING (system, key) "
            "WHERE l.system = :s AND l.version = :v AND l.state = 'accepted' ORDER BY l.key"
        ),
        {"s": system, "v": version},
    )
    found = []
    for row in rows:
        one = {"key": row.key, "size": row.size, "sha256": row.sha256}
        frozen = f"objects/sha256/{row.sha256[:2]}/{row.sha256}"
        if row.forgotten_at is not None:
            found.append(one | {"deleted_on_request": row.forgotten_at.isoformat()})
            continue
        if not store.exists(frozen):
            problems.append(f"the frozen bytes of {row.key} are gone")
        found.append(one | {"frozen": store.uri(frozen)})
    return found
