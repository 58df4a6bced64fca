"""Old models do not pile up: which bundles' bytes may go, and deleting them. Receipts, attempts and reports always stay.

What goes is decided each time anew, from rows that verify and from what is in the store: no row that says that a bundle was given up is
ever an order to delete it. Belongs here: what is kept and why. Does not belong here: schedules (`jobs.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlops_assets.database import lock
from mlops_assets.lifecycle import clients, ledger, promotion
from mlops_assets.lifecycle.signing import BadSignature

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from mlops_assets.store import ObjectStore


@dataclass(frozen=True)
class Kept:
    bundle_sha256: str
    version: int | None
    why: str


@dataclass(frozen=True)
class Plan:
    """`delete`: (bundle digest, registered version or None, bytes); `unsigned`: bundles that stay because only attempts without a signature
    name them (older than schema 0016)."""

    keep: list[Kept]
    delete: list[tuple[str, int | None, int]]
    unsigned: list[str]


@dataclass(frozen=True)
class _Bundle:
    """A bundle that a verified attempt or receipt of the system names; `attempt`: the newest one's number, 0 without."""

    bundle_sha256: str
    attempt: int
    size: int
    versions: Sequence[int]

    @property
    def version(self) -> int | None:
        return max(self.versions, default=None)


def _bundles(connection: Connection, system: str, public_keys: Path) -> list[_Bundle]:
    """Every bundle of the system that something signed names, the newest attempt's first."""
    found: dict[str, _Bundle] = {}
    for attempt in ledger.attempts(connection, system, public_keys):
        size = sum(file.size for file in attempt.bundle_files.values())
        found.setdefault(attempt.bundle_sha256, _Bundle(attempt.bundle_sha256, attempt.id, size, []))
    for receipt in promotion.genuine_receipts(connection, system, public_keys):
        size = sum(file.size for file in receipt.files.values())
        # Attempts older than schema 0016 are not signed; the receipts of some are, with the attempt's number.
        known = found.setdefault(receipt.bundle_sha256, _Bundle(receipt.bundle_sha256, receipt.body["attempt_id"], size, []))
        found[receipt.bundle_sha256] = _Bundle(known.bundle_sha256, known.attempt, known.size, [*known.versions, receipt.version])
    return sorted(found.values(), key=lambda bundle: bundle.attempt, reverse=True)


def plan(
    connection: Connection, store: ObjectStore, system: str, public_keys: Path, *, rollback_depth: int, recent_attempts: int = 3
) -> Plan:
    """What stays: what a channel serves, the last `rollback_depth` former champions, holds, and the newest attempts and versions. Of the
    rest, `delete` has what the store still holds.

    Raises:
        BadSignature: there are promotions, and none verifies: without the public keys nothing is given up.
    """
    from sqlalchemy import text

    kept: dict[str, Kept] = {}

    def keep(digest: str, version: int | None, why: str) -> None:
        kept.setdefault(digest, Kept(digest, version, why))

    champions = promotion.verified_history(connection, system, "champion", public_keys)
    if not champions and promotion.latest(connection, system, "champion") is not None:
        raise BadSignature(f"no promotion of {system} verifies with the keys in {public_keys}: nothing is deleted")
    former = list(dict.fromkeys((p.bundle_sha256, p.version) for p in champions))
    for index, (digest, version) in enumerate(former[: rollback_depth + 1]):
        keep(digest, version, "champion" if index == 0 else f"rollback depth {index} of {rollback_depth}")
    candidate, _ = promotion.latest_verified(connection, system, "candidate", public_keys)
    if candidate is not None:
        keep(candidate.bundle_sha256, candidate.version, "candidate")
    bundles = _bundles(connection, system, public_keys)
    held = dict(connection.execute(text("SELECT version, reason FROM hold WHERE system = :s"), {"s": system}).tuples().all())
    for bundle in bundles:
        for version in bundle.versions:
            if version in held:
                keep(bundle.bundle_sha256, version, f"hold: {held[version]}")
    there = set(store.folders("bundles"))
    present = [bundle for bundle in bundles if bundle.bundle_sha256 in there and _has_bytes(store, bundle.bundle_sha256)]
    for bundle in present[:recent_attempts]:
        keep(bundle.bundle_sha256, bundle.version, f"one of the {recent_attempts} newest attempts")
    delete = [(bundle.bundle_sha256, bundle.version, bundle.size) for bundle in present if bundle.bundle_sha256 not in kept]
    named = set(connection.execute(text("SELECT bundle_sha256 FROM attempt WHERE system = :s"), {"s": system}).scalars())
    unsigned = sorted((named & there) - {bundle.bundle_sha256 for bundle in bundles} - kept.keys())
    return Plan(list(kept.values()), delete, unsigned)


def _has_bytes(store: ObjectStore, digest: str) -> bool:
    """A file system keeps the empty folder of what was deleted. `apply` deletes these files last."""
    return next(iter(store.list(f"bundles/{digest}")), None) is not None


def apply(
    engine: Engine, store: ObjectStore, system: str, public_keys: Path, *, rollback_depth: int, actor: str, dry_run: bool = False
) -> Plan:
    """Delete the bytes that `plan` gives up, under the promotion lock: nothing can be promoted while it goes.

    The ledger row is committed before the bytes are deleted: a kill in between leaves bytes behind, never a version whose bytes are
    gone without saying so. The next call decides again, and deletes what was left.
    """
    from sqlalchemy import text

    with engine.begin() as connection, lock(connection, f"mlops_assets.promotion.{system}"):
        found = plan(connection, store, system, public_keys, rollback_depth=rollback_depth)
        if dry_run:
            return found
        sql = text(
            "INSERT INTO bundle_deleted (system, bundle_sha256, bytes, actor) VALUES (:s, :b, :bytes, :actor) ON CONFLICT DO NOTHING"
        )
        for digest, _, size in found.delete:
            connection.execute(sql, {"s": system, "b": digest, "bytes": size, "actor": actor})
    with engine.begin() as connection, lock(connection, f"mlops_assets.promotion.{system}"):
        # Decided once more: what was trained to the same bytes or promoted meanwhile stays.
        now = {digest for digest, _, _ in plan(connection, store, system, public_keys, rollback_depth=rollback_depth).delete}
        versions = {bundle.bundle_sha256: bundle.versions for bundle in _bundles(connection, system, public_keys)}
        for digest, _, _ in found.delete:
            if digest not in now or _is_needed_elsewhere(connection, store, system, digest, public_keys, rollback_depth=rollback_depth):
                continue
            files = [clients.prefix_of(system, version) for version in versions[digest]]
            for prefix in (f"weights/{digest}", *files, f"bundles/{digest}"):
                for info in list(store.list(prefix)):
                    store.delete(info.key)
    return found


def _is_needed_elsewhere(
    connection: Connection, store: ObjectStore, system: str, digest: str, public_keys: Path, *, rollback_depth: int
) -> bool:
    """A bundle of the same bytes may belong to another system too: its bytes go when no system keeps them."""
    from sqlalchemy import text

    sql = text("SELECT system FROM attempt WHERE bundle_sha256 = :b UNION SELECT system FROM receipt WHERE bundle_sha256 = :b")
    for other in set(connection.execute(sql, {"b": digest}).scalars()) - {system}:
        if any(bundle.bundle_sha256 == digest for bundle in _bundles(connection, other, public_keys)):
            theirs = plan(connection, store, other, public_keys, rollback_depth=rollback_depth)
            if digest not in {given_up for given_up, _, _ in theirs.delete}:
                return True
    return False
