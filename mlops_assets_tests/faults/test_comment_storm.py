"""Eight writers on a real MariaDB that roll back, hold their transactions and edit, while the reader is killed again and again."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from sqlalchemy import Engine, text

from mlops_assets.settings import Settings, process_environment
from mlops_assets_tests import mariadb as mariadb_server
from mlops_assets_tests.conftest import wait_for
from mlops_assets_tests.ingest.commented import Application, Cursor, ask, holes, look_again, look_far_back, reader, stored
from mlops_assets_tests.mariadb import MariaDB

WRITERS = 8
#: As the daemon does it, without its pauses: tick after tick in a process that is killed.
READER = """
import sys
from mlops_assets import database
from mlops_assets.ingest import comments
from mlops_assets.ingest.comment_source import CommentsError
from mlops_assets.settings import load_settings
from mlops_assets_tests.ingest.commented import section
settings = load_settings()
engine, configured = database.connect(settings.database_url), section(batch_rows=500, window_slice=200)
while True:
    done = comments.tick(engine, settings, configured)
    print(done.new, flush=True)
"""


@dataclass(frozen=True)
class Storm:
    rows: int
    held_seconds: float
    kills: int
    held: float
    """Share of transactions that are held open."""
    rollbacks: float = 0.05


@pytest.fixture(scope="module")
def mariadb() -> Iterator[MariaDB]:
    if mariadb_server.MISSING:
        pytest.skip(mariadb_server.MISSING)
    with mariadb_server.running() as server:
        yield server


@pytest.fixture
def app(mariadb: MariaDB) -> Iterator[Application]:
    application = Application(mariadb, "storm")
    yield application
    application.drop()


def write(app: Application, storm: Storm, seed: int, committed: list[int]) -> None:
    """One writer: transactions of a few comments; some are rolled back, one in twenty is held open while the others go on."""
    chance = random.Random(seed)
    connection = app.begin()
    while len(committed) < storm.rows // WRITERS:
        count = min(chance.randint(1, 40), storm.rows // WRITERS - len(committed))
        ids = []
        with connection.cursor() as cursor:
            for n in range(count):
                cursor.execute("INSERT INTO comments (text) VALUES (%s)", [f"글 {seed}-{len(committed) + n} 😀"])
                ids.append(cursor.lastrowid)
        if chance.random() < storm.held:
            time.sleep(storm.held_seconds)  # what is tested: an application that thinks inside a transaction
        if chance.random() < storm.rollbacks:
            connection.rollback()
        else:
            connection.commit()
            committed += ids
    connection.close()


def blow(app: Application, engine: Engine, settings: Settings, storm: Storm) -> None:
    committed: list[list[int]] = [[] for _ in range(WRITERS)]
    writers = [threading.Thread(target=write, args=(app, storm, n, committed[n])) for n in range(WRITERS)]
    control, over = Cursor(app), threading.Event()

    def naive() -> None:
        while not over.wait(0.02):
            control()

    cursor = threading.Thread(target=naive)
    environment = {**process_environment(), **settings.environment()}
    kills, chance = 0, random.Random(1)
    for thread in (*writers, cursor):
        thread.start()
    while kills < storm.kills or any(writer.is_alive() for writer in writers):
        process = subprocess.Popen([sys.executable, "-c", READER], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        for _ in range(chance.randint(1, 6)):  # so many ticks, and then somewhere in the next
            if not process.stdout.readline():
                raise AssertionError(process.stderr and process.stderr.read().decode())
        time.sleep(chance.random() * 0.05)
        process.kill()
        process.communicate()
        kills += 1
    over.set()
    cursor.join()
    control()
    tick = reader(engine, settings, batch_rows=500)

    def caught_up() -> bool:
        look_again(engine)
        look_far_back(engine)
        tick()
        return len(stored(engine)) >= storm.rows

    wait_for(caught_up, "all rows are here", 120)
    there = app.comments()
    assert sorted(id_ for ids in committed for id_ in ids) == list(there) and len(there) == storm.rows // WRITERS * WRITERS
    lost, extra = there.keys() - stored(engine).keys(), stored(engine).keys() - there.keys()
    assert (lost, extra) == (set(), set()) and stored(engine) == there
    assert ask(engine, "SELECT count(*), count(DISTINCT id) FROM comment_ledger") == [(len(there), len(there))], "none twice"
    in_holes = {n for first, last in holes(engine) for n in range(max(first, 0), last + 1)}
    assert in_holes <= set(range(max(there))), "no hole where nothing was passed"
    missed = there.keys() - control.found.keys()
    with engine.connect() as connection:
        rolled_back = connection.execute(text("SELECT read_to FROM comment_source")).scalar_one() - len(there)
    print(f"{len(there)} committed, {rolled_back} rolled back, {kills} kills: 0 lost, 0 twice; id > cursor lost {len(missed)}")
    assert kills >= storm.kills and rolled_back > 0
    assert missed, "the control must lose"


def test_a_small_storm(app: Application, engine: Engine, settings: Settings) -> None:
    blow(app, engine, settings.model_copy(update={"comments_url": app.url}), Storm(rows=8_000, held_seconds=0.5, held=0.15, kills=4))


@pytest.mark.slow
def test_a_hundred_thousand_comments(app: Application, engine: Engine, settings: Settings) -> None:
    blow(app, engine, settings.model_copy(update={"comments_url": app.url}), Storm(rows=100_000, held_seconds=3.0, held=0.02, kills=20))
