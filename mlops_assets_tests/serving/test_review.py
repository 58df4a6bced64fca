"""The review queue over HTTP: token, a question, an answer, a second opinion, figures, and errors with a code and a fix."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from sqlalchemy import Engine, text

from mlops_assets.settings import Settings
from mlops_assets_tests.factories import World, config_of
from mlops_assets_tests.ingest.comments import add_comment
from mlops_assets_tests.serving.running import Running, promote, register, running

TOKEN = "a-token-of-the-tests"


def add_score(engine: Engine, id: int, uncertainty: float, label: str = "긍정") -> None:
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO comment_score (system, source, id, content_hash, bundle_sha256, labels, probabilities, uncertainty) "
                "VALUES ('sentiment', 'app', :i, 1, 'b', :l, '{}', :u)"
            ),
            {"i": id, "l": [label], "u": uncertainty},
        )


@pytest.fixture
def world(engine: Engine, settings: Settings, store: Any) -> World:
    return World(engine, settings, store, "sentiment", config_of("sentiment", mode="manual"))


@pytest.fixture
def server(world: World, engine: Engine, settings: Settings, tmp_path: Path) -> Iterator[Running]:
    promote(world, register(world, tmp_path / "a"))
    configs = tmp_path / "configs"
    configs.mkdir()
    content = {"review": {"random_share": 0, "exclusive": ["모름"]}}
    (configs / "sentiment.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    with engine.begin() as connection:
        for number in (1, 2):
            add_comment(connection, number, f"댓글 {number} <b>굵게</b>")
    add_score(engine, 1, 0.9)
    add_score(engine, 2, 0.1)
    with running(settings.model_copy(update={"api_token": TOKEN, "configs": configs})) as server:
        server.serves(1)
        yield server


def headers(token: str | None = TOKEN) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


def ask(server: Running, reviewer: str = "가", token: str | None = TOKEN) -> httpx.Response:
    return server.client.get("/review/sentiment/next", params={"reviewer": reviewer}, headers=headers(token))


def say(server: Running, task: Any, body: Any, token: str | None = TOKEN) -> httpx.Response:
    return server.client.post(f"/review/sentiment/{task}", json=body, headers=headers(token))


def test_a_question_two_opinions_and_a_label(server: Running, engine: Engine) -> None:
    asked = ask(server)
    assert asked.status_code == 200 and asked.headers["cache-control"] == "no-store"
    body = asked.json()
    assert (body["text"], body["labels"], body["opinions"]) == ("댓글 1 <b>굵게</b>", ["부정", "긍정", "모름"], 0)
    assert "predicted" not in body, "what the champion said would decide for people"
    done = say(server, body["task"], {"labels": ["부정"], "reviewer": "가"})
    assert (done.status_code, done.json()["settled"]) == (201, False)
    other = ask(server, "나").json()
    assert (other["task"], other["opinions"]) == (body["task"], 1)
    assert say(server, body["task"], {"labels": ["부정"], "reviewer": "나"}).json()["labels"] == ["부정"]
    skipped = ask(server, "나").json()
    assert say(server, skipped["task"], {"skip": True, "reviewer": "나"}).json()["skipped"] is True
    assert ask(server, "나").json()["task"] is None
    stats = server.client.get("/review/sentiment/stats").json()
    assert (stats["closed"], stats["open"], stats["answers"], stats["agreed_with_champion"]) == (1, 1, 2, 0)
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT labels, origin, actor, predicted FROM comment_label ORDER BY sequence")).all()
    assert [tuple(row) for row in rows] == [(["부정"], "review", who, ["긍정"]) for who in "가나"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"labels": ["긍정"]}, 400, "bad_reviewer"),
        ({"labels": ["긍정"], "reviewer": "나"}, 409, "lease_lost"),
        ({"labels": ["neutral"], "reviewer": "가"}, 400, "wrong_labels"),
        ({"labels": ["긍정", "모름"], "reviewer": "가"}, 400, "wrong_labels"),
        ({"labels": [], "reviewer": "가"}, 400, "wrong_labels"),
        ({"labels": "긍정", "reviewer": "가"}, 400, "no_labels"),
        ({"reviewer": "가"}, 400, "no_labels"),
        ([], 400, "no_labels"),
    ],
)
def test_bad_answers_are_refused_and_nothing_is_stored(server: Running, engine: Engine, body: Any, status: int, code: str) -> None:
    task = ask(server).json()["task"]
    refused = say(server, task, body)
    assert (refused.status_code, refused.json()["code"]) == (status, code), refused.text
    assert refused.json()["fix"] and refused.json()["message_ko"]
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM comment_label")).scalar_one() == 0


def test_half_a_character_is_no_label_and_can_be_spoken_of(server: Running) -> None:
    task = ask(server).json()["task"]
    body = b'{"labels": ["\\ud800"], "reviewer": "\xea\xb0\x80"}'
    refused = server.client.post(f"/review/sentiment/{task}", content=body, headers=headers())
    assert (refused.status_code, refused.json()["code"]) == (400, "wrong_labels"), refused.text


@pytest.mark.parametrize("task", ["999", "abc", "-1", "9" * 40])
def test_unknown_questions(server: Running, task: str) -> None:
    assert say(server, task, {"labels": ["긍정"], "reviewer": "가"}).json()["code"] == "unknown_task"


def test_token_name_and_system(server: Running) -> None:
    assert ask(server, token=None).status_code == 401 and ask(server, token="guess").status_code == 401
    assert say(server, 1, {"labels": ["긍정"], "reviewer": "가"}, token=None).status_code == 401
    assert ask(server, "").json()["code"] == "bad_reviewer"
    assert server.client.get("/review/nothing/next", headers=headers()).json()["code"] == "unknown_system"
    assert server.client.get("/review/nothing").status_code == 404


def test_only_a_system_whose_comments_are_reviewed_has_a_page_and_questions(
    world: World, engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    """Its labels would stand as answers of another system's question, for ever."""
    promote(world, register(world, tmp_path / "a"))
    with engine.begin() as connection:
        add_comment(connection, 1, "댓글")
    with running(settings.model_copy(update={"api_token": TOKEN})) as server:  # the shipped configuration: only hate_speech has the section
        server.serves(1)
        for path in ("/review/sentiment", "/review/sentiment/next?reviewer=a", "/review/sentiment/stats"):
            answer = server.client.get(path, headers=headers())
            assert (answer.status_code, answer.json()["code"]) == (404, "no_review"), path
        given = server.client.post("/review/sentiment/1", json={"reviewer": "a", "labels": ["긍정"]}, headers=headers())
        assert (given.status_code, given.json()["code"]) == (404, "no_review")
