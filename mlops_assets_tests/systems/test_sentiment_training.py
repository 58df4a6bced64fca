"""sentiment: parameters, training, resuming, exporting and measuring, on a language of a dozen words that a tiny KcBERT learns fast."""

from __future__ import annotations

import dataclasses
import io
import json
import random
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlops_assets.lifecycle import sweep
from mlops_assets.lifecycle.bundle import files_of
from mlops_assets.lifecycle.pipeline import context_of, parameters_of
from mlops_assets.lifecycle.report import directions_of
from mlops_assets.lifecycle.system import CleanedTable, TrainContext, Trained
from mlops_assets.settings import REPOSITORY, Settings, SettingsError, load_config, process_environment
from mlops_assets.systems.sentiment import training
from mlops_assets.systems.sentiment.config import SentimentConfig
from mlops_assets.training import metrics
from mlops_assets.training.text import Rows

GOOD, BAD = ("재미있다", "최고", "감동", "추천"), ("지루하다", "최악", "쓰레기", "비추")
NEUTRAL = ("영화", "배우", "연기", "감독", "음악", "결말", "그냥", "어제")
TINY = {
    "vocabulary_size": 200,
    "layers": 1,
    "hidden_size": 32,
    "intermediate_size": 64,
    "max_length": 16,
    "epochs": 3,
    "batch_size": 16,
    "learning_rate": 0.003,
    "word_dropout": 0.0,
    "guess_weight": 0.0,
    "bf16": False,
}


def review(label: int, random: random.Random) -> str:
    return " ".join([*random.choices(NEUTRAL, k=random.randint(1, 5)), random.choice((BAD, GOOD)[label]), *random.choices(NEUTRAL, k=2)])


def make_table(folder: Path, rows: Mapping[str, int], seed: int = 0, shuffled: bool = False) -> CleanedTable:
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = random.Random(seed)
    made = []
    for split, count in rows.items():
        for i in range(count):
            label = i % 2
            made.append({"id": f"{split}{i:05}", "document": review(label, draw), "label": label, "split": split, "source": "ratings.txt"})
    if shuffled:
        random.Random(1).shuffle(made)
    folder.mkdir(parents=True)
    schema = pa.schema(
        [("id", pa.string()), ("document", pa.string()), ("label", pa.int8()), ("split", pa.string()), ("source", pa.string())]
    )
    half = len(made) // 2
    for number, part in enumerate((made[:half], made[half:])):
        pq.write_table(pa.Table.from_pylist(part, schema=schema), folder / f"part-{number}.parquet")
    return CleanedTable("sentiment", "v1", "0" * 64, folder, len(made))


@pytest.fixture(scope="module")
def config() -> SentimentConfig:
    return load_config(SentimentConfig, "sentiment", REPOSITORY / "configs")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> CleanedTable:
    return make_table(tmp_path_factory.mktemp("table") / "rows", {"train": 400, "validation": 60, "holdout": 100})


