"""What happened, for people: verdicts, promotions and versions as plain rows. Reading only; printing is `cli.py`'s."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from mlops_assets.lifecycle import promotion

if TYPE_CHECKING:
    from sqlalchemy import Connection


def at_home(moment: str) -> str:
    """A moment in ISO 8601 as people read it: in this machine's time, to the minute."""
    return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M")


def compare(connection: Connection, system: str) -> list[dict[str, Any]]:
    """One row per dataset version and variant, newest data first: its last verdict and its figures, refused ones beside the others."""
    from sqlalchemy import text

    rows = connection.execute(
        text(
            "SELECT DISTINCT ON (d.first_seen_at, d.version, v.variant) d.version AS dataset_version, v.variant, v.outcome, v.sentence, "
            "v.at, r.version AS model_version, p.body -> 'metrics' AS metrics "
            "FROM dataset_version d LEFT JOIN verdict v ON v.system = d.system AND v.dataset_version = d.version "
            "LEFT JOIN report p ON p.id = v.report_id "
            "LEFT JOIN receipt r ON r.system = v.system AND r.attempt_id = v.attempt_id "
            "WHERE d.system = :s ORDER BY d.first_seen_at DESC, d.version, v.variant, v.id DESC"
        ),
        {"s": system},
    )
    found = []
    for row in rows:
        metrics = {name: float(value) for name, value in (row.metrics or {}).items()}
        found.append(
            {
                "dataset_version": row.dataset_version,
                **({"variant": row.variant} if row.variant else {}),
                "verdict": row.outcome or "no attempt yet",
                "model": f"v{row.model_version}" if row.model_version else "",
                **{name: metrics[name] for name in ("accuracy", "f1", "loss") if name in metrics},
                "why": row.sentence or "",
                "at": row.at.isoformat(timespec="seconds") if row.at else "",
            }
        )
    return found


def events(connection: Connection, system: str, *, at: datetime | None = None, limit: int = 100) -> list[dict[str, Any]]:
    """Promotions and verdicts in one list, newest first; with `at`, what was known by then."""
    from sqlalchemy import text

    rows = [
        {
            "at": p.at.isoformat(timespec="seconds"),
            "event": p.kind,
            "channel": p.channel,
            "model": f"v{p.version}",
            "dataset_version": p.dataset_version,
            "variant": p.receipt.variant,
            "actor": p.actor,
            "why": p.reason,
        }
        for p in promotion.history(connection, system, at=at, limit=limit)
    ]
    verdicts = connection.execute(
        text("SELECT * FROM verdict WHERE system = :s AND (CAST(:at AS timestamptz) IS NULL OR at <= :at) ORDER BY id DESC LIMIT :limit"),
        {"s": system, "at": at, "limit": limit},
    ).mappings()
    rows += [
        {
            "at": v["at"].isoformat(timespec="seconds"),
            "event": v["outcome"],
            "channel": "",
            "model": "",
            "dataset_version": v["dataset_version"],
            "variant": v["variant"],
            "actor": v["actor"],
            "why": v["sentence"],
        }
        for v in verdicts
    ]
    return sorted(rows, key=lambda row: row["at"], reverse=True)[:limit]


def champion_at(connection: Connection, system: str, at: datetime | None = None) -> dict[str, Any] | None:
    """The champion now, or at a moment: version, data, metrics, who and why."""
    found = promotion.history(connection, system, "champion", limit=1, at=at)
    if not found:
        return None
    p = found[0]
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


def last_report(connection: Connection, system: str, dataset_version: str, run_id: str) -> dict[str, Any] | None:
    """The report that a Dagster run wrote: its metrics and the champion beside them."""
    from sqlalchemy import text

    body = connection.execute(
        text(
            "SELECT body FROM report WHERE system = :s AND body ->> 'dataset_version' = :v AND dagster_run_id = :run "
            "ORDER BY id DESC LIMIT 1"
        ),
        {"s": system, "v": dataset_version, "run": run_id},
    ).scalar()
    return {"metrics": body["metrics"], "rows": body["rows"], "champion": body["champion"]} if body else None


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
