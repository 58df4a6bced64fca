"""Tracing an answer: the files of the whole line of versions, and every way in which a link no longer holds."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from mlops_assets.lifecycle import dataset
from mlops_assets.lifecycle.trace import trace
from mlops_assets_tests.factories import World, config_of
from mlops_assets_tests.ingest.arrivals import SYSTEM, freeze, put, ready, tick


@pytest.fixture
def traced(engine, settings, store, tmp_path):
    """A model trained on v2, which extends v1 by a file. -> (v2's manifest, what `mlops trace` says of its answer)"""
    put(store, "v2", "b", "two")
    put(store, "v2", "_PARENT", "v1")
    put(store, "v1", "a", "one")
    for version in ("v1", "v2"):
        ready(store, version)
        tick(engine, store)
        manifest = freeze(engine, store, version, tmp_path)
    bundle = World(engine, settings, store, SYSTEM, config_of(SYSTEM)).registered("v2").receipt.bundle_sha256
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO answer VALUES ('req-1', :s, 1, :b, 1, now())"), {"s": SYSTEM, "b": bundle})

    def found():
        with engine.connect() as connection:
            return trace(connection, store, settings.public_keys_path, "req-1")

    return manifest, found


def test_a_version_that_extends_another_names_the_parents_files_too(traced):
    manifest, found = traced
    assert manifest.parent == "v1"
    answer = found()
    assert answer["verified"] and answer["problems"] == [] and answer["dataset"]["objects_checked"] == "every byte read"
    assert [(one["key"], one["size"], one["sha256"]) for one in answer["dataset"]["objects"]] == [
        (entry.key, entry.size, entry.sha256) for entry in manifest.entries
    ]
    assert [entry.key for entry in manifest.entries] == [f"landing/{SYSTEM}/v1/a", f"landing/{SYSTEM}/v2/b"]


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (lambda store, engine, v2: store.delete(v2.key), "the manifest of sentiment v2 is gone"),
        (lambda store, engine, v2: store.put(v2.key, b"harmed"), "cannot be read"),
        (lambda store, engine, v2: store.put(v2.key, dataset._manifest_bytes(v2.entries[1:])), "was changed"),
        (lambda store, engine, v2: replaced(store, engine, v2), "is not the one that trained the model"),
        (lambda store, engine, v2: store.delete(dataset.object_key(v2.entries[0].sha256)), "bytes of landing/sentiment/v1/a are gone"),
        (lambda store, engine, v2: store.put(dataset.object_key(v2.entries[0].sha256), b"other"), "v1/a are 5, not 3: they were changed"),
    ],
    ids=["deleted", "unreadable", "changed", "replaced", "parents file gone", "parents file changed"],
)
def test_a_broken_link_is_named(traced, store, engine, harm, problem):
    manifest, found = traced
    assert found()["verified"]
    harm(store, engine, manifest)
    answer = found()
    assert not answer["verified"] and len(answer["problems"]) == 1 and problem in answer["problems"][0]


def replaced(store, engine, v2: dataset.Manifest) -> None:
    """Another manifest, sound in itself, in the ledger as well."""
    others = v2.entries[1:]
    store.put(v2.key, dataset._manifest_bytes(others))
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE dataset_version SET manifest_sha256 = :m WHERE version = 'v2'"), {"m": dataset.manifest_digest(others)}
        )
