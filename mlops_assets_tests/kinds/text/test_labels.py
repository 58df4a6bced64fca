"""Bundles with several labels a text: the rule that says which, what is refused, and truths that are lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_assets.kinds.text.predict import LabelRule, TextPredictor, load_text_predictor
from mlops_assets.lifecycle.bundle import BadBundle
from mlops_assets.serving import loading
from mlops_assets_tests.serving.bundles import make_bundle

LABELS = ("욕설", "clean")


def labels_bundle(folder: Path, **changes: Any) -> Path:
    """A bundle that says 욕설 of bad words."""
    make_bundle(folder, system="hate_speech", labels=LABELS)
    spec = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    spec |= {"kind": "text-labels", "thresholds": {"욕설": 0.7}, "fallback": "clean"} | changes
    (folder / "bundle.json").write_text(json.dumps(spec), encoding="utf-8")
    if not changes:
        probs = load_text_predictor(folder, 1).probabilities(["좋은 영화", "별로"]).tolist()
        samples = [{"input": text, "probs": row} for text, row in zip(("좋은 영화", "별로"), probs, strict=True)]
        (folder / "golden.json").write_text(json.dumps({"samples": samples, "tolerance": 0.02}), encoding="utf-8")
    return folder


@pytest.fixture
def predictor(tmp_path: Path) -> TextPredictor:
    return load_text_predictor(labels_bundle(tmp_path), 1)


def test_a_label_is_said_from_its_threshold_on_and_clean_when_there_is_none(predictor: TextPredictor) -> None:
    bad, good, between = predictor.predict(["별로", "최고", "나쁜 영화"])
    assert bad["labels"] == ["욕설"] and bad["label"] == "욕설" and bad["confidence"] == bad["probs"]["욕설"] > 0.7
    assert good["labels"] == ["clean"] and good["confidence"] == pytest.approx(1 - good["probs"]["욕설"])
    assert 0.5 < between["probs"]["욕설"] < 0.7 and between["labels"] == ["clean"], "more likely than not is not enough"


@given(st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=1, max_size=20))
def test_every_text_has_a_label_and_clean_stands_alone(rows: list[list[float]]) -> None:
    said = LabelRule((0.3, 0.5, 0.9, 1.0), 3)(np.array(rows))
    assert said.any(axis=1).all()
    assert (said[:, 3] == ~said[:, :3].any(axis=1)).all()
    assert (said[:, :3] == (np.array(rows)[:, :3] >= (0.3, 0.5, 0.9))).all()


@given(st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=1, max_size=20))
def test_a_cut_alone_decides_whether_anything_is_said(rows: list[list[float]]) -> None:
    probabilities = np.array(rows)
    said = LabelRule((0.3, 0.5, 0.9, 1.0), 3, 0.4)(probabilities)
    assert (said[:, 3] == (1 - probabilities[:, 3] < 0.4)).all() and (said[:, 3] == ~said[:, :3].any(axis=1)).all()
    over = probabilities[:, :3] >= (0.3, 0.5, 0.9)
    flagged = ~said[:, 3]
    clear = flagged & over.any(axis=1)
    assert (said[clear, :3] == over[clear]).all() and (said[flagged & ~over.any(axis=1), :3].sum(axis=1) == 1).all()


def test_the_label_nearest_to_its_threshold_is_said_when_none_reaches_its_own() -> None:
    assert LabelRule((0.8, 0.3, 1.0), 2, 0.4)(np.array([[0.4, 0.2, 0.5]])).tolist() == [[False, True, False]]


def test_a_bundle_of_before_has_no_cut_and_answers_as_it_did(tmp_path: Path, predictor: TextPredictor) -> None:
    texts = ["별로", "최고", "나쁜 영화"]
    assert predictor.rule is not None and predictor.rule.cut is None
    with_cut = load_text_predictor(labels_bundle(tmp_path / "cut", cut=0.5), 1)
    assert [answer["labels"] for answer in predictor.predict(texts)] == [["욕설"], ["clean"], ["clean"]]
    answers = with_cut.predict(texts)
    assert [answer["labels"] == ["clean"] for answer in answers] == [1 - answer["probs"]["clean"] < 0.5 for answer in answers]
    assert all(answer["confidence"] == answer["probs"]["clean"] for answer in answers if answer["labels"] == ["clean"])


def test_it_is_served(tmp_path: Path) -> None:
    assert loading.load(labels_bundle(tmp_path), "hate_speech", 1).kind == "text-labels"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"thresholds": None}, "must name a threshold"),
        ({"thresholds": {}}, "must name a threshold"),
        ({"thresholds": {"욕설": 0.7, "clean": 0.5}}, "must name a threshold"),
        ({"thresholds": {"욕설": 0.0}}, "between 0 and 1"),
        ({"thresholds": {"욕설": float("nan")}}, "between 0 and 1"),
        ({"fallback": "없음"}, "fallback '없음' is none"),
        ({"cut": 0}, "cut must lie between 0 and 1"),
        ({"cut": "0.5"}, "cut must lie between 0 and 1"),
        ({"cut": float("nan")}, "cut must lie between 0 and 1"),
        ({"kind": "text-sounds"}, "text-sounds"),
    ],
)
def test_a_bundle_without_a_proper_rule_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadBundle, match=message):
        loading.load(labels_bundle(tmp_path, **changes), "hate_speech", 1)


@pytest.mark.parametrize(
    ("truth", "said"),
    [
        ("욕설", "욕설"),
        (["욕설"], "욕설"),
        (["clean"], "clean"),
        (["clean", "욕설"], None),
        ([], None),
        (["모름"], None),
        ("욕설, clean", None),
        (3, None),
    ],
)
def test_a_truth_is_a_label_or_a_list_of_them(predictor: TextPredictor, truth: Any, said: str | None) -> None:
    assert predictor.canonical_label(truth) == said


def test_a_truth_of_brackets_is_none_of_ours(predictor: TextPredictor) -> None:
    """Deeper than Python writes: it was turned into text to be compared."""
    deep: Any = {}
    for _ in range(100_000):
        deep = {"a": deep}
    assert predictor.canonical_label(deep) is None and predictor.canonical_label([deep]) is None and predictor.canonical_label(1) is None
    while deep:  # freed from the inside, one at a time
        deep = deep["a"]


def test_a_text_with_one_label_takes_no_list_of_two(tmp_path: Path) -> None:
    plain = load_text_predictor(make_bundle(tmp_path), 1)
    assert plain.canonical_label("긍정") == "긍정" and plain.canonical_label(["긍정"]) == "긍정"
    assert plain.canonical_label(["긍정", "부정"]) is None and plain.canonical_label("긍정, 부정") is None
