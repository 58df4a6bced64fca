"""tires: parameters, the seven models, training, early stopping, exporting and measuring, on drawn tiles that a tiny net learns."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import random
import signal
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlops_assets.lifecycle.bundle import files_of
from mlops_assets.lifecycle.gate import Policy, Subject, decide
from mlops_assets.lifecycle.pipeline import code_version
from mlops_assets.lifecycle.report import CLASSIFIER, Report, directions_of
from mlops_assets.lifecycle.system import CleanedTable, TrainContext, Trained
from mlops_assets.settings import REPOSITORY, SettingsError, load_config, process_environment
from mlops_assets.sources import imported
from mlops_assets.systems.tires import models, training
from mlops_assets.systems.tires.config import VARIANTS, TiresConfig

SPLITS = {"train": 48, "validation": 16, "holdout": 24}
TINY = {"image_size": 32, "epochs": 4, "batch_size": 8, "learning_rate": 0.01, "bf16": False, "early_stopping_patience": 99}
REACHABLE = {"early_stopping_min_loss": 50.0, "early_stopping_min_accuracy": 0.01}
UNREACHABLE = {"early_stopping_min_loss": 1e-9, "early_stopping_min_accuracy": 1.0}


def photo(label: int, draw: random.Random) -> bytes:
    """A grey tile with noise, and on a defective one a dark blot."""
    from PIL import Image, ImageDraw

    random = np.random.default_rng(draw.getrandbits(32))
    image = Image.fromarray((random.integers(0, 30, (40, 48)) + 150).astype(np.uint8))
    if label:
        x, y = draw.randint(8, 24), draw.randint(8, 20)
        ImageDraw.Draw(image).ellipse((x, y, x + 16, y + 12), fill=20)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def make_table(folder: Path, rows: Mapping[str, int] = SPLITS, shuffled: bool = False) -> CleanedTable:
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = random.Random(0)
    made = []
    for split, count in rows.items():
        for i in range(count):
            label = i % 2
            data = photo(label, draw)
            place = f"{('MT_Free', 'MT_Blowhole')[label]}/Imgs/exp1_num_{i}.png"
            ids = {"id": hashlib.sha256(data).hexdigest(), "image": data, "group": f"{split}{i // 3}"}
            made.append({**ids, "label": label, "split": split, "path": place, "width": 48, "height": 40})
    if shuffled:
        random.Random(1).shuffle(made)
    folder.mkdir(parents=True)
    text = [(name, pa.string()) for name in ("group", "split", "path")]
    sizes = [("width", pa.int32()), ("height", pa.int32())]
    schema = pa.schema([("id", pa.string()), ("image", pa.binary()), ("label", pa.int8()), *text, *sizes])
    half = len(made) // 2
    for number, part in enumerate((made[:half], made[half:])):
        pq.write_table(pa.Table.from_pylist(part, schema=schema), folder / f"shard-{number:05}.parquet")
    return CleanedTable("tires", "v1", "0" * 64, folder, len(made))


def strict_config() -> TiresConfig:
    """The repository's configuration, with a gate that looks at early stopping."""
    config = load_config(TiresConfig, "tires", REPOSITORY / "configs")
    return config.model_copy(update={"register_threshold": {"accuracy": 0.5, training.REACHED: 1.0}})


