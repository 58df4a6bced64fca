"""B12: links in the landing zone. Whoever may put files there, or sends an archive with links in it, gets no other file of this machine
frozen, and what is frozen is to be nobody else's to read."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import obstore
import pytest
from obstore.store import LocalStore
from sqlalchemy import Engine

from mlops_assets.ingest import objects
from mlops_assets.lifecycle import dataset
from mlops_assets.settings import Settings
from mlops_assets.store import ObjectStore, walk
from mlops_assets_tests.ingest.arrivals import SYSTEM, content, freeze, put, ready, states, tick
from mlops_assets_tests.ingest.odd import link, rows

# --- nothing but files is opened --------------------------------------------------------------------------------------


def test_nothing_but_files_is_ever_opened(store: ObjectStore, engine: Engine, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "shadow").write_text("root:$6$")
    assert store.local_root is not None
    put(store, "v1", "good/a.jpg", "1")
    folder = store.local_root / "landing" / SYSTEM / "v1"
    link(store, f"landing/{SYSTEM}/v1/good/shadow.jpg", secret / "shadow")
    link(store, f"landing/{SYSTEM}/v1/broken.jpg", tmp_path / "nowhere")
    link(store, f"landing/{SYSTEM}/v1/folder", secret)
    link(store, f"landing/{SYSTEM}/v1/loop", ".")
    link(store, f"landing/{SYSTEM}/v1/beside.jpg", "good/a.jpg")
    os.mkfifo(folder / "pipe.jpg")
    os.mknod(folder / "socket.jpg", stat.S_IFSOCK | 0o600)
    link(store, f"landing/{SYSTEM}/v2", secret)
    ready(store, "v1")
    done = tick(engine, store, settle_seconds=0)
    assert done.closed == ["v1"] and "7 in quarantine" in done.problems["v1"] and "1 in quarantine" in done.problems["v2"]
    assert content(store, freeze(engine, store, "v1", tmp_path)) == {b"1": 1}
    objects.reconcile(engine, store, SYSTEM)
    codes = {key.split("/", 3)[3]: code for key, (code, _) in rows(engine, "v1").items()}
    links = dict.fromkeys(("good/shadow.jpg", "broken.jpg", "folder", "loop", "beside.jpg"), "link")
    assert codes == {"good/a.jpg": "accepted", **links, "pipe.jpg": "not_a_file", "socket.jpg": "not_a_file"}
    assert rows(engine, "v2")[f"landing/{SYSTEM}/v2"][0] == "link" and states(engine)["v2"] == "open"
    assert not any(b"root" in store.get(info.key) for info in store.list("objects"))


class Swapped(ObjectStore):
    """A store in which a file becomes a link between the listing and the copy."""

    secret: Path

    def stream(self, key: str, *, etag: str | None = None) -> Iterator[bytes]:
        if key.endswith("/a") and self.local_root is not None:
            (self.local_root / key).unlink()
            (self.local_root / key).symlink_to(self.secret)
        return super().stream(key, etag=etag)


def test_a_link_that_comes_between_listing_and_copy_is_not_followed(settings: Settings, engine: Engine, tmp_path: Path) -> None:
    store = Swapped(settings.store_url)
    store.secret = tmp_path / "secret"
    store.secret.write_text("root:$6$")
    put(store, "v1", "a", "xxxxxxxx")
    put(store, "v1", "b", "2")
    ready(store, "v1")
    tick(engine, store)
    assert content(store, freeze(engine, store, "v1", tmp_path)) == {b"2": 1}
    assert rows(engine, "v1")[f"landing/{SYSTEM}/v1/a"][0] == "link"


def test_a_marker_that_is_a_link_says_nothing(store: ObjectStore, engine: Engine) -> None:
    put(store, "v1", "a", "1")
    link(store, f"landing/{SYSTEM}/v1/_READY", "a")
    link(store, f"landing/{SYSTEM}/v2/_PARENT", "/etc/hostname")
    put(store, "v2", "a", "1")
    done = tick(engine, store)
    assert done.closed == [] and rows(engine, "v1")[f"landing/{SYSTEM}/v1/_READY"][0] == "link"
    assert "_PARENT names cannot be read, it is a link" in tick(engine, store, settle_seconds=0).waiting["v2"]


@contextmanager
def anybody() -> Iterator[None]:
    """As a user who may not read everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65_534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_what_may_not_be_read_is_not_taken_for_nothing() -> None:
    with tempfile.TemporaryDirectory(prefix="mlops-walk-") as folder:
        os.chmod(folder, 0o755)
        shut = Path(folder, "shut")
        shut.mkdir(mode=0o000)
        Path(folder, "a").touch()
        with anybody():
            found = {name: why for name, _, why in walk(Path(folder))}
        assert found["a"] is None and found["shut"] is not None and found["shut"].code == "unreadable"


