"""hate_speech's half of the model lifecycle: train, export, evaluate, predict, and the one `SYSTEM` that `lifecycle/` takes.

A comment has several labels; `clean` stands alone: it is said when, and only when, 1 - its probability stays below the cut. Accuracy is the
share of comments of which the whole set of labels is right, and that is what the paired test against the champion compares. Belongs here:
what is particular to hateful comments. Does not belong here: the run itself (`training/trainer.py`), Dagster. Nothing heavy is imported
when this module is.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_assets.kinds.text import linear
from mlops_assets.kinds.text.config import LINEAR, LINEAR_PARAMETERS
from mlops_assets.lifecycle.report import CLASSIFIER, METRICS
from mlops_assets.lifecycle.system import CleanedTable, Evaluation, ModelSystem, Picture, TrainContext, Trained
from mlops_assets.systems.hate_speech.config import JOINT, VARIANTS, BaselineSection, DatasetSection, HateSpeechConfig, ModelSection
from mlops_assets.training.config import BERT_PARAMETERS, chosen, flat, override, unflat, valid

if TYPE_CHECKING:
    import numpy as np
    from sqlalchemy import Engine

    from mlops_assets.kinds.text.predict import LabelRule, TextPredictor
    from mlops_assets.store import ObjectStore
    from mlops_assets.training.text import Rows

log = logging.getLogger(__name__)

#: Validation rows on which int8 is judged, and temperature and thresholds are fitted.
JUDGED_ROWS = 8_000
WORST_ERRORS = 20
EXCERPT = 200
#: While a model trains its thresholds are not known yet.
UNTUNED = 0.5


# --- parameters -----------------------------------------------------------------------------------------------------------------

BASELINE_PARAMETERS: Mapping[str, type] = {"dataset": str, "sampling_rate": float, "swaps": int, **LINEAR_PARAMETERS}


@dataclass(frozen=True)
class Choice:
    """What one training uses, after overrides."""

    dataset: DatasetSection
    model: ModelSection | BaselineSection
    flat: Mapping[str, Any]


def parameters(config: HateSpeechConfig, variant: str, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Plain JSON values, flat: `given` over those of the variant and of the data set that it names, or else of the configured one.

    Raises:
        SettingsError: an unknown name, with the choices.
    """

    def sections(given: Mapping[str, Any]) -> dict[str, Any]:
        name = str(given.get("dataset", config.project.dataset))
        dataset = chosen("데이터셋", name, config.datasets)
        if variant == LINEAR:
            return {"dataset": name, "sampling_rate": dataset.sampling_rate, **config.linear.model_dump(mode="json")}
        return flat(name, dataset, config.models[variant])

    return override(given or {}, BASELINE_PARAMETERS if variant == LINEAR else BERT_PARAMETERS, sections)


def resolve(config: HateSpeechConfig, variant: str, given: Mapping[str, Any]) -> Choice:
    """`parameters` as validated sections.

    Raises:
        SettingsError: an unknown name or a bad value, with the choices.
    """
    values = parameters(config, variant, given)
    dataset = config.datasets[values["dataset"]]
    if variant == LINEAR:
        return valid(lambda: Choice(*linear.sections(values, dataset, BaselineSection), values))
    return Choice(*valid(lambda: unflat(values, dataset, config.models[variant])), values)


def _choice(context: TrainContext, given: Mapping[str, Any]) -> Choice:
    if not isinstance(context.config, HateSpeechConfig):
        raise TypeError(f"hate_speech trains with a HateSpeechConfig, not {type(context.config).__name__}")
    return resolve(context.config, context.variant, given)


# --- rows -----------------------------------------------------------------------------------------------------------------------


def open_table(store: ObjectStore, engine: Engine, version: str, folder: Path) -> CleanedTable:
    """The cleaned comments of a version, downloaded and verified."""
    from mlops_assets.systems.hate_speech.data import load_cleaned

    return load_cleaned(store, engine, version, folder)


def rows_of(table: CleanedTable, split: str) -> Rows:
    from mlops_assets.training.text import read_rows

    return read_rows(table, split, text="text", label="labels")


