"""Drawings of users: which are kept and learned, versions cut of them, deleting them; each defence also switched off, as a control."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
from PIL import Image
from sqlalchemy import Engine, text

from mlops_assets import crash, strokes
from mlops_assets.ingest import drawn, objects
from mlops_assets.ingest.drawn import Candidate, Drawing, Ledger, choose, due
from mlops_assets.ingest.jobs import drawn_definitions
from mlops_assets.ingest.sensors import landing_sensor
from mlops_assets.lifecycle import dataset, forget, pipeline
from mlops_assets.lifecycle.trace import _objects
from mlops_assets.resources.object_store import ObjectStoreResource
from mlops_assets.resources.postgres import PostgresResource
from mlops_assets.settings import DrawingsSection, Settings, process_environment
from mlops_assets.store import ObjectStore
from mlops_assets.tracking import Tracking
from mlops_assets_tests.drawings import STROKES, drawing
from mlops_assets_tests.factories import GOOD, World, config_of
from mlops_assets_tests.toy import toy_system

SYSTEM = "digits"
#: As in production, but few drawings of few users are enough.
SECTION = DrawingsSection(min_new=1, min_writers=1, max_digit_share=1.0)
OPEN = SECTION.model_copy(update={"min_probability": 0.0})


def drawings_of(digits: str, seed: int = 0) -> list[Drawing]:
    return [drawn.drawing(drawing(digit, seed * 1000 + place), digit) for place, digit in enumerate(digits)]


def rows(engine: Engine, columns: str = "*") -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(text(f"SELECT {columns} FROM drawn ORDER BY id")).all())


# --- keeping ----------------------------------------------------------------------------------------------------------------------


def test_what_is_kept_is_what_a_model_would_have_seen_and_nothing_else():
    for paper, pen in (("white", "black"), ("black", "white"), ((250, 240, 200), (90, 20, 20))):
        picture = Image.new("RGB", (640, 480), paper)
        picture.paste(Image.new("RGB", (160, 160), pen), (300, 200), drawing("5", 1).point(lambda level: 255 - level))
        kept = drawn.drawing(picture, "5")
        import io

        again = Image.open(io.BytesIO(kept.picture))
        assert (again.mode, max(again.size), again.info) == ("L", drawn.KEPT_SIDE, {})
        apart = np.abs(strokes.prepared(again).astype(int) - strokes.prepared(picture).astype(int)).mean()
        assert apart < 12, apart  # of 255
        assert kept.shape.count("1") > 40 and len(kept.shape) == 784


def test_a_user_gives_no_more_than_a_user_may(engine):
    section = SECTION.model_copy(update={"per_writer": 10, "near_duplicate": 0})
    first = drawn.accept(engine, SYSTEM, "writer-one", drawings_of("0123456", 1), section)
    second = drawn.accept(engine, SYSTEM, "writer-one", drawings_of("0123456", 2), section)
    assert (first.stored, first.dropped) == (7, {})
    assert (second.stored, second.dropped) == (3, {"user_cap": 4})
    assert drawn.accept(engine, SYSTEM, "writer-two", drawings_of("0123456", 3), section).stored == 7  # others may
    with engine.begin() as connection:
        connection.execute(text("UPDATE drawn SET on_day = on_day - 40"))
    assert drawn.accept(engine, SYSTEM, "writer-one", drawings_of("0123456", 4), section).stored == 7  # and later


def test_a_drawing_like_an_earlier_one_is_dropped_whoever_sends_it(engine):
    (one,) = drawings_of("5", 1)
    tampered = drawing("5", 1000)
    tampered.putpixel((3, 3), 90)
    moved = Image.new("L", (180, 170), "white")
    moved.paste(tampered, (15, 7))
    alike = [one, drawn.drawing(tampered, "5"), drawn.drawing(moved, "5"), replace(one, label="3")]
    assert drawn.accept(engine, SYSTEM, "writer-one", [one], SECTION).stored == 1
    for number, other in enumerate(alike):
        assert drawn.accept(engine, SYSTEM, f"attacker {number}", [other], SECTION).dropped == {"near_duplicate": 1}
    assert drawn.accept(engine, SYSTEM, "writer-two", drawings_of("5", 2), SECTION).stored == 1  # another hand's 5
    # The control: without the defence accounts repeat nearly the same picture.
    off = SECTION.model_copy(update={"near_duplicate": 0.0})
    assert drawn.accept(engine, SYSTEM, "attacker", [drawn.drawing(tampered.rotate(4, fillcolor=255), "5")], off).stored == 1


# --- which are learned ------------------------------------------------------------------------------------------------------------


def candidates(digits: str, *, probability: float, writers: Sequence[str], label: str | None = None, tremor: float = 0.02, seed: int = 0):
    """Drawings of these digits with the champion's probability of their label (the digit itself, unless another is claimed)."""
    found = []
    for place, digit in enumerate(digits):
        shape = strokes.prepared(drawing(digit, seed + place, tremor=tremor)).ravel() > 127
        name = f"{seed:08x}{place:024x}"
        found.append(Candidate(name, writers[place % len(writers)], label or digit, probability, shape))
    return found


