"""Frozen versions, the split ledger and cleaned tables: immutable, verified, first write wins."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from mlops_assets import database
from mlops_assets.lifecycle import dataset, pipeline, sweep
from mlops_assets.lifecycle.dataset import DatasetError, NothingLeft, assign_splits
from mlops_assets.settings import Settings
from mlops_assets.store import ObjectInfo, ObjectStore
from mlops_assets_tests.factories import config_of
from mlops_assets_tests.ingest.arrivals import SYSTEM, content, freeze, ledger, put, ready, states, tick
from mlops_assets_tests.lifecycle import sweeps
from mlops_assets_tests.toy import toy_system


def closed(engine: Engine, store: ObjectStore, version: str = "v1", **files: str) -> None:
    for name, data in (files or {"a": "one", "b": "two"}).items():
        put(store, version, name, data)
    ready(store, version)
    tick(engine, store)


# --- freezing -------------------------------------------------------------------------------------------------------------------


def test_a_frozen_version_never_changes(store: ObjectStore, engine: Engine, tmp_path: Path) -> None:
    closed(engine, store)
    first = freeze(engine, store, "v1", tmp_path)
    assert [(e.key, e.sha256) for e in first.entries] == [
        (f"landing/sentiment/v1/{name}", hashlib.sha256(data).hexdigest()) for name, data in (("a", b"one"), ("b", b"two"))
    ]
    for key in [info.key for info in store.list("landing")]:
        store.delete(key)
    put(store, "v1", "c", "more")
    again = freeze(engine, store, "v1", tmp_path)
    assert again == first and content(store, again) == {b"one": 1, b"two": 1}
    assert states(engine) == {"v1": "frozen"}
    assert list((tmp_path / "freeze").iterdir()) == [], "nothing is left in the scratch folder"


def test_the_digest_is_of_the_content_not_of_time_or_store(tmp_path: Path, make_database) -> None:
    digests = []
    for n in range(2):
        store = ObjectStore((tmp_path / f"store{n}").as_uri())
        engine = database.connect(make_database())
        closed(engine, store, **dict(sorted({"a": "one", "b": "two"}.items(), reverse=bool(n))))
        digests.append(freeze(engine, store, "v1", tmp_path).sha256)
        engine.dispose()
    assert digests[0] == digests[1]


def test_versions_in_other_states_say_what_to_do(store: ObjectStore, engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no dataset version 'v9'.*mlops land sentiment PATH --dataset-version v9"):
        freeze(engine, store, "v9", tmp_path)
    put(store, "v1", "a", "one")
    tick(engine, store)
    with pytest.raises(DatasetError, match="still arriving.*_READY"):
        freeze(engine, store, "v1", tmp_path)
    ready(store, "v1")
    tick(engine, store)
    with pytest.raises(DatasetError, match="is closed, it has no manifest yet.*materialize that first"):
        dataset.read_manifest(engine, store, SYSTEM, "v1")


@pytest.mark.parametrize(("name", "size", "code"), [("huge", 11, "too_large"), ("gone", 3, "vanished")])
def test_what_cannot_be_frozen_is_quarantined_and_an_empty_version_refused(
    store: ObjectStore, engine: Engine, tmp_path: Path, name: str, size: int, code: str
) -> None:
    closed(engine, store, **{name: "x" * size, "ok": "fits"})
    closed(engine, store, "v2", **{name: "x" * size})
    if code == "vanished":
        for version in ("v1", "v2"):
            store.delete(f"landing/sentiment/{version}/{name}")
    assert content(store, freeze(engine, store, "v1", tmp_path, limit=10)) == {b"fits": 1}
    assert ledger(engine, "v1") == sorted([(name, "quarantined", code), ("ok", "accepted", None)])
    for _ in range(2):
        with pytest.raises(NothingLeft, match=f"no object was accepted .{code}.*under a new name"):
            freeze(engine, store, "v2", tmp_path, limit=10)
    assert states(engine)["v2"] == "refused"


class Changing(ObjectStore):
    """A store whose object `a` is overwritten while it is read, the first `times` times."""

    times = 0

    def stream(self, key: str, *, etag: str | None = None) -> Iterator[bytes]:
        yield from super().stream(key, etag=etag)
        if key.endswith("/a") and self.times > 0:
            self.times -= 1
            self.put(key, b"changed to %d" % self.times)


@pytest.mark.parametrize("times", [1, 3, 99])
def test_an_object_that_changes_while_it_is_copied(settings: Settings, engine: Engine, tmp_path: Path, times: int) -> None:
    store = Changing(settings.store_url)
    closed(engine, store)
    store.times = times
    if times == 99:
        with pytest.raises(DatasetError, match="changed 5 times while it was copied: stop writing to it"):
            freeze(engine, store, "v1", tmp_path)
        store.times = 0
    manifest = freeze(engine, store, "v1", tmp_path)
    store.times = 0
    assert content(store, manifest) == {store.get("landing/sentiment/v1/a"): 1, b"two": 1}, "bytes and etag belong together"
    accepted = next(entry for entry in manifest.entries if entry.path == "a")
    assert accepted.etag == store.head("landing/sentiment/v1/a").etag
    assert not [row for row in ledger(engine, "v1") if row[1] == "pending"]


@pytest.mark.parametrize("harm", ["flipped", "truncated", "gone"])
def test_damage_is_found_and_named(store: ObjectStore, engine: Engine, tmp_path: Path, harm: str) -> None:
    closed(engine, store)
    manifest = freeze(engine, store, "v1", tmp_path)
    key = dataset.object_key(manifest.entries[0].sha256)
    if harm == "gone":
        store.delete(key)
    else:
        store.put(key, b"onf" if harm == "flipped" else b"on")
    with pytest.raises(DatasetError, match="landing/sentiment/v1/a.*Restore them from a backup"):
        freeze(engine, store, "v1", tmp_path)
    if harm == "flipped":
        assert freeze(engine, store, "v1", tmp_path, deep=False) == manifest, "control: sizes alone do not show it"
        with pytest.raises(DatasetError, match="were changed"):
            content(store, manifest)
    else:
        with pytest.raises(DatasetError):
            freeze(engine, store, "v1", tmp_path, deep=False)


def test_a_manifest_that_was_changed_is_refused(store: ObjectStore, engine: Engine, tmp_path: Path) -> None:
    closed(engine, store)
    closed(engine, store, "v2", a="another")
    manifest, other = freeze(engine, store, "v1", tmp_path), freeze(engine, store, "v2", tmp_path)
    store.put(manifest.key, store.get(other.key))
    with pytest.raises(DatasetError, match="was changed, restore it from a backup"):
        dataset.read_manifest(engine, store, SYSTEM, "v1")
    store.put(manifest.key, b"not Parquet")
    with pytest.raises(DatasetError, match="cannot be read"):
        dataset.read_manifest(engine, store, SYSTEM, "v1")
    store.delete(manifest.key)
    with pytest.raises(DatasetError, match="is gone"):
        dataset.read_manifest(engine, store, SYSTEM, "v1")


def test_two_freezings_at_once_agree(store: ObjectStore, engine: Engine, tmp_path: Path) -> None:
    closed(engine, store, **{f"f{n}": str(n) for n in range(40)})
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda n: freeze(engine, store, "v1", tmp_path / str(n)), range(2))
    assert one.sha256 == two.sha256 and len(one.entries) == 40
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM landing_object WHERE state = 'accepted'")).scalar_one() == 40


@hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.text(min_size=1), st.integers(0, 2**40)), unique_by=lambda pair: pair[0]), st.randoms())
def test_the_manifests_digest_knows_content_and_not_order(pairs: list[tuple[str, int]], random) -> None:
    now = ObjectInfo("", 0, "", __import__("datetime").datetime.now(__import__("datetime").UTC)).last_modified
    entries = [dataset.Entry(f"landing/s/v/{k}", size, "0" * 64, "e", now, "v") for k, size in pairs]
    shuffled = entries.copy()
    random.shuffle(shuffled)
    assert dataset.manifest_digest(entries) == dataset.manifest_digest(shuffled)
    if entries:
        changed = [dataset.Entry(e.key, e.size + (n == 0), e.sha256, e.etag, now, "v") for n, e in enumerate(entries)]
        assert dataset.manifest_digest(entries) != dataset.manifest_digest(changed)


# --- the split ledger -----------------------------------------------------------------------------------------------------------


def group(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def test_the_first_version_to_claim_a_group_decides_for_all(engine: Engine) -> None:
    with engine.begin() as connection:
        first = assign_splits(connection, SYSTEM, "v1", [(group(n), "holdout" if n < 5 else "train") for n in range(10)])
    with engine.begin() as connection:
        second = assign_splits(connection, SYSTEM, "v2", [(group(n), "train" if n < 8 else "validation") for n in range(12)])
        other = assign_splits(connection, "other", "v1", [(group(0), "train")])
    assert [second[group(n)] for n in range(10)] == [first[group(n)] for n in range(10)]
    assert second[group(10)] == "validation" and other == {group(0): "train"}


def test_a_group_claimed_twice_in_one_version_is_held_out(engine: Engine) -> None:
    with engine.begin() as connection:
        assert assign_splits(connection, SYSTEM, "v1", [(group(1), "train"), (group(1), "holdout"), (group(1), "validation")]) == {
            group(1): "holdout"
        }


def test_writers_at_once_agree_and_do_not_deadlock(engine: Engine) -> None:
    writers, count = 6, 3_000
    barrier = Barrier(writers)

    def claim(writer: int) -> dict[bytes, str]:
        wanted = [(group(n), ("train", "validation", "holdout")[writer % 3]) for n in range(count)]
        if writer % 2:
            wanted.reverse()
        barrier.wait()
        with engine.begin() as connection:
            return assign_splits(connection, SYSTEM, f"v{writer}", wanted)

    with ThreadPoolExecutor(writers) as pool:
        answers = list(pool.map(claim, range(writers)))
    assert all(answer == answers[0] for answer in answers) and len(answers[0]) == count
    with engine.connect() as connection:
        stored = connection.execute(text("SELECT group_sha256, split FROM split_ledger")).all()
    assert {bytes(key): split for key, split in stored} == answers[0]


def test_control_last_write_wins_would_move_a_holdout_into_training(engine: Engine) -> None:
    with engine.begin() as connection:
        assign_splits(connection, SYSTEM, "v1", [(group(1), "holdout")])
        connection.execute(text("CREATE TABLE naive AS SELECT * FROM split_ledger"))
        connection.execute(text("UPDATE naive SET split = 'train', first_version = 'v2'"))
        assert connection.execute(text("SELECT split FROM naive")).scalar_one() == "train", "the control must lose"
        assert assign_splits(connection, SYSTEM, "v2", [(group(1), "train")]) == {group(1): "holdout"}
    with engine.begin() as connection, pytest.raises(Exception, match="append-only"):
        connection.execute(text("UPDATE split_ledger SET split = 'train'"))


def test_two_hundred_thousand_groups(engine: Engine) -> None:
    started = time.monotonic()
    with engine.begin() as connection:
        found = assign_splits(connection, SYSTEM, "v1", ((group(n), "train") for n in range(200_000)))
    assert len(found) == 200_000
    print(f"200,000 groups in {time.monotonic() - started:.1f} s")


# --- cleaned tables -------------------------------------------------------------------------------------------------------------


def publish(
    engine: Engine, store: ObjectStore, manifest: dataset.Manifest, tmp_path: Path, rows: int, rules: str = "r1"
) -> dataset.PublishedTable:
    file = tmp_path / f"{rows}-{rules}.parquet"
    pq.write_table(pa.table({"n": list(range(rows))}), file)
    parts = dataset.upload_parts(store, manifest, [file])
    table = dataset.PublishedTable(SYSTEM, manifest.version, manifest.sha256, rows, rules, parts, {"rows_in": rows})
    dataset.publish_table(engine, store, table)
    return table


def test_a_table_is_there_when_its_record_is_and_is_verified(store: ObjectStore, engine: Engine, tmp_path: Path) -> None:
    closed(engine, store)
    with pytest.raises(DatasetError, match="is closed"):
        dataset.load_table(store, engine, SYSTEM, "v1", tmp_path / "t")
    manifest = freeze(engine, store, "v1", tmp_path)
    with pytest.raises(DatasetError, match="not cleaned yet: materialize `sentiment/cleaned`"):
        dataset.load_table(store, engine, SYSTEM, "v1", tmp_path / "t")
    published = publish(engine, store, manifest, tmp_path, 3)
    assert dataset.find_table(engine, SYSTEM, "v1", manifest.sha256) == published
    for _ in range(2):
        loaded = dataset.load_table(store, engine, SYSTEM, "v1", tmp_path / "t")
        assert loaded.rows == 3 and pq.read_table(loaded.folder)["n"].to_pylist() == [0, 1, 2]
    (next((tmp_path / "t").iterdir())).write_bytes(b"harmed")
    assert pq.read_table(dataset.load_table(store, engine, SYSTEM, "v1", tmp_path / "t").folder).num_rows == 3
    replaced = publish(engine, store, manifest, tmp_path, 5, "r2")
    assert [info.key for info in store.list(replaced.prefix) if "part-" in info.key] == [f"{replaced.prefix}/{replaced.parts[0].name}"]
    store.put(f"{replaced.prefix}/{replaced.parts[0].name}", b"other bytes")
    with pytest.raises(DatasetError, match="was changed: materialize"):
        dataset.load_table(store, engine, SYSTEM, "v1", tmp_path / "t2")
    assert not os.path.exists(tmp_path / "t2")


def test_cleaned_again_to_other_rows_is_another_training_and_another_sweep(
    settings: Settings, store: ObjectStore, engine: Engine, tmp_path: Path
) -> None:
    closed(engine, store)
    manifest = freeze(engine, store, "v1", tmp_path)
    system, config = toy_system(), config_of()
    planned = sweep.plan(sweeps.system_of(), config, dataset_version="v1")

    def names(rows: int, rules: str) -> tuple[str, str]:
        publish(engine, store, manifest, tmp_path, rows, rules)
        table = dataset.load_table(store, engine, SYSTEM, "v1", tmp_path / f"table-{rows}-{rules}")
        context = pipeline.context_of(settings, system, config, variant="", table=table, parameters={}, seed=1)
        return context.fingerprint, sweep.study_name(sweeps.system_of(), config, planned, table)

    first, same, other = names(3, "r1"), names(3, "r2"), names(5, "r3")
    assert first == same, "the same rows under other rules: it goes on where it was"
    assert first[0] != other[0] and first[1] != other[1]
