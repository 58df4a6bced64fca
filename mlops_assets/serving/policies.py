"""`GET /policies`: the rules of a region as they hold, or held at a time, from the table `policy`.

Belongs here: which rows answer, in pages. Does not belong here: HTTP (`routes.py`), how the rows came there (the system's `history.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

from mlops_assets import regions
from mlops_assets.serving.errors import ApiError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

ZONE: Final = ZoneInfo("Asia/Seoul")
DEFAULT_LIMIT: Final = 100
MAX_LIMIT: Final = 1000
MAX_REGION: Final = 60
NAMES: Final = frozenset({"region", "at", "limit", "after"})
_NUMBER: Final = re.compile(r"[0-9]{1,18}")


def find(engine: Engine, query: Mapping[str, str]) -> dict[str, Any]:
    """The answer to a query string. Blocks: call it on a thread.

    Raises:
        ApiError: 400 with the field that is wrong, 404 `unknown_region`.
    """
    if unknown := sorted(set(query) - NAMES):
        fix = "Known are ?region=, &at=, &limit= and &after=."
        raise ApiError(
            400, "unknown_parameter", f"{unknown[0][:40]!r} is no parameter here", "알 수 없는 항목입니다.", fix, field=unknown[0][:40]
        )
    region = " ".join(query.get("region", "").split())
    if not region or len(region) > MAX_REGION or "\x00" in region:
        message, fix = f"region is missing, or longer than {MAX_REGION} characters", "Ask like ?region=대구 달성군."
        raise ApiError(400, "bad_region", message, "지역을 입력하세요.", fix, field="region", limit=MAX_REGION)
    limit = _number(query, "limit", DEFAULT_LIMIT, 1, MAX_LIMIT)
    after = _number(query, "after", 0, 0, 10**18)
    with engine.connect() as connection:
        asked_at = _at(query.get("at"))
        at = asked_at or _newest(connection)
        rows = _rows(connection, region, at, after, limit + 1)
        if not rows and not after:
            _check_region(connection, region, at, asked_at is not None)
        version = "SELECT version FROM policy_version WHERE applied_at <= :at ORDER BY arrived_at DESC LIMIT 1"
        newest = _scalar(connection, version, {"at": at})
    page, more = rows[:limit], rows[limit:]
    # The next page is asked for at the same time: a version that is applied in between moves nothing.
    following = urlencode({"region": region, "at": at.isoformat(), "limit": limit, "after": page[-1]["id"]}) if more else None
    return {
        "region": region,
        "at": at.isoformat(),
        "dataset_version": newest,
        "policies": [_policy(row) for row in page],
        "next": f"/policies?{following}" if following else None,
    }


def _number(query: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    given = query.get(name)
    if given is None:
        return default
    if not _NUMBER.fullmatch(given) or not least <= int(given) <= most:
        message, korean = f"{name} is a whole number from {least} to {most}", f"{name}은(는) {least}부터 {most}까지의 숫자입니다."
        fix = "Follow `next` of the answer before." if name == "after" else f"Use &{name}={default}."
        raise ApiError(400, f"bad_{name}", message, korean, fix, field=name, limit=most)
    return int(given)


def _at(given: str | None) -> datetime | None:
    """The moment that is asked about. A day means its end in Seoul: what held on it, also when it changed that night."""
    if given is None:
        return None
    try:
        if re.fullmatch(r"\d{4}-\d{2}-\d{2}", given):
            day = datetime.combine(date.fromisoformat(given) + timedelta(days=1), time(), ZONE)
            return (day - timedelta(microseconds=1)).astimezone(UTC)
        moment = datetime.fromisoformat(given.replace(" ", "+"))  # a + of a query string that was not encoded
        return (moment if moment.tzinfo else moment.replace(tzinfo=ZONE)).astimezone(UTC)
    except (ValueError, OverflowError):
        fix = "Use &at=2026-11-21, or &at=2026-11-21T09:00:00+09:00."
        raise ApiError(400, "bad_at", "at is not a day or a time", "날짜 형식이 아닙니다.", fix, field="at") from None


def _newest(connection: Connection) -> datetime:
    """When the table last changed, as far as that is committed: the next page, asked for at that time, is of the same table. By the
    clock it might not be: a version that is being applied has an earlier time than its commit."""
    found: datetime = _scalar(connection, "SELECT coalesce(max(applied_at), clock_timestamp()) FROM policy_version", {})
    return found.astimezone(UTC)


def _scalar(connection: Connection, sql: str, names: Mapping[str, Any]) -> Any:
    from sqlalchemy import text

    return connection.execute(text(sql), names).scalar()


def _rows(connection: Connection, region: str, at: datetime, after: int, limit: int) -> list[Mapping[str, Any]]:
    from sqlalchemy import text

    clauses, names = [], {"at": at, "after": after, "limit": limit}
    for number, (provinces, rest) in enumerate(regions.split(region)):
        parts = []
        if rest:
            parts.append(f"replace(sigungu, ' ', '') = :rest{number}")
            names[f"rest{number}"] = rest
        if provinces is not None:
            parts.append(f"sido = ANY(:sido{number})")
            names[f"sido{number}"] = list(provinces)
        clauses.append(f"({' AND '.join(parts)})")
    sql = (
        "SELECT id, sido, sigungu, content, valid_from, valid_to, version FROM policy "
        f"WHERE ({' OR '.join(clauses)}) AND id > :after AND valid_from <= :at AND (valid_to IS NULL OR valid_to > :at) "
        "ORDER BY id LIMIT :limit"
    )
    return [dict(row) for row in connection.execute(text(sql), names).mappings()]


def _check_region(connection: Connection, region: str, at: datetime, asked: bool) -> None:
    """Nothing was found: is there no such region, or did nothing hold there then?"""
    if not _scalar(connection, "SELECT EXISTS (SELECT FROM policy)", {}):
        fix = "Land the sheet: `mlops land disposal_policy FILE.csv --dataset-version V`, or name it in configs/disposal_policy.yaml."
        raise ApiError(
            503, "no_policies", "no policy is stored yet", "아직 등록된 배출 정책이 없습니다.", fix, headers={"Retry-After": "60"}
        )
    if asked and _rows(connection, region, datetime.now(UTC), 0, 1):
        return  # the region is there, only not at that time
    fix = "Ask for a 시도, a 시군구 or both: ?region=대구, ?region=달성군, ?region=대구 달성군."
    raise ApiError(404, "unknown_region", f"no policy of {region!r} is known", "등록된 정책이 없는 지역입니다.", fix, field="region")


def _policy(row: Mapping[str, Any]) -> dict[str, Any]:
    values = row["content"]
    kinds = {
        kind: {
            "days": (values.get(f"{kind}_days") or "").split("+") if values.get(f"{kind}_days") else [],
            "start": values.get(f"{kind}_start"),
            "end": values.get(f"{kind}_end"),
            "method": values.get(f"{kind}_method"),
        }
        for kind in ("general", "food", "recycling")
    }
    bulky = {"start": values["bulky_start"], "end": values["bulky_end"], "method": values["bulky_method"], "place": values["bulky_place"]}
    plain = ("sido", "sigungu", "zone", "area", "collection_type", "place", "no_collection", "department", "phone", "data_date", "provider")
    return {
        **{name: values[name] for name in plain},
        **kinds,
        "bulky": bulky,
        "valid_from": row["valid_from"].isoformat(),
        "valid_to": row["valid_to"].isoformat() if row["valid_to"] else None,
        "dataset_version": row["version"],
    }
