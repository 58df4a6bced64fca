"""The one predictor: order, calibration, limits, and that a text's answer does not depend on its neighbours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_assets.kinds.text.predict import (
    BATCH_TOKENS,
    MAX_CHARACTERS,
    MAX_TEXTS,
    BadInput,
    _micro_batches,
    load_text_predictor,
)
from mlops_assets.lifecycle.bundle import BadBundle
from mlops_assets.serving import loading
from mlops_assets_tests.serving.bundles import make_bundle, probabilities

TEXTS = ["좋은 영화", "별로", "최고 최고 영화", "영화 " * 100 + "나쁜", "모르는 말", "나쁜 영화 나쁜 영화"]


def test_answers_in_order_with_the_seeds_fields(tmp_path: Path) -> None:
    predictor = load_text_predictor(make_bundle(tmp_path), 1)
    answers = predictor.predict(TEXTS)
    assert [a["text"] for a in answers] == TEXTS
    for text, answer in zip(TEXTS, answers, strict=True):
        assert set(answer) == {"text", "label", "confidence", "probs"}
        if len(text.split()) <= 64:
            assert list(answer["probs"].values()) == pytest.approx(probabilities(text, 1.0), abs=1e-5)
        assert answer["confidence"] == max(answer["probs"].values()) == answer["probs"][answer["label"]]


def test_an_answer_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    predictor = load_text_predictor(make_bundle(tmp_path), 1)
    many = [TEXTS[i % len(TEXTS)] for i in range(3 * BATCH_TOKENS)]
    alone = {text: predictor.predict([text])[0]["probs"]["긍정"] for text in TEXTS}
    for text, answer in zip(many, predictor.predict(many), strict=True):
        assert answer["probs"]["긍정"] == pytest.approx(alone[text], abs=1e-6)


@given(st.lists(st.integers(1, 64), max_size=200))
def test_micro_batches_hold_every_text_once_and_stay_small(lengths: list[int]) -> None:
    batches = list(_micro_batches(lengths))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= BATCH_TOKENS for batch in batches)
    longest = [max(lengths[row] for row in batch) for batch in batches]
    assert longest == sorted(longest), "texts of like length belong together"


def test_calibration_softens_the_answer_and_not_the_logits(tmp_path: Path) -> None:
    plain = load_text_predictor(make_bundle(tmp_path / "a"), 1)
    softer = load_text_predictor(make_bundle(tmp_path / "b", temperature=2.0), 1)
    assert (plain.predict_logits(TEXTS) == softer.predict_logits(TEXTS)).all()
    assert softer.predict(["최고"])[0]["probs"]["긍정"] == pytest.approx(probabilities("최고", 0.5)[1], abs=1e-5)


@pytest.mark.parametrize(
    ("inputs", "code", "field"),
    [
        (["ok", 3], "not_text", "inputs[1]"),
        (["ok", None], "not_text", "inputs[1]"),
        ([""], "empty_text", "inputs[0]"),
        ([" \n\t"], "empty_text", "inputs[0]"),
        *(
            ([unseen], "empty_text", "inputs[0]")
            for unseen in ("\u200b", "\u200b\u3164", "\ufeff", "\u200d", "\ufe0f \U000e0041", "\u2800", "\x1b")
        ),
        (["가" * (MAX_CHARACTERS + 1)], "too_long", "inputs[0]"),
        (["\ud800"], "not_text", "inputs[0]"),
        (["가"] * (MAX_TEXTS + 1), "too_many", "inputs"),
    ],
)
def test_limits(tmp_path: Path, inputs: list[object], code: str, field: str) -> None:
    predictor = load_text_predictor(make_bundle(tmp_path), 1)
    with pytest.raises(BadInput) as caught:
        predictor.check(inputs)
    assert (caught.value.code, caught.value.field) == (code, field)
    assert predictor.check(["가" * MAX_CHARACTERS] * MAX_TEXTS) is None  # the limits themselves are allowed


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"kind": "yolo"}, "bad_format"),
        ({"format": 2}, "bad_model"),
        ({"labels": ["긍정", "긍정"]}, "wrong_labels"),
        ({"labels": ["긍정"]}, "wrong_labels"),
        ({"labels": "긍정"}, "wrong_labels"),
        ({"system": "other"}, "other_system"),
        ({"calibration": {"temperature": 0}}, "bad_model"),
    ],
)
def test_a_bundle_that_says_something_else_is_refused(tmp_path: Path, change: dict[str, object], code: str) -> None:
    make_bundle(tmp_path)
    spec = json.loads((tmp_path / "bundle.json").read_text())
    loading.load(tmp_path, "sentiment", 1)  # the control
    (tmp_path / "bundle.json").write_text(json.dumps(spec | change))
    with pytest.raises(BadBundle) as caught:
        loading.load(tmp_path, "sentiment", 1)
    assert caught.value.code == code


def test_golden_samples_decide(tmp_path: Path) -> None:
    loading.load(make_bundle(tmp_path / "right"), "sentiment", 1)
    with pytest.raises(BadBundle, match="golden sample 0"):
        loading.load(make_bundle(tmp_path / "wrong", golden=(0.5, 0.5)), "sentiment", 1)
    with pytest.raises(BadBundle, match="golden sample 0"):
        loading.load(make_bundle(tmp_path / "nan", nan=True, golden=(float("nan"), float("nan"))), "sentiment", 1)


def test_a_bundle_whose_answers_depend_on_their_neighbours_is_refused(tmp_path: Path) -> None:
    import onnx
    from onnx import helper

    from mlops_assets.kinds.text.predict import load_text_predictor
    from mlops_assets.training.export import write_golden

    make_bundle(tmp_path)
    model = onnx.load(str(tmp_path / "model.onnx"))
    (last,) = (node for node in model.graph.node if "logits" in node.output)
    last.output[list(last.output).index("logits")] = "own"
    model.graph.node.append(helper.make_node("ReduceMax", ["own"], ["largest"], axes=[0], keepdims=1))
    model.graph.node.append(helper.make_node("Div", ["own", "largest"], ["logits"]))  # as a scale that is measured in every batch
    onnx.save(model, str(tmp_path / "model.onnx"))
    predictor = load_text_predictor(tmp_path, 1)
    write_golden(tmp_path, ["좋은 영화", "최고"], predictor.probabilities)
    with pytest.raises(BadBundle, match="alone and .* in a batch"):
        loading.load(tmp_path, "sentiment", 1)
    golden = json.loads((tmp_path / "golden.json").read_text())
    (tmp_path / "golden.json").write_text(json.dumps({**golden, "batch_tolerance": None}))
    loading.load(tmp_path, "sentiment", 1)  # the control: all of them at once tell nothing


def test_a_child_that_dies_is_a_bad_bundle(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    (tmp_path / "bundle.json").write_bytes(b"\xff\xfe")
    with pytest.raises(BadBundle) as caught:
        loading.try_in_child(tmp_path, "sentiment", 1)
    assert caught.value.code == "bad_format"
    with pytest.raises(BadBundle) as caught:
        loading.try_in_child(tmp_path, "sentiment", 10**30)  # no engine has so many threads
    assert caught.value.code in {"bad_model", "bad_format", "crashed"}
