"""The embedded PostgreSQL cannot run for a while (a full disk, a file that cannot be read): it is started again until it does."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from mlops_assets import doctor, up
from mlops_assets.settings import load_settings
from mlops_assets.supervise import Patience
from mlops_assets_tests.conftest import wait_for

QUICK = Patience(first_backoff=0.01, longest_backoff=0.05, restarts=3, stable=3600)


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mlops-away-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o755)
        yield Path(folder).resolve() / "home"


def test_postgresql_is_started_again_until_it_runs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLOPS_DATABASE_URL", raising=False)
    said: list[tuple[str, str]] = []
    platform = up.Platform(load_settings(home=home), lambda kind, text: said.append((kind, text)), QUICK)
    supervisor = platform.supervisor
    try:
        server = platform._start_postgres(lambda: False)
        assert server is not None
        child = supervisor.children["postgres"]
        control = server.data / "global" / "pg_control"
        control.rename(control.with_suffix(".away"))
        assert child.process is not None
        os.kill(child.process.pid, signal.SIGKILL)

        def many_failures() -> bool:
            supervisor.tick()
            return child.failures > 3 * QUICK.restarts

        wait_for(many_failures, "many ends")
        assert any(kind == "fail" and "pg_control" in text and "tried again" in text for kind, text in said)
        control.with_suffix(".away").rename(control)

        def ready() -> bool:
            supervisor.tick()
            return child.ready

        wait_for(ready, "PostgreSQL runs again")
        with psycopg.connect(server.url("mlops")) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    finally:
        supervisor.stop(["postgres"])


def test_doctor_says_that_it_is_away(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "postgres").mkdir(parents=True)
    monkeypatch.setattr(doctor, "_running", lambda settings: {"pid": os.getpid()})
    settings = load_settings(home=home, database_url=f"postgresql+psycopg://postgres@/mlops?host={home / 'postgres'}")
    (line,) = doctor._embedded(settings)
    assert line.state == "fail" and "disk full" in line.fix and "starts it again by itself" in line.fix
