"""Versions cut from the ledger: when, what they hold, that nothing is skipped or told twice, and the same bytes however often."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from mlops_assets.ingest import cuts, objects
from mlops_assets.ingest.cuts import Ledger, due
from mlops_assets.lifecycle import dataset
from mlops_assets.settings import CutsSection
from mlops_assets.store import ObjectStore
from mlops_assets_tests.ingest.comments import add_comment, add_label, delete_comment

SYSTEM = "hate"
BY_LABELS = CutsSection(when="labels", min_new_labels=1)


@pytest.fixture
def initial(engine: Engine, store: ObjectStore, tmp_path: Path) -> str:
    """A frozen first version, landed from files as a data set is."""
    store.put(f"landing/{SYSTEM}/first-1/rows.tsv", b"x")
    store.put(f"landing/{SYSTEM}/first-1/_READY", b"")
    freeze(engine, store, tmp_path, "first-1")
    return "first-1"


def freeze(engine: Engine, store: ObjectStore, tmp_path: Path, version: str) -> dataset.Manifest:
    """What the landing sensor's tick and the asset `dataset` do."""
    done = objects.tick(engine, store, SYSTEM, settle_seconds=3600)
    assert done.closed == [version], done
    return dataset.freeze(engine, store, SYSTEM, version, max_object_bytes=10**9, scratch=tmp_path / "freeze")


def cut(engine: Engine, store: ObjectStore, tmp_path: Path, section: CutsSection = BY_LABELS, **more: Any) -> cuts.Done:
    scratch = tmp_path / "cut"
    scratch.mkdir(exist_ok=True)
    return cuts.run(engine, store, SYSTEM, section, scratch, **more)


def cut_and_freeze(engine: Engine, store: ObjectStore, tmp_path: Path) -> list[dict[str, Any]]:
    """One cut through to its frozen version: its lines."""
    (version,) = cut(engine, store, tmp_path).landed
    freeze(engine, store, tmp_path, version)
    return lines(store, version)


def lines(store: ObjectStore, version: str) -> list[dict[str, Any]]:
    content = store.get(f"landing/{SYSTEM}/{version}/comments.jsonl").decode("utf-8")
    assert content.endswith("\n") or content == ""
    return [json.loads(line) for line in content.split("\n")[:-1]]


def ids(found: list[dict[str, Any]]) -> list[int]:
    return [line["id"] for line in found]


READY = Ledger(parent="v1", busy=None, changed=500, arriving=False)
LABELS_500 = CutsSection(when="labels", min_new_labels=500)
COLLECTED = CutsSection(when="collection_end", quiet_minutes=10)
NIGHTLY = CutsSection(when="schedule")


@pytest.mark.parametrize(
    ("changes", "section", "asked", "wanted", "why"),
    [
        ({}, LABELS_500, False, True, "500 comments"),
        ({"changed": 499}, LABELS_500, False, False, "500 are waited for"),
        ({"changed": 499}, LABELS_500, True, True, "499"),
        ({"changed": 0}, LABELS_500, True, False, "no comment"),
        ({"parent": None}, LABELS_500, True, False, "land the data set first"),
        ({"busy": "c-1 is on its way"}, LABELS_500, True, False, "on its way"),
        ({}, COLLECTED, False, True, "ended"),
        ({"arriving": True}, COLLECTED, False, False, "still arrive"),
        ({"arriving": True}, COLLECTED, True, True, ""),
        ({}, NIGHTLY, False, False, "0 4"),
        ({}, NIGHTLY, True, True, ""),
    ],
)
def test_when_a_version_is_cut(changes: dict[str, Any], section: CutsSection, asked: bool, wanted: bool, why: str) -> None:
    decided = due(Ledger(**{**vars(READY), **changes}), section, asked=asked)
    assert decided.cut is wanted and why in decided.why


def test_each_cut_holds_what_changed_since_the_one_before(engine: Engine, store: ObjectStore, tmp_path: Path, initial: str) -> None:
    with engine.begin() as connection:
        for number in range(1, 8):
            add_comment(connection, number, f"댓글 {number} 👨‍👩‍👧 '\"\\ 𠮷")
        for number in (1, 2, 3, 4):
            add_label(connection, number, ["지역", "clean"])
        add_label(connection, 5, ["clean"], origin="review", actor="가", predicted=["지역"])  # one person against the champion: no label
        add_comment(connection, 9, source="unsmile/train")
        add_label(connection, 9, ["clean"], origin="dataset", source="unsmile/train")  # is in first-1 by its file
        delete_comment(connection, 7)  # nobody ever said anything about it
    first = cut_and_freeze(engine, store, tmp_path)
    assert ids(first) == [1, 2, 3, 4]
    assert first[0] == {
        "source": "app", "id": 1, "content_hash": 1, "text": "댓글 1 👨‍👩‍👧 '\"\\ 𠮷", "labels": ["clean", "지역"],
        "created_at": "2026-11-20T00:00:00+00:00", "deleted": False,
    }  # fmt: skip
    with engine.begin() as connection:
        add_label(connection, 1, ["clean"])  # another label
        add_label(connection, 2, ["clean", "지역"])  # the same again
        add_comment(connection, 3, "고친 글", content_hash=2)  # its label was about another text
        delete_comment(connection, 4)
        add_label(connection, 5, ["clean"], origin="review", actor="나")
        for who in "가나":  # people correct the data set
            add_label(connection, 9, ["지역"], origin="review", actor=who, source="unsmile/train")
    second = cut_and_freeze(engine, store, tmp_path)
    assert [(line["id"], line["labels"], line["deleted"], bool(line["text"])) for line in second] == [
        (1, ["clean"], False, True), (3, [], False, False), (4, [], True, False), (5, ["clean"], False, True), (9, ["지역"], False, True)
    ]  # fmt: skip
    assert cut(engine, store, tmp_path, asked=True).landed == [], "nothing is told twice"
    with engine.connect() as connection:
        chain = connection.execute(text("SELECT version, parent FROM dataset_version WHERE version <> 'first-1' ORDER BY frozen_at")).all()
    assert [row.parent for row in chain] == ["first-1", chain[0].version]
    assert all(objects.is_version_name(row.version) and row.version.startswith("comments-") for row in chain)


