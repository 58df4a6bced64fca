"""sentiment's half of the model lifecycle: train, export, evaluate, predict, and the one `SYSTEM` that `lifecycle/` takes.

Belongs here: what is particular to reviews of film. Does not belong here: the run itself (`training/trainer.py`), writing bundles
(`training/export.py`), Dagster. Nothing heavy is imported when this module is.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_assets.kinds.text import linear
from mlops_assets.kinds.text.config import LINEAR, LINEAR_PARAMETERS, LinearSection
from mlops_assets.lifecycle.report import CLASSIFIER
from mlops_assets.lifecycle.system import CleanedTable, Evaluation, ModelSystem, Picture, TrainContext, Trained
from mlops_assets.systems.sentiment.config import DatasetSection, SentimentConfig
from mlops_assets.training.config import BERT_PARAMETERS, BertSection, chosen, flat, override, unflat, valid

if TYPE_CHECKING:
    import numpy as np
    from sqlalchemy import Engine

    from mlops_assets.kinds.text.predict import TextPredictor
    from mlops_assets.store import ObjectStore
    from mlops_assets.training.text import Rows

log = logging.getLogger(__name__)

LABELS = ("부정", "긍정")
#: Validation rows on which int8 is judged and the temperature is fitted.
JUDGED_ROWS = 8_000
WORST_ERRORS = 20
EXCERPT = 200


# --- parameters -----------------------------------------------------------------------------------------------------------------

#: The network has no name of its own: `model_type` is one in the configuration's `models`, as `dataset` is in its `datasets`.
NETWORK = ""
NETWORK_PARAMETERS: Mapping[str, type] = {"model_type": str, **BERT_PARAMETERS}
PARAMETERS = {LINEAR: {"dataset": str, "sampling_rate": float, **LINEAR_PARAMETERS}, NETWORK: NETWORK_PARAMETERS}


@dataclass(frozen=True)
class Choice:
    """What one training uses, after overrides."""

    dataset: DatasetSection
    model: BertSection | LinearSection
    flat: Mapping[str, Any]


def parameters(config: SentimentConfig, variant: str = "", given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Plain JSON values, flat: `given` over those of the model and the data set that it names, or else of the configured ones.

    Raises:
        SettingsError: an unknown name, with the choices.
    """

    def sections(given: Mapping[str, Any]) -> dict[str, Any]:
        name = str(given.get("dataset", config.project.dataset))
        dataset = chosen("데이터셋", name, config.datasets)
        if variant == LINEAR:
            return {"dataset": name, "sampling_rate": dataset.sampling_rate, **config.linear.model_dump(mode="json")}
        model_type = str(given.get("model_type", config.project.model))
        return {"model_type": model_type, **flat(name, dataset, chosen("모델", model_type, config.models))}

    return override(given or {}, PARAMETERS[variant], sections)


def resolve(config: SentimentConfig, variant: str, given: Mapping[str, Any]) -> Choice:
    """`parameters` as validated sections.

    Raises:
        SettingsError: an unknown name or a bad value, with the choices.
    """
    values = parameters(config, variant, given)
    dataset = config.datasets[values["dataset"]]
    if variant == LINEAR:
        return valid(lambda: Choice(*linear.sections(values, dataset, LinearSection), values))
    return Choice(*valid(lambda: unflat(values, dataset, config.models[values["model_type"]])), values)


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
    choice = resolve(_config(context), context.variant, context.parameters)
    rows, validation = rows_of(context.table, "train").sample(choice.dataset.sampling_rate), rows_of(context.table, "validation")
    return _train_linear(context, choice, rows, validation) if context.variant == LINEAR else _train(context, choice, rows, validation)


def _train_linear(context: TrainContext, choice: Choice, rows: Rows, validation: Rows) -> Trained:
    import numpy as np

    from mlops_assets.training.metrics import classification, sigmoid

    def measure(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        yes = sigmoid(scores)
        return classification(np.concatenate([1 - yes, yes], axis=1), labels)

    assert isinstance(choice.model, LinearSection)
    truth = np.asarray(rows.labels)[:, None] == 1
    return linear.train(context, choice.model, rows.texts, truth, (validation.texts, np.asarray(validation.labels)), measure, choice.flat)


def _train(context: TrainContext, choice: Choice, rows: Rows, validation: Rows) -> Trained:
    import torch

    from mlops_assets.training import attempt, bert
    from mlops_assets.training.text import TextExamples

    assert isinstance(choice.model, BertSection)
    if finished := attempt.finished(context, choice.flat):
        return finished
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
    """Write the bundle into `folder`: the n-grams' tables, or ONNX (int8 where it answers as well as fp32) and tokenizer; labels,
    calibration, golden samples.

    Raises:
        ExportDiffers: ONNX answers differently than torch.
    """
    import numpy as np

    from mlops_assets.training import export as writing
    from mlops_assets.training import text
    from mlops_assets.training.metrics import fit_temperature

    choice = resolve(_config(context), context.variant, trained.parameters)
    judged = rows_of(context.table, "validation")
    texts, labels = judged.texts[:JUDGED_ROWS], np.asarray(judged.labels[:JUDGED_ROWS])
    if isinstance(choice.model, LinearSection):
        more, precision = linear.export(trained.folder, folder, choice.model), "fp16"
        _describe(folder, precision, 1.0, **more)
        logits = load_predictor(folder, context.threads).predict_logits(texts)
    else:
        more = {"max_length": choice.dataset.max_length}
        logits, precision = _export_network(trained, context, choice.model, folder, texts, labels, more)
    _describe(folder, precision, fit_temperature(logits, labels), **more)
    writing.write_golden(folder, list(text.golden(judged)), load_predictor(folder, context.threads).probabilities)


def _export_network(
    trained: Trained,
    context: TrainContext,
    model: BertSection,
    folder: Path,
    texts: Sequence[str],
    labels: np.ndarray,
    more: Mapping[str, Any],
) -> tuple[np.ndarray, str]:
    """The logits of the judged texts as the written network gives them, and its precision."""
    from mlops_assets.kinds.text.predict import load_network
    from mlops_assets.training import bert
    from mlops_assets.training import export as writing

    bert.export_fp32(trained.folder, LABELS, folder, max_length=more["max_length"], threads=context.threads)

    def logits_now() -> np.ndarray:
        return load_predictor(folder, context.threads).predict_logits(texts)

    _describe(folder, "fp32", 1.0, **more)
    fp32 = logits_now()
    if not model.int8:
        return fp32, "fp32"
    learned = rows_of(context.table, "train").texts[: writing.CALIBRATION_ROWS]
    how = writing.quantize(load_network(folder, context.threads).feeds(learned))
    return writing.to_int8(folder, fp32, logits_now, lambda int8: writing.int8_quality(fp32, int8, labels), how)


def _describe(folder: Path, precision: str, temperature: float, **more: Any) -> None:
    from mlops_assets.training.export import write_spec

    write_spec(folder, "sentiment", "text-classification", LABELS, precision, temperature, **more)


# --- evaluate -------------------------------------------------------------------------------------------------------------------


def load_predictor(folder: Path, threads: int) -> TextPredictor:
    """The server's own predictor."""
    from mlops_assets.kinds.text.predict import load_text_predictor

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
        trivial=metrics.always_one(labels, LABELS),
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
    variant_parameters=lambda config, variant, given: resolve(config, variant, given).flat,
    parameter_names={**PARAMETERS[NETWORK], **PARAMETERS[LINEAR]},
    variants=(LINEAR, NETWORK),
    baseline=LINEAR,
    directions={**CLASSIFIER, "recall_*": "more"},
)
