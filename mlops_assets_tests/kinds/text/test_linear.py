"""The linear model of texts: learned, bundled, loaded and asked through the server's own door."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sklearn.linear_model import LogisticRegression

from mlops_assets.kinds.text import linear, ngrams
from mlops_assets.kinds.text.config import LINEAR_FILE, LinearSection
from mlops_assets.kinds.text.predict import BadInput, TextPredictor, load_text_predictor
from mlops_assets.lifecycle.bundle import BadBundle
from mlops_assets.serving import loading
from mlops_assets.training.export import write_golden, write_spec

SECTION = LinearSection()
GOOD, BAD, RUDE = ("정말 좋은 영화", "최고의 영화 좋아요"), ("나쁜 영화", "정말 별로 나빠요"), ("멍청한 놈", "멍청한 나쁜 놈")
TEXTS = [f"{text} {number}" for number in range(6) for text in (*GOOD, *BAD, *RUDE)]
GOOD_ONES = np.array([[text.startswith(GOOD)] for text in TEXTS])
SEVERAL = ("good", "rude", "clean")


def bundle(folder: Path, system: str, kind: str, labels: tuple[str, ...], truth: np.ndarray, **more: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(linear.learn(TEXTS, truth, SECTION, 0), folder / LINEAR_FILE)
    write_spec(folder, system, kind, labels, "fp16", 1.3, ngrams={"longest": SECTION.longest}, **more)
    write_golden(folder, TEXTS[:4], load_text_predictor(folder, 1).probabilities)
    return folder


def one_label(folder: Path) -> Path:
    return bundle(folder, "sentiment", "text-classification", ("부정", "긍정"), GOOD_ONES)


def several_labels(folder: Path) -> Path:
    truth = np.array([[text.startswith(GOOD), "멍청" in text, "멍청" not in text] for text in TEXTS])
    return bundle(folder, "hate_speech", "text-labels", SEVERAL, truth, thresholds={"good": 0.6, "rude": 0.5}, fallback="clean")


def naive(text: str, longest: int) -> list[str]:
    """The n-grams of both readings, one after the other: a space only at an end, none by itself."""
    words = text.casefold().split()
    found = []
    for name, reading in (("words", f" {' '.join(words)} "), ("whole", f" {''.join(words)} ")):
        grams = [reading[at : at + size] for size in range(1, longest + 1) for at in range(len(reading) - size + 1)]
        found += [name + gram for gram in grams if gram.strip() and " " not in gram[1:-1]]
    return found


@pytest.mark.parametrize("text", ["영화", " 두  낱말\n셋", "AbC가", "ㅋ", "a" * 40, "👍🏽 좋다"])
def test_ngrams_are_those_of_both_readings(text: str) -> None:
    found, wanted = ngrams.count([text], 5), naive(text, 5)
    assert sorted(found.counts.tolist()) == sorted(wanted.count(gram) for gram in set(wanted))


def test_a_text_without_anything_to_read_has_the_bias_alone() -> None:
    tables = linear.learn(TEXTS, GOOD_ONES, SECTION, 0)
    assert linear.scores(tables, SECTION, ["\u2003"]) == pytest.approx(tables["bias"][None])


def test_scores_are_scikit_learns_own(tmp_path: Path) -> None:
    """On dense features of the n-grams themselves, not hashed. Control: neither of the two models alone has them."""
    grams = [naive(text, SECTION.longest) for text in TEXTS]
    names = sorted({gram for of_text in grams for gram in of_text})
    counts = np.array([[of_text.count(name) for name in names] for of_text in grams], float)
    there = counts > 0
    counts = counts[:, kept := there.sum(axis=0) >= SECTION.min_rows]
    there = there[:, kept]
    features = np.where(there, 1 + np.log(np.maximum(counts, 1)), 0) * (np.log((1 + len(TEXTS)) / (1 + there.sum(axis=0))) + 1)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    has = GOOD_ONES[:, 0]
    yes, no = there[has].sum(axis=0) + 1.0, there[~has].sum(axis=0) + 1.0
    ratio = np.log((yes / yes.sum()) / (no / no.sum()))

    def theirs(rows: np.ndarray, strength: float) -> np.ndarray:
        model = LogisticRegression(C=strength, solver="liblinear", dual=True, tol=0.02, max_iter=200, random_state=0)
        return model.fit(rows, has).decision_function(rows)

    ours = linear.scores(linear.learn(TEXTS, GOOD_ONES, SECTION, 0), SECTION, TEXTS)[:, 0]
    one, other = theirs(features * ratio, SECTION.strength), theirs(features, SECTION.plain_strength)
    assert np.allclose(ours, (one + other) / 2, atol=0.1)
    assert not np.allclose(ours, one, atol=0.1) and not np.allclose(ours, other, atol=0.1)


def test_what_is_served_is_what_was_learned(tmp_path: Path) -> None:
    predictor = load_text_predictor(one_label(tmp_path), 1)
    logits = predictor.predict_logits(TEXTS)
    scores = linear.scores(load_file(tmp_path / LINEAR_FILE), SECTION, TEXTS)
    assert np.allclose(logits[:, 1] - logits[:, 0], scores[:, 0], atol=1e-5)


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    first, again = several_labels(tmp_path / "first"), several_labels(tmp_path / "again")
    assert all((again / path.name).read_bytes() == path.read_bytes() for path in first.iterdir())


@pytest.mark.parametrize("made", [one_label, several_labels])
def test_a_text_is_answered_alike_whatever_stands_beside_it(tmp_path: Path, made: Callable[[Path], Path]) -> None:
    predictor = load_text_predictor(made(tmp_path), 1)
    texts = [*TEXTS * 16, "처음 보는 말", "!", "x" * 5000]
    assert len(texts) > 500, "more than are counted together"
    together = predictor.probabilities(texts)
    assert np.array_equal(np.vstack([predictor.probabilities([text]) for text in texts]), together)


def test_one_label_and_several_are_served(tmp_path: Path) -> None:
    one = loading.load(one_label(tmp_path / "one"), "sentiment", 1)
    good, bad = one.predict(["정말 좋은 영화", "나쁜 영화"])
    assert (good["label"], bad["label"]) == ("긍정", "부정") and sum(good["probs"].values()) == pytest.approx(1)
    assert one.canonical_label("긍정") == "긍정" and one.canonical_label("중립") is None
    many = loading.load(several_labels(tmp_path / "many"), "hate_speech", 1)
    assert [answer["labels"] for answer in many.predict(["멍청한 놈", "전혀 다른 것"])] == [["rude"], ["clean"]]
    with pytest.raises(BadInput):
        one.check([""])


def test_a_label_that_is_never_or_always_true_is_said_so(tmp_path: Path) -> None:
    truth = np.hstack([GOOD_ONES, np.zeros_like(GOOD_ONES), np.ones_like(GOOD_ONES)])
    folder = bundle(tmp_path, "hate_speech", "text-labels", SEVERAL, truth, thresholds={"good": 0.5, "rude": 0.5}, fallback="clean")
    predictor: TextPredictor = load_text_predictor(folder, 1)
    found = predictor.probabilities(TEXTS)
    assert (found[:, 1] < 0.01).all() and (found[:, 2] > 0.99).all() and 0.01 < found[:, 0].mean() < 0.99


def _truncated(folder: Path) -> None:
    (folder / LINEAR_FILE).write_bytes((folder / LINEAR_FILE).read_bytes()[:-8])


def _changed(**tables: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        held = load_file(folder / LINEAR_FILE)
        save_file(held | {name: np.ascontiguousarray(change(held[name])) for name, change in tables.items()}, folder / LINEAR_FILE)

    return spoil


def _said(**shape: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        spec = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
        (folder / "bundle.json").write_text(json.dumps(spec | {"ngrams": spec["ngrams"] | shape}), encoding="utf-8")

    return spoil


@pytest.mark.parametrize(
    ("spoil", "code", "said"),
    [
        (_truncated, "bad_model", "load or run"),
        (lambda folder: (folder / LINEAR_FILE).unlink(), "missing_file", LINEAR_FILE),
        (_changed(weights=lambda w: np.full_like(w, np.nan)), "bad_model", "finite"),
        (_changed(weights=lambda w: w[:-1]), "bad_model", "shapes"),
        (_changed(weights=lambda w: np.hstack([w, w]), bias=lambda b: np.hstack([b, b])), "wrong_labels", "labels"),
        (_changed(bias=lambda b: b + 3), "golden", "golden sample 0"),
        (_changed(numbers=lambda n: n[::-1]), "bad_model", "must rise"),
        (_changed(numbers=lambda n: n.astype(np.int64)), "bad_model", "shapes"),
        (_changed(numbers=lambda n: n[:0], rarity=lambda r: r[:0], weights=lambda w: w[:0]), "bad_model", "shapes"),
        (_said(longest="5"), "bad_model", "letters"),
        (_said(longest=2), "golden", "golden sample"),
        (_changed(), None, ""),
    ],
)
def test_a_spoiled_bundle_is_refused(tmp_path: Path, spoil: Callable[[Path], None], code: str | None, said: str) -> None:
    spoil(one_label(tmp_path))
    if code is None:  # control
        loading.load(tmp_path, "sentiment", 1)
        return
    with pytest.raises(BadBundle, match=said) as error:
        loading.load(tmp_path, "sentiment", 1)
    assert error.value.code == code


def test_serving_loads_nothing_heavy(tmp_path: Path) -> None:
    one_label(tmp_path)
    heavy = ("torch", "transformers", "sklearn", "pandas", "scipy", "onnxruntime", "tokenizers")
    program = (
        "import json, sys; from pathlib import Path; from mlops_assets.serving import loading; "
        f"loading.load(Path(sys.argv[1]), 'sentiment', 1).predict(['영화']); print(json.dumps([n for n in {heavy!r} if n in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(done.stdout) == []
