"""Fixtures that every test may use: a real PostgreSQL (embedded, one per session); a database, store and settings per test."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mlops_assets.settings import Settings, library_defaults, load_settings
from mlops_assets.store import ObjectStore
from mlops_assets_tests import postgres_server
from mlops_assets_tests.factories import World

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from mlops_assets_tests.running_platform import Running

library_defaults()  # before any test imports torch


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """With MLOPS_REQUIRE_SERVICES=1 (CI) a test that wants a service may not be skipped; one that wants real data may."""
    report = yield
    if (
        report.skipped
        and os.environ.get("MLOPS_REQUIRE_SERVICES") == "1"
        and item.get_closest_marker("real_data") is None
        and "only root" not in str(report.longrepr)
    ):
        report.outcome = "failed"
        report.longrepr = f"skipped although MLOPS_REQUIRE_SERVICES=1: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets that MLOPS_REAL_DATA names."""
    folder = os.environ.get("MLOPS_REAL_DATA")
    if not folder:
        pytest.skip("MLOPS_REAL_DATA names no folder of real data sets")
    return Path(folder)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """One server for the session, or the one that TESTS_POSTGRES_URL names (`benchmarks/mutants.py` has many sessions)."""
    if url := os.environ.get("TESTS_POSTGRES_URL"):
        yield url
    else:
        with postgres_server.running() as url:
            yield url


@contextmanager
def databases(postgres: str) -> Iterator[Callable[..., str]]:
    """A function (template) -> URL of a new database; dropped at the end."""
    from sqlalchemy import text

    from mlops_assets import database

    admin = database.connect(postgres)
    made: list[str] = []

    def make(template: str = "template_mlops") -> str:
        name = f"t_{uuid.uuid4().hex[:12]}"
        with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
        made.append(name)
        return postgres.replace("/postgres?", f"/{name}?")

    yield make
    with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for name in made:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


@pytest.fixture
def make_database(postgres: str) -> Iterator[Callable[..., str]]:
    with databases(postgres) as make:
        yield make


@pytest.fixture
def database_url(make_database) -> str:
    return make_database()


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    from mlops_assets import database

    engine = database.connect(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    return load_settings(home=tmp_path / "home", database_url=database_url, object_store_url=(tmp_path / "store").as_uri())


@pytest.fixture
def store(settings: Settings) -> ObjectStore:
    return ObjectStore.of(settings)


@pytest.fixture
def world(engine: Engine, settings: Settings, store: ObjectStore) -> World:
    """A system called `toy` with a signing key, ready to be given attempts and reports."""
    return World(engine, settings, store)


@pytest.fixture
def dagster_settings(settings: Settings, make_database, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings with a Dagster instance of their own in PostgreSQL, also in the environment, where Dagster reads them."""
    import shutil

    from mlops_assets.settings import REPOSITORY

    settings = settings.model_copy(update={"dagster_database_url": make_database("template1")})
    settings.dagster_home.mkdir(parents=True)
    shutil.copy(REPOSITORY / "dagster.yaml", settings.dagster_home)
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    return settings


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition, what: str, seconds: float = 60.0):
    """Poll until `condition()` is truthy and return it; AssertionError naming `what` after `seconds`."""
    import time

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds:.0f} s: {what}")


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """`mlops up --demo` as the README has it, with its landings at their ends, an application's comments, and a source of MNIST near by."""
    from mlops_assets_tests import official_source
    from mlops_assets_tests.ingest import application
    from mlops_assets_tests.running_platform import running_platform, until

    with application.running() as comments_url, official_source.running(tmp_path_factory.mktemp("configs")) as configs:
        settings = {"COMMENTS_URL": comments_url, "CONFIGS": str(configs), "API_TOKEN": "the-token-of-the-demo"}
        with running_platform("--demo", **{f"MLOPS_{name}": value for name, value in settings.items()}) as running:
            running.start()
            until(lambda: "every landed version has its end" in running.text, 1500, "the end of the demo's landings")
            yield running


@pytest.fixture(scope="session")
def mlflow_server(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real MLflow server with its own PostgreSQL database."""
    import subprocess
    import sys

    import httpx
    from sqlalchemy import text

    from mlops_assets import database

    admin = database.connect(postgres)
    with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("CREATE DATABASE mlflow_tests"))
    admin.dispose()
    folder = tmp_path_factory.mktemp("mlflow")
    port = free_port()
    log = (folder / "log").open("wb")
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        + [
            "--backend-store-uri",
            postgres.replace("/postgres?", "/mlflow_tests?"),
            "--artifacts-destination",
            (folder / "artifacts").as_uri(),
        ],
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert server.poll() is None, (folder / "log").read_text()
        try:
            return httpx.get(f"{url}/health", timeout=2).is_success
        except httpx.HTTPError:
            return False

    try:
        wait_for(answers, "MLflow answers", 120)
        yield url
    finally:
        import signal

        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
        log.close()
