"""Arrival: landing, the ledger's ticks, the trigger ledger, reconciliation; on a file store and on S3."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from mlops_assets.ingest import objects
from mlops_assets.ingest.objects import LandingError, completion, land, plan
from mlops_assets.settings import Settings
from mlops_assets.store import ObjectInfo, ObjectStore
from mlops_assets_tests.ingest.arrivals import (
    SYSTEM,
    ModifiedAfter,
    SinceKey,
    content,
    freeze,
    ledger,
    put,
    ready,
    requests,
    states,
    tick,
)

# --- the pure planner -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(["v1", "v2", "v3", "Bad Name", "a..b"])), st.dictionaries(st.sampled_from(["v1", "v2"]), st.just("closed")))
def test_a_tick_reads_only_what_is_new_or_open(folders: list[str], closed: dict[str, str]) -> None:
    todo = plan(folders, closed | {"v3": "open"})
    assert list(todo.read) == sorted({name for name in folders if name in {"v1", "v2", "v3"} and name not in closed})
    assert set(todo.refuse) == set(folders) & {"Bad Name", "a..b"}


@pytest.mark.parametrize(
    ("ready_marker", "count", "quiet", "parent", "parent_state", "close"),
    [
        (True, 1, 0, None, None, True),
        (True, 0, 100, None, None, False),  # a marker before its data
        (False, 0, 100, None, None, False),
        (False, 1, 29, None, None, False),
        (False, 1, 30, None, None, True),
        (True, 1, 0, "v0", "closed", False),
        (True, 1, 0, "v0", None, False),
        (True, 1, 0, "v0", "frozen", True),
        (True, 1, 0, "No Such Name", "frozen", False),
    ],
)
def test_when_a_version_is_complete(
    ready_marker: bool, count: int, quiet: float, parent: str | None, parent_state: str | None, close: bool
) -> None:
    verdict = completion(
        ready=ready_marker, landing=False, objects=count, quiet_seconds=quiet, settle_seconds=30, parent=parent, parent_state=parent_state
    )
    assert verdict.close is close
    assert verdict.why
    begun = completion(
        ready=ready_marker, landing=True, objects=count, quiet_seconds=quiet, settle_seconds=30, parent=parent, parent_state=parent_state
    )
    assert begun.close is (close and ready_marker), "a landing in progress is not silence, and _READY outweighs its marker"


# --- landing --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "a.txt").write_text("one")
    (source / "sub" / "한글 이름.txt").write_text("둘")
    (source / ".DS_Store").write_text("hidden")
    return source


def test_a_folder_lands_with_its_marker_last(settings: Settings, store: ObjectStore, engine: Engine, folder: Path) -> None:
    done = land(settings, store, SYSTEM, folder, "v1", engine=engine, systems=[SYSTEM])
    assert (done.objects, done.bytes, done.unchanged) == (2, 6, False)
    keys = {info.key: info for info in store.list("landing/sentiment/v1")}
    assert set(keys) == {f"landing/sentiment/v1/{name}" for name in ("a.txt", "sub/한글 이름.txt", "_READY")}
    assert max(keys.values(), key=lambda info: info.last_modified).key.endswith("_READY")


def test_a_single_file_lands(settings: Settings, store: ObjectStore, engine: Engine, folder: Path) -> None:
    assert land(settings, store, SYSTEM, folder / "a.txt", "v1", engine=engine).objects == 1
    assert store.get("landing/sentiment/v1/a.txt") == b"one"


def test_landing_again_changes_nothing_at_any_stage(
    settings: Settings, store: ObjectStore, engine: Engine, folder: Path, tmp_path: Path
) -> None:
    land(settings, store, SYSTEM, folder, "v1", engine=engine)
    before = {info.key: info.etag for info in store.list("landing")}
    assert land(settings, store, SYSTEM, folder, "v1", engine=engine).unchanged
    tick(engine, store)
    assert land(settings, store, SYSTEM, folder, "v1", engine=engine).unchanged
    freeze(engine, store, "v1", tmp_path)
    assert land(settings, store, SYSTEM, folder, "v1", engine=engine).unchanged
    assert {info.key: info.etag for info in store.list("landing")} == before
    for key in before:
        store.delete(key)
    assert land(settings, store, SYSTEM, folder, "v1", engine=engine).unchanged, "the ledger has the digests of what is frozen"


@pytest.mark.parametrize("stage", ["marked", "closed", "frozen", "marked, no database"])
def test_nothing_else_lands_in_a_complete_version(
    settings: Settings, store: ObjectStore, engine: Engine, folder: Path, tmp_path: Path, stage: str
) -> None:
    land(settings, store, SYSTEM, folder, "v1", engine=engine)
    if stage in ("closed", "frozen"):
        tick(engine, store)
    if stage == "frozen":
        freeze(engine, store, "v1", tmp_path)
    (folder / "b.txt").write_text("new")
    if stage == "marked, no database":
        settings = settings.model_copy(update={"database_url": "postgresql://nobody@127.0.0.1:1/none"})
    with pytest.raises(LandingError, match=r"b\.txt.*Land under a new name.*--parent v1"):
        land(settings, store, SYSTEM, folder, "v1")
    assert not store.exists("landing/sentiment/v1/b.txt")


@pytest.mark.parametrize(
    ("path", "version", "system", "message"),
    [
        ("missing", "v1", SYSTEM, "does not exist"),
        ("empty", "v1", SYSTEM, "holds no file"),
        (".", "V1", SYSTEM, "cannot name a dataset version"),
        (".", "a..b", SYSTEM, "cannot name a dataset version"),
        (".", "../v1", SYSTEM, "cannot name a dataset version"),
        (".", "v" * 64, SYSTEM, "cannot name a dataset version"),
        (".", "v1", "sentimental", "unknown system 'sentimental': choose from sentiment"),
    ],
)
def test_bad_landings_say_what_to_do(
    settings: Settings, store: ObjectStore, engine: Engine, folder: Path, path: str, version: str, system: str, message: str
) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(LandingError, match=message):
        land(settings, store, system, folder / path, version, engine=engine, systems=[SYSTEM])
    assert list(store.list("landing")) == []


def test_limits_of_what_lands(settings: Settings, store: ObjectStore, engine: Engine, folder: Path) -> None:
    small = settings.model_copy(update={"max_object_bytes": 2})
    with pytest.raises(LandingError, match="MLOPS_MAX_OBJECT_BYTES"):
        land(small, store, SYSTEM, folder, "v1", engine=engine)
    (folder / "part#1").write_text("x")
    assert land(settings, store, SYSTEM, folder, "v1", engine=engine).objects == 3, "a name like any other"


def test_a_full_disk_leaves_nothing_behind(settings: Settings, tmp_path: Path, folder: Path) -> None:
    """A file size limit stands in for the full disk: the same failing write, with another number."""
    (folder / "large.bin").write_bytes(b"x" * 3_000_000)
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from mlops_assets.settings import load_settings; from mlops_assets.store import ObjectStore\n"
        "from mlops_assets.ingest.objects import land, LandingError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
        "settings = load_settings(database_url=None)\n"
        "try: land(settings, ObjectStore.of(settings), 'sentiment', Path(sys.argv[1]), 'v1')\n"
        "except LandingError as error: print(error); sys.exit(2)\n"
    )
    environment = {**settings.environment(), "PATH": "/usr/bin:/bin"}
    environment.pop("MLOPS_DATABASE_URL")
    done = subprocess.run([sys.executable, "-c", code, str(folder)], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "no space left" in done.stdout and "large.bin" in done.stdout and "MLOPS_OBJECT_STORE_URL" in done.stdout
    landed = settings.store_url.removeprefix("file://") + "/landing"
    assert [path for path in Path(landed).rglob("*") if path.is_file()] == []


def test_a_parent_must_exist_and_is_written_down(
    settings: Settings, store: ObjectStore, engine: Engine, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(LandingError, match="no version 'v0' to extend: known are none yet"):
        land(settings, store, SYSTEM, folder, "v1", engine=engine, parent="v0")
    land(settings, store, SYSTEM, folder, "v0", engine=engine)
    tick(engine, store)
    with pytest.raises(LandingError, match="cannot extend itself"):
        land(settings, store, SYSTEM, folder, "v0", engine=engine, parent="v0")
    (folder / "_PARENT").write_text("v0\n")
    land(settings, store, SYSTEM, folder, "v1", engine=engine)
    assert store.get("landing/sentiment/v1/_PARENT") == b"v0"
    waiting = tick(engine, store)
    assert "v0, which is closed, not frozen" in waiting.waiting["v1"] and states(engine)["v1"] == "open"
    freeze(engine, store, "v0", tmp_path)
    assert tick(engine, store).closed == ["v1"]
    manifest = freeze(engine, store, "v1", tmp_path)
    assert {entry.from_version for entry in manifest.entries} == {"v0", "v1"} and len(manifest.entries) == 4


class Killed(BaseException):
    """Stands for the signal: nothing of `land` runs afterwards."""


@pytest.mark.parametrize("parent", [None, "v0"])
def test_a_slow_or_killed_landing_is_never_taken_for_a_complete_one(
    settings: Settings, any_store: ObjectStore, engine: Engine, folder: Path, tmp_path: Path, parent: str | None
) -> None:
    if parent is not None:
        put(any_store, parent, "old", "0")
        ready(any_store, parent)
        tick(engine, any_store)
        freeze(engine, any_store, parent, tmp_path)
    seen: list[str] = []

    def slow(name: str, done: int, total: int) -> None:
        seen.append(name)
        assert tick(engine, any_store, settle_seconds=0).closed == []
        assert tick(engine, any_store, settle_seconds=0).closed == [], "nothing new came, and it still goes on"

    def killed(name: str, done: int, total: int) -> None:
        slow(name, done, total)
        raise Killed

    with pytest.raises(Killed):
        land(settings, any_store, SYSTEM, folder, "v1", engine=engine, parent=parent, progress=killed)
    why = tick(engine, any_store, settle_seconds=0).waiting["v1"]
    assert "`mlops land` has begun and not ended" in why and "the same command completes it" in why
    with engine.connect() as connection:
        assert connection.execute(text("SELECT reason FROM dataset_version WHERE version = 'v1'")).scalar() == why
    assert ledger(engine, "v1") == [("a.txt", "pending", None)], "a marker is no data"
    assert not land(settings, any_store, SYSTEM, folder, "v1", engine=engine, parent=parent, progress=slow).unchanged
    assert seen == ["a.txt", "sub/한글 이름.txt"], "the second landing writes what is missing"
    assert not any_store.exists("landing/sentiment/v1/_LANDING")
    assert tick(engine, any_store).closed == ["v1"]
    manifest = freeze(engine, any_store, "v1", tmp_path)
    assert set(content(any_store, manifest)) == {b"one", "둘".encode()} | ({b"0"} if parent else set())
    assert objects.reconcile(engine, any_store, SYSTEM).late == 0


def test_a_landing_that_ends_while_a_tick_looks_is_not_silence(settings: Settings, engine: Engine) -> None:
    class Ending(ObjectStore):
        def exists(self, key: str) -> bool:
            found = super().exists(key)
            if key.endswith("_LANDING"):
                self.put("landing/sentiment/v1/_READY", b"")
                self.delete(key)
            return found

    store = Ending(settings.store_url)
    put(store, "v1", "a", "1")
    put(store, "v1", "_LANDING", b"")
    assert tick(engine, store, settle_seconds=0).closed == ["v1"]
    with engine.connect() as connection:
        assert connection.execute(text("SELECT reason FROM run_request")).scalar() == "complete: ready marker"


def test_who_may_not_delete_lands_all_the_same(settings: Settings, engine: Engine, folder: Path) -> None:
    class WriteOnly(ObjectStore):
        def delete(self, key: str) -> None:
            raise PermissionError(key)

    store = WriteOnly(settings.store_url)
    land(settings, store, SYSTEM, folder, "v1", engine=engine)
    assert land(settings, store, SYSTEM, folder, "v1", engine=engine).unchanged
    assert tick(engine, store).closed == ["v1"]


# --- ticks ----------------------------------------------------------------------------------------------------------------------


def test_over_a_thousand_objects_are_all_frozen_once(any_store: ObjectStore, engine: Engine, tmp_path: Path) -> None:
    count = 1_003
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: put(any_store, "v1", f"{n % 7}/part-{n:05d}", f"content {n}"), range(count)))
    assert tick(engine, any_store).recorded == count
    assert tick(engine, any_store).recorded == 0
    ready(any_store, "v1")
    assert tick(engine, any_store).closed == ["v1"]
    manifest = freeze(engine, any_store, "v1", tmp_path)
    assert content(any_store, manifest) == {f"content {n}".encode(): 1 for n in range(count)}
    assert tick(engine, any_store) == objects.Tick()
    assert requests(engine) == ["sentiment:v1:1"]


def test_overwrites_deletes_and_late_objects_lose_nothing(any_store: ObjectStore, engine: Engine, tmp_path: Path) -> None:
    put(any_store, "v1", "kept", "kept")
    put(any_store, "v1", "twice", "first")
    put(any_store, "v1", "back", "A")
    put(any_store, "v1", "gone", "deleted before freezing")
    tick(engine, any_store)
    put(any_store, "v1", "twice", "later")  # same second, same size
    put(any_store, "v1", "back", "B")
    tick(engine, any_store)
    put(any_store, "v1", "back", "A")
    ready(any_store, "v1")
    assert tick(engine, any_store).closed == ["v1"]
    put(any_store, "v1", "twice", "final")  # after closing, before freezing
    put(any_store, "v1", "late", "a key that came after closing")
    any_store.delete("landing/sentiment/v1/gone")
    manifest = freeze(engine, any_store, "v1", tmp_path)
    assert content(any_store, manifest) == {b"kept": 1, b"final": 1, b"A": 1}
    rows = ledger(engine, "v1")
    assert [row for row in rows if row[0] == "twice"] == [("twice", "accepted", None)] + [("twice", "quarantined", "superseded")] * 2
    assert ("late", "quarantined", "late") in rows and ("gone", "quarantined", "vanished") in rows
    assert sum(row[0] == "back" and row[1] == "accepted" for row in rows) == 1
    assert not [row for row in rows if row[1] == "pending"]
    # Nothing that happens afterwards changes the version.
    put(any_store, "v1", "kept", "overwritten after freezing")
    any_store.delete("landing/sentiment/v1/back")
    tick(engine, any_store)
    found = objects.reconcile(engine, any_store, SYSTEM)
    assert (found.late, found.deleted) == (1, 1)
    assert content(any_store, freeze(engine, any_store, "v1", tmp_path)) == {b"kept": 1, b"final": 1, b"A": 1}


def test_control_since_key_loses_an_overwritten_object(any_store: ObjectStore, engine: Engine, tmp_path: Path) -> None:
    """The key that was seen last is written again: it is its own cursor, and nothing comes after it."""
    cursor = SinceKey()
    put(any_store, "v1", "a", "1")
    put(any_store, "v1", "b", "2")
    assert read(any_store, cursor) == {b"1", b"2"}
    tick(engine, any_store)
    put(any_store, "v1", "b", "3")
    assert read(any_store, cursor) == set(), "the control must lose"
    ready(any_store, "v1")
    tick(engine, any_store)
    assert content(any_store, freeze(engine, any_store, "v1", tmp_path)) == {b"1": 1, b"3": 1}


def test_control_a_cursor_on_the_time_loses_what_comes_in_the_same_second(store: ObjectStore, engine: Engine, tmp_path: Path) -> None:
    cursor = ModifiedAfter()

    def put_within_the_second(name: str, data: str) -> None:
        assert store.local_root is not None
        os.utime(store.local_root / put(store, "v1", name, data), (1_700_000_000, 1_700_000_000))

    put_within_the_second("a", "1")
    assert read(store, cursor) == {b"1"}
    tick(engine, store)
    put_within_the_second("b", "2")
    assert read(store, cursor) == set(), "the control must lose"
    put_within_the_second("a", "3")  # same second, same size: still other bytes
    ready(store, "v1")
    tick(engine, store)
    assert content(store, freeze(engine, store, "v1", tmp_path)) == {b"2": 1, b"3": 1}


def read(store: ObjectStore, cursor: SinceKey | ModifiedAfter) -> set[bytes]:
    return {store.get(key) for key in cursor(store, "landing/sentiment/v1")}


class Interrupted(ObjectStore):
    """A store in which something happens while a listing is under way: after the keys that sort before `_READY`."""

    writes: list[tuple[str, bytes]] = []

    def list(self, prefix: str, *, after: str | None = None) -> Iterator[ObjectInfo]:
        pages = sorted(super().list(prefix, after=after), key=lambda info: info.key)
        yield from (info for info in pages if info.key.rsplit("/", 1)[-1] < "_")
        for key, data in self.writes:
            self.put(key, data)
        self.writes = []
        yield from (info for info in super().list(prefix, after=after) if info.key.rsplit("/", 1)[-1] >= "_")


def test_a_marker_that_appears_during_the_listing_does_not_close_the_version(settings: Settings, engine: Engine, tmp_path: Path) -> None:
    store = Interrupted(settings.store_url)
    put(store, "v1", "A", "1")
    store.writes = [("landing/sentiment/v1/B", b"2"), ("landing/sentiment/v1/_READY", b"")]
    listed = [info.key.rsplit("/", 1)[-1] for info in Interrupted.list(store, "landing/sentiment/v1")]
    assert listed == ["A", "_READY"], "control: this listing has the marker and not B, which was written before it"
    for key in ("B", "_READY"):
        store.delete(f"landing/sentiment/v1/{key}")
    store.writes = [("landing/sentiment/v1/B", b"2"), ("landing/sentiment/v1/_READY", b"")]
    assert tick(engine, store).closed == []
    assert tick(engine, store).closed == ["v1"]
    assert content(store, freeze(engine, store, "v1", tmp_path)) == {b"1": 1, b"2": 1}


def test_a_version_without_marker_closes_after_a_quiet_period(store: ObjectStore, engine: Engine) -> None:
    put(store, "v1", "a", "1")
    assert tick(engine, store, settle_seconds=30).closed == []

    def earlier(seconds: int) -> None:
        with engine.begin() as connection:
            connection.execute(text(f"UPDATE dataset_version SET changed_at = changed_at - interval '{seconds} seconds'"))

    earlier(31)
    put(store, "v1", "a", "2")  # not quiet: the same key, written again
    assert tick(engine, store, settle_seconds=30).closed == []
    earlier(31)
    assert tick(engine, store, settle_seconds=30).closed == ["v1"]


class Failing(ObjectStore):
    """A store that cannot list some prefixes."""

    fail: tuple[str, ...] = ()

    def list(self, prefix: str, *, after: str | None = None) -> Iterator[ObjectInfo]:
        if prefix.endswith(self.fail):
            raise OSError(f"503 Slow Down: {prefix}")
        return super().list(prefix, after=after)

    def folders(self, prefix: str) -> list[str]:
        if prefix.endswith(self.fail):
            raise OSError(f"503 Slow Down: {prefix}")
        return super().folders(prefix)


def test_a_failed_listing_is_not_an_empty_one(settings: Settings, engine: Engine) -> None:
    store = Failing(settings.store_url)
    for version in ("v1", "v2"):
        put(store, version, "a", version)
    tick(engine, store)
    for version in ("v1", "v2"):
        ready(store, version)
    store.fail = ("/v1",)
    done = tick(engine, store)
    assert done.closed == ["v2"] and "503" in done.problems["v1"]
    assert states(engine) == {"v1": "open", "v2": "closed"} and ledger(engine, "v1") == [("a", "pending", None)]
    store.fail = ("landing/sentiment",)
    with pytest.raises(OSError, match="503"):
        tick(engine, store)
    store.fail = ()
    assert tick(engine, store).closed == ["v1"]


def test_a_folder_that_cannot_be_a_version_is_refused_and_accounted_for(store: ObjectStore, engine: Engine) -> None:
    put(store, "Bad Name", "a", "1")
    put(store, "v1", "a", "1")
    ready(store, "v1")
    done = tick(engine, store)
    assert done.closed == ["v1"] and "cannot name" in done.problems["Bad Name"]
    assert ledger(engine, "Bad Name") == [("a", "quarantined", "bad_version_name")]
    assert tick(engine, store) == objects.Tick(), "said once"


def test_two_ticks_at_once_close_a_version_once(store: ObjectStore, engine: Engine) -> None:
    for n in range(50):
        put(store, "v1", f"{n}", str(n))
    ready(store, "v1")
    with ThreadPoolExecutor(4) as pool:
        ticks = list(pool.map(lambda _: tick(engine, store), range(4)))
    assert sum(len(done.closed) for done in ticks) == 1 and sum(done.recorded for done in ticks) == 50
    assert not any(done.problems for done in ticks)
    assert requests(engine) == ["sentiment:v1:1"]


# --- the trigger ledger and reconciliation --------------------------------------------------------------------------------------


def test_a_run_can_be_asked_for_again_under_another_key(store: ObjectStore, engine: Engine, tmp_path: Path) -> None:
    put(store, "v1", "a", "1")
    ready(store, "v1")
    tick(engine, store)
    with engine.begin() as connection:
        assert objects.request_run(connection, SYSTEM, "v1", "the first run's machine burnt down") == 2
        first, second = objects.runs_asked(connection, SYSTEM)
    assert (first.run_key, second.run_key) == ("sentiment:v1:1", "sentiment:v1:2")
    freeze(engine, store, "v1", tmp_path)
    with engine.connect() as connection:
        later = objects.runs_asked(connection, SYSTEM, since=second.requested_at)
        assert [request.attempt for request in later] == [2], "once it is frozen, only what is new is looked at"


def test_reconciliation_finds_what_came_late_and_what_lies_outside(any_store: ObjectStore, engine: Engine, tmp_path: Path) -> None:
    put(any_store, "v1", "a", "1")
    put(any_store, "v1", "deeper/_READY", "an object like any other")
    ready(any_store, "v1")
    tick(engine, any_store)
    put(any_store, "v1", "a", "2")  # overwritten before it is frozen: the freezing's to judge
    put(any_store, "v2", "open", "1")
    any_store.put("landing/sentiment/stray.txt", b"in no version")
    tick(engine, any_store)
    found = objects.reconcile(engine, any_store, SYSTEM)
    assert (found.objects, found.late, found.strays, found.deleted) == (4, 0, 1, 0)
    assert content(any_store, freeze(engine, any_store, "v1", tmp_path)) == {b"2": 1, b"an object like any other": 1}
    put(any_store, "v1", "late", "1")
    assert objects.reconcile(engine, any_store, SYSTEM).late == 1
    assert objects.reconcile(engine, any_store, SYSTEM).late == 0, "said once"
    assert ("late", "quarantined", "late") in ledger(engine, "v1")
    assert ledger(engine, "") == [("stray.txt", "quarantined", "no_version")]