HONEST = candidates("0123456789" * 4, probability=0.9, writers=["a", "b", "c", "d"], seed=100)


def test_a_flipped_label_waits_and_without_the_defence_it_is_learned():
    flipped = candidates("3333", probability=0.0001, writers=["evil"], label="7", seed=500)
    chosen = choose([*HONEST, *flipped], SECTION, room=1000)
    assert set(chosen.aside) == {one.id for one in flipped} and set(chosen.aside.values()) == {"unlikely_digit"}
    assert set(chosen.ids) == {one.id for one in HONEST}
    assert {one.id for one in flipped} <= set(choose([*HONEST, *flipped], OPEN, room=1000).ids)  # the control


def test_what_the_champion_finds_absurd_is_learned_when_several_users_draw_it_alike():
    seven = candidates("7777", probability=0.0001, writers=["a", "b", "c", "d"], seed=700)  # say, with a bar that it never saw
    assert choose(seven, SECTION, room=100).aside == {}
    assert set(choose(seven[:2], SECTION, room=100).aside) == {one.id for one in seven[:2]}  # two users are too few
    of_one = [replace(one, writer="a") for one in seven]
    assert len(choose(of_one, SECTION, room=100).aside) == 4  # and one user with many drawings is one


def test_users_who_draw_alike_do_not_outvote_those_who_draw_it_as_another_digit():
    honest = candidates("33333", probability=0.9, writers=["a", "b", "c", "d", "e"], seed=800)
    flipped = candidates("3333", probability=0.0001, writers=["x", "y", "z", "u"], label="7", seed=900)
    assert len(choose([*honest, *flipped], SECTION, room=100).aside) == 4
    assert len(choose(flipped, SECTION, room=100).aside) == 0  # without the honest ones four accounts of one attacker pass: say so


def test_a_cut_has_its_share_and_no_digit_too_large_a_part_of_it():
    ones = candidates("1" * 40, probability=0.9, writers=["a", "b", "c", "d"], seed=1100)
    even = SECTION.model_copy(update={"max_digit_share": 0.2})
    found = choose([*HONEST, *ones], even, room=50)
    labels = Counter(next(one.label for one in [*HONEST, *ones] if one.id == chosen) for chosen in found.ids)
    assert len(found.ids) <= 50 and labels["1"] == 10 and found.aside == {}
    unbounded = choose([*HONEST, *ones], SECTION, room=1000)
    assert len(unbounded.ids) == 80  # the control: 44 of them ones
    assert choose(HONEST, SECTION, room=0).ids == []


# --- cutting ----------------------------------------------------------------------------------------------------------------------

FULL = Ledger(parent="v1", busy=None, new=300, writers=10)


@pytest.mark.parametrize(
    ("changes", "asked", "wanted", "why"),
    [
        ({}, False, True, "300 new drawings of 10 users"),
        ({"new": 299}, False, False, "300 drawings are waited for"),
        ({"writers": 9}, False, False, "10 users are waited for"),
        ({"new": 1, "writers": 1}, True, True, "1 new"),
        ({"new": 0}, True, False, "no new drawing"),
        ({"parent": None}, True, False, "land the data set first"),
        ({"busy": "drawn-1 is on its way"}, True, False, "on its way"),
    ],
)
def test_a_cut_is_due_when_enough_is_new_of_enough_users(changes, asked, wanted, why):
    decided = due(replace(FULL, **changes), DrawingsSection(), asked=asked)
    assert decided.cut is wanted and why in decided.why


