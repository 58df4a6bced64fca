"""The dashboard as a person sees it, in a browser: a token that is typed, charts, figures; a real server, ledger and Streamlit."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mlops_assets.settings import Settings
from mlops_assets_tests.browser.chromium import PROGRAM, Page, chromium
from mlops_assets_tests.conftest import wait_for
from mlops_assets_tests.factories import GOOD, World, config_of
from mlops_assets_tests.faults.services import started

pytestmark = [pytest.mark.browser, pytest.mark.skipif(not PROGRAM, reason="no Chromium: apt-get install chromium")]

TOKEN = "right"


@pytest.fixture
def page() -> Iterator[Page]:
    with chromium() as page:
        page.size(1400, 1000)
        yield page


@contextmanager
def answering(answer: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that gives this JSON to every POST, and what it was asked."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()


def press(page: Page, selector: str, words: str) -> None:
    """Click on the element that says these words, once it is there."""
    find = f"[...document.querySelectorAll({json.dumps(selector)})].find(one => one.innerText.includes({json.dumps(words)}))"
    wait_for(lambda: page.run(f"(one => {{ one?.click(); return !!one; }})({find})"), f"{words!r} is there", 60)


def go_to(page: Page, tab: str) -> None:
    press(page, "[role=tab]", tab)


def type_into(page: Page, kind: str, words: str) -> None:
    """The last visible field of that type; then on with the Tab key, as people fill a form."""
    seen = f"[...document.querySelectorAll('input[type={kind}]')].filter(one => one.offsetParent)"
    wait_for(lambda: page.run(f"{seen}.length"), f"a field of type {kind}")
    page.run(f"{seen}.at(-1).focus()")
    for letter in words:
        page.press(letter)
    page.press("Tab")


def test_a_right_token_is_right_however_the_form_is_filled(page: Page, engine, settings: Settings, store) -> None:
    World(engine, settings, store, "sentiment", config_of("sentiment")).registered("v1", GOOD)
    with answering({"data": {"launchRun": {"__typename": "LaunchRunSuccess", "run": {"runId": "12345678"}}}}) as (url, asked):
        own = settings.model_copy(update={"api_token": TOKEN, "dagster_url": url})
        with started("dashboard", own) as dashboard:
            page.open(dashboard.url)
            go_to(page, "모델 관리")
            type_into(page, "password", TOKEN)
            type_into(page, "text", "because")
            press(page, "button", "실행")
            wait_for(lambda: asked or "토큰이 올바르지" in page.text(), "an outcome")
            assert "토큰이 올바르지 않습니다" not in page.text()
    assert asked[0]["variables"]["params"]["selector"]["jobName"] == "sentiment_stage"
    assert "executionMetadata" not in asked[0]["variables"]["params"]  # no name of the page's choice


def test_two_models_of_one_version_are_in_the_chart(page: Page, engine, settings: Settings, store) -> None:
    world = World(engine, settings, store, "tires", config_of("tires"))
    for variant, f1 in (("resnet18", 0.91), ("cnn_v1", 0.87)):
        world.registered("v1", {**GOOD, "f1": f1}, variant=variant, content=variant)
    with started("dashboard", settings) as dashboard:
        page.open(dashboard.url)
        page.sees("모델 테스트", 60)
        systems = "[data-testid=stSidebar] [data-testid=stSelectbox] input"
        wait_for(lambda: page.run(f"!!document.querySelector({json.dumps(systems)})"), "the choice of systems")
        page.click(systems)
        press(page, "[role=option]", "tires")
        page.sees("tires v")
        go_to(page, "모델 / Models")
        marks = "[...document.querySelectorAll('[data-testid=stVegaLiteChart] [aria-roledescription=point]')]"
        wait_for(lambda: page.run(f"{marks}.length"), "points on the chart")
        said = page.run(f"{marks}.map(one => one.getAttribute('aria-label'))")
        assert len(said) == 4  # f1 and accuracy of both models
        assert all(any(f"model: {variant} f1" in one for one in said) for variant in ("resnet18", "cnn_v1"))


def test_figures_are_read_at_a_glance(page: Page, engine, settings: Settings, store, tmp_path: Path) -> None:
    World(engine, settings, store, "sentiment", config_of("sentiment")).registered("v1", GOOD)
    said = {"label": "긍정", "confidence": 1.0, "probs": {"부정": 2e-26, "긍정": 1.0}}
    answer = {"predictions": [said, said], "version": 1, "dataset_version": "v1", "at": "now", "request_id": "r"}
    with answering(answer) as (url, _), started("dashboard", settings.model_copy(update={"serve_url": url})) as dashboard:
        page.open(dashboard.url)
        page.sees("모델 테스트", 60)
        press(page, "button", "예측")
        page.sees("mlops trace")
        # The table is a canvas; its cells stand beside it for screen readers.
        cells = "[...document.querySelectorAll('[data-testid=stDataFrame] canvas td')].map(one => one.textContent)"
        wait_for(lambda: "긍정" in page.run(cells), "the answers")
        figures = [one for one in page.run(cells) if one[:1].isdigit()]
        assert len(figures) == 6 and all(len(one) <= len("0.0000") for one in figures), figures
