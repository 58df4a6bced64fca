"""Old models do not pile up: which bundles' bytes may go, and deleting them. Receipts, attempts and reports always stay.

Belongs here: what is kept and why. Does not belong here: schedules (`jobs.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlops_assets.database import lock
from mlops_assets.lifecycle import clients, promotion
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
    """`delete`: (bundle digest, registered version or None, bytes)."""

    keep: list[Kept]
    delete: list[tuple[str, int | None, int]]


def plan(connection: Connection, system: str, public_keys: Path, *, rollback_depth: int, recent_attempts: int = 3) -> Plan:
    """What stays: what a channel serves, the last `rollback_depth` former champions, holds, and the newest attempts and versions.

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
    held = connection.execute(
        text("SELECT r.bundle_sha256, r.version, h.reason FROM hold h JOIN receipt r USING (system, version) WHERE system = :s"),
        {"s": system},
    )
    for row in held:
        keep(row.bundle_sha256, row.version, f"hold: {row.reason}")
    rows = connection.execute(
        text(
            "SELECT a.bundle_sha256, max(a.id) AS newest, max(r.version) AS version, "
            "(SELECT sum((f.value ->> 1)::bigint) FROM attempt b, jsonb_each(b.bundle_files) f WHERE b.id = max(a.id)) AS bytes "
            "FROM attempt a LEFT JOIN receipt r ON r.system = a.system AND r.bundle_sha256 = a.bundle_sha256 "
            "WHERE a.system = :s AND NOT EXISTS (SELECT FROM bundle_deleted d WHERE d.system = a.system "
            "AND d.bundle_sha256 = a.bundle_sha256) "
            "GROUP BY a.bundle_sha256 ORDER BY newest DESC"
        ),
        {"s": system},
    ).all()
    for row in rows[:recent_attempts]:
        keep(row.bundle_sha256, row.version, f"one of the {recent_attempts} newest attempts")
    delete = [(row.bundle_sha256, row.version, int(row.bytes or 0)) for row in rows if row.bundle_sha256 not in kept]
    return Plan(list(kept.values()), delete)


def apply(
    engine: Engine, store: ObjectStore, system: str, public_keys: Path, *, rollback_depth: int, actor: str, dry_run: bool = False
) -> Plan:
    """Delete the bytes that `plan` gives up, under the promotion lock: nothing can be promoted while it goes.

    The ledger row is committed before the bytes are deleted: a kill in between leaves bytes behind, never a version whose bytes are
    gone without saying so. The next call deletes what was left.
    """
    from sqlalchemy import text

    with engine.begin() as connection, lock(connection, f"mlops_assets.promotion.{system}"):
        found = plan(connection, system, public_keys, rollback_depth=rollback_depth)
        if dry_run:
            return found
        for digest, _, size in found.delete:
            connection.execute(
                text(
                    "INSERT INTO bundle_deleted (system, bundle_sha256, bytes, actor) VALUES (:s, :b, :bytes, :actor) "
                    "ON CONFLICT DO NOTHING"
                ),
                {"s": system, "b": digest, "bytes": size, "actor": actor},
            )
    with engine.connect() as connection:
        # A bundle of the same bytes may belong to another system too: its bytes go when none needs them.
        gone = connection.execute(
            text(
                "SELECT DISTINCT d.bundle_sha256 FROM bundle_deleted d WHERE d.system = :s AND NOT EXISTS ("
                "SELECT FROM attempt a WHERE a.bundle_sha256 = d.bundle_sha256 AND NOT EXISTS (SELECT FROM bundle_deleted e "
                "WHERE e.system = a.system AND e.bundle_sha256 = a.bundle_sha256))"
            ),
            {"s": system},
        ).scalars()
        for digest in list(gone):
            versions = connection.execute(
                text("SELECT version FROM receipt WHERE system = :s AND bundle_sha256 = :b"), {"s": system, "b": digest}
            ).scalars()
            files = [clients.prefix_of(system, version) for version in versions]
            for prefix in (f"bundles/{digest}", f"weights/{digest}", *files):
                for info in list(store.list(prefix)):
                    store.delete(info.key)
    return found