class Prototypes:
    """A small real predictor: the nearer a prepared picture is to a digit's plain drawing, the likelier that digit."""

    labels = tuple(STROKES)

    def __init__(self) -> None:
        plain = [strokes.prepared(drawing(digit, 0, tremor=0)) for digit in self.labels]
        self.plain = np.stack([picture.ravel() > 127 for picture in plain])

    def predict(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        import io

        answers = []
        for data in inputs:
            seen = strokes.prepared(Image.open(io.BytesIO(data))).ravel() > 127
            apart = np.count_nonzero(self.plain != seen, axis=1)
            weights = np.exp(-(apart - apart.min()) / 6.0)
            answers.append({"probs": dict(zip(self.labels, (weights / weights.sum()).tolist(), strict=True))})
        return answers


DIGITS = replace(toy_system(SYSTEM), load_predictor=lambda folder, threads: Prototypes())


@pytest.fixture
def platform(settings: Settings, engine: Engine, store: ObjectStore) -> pipeline.Platform:
    return pipeline.Platform(settings, engine, store, Tracking(None))


@pytest.fixture
def world(platform: pipeline.Platform) -> World:
    """A first version that is frozen and cleaned (1,000 rows), and a champion trained on it."""
    world = World(platform.engine, platform.settings, platform.store, SYSTEM, config_of(SYSTEM))
    platform.store.put(f"landing/{SYSTEM}/first-1/rows.bin", b"x")
    platform.store.put(f"landing/{SYSTEM}/first-1/_READY", b"")
    manifest = freeze(platform, "first-1")
    platform_clean(platform, manifest)
    found = world.registered("first-1")
    assert found.verdict.outcome == "promoted"
    return world


def freeze(platform: pipeline.Platform, version: str) -> dataset.Manifest:
    """What the landing sensor's tick and the asset `dataset` do."""
    done = objects.tick(platform.engine, platform.store, SYSTEM, settle_seconds=3600)
    assert version in done.closed, done
    return dataset.freeze(
        platform.engine, platform.store, SYSTEM, version, max_object_bytes=10**9, scratch=platform.settings.home / "freeze"
    )


def platform_clean(platform: pipeline.Platform, manifest: dataset.Manifest, read: bytes | None = None) -> dataset.PublishedTable:
    """What cleaning leaves: a table of the manifest's drawings, one part. `read`: what it had read of them."""
    folder = platform.settings.home / "made"
    folder.mkdir(exist_ok=True)
    part = folder / "part.parquet"
    part.write_bytes(content_of(platform, manifest) if read is None else read)
    parts = dataset.upload_parts(platform.store, manifest, [part])
    table = dataset.PublishedTable(SYSTEM, manifest.version, manifest.sha256, 1000, "r", parts, {}, len(manifest.forgotten))
    dataset.publish_table(platform.engine, platform.store, table)
    return table


def content_of(platform: pipeline.Platform, manifest: dataset.Manifest) -> bytes:
    return b"".join(b"".join(dataset.open_entry(platform.store, entry)) for entry in manifest.entries)


def cut(platform: pipeline.Platform, section: DrawingsSection = SECTION, *, asked: bool = False) -> drawn.Done:
    scratch = platform.settings.home / "cut"
    scratch.mkdir(exist_ok=True)
    return drawn.run(platform, DIGITS, section, scratch, asked=asked)


def give(platform: pipeline.Platform, writer: str, digits: str, seed: int) -> None:
    done = drawn.accept(platform.engine, SYSTEM, writer, drawings_of(digits, seed), SECTION)
    assert done.stored == len(digits), done


def landed(store: ObjectStore, version: str) -> dict[str, bytes]:
    prefix = f"landing/{SYSTEM}/{version}/"
    return {info.key.removeprefix(prefix): store.get(info.key) for info in store.list(prefix.rstrip("/"))}


def test_drawings_become_a_version_that_extends_the_champions(platform, world):
    give(platform, "writer-one", "0123456789", 1)
    give(platform, "writer-two", "0123456789", 2)
    (version,) = cut(platform).landed
    files = landed(platform.store, version)
    assert files["_PARENT"] == b"first-1" and "_READY" in files
    indexes = {name: [json.loads(line) for line in data.decode().splitlines()] for name, data in files.items() if name.endswith(".jsonl")}
    assert len(indexes) == 2  # a folder per writer
    for name, lines in indexes.items():
        folder = name.removesuffix(drawn.INDEX)
        assert len({line["writer"] for line in lines}) == 1 and lines[0]["writer"] not in name
        for line in lines:
            assert sorted(line) == ["file", "label", "origin", "writer"] and line["origin"] == "users"
            assert files[folder + line["file"]].startswith(b"\x89PNG")
    assert Counter(line["label"] for lines in indexes.values() for line in lines) == Counter("0123456789" * 2)
    assert {row.picture for row in rows(platform.engine, "picture")} == {None}  # the objects are the only copy
    manifest = freeze(platform, version)
    assert len(manifest.entries) == 1 + 20 + 2 and manifest.parent == "first-1"
    assert cut(platform).landed == []


def test_what_is_unlikely_waits_and_is_looked_at_again(platform, world):
    give(platform, "writer-one", "012", 1)
    flipped = [replace(one, label="4") for one in drawings_of("7", 5)]
    drawn.accept(platform.engine, SYSTEM, "writer-one", flipped, SECTION)
    done = cut(platform)
    assert "3 are cut; 1 wait" in done.why
    (waiting,) = [row for row in rows(platform.engine) if row.version is None]
    assert (waiting.label, waiting.aside) == ("4", "unlikely_digit") and waiting.picture is not None
    with platform.engine.connect() as connection:
        assert drawn.look(connection, SYSTEM).new == 0  # it alone makes no further cut due


def test_the_defence_off_learns_the_flipped_one(platform, world):
    drawn.accept(platform.engine, SYSTEM, "writer-one", [replace(one, label="4") for one in drawings_of("7", 5)], SECTION)
    assert cut(platform).landed == []
    with platform.engine.begin() as connection:
        connection.execute(text("UPDATE drawn SET aside = NULL"))
    assert len(cut(platform, OPEN).landed) == 1


def test_without_a_champion_nothing_is_cut(platform):
    platform.store.put(f"landing/{SYSTEM}/first-1/rows.bin", b"x")
    platform.store.put(f"landing/{SYSTEM}/first-1/_READY", b"")
    freeze(platform, "first-1")
    give(platform, "writer-one", "01", 1)
    done = cut(platform)
    assert done.landed == [] and "no champion" in done.why


def test_a_share_of_the_training_data_is_never_exceeded_over_all_cuts(platform, world):
    section = SECTION.model_copy(update={"max_share": 0.012})  # 12 of 1,000 rows
    give(platform, "writer-one", "0123456789", 1)
    (first,) = cut(platform, section).landed
    freeze(platform, first)
    world.registered(first, folder=None, content="first")
    give(platform, "writer-two", "0123456789", 2)
    cut(platform, section)
    assert Counter(row.version is not None for row in rows(platform.engine)) == {True: 12, False: 8}


@pytest.mark.parametrize(("metrics", "extended"), [({"f1": 0.5, "accuracy": 0.5}, "first-1"), (None, "drawn")])
def test_a_version_that_the_gate_refused_is_a_dead_end(platform, world, metrics, extended):
    give(platform, "writer-one", "0123456789", 1)
    (bad,) = cut(platform).landed
    freeze(platform, bad)
    give(platform, "writer-two", "01234", 2)
    assert "no verdict yet" in cut(platform).why  # the next one waits for it
    world.registered(bad, metrics, content="of the cut")
    (after,) = cut(platform).landed
    assert landed(platform.store, after)["_PARENT"].decode().startswith(extended)


@pytest.mark.parametrize("point", crash.DRAWN_POINTS)
def test_a_killed_cut_is_completed_with_the_same_bytes(platform, world, point):
    give(platform, "writer-one", "0123", 1)
    script = (
        "from pathlib import Path; from mlops_assets.settings import load_settings; from mlops_assets.lifecycle import pipeline; "
        "from mlops_assets_tests.ingest import test_drawn as t; p = pipeline.connect(load_settings()); t.cut(p)"
    )
    environment = process_environment() | platform.settings.environment() | {"MLOPS_CRASH_AT": point}
    killed = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    before = rows(platform.engine, "id, version, folder")
    (version,) = cut(platform).landed
    settled = point != "drawn_cut.before_commit"
    assert (rows(platform.engine, "id, version, folder") == before) is settled
    assert len(freeze(platform, version).entries) == 1 + 4 + 1
    assert cut(platform).landed == []


# --- forgetting -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def learned(platform: pipeline.Platform, world: World) -> tuple[str, dataset.Manifest]:
    """A version with drawings of two users, frozen, cleaned, and a champion trained on it."""
    give(platform, "writer-one", "0123456789", 1)
    give(platform, "writer-two", "0123456789", 2)
    (version,) = cut(platform).landed
    manifest = freeze(platform, version)
    platform_clean(platform, manifest)
    assert world.registered(version, {**GOOD, "f1": 0.9}, content="second").verdict.outcome == "promoted"
    return version, manifest


def everything_stored(store: ObjectStore) -> bytes:
    return b"\n".join(info.key.encode() + store.get(info.key) for info in store.list(""))


def test_forgetting_a_user_deletes_every_byte_and_names_what_learned_from_it(platform, world, learned):
    version, before = learned
    frozen = {row.sha256: row.writer for row in rows(platform.engine)}
    pictures = {sha256: platform.store.get(dataset.object_key(sha256)) for sha256 in frozen}
    done = drawn.forget_writers(platform.engine, platform.store, SYSTEM, ["writer-one"], platform.settings.public_keys_path)
    assert done.drawings == 10 and list(done.dataset_versions) == [version]
    assert [(model["dataset_version"], model["version"], model["state"]) for model in done.models] == [(version, 2, "champion")]
    stored = everything_stored(platform.store)
    assert {writer for sha256, writer in frozen.items() if pictures[sha256] in stored} == {"writer-two"}
    assert b"writer-one" not in stored and b"writer-two" in stored
    assert {row.writer for row in rows(platform.engine)} == {"writer-two"}
    again = drawn.forget_writers(platform.engine, platform.store, SYSTEM, ["writer-one"], platform.settings.public_keys_path)
    assert (again.drawings, list(again.models)) == (0, [])


def test_a_version_keeps_its_manifest_and_is_sound_without_what_was_deleted(platform, world, learned):
    version, before = learned
    drawn.forget_writers(platform.engine, platform.store, SYSTEM, ["writer-one"], platform.settings.public_keys_path)
    after = freeze_again(platform, version)  # verified, every byte
    assert after.sha256 == before.sha256 and len(after.forgotten) == 11 and len(after.entries) == len(before.entries) - 11
    with platform.engine.connect() as connection:
        problems: list[str] = []
        found = _objects(connection, platform.store, after, problems, read_bytes=True)
    assert problems == [] and sum("deleted_on_request" in one for one in found) == 11
    # The control: a file that nobody asked to delete is damage.
    platform.store.delete(dataset.object_key(after.entries[-1].sha256))
    with pytest.raises(dataset.DatasetError, match="is damaged, 1 of"):
        freeze_again(platform, version)


def freeze_again(platform: pipeline.Platform, version: str) -> dataset.Manifest:
    return dataset.freeze(platform.engine, platform.store, SYSTEM, version, max_object_bytes=10**9, scratch=platform.settings.home / "f")


def test_a_version_is_cleaned_and_trained_again_without_what_was_deleted(platform, world, learned, tmp_path):
    version, before = learned
    assert dataset.load_table(platform.store, platform.engine, SYSTEM, version, tmp_path / "a").forgotten == 0
    read = content_of(platform, before)
    drawn.forget_writers(platform.engine, platform.store, SYSTEM, ["writer-one"], platform.settings.public_keys_path)
    with pytest.raises(dataset.DatasetError, match="were deleted on request .* again"):
        dataset.load_table(platform.store, platform.engine, SYSTEM, version, tmp_path / "b")
    platform_clean(platform, before, read)  # a cleaning that had begun before
    with pytest.raises(dataset.DatasetError, match="were deleted on request .* again"):
        dataset.load_table(platform.store, platform.engine, SYSTEM, version, tmp_path / "b")
    platform_clean(platform, freeze_again(platform, version))
    table = dataset.load_table(platform.store, platform.engine, SYSTEM, version, tmp_path / "b")
    assert table.forgotten == 11
    of = {"variant": "", "parameters": {}, "seed": 1}
    contexts = [
        pipeline.context_of(platform.settings, DIGITS, world.config, table=replace(table, forgotten=count), **of).fingerprint
        for count in (0, 11)
    ]
    assert contexts[0] != contexts[1]  # no checkpoint from before is resumed


def test_what_extends_the_version_later_holds_nothing_of_the_user(platform, world, learned):
    version, _ = learned
    drawn.forget_writers(platform.engine, platform.store, SYSTEM, ["writer-one"], platform.settings.public_keys_path)
    give(platform, "writer-three", "01234", 3)
    (later,) = cut(platform).landed  # although its parent is not cleaned again yet
    manifest = freeze(platform, later)
    assert manifest.parent == version and manifest.forgotten == () and len(manifest.entries) == 1 + 11 + 6


HEIR = "e" * 64


def test_a_model_that_goes_on_from_one_that_learned_is_named_too(platform, world, learned):
    version, _ = learned
    taught = world.attempt(version, content="second")
    with platform.engine.begin() as connection:
        copied = (
            "system, variant, manifest_sha256, config, config_sha256, code_version, git_commit, seed, fingerprint, bundle_files, metrics"
        )
        connection.execute(
            text(
                f"INSERT INTO attempt ({copied}, dataset_version, bundle_sha256, parent_bundle_sha256) "
                f"SELECT {copied}, 'first-1', '{HEIR}', bundle_sha256 FROM attempt WHERE id = :id"
            ),
            {"id": taught.id},
        )
    done = drawn.forget_writers(platform.engine, platform.store, SYSTEM, ["writer-one"], platform.settings.public_keys_path)
    assert {model["bundle_sha256"]: model["state"] for model in done.models} == {taught.bundle_sha256: "champion", HEIR: "not registered"}


@pytest.mark.parametrize("point", crash.FORGET_POINTS)
def test_a_killed_deletion_is_completed_by_the_next_one(platform, world, learned, point):
    version, before = learned
    script = (
        "from mlops_assets.settings import load_settings; from mlops_assets.lifecycle import pipeline; "
        "from mlops_assets.ingest import drawn; "
        "p = pipeline.connect(load_settings()); keys = p.settings.public_keys_path; "
        f"drawn.forget_writers(p.engine, p.store, '{SYSTEM}', ['writer-one'], keys)"
    )
    environment = process_environment() | platform.settings.environment() | {"MLOPS_CRASH_AT": point}
    assert subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True).returncode == -9
    freeze_again(platform, version)  # at no point is the version damaged
    done = drawn.forget_writers(platform.engine, platform.store, SYSTEM, ["writer-one"], platform.settings.public_keys_path)
    assert list(done.dataset_versions) == [version] and [model["state"] for model in done.models] == ["champion"]
    after = freeze_again(platform, version)
    assert len(after.forgotten) == 11
    assert not any(platform.store.exists(dataset.object_key(entry.sha256)) for entry in after.forgotten)
    assert not any(platform.store.exists(entry.key) for entry in after.forgotten)


