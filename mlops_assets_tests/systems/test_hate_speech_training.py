"""hate_speech: parameters, training, going on from a parent, the bundle and what is measured, on a language that a tiny BERT learns."""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlops_assets.lifecycle.bundle import files_of
from mlops_assets.lifecycle.system import CleanedTable, TrainContext, Trained
from mlops_assets.settings import REPOSITORY, SettingsError, load_config
from mlops_assets.systems.hate_speech import training
from mlops_assets.systems.hate_speech.config import HateSpeechConfig
from mlops_assets.training import metrics
from mlops_assets.training.text import Rows

CONFIG = load_config(HateSpeechConfig, "hate_speech", REPOSITORY / "configs")
LABELS = CONFIG.dataset.labels
WORDS = {"연령": "노인", "지역": "부산", "종교": "스님"}
TINY = {
    "vocabulary_size": 200,
    "layers": 1,
    "hidden_size": 32,
    "intermediate_size": 64,
    "initializer_range": 0.17,
    "max_length": 16,
    "epochs": 10,
    "min_steps": 0,
    "batch_size": 16,
    "learning_rate": 0.005,
    "word_dropout": 0.0,
    "guess_weight": 0.0,
    "bf16": False,
}


def comment(draw: random.Random) -> tuple[str, list[str], str]:
    """Text, labels, and the groups that it names: hostile words decide, a group's name alone does not."""
    groups = sorted(draw.sample(sorted(WORDS), draw.choice((0, 1, 1, 2))))
    names = " ".join(WORDS[group] for group in groups)
    if not groups:
        return f"{draw.choice(('오늘', '어제'))} {draw.choice(('날씨', '점심', '영화'))}", ["clean"], ""
    if draw.random() < 0.4:
        return f"{names} 친절 {draw.choice(('오늘', '어제'))}", ["clean"], ", ".join(groups)
    return f"{names} 역겹다 {draw.choice(('오늘', '어제'))}", [label for label in LABELS if label in groups], ", ".join(groups)


def make_table(folder: Path, rows: Mapping[str, int], seed: int = 0) -> CleanedTable:
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = random.Random(seed)
    made = []
    for split, count in rows.items():
        for number in range(count):
            said, labels, names = comment(draw)
            made.append({"id": f"{split}#{number:05}", "text": said, "labels": labels, "names": names, "split": split})
    folder.mkdir(parents=True)
    schema = pa.schema(
        [("id", pa.string()), ("text", pa.string()), ("labels", pa.list_(pa.string())), ("names", pa.string()), ("split", pa.string())]
    )
    pq.write_table(pa.Table.from_pylist(made, schema=schema), folder / "part-0.parquet")
    return CleanedTable("hate_speech", "v1", "0" * 64, folder, len(made))


def make_context(table: CleanedTable, workdir: Path, variant: str = "anew", **parameters: Any) -> TrainContext:
    return TrainContext(
        system="hate_speech",
        variant=variant,
        table=table,
        config=CONFIG,
        parameters=training.parameters(CONFIG, variant, {**({} if variant == "linear" else TINY), **parameters}),
        seed=7,
        fingerprint="f" * 64,
        workdir=workdir,
        log_dir=workdir / "logs",
        log_metrics=lambda values, step: None,
        threads=1,
    )


@dataclasses.dataclass
class Made:
    context: TrainContext
    trained: Trained
    bundle: Path


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> CleanedTable:
    return make_table(tmp_path_factory.mktemp("table") / "rows", {"train": 500, "validation": 100, "holdout": 150})


@pytest.fixture(scope="module")
def made(table: CleanedTable, tmp_path_factory: pytest.TempPathFactory) -> Made:
    work = tmp_path_factory.mktemp("work")
    context = make_context(table, work / "run")
    trained = training.train(context)
    training.export(trained, context, work / "bundle")
    return Made(context, trained, work / "bundle")