def make_context(config: SentimentConfig, table: CleanedTable, workdir: Path, **parameters: Any) -> TrainContext:
    return TrainContext(
        system="sentiment",
        variant="",
        table=table,
        config=config,
        parameters=training.parameters(config, given={**TINY, **parameters}),
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
def made(config: SentimentConfig, table: CleanedTable, tmp_path_factory: pytest.TempPathFactory) -> Made:
    work = tmp_path_factory.mktemp("work")
    context = make_context(config, table, work / "run")
    trained = training.train(context)
    training.export(trained, context, work / "bundle")
    return Made(context, trained, work / "bundle")


# --- parameters -----------------------------------------------------------------------------------------------------------------


def test_every_parameter_has_a_default_and_a_type(config: SentimentConfig) -> None:
    for variant, names in training.PARAMETERS.items():
        found = training.parameters(config, variant)
        assert set(found) == set(names) <= set(training.SYSTEM.parameter_names)
        json.dumps(found, allow_nan=False)
        assert training.resolve(config, variant, found).flat == found


def test_overrides_win_over_the_configuration(config: SentimentConfig) -> None:
    choice = training.resolve(config, "", {"epochs": 1, "sampling_rate": 0.5, "unfrozen_layers": 1})
    assert (choice.model.training.epochs, choice.dataset.sampling_rate, choice.model.unfrozen_layers) == (1, 0.5, 1)
    assert choice.model.training.batch_size == config.model.training.batch_size


def with_small(config: SentimentConfig, layers: int = 1) -> SentimentConfig:
    """With a second model that has other values than the configured one."""
    small = config.model.model_copy(update={"layers": layers, "hidden_size": 64})
    return config.model_copy(update={"models": {**config.models, "small": small}})


def test_another_model_type_brings_its_own_values(config: SentimentConfig) -> None:
    choice = training.resolve(with_small(config), "", {"model_type": "small", "hidden_size": 32})
    assert (choice.model.layers, choice.model.hidden_size) == (1, 32)


def test_what_is_given_is_used_also_where_it_is_the_default_of_another_model(config: SentimentConfig) -> None:
    given = {"model_type": "small", "layers": config.model.layers, "epochs": config.model.training.epochs}
    found = parameters_of(training.SYSTEM, with_small(config), "", given)
    assert (found["layers"], found["hidden_size"]) == (config.model.layers, 64)
    assert config.model.training.min_steps > 0 == found["min_steps"], "asked for as many epochs as are configured, it makes no more"
    assert parameters_of(training.SYSTEM, with_small(config), "", given | {"min_steps": 7})["min_steps"] == 7
    assert training.resolve(with_small(config), "", found).flat == found == parameters_of(training.SYSTEM, with_small(config), "", found)


@pytest.mark.parametrize("chosen", ["model_type", "dataset"])
def test_a_changed_value_of_what_is_chosen_makes_another_training_and_another_sweep(
    config: SentimentConfig, table: CleanedTable, tmp_path: Path, chosen: str
) -> None:
    settings, given = Settings(home=tmp_path), {chosen: "small"}

    def names(layers: int, max_length: int) -> tuple[str, str]:
        short = config.dataset.model_copy(update={"max_length": max_length})
        two = with_small(config, layers).model_copy(update={"datasets": {**config.datasets, "small": short}})
        found = parameters_of(training.SYSTEM, two, "", given)
        context = context_of(settings, training.SYSTEM, two, variant="", table=table, parameters=found, seed=1)
        models, overrides = (["small"], {}) if chosen == "model_type" else ([], given)
        planned = sweep.plan(
            training.SYSTEM, two, dataset_version="v1", model_types=models, learning_rate=(0.001, 0.01), overrides=overrides
        )
        return context.fingerprint, sweep.study_name(training.SYSTEM, two, planned, table)

    first, again = names(1, 24), names(1, 24)
    other = names(3, 24) if chosen == "model_type" else names(1, 32)
    not_chosen = names(1, 32) if chosen == "model_type" else names(3, 24)
    assert first == again == not_chosen
    assert first[0] != other[0] and first[1] != other[1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimizer_type": "lion"}, r"지원되지 않는 옵티마이저 타입입니다\.: lion .*adamw, adam, sgd, adafactor"),
        ({"model_type": "gpt"}, r"지원되지 않는 모델 타입입니다\.: gpt .*kcbert"),
        ({"dataset": "imdb"}, r"지원되지 않는 데이터셋 타입입니다\.: imdb .*nsmc"),
        ({"epochs": -1}, "epochs: Input should be greater than 0"),
        ({"sampling_rate": 2.0}, "sampling_rate: Input should be less than or equal to 1"),
        ({"epoch": 3}, "unknown parameter epoch; known are"),
    ],
)
def test_bad_parameters_are_refused_with_the_choices(config: SentimentConfig, given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        training.resolve(config, "", given)


def test_sampling_keeps_the_same_rows_in_every_version() -> None:
    rows = Rows([f"id{i}" for i in range(2000)], ["t"] * 2000, [0] * 2000)
    more = Rows([f"id{i}" for i in range(4000)], ["t"] * 4000, [0] * 4000)
    half = rows.sample(0.5)
    assert 900 < len(half) < 1100
    assert [name for name in more.sample(0.5).ids if name in set(rows.ids)] == half.ids
    assert rows.sample(1.0) is rows


def test_importing_the_system_loads_nothing_heavy() -> None:
    code = (
        "import sys, mlops_assets.systems.sentiment.training;"
        "print([m for m in ('torch', 'transformers', 'onnxruntime', 'mlflow', 'pyspark', 'pandas', 'numpy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout.strip() == "[]"


# --- training -------------------------------------------------------------------------------------------------------------------


def test_it_learns_the_language(made: Made) -> None:
    assert made.trained.metrics["validation_accuracy"] > 0.9
    assert made.trained.metrics["train_rows"] == 400
    assert {path.name for path in made.trained.folder.iterdir()} == {"model.safetensors", "config.json", "tokenizer.json", "trained.json"}
    assert not (made.context.workdir / "checkpoints").exists(), "closed on success"


def test_a_finished_training_is_not_done_again(made: Made) -> None:
    told: list[Mapping[str, float]] = []
    context = dataclasses.replace(made.context, log_metrics=lambda values, step: told.append(values))
    again = training.train(context)
    assert again.metrics == made.trained.metrics
    assert told == [made.trained.metrics]


def test_the_same_training_elsewhere_gives_the_same_bundle(made: Made, table: CleanedTable, tmp_path: Path) -> None:
    """Also when the cleaning engine wrote the rows in another order."""
    shuffled = make_table(tmp_path / "rows", {"train": 400, "validation": 60, "holdout": 100}, shuffled=True)
    context = dataclasses.replace(made.context, workdir=tmp_path / "run", table=shuffled)
    training.export(training.train(context), context, tmp_path / "bundle")
    assert files_of(tmp_path / "bundle") == files_of(made.bundle)


def test_killed_training_ends_as_an_unbroken_one(made: Made, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from mlops_assets_tests.systems import test_sentiment_training as t;"
        "from mlops_assets.settings import REPOSITORY, load_config;"
        "config = load_config(t.SentimentConfig, 'sentiment', REPOSITORY / 'configs');"
        "table = t.CleanedTable('sentiment', 'v1', '0' * 64, Path(sys.argv[2]), 560);"
        "t.training.train(t.make_context(config, table, Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(made.context.table.folder)]
    run = subprocess.run(
        command, env=process_environment() | {"MLOPS_CRASH_AT": "trainer.step_40"}, capture_output=True, text=True, timeout=180
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    resumed = training.train(dataclasses.replace(made.context, workdir=tmp_path))
    assert resumed.resumed_from_step == 36
    same = {name: value for name, value in resumed.metrics.items() if name != "train_minutes"}
    assert same == {name: value for name, value in made.trained.metrics.items() if name != "train_minutes"}
    assert (resumed.folder / "model.safetensors").read_bytes() == (made.trained.folder / "model.safetensors").read_bytes()


def test_words_are_hidden_and_guessed_only_while_training(config: SentimentConfig) -> None:
    import torch

    from mlops_assets.training import bert
    from mlops_assets.training.text import TextExamples, learn_tokenizer

    draw = random.Random(0)
    texts = [review(i % 2, draw) for i in range(32)]
    tokenizer = learn_tokenizer(texts, 100)
    section = config.model.model_copy(
        update={"hidden_size": 16, "intermediate_size": 16, "dropout": 0.0, "word_dropout": 0.5, "guess_weight": 1.0}
    )
    torch.manual_seed(0)
    classifier = bert.trainable(bert.from_scratch(section, training.LABELS, tokenizer, 16), section, tokenizer)
    batch = TextExamples(tokenizer, texts, [0] * 32, 16).batch(range(32))
    shown, places = classifier.train()._hide(batch["input_ids"])
    assert 0.3 < places.float().sum() / (batch["attention_mask"].sum() - 2 * 32) < 0.7
    assert (shown[places] == tokenizer.token_to_id("[MASK]")).all() and shown[~places].equal(batch["input_ids"][~places])
    kept = {tokenizer.token_to_id(token) for token in ("[PAD]", "[CLS]", "[SEP]")}
    assert not kept & set(batch["input_ids"][places].tolist())
    loss = classifier(**batch)["loss"]
    loss.backward()
    assert loss > 2, "guessing one of a hundred words costs more than the label alone"
    assert all(parameter.grad is not None for parameter in classifier.guess.parameters())
    del batch["labels"]
    with torch.inference_mode():
        first, second = (classifier.eval()(**batch)["logits"] for _ in range(2))
    assert first.equal(second)


def test_few_rows_are_trained_on_for_more_epochs(config: SentimentConfig, table: CleanedTable, tmp_path: Path) -> None:
    told: list[Mapping[str, float]] = []
    base = training.parameters(config)
    few = {name: value for name, value in TINY.items() if name != "epochs"} | {"min_steps": 200, "early_stopping_patience": 99}
    context = dataclasses.replace(make_context(config, table, tmp_path), parameters={**base, **few})
    trained = training.train(dataclasses.replace(context, log_metrics=lambda values, step: told.append(values)))
    assert trained.metrics["steps"] == 200
    evaluations = sum("validation_loss" in values for values in told)
    assert evaluations == pytest.approx(config.model.training.epochs * config.model.training.evaluations_per_epoch, abs=1)
    assert training.resolve(config, "", {"epochs": 1}).model.training.min_steps == 0, "who asks for one epoch gets one"


def test_a_table_without_training_rows_says_so(config: SentimentConfig, tmp_path: Path) -> None:
    table = make_table(tmp_path / "rows", {"train": 0, "validation": 2, "holdout": 2})
    with pytest.raises(ValueError, match="0 rows to train on"):
        training.train(make_context(config, table, tmp_path / "run", vocabulary=str(vocabulary(tmp_path))))


def vocabulary(folder: Path) -> Path:
    path = folder / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *NEUTRAL]), encoding="utf-8")
    return path


# --- pretrained -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local pretrained model as the hub has KcBERT: a masked language model with vocab.txt, and no classifier."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    folder = tmp_path_factory.mktemp("pretrained")
    words = vocabulary(folder).read_text(encoding="utf-8").split("\n")
    torch.manual_seed(3)
    size = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 24}
    BertForMaskedLM(BertConfig(vocab_size=len(words), **size)).save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": false}', encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("unfrozen", "moving"), [(None, {"embeddings", "0", "1", "2"}), (1, {"2"}), (0, set()), (3, {"embeddings", "0", "1", "2"})]
)
def test_only_the_unfrozen_layers_of_a_pretrained_model_train(
    config: SentimentConfig, table: CleanedTable, checkpoint: Path, tmp_path: Path, unfrozen: int | None, moving: set[str]
) -> None:
    from safetensors.torch import load_file

    settings = {"pretrained": str(checkpoint), "unfrozen_layers": unfrozen, "epochs": 0.2, "word_dropout": 0.0, "guess_weight": 0.0}
    trained = training.train(make_context(config, table, tmp_path, **settings))
    before, after = load_file(checkpoint / "model.safetensors"), load_file(trained.folder / "model.safetensors")
    moved = {part(name) for name in after if name in before and not before[name].equal(after[name])}
    assert moved == moving
    assert "classifier.weight" in after and json.loads((trained.folder / "config.json").read_text())["id2label"] == {
        "0": "부정",
        "1": "긍정",
    }