def test_two_are_forgotten_at_once_and_nothing_of_either_stays(platform, world, learned, monkeypatch):
    """The second is committed when the first has deleted its own bytes and not yet said so."""
    version, _ = learned

    def second(point: str) -> None:
        if point == "forget.after_bytes":
            monkeypatch.setattr(forget.crash, "reach", lambda _: None)
            with monkeypatch.context() as only_committed:
                only_committed.setattr(forget, "finish", lambda *_: [])
                drawn.forget_writers(platform.engine, platform.store, SYSTEM, ["writer-two"], platform.settings.public_keys_path)

    monkeypatch.setattr(forget.crash, "reach", second)
    drawn.forget_writers(platform.engine, platform.store, SYSTEM, ["writer-one"], platform.settings.public_keys_path)
    drawn.forget_writers(platform.engine, platform.store, SYSTEM, ["writer-two"], platform.settings.public_keys_path)
    after = freeze_again(platform, version)
    assert len(after.forgotten) == 22
    assert not any(platform.store.exists(dataset.object_key(one.sha256)) or platform.store.exists(one.key) for one in after.forgotten)


def test_what_a_forgotten_user_confirmed_before_is_not_kept_and_what_they_draw_later_is(platform):
    drawn.forget_writers(platform.engine, platform.store, SYSTEM, ["writer-one"], platform.settings.public_keys_path)
    confirmed_before = drawn.accept(platform.engine, SYSTEM, "writer-one", drawings_of("012", 1), SECTION, waited=60)
    assert (confirmed_before.stored, confirmed_before.dropped) == (0, {"forgotten": 3})
    assert drawn.accept(platform.engine, SYSTEM, "writer-two", drawings_of("012", 2), SECTION, waited=60).stored == 3
    with platform.engine.begin() as connection:  # two minutes later
        connection.execute(text("UPDATE forgotten_writer SET at = at - CAST('2 minutes' AS interval)"))
    assert drawn.accept(platform.engine, SYSTEM, "writer-one", drawings_of("345", 3), SECTION, waited=60).stored == 3


