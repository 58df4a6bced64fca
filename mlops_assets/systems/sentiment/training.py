"""sentiment's half of the model lifecycle: train, export, evaluate, predict, and the one `SYSTEM` that `lifecycle/` takes.

Belongs here: what is particular to reviews of film. Does not belong here: the run itself (`training/trainer.py`), writing bundles
(`training/export.py`), Dagster. Nothing heavy is imported when this module is.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_assets.lifecycle.system import CleanedTable, Evaluation, ModelSystem, Picture, TrainContext, Trained
from mlops_assets.settings import canonical
from mlops_assets.systems.sentiment.config import DatasetSection, ModelSection, SentimentConfig, TrainingSection
from mlops_assets.systems.sentiment.model import LABELS
from mlops_assets.training.config import chosen, override, valid

if TYPE_CHECKING:
    import numpy as np
    from sqlalchemy import Engine

    from mlops_assets.serving.text import TextPredictor
    from mlops_assets.store import ObjectStore

log = logging.getLogger(__name__)

GOLDEN_SAMPLES = 16
#: Validation rows on which int8 is judged and the temperature is fitted.
JUDGED_ROWS = 8_000
WORST_ERRORS = 20
EXCERPT = 200
#: Upper ends (characters) of the slices by review length.
LENGTH_SLICES = (10, 20, 40, 80)


# --- parameters -----------------------------------------------------------------------------------------------------------------

#: What `mlops train` and the launchpad may override. `model_type` and `dataset` are names in the configuration's `models` and `datasets`.
PARAMETER_NAMES: Mapping[str, type] = {
    "model_type": str,
    "dataset": str,
    "sampling_rate": float,
    "max_length": int,
    "pretrained": str,
    "vocabulary": str,
    "vocabulary_size": int,
    "layers": int,
    "hidden_size": int,
    "attention_heads": int,
    "intermediate_size": int,
    "dropout": float,
    "unfrozen_layers": int,
    "word_dropout": float,
    "guess_weight": float,
    "int8": bool,
    "epochs": float,
    "min_steps": int,
    "batch_size": int,
    "learning_rate": float,
    "optimizer_type": str,
    "weight_decay": float,
    "warmup_ratio": float,
    "label_smoothing": float,
    "monitor": str,
    "early_stopping_patience": int,
    "evaluations_per_epoch": int,
    "checkpoints_per_epoch": int,
    "max_minutes": float,
    "bucketing": bool,
    "bf16": bool,
}
OF_DATASET = ("sampling_rate", "max_length")


@dataclass(frozen=True)
class Choice:
    """What one training uses, after overrides."""

    dataset: DatasetSection
    model: ModelSection
    flat: Mapping[str, Any]


def _flat(config: SentimentConfig, model_type: str, dataset: str) -> dict[str, Any]:
    model = chosen("모델", model_type, config.models).model_dump(mode="json")
    training = model.pop("training")
    section = chosen("데이터셋", dataset, config.datasets)
    return {"model_type": model_type, "dataset": dataset, **{name: getattr(section, name) for name in OF_DATASET}, **model, **training}


def parameters(config: SentimentConfig, variant: str = "") -> dict[str, Any]:
    """The parameters of the configured model and data set, flat, as plain JSON values."""
    return _flat(config, config.project.model, config.project.dataset)


def resolve(config: SentimentConfig, given: Mapping[str, Any]) -> Choice:
    """`given` (what `parameters` returned, with overrides) as validated sections.

    Raises:
        SettingsError: an unknown name or a bad value, with the choices.
    """

    def sections(overrides: Mapping[str, Any]) -> dict[str, Any]:
        return _flat(config, str(overrides.get("model_type", config.project.model)), str(overrides.get("dataset", config.project.dataset)))

    def build() -> Choice:
        dataset = config.datasets[flat["dataset"]].model_dump() | {name: flat[name] for name in OF_DATASET}
        training = {name: flat[name] for name in TrainingSection.model_fields}
        model = {name: flat[name] for name in ModelSection.model_fields if name != "training"} | {"training": training}
        return Choice(DatasetSection.model_validate(dataset), ModelSection.model_validate(model), flat)

    flat = override(given, parameters(config), PARAMETER_NAMES, sections)
    return valid(build)


# --- rows -----------------------------------------------------------------------------------------------------------------------


def open_table(store: ObjectStore, engine: Engine, version: str, folder: Path) -> CleanedTable:
    """The cleaned reviews of a version, downloaded and verified."""
    from mlops_assets.systems.sentiment.data import load_cleaned

    return load_cleaned(store, engine, version, folder)


@dataclass(frozen=True)
class Rows:
    """The rows of one split, by id."""

    ids: list[str]
    texts: list[str]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.ids)


def read_rows(table: CleanedTable, split: str) -> Rows:
    """The rows of `split`, sorted by id: the same whatever order the cleaning engine wrote them in."""
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    found = ds.dataset(table.folder, format="parquet").to_table(columns=["id", "document", "label"], filter=pc.field("split") == split)
    found = found.sort_by([("id", "ascending"), ("document", "ascending")])
    return Rows(found["id"].to_pylist(), found["document"].to_pylist(), found["label"].to_pylist())


def sample(rows: Rows, rate: float) -> Rows:
    """About `rate` of the rows, chosen by id: the same row is in or out in every version."""
    if rate >= 1:
        return rows
    limit = int(rate * 2**64)
    kept = [i for i, name in enumerate(rows.ids) if int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") < limit]
    return Rows([rows.ids[i] for i in kept], [rows.texts[i] for i in kept], [rows.labels[i] for i in kept])


# --- train ----------------------------------------------------------------------------------------------------------------------


def train(context: TrainContext) -> Trained:
    """Train, or go on where a killed training of the same fingerprint stopped, or return what it had finished.

    Raises:
        SettingsError: bad parameters, or a pretrained model that cannot be loaded.
        ValueError: no rows to train on.
    """
    import torch

    from mlops_assets.training import attempt
    from mlops_assets.training.text import TextExamples

    choice = resolve(_config(context), context.parameters)
    if finished := attempt.finished(context, choice.flat):
        return finished
    rows, validation = sample(read_rows(context.table, "train"), choice.dataset.sampling_rate), read_rows(context.table, "validation")
    torch.manual_seed(context.seed)
    net, tokenizer = _network(choice, rows.texts, context.parent)
    length = choice.dataset.max_length
    log.info(
        "training on %d reviews, validating on %d, %d tokens in the vocabulary", len(rows), len(validation), tokenizer.get_vocab_size()
    )
    fitted, metrics = attempt.fit(
        context,
        _model(net, choice, tokenizer),
        TextExamples(tokenizer, rows.texts, rows.labels, length),
        TextExamples(tokenizer, validation.texts, validation.labels, length),
        _recipe(choice.model.training),
    )

    def write(folder: Path) -> None:
        """fp32 weights, configuration and tokenizer."""
        net.save_pretrained(folder)
        tokenizer.save(str(folder / "tokenizer.json"))

    return attempt.keep(context, fitted, metrics, choice.flat, write)


def _config(context: TrainContext) -> SentimentConfig:
    if not isinstance(context.config, SentimentConfig):
        raise TypeError(f"sentiment trains with a SentimentConfig, not {type(context.config).__name__}")
    return context.config


def _network(choice: Choice, texts: Sequence[str], parent: Path | None) -> tuple[Any, Any]:
    """The network and its tokenizer: the champion's weights, pretrained ones, or new ones on a given or learned vocabulary."""
    from mlops_assets.systems.sentiment import model
    from mlops_assets.training import text

    length = choice.dataset.max_length
    if source := str(parent) if parent else choice.model.pretrained:
        return model.pretrained(source, length)
    if choice.model.vocabulary:
        tokenizer = text.read_vocabulary(Path(choice.model.vocabulary))
    else:
        tokenizer = text.learn_tokenizer(texts, choice.model.vocabulary_size)
    return model.from_scratch(choice.model, tokenizer, length), tokenizer


