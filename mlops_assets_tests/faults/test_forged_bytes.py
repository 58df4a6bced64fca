"""Somebody can write into the object store and nowhere else: what is read later is named by a digest in a signed or database record."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import text

from mlops_assets.lifecycle import bundle, clients, dataset, outbox, pipeline
from mlops_assets.lifecycle.bundle import BadBundle, File
from mlops_assets.lifecycle.dataset import DatasetError
from mlops_assets.lifecycle.pipeline import Platform
from mlops_assets.lifecycle.trace import trace
from mlops_assets.settings import ClientFiles
from mlops_assets.tracking import Tracking
from mlops_assets_tests.factories import World, config_of
from mlops_assets_tests.ingest.arrivals import SYSTEM, freeze, put, ready, tick
from mlops_assets_tests.toy import toy_system


@pytest.fixture
def manifest(engine, store, tmp_path):
    """A frozen version of one file."""
    put(store, "v1", "a", "one")
    ready(store, "v1")
    tick(engine, store)
    return freeze(engine, store, "v1", tmp_path)


def parquet(path, rows: int):
    pq.write_table(pa.table({"n": list(range(rows))}), path)
    return path


def published(engine, store, manifest, tmp_path, rows: int = 3) -> dataset.PublishedTable:
    parts = dataset.upload_parts(store, manifest, [parquet(tmp_path / f"{rows}.parquet", rows)])
    table = dataset.PublishedTable(SYSTEM, manifest.version, manifest.sha256, rows, "r1", parts, {"rows_in": rows})
    dataset.publish_table(engine, store, table)
    return table


def forge_table(store, manifest, tmp_path, rows: int) -> dict[str, Any]:
    """Rows of one's own under `cleaned/`, with the `table.json` that named the parts, sound in itself."""
    parts = dataset.upload_parts(store, manifest, [parquet(tmp_path / f"evil-{rows}.parquet", rows)])
    table = dataset.PublishedTable(SYSTEM, manifest.version, manifest.sha256, rows, "r1", parts, {"rows_in": rows})
    body = {"rows": rows, "sha256": table.sha256, "rules": "r1", "parts": [list(vars(part).values()) for part in parts], "body": {}}
    store.put(f"{table.prefix}/table.json", json.dumps(body).encode())
    return body


def test_a_table_that_only_the_store_names_is_no_table(engine, store, manifest, tmp_path):
    genuine = published(engine, store, manifest, tmp_path)
    forge_table(store, manifest, tmp_path, 7)
    loaded = dataset.load_table(store, engine, SYSTEM, "v1", tmp_path / "t")
    assert (loaded.rows, loaded.sha256) == (3, genuine.sha256)
    naive = json.loads(store.get(f"{genuine.prefix}/table.json"))  # control: the reader of before
    assert naive["rows"] == 7 and all(store.digest(f"{genuine.prefix}/{name}") == digest for name, _, digest in naive["parts"])


def test_before_the_first_cleaning_a_forged_table_is_none_either(engine, store, manifest, tmp_path):
    forge_table(store, manifest, tmp_path, 7)
    with pytest.raises(DatasetError, match="named by no record.* materialize `sentiment/cleaned`"):
        dataset.load_table(store, engine, SYSTEM, "v1", tmp_path / "t")


def test_a_part_with_other_bytes_of_the_same_length_is_named_and_cleaned_again(engine, store, manifest, tmp_path):
    table = published(engine, store, manifest, tmp_path)
    key = f"{table.prefix}/{table.parts[0].name}"
    assert dataset.is_whole(store, table)
    store.put(key, bytes(table.parts[0].size))
    with pytest.raises(DatasetError, match="was changed: materialize"):
        dataset.load_table(store, engine, SYSTEM, "v1", tmp_path / "t")
    assert not dataset.is_whole(store, table), "the next cleaning does its work again"
    assert store.head(key).size == table.parts[0].size, "control: by its size it is the same"