def truth_of(rows: Rows, labels: Sequence[str]) -> np.ndarray:
    """float32 [rows, labels], 1 where the row has the label."""
    import numpy as np

    return np.array([[label in of_row for label in labels] for of_row in rows.labels], np.float32).reshape(len(rows), len(labels))


# --- train ----------------------------------------------------------------------------------------------------------------------


def train(context: TrainContext) -> Trained:
    """Train, or go on where a killed training of the same fingerprint stopped, or return what it had finished.

    Raises:
        SettingsError: bad parameters, or a pretrained model that cannot be loaded.
        ValueError: no rows to train on.
        Diverged: no figure on validation was ever a number.
    """
    from mlops_assets.kinds.text.predict import LabelRule
    from mlops_assets.training.metrics import several_labels, sigmoid

    choice = _choice(context, context.parameters)
    labels = choice.dataset.labels
    rows, validation = rows_of(context.table, "train").sample(choice.dataset.sampling_rate), rows_of(context.table, "validation")
    untuned = LabelRule((UNTUNED,) * len(labels), labels.index(choice.dataset.clean))

    def measure(logits: np.ndarray, truth: np.ndarray) -> dict[str, float]:
        probabilities = sigmoid(logits)
        return several_labels(probabilities, truth, untuned(probabilities))

    if not isinstance(choice.model, BaselineSection):
        return _train_network(context, choice, rows, validation, measure)
    measured = (validation.texts, truth_of(validation, labels))
    rows = with_swaps(rows, choice.dataset, choice.model.swaps, context.seed)
    return linear.train(context, choice.model, rows.texts, truth_of(rows, labels) > 0, measured, measure, choice.flat)


def with_swaps(rows: Rows, section: DatasetSection, swaps: int, seed: int) -> Rows:
    """The rows, and each clean one that names a group `swaps` times more, every name replaced by one of any group: it stays clean, so that
    the names tell nothing. Hateful ones stay as they are: hate against another group is worded otherwise."""
    from mlops_assets.training.text import Rows

    draw, words = random.Random(seed), [word for words in section.groups.values() for word in words]
    ids, texts = [], []
    for name, text, labels in zip(rows.ids, rows.texts, rows.labels, strict=True):
        named = [word for word in words if word in text] if section.clean in labels else []
        for number in range(swaps if named else 0):
            other = text
            for word in named:
                other = other.replace(word, draw.choice(words))
            ids.append(f"{name}~{number}")
            texts.append(other)
    return Rows(rows.ids + ids, rows.texts + texts, rows.labels + [[section.clean] for _ in ids])


def _train_network(
    context: TrainContext, choice: Choice, rows: Rows, validation: Rows, measure: Callable[[np.ndarray, np.ndarray], dict[str, float]]
) -> Trained:
    import torch

    from mlops_assets.training import attempt, bert
    from mlops_assets.training.text import TextExamples

    assert isinstance(choice.model, ModelSection)
    if finished := attempt.finished(context, choice.flat):
        return finished
    labels, length = choice.dataset.labels, choice.dataset.max_length
    torch.manual_seed(context.seed)
    net, tokenizer = bert.network(choice.model, labels, rows.texts, length, context.parent)
    log.info("training on %d comments, validating on %d, %d tokens", len(rows), len(validation), tokenizer.get_vocab_size())
    fitted, metrics = attempt.fit(
        context,
        bert.trainable(net, choice.model, tokenizer, multi_label=True),
        TextExamples(tokenizer, rows.texts, truth_of(rows, labels), length),
        TextExamples(tokenizer, validation.texts, truth_of(validation, labels), length),
        bert.recipe(choice.model.training),
        measure,
    )
    return attempt.keep(context, fitted, metrics, choice.flat, lambda folder: bert.save(net, tokenizer, folder))


# --- export ---------------------------------------------------------------------------------------------------------------------


