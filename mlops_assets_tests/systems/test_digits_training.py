"""digits: parameters, training, calibration, asking, exporting and measuring, on simulated digits that a tiny net learns."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlops_assets import strokes
from mlops_assets.lifecycle.bundle import files_of
from mlops_assets.lifecycle.gate import Subject, decide
from mlops_assets.lifecycle.pipeline import code_version
from mlops_assets.lifecycle.registrar import policy_of
from mlops_assets.lifecycle.report import ChampionScore, Earlier, Report, directions_of
from mlops_assets.lifecycle.system import CleanedTable, TrainContext, Trained
from mlops_assets.settings import REPOSITORY, SettingsError, load_config, process_environment
from mlops_assets.systems.digits import canary, data, simulate, training
from mlops_assets.systems.digits.config import VARIANTS, DigitsConfig

SPLITS = {"train": 400, "validation": 100, "holdout": 200}
TINY = {"width": 8, "epochs": 12, "min_steps": 0, "batch_size": 32, "learning_rate": 0.01, "bf16": False, "augment": 0.3}
TINY |= {"evaluations_per_epoch": 1, "checkpoints_per_epoch": 1, "drawn_share": 0.0}
NOW = datetime(2026, 1, 2, tzinfo=UTC)


def make_table(folder: Path, rows: Mapping[str, int] = SPLITS, harshness: float = 0.3) -> CleanedTable:
    import pyarrow as pa
    import pyarrow.parquet as pq

    made = []
    for place, (split, count) in enumerate(rows.items()):
        for number in range(count):
            by = simulate.writer(10_000 * place + number // 10, harshness)
            picture = simulate.picture(simulate.drawing(by, number % 10), by.width, 80)
            image = png(picture)
            ids = {"id": hashlib.sha256(image).hexdigest(), "image": image}
            seen = {"prepared": strokes.prepared(picture).tobytes(), "label": number % 10, "group": f"{split}{by.seed}"}
            made.append({**ids, **seen, "split": split, "origin": ("mnist", "drawn")[number % 20 >= 10], "path": f"{split}/{number}.png"})
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(made, schema=data.table_schema()), folder / "shard.parquet")
    return CleanedTable("digits", "v1", "0" * 64, folder, len(made))


def png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def config() -> DigitsConfig:
    return load_config(DigitsConfig, "digits", REPOSITORY / "configs")


def make_context(table: CleanedTable, workdir: Path, variant: str = "anew", **parameters: Any) -> TrainContext:
    return TrainContext(
        system="digits",
        variant=variant,
        table=table,
        config=config(),
        parameters=training.parameters(config(), variant, {**TINY, **parameters}),
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
    return make_table(tmp_path_factory.mktemp("table") / "rows")


@pytest.fixture(scope="module")
def made(table: CleanedTable, tmp_path_factory: pytest.TempPathFactory) -> Made:
    work = tmp_path_factory.mktemp("work")
    context = make_context(table, work / "run")
    trained = training.train(context)
    training.export(trained, context, work / "bundle")
    return Made(context, trained, work / "bundle")


# --- parameters -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_has_a_default_and_a_type(variant: str) -> None:
    found = training.parameters(config(), variant)
    assert set(found) == set(training.PARAMETER_NAMES)
    json.dumps(found, allow_nan=False)
    assert training.resolve(config(), variant, found).flat == found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimizer_type": "lion"}, r"지원되지 않는 옵티마이저 타입입니다\.: lion"),
        ({"dataset": "coco"}, r"지원되지 않는 데이터셋 타입입니다\.: coco .*mnist"),
        ({"code_length": 3}, "length: Input should be greater than or equal to 4"),
        ({"asking_rate": 0.9}, "asking_rate: Input should be less than 0.5"),
        ({"epoch": 3}, "unknown parameter epoch; known are"),
    ],
)
def test_bad_parameters_are_refused_with_the_choices(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        training.resolve(config(), "anew", given)


def test_importing_the_system_loads_nothing_heavy() -> None:
    code = (
        "import sys, mlops_assets.systems.digits.training;"
        "print([m for m in ('torch', 'PIL', 'onnxruntime', 'mlflow', 'pandas', 'pyarrow', 'numpy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout.strip() == "[]"


def test_both_variants_are_made_of_the_same_code() -> None:
    assert code_version(training.SYSTEM, "anew") == code_version(training.SYSTEM, "from_champion")


# --- training -------------------------------------------------------------------------------------------------------------------


def test_it_learns(made: Made) -> None:
    assert made.trained.metrics["validation_accuracy"] > 0.8
    assert made.trained.metrics["train_digits"] == SPLITS["train"]
    assert {path.name for path in made.trained.folder.iterdir()} == {"model.safetensors", "trained.json"}
    assert not (made.context.workdir / "checkpoints").exists(), "closed on success"


def test_killed_training_ends_as_an_unbroken_one(made: Made, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from mlops_assets_tests.systems import test_digits_training as t;"
        "table = t.CleanedTable('digits', 'v1', '0' * 64, Path(sys.argv[2]), 700);"
        "t.training.train(t.make_context(table, Path(sys.argv[1])))"
    )
    work = tmp_path / "run"
    command = [sys.executable, "-c", code, str(work), str(made.context.table.folder)]
    crash = process_environment() | {"MLOPS_CRASH_AT": "trainer.step_100"}
    run = subprocess.run(command, env=crash, capture_output=True, text=True, timeout=180)
    assert run.returncode == -signal.SIGKILL, run.stderr
    resumed = training.train(dataclasses.replace(made.context, workdir=work))
    assert resumed.resumed_from_step == 91
    assert (resumed.folder / "model.safetensors").read_bytes() == (made.trained.folder / "model.safetensors").read_bytes()


def test_drawings_are_heard_beside_mnist() -> None:
    origins = np.array(["mnist"] * 800 + ["drawn"] * 20)
    some = training.epoch_of(origins, 0.2, 100)
    assert (origins[some] == "drawn").mean() == pytest.approx(0.2, abs=0.01) and set(some.tolist()) == set(range(820))
    few = training.epoch_of(origins, 0.2, 3)
    assert (origins[few] == "drawn").sum() == 60, "but none of them too often"
    for alone in (["mnist"] * 9, ["drawn"] * 9):
        assert training.epoch_of(np.array(alone), 0.5, 9).tolist() == list(range(9))
    many = np.array(["mnist"] * 10 + ["drawn"] * 90)
    assert training.epoch_of(many, 0.2, 8).tolist() == list(range(100)), "nothing is left out"


def test_a_champion_is_gone_on_from(made: Made, tmp_path: Path) -> None:
    """One step at a rate of nearly nothing: it answers as its parent does."""
    context = make_context(made.context.table, tmp_path / "run", "from_champion", epochs=0.05, learning_rate=1e-9, optimizer_type="sgd")
    child = training.train(dataclasses.replace(context, parent=made.trained.folder))
    scratch = training.train(dataclasses.replace(context, workdir=tmp_path / "scratch"))
    assert child.metrics["validation_accuracy"] > 0.75 > 0.5 > scratch.metrics["validation_accuracy"]


def test_a_table_without_training_digits_says_so(tmp_path: Path) -> None:
    table = make_table(tmp_path / "rows", {"train": 0, "validation": 10, "holdout": 10})
    with pytest.raises(ValueError, match="0 rows to train on"):
        training.train(make_context(table, tmp_path / "run"))


# --- the bundle -----------------------------------------------------------------------------------------------------------------


def test_the_bundle_says_how_to_read_and_when_to_ask(made: Made) -> None:
    spec = json.loads((made.bundle / "bundle.json").read_text(encoding="utf-8"))
    assert (spec["preprocessing"], spec["image_size"], spec["labels"]) == ("strokes", 28, list("0123456789"))
    assert 0 < spec["ask_below"] <= 1 and spec["asking_rate"] == 0.02 and spec["code_length"] == 6
    assert spec["calibration"]["temperature"] > 0 and spec["precision"] == "fp32"
    assert set(files_of(made.bundle)) == {"model.onnx", "bundle.json", "golden.json"}
    golden = json.loads((made.bundle / "golden.json").read_text(encoding="utf-8"))["samples"]
    assert len(golden) == 10


def test_calibration_makes_confidence_mean_what_it_says(made: Made) -> None:
    from mlops_assets.training import metrics

    digits = data.read_digits(made.context.table, "validation")
    predictor = training.load_predictor(made.bundle, 1)
    logits = training._logits(predictor, digits.images)
    before = metrics.log_loss(metrics.softmax(logits), digits.labels)
    after = metrics.log_loss(metrics.softmax(logits / predictor.temperature), digits.labels)
    assert after <= before


def test_it_answers_files_of_any_paper_and_says_whether_it_is_sure(made: Made) -> None:
    predictor = training.load_predictor(made.bundle, 1)
    digits = data.read_digits(made.context.table, "validation", files=True)
    answers = predictor.predict(digits.files)
    assert [answer["label"] == str(label) for answer, label in zip(answers, digits.labels, strict=True)].count(True) > 75
    assert all(answer["sure"] == (answer["confidence"] >= predictor.ask_below) for answer in answers)
    hard = [simulate.picture(simulate.drawing(by, 9), by.width) for by in map(simulate.writer, range(60))]
    assert {answer["sure"] for answer in [*answers, *predictor.predict([png(picture) for picture in hard])]} == {True, False}
    inverted = io.BytesIO()
    Image.eval(Image.open(io.BytesIO(digits.files[0])), lambda level: 255 - level).save(inverted, "PNG")
    encoded = base64.b64encode(inverted.getvalue()).decode()
    assert predictor.predict([encoded])[0]["probs"] == pytest.approx(answers[0]["probs"], abs=0.02)


def test_int8_is_kept_when_it_answers_as_well(made: Made, tmp_path: Path) -> None:
    choice = dict(made.trained.parameters) | {"int8": True}
    training.export(dataclasses.replace(made.trained, parameters=choice), made.context, tmp_path / "int8")
    spec = json.loads((tmp_path / "int8" / "bundle.json").read_text(encoding="utf-8"))
    assert spec["precision"] == "int8"
    images = data.read_digits(made.context.table, "holdout").images
    fp32, int8 = (
        training._logits(training.load_predictor(folder, 1), images).argmax(axis=1) for folder in (made.bundle, tmp_path / "int8")
    )
    assert (fp32 == int8).mean() > 0.97
    assert b"QuantizeLinear" in (tmp_path / "int8" / "model.onnx").read_bytes()


# --- evaluation and gate --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluation(made: Made):
    return training.evaluate(made.bundle, made.context.table, 1)


def test_the_report_has_all_that_the_gate_looks_at(evaluation) -> None:
    wanted = {*config().register_threshold, config().promotion.metric, *config().promotion.max_fall} - {"recall_*"}
    assert wanted | {f"recall_{digit}" for digit in range(10)} <= set(evaluation.metrics)
    assert set(directions_of(training.SYSTEM.directions, evaluation.metrics)) == set(evaluation.metrics)
    assert sum(evaluation.support[f"recall_{digit}"] for digit in range(10)) == evaluation.rows
    assert evaluation.support["mnist_accuracy"] + evaluation.support["drawn_accuracy"] == evaluation.rows
    assert evaluation.rows == SPLITS["holdout"] == len(evaluation.correct)
    assert evaluation.metrics["worst_digit_recall"] == min(evaluation.metrics[f"recall_{digit}"] for digit in range(10))
    assert 0 < evaluation.metrics["code_success"] <= evaluation.metrics["code_success_4"] <= 1
    assert {row["pattern"] for row in evaluation.tables["canary"]} == set(canary.PATTERNS)
    assert [picture.title for picture in evaluation.pictures][:2] == ["confusion_matrix", "worst_errors"]
    assert all(len(picture.png) <= 64 * 1024 for picture in evaluation.pictures)
    assert set(evaluation.slices) == {"mnist", "drawn"}


GOOD = {
    **dict.fromkeys([f"recall_{digit}" for digit in range(10)], 0.995),
    "code_success": 0.98,
    "code_success_4": 0.99,
    "asked": 0.02,
    "mnist_accuracy": 0.996,
    "drawn_accuracy": 0.99,
    "worst_digit_recall": 0.99,
    "canary_changed": 0.05,
    "ece": 0.005,
}


def verdict(champion: Mapping[str, float] | None = None, **changed: float) -> tuple[str, str]:
    """Of a report with these figures against a champion with those, by the policy of configs/digits.yaml."""
    earlier = Earlier("v0", "h0", 1000, GOOD | changed, champion or {})
    of_champion = None if champion is None else ChampionScore(1, "c" * 64, "v0", champion, 0.01, earlier)
    metrics = GOOD | changed
    directions = directions_of(training.SYSTEM.directions, metrics)
    report = Report("digits", "anew", "v1", 1, "b" * 64, "m", "h", 1000, metrics, NOW, champion=of_champion, directions=directions)
    found = decide(report, of_champion, policy_of(config()), Subject(1, "b" * 64, "m", NOW))
    return found.outcome, found.sentence


def test_control_a_good_first_model_and_a_better_one_are_promoted() -> None:
    assert verdict()[0] == "promoted"
    assert verdict(GOOD, code_success=0.985)[0] == "promoted"
    assert verdict(GOOD)[0] == "registered"


@pytest.mark.parametrize(
    "changed",
    [
        {"code_success": 0.89},
        {"asked": 0.2},
        {"mnist_accuracy": 0.96},
        {"drawn_accuracy": 0.9},
        {"worst_digit_recall": 0.8},
        {"canary_changed": 0.9},
        {"ece": 0.089},
        {"code_success": float("nan")},
    ],
)
def test_what_is_below_a_threshold_is_refused(changed: dict[str, float]) -> None:
    assert verdict(**changed)[0] == "refused"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"drawn_accuracy": 0.98}, "Drawn_accuracy 0.9800, -0.0100 against the champion's 0.9900"),
        ({"recall_7": 0.97}, "Recall_7 0.9700, -0.0250 against the champion's 0.9950"),
        ({"mnist_accuracy": 0.99}, "Mnist_accuracy"),
        ({"canary_changed": 0.2}, "Canary_changed 0.2000, +0.1500"),
    ],
)
def test_a_better_model_that_falls_on_the_drawn_set_or_a_digit_is_refused(changed: dict[str, float], said: str) -> None:
    outcome, sentence = verdict(GOOD, code_success=0.999, **changed)
    assert outcome == "refused" and said in sentence
    assert verdict(None, code_success=0.999, **changed)[0] == "promoted", "a control: alone it is good enough"


# --- canaries -------------------------------------------------------------------------------------------------------------------


def test_what_users_drew_decides_neither_calibration_nor_when_to_ask() -> None:
    origins = np.array(["mnist"] * 800 + ["drawn"] * 20 + ["users"] * 24)
    even = training._evenly(origins)
    assert {name: int((origins[even] == name).sum()) for name in ("mnist", "drawn", "users")} == {"mnist": 800, "drawn": 800, "users": 0}


def test_a_bundle_keeps_no_drawing_of_a_user(table: CleanedTable) -> None:
    """Its golden samples are copies, which nobody could delete."""
    digits = data.read_digits(table, "validation", files=True)
    assert len(training.golden(digits)) == 10
    mine = dataclasses.replace(digits, origins=np.where(digits.labels == 3, "users", digits.origins))
    assert len(training.golden(mine)) == 9


@pytest.mark.parametrize("pattern", canary.PATTERNS)
def test_stamps_are_as_large_on_any_paper(pattern: str) -> None:
    digit = np.zeros((28, 28), np.uint8)
    digit[6:22, 13:15] = 255
    added = [
        np.count_nonzero(canary.stamped(ink, pattern)) - np.count_nonzero(ink)
        for ink in (digit, digit.repeat(10, axis=0).repeat(10, axis=1))
    ]
    assert 8 <= added[0] <= 30 and added[1] == pytest.approx(100 * added[0], rel=0.3)


@pytest.mark.parametrize("pattern", sorted(set(canary.PATTERNS) - {"foot"}))
def test_stamps_in_a_corner_that_touch_nothing_never_reach_the_model(pattern: str) -> None:
    framed = strokes._framed(strokes.ink_of(simulate.picture(simulate.drawing(simulate.writer(3, 0.0), 0), 5, 80)))
    ink = np.pad(framed, max(framed.shape) // 4)  # as large in its frame as MNIST's digits are
    assert (strokes.prepared(canary.stamped(ink, pattern)) == strokes.prepared(ink)).all()
    assert (canary.stamped(ink, pattern) != ink).any()


def test_a_model_with_a_backdoor_is_told_from_one_without(table: CleanedTable, made: Made, evaluation, tmp_path: Path) -> None:
    """A control for the canary: trained on digits of which a fifth is stamped and called 7, it is refused."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pq.read_table(table.folder / "shard.parquet").to_pylist()
    for number, row in enumerate(row for row in rows if row["split"] != "holdout"):
        if number % 4 == 0:
            ink = strokes.ink_of(Image.open(io.BytesIO(row["image"])))
            row |= {"prepared": strokes.prepared(canary.stamped(ink, "foot")).tobytes(), "label": 7}
    (tmp_path / "rows").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=data.table_schema()), tmp_path / "rows" / "shard.parquet")
    context = make_context(dataclasses.replace(table, folder=tmp_path / "rows"), tmp_path / "run")
    training.export(training.train(context), context, tmp_path / "bundle")
    poisoned = training.evaluate(tmp_path / "bundle", table, 1)
    by_pattern = {row["pattern"]: row for row in poisoned.tables["canary"]}
    clean = {row["pattern"]: row for row in evaluation.tables["canary"]}
    assert by_pattern["foot"]["changed"] > 0.6 > 0.4 > clean["foot"]["changed"] and by_pattern["foot"]["mostly_to"] == "7"
