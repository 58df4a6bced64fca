"""The dashboard's page, run by Streamlit itself over a real ledger and a real model server."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

from mlops_assets import dagster_api, dashboard
from mlops_assets.dashboard.app import config
from mlops_assets_tests.factories import BAD, GOOD, World, config_of
from mlops_assets_tests.serving.running import register, running, until

TOKEN = "right"
APP = str(Path(dashboard.__file__).parent / "app.py")


@pytest.fixture
def world(engine, settings, store, monkeypatch) -> World:
    for name in [name for name in os.environ if name.startswith("MLOPS_")]:
        monkeypatch.delenv(name)
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLOPS_API_TOKEN", TOKEN)
    return World(engine, settings, store, "sentiment", config_of("sentiment"))


def opened() -> AppTest:
    page = AppTest.from_file(APP, default_timeout=60).run()
    assert not page.exception
    return page


def test_an_empty_platform_says_what_to_do(world):
    page = opened()
    assert "운영 중인 모델이 없습니다" in page.warning[0].value and "mlops land" in page.warning[0].value


def test_the_champion_its_figures_and_a_refusal_with_its_sentence(world):
    world.registered("v1", GOOD, content="one")
    world.registered("v2", BAD, content="two")
    page = opened()
    assert page.subheader[0].value == "sentiment v1 · v1"
    assert {m.label: m.value for m in page.metric}["f1"] == "0.8600"
    assert not page.error, "refused is not broken"
    refusal = page.warning[0].value
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d · v2: refused", refusal)
    assert "v2: refused" in refusal and "0.5" in refusal and "최소값을 넘지 못해 모델 등록에 실패하였습니다." in refusal
    versions, events = page.dataframe[0].value, page.dataframe[1].value
    assert list(versions["verdict"]) == ["refused", "promoted"]
    assert {"refused", "promoted"} <= set(events["event"])


def test_a_text_is_answered_with_the_model_version_and_its_trace(world, tmp_path, monkeypatch):
    version = register(world, tmp_path / "bundle")
    world.registrar().produce(version=version, reason="test")
    with running(world.settings) as server:
        until(lambda: server.client.get("/models/sentiment").status_code == 200)
        monkeypatch.setenv("MLOPS_SERVE_URL", server.url)
        page = opened()
        page.text_area[0].set_value("정말 좋아요\n\n별로에요")
        page.button[0].click().run()
        assert not page.exception and not page.error
        answers = next(frame.value for frame in page.dataframe if "결과" in frame.value.columns)
        assert list(answers["입력"]) == ["정말 좋아요", "별로에요"]
        assert set(answers["결과"]) <= {"긍정", "부정"}
        assert any(f"model v{version}" in caption.value and "mlops trace" in caption.value for caption in page.caption)


def test_photos_are_asked_for_where_the_system_looks_at_photos(world, monkeypatch):
    photo = io.BytesIO()
    Image.new("RGB", (32, 32), "gray").save(photo, "PNG")
    asked: list[httpx.Request] = []

    def answer(url: str, **given: Any) -> httpx.Response:
        asked.append(httpx.Request("POST", url, files=given["files"]))
        said = {"predictions": [{"label": "good", "confidence": 0.9}], "version": 1, "dataset_version": "v", "at": "now", "request_id": "r"}
        return httpx.Response(200, json=said)

    monkeypatch.setattr(httpx, "post", answer)
    monkeypatch.setenv("MLOPS_SERVE_URL", "http://127.0.0.1:9")
    page = opened()
    page.sidebar.selectbox[0].select("tires").run()
    assert not page.text_area
    page.file_uploader[0].upload("tire.png", photo.getvalue(), "image/png")
    page.button[0].click().run()
    assert not page.exception and asked[0].url.path == "/predict/tires" and photo.getvalue() in asked[0].read()
    assert [frame.value["입력"].tolist() for frame in page.dataframe if "결과" in frame.value.columns] == [["tire.png"]]


def test_a_server_that_is_away_is_a_sentence(world, monkeypatch):
    monkeypatch.setenv("MLOPS_SERVE_URL", "http://127.0.0.1:9")
    page = opened()
    page.button[0].click().run()
    assert "모델 서버가 응답하지 않습니다" in page.error[0].value


def test_a_promotion_needs_a_reason(world):
    page = opened()
    page.selectbox(key="action").select("produce")
    page.text_input(key="token").set_value(TOKEN)
    page.button[1].click().run()
    assert "사유를 입력하세요" in page.error[0].value


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
def test_without_a_token_nothing_is_offered_that_writes(world, monkeypatch, host):
    """On this machine too: a web page that got at the dashboard would write as well as its user."""
    monkeypatch.setenv("MLOPS_HOST", host)
    monkeypatch.delenv("MLOPS_API_TOKEN")
    page = opened()
    assert any("MLOPS_API_TOKEN" in warning.value for warning in page.warning)
    assert len(page.button) == 1  # only the trial


@pytest.mark.parametrize("token", ["wrong", "", "right ", "RIGHT"])
def test_a_wrong_token_is_refused(world, monkeypatch, token):
    monkeypatch.setattr(dagster_api, "launch", lambda *_: pytest.fail("launched"))
    page = opened()
    page.text_input(key="token").set_value(token)
    page.text_input(key="reason").set_value("because")
    page.button[1].click().run()
    assert "토큰이 올바르지 않습니다" in page.error[0].value


def test_a_platform_that_does_not_run_is_one_sentence(world, monkeypatch):
    monkeypatch.delenv("MLOPS_DATABASE_URL")
    page = opened()
    assert "mlops up" in page.error[0].value


def away(*_: object) -> dagster_api.RunResult:
    raise TimeoutError("timed out")


def rolled_back() -> AppTest:
    page = opened()
    page.selectbox(key="action").select("rollback")
    page.text_input(key="reason").set_value("because")
    page.text_input(key="token").set_value(TOKEN)
    page.button[1].click().run()
    assert not page.exception
    return page


@pytest.mark.parametrize(
    "waited", [away, lambda _, run: dagster_api.RunResult(run, "STARTED", False, "")], ids=["no answer", "not over in time"]
)
def test_a_run_that_was_started_is_never_called_not_started(world, monkeypatch, waited):
    monkeypatch.setenv("MLOPS_DAGSTER_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(dagster_api, "launch", lambda *_: "12345678-run")
    monkeypatch.setattr(dagster_api, "wait", waited)
    page = rolled_back()
    assert not page.error
    assert any("still running" in info.value and "http://127.0.0.1:9/runs/12345678-run" in info.value for info in page.info)


def test_a_run_that_could_not_be_started_says_so(world, monkeypatch):
    monkeypatch.setenv("MLOPS_DAGSTER_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(dagster_api, "launch", away)
    page = rolled_back()
    assert "Not started: timed out" in page.error[0].value
    assert not any("still running" in info.value for info in page.info)


def test_metrics_are_the_systems_own_with_their_directions(world):
    """promotion.metric stands first; digits are chosen by whole codes."""
    page = opened()
    offered = page.selectbox(key="metric_sentiment").options
    assert offered[0] == "F1 (more is better)" and "Loss (less is better)" in offered
    page.sidebar.selectbox[0].select("digits").run()
    assert not page.exception
    assert page.selectbox(key="metric_digits").options[0] == "Code_success (more is better)"
    assert page.selectbox(key="metric_digits").value == "Code_success"


def test_a_button_fills_in_the_launchpads_form():
    assert config("stage", "F1", 0, "") == {"metric": "F1", "reason": ""}
    assert config("produce", "F1", 3, "why") == {"metric": "F1", "version": 3, "reason": "why"}
    assert config("rollback", "F1", 2, "why") == {"to": 2, "reason": "why"}