def test_every_parameter_has_a_default_and_a_type() -> None:
    for variant in training.VARIANTS:
        found = training.parameters(CONFIG, variant)
        assert set(found) == set(training.BASELINE_PARAMETERS if variant == "linear" else training.BERT_PARAMETERS)
        assert training.resolve(CONFIG, variant, found).flat == found
    gentle, anew = (training.parameters(CONFIG, variant)["learning_rate"] for variant in ("from_champion", "anew"))
    assert gentle < anew


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimizer_type": "lion"}, r"지원되지 않는 옵티마이저 타입입니다\.: lion"),
        ({"dataset": "imdb"}, r"지원되지 않는 데이터셋 타입입니다\.: imdb .*unsmile"),
        ({"monitor": "bleu"}, "monitor: Input should be 'lrap', 'f1', 'loss' or 'accuracy'"),
        ({"epoch": 3}, "unknown parameter epoch; known are"),
    ],
)
def test_bad_parameters_are_refused_with_the_choices(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        training.resolve(CONFIG, "anew", given)


def test_importing_the_system_loads_nothing_heavy() -> None:
    code = (
        "import sys, mlops_assets.systems.hate_speech.training;"
        "print([m for m in ('torch', 'transformers', 'onnxruntime', 'mlflow', 'pyspark', 'pandas', 'numpy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout.strip() == "[]"


def test_it_learns_several_labels_a_comment(made: Made) -> None:
    assert made.trained.metrics["validation_lrap"] > 0.95
    answers = training.load_predictor(made.bundle, 1).predict(["노인 스님 역겹다 오늘", "노인 친절 오늘", "부산 역겹다 어제"])
    assert [answer["labels"] for answer in answers] == [["연령", "종교"], ["clean"], ["지역"]]
    assert answers[0]["label"] == "연령, 종교" and set(answers[0]["probs"]) == set(LABELS)


def test_the_bundle_has_its_thresholds_and_no_code(made: Made) -> None:
    assert set(files_of(made.bundle)) == {"bundle.json", "golden.json", "model.onnx", "tokenizer.json"}
    spec = json.loads((made.bundle / "bundle.json").read_text(encoding="utf-8"))
    assert spec["kind"] == "text-labels" and spec["fallback"] == "clean" and set(spec["thresholds"]) == set(LABELS) - {"clean"}
    assert len({spec["thresholds"][label] for label in WORDS}) > 1, "each label has its own"


def test_what_is_measured_is_what_is_served(made: Made) -> None:
    found = training.evaluate(made.bundle, made.context.table, 1)
    rows = training.rows_of(made.context.table, "holdout")
    answers = training.load_predictor(made.bundle, 1).predict(rows.texts)
    right = [answer["labels"] == labels for answer, labels in zip(answers, rows.labels, strict=True)]
    assert list(found.correct) == right and found.metrics["accuracy"] == pytest.approx(sum(right) / len(rows))
    assert {"lrap", "f1", "micro_f1", "precision", "recall", "loss", "ece", "f1_any", "recall_any", "f1_연령"} <= set(found.metrics)
    rates = {"false_flag_rate", "false_flag_rate_named", "false_flag_rate_neutral", "false_flag_rate_at_recall_90"}
    assert {name for name in found.metrics if name.startswith("false_flag_rate")} == rates <= set(found.support)
    assert {row["label"] for row in found.tables["labels"]} == set(LABELS)
    assert [picture.title for picture in found.pictures] == ["precision_recall", "calibration"]
    assert all(len(picture.png) <= 64 * 1024 for picture in found.pictures)
    named = {"연령", "지역", "종교"}
    clean = [(row, text) for row, text in enumerate(rows.texts) if rows.labels[row] == ["clean"] and any(w in text for w in WORDS.values())]
    flags = {row["names"]: row for row in found.tables["false_flags"]}
    assert set(flags) == {*named, "all"} and flags["all"]["rows"] == len(clean)
    flagged = sum(answers[row]["labels"] != ["clean"] for row, _ in clean)
    assert found.metrics["false_flag_rate_named"] == pytest.approx(flagged / len(clean)) and found.support["false_flag_rate_named"] == len(
        clean
    )
    all_clean = [row for row, labels in enumerate(rows.labels) if labels == ["clean"]]
    wrongly = sum(answers[row]["labels"] != ["clean"] for row in all_clean)
    assert found.metrics["false_flag_rate"] == pytest.approx(wrongly / len(all_clean)) and len(all_clean) > len(clean)
    assert set(found.trivial) == {"flags everything", "flags nothing"}
    assert (
        found.metrics["f1_any"]
        > found.trivial["flags everything"]["f1_any"]
        == pytest.approx(2 * (len(rows) - len(all_clean)) / (2 * len(rows) - len(all_clean)))
    )
    lengths = [figures["rows"] for name, figures in found.slices.items() if "characters" in name]
    assert sum(lengths) == len(rows)


def test_a_model_that_flags_every_group_name_is_seen(made: Made) -> None:
    """Control: the rate is 1 for one that says the group's label whenever its name occurs."""
    rows = training.rows_of(made.context.table, "holdout")
    truth = training.truth_of(rows, LABELS)
    said = np.array([[WORDS.get(label, "\0") in text for label in LABELS] for text in rows.texts])
    said[:, LABELS.index("clean")] = ~said.any(axis=1)
    assert training.false_flags(made.context.table, said, truth, LABELS, LABELS.index("clean"))[-1]["rate"] == 1.0


def test_curves_of_every_label_are_in_tensorboard(made: Made) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(made.context.log_dir))
    found.Reload()
    assert {f"validation/{label}" for label in LABELS} <= {tag.removesuffix("/pr_curves") for tag in found.Tags()["tensors"]}


def test_a_champion_is_gone_on_from(made: Made, tmp_path: Path) -> None:
    """One step at a rate of nearly nothing: it answers as its parent does, where one from scratch would guess."""
    context = make_context(made.context.table, tmp_path, "from_champion", epochs=0.03, learning_rate=1e-9)
    child = training.train(dataclasses.replace(context, parent=made.trained.folder))
    assert child.metrics["validation_lrap"] == pytest.approx(made.trained.metrics["validation_lrap"], abs=1e-6)
    scratch = training.train(dataclasses.replace(context, workdir=tmp_path / "scratch"))
    assert scratch.metrics["validation_lrap"] < 0.8


@pytest.fixture(scope="module")
def baseline(table: CleanedTable, tmp_path_factory: pytest.TempPathFactory) -> Made:
    work = tmp_path_factory.mktemp("linear")
    context = make_context(table, work / "run", "linear")
    trained = training.train(context)
    training.export(trained, context, work / "bundle")
    return Made(context, trained, work / "bundle")


def test_the_baseline_says_several_labels_a_comment_and_is_measured_alike(baseline: Made, made: Made) -> None:
    assert training.SYSTEM.baseline == training.SYSTEM.variants[0] == "linear"
    assert set(files_of(baseline.bundle)) == {"bundle.json", "golden.json", "linear.safetensors"}
    answers = training.load_predictor(baseline.bundle, 1).predict(["노인 스님 역겹다 오늘", "노인 친절 오늘", "부산 역겹다 어제"])
    assert [answer["labels"] for answer in answers] == [["연령", "종교"], ["clean"], ["지역"]]
    ours, theirs = (training.evaluate(one.bundle, baseline.context.table, 1) for one in (baseline, made))
    assert set(ours.metrics) == set(theirs.metrics) and ours.holdout_sha256 == theirs.holdout_sha256 and ours.metrics["lrap"] > 0.95


def test_clean_comments_are_learned_with_other_groups_names_too() -> None:
    rows = Rows(["a", "b", "c"], ["노인 친절", "노인 역겹다", "오늘 날씨"], [["clean"], ["연령"], ["clean"]])
    found = training.with_swaps(rows, CONFIG.dataset, 3, 1)
    assert (found.ids[:3], found.texts[:3], found.labels[:3]) == (rows.ids, rows.texts, rows.labels) and len(found) == 6
    words = {word for words in CONFIG.dataset.groups.values() for word in words}
    assert all(text.split()[0] in words and text.endswith(" 친절") for text in found.texts[3:]) and found.labels[3:] == [["clean"]] * 3
    assert found == training.with_swaps(rows, CONFIG.dataset, 3, 1) and training.with_swaps(rows, CONFIG.dataset, 0, 1) == rows
    with pytest.raises(SettingsError, match="swaps"):
        training.resolve(CONFIG, "linear", {"swaps": -1})


def test_the_cut_keeps_to_its_limit(table: CleanedTable) -> None:
    """Of scores that tell little, under limits that bind; control: without a limit nearly everything is flagged."""
    random_ = np.random.default_rng(3)
    hateful = random_.random(2000) < 0.75
    suspicion = np.clip(0.2 * hateful + random_.random(2000) * 0.8, 0, 1)
    for limit in (0.05, 0.2, 0.35):
        cut = metrics.best_cut(suspicion, hateful, limit)
        assert limit - 0.02 < (suspicion[~hateful] >= cut).mean() <= limit
    assert (suspicion[~hateful] >= metrics.best_cut(suspicion, hateful, 0.999)).mean() > 0.6
    assert metrics.best_cut(suspicion, np.ones(2000, bool), 0.3) == 0.5


def test_a_first_flag_that_is_wrong_leaves_nothing_flagged() -> None:
    suspicion, hateful = np.array([0.9, 0.8, 0.7]), np.array([False, True, True])
    assert (suspicion < metrics.best_cut(suspicion, hateful, 0.5)).all()


def test_false_flags_at_a_recall_are_those_of_the_highest_cut_that_reaches_it() -> None:
    suspicion = np.array([0.9, 0.8, 0.7, 0.6, 0.95, 0.65, 0.1])
    hateful = np.array([True, True, True, True, False, False, False])
    assert metrics.false_flags_at_recall(suspicion, hateful, 0.75) == pytest.approx(1 / 3)
    assert metrics.false_flags_at_recall(suspicion, hateful, 0.9) == pytest.approx(2 / 3)


def test_neutral_sentences_are_in_no_training(baseline: Made) -> None:
    from mlops_assets.systems.hate_speech.neutral import sentences

    assert len(set(sentences())) == len(sentences()) > 100
    found = training.evaluate(baseline.bundle, baseline.context.table, 1)
    said = training.load_predictor(baseline.bundle, 1).predict(sentences())
    flagged = [answer["labels"] != ["clean"] for answer in said]
    assert found.metrics["false_flag_rate_neutral"] == pytest.approx(sum(flagged) / len(flagged))


def test_int8_that_says_other_labels_is_not_kept(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlops_assets.training import export

    monkeypatch.setattr(export, "int8_quality_of_labels", lambda *given: export.Int8Quality(1000, 0.98, 0.0))
    training.export(made.trained, made.context, tmp_path / "bundle")
    assert json.loads((tmp_path / "bundle" / "bundle.json").read_text(encoding="utf-8"))["precision"] == "fp32"


def test_int8_is_judged_by_what_is_said_and_by_what_is_lost() -> None:
    from mlops_assets.training.export import int8_quality_of_labels

    random_ = np.random.default_rng(0)
    truth = (random_.random((400, 5)) < 0.3).astype(np.float32)
    fp32 = np.where(truth > 0, 3.0, -3.0)
    same = int8_quality_of_labels(fp32, fp32 + 0.1, truth, lambda logits: logits > 0)
    assert same.good and same.equal_labels == 1 and same.accuracy_loss == 0
    flipped = fp32.copy()
    flipped[:12] *= -1
    worse = int8_quality_of_labels(fp32, flipped, truth, lambda logits: logits > 0)
    assert not worse.good and worse.accuracy_loss > 0.003


def test_worst_errors_are_the_surest_wrong_answers() -> None:
    rows = Rows(["a", "b", "c"], ["가" * 300, "나", "다"], [["연령"], ["clean"], ["지역"]])
    truth = training.truth_of(rows, LABELS)
    probabilities = np.where(truth > 0, 0.9, 0.1)
    probabilities[1] = 1 - probabilities[1]
    probabilities[0, LABELS.index("연령")] = 0.3
    found = training.worst_errors(rows, probabilities, truth, probabilities > 0.5, LABELS)
    assert [row["id"] for row in found] == ["b", "a"] and len(found[1]["text"]) == 200
    assert found[1]["predicted"] == "" and found[1]["labels"] == "연령"


def test_no_holdout_rows_is_an_error(made: Made, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no holdout rows"):
        training.evaluate(made.bundle, make_table(tmp_path / "rows", {"train": 2, "validation": 2}), 1)


# --- the figures themselves -----------------------------------------------------------------------------------------------------


def naive_lrap(scores: np.ndarray, truth: np.ndarray) -> float:
    """As its definition says, label by label."""
    found = []
    for row, true in zip(scores, truth, strict=True):
        parts = [
            sum(row[k] >= row[label] for k in np.flatnonzero(true)) / sum(value >= row[label] for value in row)
            for label in np.flatnonzero(true)
        ]
        found.append(float(np.mean(parts)) if parts else 1.0)
    return float(np.mean(found))


def test_lrap_is_what_its_definition_says() -> None:
    random_ = np.random.default_rng(1)
    truth = (random_.random((200, 6)) < 0.3).astype(int)
    scores = random_.random((200, 6)).round(1)  # ties among them
    assert metrics.ranking_precisions(scores, truth).mean() == pytest.approx(naive_lrap(scores, truth))
    assert metrics.ranking_precisions(truth.astype(float), truth).mean() == 1.0


def test_thresholds_are_the_best_there_are() -> None:
    random_ = np.random.default_rng(2)
    truth = (random_.random((300, 3)) < 0.2).astype(int)
    truth[:, 2] = 0
    scores = np.clip(0.3 * truth + random_.random((300, 3)) * 0.6, 0, 1)
    found = metrics.best_thresholds(scores, truth)
    for label in range(2):
        f1 = {
            t: metrics.precision_recall_f1(metrics.hits(scores[:, [label]] >= t, truth[:, [label]]))[2][0]
            for t in (found[label], *scores[:, label])
        }
        assert f1[found[label]] == pytest.approx(max(f1.values()))
    assert found[2] == 0.5, "a label that never occurs"


def test_a_probability_that_is_no_number_makes_every_figure_nan() -> None:
    broken = np.array([[0.5, np.nan]])
    assert all(np.isnan(value) for value in metrics.several_labels(broken, np.array([[1, 0]]), np.array([[True, False]])).values())
