"""GET /policies through the HTTP door: regions however they are written, pages, times that are past, and clear refusals."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text

from mlops_assets.settings import Settings
from mlops_assets.systems.disposal_policy import history
from mlops_assets.systems.disposal_policy.config import STANDARD_COLUMNS
from mlops_assets_tests.serving.running import Running, database_away, running

PLACES = [("대구광역시", "달성군"), ("대구광역시", "북구"), ("울산광역시", "북구"), ("강원도", "정선군"), ("경기도", "수원시 장안구")]


def policy(sido: str, sigungu: str, place: str, **values: Any) -> history.Row:
    from mlops_assets.settings import canonical

    content = dict.fromkeys(STANDARD_COLUMNS) | {"sido": sido, "sigungu": sigungu, "place": place, "general_days": "월+수"} | values
    body = canonical(content)
    return f"{sido}{sigungu}{place}-1", str(hash(body)), sido, sigungu, body


def put(engine: Engine, version: str, rows: list[history.Row]) -> datetime:
    """Apply a version as `history.apply` does; returns when."""
    with engine.begin() as connection:
        done = history.upsert(connection, version, [row[:2] for row in rows], lambda wanted: (row for row in rows if row[0] in wanted))
        names = {"v": version, **vars(done)}
        sql = (
            "INSERT INTO policy_version VALUES (:v, now(), 's', clock_timestamp(), :new, :changed, :gone, :unchanged) RETURNING applied_at"
        )
        return connection.execute(text(sql), names).scalar_one()


@pytest.fixture
def server(settings: Settings, engine: Engine) -> Iterator[Running]:
    with running(settings) as server:
        yield server


def asked(server: Running, region: str, **query: Any) -> dict[str, Any]:
    reply = server.client.get("/policies", params={"region": region, **query})
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def refused(server: Running, status: int, **query: Any) -> dict[str, Any]:
    reply = server.client.get("/policies", params=query)
    assert reply.status_code == status, reply.text
    assert set(reply.json()) == {"code", "message", "message_ko", "field", "limit", "fix", "request_id"}
    return dict(reply.json())


@pytest.mark.parametrize(
    ("region", "expected"),
    [
        ("대구광역시 달성군", {"달성군"}),
        ("대구광역시달성군", {"달성군"}),
        ("대구 달성군", {"달성군"}),
        (" 달성군 ", {"달성군"}),
        ("대구", {"달성군", "북구"}),
        ("북구", {"북구"}),
        ("강원특별자치도 정선군", {"정선군"}),
        ("강원도", {"정선군"}),
        ("경기 수원시장안구", {"수원시 장안구"}),
    ],
)
def test_a_region_is_found_however_it_is_written(server: Running, engine: Engine, region: str, expected: set[str]) -> None:
    put(engine, "v1", [policy(*place, "집 앞") for place in PLACES])
    found = asked(server, region)
    assert {one["sigungu"] for one in found["policies"]} == expected and found["dataset_version"] == "v1" and found["next"] is None
    assert len(found["policies"]) == (2 if region in ("대구", "북구") else 1)


def test_an_answer_has_the_rule_as_people_need_it(server: Running, engine: Engine) -> None:
    put(engine, "v1", [policy("대구광역시", "달성군", "=1+1 😀", general_start="18:00", general_end="24:00", phone="053-668-2713")])
    one = asked(server, "달성군")["policies"][0]
    assert one["general"] == {"days": ["월", "수"], "start": "18:00", "end": "24:00", "method": None}
    assert one["food"]["days"] == [] and one["place"] == "=1+1 😀" and one["phone"] == "053-668-2713" and one["valid_to"] is None


def test_pages_hold_every_policy_once_also_when_the_table_changes_in_between(server: Running, engine: Engine) -> None:
    put(engine, "v1", [policy("대구광역시", "달성군", f"{n}번") for n in range(25)])
    page = asked(server, "달성군", limit=10)
    places = [one["place"] for one in page["policies"]]
    put(engine, "v2", [policy("대구광역시", "달성군", f"{n}번", phone="1588-0000") for n in range(30)])
    while page["next"]:
        page = server.client.get(page["next"]).json()
        places += [one["place"] for one in page["policies"]]
    assert places == [f"{n}번" for n in range(25)]
    assert len(asked(server, "달성군")["policies"]) == 30


def test_a_past_time_is_answered_from_history(server: Running, engine: Engine) -> None:
    first = put(engine, "v1", [policy("대구광역시", "달성군", "집 앞", general_start="18:00")])
    second = put(engine, "v2", [policy("대구광역시", "달성군", "집 앞", general_start="19:00")])

    def start(at: datetime | str) -> list[str]:
        found = asked(server, "달성군", at=at if isinstance(at, str) else at.isoformat())
        return [one["general"]["start"] for one in found["policies"]]

    assert start(first) == ["18:00"] and start(second) == ["19:00"]
    assert start((first - timedelta(days=1)).isoformat()) == [], "the region is known, only not then"
    assert start((second + timedelta(days=1)).date().isoformat()) == ["19:00"], "a day is answered by its end"
    assert asked(server, "달성군", at=first.isoformat())["dataset_version"] == "v1"


def test_what_cannot_be_answered_is_said(server: Running, engine: Engine, settings: Settings) -> None:
    assert refused(server, 503, region="대구")["code"] == "no_policies"
    put(engine, "v1", [policy(*PLACES[0], "집 앞")])
    assert refused(server, 404, region="한양")["code"] == "unknown_region"
    assert refused(server, 404, region="서울")["fix"].startswith("Ask for")
    for query, code, field in (
        ({}, "bad_region", "region"),
        ({"region": "가" * 61}, "bad_region", "region"),
        ({"region": "대구\x00"}, "bad_region", "region"),
        ({"region": "대구", "limit": "0"}, "bad_limit", "limit"),
        ({"region": "대구", "limit": "1001"}, "bad_limit", "limit"),
        ({"region": "대구", "after": "-1"}, "bad_after", "after"),
        ({"region": "대구", "at": "어제"}, "bad_at", "at"),
        ({"region": "대구", "at": "2026-02-30"}, "bad_at", "at"),
        ({"region": "대구", "regoin": "x"}, "unknown_parameter", "regoin"),
    ):
        body = refused(server, 400, **query)
        assert (body["code"], body["field"]) == (code, field) and body["fix"] and body["message_ko"]
    assert refused(server, 404, region="'; DROP TABLE policy --")["code"] == "unknown_region"
    with database_away(str(settings.database_url)):
        assert refused(server, 503, region="대구")["code"] == "ledger_away"
    assert len(asked(server, "대구")["policies"]) == 1
