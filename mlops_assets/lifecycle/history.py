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


@dataclass(frozen=True)
class Absence:
    """Why a system has no champion, in English and Korean, and the next command."""

    why: str
    why_ko: str
    fix: str


#: Verdicts that an absence names.
NAMED = 3
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def absence(connection: Connection, system: str) -> Absence | None:
    """Why `system` has no champion although data arrived; None when none did. Of each model of a version its newest verdict counts."""
    from sqlalchemy import text

    verdicts = connection.execute(
        text(
            "SELECT outcome, sentence FROM (SELECT DISTINCT ON (dataset_version, variant) id, outcome, sentence FROM verdict "
            "WHERE system = :s ORDER BY dataset_version, variant, id DESC) newest ORDER BY id DESC"
        ),
        {"s": system},
    ).all()
    accepted = sum(verdict.outcome != "refused" for verdict in verdicts)
    if accepted:
        why = f"{_counted(accepted)} registered and none was promoted"
        fix = f"Promote one: `mlops produce {system} --reason TEXT`."
        return Absence(why, f"등록된 모델 {accepted}개 중 운영 모델로 승격된 것이 없습니다.", fix)
    if verdicts:
        named = "; ".join(verdict.sentence for verdict in verdicts[:NAMED]) + ("; ..." if len(verdicts) > NAMED else "")
        fix = f"`mlops history {system}` has every verdict; train on other data or with other parameters."
        return Absence(f"{_counted(len(verdicts))} refused: {named}", f"모델 {len(verdicts)}개가 기준을 넘지 못해 거절되었습니다.", fix)
    newest = connection.execute(
        text("SELECT version, state, reason FROM dataset_version WHERE system = :s ORDER BY first_seen_at DESC LIMIT 1"), {"s": system}
    ).first()
    if newest is None:
        return None
    if newest.state == "refused":
        why = f"{newest.version} was refused before any training: {newest.reason}"
        return Absence(
            why, "데이터가 거절되어 학습하지 않았습니다.", f"Land a better version: `mlops land {system} PATH --dataset-version V`."
        )
    why = f"{newest.version} has arrived, and no model of it was judged yet"
    return Absence(why, "데이터가 도착했고 아직 평가된 모델이 없습니다.", f"Try again later; `mlops history {system}` shows how far it is.")


def _counted(models: int) -> str:
    number = _NUMBERS[models] if models < len(_NUMBERS) else str(models)
    return f"{number} model was" if models == 1 else f"{number} models were"


def told_apart(names: Iterable[str], width: int) -> dict[str, str]:
    """Names as they are shown in `width` columns: long ones lose their middle, but never so that two look alike."""
    known = set(names)
    short = {name: name if len(name) <= width else f"{name[: width - 9]}…{name[-8:]}" for name in known}
    shared = {shown for shown, times in Counter(short.values()).items() if times > 1}
    return {name: name if shown in shared else shown for name, shown in short.items()}


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