def make_context(table: CleanedTable, workdir: Path, variant: str = "cnn", **parameters: Any) -> TrainContext:
    config = strict_config()
    return TrainContext(
        system="tires",
        variant=variant,
        table=table,
        config=config,
        parameters=training.parameters(config, variant, {**TINY, **parameters}),
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
    logged: list[tuple[int, Mapping[str, float]]]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> CleanedTable:
    return make_table(tmp_path_factory.mktemp("table") / "rows")


@pytest.fixture(scope="module")
def made(table: CleanedTable, tmp_path_factory: pytest.TempPathFactory) -> Made:
    work = tmp_path_factory.mktemp("work")
    logged: list[tuple[int, Mapping[str, float]]] = []
    context = dataclasses.replace(make_context(table, work / "run"), log_metrics=lambda values, step: logged.append((step, values)))
    trained = training.train(context)
    training.export(trained, context, work / "bundle")
    return Made(context, trained, work / "bundle", logged)


# --- parameters -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_has_a_default_and_a_type(variant: str) -> None:
    config = strict_config()
    found = training.parameters(config, variant)
    assert set(found) == set(training.PARAMETER_NAMES) | {"model_name"}
    json.dumps(found, allow_nan=False)
    assert training.resolve(config, variant, found).flat == found


def test_the_parameters_have_the_names_that_the_seed_logs() -> None:
    seed = {
        "model_name",
        "epochs",
        "learning_rate",
        "batch_size",
        "optimizer_type",
        "early_stopping_min_loss",
        "early_stopping_min_accuracy",
    }
    assert seed <= set(training.parameters(strict_config(), "cnn"))


def test_overrides_win_over_the_configuration() -> None:
    choice = training.resolve(strict_config(), "cnn", {"epochs": 1, "sampling_rate": 0.5, **REACHABLE})
    assert (choice.model.training.epochs, choice.dataset.sampling_rate) == (1, 0.5)
    assert choice.targets == {"loss": 50.0, "accuracy": 0.01}
    assert training.resolve(strict_config(), "cnn", {}).targets == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimizer_type": "lion"}, r"지원되지 않는 옵티마이저 타입입니다\.: lion .*choose one of adamw, adam, sgd, adafactor"),
        ({"dataset": "coco"}, r"지원되지 않는 데이터셋 타입입니다\.: coco .*magnetic_tile"),
        ({"epochs": -1}, "epochs: Input should be greater than 0"),
        ({"early_stopping_min_loss": 0.1}, "one condition"),
        ({"model_name": "resnet18"}, "cnn is trained here"),
        ({"epoch": 3}, "unknown parameter epoch; known are"),
    ],
)
def test_bad_parameters_are_refused_with_the_choices(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        training.resolve(strict_config(), "cnn", given)


def test_early_stopping_that_no_gate_would_look_at_is_refused() -> None:
    blind = strict_config().model_copy(update={"register_threshold": {"accuracy": 0.85}})
    with pytest.raises(SettingsError, match="early_stopping_reached: 1"):
        training.resolve(blind, "cnn", REACHABLE)


def test_importing_the_system_loads_nothing_heavy() -> None:
    code = (
        "import sys, mlops_assets.systems.tires.training;"
        "print([m for m in ('torch', 'torchvision', 'PIL', 'onnxruntime', 'mlflow', 'pandas', 'pyarrow', 'numpy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout.strip() == "[]"


def test_a_variant_is_made_of_its_own_architecture_only() -> None:
    assert set(models.FILES) == set(VARIANTS)
    of = {variant: {path.name for path in imported(training.__name__, models.module_of(variant))} for variant in VARIANTS}
    assert of["cnn"] ^ of["resnet18"] == {"cnn.py", "resnet.py"} and of["resnet18"] == of["resnet50"]
    versions = {variant: code_version(training.SYSTEM, variant) for variant in VARIANTS}
    assert len(set(versions.values())) == 4


# --- the models -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_model_is_exported_as_it_answers(variant: str, tmp_path: Path) -> None:
    import torch

    from mlops_assets.training import export, image

    torch.manual_seed(0)
    photos = np.random.default_rng(1).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    classifier = image.classifier(models.build(variant, 2))
    with torch.no_grad():
        for _ in range(10):  # or batch normalisation knows nothing yet, and all logits are alike
            classifier.train()(torch.from_numpy(photos))
    export.export_image_model(classifier, tmp_path / "model.onnx", size=64)
    assert not classifier.training
    found = export.session(tmp_path / "model.onnx", 1).run(["logits"], {"images": photos})[0]
    with torch.inference_mode():
        wanted = classifier(torch.from_numpy(photos))["logits"].numpy()
    assert found.dtype == np.float32 and found.shape == (5, 2)
    # A new EfficientNet still answers nearly the same to every photo: of the others, equality is not for want of a difference.
    assert variant.startswith("efficientnet") or np.ptp(wanted, axis=0).min() > 1e-3
    assert np.abs(found - wanted).max() < 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"], "one file, weights within"


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_pretrained_weights_come_from_a_local_file(tmp_path: Path, suffix: str) -> None:
    """Of another number of classes: all but the last layer is taken."""
    import torch
    from safetensors.torch import save_file

    theirs = models.build("resnet18", 7)
    path = tmp_path / f"weights{suffix}"
    save_file(theirs.state_dict(), path) if suffix == ".safetensors" else torch.save(theirs.state_dict(), path)
    ours = models.build("resnet18", 2, str(path)).state_dict()
    assert ours["fc.weight"].shape == (2, 512)
    assert all(ours[name].equal(tensor) for name, tensor in theirs.state_dict().items() if not name.startswith("fc."))


def test_pretrained_weights_that_do_not_fit_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    with pytest.raises(SettingsError, match="choose one of IMAGENET1K_V1, IMAGENET1K_V2, or a local file"):
        models.build("resnet50", 2, "IMAGENET1K_V9")
    with pytest.raises(SettingsError, match="torchvision has none for it"):
        models.build("cnn", 2, "IMAGENET1K_V1")
    torch.save(models.build("cnn", 2).state_dict(), tmp_path / "cnn.pth")
    with pytest.raises(SettingsError, match="is not of resnet18: 120 of 122 tensors"):
        models.build("resnet18", 2, str(tmp_path / "cnn.pth"))
    torch.save(Path("anything"), tmp_path / "code.pth")
    with pytest.raises(SettingsError, match="holds more than weights"):
        models.build("resnet18", 2, str(tmp_path / "code.pth"))

    def offline(*_: Any, **__: Any) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(SettingsError, match=r"could not be had .*unreachable.* download https://.*resnet18.*\.pth elsewhere"):
        models.build("resnet18", 2, "IMAGENET1K_V1")


# --- training -------------------------------------------------------------------------------------------------------------------


def test_it_learns(made: Made) -> None:
    assert made.trained.metrics["validation_accuracy"] > 0.85
    assert made.trained.metrics["train_rows"] == SPLITS["train"] and made.trained.metrics[training.REACHED] == 1
    assert {path.name for path in made.trained.folder.iterdir()} == {"model.safetensors", "trained.json"}
    assert not (made.context.workdir / "checkpoints").exists(), "closed on success"


def test_every_epoch_and_every_step_is_logged(made: Made) -> None:
    figures = {"loss", "accuracy", "precision", "recall", "f1"}
    epochs = [step for step, values in made.logged if {f"validation_{name}" for name in figures} <= set(values)]
    rates = [step for step, values in made.logged if "learning_rate" in values]
    assert epochs == [6, 12, 18, 24]
    assert rates == list(range(1, 25))


def test_a_finished_training_is_not_done_again(made: Made) -> None:
    assert training.train(made.context).metrics == made.trained.metrics


def test_killed_training_ends_as_an_unbroken_one(made: Made, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from mlops_assets_tests.systems import test_tires_training as t;"
        "table = t.CleanedTable('tires', 'v1', '0' * 64, Path(sys.argv[2]), 88);"
        "t.training.train(t.make_context(table, Path(sys.argv[1])))"
    )
    work = tmp_path / "run"
    command = [sys.executable, "-c", code, str(work), str(made.context.table.folder)]
    run = subprocess.run(
        command, env=process_environment() | {"MLOPS_CRASH_AT": "trainer.step_15"}, capture_output=True, text=True, timeout=180
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    resumed = training.train(dataclasses.replace(made.context, workdir=work))
    assert resumed.resumed_from_step == 12
    assert (resumed.folder / "model.safetensors").read_bytes() == (made.trained.folder / "model.safetensors").read_bytes()


def test_sampling_trains_on_a_part(table: CleanedTable, tmp_path: Path) -> None:
    trained = training.train(make_context(table, tmp_path / "run", sampling_rate=0.5, epochs=1))
    assert 12 <= trained.metrics["train_rows"] <= 36


def test_a_table_without_training_photos_says_so(tmp_path: Path) -> None:
    table = make_table(tmp_path / "rows", {"train": 0, "validation": 2, "holdout": 2})
    with pytest.raises(ValueError, match="0 rows to train on"):
        training.train(make_context(table, tmp_path / "run"))


def test_a_champion_can_be_fine_tuned(made: Made, tmp_path: Path) -> None:
    """One step at a rate of nearly nothing: it answers as its parent does."""
    context = make_context(made.context.table, tmp_path / "run", epochs=0.1, learning_rate=1e-9, optimizer_type="sgd")
    child = training.train(dataclasses.replace(context, parent=made.trained.folder))
    scratch = training.train(dataclasses.replace(context, workdir=tmp_path / "scratch"))
    assert child.metrics["validation_accuracy"] > 0.8 > scratch.metrics["validation_accuracy"]


# --- the seed's early stopping --------------------------------------------------------------------------------------------------


def verdict_on(trained: Trained, context: TrainContext, folder: Path) -> str:
    """What the gate says of the exported bundle."""
    training.export(trained, context, folder)
    found = training.evaluate(folder, context.table, 1)
    now = datetime.now(UTC)
    metrics = {**found.metrics, "accuracy": 1.0}
    directions = directions_of(training.SYSTEM.directions, metrics)
    report = Report("tires", "cnn", "v1", 1, "b", "m", found.holdout_sha256, found.rows, metrics, now, directions=directions)
    return decide(
        report, None, Policy(context.config.register_threshold, "f1", min_rows=1, min_class_rows=1), Subject(1, "b", "m", now)
    ).outcome


def test_reaching_loss_and_accuracy_ends_the_training_and_may_register(table: CleanedTable, tmp_path: Path) -> None:
    context = make_context(table, tmp_path / "run", **REACHABLE)
    trained = training.train(context)
    assert (trained.metrics["steps"], trained.metrics["best_step"]) == (6, 6), "at the first evaluation"
    assert trained.metrics[training.REACHED] == 1
    assert verdict_on(trained, context, tmp_path / "bundle") == "promoted"


def test_patience_ends_the_training_and_the_gate_refuses(table: CleanedTable, tmp_path: Path) -> None:
    context = make_context(table, tmp_path / "run", **UNREACHABLE, early_stopping_patience=2, early_stopping_delta=9.0)
    trained = training.train(context)
    assert trained.metrics["steps"] == 18, "the first evaluation, and two that are not better by delta"
    assert trained.metrics[training.REACHED] == 0
    assert verdict_on(trained, context, tmp_path / "bundle") == "refused"


def test_a_training_that_ends_without_reaching_them_is_refused_too(table: CleanedTable, tmp_path: Path) -> None:
    context = make_context(table, tmp_path / "run", **UNREACHABLE, epochs=1)
    assert verdict_on(training.train(context), context, tmp_path / "bundle") == "refused"


# --- the bundle and its evaluation ----------------------------------------------------------------------------------------------


def test_the_bundle_is_what_the_server_loads(made: Made) -> None:
    from mlops_assets.serving.loading import load

    assert set(files_of(made.bundle)) == {"bundle.json", "golden.json", "model.onnx"}
    spec = json.loads((made.bundle / "bundle.json").read_text(encoding="utf-8"))
    assert (spec["labels"], spec["image_size"], spec["kind"]) == (["good", "defective"], 32, "image-classification")
    assert spec["calibration"]["temperature"] != 1
    assert len(json.loads((made.bundle / "golden.json").read_text(encoding="utf-8"))["samples"]) == training.GOLDEN_SAMPLES
    assert load(made.bundle, "tires", 1).labels == ["good", "defective"], "with its golden samples"


def test_the_same_training_elsewhere_gives_the_same_bundle(made: Made, tmp_path: Path) -> None:
    """Also when the cleaning wrote the rows in another order."""
    context = dataclasses.replace(made.context, workdir=tmp_path / "run", table=make_table(tmp_path / "rows", shuffled=True))
    training.export(training.train(context), context, tmp_path / "bundle")
    assert files_of(tmp_path / "bundle") == files_of(made.bundle)


def test_evaluation_is_what_the_served_predictor_answers(made: Made) -> None:
    from mlops_assets.training import image

    evaluation = training.evaluate(made.bundle, made.context.table, 1)
    rows = image.read_rows(made.context.table, "holdout")
    photos = {name: data for batch in image.read_images(made.context.table, "holdout") for name, data in batch}
    answers = training.load_predictor(made.bundle, 1).predict([photos[name] for name in rows.ids])
    right = [answer["label"] == training.LABELS[label] for answer, label in zip(answers, rows.labels.tolist(), strict=True)]
    assert list(evaluation.correct) == right
    assert evaluation.rows == 24 and evaluation.metrics["accuracy"] == pytest.approx(sum(right) / 24)
    classes = {"recall_good", "recall_defective"}
    assert set(evaluation.metrics) == {*CLASSIFIER, *classes, "missed_defects", training.REACHED}
    assert set(directions_of(training.SYSTEM.directions, evaluation.metrics)) == set(evaluation.metrics)
    assert set(evaluation.support) == classes and sum(evaluation.support.values()) == evaluation.rows
    assert {name: figures["rows"] for name, figures in evaluation.slices.items()} == {"MT_Blowhole": 12, "MT_Free": 12}
    intervals = {row["metric"]: row for row in evaluation.tables["intervals_95"]}
    assert set(intervals) == {"accuracy", "precision", "recall", "f1", "missed_defects"}
    assert all(row["low"] <= row["value"] <= row["high"] for row in intervals.values())
    matrix = evaluation.tables["confusion_matrix"]
    assert matrix[1]["good"] == evaluation.metrics["missed_defects"]


def test_errors_are_shown(table: CleanedTable, tmp_path: Path) -> None:
    """Of a net that has seen one batch."""
    context = make_context(table, tmp_path / "run", epochs=0.1)
    training.export(training.train(context), context, tmp_path / "bad")
    evaluation = training.evaluate(tmp_path / "bad", table, 1)
    worst = evaluation.tables["worst_errors"]
    assert 0 < len(worst) <= training.WORST_ERRORS
    assert [row["confidence"] for row in worst] == sorted((row["confidence"] for row in worst), reverse=True)
    titles = [picture.title for picture in evaluation.pictures]
    assert titles == ["confusion_matrix", "precision_recall", "calibration", "worst_errors"]
    assert all(0 < len(picture.png) <= 64 * 1024 for picture in evaluation.pictures)


def test_a_table_without_holdout_is_not_measured(made: Made, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no holdout photos"):
        training.evaluate(made.bundle, make_table(tmp_path / "rows", {"train": 2, "validation": 2}), 1)
