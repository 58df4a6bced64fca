"""The promotion ledger as its readers see it: which signed version a channel serves. Servers need only this and the public keys.

Belongs here: reading and verifying. Writing is the registrar's alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from mlops_assets.lifecycle.bundle import File, Files, key_of
from mlops_assets.lifecycle.report import CLASSIFIER, BaselineScore, ChampionScore, Direction, Report
from mlops_assets.lifecycle.signing import BadSignature
from mlops_assets.lifecycle.signing import verify as verify_signature

if TYPE_CHECKING:
    from sqlalchemy import Connection, RowMapping

    from mlops_assets.store import ObjectStore

Channel = Literal["champion", "candidate"]
#: Rows read at once.
PAGE: Final = 500
#: Reasons kept of rows that do not verify: anybody may insert a million of them.
REJECTED_AT_MOST: Final = 20


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
    def weights(self) -> Files:
        """The fp32 weights kept beside the bundle; empty in receipts older than schema 0016."""
        return {name: File(sha256, size) for name, (sha256, size) in self.body.get("weights", {}).items()}

    @property
    def metrics(self) -> dict[str, float]:
        return dict(self.body["metrics"])

    @property
    def evidence(self) -> Report:
        """What was measured when it was registered, as it was signed: the gate's rules of today can be asked of it."""
        body = self.body
        compared = body.get("compared")
        return Report(
            system=self.system,
            variant=self.variant,
            dataset_version=self.dataset_version,
            attempt_id=body["attempt_id"],
            bundle_sha256=self.bundle_sha256,
            manifest_sha256=body["manifest_sha256"],
            holdout_sha256=body["holdout_sha256"],
            rows=body["rows"],
            metrics=self.metrics,
            created_at=self.at,
            champion=ChampionScore.from_body(compared) if compared else None,
            directions=self.directions,
            support=body.get("support", {}),
            trivial=body.get("trivial", {}),
            baseline=BaselineScore.from_body(body["baseline"]) if body.get("baseline") else None,
        )

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
    def body(self) -> dict[str, Any]:
        return dict(json.loads(self.payload))

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
    """The newest row of the channel, whoever wrote it: nothing is decided from it."""
    found = history(connection, system, channel, limit=1)
    return found[0] if found else None


def latest_verified(connection: Connection, system: str, channel: Channel, public_keys: Path) -> tuple[Promotion | None, list[str]]:
    """The newest row of the channel that verifies, and why newer ones do not (the first few): forged rows on top hide nothing."""
    rejected: list[str] = []
    return next(verified(connection, system, public_keys, channel, rejected=rejected), None), rejected


def verified_history(connection: Connection, system: str, channel: Channel, public_keys: Path) -> list[Promotion]:
    """Newest first, all rows that verify: what is decided from, where `history` is what the table holds."""
    return list(verified(connection, system, public_keys, channel))


def verified(
    connection: Connection,
    system: str,
    public_keys: Path,
    channel: Channel | None = None,
    *,
    at: datetime | None = None,
    rejected: list[str] | None = None,
) -> Iterator[Promotion]:
    """The rows that verify, newest first, read page by page as far as the caller goes. What does not verify counts nowhere.

    Args:
        at: only what had happened by then.
        rejected: is given why the first few do not verify.
    """
    before = None
    while rows := history(connection, system, channel, limit=PAGE, at=at, before=before):
        for found in rows:
            try:
                verify(found, public_keys)
            except BadSignature as error:
                if rejected is not None and len(rejected) < REJECTED_AT_MOST:
                    rejected.append(str(error))
                continue
            yield found
        before = rows[-1].sequence


def next_sequence(connection: Connection, system: str, public_keys: Path) -> int:
    """The number of the system's next promotion: the first free one after the newest that verifies. The caller holds the lock."""
    newest = next(verified(connection, system, public_keys), None)
    return free_number(connection, "promotion", "sequence", system, newest.sequence if newest else 0)


def next_version(connection: Connection, system: str, public_keys: Path) -> int:
    """The number of the system's next receipt, likewise."""
    newest = next(iter(genuine_receipts(connection, system, public_keys)), None)
    return free_number(connection, "receipt", "version", system, newest.version if newest else 0)