def _model(net: Any, choice: Choice, tokenizer: Any) -> Any:
    from mlops_assets.systems.sentiment import model

    model.freeze(net, choice.model.unfrozen_layers)
    return model.trainable(net, choice.model, tokenizer)


def _recipe(section: TrainingSection) -> Any:
    from mlops_assets.training.trainer import Recipe

    return Recipe(**{name: getattr(section, name) for name in TrainingSection.model_fields if name != "label_smoothing"})


# --- export ---------------------------------------------------------------------------------------------------------------------


def export(trained: Trained, context: TrainContext, folder: Path) -> None:
    """Write the bundle into `folder`: ONNX (int8 where it answers as well as fp32), tokenizer, labels, calibration, golden samples.

    Raises:
        ExportDiffers: ONNX answers differently than torch.
    """
    from mlops_assets.systems.sentiment import model
    from mlops_assets.training import export as writing
    from mlops_assets.training.metrics import fit_temperature

    choice = resolve(_config(context), trained.parameters)
    length = choice.dataset.max_length
    net, tokenizer = model.pretrained(str(trained.folder), length)
    judged = read_rows(context.table, "validation")
    texts, labels = judged.texts[:JUDGED_ROWS], judged.labels[:JUDGED_ROWS]
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.save(str(folder / "tokenizer.json"))
    target = folder / "model.onnx"
    writing.export_text_model(net, target, vocabulary=tokenizer.get_vocab_size(), max_length=length, threads=context.threads)
    _describe(folder, length, "fp32", 1.0)
    logits = load_predictor(folder, context.threads).predict_logits(texts)
    precision = "fp32"
    if choice.model.int8:
        logits, precision = _to_int8(folder, texts, labels, logits, context.threads)
    import numpy as np

    _describe(folder, length, precision, fit_temperature(logits, np.asarray(labels)))
    writing.write_golden(folder, list(golden(context.table)), load_predictor(folder, context.threads).probabilities)


def _describe(folder: Path, max_length: int, precision: str, temperature: float) -> None:
    from mlops_assets.training.export import write_spec

    write_spec(folder, "sentiment", "text-classification", LABELS, precision, temperature, max_length=max_length)


