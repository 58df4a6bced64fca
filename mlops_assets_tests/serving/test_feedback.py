"""The truth about answers: stored once, checked, counted per version, and shown as live accuracy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from mlops_assets.serving.answers import AnswerLog
from mlops_assets.settings import Settings
from mlops_assets_tests.factories import World
from mlops_assets_tests.serving.running import Running, promote, register, running, until

TOKEN = "a-token-of-the-tests"


@pytest.fixture
def server(world: World, settings: Settings, tmp_path: Path) -> Iterator[Running]:
    promote(world, register(world, tmp_path / "a"))
    with running(settings.model_copy(update={"api_token": TOKEN})) as server:
        server.serves(1)
        yield server


@pytest.fixture
def world(engine: Engine, settings: Settings, store: Any) -> World:
    from mlops_assets_tests.factories import config_of

    return World(engine, settings, store, "sentiment", config_of("sentiment", mode="manual"))


def give(server: Running, request_id: str, labels: Any, token: str | None = TOKEN) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return server.client.post(f"/feedback/{request_id}", json={"labels": labels}, headers=headers)


def series(server: Running, name: str) -> list[str]:
    return [line for line in server.client.get("/metrics").text.splitlines() if line.startswith(name + "{")]


def test_the_truth_is_kept_beside_what_was_said_and_counted(server: Running, engine: Engine) -> None:
    answer = server.predict("좋은 영화", "나쁜 영화", "최고").json()
    said = [one["label"] for one in answer["predictions"]]
    other = {"긍정": "부정", "부정": "긍정"}
    done = give(server, answer["request_id"], [said[0], other[said[1]], None])
    assert done.status_code == 201, done.text
    assert (done.json()["right"], done.json()["wrong"], done.json()["live_accuracy"], done.json()["truths"]) == (1, 1, 0.5, 2)
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT position, said, truth, version FROM feedback ORDER BY position")).tuples().all()
    assert [tuple(row) for row in rows] == [(0, said[0], said[0], 1), (1, said[1], other[said[1]], 1)]
    assert series(server, "mlops_live_accuracy") == ['mlops_live_accuracy{system="sentiment",version="1"} 0.5']
    assert 'mlops_feedback_total{correct="no",system="sentiment",version="1"} 1.0' in series(server, "mlops_feedback_total")


def test_every_replica_knows_the_truths_that_another_one_was_told(
    server: Running, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlops_assets.serving.app.TRUTHS_SECONDS", 0.0)
    with running(settings.model_copy(update={"home": tmp_path / "other", "public_keys": settings.public_keys_path})) as other:
        other.serves(1)
        answer = server.predict("좋은 영화", "최고").json()
        assert give(server, answer["request_id"], ["긍정", "부정"]).status_code == 201
        wanted = ['mlops_live_accuracy{system="sentiment",version="1"} 0.5', 'mlops_live_truths{system="sentiment",version="1"} 2.0']
        until(lambda: series(other, "mlops_live_accuracy") + series(other, "mlops_live_truths") == wanted)
        assert series(other, "mlops_feedback_total") == [], "what that replica was told itself"


def test_it_is_given_once_and_nothing_of_a_second_is_stored(server: Running, engine: Engine) -> None:
    answer = server.predict("좋은 영화", "최고").json()
    assert give(server, answer["request_id"], ["긍정", None]).status_code == 201
    again = give(server, answer["request_id"], ["부정", "긍정"])
    assert (again.status_code, again.json()["code"]) == (409, "already_given")
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM feedback")).scalar() == 1
    assert give(server, answer["request_id"], [None, "긍정"]).status_code == 201  # a control: what was open is still open
    with engine.begin() as connection, pytest.raises(DBAPIError, match="append"):
        connection.execute(text("DELETE FROM feedback"))


@pytest.mark.parametrize(
    ("labels", "code", "field"),
    [
        (["긍정"], "wrong_labels", "labels"),
        (["긍정", "neutral"], "wrong_labels", "labels[1]"),
        (["긍정", 1], "wrong_labels", "labels[1]"),
        ([None, None], "wrong_labels", "labels"),
        ([], "empty_labels", "labels"),
        ("긍정", "not_a_list", "labels"),
    ],
)
def test_bad_truths_are_refused_with_the_labels_that_are_known(server: Running, labels: Any, code: str, field: str) -> None:
    request_id = server.predict("좋은 영화", "최고").json()["request_id"]
    answer = give(server, request_id, labels)
    assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (400, code, field)
    assert code != "wrong_labels" or "긍정" in answer.json()["fix"]
    assert give(server, request_id, ["긍정", "긍정"]).status_code == 201  # nothing was stored


def test_an_unknown_request_and_a_missing_token(server: Running) -> None:
    assert give(server, "nobody-asked", ["긍정"]).json()["code"] == "unknown_request"
    assert give(server, "no%00body", ["긍정"]).json()["code"] == "unknown_request"
    request_id = server.predict("좋은").json()["request_id"]
    assert give(server, request_id, ["긍정"], token=None).status_code == 401
    assert give(server, request_id, ["긍정"], token="guess").status_code == 401


def test_a_spool_of_before_is_still_read(engine: Engine, tmp_path: Path) -> None:
    """Written by a server that did not keep labels: its answers are recorded, and have no truth to compare with."""
    spool = tmp_path / "answers.jsonl"
    spool.write_text(json.dumps(["old-1", "sentiment", 1, "ab", 1, "2026-11-01T00:00:00+00:00"]) + "\n", encoding="utf-8")
    AnswerLog(lambda: engine, spool).flush()
    with engine.connect() as connection:
        assert connection.execute(text("SELECT request_id, labels FROM answer")).one() == ("old-1", None)
