"""sentiment's half of the model lifecycle: train, export, evaluate, predict, and the one `SYSTEM` that `lifecycle/` takes.

Belongs here: what is particular to reviews of film. Does not belong here: the run itself (`training/trainer.py`), writing bundles
(`training/export.py`), Dagster. Nothing heavy is imported when this module is.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_assets.lifecycle.report import CLASSIFIER
from mlops_assets.lifecycle.system import CleanedTable, Evaluation, ModelSystem, Picture, TrainContext, Trained
from mlops_assets.systems.sentiment.config import DatasetSection, SentimentConfig
from mlops_assets.training.config import BERT_PARAMETERS, BertSection, chosen, flat, override, unflat, valid

if TYPE_CHECKING:
    import numpy as np
    from sqlalchemy import Engine

    from mlops_assets.serving.text import TextPredictor
    from mlops_assets.store import ObjectStore
    from mlops_assets.training.text import Rows

log = logging.getLogger(__name__)

LABELS = ("부정", "긍정")
#: Validation rows on which int8 is judged and the temperature is fitted.
JUDGED_ROWS = 8_000
WORST_ERRORS = 20
EXCERPT = 200


# --- parameters -----------------------------------------------------------------------------------------------------------------

#: `model_type` and `dataset` are names in the configuration's `models` and `datasets`.
PARAMETER_NAMES: Mapping[str, type] = {"model_type": str, **BERT_PARAMETERS}


@dataclass(frozen=True)
class Choice:
    """What one training uses, after overrides."""

    dataset: DatasetSection
    model: BertSection
    flat: Mapping[str, Any]


def _flat(config: SentimentConfig, model_type: str, dataset: str) -> dict[str, Any]:
    model = chosen("모델", model_type, config.models)
    return {"model_type": model_type, **flat(dataset, chosen("데이터셋", dataset, config.datasets), model)}


def parameters(config: SentimentConfig, variant: str = "", given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Plain JSON values, flat: `given` over those of the model and the data set that it names, or else of the configured ones.

    Raises:
        SettingsError: an unknown name, with the choices.
    """

    def sections(given: Mapping[str, Any]) -> dict[str, Any]:
        return _flat(config, str(given.get("model_type", config.project.model)), str(given.get("dataset", config.project.dataset)))

    return override(given or {}, PARAMETER_NAMES, sections)


def resolve(config: SentimentConfig, given: Mapping[str, Any]) -> Choice:
    """`parameters` as validated sections.

    Raises:
        SettingsError: an unknown name or a bad value, with the choices.
    """
    values = parameters(config, given=given)
    sections_of = config.datasets[values["dataset"]], config.models[values["model_type"]]
    return Choice(*valid(lambda: unflat(values, *sections_of)), values)


# --- rows -----------------------------------------------------------------------------------------------------------------------


def open_table(store: ObjectStore, engine: Engine, version: str, folder: Path) -> CleanedTable:
    """The cleaned reviews of a version, downloaded and verified."""
    from mlops_assets.systems.sentiment.data import load_cleaned

    return load_cleaned(store, engine, version, folder)


def rows_of(table: CleanedTable, split: str) -> Rows:
    from mlops_assets.training.text import read_rows

    return read_rows(table, split, text="document", label="label")


# --- train ----------------------------------------------------------------------------------------------------------------------


def train(context: TrainContext) -> Trained:
    """Train, or go on where a killed training of the same fingerprint stopped, or return what it had finished.

    Raises:
        SettingsError: bad parameters, or a pretrained model that cannot be loaded.
        ValueError: no rows to train on.
        Diverged: no figure on validation was ever a number.
    """
    import torch

    from mlops_assets.training import attempt, bert
    from mlops_assets.training.text import TextExamples

    choice = resolve(_config(context), context.parameters)
    if finished := attempt.finished(context, choice.flat):
        return finished
    rows, validation = rows_of(context.table, "train").sample(choice.dataset.sampling_rate), rows_of(context.table, "validation")
    torch.manual_seed(context.seed)
    length = choice.dataset.max_length
    net, tokenizer = bert.network(choice.model, LABELS, rows.texts, length, context.parent)
    log.info(
        "training on %d reviews, validating on %d, %d tokens in the vocabulary", len(rows), len(validation), tokenizer.get_vocab_size()
    )
    fitted, metrics = attempt.fit(
        context,
        bert.trainable(net, choice.model, tokenizer),
        TextExamples(tokenizer, rows.texts, rows.labels, length),
        TextExamples(tokenizer, validation.texts, validation.labels, length),
        bert.recipe(choice.model.training),
    )
    return attempt.keep(context, fitted, metrics, choice.flat, lambda folder: bert.save(net, tokenizer, folder))