def _to_int8(folder: Path, texts: Sequence[str], labels: Sequence[int], fp32: np.ndarray, threads: int) -> tuple[np.ndarray, str]:
    """Quantize the folder's model and keep that only when it answers as well; the logits and the precision that were kept."""
    import numpy as np

    from mlops_assets.training import export as writing

    target = folder / "model.onnx"
    with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
        original = Path(aside) / "fp32.onnx"
        target.rename(original)
        writing.quantize(original, target)
        int8 = load_predictor(folder, threads).predict_logits(texts)
        quality = writing.int8_quality(fp32, int8, np.asarray(labels))
        log.info("int8: %.2f%% of %d labels equal, accuracy %+.4f", 100 * quality.equal_labels, quality.rows, -quality.accuracy_loss)
        if quality.good:
            return int8, "int8"
        log.warning("int8 answers too differently (%s): the bundle stays fp32", quality)
        original.replace(target)
    return fp32, "fp32"


def golden(table: CleanedTable) -> Iterator[str]:
    """Validation reviews of every length, the same ones for a table whenever it is asked."""
    texts = sorted(set(read_rows(table, "validation").texts), key=lambda text: (len(text), text))
    step = max(1, len(texts) // GOLDEN_SAMPLES)
    yield from texts[::step][:GOLDEN_SAMPLES]


# --- evaluate -------------------------------------------------------------------------------------------------------------------


def load_predictor(folder: Path, threads: int) -> TextPredictor:
    """The server's own predictor."""
    from mlops_assets.serving.text import load_text_predictor

    return load_text_predictor(folder, threads)


def evaluate(folder: Path, table: CleanedTable, threads: int) -> Evaluation:
    """Run the bundle over the holdout.

    Raises:
        ValueError: the table has no holdout rows.
    """
    import numpy as np

    from mlops_assets.training import metrics, plots

    rows = read_rows(table, "holdout")
    if not len(rows):
        raise ValueError(f"{table.dataset_version} of {table.system} has no holdout rows: nothing can be measured. Land labelled reviews.")
    probabilities = load_predictor(folder, threads).probabilities(rows.texts)
    labels = np.asarray(rows.labels)
    predicted = probabilities.argmax(axis=1)
    counts = metrics.confusion(predicted, labels, len(LABELS))
    return Evaluation(
        metrics=metrics.classification(probabilities, labels),
        rows=len(rows),
        holdout_sha256=holdout_sha256(rows),
        correct=(predicted == labels).tolist(),
        slices=metrics.slices(by_length(rows.texts), probabilities, labels),
        tables={"worst_errors": worst_errors(rows, probabilities), "confusion_matrix": metrics.confusion_rows(counts, LABELS)},
        pictures=(
            Picture("confusion_matrix", plots.confusion_matrix(counts, LABELS)),
            Picture("precision_recall", plots.precision_recall(probabilities[:, 1], labels == 1, LABELS[1])),
            Picture("calibration", plots.calibration(probabilities, labels)),
        ),
    )


def holdout_sha256(rows: Rows) -> str:
    digest = hashlib.sha256()
    for row in zip(rows.ids, rows.texts, rows.labels, strict=True):
        digest.update(canonical(row).encode() + b"\n")
    return digest.hexdigest()


def by_length(texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Rows by review length in characters: slice name -> mask."""
    import numpy as np

    lengths = np.array([len(text) for text in texts])
    ends = [0, *LENGTH_SLICES]
    masks = {f"{low + 1}-{high} characters": (lengths > low) & (lengths <= high) for low, high in zip(ends, ends[1:], strict=False)}
    return masks | {f"over {LENGTH_SLICES[-1]} characters": lengths > LENGTH_SLICES[-1]}


def worst_errors(rows: Rows, probabilities: np.ndarray) -> list[dict[str, Any]]:
    """The wrong answers that the model was surest of."""
    import numpy as np

    from mlops_assets.training.metrics import surest_errors

    return [
        {
            "id": rows.ids[i],
            "document": rows.texts[i][:EXCERPT],
            "label": LABELS[rows.labels[i]],
            "predicted": LABELS[predicted],
            "confidence": round(confidence, 4),
        }
        for i, predicted, confidence in surest_errors(probabilities, np.asarray(rows.labels), WORST_ERRORS)
    ]


# --- the system -----------------------------------------------------------------------------------------------------------------


def sources(variant: str = "") -> list[Path]:
    """The files that decide what a training on given data gives."""
    here, shared = Path(__file__).parent, Path(__file__).parents[2] / "training"
    return [
        here / "config.py",
        here / "model.py",
        here / "training.py",
        *(shared / f"{n}.py" for n in ("attempt", "config", "export", "metrics", "text", "trainer")),
    ]


SYSTEM = ModelSystem(
    name="sentiment",
    config_type=SentimentConfig,
    train=train,
    export=export,
    evaluate=evaluate,
    load_predictor=load_predictor,
    open_table=open_table,
    variant_parameters=parameters,
    parameter_names=PARAMETER_NAMES,
    sources=sources,
)