def tuned(probabilities: np.ndarray, truth: np.ndarray, section: DatasetSection) -> LabelRule:
    """The rule of the best figures on validation: a cut on 1 - clean under `max_false_flags`, then each label's threshold behind it."""
    import numpy as np

    from mlops_assets.kinds.text.predict import LabelRule
    from mlops_assets.training.metrics import best_cut, best_thresholds

    clean = section.labels.index(section.clean)
    suspicion = 1 - probabilities[:, clean]
    cut = round(best_cut(suspicion, truth[:, clean] == 0, section.max_false_flags), 6)
    behind = np.where(suspicion[:, None] >= cut, probabilities, 0.0)
    return LabelRule(tuple(float(round(t, 6)) for t in best_thresholds(behind, truth)), clean, cut)


def export(trained: Trained, context: TrainContext, folder: Path) -> None:
    """Write the bundle into `folder`: the n-grams' tables, or ONNX (int8 where it answers as well as fp32) and tokenizer; labels, the rule
    that says which a comment has, calibration, golden samples.

    The precision-recall curve of every label on validation, as the bundle answers, goes to TensorBoard beside the training's figures.

    Raises:
        ExportDiffers: ONNX answers differently than torch.
    """
    from mlops_assets.training import attempt, text
    from mlops_assets.training import export as writing
    from mlops_assets.training.metrics import fit_temperature, sigmoid

    choice = _choice(context, trained.parameters)
    section = choice.dataset
    validation = rows_of(context.table, "validation")
    texts, truth = validation.texts[:JUDGED_ROWS], truth_of(validation, section.labels)[:JUDGED_ROWS]
    if isinstance(choice.model, BaselineSection):
        more, precision = linear.export(trained.folder, folder, choice.model), "fp16"
        _describe(folder, section, precision, **more)
        logits = load_predictor(folder, context.threads).predict_logits(texts)
    else:
        more = {"max_length": section.max_length}
        logits, precision = _export_network(trained, context, choice, folder, texts, truth)
    temperature = fit_temperature(logits, truth)
    probabilities = sigmoid(logits / temperature)
    _describe(folder, section, precision, temperature, tuned(probabilities, truth, section), **more)
    writing.write_golden(folder, list(text.golden(validation)), load_predictor(folder, context.threads).probabilities)
    attempt.log_curves(context, section.labels, probabilities, truth, int(trained.metrics.get("best_step", 0)))


def _export_network(
    trained: Trained, context: TrainContext, choice: Choice, folder: Path, texts: Sequence[str], truth: np.ndarray
) -> tuple[np.ndarray, str]:
    """Write the network; its logits of `texts` and its precision."""
    from mlops_assets.kinds.text.predict import load_network
    from mlops_assets.training import bert
    from mlops_assets.training import export as writing
    from mlops_assets.training.metrics import sigmoid

    section, model = choice.dataset, choice.model
    assert isinstance(model, ModelSection)
    bert.export_fp32(trained.folder, section.labels, folder, max_length=section.max_length, threads=context.threads)
    _describe(folder, section, "fp32", max_length=section.max_length)

    def logits_now() -> np.ndarray:
        return load_predictor(folder, context.threads).predict_logits(texts)

    fp32 = logits_now()
    if not model.int8:
        return fp32, "fp32"
    rule = tuned(sigmoid(fp32), truth, section)
    learned = rows_of(context.table, "train").texts[: writing.CALIBRATION_ROWS]
    return writing.to_int8(
        folder,
        fp32,
        logits_now,
        lambda int8: writing.int8_quality_of_labels(fp32, int8, truth, lambda found: rule(sigmoid(found))),
        writing.quantize(load_network(folder, context.threads).feeds(learned)),
    )