def test_who_is_forgotten_before_the_version_is_frozen_is_in_none(platform, world):
    give(platform, "writer-one", "0123", 1)
    give(platform, "writer-two", "01234", 2)
    (version,) = cut(platform).landed
    objects.tick(platform.engine, platform.store, SYSTEM, settle_seconds=3600)
    drawn.forget_writers(platform.engine, platform.store, SYSTEM, ["writer-one"], platform.settings.public_keys_path)
    manifest = freeze_again(platform, version)
    assert len(manifest.entries) == 1 + 5 + 1


def test_bytes_that_freezing_copied_meanwhile_go_with_the_next_look(platform, world, learned):
    version, before = learned
    copied = {entry.sha256: platform.store.get(dataset.object_key(entry.sha256)) for entry in before.entries}
    drawn.forget_writers(platform.engine, platform.store, SYSTEM, ["writer-one"], platform.settings.public_keys_path)
    forgotten = freeze_again(platform, version).forgotten
    assert len(forgotten) == 11
    for entry in forgotten:
        platform.store.put(dataset.object_key(entry.sha256), copied[entry.sha256])
    forget.delete_bytes(platform.engine, platform.store, SYSTEM, version)  # what the asset `dataset` does after freezing
    assert not any(platform.store.exists(dataset.object_key(entry.sha256)) for entry in forgotten)


