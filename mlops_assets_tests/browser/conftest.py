"""The page `/otp` and what it talks to are started once: starting browser, database and servers anew would take longer than most tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mlops_assets import database
from mlops_assets.settings import load_settings
from mlops_assets.store import ObjectStore
from mlops_assets_tests.browser.chromium import chromium
from mlops_assets_tests.browser.otp import Place, place
from mlops_assets_tests.conftest import databases


@pytest.fixture(scope="session")
def otp_place(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("otp")
    with databases(postgres) as make:
        url = make("template_mlops")
        settings = load_settings(home=folder / "home", database_url=url, object_store_url=(folder / "store").as_uri())
        engine = database.connect(url)
        with chromium() as page, place(page, engine, settings, ObjectStore.of(settings), folder / "bundle") as made:
            yield made
        engine.dispose()


@pytest.fixture
def otp(otp_place: Place) -> Place:
    otp_place.fresh()
    return otp_place
