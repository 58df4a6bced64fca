"""The server's page as a person uses it: what is served is named, reviews are judged, an error says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mlops_assets.settings import Settings
from mlops_assets.store import ObjectStore
from mlops_assets_tests.browser.chromium import PROGRAM, Page, chromium
from mlops_assets_tests.factories import World
from mlops_assets_tests.serving.running import MANUAL, promote, register, running

if TYPE_CHECKING:
    from sqlalchemy import Engine

pytestmark = [pytest.mark.browser, pytest.mark.skipif(not PROGRAM, reason="no Chromium: apt-get install chromium")]


@pytest.fixture
def page() -> Iterator[Page]:
    with chromium() as page:
        yield page


def test_reviews_are_judged_and_the_model_is_named(page: Page, engine: Engine, settings: Settings, store: ObjectStore, tmp_path: Path):
    world = World(engine, settings, store, system="sentiment", config=MANUAL)
    promote(world, register(world, tmp_path / "bundle"))
    with running(settings) as server:
        server.serves(1)
        page.open(server.url)
        page.sees("model v1")
        page.run("document.getElementById('texts').value = '최고 영화\\n별로 영화'; document.querySelector('button').click()")
        page.sees("mlops trace")
        labels = page.run("[...document.querySelectorAll('tbody tr')].map(row => row.cells[1].textContent)")
        assert labels == ["긍정", "부정"]
        page.run("document.getElementById('texts').value = ' '; document.querySelector('button').click()")
        page.sees("inputs")
        assert page.run("document.querySelector('#result .error') !== null")


def test_without_a_champion_the_page_says_so(page: Page, engine: Engine, settings: Settings, store: ObjectStore):
    World(engine, settings, store, system="sentiment", config=MANUAL)
    with running(settings) as server:
        page.open(server.url)
        page.sees("아직 서비스 중인 모델이 없습니다")
