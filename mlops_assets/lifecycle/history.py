"""What happened, for people: verdicts, promotions and versions as plain rows. Reading only; printing is `cli.py`'s."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_assets.lifecycle import ledger, promotion

if TYPE_CHECKING:
    from sqlalchemy import Connection


def at_home(moment: str) -> str:
    """A moment in ISO 8601 as people read it: in this machine's time, to the minute."""
    return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M")


def compare(connection: Connection, system: str, public_keys: Path, *, at: datetime | None = None) -> list[dict[str, Any]]:
    """One row per dataset version and variant, newest data first: its last verdict and its figures, refused ones beside the others; with
    `at`, what was known by then."""
    from sqlalchemy import text

    rows = connection.execute(
        text(
            "SELECT DISTINCT ON (d.first_seen_at, d.version, v.variant) d.version AS dataset_version, v.variant, v.outcome, v.sentence, "
            "v.at, v.attempt_id, v.report_id "
            "FROM dataset_version d LEFT JOIN verdict v ON v.system = d.system AND v.dataset_version = d.version "
            "AND (CAST(:at AS timestamptz) IS NULL OR v.at <= :at) "
            "WHERE d.system = :s AND (CAST(:at AS timestamptz) IS NULL OR d.first_seen_at <= :at) "
            "ORDER BY d.first_seen_at DESC, d.version, v.variant, v.id DESC"
        ),
        {"s": system, "at": at},
    ).all()
    registered = {
        receipt.body["attempt_id"]: receipt.version
        for receipt in promotion.genuine_receipts(connection, system, public_keys)
        if at is None or receipt.at <= at
    }
    found = []
    for row in rows:
        metrics = _figures(connection, row.report_id, public_keys)
        found.append(
            {
                "dataset_version": row.dataset_version,
                **({"variant": row.variant} if row.variant else {}),
                "verdict": row.outcome or "no attempt yet",
                "model": f"v{registered[row.attempt_id]}" if row.attempt_id in registered else "",
                **{name: metrics[name] for name in ("accuracy", "f1", "loss") if name in metrics},
                "why": row.sentence or "",
                "at": row.at.isoformat(timespec="seconds") if row.at else "",
            }
        )
    return found


def _figures(connection: Connection, report_id: int | None, public_keys: Path) -> Mapping[str, float]:
    """The report's metrics; none of a report that does not verify."""
    try:
        found = ledger.report(connection, report_id, public_keys)
    except ledger.UnverifiedReport:
        return {}
    return found.metrics if found is not None else {}


def events(connection: Connection, system: str, public_keys: Path, *, at: datetime | None = None, limit: int = 100) -> list[dict[str, Any]]:
    """Promotions that verify and verdicts in one list, newest first; with `at`, what was known by then."""
    from sqlalchemy import text

    rows = [
        (
            p.at,
            {
                "event": p.kind,
                "channel": p.channel,
                "model": f"v{p.version}",
                "dataset_version": p.dataset_version,
                "variant": p.receipt.variant,
                "actor": p.actor,
                "why": p.reason,
            },
        )
        for p in islice(promotion.verified(connection, system, public_keys, at=at), limit)
    ]
    verdicts = connection.execute(
        text(
            "SELECT * FROM verdict WHERE system = :s AND (CAST(:at AS timestamptz) IS NULL OR at <= :at) "
            "ORDER BY at DESC, id DESC LIMIT :limit"
        ),
        {"s": system, "at": at, "limit": limit},
    ).mappings()
    rows += [
        (
            v["at"],
            {
                "event": v["outcome"],
                "channel": "",
                "model": "",
                "dataset_version": v["dataset_version"],
                "variant": v["variant"],
                "actor": v["actor"],
                "why": v["sentence"],
            },
        )
        for v in verdicts
    ]
    newest = sorted(rows, key=lambda row: row[0], reverse=True)[:limit]
    return [{"at": moment.isoformat(timespec="seconds"), **row} for moment, row in newest]


def champion_at(connection: Connection, system: str, public_keys: Path, at: datetime | None = None) -> dict[str, Any] | None:
    """The champion now, or at a moment, by the promotions that verify: version, data, metrics, who and why."""
    p = next(promotion.verified(connection, system, public_keys, "champion", at=at), None)
    if p is None:
        return None
    return {
        "system": system,
        "version": p.version,
        "sequence": p.sequence,
        "dataset_version": p.dataset_version,
        "bundle_sha256": p.bundle_sha256,
        "metrics": p.receipt.metrics,
        "thresholds": p.receipt.body["thresholds"],
        "git_commit": p.receipt.body["git_commit"],
        "actor": p.actor,
        "reason": p.reason,
        "since": p.at.isoformat(timespec="seconds"),
        "uri": f"models:/{system}@champion",
    }


def last_report(connection: Connection, system: str, dataset_version: str, run_id: str, public_keys: Path) -> dict[str, Any] | None:
    """The report that a Dagster run wrote, if it verifies: its metrics and the champion beside them."""
    from sqlalchemy import text

    sql = text("SELECT id FROM report WHERE system = :s AND dagster_run_id = :run ORDER BY id DESC")
    for found in connection.execute(sql, {"s": system, "run": run_id}).scalars().all():
        with suppress(ledger.UnverifiedReport):
            report = ledger.report(connection, found, public_keys)
            if report is not None and report.dataset_version == dataset_version:
                body = report.body()
                return {"metrics": body["metrics"], "rows": body["rows"], "champion": body["champion"]}
    return None


def outcomes(connection: Connection, system: str, dataset_version: str) -> dict[str, str]:
    """Variant -> the outcome of its newest verdict on the dataset version: refused, registered or promoted."""
    return {variant: outcome for variant, outcome, _ in _newest_verdicts(connection, system, dataset_version)}


def sentences(connection: Connection, system: str, dataset_version: str) -> dict[str, str]:
    """Variant -> what its newest verdict on the dataset version says."""
    return {variant: sentence for variant, _, sentence in _newest_verdicts(connection, system, dataset_version)}


def _newest_verdicts(connection: Connection, system: str, dataset_version: str) -> list[tuple[str, str, str]]:
    from sqlalchemy import text

    sql = (
        "SELECT DISTINCT ON (variant) variant, outcome, sentence FROM verdict WHERE system = :s AND dataset_version = :v "
        "ORDER BY variant, id DESC"
    )
    return [(row.variant, row.outcome, row.sentence) for row in connection.execute(text(sql), {"s": system, "v": dataset_version})]
