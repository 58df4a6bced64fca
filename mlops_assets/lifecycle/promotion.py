"""The promotion ledger as its readers see it: which signed version a channel serves. Servers need only this and the public keys.

Belongs here: reading and verifying. Writing is the registrar's alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlops_assets.lifecycle.bundle import File, Files
from mlops_assets.lifecycle.report import CLASSIFIER, Direction
from mlops_assets.lifecycle.signing import BadSignature
from mlops_assets.lifecycle.signing import verify as verify_signature

if TYPE_CHECKING:
    from sqlalchemy import Connection, RowMapping

Channel = Literal["champion", "candidate"]


@dataclass(frozen=True)
class Receipt:
    """A registered model version. `payload` is the signed canonical JSON; the other fields are its columns, checked by `verify_receipt`."""

    system: str
    version: int
    variant: str
    dataset_version: str
    bundle_sha256: str
    payload: str
    signature: str
    key_id: str
    at: datetime

    @property
    def body(self) -> dict[str, Any]:
        return dict(json.loads(self.payload))

    @property
    def files(self) -> Files:
        return {name: File(sha256, size) for name, (sha256, size) in self.body["files"].items()}

    @property
    def metrics(self) -> dict[str, float]:
        return dict(self.body["metrics"])

    @property
    def directions(self) -> Mapping[str, Direction]:
        """Which way each metric is better, as its report said."""
        return self.body.get("directions") or CLASSIFIER


@dataclass(frozen=True)
class Promotion:
    """One row of the ledger with the receipt that it points to."""

    system: str
    sequence: int
    channel: str
    kind: str
    version: int
    bundle_sha256: str
    payload: str
    signature: str
    key_id: str
    actor: str
    reason: str
    at: datetime
    receipt: Receipt

    @property
    def files(self) -> Files:
        return self.receipt.files

    @property
    def dataset_version(self) -> str:
        return self.receipt.dataset_version


_PROMOTION = (
    "SELECT p.*, r.variant, r.dataset_version, r.bundle_sha256 AS r_bundle, r.payload AS r_payload, r.signature AS r_signature, "
    "r.key_id AS r_key_id, r.at AS r_at FROM promotion p JOIN receipt r USING (system, version) "
)


def latest(connection: Connection, system: str, channel: Channel) -> Promotion | None:
    """The newest row of the channel, not yet verified."""
    found = history(connection, system, channel, limit=1)
    return found[0] if found else None


def latest_verified(connection: Connection, system: str, channel: Channel, public_keys: Path) -> tuple[Promotion | None, list[str]]:
    """The newest row of the channel that verifies, and why each newer one does not: a forged row on top hides nothing."""
    rejected: list[str] = []
    for found in history(connection, system, channel, limit=1000):
        try:
            verify(found, public_keys)
        except BadSignature as error:
            rejected.append(str(error))
            continue
        return found, rejected
    return None, rejected


def verified_history(connection: Connection, system: str, channel: Channel, public_keys: Path) -> list[Promotion]:
    """Newest first, the rows that verify: what is decided from, where `history` is what people are shown."""

    def genuine(found: Promotion) -> bool:
        try:
            verify(found, public_keys)
        except BadSignature:
            return False
        return True

    return [found for found in history(connection, system, channel, limit=1000) if genuine(found)]


def history(
    connection: Connection, system: str, channel: Channel | None = None, *, limit: int = 100, at: datetime | None = None
) -> list[Promotion]:
    """Newest first; with `at`, only what had happened by then."""
    from sqlalchemy import text

    sql = _PROMOTION + (
        "WHERE p.system = :system AND (CAST(:channel AS text) IS NULL OR p.channel = :channel) "
        "AND (CAST(:at AS timestamptz) IS NULL OR p.at <= :at) ORDER BY p.sequence DESC LIMIT :limit"
    )
    rows = connection.execute(text(sql), {"system": system, "channel": channel, "at": at, "limit": limit}).mappings()
    return [_promotion(row) for row in rows]


def receipt(connection: Connection, system: str, version: int) -> Receipt | None:
    """The receipt of a registered version, not yet verified."""
    from sqlalchemy import text

    row = (
        connection.execute(
            text("SELECT * FROM receipt WHERE system = :system AND version = :version"), {"system": system, "version": version}
        )
        .mappings()
        .first()
    )
    return _receipt(row) if row else None


def receipts(connection: Connection, system: str) -> list[Receipt]:
    """Every registered version whose bytes are still there, newest first."""
    from sqlalchemy import text

    rows = connection.execute(
        text(
            "SELECT * FROM receipt r WHERE system = :system AND NOT EXISTS (SELECT FROM bundle_deleted d "
            "WHERE d.system = r.system AND d.bundle_sha256 = r.bundle_sha256) ORDER BY version DESC"
        ),
        {"system": system},
    ).mappings()
    return [_receipt(row) for row in rows]


def verify_receipt(found: Receipt, public_keys: Path) -> None:
    """Raises BadSignature unless the receipt is signed and its columns say what was signed."""
    verify_signature(found.payload, found.signature, found.key_id, public_keys)
    body = found.body
    for name in ("system", "version", "variant", "dataset_version", "bundle_sha256"):
        if body.get(name) != getattr(found, name):
            raise BadSignature(
                f"receipt {found.system} v{found.version}: {name} is {getattr(found, name)!r}, {body.get(name)!r} was signed"
            )


def verify(promotion: Promotion, public_keys: Path) -> None:
    """Raises BadSignature unless the promotion and its receipt are signed, say what was signed, and belong together."""
    verify_signature(promotion.payload, promotion.signature, promotion.key_id, public_keys)
    body = json.loads(promotion.payload)
    for name in ("system", "sequence", "channel", "kind", "version", "bundle_sha256", "actor", "reason"):
        if body.get(name) != getattr(promotion, name):
            raise BadSignature(
                f"promotion {promotion.system} #{promotion.sequence}: {name} is {getattr(promotion, name)!r}, {body.get(name)!r} was signed"
            )
    if promotion.receipt.bundle_sha256 != promotion.bundle_sha256:
        raise BadSignature(f"promotion {promotion.system} #{promotion.sequence} names another bundle than its receipt")
    verify_receipt(promotion.receipt, public_keys)


def _receipt(row: RowMapping) -> Receipt:
    names = ("system", "version", "variant", "dataset_version", "bundle_sha256", "payload", "signature", "key_id", "at")
    return Receipt(**{name: row[name] for name in names})


def _promotion(row: RowMapping) -> Promotion:
    own = ("system", "sequence", "channel", "kind", "version", "bundle_sha256", "payload", "signature", "key_id", "actor", "reason", "at")
    return Promotion(
        **{name: row[name] for name in own},
        receipt=Receipt(
            row["system"],
            row["version"],
            row["variant"],
            row["dataset_version"],
            row["r_bundle"],
            row["r_payload"],
            row["r_signature"],
            row["r_key_id"],
            row["r_at"],
        ),
    )
