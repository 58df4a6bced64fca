"""What no tool of ours would write into the landing zone: each is named once and quarantined, and everything else goes on."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import obstore
import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.exceptions import BaseError
from obstore.store import LocalStore, MemoryStore
from sqlalchemy import Engine

from mlops_assets.ingest import objects
from mlops_assets.ingest.objects import LandingError, land
from mlops_assets.settings import Settings
from mlops_assets.store import MAX_KEY_BYTES, ObjectStore, odd_name, printable
from mlops_assets_tests.ingest.arrivals import SYSTEM, content, freeze, put, ready, requests, states, tick
from mlops_assets_tests.ingest.odd import arrived, put_raw, rows

LONG = "/".join(["d" * 200] * 6)
#: Names within a version that cannot be used -> how they are shown. In a file store those with a slash do not exist.
NAMES = {
    "good/new\nline.jpg": "good/new\\nline.jpg",
    "good/tab\t.jpg": "good/tab\\t.jpg",
    "good/\x01\x7f\x85.jpg": "good/\\x01\\x7f\\x85.jpg",
    f"good/{LONG}.jpg": None,
    "good/\udcff\udcfe.jpg": "good/\\xff\\xfe.jpg",
    "good//x.jpg": "good//x.jpg",
    "good/./x.jpg": "good/./x.jpg",
    "good/../x.jpg": "good/../x.jpg",
    "/lead.jpg": "/lead.jpg",
    "trail/": "trail/",
}
IN_S3 = [name for name in NAMES if "\udcff" not in name and LONG not in name]
IN_FILES = list(NAMES)[:5]


def names_of(store: ObjectStore) -> list[str]:
    return IN_S3 if store.local_root is None else IN_FILES


@pytest.fixture
def others(any_store: ObjectStore) -> ObjectStore:
    """A store with a version that has nothing to do with what is odd."""
    put(any_store, "v5", "good/a.jpg", "fine")
    ready(any_store, "v5")
    return any_store


# --- keys -----------------------------------------------------------------------------------------------------------------------


def test_one_odd_key_stops_nobody(others: ObjectStore, engine: Engine, tmp_path: Path) -> None:
    store, odd = others, names_of(others)
    for name in odd:
        put_raw(store, f"landing/{SYSTEM}/v1/{name}")
    put(store, "v1", "good/fine.jpg", "1")
    ready(store, "v1")
    done = tick(engine, store)
    assert done.closed == ["v1", "v5"]
    assert f"{len(odd)} in quarantine" in done.problems["v1"] and "rename it" in done.problems["v1"]
    assert tick(engine, store) == objects.Tick(), "said once"
    manifest = freeze(engine, store, "v1", tmp_path)
    assert content(store, manifest) == {b"1": 1}
    found = rows(engine, "v1")
    assert found.pop(f"landing/{SYSTEM}/v1/good/fine.jpg")[0] == "accepted"
    assert len(found) == len(odd) and {code for code, _ in found.values()} == {"odd_name"}, "accepted + quarantined = in"
    assert {f"landing/{SYSTEM}/v1/{NAMES[name]}" for name in odd if NAMES[name]} <= set(found)
    assert all("remove it, or rename it" in reason and key.isprintable() for key, (_, reason) in found.items())
    reconciled = objects.reconcile(engine, store, SYSTEM)
    assert (reconciled.objects, reconciled.odd, reconciled.late) == (len(odd) + 2, 0, 0)


def test_control_the_librarys_own_listing_ends_at_an_odd_name(tmp_path: Path) -> None:
    (tmp_path / "new\nline").touch()
    with pytest.raises(BaseError):
        list(obstore.list(LocalStore(tmp_path)))


FOLDERS = ("V 3", "new\nline", "v" * 64, "a..b", "V\u00e9")


def test_one_odd_folder_stops_nobody(others: ObjectStore, engine: Engine) -> None:
    store = others
    folders = (*FOLDERS, "", ".", "..") if store.local_root is None else (*FOLDERS, "\udcff")
    for name in folders:
        put_raw(store, f"landing/{SYSTEM}/{name}/stray.jpg")
    done = tick(engine, store)
    assert done.closed == ["v5"] and len(done.problems) == len(folders)
    for problem in done.problems.values():
        assert "stray.jpg" in problem and ("rename it" in problem or "copy its files into one that can" in problem)
    assert tick(engine, store) == objects.Tick(), "said once"
    assert states(engine) == {"v5": "closed"}, "what cannot be a version is none"
    for name in folders:
        put_raw(store, f"landing/{SYSTEM}/{name}/later.jpg")
    assert tick(engine, store) == objects.Tick()
    assert objects.reconcile(engine, store, SYSTEM).odd == len(folders) and objects.reconcile(engine, store, SYSTEM).odd == 0
    for name in folders:
        found = rows(engine, printable(name) if name else "")
        assert len(found) == 2 and {code for code, _ in found.values()} <= {"odd_name", "bad_version_name"}, name


def test_the_night_goes_on_and_sees_what_no_system_looks_at(others: ObjectStore, engine: Engine) -> None:
    store = others
    tick(engine, store)
    for key in ("landing/tirse/v1/a.jpg", "landing/b.jpg", "landing/Tires/v1/new\nline.jpg", f"landing/{SYSTEM}/c.jpg"):
        put_raw(store, key)
    if store.local_root is None:
        for key in ("landing//d.jpg", f"landing/{SYSTEM}//e.jpg", f"landing/{SYSTEM}/v5/late//f.jpg", f"landing/{SYSTEM}"):
            put_raw(store, key)
    put(store, "v5", "late.jpg", "1")
    systems = (SYSTEM, "tires")
    assert objects.reconcile(engine, store, "tires", systems=systems) == objects.Reconciled(0, 0, 0, 0)
    found = objects.reconcile(engine, store, SYSTEM, systems=systems)
    assert (found.late, found.strays) == (1, 1)
    assert found.odd == (3 if store.local_root is not None else 7)
    assert objects.reconcile(engine, store, SYSTEM, systems=systems) == objects.Reconciled(found.objects, 0, 0, 0), "said once"
    lost = {key for key, (code, _) in rows(engine, "").items() if code == "unknown_system"}
    assert {"landing/tirse/v1/a.jpg", "landing/b.jpg", "landing/Tires/v1/new\\nline.jpg"} <= lost


def test_hangul_in_two_forms_and_other_cases_are_different_objects(any_store: ObjectStore, engine: Engine, tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "가.jpg")
    for number, name in enumerate(("가.jpg", decomposed, "a.jpg", "A.jpg", "back\\slash", "a#1", "a b+c%20d&<>.jpg")):
        put(any_store, "v1", name, str(number))
    if any_store.local_root is None:
        put(any_store, "v1", "a.jpg/b.jpg", "7")  # a key that is the beginning of another
    ready(any_store, "v1")
    assert tick(engine, any_store).closed == ["v1"]
    frozen = content(any_store, freeze(engine, any_store, "v1", tmp_path))
    assert set(frozen) == {str(n).encode() for n in range(7 if any_store.local_root is not None else 8)}


@given(st.text(st.characters(codec=None, categories=None), max_size=30), st.text(max_size=400))
def test_what_is_shown_of_any_name_is_one_line_of_bounded_utf8(name: str, more: str) -> None:
    key = f"landing/s/v/{name}/{more}"
    shown = printable(key)
    assert len(shown.encode()) <= MAX_KEY_BYTES and "\x00" not in shown
    assert shown == key if odd_name(key) is None else shown.isprintable()
    if odd_name(key) is None:
        obstore.put(MemoryStore(), key, b"")  # the library takes whatever we do


# --- folders that consoles draw, and markers ------------------------------------------------------------------------------------


def test_a_folder_that_a_console_drew_is_no_object(s3_store: ObjectStore, engine: Engine, tmp_path: Path) -> None:
    for key in ("v3/", "v3/good/", "v3/defective/", "v3/good_$folder$"):
        put_raw(s3_store, f"landing/{SYSTEM}/{key}", b"")
    first = tick(engine, s3_store, settle_seconds=0)
    assert first.waiting == {"v3": "no data yet"} and first.recorded == 0
    assert tick(engine, s3_store, settle_seconds=0) == objects.Tick(), "it may stay so for days: said once"
    put(s3_store, "v3", "good/g1.jpg", "1")
    assert tick(engine, s3_store).waiting
    put(s3_store, "v3", "defective/d1.jpg", "2")
    ready(s3_store, "v3")
    assert tick(engine, s3_store).closed == ["v3"]
    assert content(s3_store, freeze(engine, s3_store, "v3", tmp_path)) == {b"1": 1, b"2": 1}
    assert objects.reconcile(engine, s3_store, SYSTEM).objects == 2


def test_an_object_with_bytes_whose_key_ends_in_a_slash_is_named(s3_store: ObjectStore, engine: Engine) -> None:
    put_raw(s3_store, f"landing/{SYSTEM}/v1/good/", b"bytes")
    put_raw(s3_store, f"landing/{SYSTEM}/v1/good", b"")
    done = tick(engine, s3_store, settle_seconds=0)
    assert "v1/good/: its name cannot be used" in done.problems["v1"] and done.closed == []
    assert rows(engine, "v1")[f"landing/{SYSTEM}/v1/good"][0] == "pending", "the other key"


@pytest.mark.parametrize("empty", [".keep", "good/.gitkeep", ".emptyFolderPlaceholder"])
def test_empty_objects_alone_do_not_close_a_version(any_store: ObjectStore, engine: Engine, empty: str) -> None:
    put(any_store, "v1", empty, b"")
    assert tick(engine, any_store, settle_seconds=0).closed == tick(engine, any_store, settle_seconds=0).closed == []
    put(any_store, "v1", "a.jpg", "1")
    assert tick(engine, any_store, settle_seconds=3600).closed == []
    assert tick(engine, any_store, settle_seconds=0).closed == ["v1"]


def test_data_that_follows_a_lone_ready_counts(any_store: ObjectStore, engine: Engine, tmp_path: Path) -> None:
    ready(any_store, "v1")
    arrived(any_store, f"landing/{SYSTEM}/v1/_READY", -10)
    first = tick(engine, any_store, settle_seconds=0)
    assert "_READY is there and no data yet" in first.waiting["v1"] and first.closed == []
    assert tick(engine, any_store, settle_seconds=0) == objects.Tick(), "said once, however long"
    put(any_store, "v1", "1.jpg", "1")
    assert "_READY came before the data" in tick(engine, any_store).waiting["v1"]
    put(any_store, "v1", "2.jpg", "2")
    assert tick(engine, any_store).closed == []
    assert tick(engine, any_store, settle_seconds=0).closed == ["v1"], "quiet for the settle time"
    put(any_store, "v1", "3.jpg", "3")
    assert content(any_store, freeze(engine, any_store, "v1", tmp_path)) == {b"1": 1, b"2": 1}
    code, reason = rows(engine, "v1")[f"landing/{SYSTEM}/v1/3.jpg"]
    assert code == "late" and f"`mlops land {SYSTEM} PATH --dataset-version NEW --parent v1`" in reason
    assert requests(engine) == ["sentiment:v1:1"]


def test_ready_again_after_the_data_closes_at_once(any_store: ObjectStore, engine: Engine) -> None:
    ready(any_store, "v1")
    arrived(any_store, f"landing/{SYSTEM}/v1/_READY", -10)
    put(any_store, "v1", "1.jpg", "1")
    assert tick(engine, any_store).closed == []
    ready(any_store, "v1")
    assert tick(engine, any_store).closed == ["v1"]


def test_a_lone_ready_keeps_no_landing_out(settings: Settings, store: ObjectStore, engine: Engine, tmp_path: Path) -> None:
    ready(store, "v1")
    tick(engine, store)
    (tmp_path / "a.txt").write_text("1")
    seen = []
    land(settings, store, SYSTEM, tmp_path / "a.txt", "v1", engine=engine, progress=lambda *_: seen.append(tick(engine, store, 0).closed))
    assert seen == [[]], "an old marker does not outweigh a landing that goes on"
    assert tick(engine, store).closed == ["v1"]


def test_times_that_copies_keep_do_not_deceive(store: ObjectStore, engine: Engine) -> None:
    """`rsync -a` writes `_READY` before `good/` and keeps the times of both."""
    ready(store, "v1")
    assert store.local_root is not None
    path = store.local_root / put(store, "v1", "good/a.jpg", "1")
    os.utime(path, (1, 1))
    assert tick(engine, store).closed == [], "the file says 1970, and it came after the marker"


@pytest.mark.parametrize("name", ["_ready", "_READY.txt", "_Ready ", "_READY\r"])
def test_ready_as_people_spell_it(any_store: ObjectStore, engine: Engine, name: str) -> None:
    put(any_store, "v1", "a", "1")
    put_raw(any_store, f"landing/{SYSTEM}/v1/{name}", b"")
    done = tick(engine, any_store)
    assert done.closed == ["v1"] and not done.problems
    assert list(rows(engine, "v1")) == [f"landing/{SYSTEM}/v1/a"]
    assert objects.reconcile(engine, any_store, SYSTEM) == objects.Reconciled(1, 0, 0, 0)


@pytest.mark.parametrize("content", [b"v0\r\n", b"\xef\xbb\xbfv0", "v0\r\n".encode("utf-16")])
@pytest.mark.parametrize("name", ["_PARENT", "_parent.txt"])
def test_parent_as_people_write_it(store: ObjectStore, engine: Engine, tmp_path: Path, name: str, content: bytes) -> None:
    for version in ("v0", "v1"):
        put(store, version, "a", version)
    ready(store, "v0")
    tick(engine, store)
    freeze(engine, store, "v0", tmp_path)
    put(store, "v1", name, content)
    ready(store, "v1")
    assert tick(engine, store).closed == ["v1"]
    assert len(freeze(engine, store, "v1", tmp_path).entries) == 2


def test_a_parent_under_a_name_that_cannot_be_read_is_not_forgotten(any_store: ObjectStore, engine: Engine) -> None:
    put(any_store, "v1", "a", "1")
    put_raw(any_store, f"landing/{SYSTEM}/v1/_PARENT\r", b"v0")
    ready(any_store, "v1")
    assert "_PARENT\\r names cannot be read" in tick(engine, any_store).waiting["v1"]


# --- mlops land -----------------------------------------------------------------------------------------------------------------


def test_land_leaves_what_cannot_land_and_says_so(settings: Settings, any_store: ObjectStore, engine: Engine, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "a.txt").write_text("1")
    (folder / "new\nline.txt").write_text("2")
    (folder / os.fsdecode(b"\xff.txt")).write_text("3")
    (folder / "_ready").write_text("")
    (folder / "link.txt").symlink_to("/etc/hostname")
    (folder / "folder").symlink_to("/etc")
    os.mkfifo(folder / "pipe")
    (tmp_path / "latest").symlink_to(folder)
    done = land(settings, any_store, SYSTEM, tmp_path / "latest", "v1", engine=engine)
    assert done.objects == 1 and set(done.quarantined) == {"new\\nline.txt", "\\xff.txt", "link.txt", "folder", "pipe"}
    assert "links are never followed" in done.quarantined["link.txt"]
    assert {info.key.rsplit("/", 1)[-1] for info in any_store.list(f"landing/{SYSTEM}/v1")} == {"a.txt", "_READY"}
    assert tick(engine, any_store).closed == ["v1"]
    assert content(any_store, freeze(engine, any_store, "v1", tmp_path)) == {b"1": 1}
    codes = sorted(code for code, _ in rows(engine, "v1").values())
    assert codes == ["accepted", "link", "link", "not_a_file", "odd_name", "odd_name"], "accepted + quarantined = in"
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "a").symlink_to("/etc/hostname")
    with pytest.raises(LandingError, match="holds no file that can land .a: it is a link"):
        land(settings, any_store, SYSTEM, tmp_path / "links", "v2", engine=engine)