def _config(context: TrainContext) -> SentimentConfig:
    if not isinstance(context.config, SentimentConfig):
        raise TypeError(f"sentiment trains with a SentimentConfig, not {type(context.config).__name__}")
    return context.config


# --- export ---------------------------------------------------------------------------------------------------------------------


def export(trained: Trained, context: TrainContext, folder: Path) -> None:
    """Write the bundle into `folder`: ONNX (int8 where it answers as well as fp32), tokenizer, labels, calibration, golden samples.

    Raises:
        ExportDiffers: ONNX answers differently than torch.
    """
    import numpy as np

    from mlops_assets.training import bert, text
    from mlops_assets.training import export as writing
    from mlops_assets.training.metrics import fit_temperature

    choice = resolve(_config(context), trained.parameters)
    length = choice.dataset.max_length
    judged = rows_of(context.table, "validation")
    texts, labels = judged.texts[:JUDGED_ROWS], np.asarray(judged.labels[:JUDGED_ROWS])
    bert.export_fp32(trained.folder, LABELS, folder, max_length=length, threads=context.threads)

    def logits_now() -> np.ndarray:
        return load_predictor(folder, context.threads).predict_logits(texts)

    _describe(folder, length, "fp32", 1.0)
    logits, precision = logits_now(), "fp32"
    if choice.model.int8:
        fp32 = logits
        learned = rows_of(context.table, "train").texts[: writing.CALIBRATION_ROWS]
        how = writing.quantize(load_predictor(folder, context.threads).feeds(learned))
        logits, precision = writing.to_int8(folder, fp32, logits_now, lambda int8: writing.int8_quality(fp32, int8, labels), how)
    _describe(folder, length, precision, fit_temperature(logits, labels))
    writing.write_golden(folder, list(text.golden(judged)), load_predictor(folder, context.threads).probabilities)


def _describe(folder: Path, max_length: int, precision: str, temperature: float) -> None:
    from mlops_assets.training.export import write_spec

    write_spec(folder, "sentiment", "text-classification", LABELS, precision, temperature, max_length=max_length)


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

    from mlops_assets.training import metrics, plots, text

    rows = rows_of(table, "holdout")
    if not len(rows):
        raise ValueError(f"{table.dataset_version} of {table.system} has no holdout rows: nothing can be measured. Land labelled reviews.")
    probabilities = load_predictor(folder, threads).probabilities(rows.texts)
    labels = np.asarray(rows.labels)
    predicted = probabilities.argmax(axis=1)
    counts = metrics.confusion(predicted, labels, len(LABELS))
    recall, support = metrics.recall_of_classes(predicted == labels, labels, LABELS)
    return Evaluation(
        metrics=metrics.classification(probabilities, labels) | recall,
        support=support,
        rows=len(rows),
        holdout_sha256=rows.sha256,
        correct=(predicted == labels).tolist(),
        slices=metrics.slices(text.by_length(rows.texts), probabilities, labels),
        tables={"worst_errors": worst_errors(rows, probabilities), "confusion_matrix": metrics.confusion_rows(counts, LABELS)},
        pictures=(
            Picture("confusion_matrix", plots.confusion_matrix(counts, LABELS)),
            Picture("precision_recall", plots.precision_recall(probabilities[:, 1], labels == 1, LABELS[1])),
            Picture("calibration", plots.calibration(probabilities, labels)),
        ),
    )


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


SYSTEM = ModelSystem(
    name="sentiment",
    config_type=SentimentConfig,
    train=train,
    export=export,
    evaluate=evaluate,
    load_predictor=load_predictor,
    open_table=open_table,
    variant_parameters=lambda config, variant, given: resolve(config, given).flat,
    parameter_names=PARAMETER_NAMES,
    directions={**CLASSIFIER, "recall_*": "more"},
)