def test_bytes_that_another_file_has_too_stay(platform, world, learned):
    version, _ = learned
    own = next(row for row in rows(platform.engine) if row.writer == "writer-one")
    picture = platform.store.get(dataset.object_key(own.sha256))
    platform.store.put("landing/tires/other-1/same.png", picture)
    platform.store.put("landing/tires/other-1/_READY", b"")
    objects.tick(platform.engine, platform.store, "tires", settle_seconds=3600)
    scratch: Path = platform.settings.home / "f"
    dataset.freeze(platform.engine, platform.store, "tires", "other-1", max_object_bytes=10**9, scratch=scratch)
    drawn.forget_writers(platform.engine, platform.store, SYSTEM, ["writer-one"], platform.settings.public_keys_path)
    assert platform.store.exists(dataset.object_key(own.sha256))
    dataset.freeze(platform.engine, platform.store, "tires", "other-1", max_object_bytes=10**9, scratch=scratch)


# --- as Dagster runs it -----------------------------------------------------------------------------------------------------------


def test_the_sensor_starts_the_cut_once_and_the_landing_sensor_sees_the_version(platform, world):
    section = SECTION.model_copy(update={"min_new": 6, "min_writers": 2})
    resources = {"store": ObjectStoreResource.of(platform.settings), "postgres": PostgresResource.of(platform.settings)}
    definitions = drawn_definitions(DIGITS, section, lambda: platform)
    sensor = definitions.resolve_sensor_def(f"{SYSTEM}_cuts")
    with dg.DagsterInstance.ephemeral() as instance:

        def tick() -> dg.SensorResult:
            with dg.build_sensor_context(instance=instance) as context:
                found = sensor(context)
            assert isinstance(found, dg.SensorResult)
            return found

        give(platform, "writer-one", "012345", 1)
        assert "2 users are waited for" in str(tick().skip_reason)
        give(platform, "writer-two", "01", 2)
        assert len(tick().run_requests or []) == 1
        assert definitions.resolve_job_def(f"{SYSTEM}_cut").execute_in_process(instance=instance).success
        assert "on its way" in str(tick().skip_reason)
        landing = landing_sensor(SYSTEM, f"{SYSTEM}_pipeline", platform.settings)
        with dg.build_sensor_context(instance=instance, resources=resources) as context:
            asked = landing(context)
        assert isinstance(asked, dg.SensorResult)
        assert [str(request.partition_key)[:6] for request in asked.run_requests or []] == ["first-", "drawn-"]