def test_a_recorded_part_that_leads_elsewhere_is_no_part(engine, store, manifest, tmp_path):
    genuine = published(engine, store, manifest, tmp_path)
    evil = replace(genuine, parts=[dataset.Part("../../../evil.parquet", 1, "0" * 64)])
    body = {"rows": 3, "rules": "r1", "parts": [["../../../evil.parquet", 1, "0" * 64]], "body": {}, "forgotten": 0}
    with engine.begin() as connection:
        connection.execute(
            text("INSERT INTO cleaned_table (system, version, manifest_sha256, sha256, body) VALUES (:s, 'v1', :m, :d, :b)"),
            {"s": SYSTEM, "m": manifest.sha256, "d": evil.sha256, "b": json.dumps(body)},
        )
    assert dataset.find_table(engine, SYSTEM, "v1", manifest.sha256) == genuine


def test_a_manifest_that_moves_a_file_to_another_version_is_refused(engine, store, manifest):
    """`from_version` decides which deletions hold; it is not part of the manifest's digest."""
    moved = [replace(entry, from_version="v0") for entry in manifest.entries]
    store.put(manifest.key, dataset._manifest_bytes(moved))
    assert dataset.manifest_digest(moved) == manifest.sha256, "control: the digest is the same"
    with pytest.raises(DatasetError, match="was changed, restore it"):
        dataset.read_manifest(engine, store, SYSTEM, "v1")


# --- weights and what clients read ----------------------------------------------------------------------------------------------


@pytest.fixture
def files(world: World) -> World:
    world.config = config_of().model_copy(update={"clients": ClientFiles(state_dict=True)})
    return world


def register(world: World, number: int) -> Any:
    import torch
    from safetensors.torch import save

    weights = save({"w": torch.full((2,), float(number))})
    named = {clients.WEIGHTS: File(hashlib.sha256(weights).hexdigest(), len(weights))}
    made = world.attempt(f"v{number}", content=f"c{number}", weights=named)
    world.store.put(bundle.weights_key(made.bundle_sha256, clients.WEIGHTS), weights)
    metrics = {"f1": 0.85 + number / 100, "accuracy": 0.9}
    return world.registrar().register(made.id, world.report(made, metrics)).receipt


def hand_out(world: World) -> int:
    platform = Platform(world.settings, world.engine, world.store, Tracking(None))
    return outbox.deliver(world.engine, {clients.TOPIC: clients.receiver(platform)})


def test_weights_that_were_changed_are_gone_on_from_by_nobody(files, tmp_path):
    from safetensors.torch import load_file

    receipt = register(files, 1)
    key = bundle.weights_key(receipt.bundle_sha256, clients.WEIGHTS)
    folder = bundle.fetch_weights(files.store, receipt.bundle_sha256, receipt.weights, tmp_path / "good")
    assert load_file(folder / clients.WEIGHTS)["w"].tolist() == [1.0, 1.0]
    files.store.put(f"weights/{receipt.bundle_sha256}/extra.py", b"import os")  # what nothing names is not fetched
    assert [path.name for path in bundle.fetch_weights(files.store, receipt.bundle_sha256, receipt.weights, folder).iterdir()] == [
        clients.WEIGHTS
    ]
    listed = {info.key for info in files.store.list(f"weights/{receipt.bundle_sha256}")}
    assert len(listed) == 2, "control: what the store lists, and was fetched before"
    files.store.put(key, files.store.get(key)[:-1] + b"\xff")
    with pytest.raises(BadBundle, match="was changed"):
        bundle.fetch_weights(files.store, receipt.bundle_sha256, receipt.weights, tmp_path / "bad")
    with pytest.raises(BadBundle, match="may not be among"):
        bundle.fetch_weights(files.store, receipt.bundle_sha256, {"../evil": receipt.weights[clients.WEIGHTS]}, tmp_path / "x")


def test_client_files_put_there_beforehand_or_afterwards_are_made_anew(files):
    import yaml

    for name in (clients.PARAMETERS, clients.STATE_DICT):
        files.store.put(f"{clients.prefix_of('toy', 1)}/{name}", b"evil")
    register(files, 1)
    hand_out(files)

    def latest() -> dict[str, Any]:
        return dict(yaml.safe_load(files.store.get(clients.latest_key("toy"))))

    def sound() -> bool:
        told = latest()
        return all(files.store.digest(told[name]) == told[f"{name}_sha256"] for name in ("state_dict", "params"))

    assert files.store.exists(f"{clients.prefix_of('toy', 1)}/{clients.PARAMETERS}"), "control: `exists` was all that was asked"
    assert sound() and b"evil" not in files.store.get(latest()["params"])
    register(files, 2)
    hand_out(files)
    files.store.put(f"{clients.prefix_of('toy', 1)}/{clients.STATE_DICT}", b"evil")
    files.registrar().rollback(reason="back")
    hand_out(files)
    assert latest()["version"] == 1 and sound()