def test_a_label_that_commits_late_is_not_skipped_and_a_watermark_would_skip_it(
    engine: Engine, store: ObjectStore, tmp_path: Path, initial: str
) -> None:
    with engine.begin() as connection:
        add_comment(connection, 1)
        add_comment(connection, 2)
    naive_seen: list[int] = []
    watermark = 0

    def naive() -> None:
        nonlocal watermark
        with engine.connect() as connection:
            rows = connection.execute(text("SELECT sequence, id FROM comment_label WHERE sequence > :w ORDER BY 1"), {"w": watermark}).all()
        naive_seen.extend(row.id for row in rows)
        watermark = max([watermark, *(row.sequence for row in rows)])

    with engine.connect() as late:
        add_label(late, 1, ["지역"])  # takes sequence 1, and stays open
        with engine.begin() as connection:
            add_label(connection, 2, ["clean"])  # sequence 2, committed
        first = cut_and_freeze(engine, store, tmp_path)
        naive()
        late.commit()
    naive()
    second = cut_and_freeze(engine, store, tmp_path)
    assert (ids(first), ids(second)) == ([2], [1])
    assert naive_seen == [2], "the control must lose"
    with engine.connect() as connection:
        names = connection.execute(text("SELECT version, sequence_to FROM comment_cut ORDER BY at")).all()
    assert names[1].version == names[0].version + ".2" or names[1].version[9:17] != names[0].version[9:17], "one watermark, two names"
    assert {row.sequence_to for row in names} == {2}


def test_no_cut_while_one_is_on_its_way_and_what_a_refused_one_held_is_cut_again(
    engine: Engine, store: ObjectStore, tmp_path: Path, initial: str
) -> None:
    with engine.begin() as connection:
        for number in (1, 2):
            add_comment(connection, number)
        add_label(connection, 1, ["clean"])
    (first,) = cut(engine, store, tmp_path).landed
    with engine.begin() as connection:
        add_label(connection, 2, ["clean"])
    assert cut(engine, store, tmp_path, asked=True).landed == []
    objects.tick(engine, store, SYSTEM, settle_seconds=3600)
    assert "closed, not frozen" in cut(engine, store, tmp_path, asked=True).why
    dataset.freeze(engine, store, SYSTEM, first, max_object_bytes=10**9, scratch=tmp_path / "freeze")
    with engine.begin() as connection:
        dataset.refuse(connection, SYSTEM, first, "nothing is left")
    (second,) = cut(engine, store, tmp_path).landed
    assert ids(lines(store, second)) == [1, 2], "the refused version is nobody's parent: nothing of it is lost"
    assert store.get(f"landing/{SYSTEM}/{second}/_PARENT") == b"first-1"


def test_a_version_landed_by_hand_between_two_cuts_loses_nothing(engine: Engine, store: ObjectStore, tmp_path: Path, initial: str) -> None:
    """It extends nothing: the next cut extends it, and so holds again what the versions before it do not say."""
    with engine.begin() as connection:
        add_comment(connection, 1)
        add_label(connection, 1, ["clean"])
    cut_and_freeze(engine, store, tmp_path)
    store.put(f"landing/{SYSTEM}/by-hand/rows.tsv", b"y")
    store.put(f"landing/{SYSTEM}/by-hand/_READY", b"")
    freeze(engine, store, tmp_path, "by-hand")
    assert ids(cut_and_freeze(engine, store, tmp_path)) == [1]


def test_the_cheap_hint_changes_with_everything_that_may_make_a_cut_due(
    engine: Engine, store: ObjectStore, tmp_path: Path, initial: str
) -> None:
    def now() -> str:
        with engine.connect() as connection:
            return cuts.hint(connection, SYSTEM)

    seen = [now()]
    with engine.begin() as connection:
        add_comment(connection, 1)
        add_label(connection, 1, ["clean"])
    seen.append(now())
    (version,) = cut(engine, store, tmp_path).landed
    seen.append(now())
    freeze(engine, store, tmp_path, version)
    seen.append(now())
    assert len(set(seen)) == 4 and now() == seen[-1]