def _describe(
    folder: Path, section: DatasetSection, precision: str, temperature: float = 1.0, rule: LabelRule | None = None, **more: Any
) -> None:
    """Without a rule: not tuned yet."""
    from mlops_assets.training.export import write_spec

    thresholds, cut = (rule.thresholds, rule.cut) if rule else ((UNTUNED,) * len(section.labels), UNTUNED)
    others = {label: value for label, value in zip(section.labels, thresholds, strict=True) if label != section.clean}
    more |= {"thresholds": others, "fallback": section.clean, "cut": cut}
    write_spec(folder, "hate_speech", "text-labels", section.labels, precision, temperature, **more)


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
    from mlops_assets.training import metrics, plots, text

    rows = rows_of(table, "holdout")
    if not len(rows):
        raise ValueError(f"{table.dataset_version} of {table.system} has no holdout rows: nothing can be measured. Land labelled comments.")
    predictor = load_predictor(folder, threads)
    assert predictor.rule is not None  # a bundle of this system is of several labels
    labels = predictor.labels
    probabilities, truth = predictor.probabilities(rows.texts), truth_of(rows, labels)
    said = predictor.rule(probabilities)
    clean, suspicion = predictor.rule.fallback, predictor.rule.suspicion(probabilities)
    flags = false_flags(table, said, truth, labels, clean)
    rates, behind = flag_figures(predictor, suspicion, said, truth[:, clean] > 0, flags)
    found = metrics.several_labels(probabilities, truth, said)
    intervals = metrics.several_labels_intervals(probabilities, truth, said)
    by_label = label_rows(probabilities, truth, said, labels)
    of_labels = {f"{figure}_{row['label']}": row[figure] for figure in ("f1", "recall") for row in by_label if row["rows"]}
    return Evaluation(
        metrics=found | of_labels | rates,
        support={f"recall_{row['label']}": row["rows"] for row in by_label} | behind,
        rows=len(rows),
        holdout_sha256=rows.sha256,
        correct=(said == (truth > 0)).all(axis=1).tolist(),
        trivial=metrics.flags_all_or_nothing(truth, clean),
        slices=_slices(text.by_length(rows.texts), truth, said, labels),
        tables={
            "labels": by_label,
            "intervals": [{"metric": name, "value": found[name], "low": low, "high": high} for name, (low, high) in intervals.items()],
            "false_flags": flags,
            "worst_errors": worst_errors(rows, probabilities, truth, said, labels),
        },
        pictures=(
            Picture("precision_recall", plots.precision_recall_of_labels(probabilities, truth, labels)),
            Picture("calibration", plots.calibration(*_yes_and_no(probabilities, truth))),
        ),
    )


def flag_figures(
    predictor: TextPredictor, suspicion: np.ndarray, said: np.ndarray, is_clean: np.ndarray, flags: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, float], dict[str, int]]:
    """Whether anything is said at all, rightly or wrongly, and the rows behind each figure that has not all of them.

    `false_flag_rate` is of all clean comments, `false_flag_rate_named` of those that name a group, `false_flag_rate_neutral` of the
    sentences of `neutral.py`; `false_flag_rate_at_recall_90` is what 90 % of the hateful ones found would cost, wherever the cut lies.
    """
    from mlops_assets.systems.hate_speech.neutral import sentences
    from mlops_assets.training import metrics

    assert predictor.rule is not None
    flagged = ~said[:, predictor.rule.fallback]
    neutral = ~predictor.rule(predictor.probabilities(sentences()))[:, predictor.rule.fallback]
    found = metrics.flagging(flagged, ~is_clean)
    behind = {"recall_any": int((~is_clean).sum()), "false_flag_rate": int(is_clean.sum())}
    if flags:
        found["false_flag_rate_named"], behind["false_flag_rate_named"] = flags[-1]["rate"], flags[-1]["rows"]
    if is_clean.any() and not is_clean.all():
        found["false_flag_rate_at_recall_90"] = metrics.false_flags_at_recall(suspicion, ~is_clean, 0.90)
        behind["false_flag_rate_at_recall_90"] = int(is_clean.sum())
    found["false_flag_rate_neutral"], behind["false_flag_rate_neutral"] = float(neutral.mean()), len(neutral)
    return found, behind


def label_rows(probabilities: np.ndarray, truth: np.ndarray, said: np.ndarray, labels: Sequence[str]) -> list[dict[str, Any]]:
    """The figures of each label."""
    from mlops_assets.training import metrics

    precision, recall, f1 = metrics.precision_recall_f1(metrics.hits(said, truth))
    return [
        {
            "label": label,
            "rows": int(truth[:, i].sum()),
            "precision": float(precision[i]),
            "recall": float(recall[i]),
            "f1": float(f1[i]),
            "average_precision": metrics.precision_recall_curve(probabilities[:, i], truth[:, i] > 0)[2],
        }
        for i, label in enumerate(labels)
    ]