# --- trace says what it has read ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["object", "bundle", "weights", "table"])
def test_a_changed_byte_of_any_link_breaks_the_chain(engine, settings, store, manifest, tmp_path, what):
    world = World(engine, settings, store, SYSTEM, config_of(SYSTEM))
    table = published(engine, store, manifest, tmp_path)
    weights = {"model.safetensors": File(hashlib.sha256(b"weights").hexdigest(), 7)}
    made = world.attempt("v1", weights=weights, table=table.sha256)
    store.put(bundle.weights_key(made.bundle_sha256, "model.safetensors"), b"weights")
    assert world.registrar().register(made.id, world.report(made)).receipt is not None
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO answer VALUES ('req-1', :s, 1, :b, 1, now())"), {"s": SYSTEM, "b": made.bundle_sha256})

    def found(**arguments):
        with engine.connect() as connection:
            return trace(connection, store, settings.public_keys_path, "req-1", **arguments)

    assert found()["verified"] and found()["problems"] == []
    key = {
        "object": dataset.object_key(manifest.entries[0].sha256),
        "bundle": bundle.key_of(made.bundle_sha256, "bundle.json"),
        "weights": bundle.weights_key(made.bundle_sha256, "model.safetensors"),
        "table": f"{table.prefix}/{table.parts[0].name}",
    }[what]
    store.put(key, bytes(store.head(key).size))
    assert not found()["verified"] and "changed" in found()["problems"][0]
    quick = found(read_bytes=False)
    assert quick["problems"] == [] and not quick["verified"], "control: by sizes alone nothing is seen, and nothing is said to hold"


def test_bytes_put_beforehand_where_others_will_be_kept_are_replaced(engine, store, world, tmp_path):
    """The digest of what will arrive or be trained is known beforehand: a file of that name and length, with other bytes, waits there."""
    content = b"one"
    planted = dataset.object_key(hashlib.sha256(content).hexdigest())
    store.put(planted, bytes(len(content)))
    put(store, "v1", "a", content.decode())
    ready(store, "v1")
    tick(engine, store)
    manifest = freeze(engine, store, "v1", tmp_path)
    assert b"".join(dataset.open_entry(store, manifest.entries[0])) == content == dataset.read_object(store, manifest.entries[0].sha256)
    first = world.attempt(content="c")
    key = bundle.key_of(first.bundle_sha256, "bundle.json")
    store.put(key, bytes(store.head(key).size))
    again = world.attempt(content="c")  # published once more: control, by name it was there
    assert bundle.fetch(store, again.bundle_sha256, again.bundle_files, tmp_path / "bundles").is_dir()


def test_a_training_goes_on_from_the_weights_that_the_champions_receipt_names(world):
    """The whole step, on the toy: what the store holds beside them reaches no training, and changed ones end it."""
    seen: list[dict[str, str]] = []
    toy = toy_system(variants={"anew": 0.86, "on": 0.9})

    def train(context: Any) -> Any:
        if context.parent is not None:
            seen.append({path.name: path.read_text() for path in context.parent.iterdir()})
        return toy.train(context)

    system = replace(toy, train=train, from_champion=("on",))
    platform = Platform(world.settings, world.engine, world.store, Tracking(None))
    world.dataset("v1")

    def attempt(variant: str) -> Any:
        arguments = {"variant": variant, "dataset_version": "v1", "run_id": variant, "say": lambda line: None}
        return pipeline.train(platform, system, world.config, **arguments).attempt

    first = attempt("anew")
    assert first.weights_files.keys() == {"weights.txt"}
    receipt = world.registrar().register(first.id, world.report(first)).receipt
    assert receipt is not None and receipt.weights == first.weights_files and receipt.body["attempt_sha256"] == first.sha256
    world.store.put(f"weights/{first.bundle_sha256}/evil.txt", b"evil")
    assert attempt("on").parent_bundle_sha256 == first.bundle_sha256 and seen == [{"weights.txt": "w"}]
    world.store.put(bundle.weights_key(first.bundle_sha256, "weights.txt"), b"e")
    with pytest.raises(BadBundle, match="was changed"):
        attempt("on")
    assert len(seen) == 1