def free_number(connection: Connection, table: str, column: str, system: str, after: int) -> int:
    """The first number after `after` that no row of the system has, forged ones included."""
    from sqlalchemy import text

    sql = (
        f"SELECT count(*) FROM (SELECT {column}::bigint - :after AS distance, row_number() OVER (ORDER BY {column}) AS place "
        f"FROM {table} WHERE system = :s AND {column} > :after) taken WHERE distance = place"
    )
    return after + 1 + int(connection.execute(text(sql), {"s": system, "after": after}).scalar_one())


def history(
    connection: Connection,
    system: str,
    channel: Channel | None = None,
    *,
    limit: int = 100,
    at: datetime | None = None,
    before: int | None = None,
) -> list[Promotion]:
    """The table's rows, newest first, not yet verified; with `at` what had happened by then, with `before` lower sequences only."""
    from sqlalchemy import text

    sql = _PROMOTION + (
        "WHERE p.system = :system AND (CAST(:channel AS text) IS NULL OR p.channel = :channel) "
        "AND (CAST(:at AS timestamptz) IS NULL OR p.at <= :at) AND (CAST(:before AS bigint) IS NULL OR p.sequence < :before) "
        "ORDER BY p.sequence DESC LIMIT :limit"
    )
    values = {"system": system, "channel": channel, "at": at, "before": before, "limit": limit}
    return [_promotion(row) for row in connection.execute(text(sql), values).mappings()]


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


def genuine_receipts(connection: Connection, system: str, public_keys: Path, *, bundle_sha256: str | None = None) -> Iterator[Receipt]:
    """Every registered version whose receipt verifies (of that bundle), newest first. Their bytes may be gone: see `deleted`."""
    from sqlalchemy import text

    sql = text(
        "SELECT * FROM receipt WHERE system = :s AND (CAST(:bundle AS text) IS NULL OR bundle_sha256 = :bundle) "
        "AND (CAST(:before AS integer) IS NULL OR version < :before) ORDER BY version DESC LIMIT :limit"
    )
    values: dict[str, Any] = {"s": system, "bundle": bundle_sha256, "before": None, "limit": PAGE}
    while rows := [_receipt(row) for row in connection.execute(sql, values).mappings()]:
        yield from (found for found in rows if _is_genuine(found, public_keys))
        values["before"] = rows[-1].version


def _is_genuine(found: Receipt, public_keys: Path) -> bool:
    try:
        verify_receipt(found, public_keys)
    except BadSignature:
        return False
    return True


def deleted(connection: Connection, store: ObjectStore, receipt: Receipt) -> datetime | None:
    """When retention deleted the version's bytes; None: it did not. A row that says so of bytes that are there is not believed."""
    from sqlalchemy import text

    sql = text("SELECT at FROM bundle_deleted WHERE system = :s AND bundle_sha256 = :b")
    at: datetime | None = connection.execute(sql, {"s": receipt.system, "b": receipt.bundle_sha256}).scalar()
    there = at is not None and all(store.exists(key_of(receipt.bundle_sha256, name)) for name in receipt.files)
    return None if there else at


def verify_receipt(found: Receipt, public_keys: Path) -> None:
    """Raises BadSignature unless the receipt is signed and its columns say what was signed."""
    verify_signature(found.payload, found.signature, found.key_id, public_keys)
    _check_columns(f"receipt {found.system} v{found.version}", found, ("system", "version", "variant", "dataset_version", "bundle_sha256"))


def verify(promotion: Promotion, public_keys: Path) -> None:
    """Raises BadSignature unless the promotion and its receipt are signed, say what was signed, and belong together."""
    verify_signature(promotion.payload, promotion.signature, promotion.key_id, public_keys)
    names = ("system", "sequence", "channel", "kind", "version", "bundle_sha256", "actor", "reason")
    _check_columns(f"promotion {promotion.system} #{promotion.sequence}", promotion, names)
    if promotion.receipt.bundle_sha256 != promotion.bundle_sha256:
        raise BadSignature(f"promotion {promotion.system} #{promotion.sequence} names another bundle than its receipt")
    verify_receipt(promotion.receipt, public_keys)


def _check_columns(what: str, row: Receipt | Promotion, names: Sequence[str]) -> None:
    """Raises BadSignature unless the columns, the time among them, say what was signed."""
    body = json.loads(row.payload)
    for name in names:
        if body.get(name) != getattr(row, name):
            raise BadSignature(f"{what}: {name} is {getattr(row, name)!r}, {body.get(name)!r} was signed")
    if datetime.fromisoformat(body["at"]) != row.at:
        raise BadSignature(f"{what}: its time is {row.at.isoformat()}, {body['at']} was signed")


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