def test_a_store_writes_through_no_link(store: ObjectStore, tmp_path: Path) -> None:
    link(store, f"landing/{SYSTEM}/v1", tmp_path)
    with pytest.raises(OSError, match="is a link"):
        store.put(f"landing/{SYSTEM}/v1/a", b"1")
    with pytest.raises(OSError, match="is a link"):
        store.get(f"landing/{SYSTEM}/v1/a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("key", ["a/../b", "../b", "a//b", "a/./b", "a\nb", ""])
def test_no_key_leads_out_of_a_store(store: ObjectStore, key: str) -> None:
    for act in (lambda: store.put(key, b""), lambda: store.get(key), lambda: store.delete(key), lambda: store.head(key)):
        with pytest.raises((ValueError, FileNotFoundError)):
            act()


def test_control_the_library_follows_links_and_lets_everybody_read(tmp_path: Path) -> None:
    """What the store did when obstore opened its files."""
    (tmp_path / "shadow").write_text("root:$6$")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "a.jpg").symlink_to(tmp_path / "shadow")
    naive = LocalStore(tmp_path / "store")
    assert [meta["path"] for page in obstore.list(naive) for meta in page] == ["a.jpg"]
    assert bytes(obstore.get(naive, "a.jpg").bytes()) == b"root:$6$", "the control must lose"
    before = os.umask(0o022)
    try:
        obstore.put(naive, "b.jpg", b"1")
    finally:
        os.umask(before)
    assert (tmp_path / "store" / "b.jpg").stat().st_mode & 0o004, "the control must lose"


# --- who may read ---------------------------------------------------------------------------------------------------------------


def modes(root: Path) -> dict[str, int]:
    return {path.relative_to(root).as_posix(): path.lstat().st_mode & 0o777 for path in [root, *root.rglob("*")] if not path.is_symlink()}


def test_what_is_stored_is_its_owners_alone(settings: Settings, store: ObjectStore, engine: Engine, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        put(store, "v1", "good/a.jpg", "1")
        ready(store, "v1")
        tick(engine, store)
        manifest = freeze(engine, store, "v1", tmp_path)
        store.put_if_absent("leases/a", b"1")
    finally:
        os.umask(before)
    assert store.local_root is not None
    found = modes(store.local_root)
    assert found["."] == 0o700 and found[dataset.object_key(manifest.entries[0].sha256)] == 0o600
    assert {mode for name, mode in found.items()} == {0o700, 0o600}


@pytest.mark.parametrize("landing", [True, False])
def test_what_was_there_before_is_tightened(store: ObjectStore, tmp_path: Path, landing: bool) -> None:
    for key in ("objects/sha256/ab/abcd", f"landing/{SYSTEM}/v1/a.jpg", "bundles/x/model.onnx"):
        store.put(key, b"1")
    root = store.local_root
    assert root is not None
    outside = tmp_path / "outside"
    outside.write_text("x")
    outside.chmod(0o644)
    link(store, "objects/link", outside)
    for path in [root, *root.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert store.tighten(landing=landing) > 0
    left = {name for name, mode in modes(root).items() if mode & 0o077}
    assert left == (set() if landing else {".", *(name for name in modes(root) if name.startswith("landing"))})
    assert outside.stat().st_mode & 0o777 == 0o644 and store.tighten(landing=landing) == 0
