"""Arrival, freezing and cleaning killed at every named point: nothing is lost, nothing is used twice, one run is asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from mlops_assets.crash import ARRIVAL_POINTS, DATASET_POINTS
from mlops_assets.ingest.objects import land
from mlops_assets.lifecycle import dataset
from mlops_assets.resources.spark import SparkEngine
from mlops_assets.sample_data import write_reviews
from mlops_assets.settings import Settings, load_config, process_environment
from mlops_assets.store import ObjectStore
from mlops_assets.systems.sentiment import data
from mlops_assets.systems.sentiment.config import SentimentConfig
from mlops_assets_tests.ingest.arrivals import SYSTEM, content, freeze, ledger, put, ready, requests, states, tick

SIGKILLED = -9
VERSION = "v1"

#: What a process of the platform does at each stage. The subprocess imports it as the platform would.
STAGES = {
    "land": "from mlops_assets.ingest.objects import land; land(settings, store, 'sentiment', folder, 'v1', engine=engine)",
    "tick": "from mlops_assets.ingest.objects import tick; tick(engine, store, 'sentiment', settle_seconds=3600)",
    "freeze": (
        "from mlops_assets.lifecycle.dataset import freeze\n"
        "freeze(engine, store, 'sentiment', 'v1', max_object_bytes=10**9, scratch=settings.home / 'scratch')"
    ),
    "cleaned": (
        "import tempfile\n"
        "from mlops_assets.lifecycle.dataset import read_manifest; from mlops_assets.systems.sentiment import data\n"
        "from mlops_assets.systems.sentiment.config import SentimentConfig; from mlops_assets.settings import load_config\n"
        "from mlops_assets.resources.spark import SparkEngine\n"
        "section = load_config(SentimentConfig, 'sentiment', settings.configs).dataset\n"
        "manifest = read_manifest(engine, store, 'sentiment', 'v1')\n"
        "with tempfile.TemporaryDirectory() as scratch:\n"
        "    data.clean(engine, store, manifest, section, SparkEngine(), Path(scratch), max_line_bytes=10**6)"
    ),
}


def run(settings: Settings, stage: str, folder: Path, crash_at: str | None = None) -> int:
    """Run one stage in a process of its own; its exit status."""
    code = (
        "import sys; from pathlib import Path; from mlops_assets import database; from mlops_assets.settings import load_settings\n"
        "from mlops_assets.store import ObjectStore\n"
        "settings = load_settings(); store = ObjectStore.of(settings); engine = database.connect(settings.database_url)\n"
        f"folder = Path(sys.argv[1])\n{STAGES[stage]}\n"
    )
    environment = {**process_environment(), **settings.environment(), **({"MLOPS_CRASH_AT": crash_at} if crash_at else {})}
    done = subprocess.run([sys.executable, "-c", code, str(folder)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, SIGKILLED), done.stderr
    return done.returncode


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_reviews(tmp_path / "source", train=120, test=40)
    return tmp_path / "source"


@pytest.mark.parametrize("point", ARRIVAL_POINTS)
def test_arrival_killed_anywhere_is_completed_by_the_next_try(
    settings: Settings, store: ObjectStore, engine: Engine, folder: Path, tmp_path: Path, point: str
) -> None:
    stage = point.split(".")[0]
    if stage == "tick":
        land(settings, store, SYSTEM, folder, VERSION, engine=engine)
    assert run(settings, stage, folder, crash_at=point) == SIGKILLED
    if stage == "land":
        assert tick(engine, store).closed == [], "a half landing is not complete"
        land(settings, store, SYSTEM, folder, VERSION, engine=engine)
    closed_before = states(engine).get(VERSION) == "closed"
    assert closed_before == (point == "tick.after_commit")
    assert bool(requests(engine)) == closed_before, "a version is closed with its run request or not at all"
    tick(engine, store)
    tick(engine, store)
    assert requests(engine) == ["sentiment:v1:1"]
    assert content(store, freeze(engine, store, VERSION, tmp_path)) == {file.read_bytes(): 1 for file in folder.iterdir()}
    assert ledger(engine, VERSION) == [("ratings_test.txt", "accepted", None), ("ratings_train.txt", "accepted", None)]


def test_control_recording_and_closing_in_two_transactions_loses_the_run(settings: Settings, store: ObjectStore, engine: Engine) -> None:
    """A version closed first and its run requested afterwards: killed between the two, nobody ever asks for the run."""
    put(store, VERSION, "a", "1")
    ready(store, VERSION)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO dataset_version (system, version, state) VALUES ('sentiment', 'v1', 'closed')"))
    tick(engine, store)  # the platform after the restart
    assert requests(engine) == [], "the control must lose"


@pytest.mark.parametrize("point", DATASET_POINTS)
def test_freezing_and_cleaning_killed_anywhere_are_completed_by_the_next_try(
    settings: Settings, store: ObjectStore, engine: Engine, folder: Path, tmp_path: Path, point: str
) -> None:
    stage = point.split(".")[0]
    land(settings, store, SYSTEM, folder, VERSION, engine=engine)
    tick(engine, store)
    if stage == "cleaned":
        freeze(engine, store, VERSION, tmp_path)
    assert run(settings, stage, folder, crash_at=point) == SIGKILLED
    if stage == "freeze":
        done = point == "freeze.after_commit"
        assert states(engine) == {VERSION: "frozen" if done else "closed"}
        assert {state for _, state, _ in ledger(engine, VERSION)} == {"accepted" if done else "pending"}
        manifest = freeze(engine, store, VERSION, tmp_path)
        assert content(store, manifest) == {file.read_bytes(): 1 for file in folder.iterdir()}
        return
    with pytest.raises(dataset.DatasetError, match="not cleaned yet"):
        data.load_cleaned(store, engine, VERSION, tmp_path / "half")
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT count(*) FROM review")).scalar_one()
        claimed = dict(connection.execute(text("SELECT group_sha256, split FROM split_ledger")).tuples().all())
    assert bool(rows) == (point == "cleaned.after_commit")
    section = load_config(SentimentConfig, SYSTEM, settings.configs).dataset
    (tmp_path / "scratch").mkdir()
    manifest = dataset.read_manifest(engine, store, SYSTEM, VERSION)
    data.clean(engine, store, manifest, section, SparkEngine(), tmp_path / "scratch", max_line_bytes=10**6)
    table = data.read_table(data.load_cleaned(store, engine, VERSION, tmp_path / "whole"))
    assert data.account(engine, store, VERSION).adds_up and data.check_contract(table) == []
    with engine.connect() as connection:
        now = dict(connection.execute(text("SELECT group_sha256, split FROM split_ledger")).tuples().all())
    assert now == claimed, "the second try claims what the first one did"
    published = dataset.find_table(engine, SYSTEM, VERSION, manifest.sha256)
    assert published is not None
    named = {part.name for part in published.parts}
    assert {info.key.rsplit("/", 1)[-1] for info in store.list("cleaned")} == named, "no leftover"


@pytest.mark.parametrize("point", ["tick.after_record"])
def test_a_kill_among_a_thousand_objects(settings: Settings, store: ObjectStore, engine: Engine, tmp_path: Path, point: str) -> None:
    for n in range(1_100):
        put(store, VERSION, f"{n:04d}", f"content {n}")
    assert run(settings, "tick", tmp_path, crash_at=point) == SIGKILLED
    assert ledger(engine, VERSION) == []
    put(store, VERSION, "0000", "overwritten between the ticks")
    ready(store, VERSION)
    assert tick(engine, store).recorded == 1_100
    frozen = content(store, freeze(engine, store, VERSION, tmp_path))
    assert len(frozen) == 1_100 and set(frozen.values()) == {1} and b"overwritten between the ticks" in frozen