def part(name: str) -> str:
    return name.split(".")[3] if ".layer." in name else name.split(".")[1]


def test_pretrained_words_keep_their_numbers(config: SentimentConfig, table: CleanedTable, checkpoint: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    context = make_context(config, table, tmp_path / "run", pretrained=str(checkpoint), epochs=0.1, word_dropout=0.0)
    training.export(training.train(context), context, tmp_path / "bundle")
    tokenizer = Tokenizer.from_file(str(tmp_path / "bundle" / "tokenizer.json"))
    assert tokenizer.encode("최고 영화").tokens == ["[CLS]", "최고", "영화", "[SEP]"]
    assert tokenizer.token_to_id("재미있다") == 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pretrained": "/no/such/folder"}, "'/no/such/folder' could not be loaded"),
        ({"max_length": 48}, "max_length 48 is more than the 24 positions"),
        ({"unfrozen_layers": 9}, "unfrozen_layers 9: the model has 3 layers"),
    ],
)
def test_pretrained_model_that_does_not_fit_says_why(
    config: SentimentConfig, table: CleanedTable, checkpoint: Path, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        training.train(make_context(config, table, tmp_path, **{"pretrained": str(checkpoint), **given}))


def test_a_champion_can_be_fine_tuned(made: Made, tmp_path: Path) -> None:
    """One step at a rate of nearly nothing: it answers as its parent does, where one from scratch would guess."""
    context = make_context(made.context.config, made.context.table, tmp_path, epochs=0.04, learning_rate=1e-9)  # type: ignore[arg-type]
    child = training.train(dataclasses.replace(context, parent=made.trained.folder))
    assert child.metrics["validation_accuracy"] == made.trained.metrics["validation_accuracy"]
    scratch = training.train(dataclasses.replace(context, workdir=tmp_path / "scratch"))
    assert scratch.metrics["validation_accuracy"] < 0.8


# --- the bundle -----------------------------------------------------------------------------------------------------------------


def test_bundle_holds_what_the_server_reads(made: Made) -> None:
    assert set(files_of(made.bundle)) == {"bundle.json", "golden.json", "model.onnx", "tokenizer.json"}
    spec = json.loads((made.bundle / "bundle.json").read_text(encoding="utf-8"))
    assert spec["labels"] == ["부정", "긍정"] and spec["max_length"] == 16 and spec["format"] == 1
    assert spec["precision"] == "int8"
    golden = json.loads((made.bundle / "golden.json").read_text(encoding="utf-8"))
    predictor = training.load_predictor(made.bundle, 1)
    found = predictor.probabilities([sample["input"] for sample in golden["samples"]])
    assert np.abs(found - [sample["probs"] for sample in golden["samples"]]).max() < 1e-3
    assert len(golden["samples"]) == 16


def test_int8_answers_as_fp32(made: Made, tmp_path: Path) -> None:
    flat = {**made.trained.parameters, "int8": False}
    training.export(dataclasses.replace(made.trained, parameters=flat), made.context, tmp_path)
    assert json.loads((tmp_path / "bundle.json").read_text(encoding="utf-8"))["precision"] == "fp32"
    texts = training.rows_of(made.context.table, "holdout").texts
    fp32, int8 = (training.load_predictor(folder, 1).predict_logits(texts).argmax(axis=1) for folder in (tmp_path, made.bundle))
    assert (fp32 == int8).mean() >= 0.99


def test_int8_that_answers_differently_is_not_kept(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlops_assets.training import export

    monkeypatch.setattr(export, "int8_quality", lambda fp32, int8, labels: export.Int8Quality(1000, 0.98, 0.0))
    training.export(made.trained, made.context, tmp_path / "bundle")
    assert json.loads((tmp_path / "bundle" / "bundle.json").read_text(encoding="utf-8"))["precision"] == "fp32"
    assert training.load_predictor(tmp_path / "bundle", 1).predict(["최고 영화"])[0]["label"] == "긍정"


def test_the_bundle_tells_good_from_bad(made: Made) -> None:
    answers = training.load_predictor(made.bundle, 1).predict(["그냥 최고 영화", "배우 연기 쓰레기"])
    assert [answer["label"] for answer in answers] == ["긍정", "부정"]


# --- evaluation -----------------------------------------------------------------------------------------------------------------


def test_evaluation_is_what_the_served_predictor_answers(made: Made) -> None:
    evaluation = training.evaluate(made.bundle, made.context.table, 1)
    rows = training.rows_of(made.context.table, "holdout")
    answers = training.load_predictor(made.bundle, 1).predict(rows.texts)
    right = [answer["label"] == training.LABELS[label] for answer, label in zip(answers, rows.labels, strict=True)]
    assert list(evaluation.correct) == right
    assert evaluation.rows == 100 and evaluation.metrics["accuracy"] == pytest.approx(sum(right) / 100)
    assert set(evaluation.metrics) == {"loss", "accuracy", "precision", "recall", "f1", "ece", "recall_부정", "recall_긍정"}
    assert set(directions_of(training.SYSTEM.directions, evaluation.metrics)) == set(evaluation.metrics)
    assert evaluation.metrics["recall_긍정"] == evaluation.metrics["recall"] and sum(evaluation.support.values()) == 100
    assert sum(figures["rows"] for figures in evaluation.slices.values()) == 100
    matrix = evaluation.tables["confusion_matrix"]
    assert sum(row["부정"] + row["긍정"] for row in matrix) == 100
    assert [picture.title for picture in evaluation.pictures] == ["confusion_matrix", "precision_recall", "calibration"]
    assert all(len(picture.png) <= 64 * 1024 for picture in evaluation.pictures)


def test_the_holdout_has_one_digest_whatever_the_order_of_its_rows(made: Made, tmp_path: Path) -> None:
    splits = {"train": 400, "validation": 60, "holdout": 100}
    digests = {
        training.evaluate(made.bundle, table, 1).holdout_sha256
        for table in (made.context.table, make_table(tmp_path / "a", splits, shuffled=True))
    }
    assert len(digests) == 1
    other = training.rows_of(make_table(tmp_path / "b", splits, seed=1), "holdout").sha256
    assert other not in digests


def test_worst_errors_are_the_surest_wrong_answers() -> None:
    rows = Rows(["a", "b", "c", "d"], ["가" * 300, "나", "다", "라"], [0, 1, 0, 1])
    probabilities = metrics.softmax(np.log([[0.2, 0.8], [0.9, 0.1], [0.7, 0.3], [0.4, 0.6]]))
    found = training.worst_errors(rows, probabilities)
    assert [(row["id"], row["label"], row["predicted"], row["confidence"]) for row in found] == [
        ("b", "긍정", "부정", 0.9),
        ("a", "부정", "긍정", 0.8),
    ]
    assert len(found[1]["document"]) == 200


def test_no_holdout_rows_is_an_error(made: Made, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no holdout rows"):
        training.evaluate(made.bundle, make_table(tmp_path / "rows", {"train": 2, "validation": 2}), 1)


def test_pictures_are_png(made: Made) -> None:
    from PIL import Image

    for picture in training.evaluate(made.bundle, made.context.table, 1).pictures:
        assert Image.open(io.BytesIO(picture.png)).format == "PNG"
