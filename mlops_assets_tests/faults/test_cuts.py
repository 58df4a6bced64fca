"""A cut killed at every named point: one version, whole, with its parent, the same bytes, and one run asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from mlops_assets.crash import CUT_POINTS
from mlops_assets.ingest import cuts, objects
from mlops_assets.settings import CutsSection, Settings, process_environment
from mlops_assets.store import ObjectStore
from mlops_assets_tests.ingest.comments import add_comment, add_label
from mlops_assets_tests.ingest.test_cuts import SYSTEM, freeze

SIGKILLED = -9
SECTION = CutsSection(when="labels")

CODE = """
from pathlib import Path
from mlops_assets import database
from mlops_assets.ingest import cuts
from mlops_assets.settings import CutsSection, load_settings
from mlops_assets.store import ObjectStore
settings = load_settings()
scratch = settings.home / "scratch"
scratch.mkdir(parents=True, exist_ok=True)
cuts.run(database.connect(settings.database_url), ObjectStore.of(settings), "hate", CutsSection(when="labels"), scratch)
"""


def run(settings: Settings, crash_at: str) -> int:
    environment = {**process_environment(), **settings.environment(), "MLOPS_CRASH_AT": crash_at}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, SIGKILLED), done.stderr
    return done.returncode


@pytest.mark.parametrize("settled", [True, False], ids=["quiet-long-enough", "at-once"])
@pytest.mark.parametrize("point", CUT_POINTS)
def test_a_cut_killed_anywhere_is_completed_by_the_next_try(
    settings: Settings, store: ObjectStore, engine: Engine, tmp_path: Path, point: str, settled: bool
) -> None:
    """`settled`: the landing folder has been quiet for so long meanwhile that it counts as complete without `_READY`."""
    store.put(f"landing/{SYSTEM}/first-1/rows.tsv", b"x")
    store.put(f"landing/{SYSTEM}/first-1/_READY", b"")
    freeze(engine, store, tmp_path, "first-1")
    with engine.begin() as connection:
        for number in range(1, 101):
            add_comment(connection, number)
            add_label(connection, number, ["clean"])
    assert run(settings, point) == SIGKILLED
    with engine.connect() as connection:
        before = connection.execute(text("SELECT version FROM comment_cut")).scalars().all()
    assert len(before) == (point != "cut.before_commit")
    with engine.begin() as connection:  # people go on meanwhile: what is settled does not change by that
        add_label(connection, 1, ["지역"])
        add_comment(connection, 2, "고친 글", content_hash=2)
    objects.tick(engine, store, SYSTEM, settle_seconds=3600)
    if settled:
        objects.tick(engine, store, SYSTEM, settle_seconds=0)
    done = cuts.run(engine, store, SYSTEM, SECTION, tmp_path)
    assert len(done.landed) == 1
    version = done.landed[0]
    assert before in ([], [version])
    objects.tick(engine, store, SYSTEM, settle_seconds=3600)
    content = store.get(f"landing/{SYSTEM}/{version}/comments.jsonl").decode()
    found = {line["id"]: line for line in map(json.loads, content.splitlines())}
    if before:
        assert len(found) == 100 and found[1]["labels"] == ["clean"]
    else:
        assert len(found) == 99 and found[1]["labels"] == ["지역"]
    with engine.connect() as connection:
        (row,) = connection.execute(text("SELECT version, parent, state FROM dataset_version WHERE version <> 'first-1'")).all()
        assert (row.version, row.parent, row.state) == (version, "first-1", "closed")
        assert [r.run_key for r in objects.runs_asked(connection, SYSTEM) if r.version == version] == [f"{SYSTEM}:{version}:1"]
        assert connection.execute(text("SELECT state FROM comment_cut")).scalars().all() == ["landed"]
        columns = "system, version, parent, sequence_from, sequence_to, rows, reason, state"
        (cut,) = [cuts.Cut(*row) for row in connection.execute(text(f"SELECT {columns} FROM comment_cut"))]
        assert "".join(line + "\n" for line in cuts.lines_of(connection, cut)) == content
    assert {info.key.rsplit("/", 1)[-1] for info in store.list(f"landing/{SYSTEM}/{version}")} == {"comments.jsonl", "_PARENT", "_READY"}
    assert objects.reconcile(engine, store, SYSTEM).late == 0, "nothing was written again after the version was closed"


def test_control_objects_written_before_the_cut_is_settled_are_of_two_minds(engine: Engine, store: ObjectStore) -> None:
    """Killed after its object and before its row, such a cut is made again under the same name, with what has changed meanwhile."""
    written = []
    with engine.begin() as connection:
        add_comment(connection, 1)
        add_label(connection, 1, ["clean"])
    for _ in range(2):
        with engine.connect() as connection:
            written.append(connection.execute(text("SELECT labels FROM comment_standing")).scalars().all())
        with engine.begin() as connection:
            add_label(connection, 1, ["지역"])
    assert written[0] != written[1], "the control must lose"