def false_flags(table: CleanedTable, said: np.ndarray, truth: np.ndarray, labels: Sequence[str], clean: int) -> list[dict[str, Any]]:
    """Clean comments that only name a group, and how many of them the model flags: by group, all together last; of none, nothing."""
    import numpy as np

    from mlops_assets.training.text import read_rows

    named = [set(names.split(JOINT)) - {""} for names in read_rows(table, "holdout", text="text", label="names").labels]
    is_clean, flagged = truth[:, clean] > 0, ~said[:, clean]
    groups = {label: is_clean & np.array([label in names for names in named]) for label in labels}
    masks = {label: mask for label, mask in groups.items() if mask.any()}
    if not masks:
        return []
    masks["all"] = np.logical_or.reduce(list(masks.values()))
    return [
        {"names": label, "rows": int(mask.sum()), "flagged": int((mask & flagged).sum()), "rate": float(flagged[mask].mean())}
        for label, mask in masks.items()
    ]


def _slices(by_length: Mapping[str, np.ndarray], truth: np.ndarray, said: np.ndarray, labels: Sequence[str]) -> dict[str, dict[str, float]]:
    """Precision, recall and F1 over all yes and no of the rows of a length, and of each label."""
    from mlops_assets.training import metrics

    def figures(rows: float, of_said: np.ndarray, of_truth: np.ndarray) -> dict[str, float]:
        parts = metrics.precision_recall_f1(metrics.hits(of_said, of_truth).sum(axis=1, keepdims=True))
        return {"rows": rows, **{name: float(part[0]) for name, part in zip(("precision", "recall", "f1"), parts, strict=True)}}

    lengths = {name: figures(float(mask.sum()), said[mask], truth[mask]) for name, mask in by_length.items() if mask.any()}
    return lengths | {label: figures(float(truth[:, i].sum()), said[:, i : i + 1], truth[:, i : i + 1]) for i, label in enumerate(labels)}


def worst_errors(rows: Rows, probabilities: np.ndarray, truth: np.ndarray, said: np.ndarray, labels: Sequence[str]) -> list[dict[str, Any]]:
    """The comments with a wrong set of labels of which the model was surest: a label's probability, or what it lacks of certainty."""
    import numpy as np

    wrong = (said != (truth > 0)).any(axis=1)
    off = np.abs(probabilities - truth).max(axis=1)
    worst = sorted(np.flatnonzero(wrong).tolist(), key=lambda row: (-off[row], row))[:WORST_ERRORS]
    return [
        {
            "id": rows.ids[row],
            "text": rows.texts[row][:EXCERPT],
            "labels": JOINT.join(rows.labels[row]),
            "predicted": JOINT.join(label for label, is_said in zip(labels, said[row], strict=True) if is_said),
            "off_by": round(float(off[row]), 4),
        }
        for row in worst
    ]


def _yes_and_no(probabilities: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every label of every row as a question of its own."""
    import numpy as np

    return np.stack([1 - probabilities.ravel(), probabilities.ravel()], axis=1), (truth.ravel() > 0).astype(int)


# --- the system -----------------------------------------------------------------------------------------------------------------


SYSTEM = ModelSystem(
    name="hate_speech",
    config_type=HateSpeechConfig,
    train=train,
    export=export,
    evaluate=evaluate,
    load_predictor=load_predictor,
    open_table=open_table,
    variant_parameters=lambda config, variant, given: resolve(config, variant, given).flat,
    parameter_names={**BERT_PARAMETERS, **BASELINE_PARAMETERS},
    variants=VARIANTS,
    baseline=LINEAR,
    metrics=(*METRICS, "lrap"),
    directions={
        **CLASSIFIER,
        **dict.fromkeys(("lrap", "micro_f1", "f1_*", "recall_*"), "more"),
        "false_flag_rate*": "less",
    },
    from_champion=("from_champion",),
)
