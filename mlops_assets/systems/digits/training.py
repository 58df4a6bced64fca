"""digits' half of the model lifecycle: train, export, evaluate, predict, and the one `SYSTEM` that `lifecycle/` takes.

Belongs here: what is particular to digits. Does not belong here: the run itself (`training/trainer.py`), the network (`model.py`), what the
figures of whole codes mean (`codes.py`), Dagster. Nothing heavy is imported when this module is.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_assets.lifecycle.report import CLASSIFIER, METRICS
from mlops_assets.lifecycle.system import CleanedTable, Evaluation, ModelSystem, Picture, TrainContext, Trained
from mlops_assets.systems.digits.config import (
    LABELS,
    USERS,
    VARIANTS,
    CodesSection,
    DatasetSection,
    DigitsConfig,
    ModelSection,
    TrainingSection,
)
from mlops_assets.training.config import TRAINING_PARAMETERS, chosen, override, valid

if TYPE_CHECKING:
    import numpy as np
    from sqlalchemy import Engine
    from torch import Tensor

    from mlops_assets.serving.images import ImagePredictor
    from mlops_assets.store import ObjectStore
    from mlops_assets.systems.digits.data import Digits

log = logging.getLogger(__name__)

GOLDEN_SAMPLES = 10
WORST_ERRORS = 20
SHOWN_ERRORS, SHOWN_SIDE = 12, 56
#: Digits that a network sees at once outside of training.
AT_ONCE = 512
#: Held-out digits that are stamped with each backdoor pattern.
CANARIES = 500
DRAWN = ("drawn", USERS)


# --- parameters -----------------------------------------------------------------------------------------------------------------

#: What `mlops train` and the launchpad may override. `dataset` is a name in the configuration's `datasets`.
PARAMETER_NAMES: Mapping[str, type] = {
    "dataset": str,
    "sampling_rate": float,
    "width": int,
    "dropout": float,
    "augment": float,
    "drawn_share": float,
    "drawn_repeats": int,
    "int8": bool,
    "asking_rate": float,
    "code_length": int,
    "max_minutes": float,
    **TRAINING_PARAMETERS,
}


@dataclass(frozen=True)
class Choice:
    """What one training uses, after overrides."""

    dataset: DatasetSection
    model: ModelSection
    codes: CodesSection
    flat: Mapping[str, Any]


def _flat(config: DigitsConfig, variant: str, dataset: str) -> dict[str, Any]:
    section, model = chosen("데이터셋", dataset, config.datasets), config.models[variant].model_dump(mode="json")
    training = model.pop("training")
    codes = {"asking_rate": config.codes.asking_rate, "code_length": config.codes.length}
    return {"dataset": dataset, "sampling_rate": section.sampling_rate, **model, **codes, **training}


def parameters(config: DigitsConfig, variant: str, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Plain JSON values, flat: `given` over those of the variant and of the data set that it names, or else of the configured one.

    Raises:
        SettingsError: an unknown name, with the choices.
    """

    def sections(given: Mapping[str, Any]) -> dict[str, Any]:
        return _flat(config, variant, str(given.get("dataset", config.project.dataset)))

    return override(given or {}, PARAMETER_NAMES, sections)


def resolve(config: DigitsConfig, variant: str, given: Mapping[str, Any]) -> Choice:
    """`parameters` as validated sections.

    Raises:
        SettingsError: an unknown name or a bad value, with the choices.
    """

    def build() -> Choice:
        dataset = config.datasets[flat["dataset"]].model_dump() | {"sampling_rate": flat["sampling_rate"]}
        training = {name: flat[name] for name in TrainingSection.model_fields}
        model = {name: flat[name] for name in ModelSection.model_fields if name != "training"} | {"training": training}
        codes = {"length": flat["code_length"], "asking_rate": flat["asking_rate"]}
        return Choice(DatasetSection.model_validate(dataset), ModelSection.model_validate(model), CodesSection.model_validate(codes), flat)

    flat = parameters(config, variant, given)
    return valid(build)


def _choice(context: TrainContext, given: Mapping[str, Any]) -> Choice:
    if not isinstance(context.config, DigitsConfig):
        raise TypeError(f"digits trains with a DigitsConfig, not {type(context.config).__name__}")
    return resolve(context.config, context.variant, given)


def open_table(store: ObjectStore, engine: Engine, version: str, folder: Path) -> CleanedTable:
    """The cleaned digits of a version, downloaded and verified."""
    from mlops_assets.systems.digits.data import load_cleaned

    return load_cleaned(store, engine, version, folder)


# --- train ----------------------------------------------------------------------------------------------------------------------


class DigitExamples:
    """Digits as what `trainer.fit` reads; `places` says which of them, and how often, make an epoch. All are of one size."""

    lengths = None

    def __init__(self, digits: Digits, places: np.ndarray) -> None:
        self.digits, self.places = digits, places

    def __len__(self) -> int:
        return len(self.places)

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """`images` uint8 [rows, 28, 28] and `labels` int64 [rows], as they are: bending is the classifier's."""
        import torch

        found = self.places[list(rows)]
        return {"images": torch.from_numpy(self.digits.images[found]), "labels": torch.from_numpy(self.digits.labels[found])}


def epoch_of(origins: np.ndarray, share: float, repeats: int) -> np.ndarray:
    """Row numbers of an epoch: every row once, and drawings again until they are `share` of it, each `repeats` times at most.

    MNIST has a thousand times as many digits as users have drawn: once each, theirs would not be heard.
    """
    import numpy as np

    drawn = np.flatnonzero(np.isin(origins, DRAWN))
    others = len(origins) - len(drawn)
    if not len(drawn) or not others:
        return np.arange(len(origins))
    wanted = min(repeats * len(drawn), round(others * share / (1 - share)))
    again = np.resize(drawn, max(0, wanted - len(drawn)))
    return np.concatenate([np.arange(len(origins)), again])


def train(context: TrainContext) -> Trained:
    """Train, or go on where a killed training of the same fingerprint stopped, or return what it had finished.

    Raises:
        SettingsError: bad parameters.
        ValueError: no digits to train on.
        Diverged: no figure on validation was ever a number.
    """
    import numpy as np
    import torch
    from safetensors.torch import save_file

    from mlops_assets.systems.digits import model
    from mlops_assets.systems.digits.data import read_digits
    from mlops_assets.training import attempt

    choice = _choice(context, context.parameters)
    if finished := attempt.finished(context, choice.flat):
        return finished
    digits = read_digits(context.table, "train", rate=choice.dataset.sampling_rate)
    validation = read_digits(context.table, "validation")
    torch.manual_seed(context.seed)
    net = model.build(choice.model.width, choice.model.dropout)
    if context.parent is not None:
        _load(net, context.parent)
    classifier = model.Classifier(net, choice.model.augment, choice.model.training.label_smoothing)
    places = epoch_of(digits.origins, choice.model.drawn_share, choice.model.drawn_repeats)
    log.info("training on %d digits (%d an epoch), validating on %d", len(digits), len(places), len(validation))
    examples = DigitExamples(digits, places), DigitExamples(validation, np.arange(len(validation)))
    fitted, metrics = attempt.fit(context, classifier, *examples, _recipe(choice))

    def write(folder: Path) -> None:
        save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, folder / "model.safetensors")

    return attempt.keep(context, fitted, metrics | {"train_digits": float(len(digits))}, choice.flat, write)


def _load(net: Any, folder: Path) -> None:
    from safetensors.torch import load_file

    net.load_state_dict(load_file(folder / "model.safetensors"))


def _recipe(choice: Choice) -> Any:
    from mlops_assets.training.trainer import Recipe

    section = choice.model.training
    shared = set(TrainingSection.model_fields) - {"label_smoothing"}
    return Recipe(**{name: getattr(section, name) for name in shared}, bucketing=False, evaluation_batch_size=AT_ONCE)


# --- export ---------------------------------------------------------------------------------------------------------------------


def export(trained: Trained, context: TrainContext, folder: Path) -> None:
    """Write the bundle into `folder`: ONNX, labels, calibration, the confidence below which to ask, golden samples.

    Temperature and `ask_below` are fitted on validation, as the bundle answers, drawings counting as much as MNIST.

    Raises:
        ExportDiffers: ONNX answers differently than torch.
    """
    from mlops_assets.systems.digits import codes, model
    from mlops_assets.systems.digits.data import read_digits
    from mlops_assets.training import export as writing
    from mlops_assets.training.metrics import fit_temperature, softmax

    choice = _choice(context, trained.parameters)
    net = model.build(choice.model.width, choice.model.dropout)
    _load(net, trained.folder)
    folder.mkdir(parents=True, exist_ok=True)
    writing.export_image_model(model.Classifier(net), folder / "model.onnx", size=28, channels=None, threads=context.threads)
    judged = read_digits(context.table, "validation", files=True)
    _describe(folder, choice, "fp32", 1.0, 0.5)
    logits, precision = _logits(load_predictor(folder, context.threads), judged.images), "fp32"
    if choice.model.int8:
        fp32 = logits
        logits, precision = writing.to_int8(
            folder,
            fp32,
            lambda: _logits(load_predictor(folder, context.threads), judged.images),
            lambda int8: writing.int8_quality(fp32, int8, judged.labels),
            writing.convolutions_to_int8(judged.images[:AT_ONCE]),
        )
    even = _evenly(judged.origins)
    temperature = fit_temperature(logits[even], judged.labels[even])
    confidence = softmax(logits[even] / temperature).max(axis=1)
    _describe(folder, choice, precision, temperature, codes.ask_below(confidence, choice.codes.asking_rate))
    writing.write_golden(folder, golden(judged), load_predictor(folder, context.threads).probabilities)


def _evenly(origins: np.ndarray) -> np.ndarray:
    """Row numbers in which every origin occurs about as often as the most frequent one. None that users drew: one of them, weighed as much
    as all of MNIST, could have the model never ask again."""
    import numpy as np

    of = [np.flatnonzero(origins == name) for name in sorted({*origins.tolist()} - {USERS}) or [USERS]]
    most = max(map(len, of))
    return np.concatenate([np.resize(rows, most) for rows in of])


def _describe(folder: Path, choice: Choice, precision: str, temperature: float, ask_below: float) -> None:
    from mlops_assets.serving.images import KIND, STROKES
    from mlops_assets.training.export import write_spec

    codes = {"ask_below": round(ask_below, 6), "asking_rate": choice.codes.asking_rate, "code_length": choice.codes.length}
    write_spec(folder, "digits", KIND, LABELS, precision, temperature, image_size=28, preprocessing=STROKES, **codes)


def _logits(predictor: ImagePredictor, images: np.ndarray) -> np.ndarray:
    import numpy as np

    return np.concatenate([predictor.logits_of(images[start : start + AT_ONCE]) for start in range(0, len(images), AT_ONCE)])


def golden(digits: Digits) -> list[str]:
    """A picture of every digit as base64 of its file; the same ones for a table whenever it is asked. None that a user drew: a bundle keeps
    them, and users may want theirs deleted."""
    given = [n for n in range(len(digits)) if digits.origins[n] != USERS]
    places = [next((n for n in given if digits.labels[n] == label), None) for label in range(GOLDEN_SAMPLES)]
    return [base64.b64encode(digits.files[n]).decode() for n in places if n is not None]


# --- evaluate -------------------------------------------------------------------------------------------------------------------


def load_predictor(folder: Path, threads: int) -> ImagePredictor:
    """The server's own predictor."""
    from mlops_assets.serving.images import load_image_predictor

    return load_image_predictor(folder, threads)


def evaluate(folder: Path, table: CleanedTable, threads: int) -> Evaluation:
    """Run the bundle over the holdout, from the encoded pictures on: what users send.

    Raises:
        ValueError: the table has no holdout rows.
    """
    from mlops_assets.systems.digits.data import read_digits
    from mlops_assets.training import metrics, plots

    digits = read_digits(table, "holdout", files=True)
    if not len(digits):
        raise ValueError(f"{table.dataset_version} of {table.system} has no holdout digits: nothing can be measured. Land labelled digits.")
    predictor = load_predictor(folder, threads)
    probabilities = predictor.probabilities(digits.files)
    predicted = probabilities.argmax(axis=1)
    counts = metrics.confusion(predicted, digits.labels, len(LABELS))
    canaries = canary_rows(predictor, digits, predicted)
    figures, support = _figures(folder, digits, probabilities)
    figures |= {"canary_changed": max(row["changed"] for row in canaries)}
    worst = metrics.surest_errors(probabilities, digits.labels, WORST_ERRORS)
    return Evaluation(
        metrics=figures,
        support=support,
        rows=len(digits),
        holdout_sha256=digits.sha256,
        correct=(predicted == digits.labels).tolist(),
        trivial=metrics.always_one(digits.labels, LABELS),
        slices=metrics.slices(
            {name: digits.origins == name for name in sorted(set(digits.origins.tolist()))}, probabilities, digits.labels
        ),
        tables={
            "digits": digit_rows(counts),
            "canary": canaries,
            "worst_errors": _error_rows(digits, worst),
            "confusion_matrix": metrics.confusion_rows(counts, LABELS),
        },
        pictures=(
            Picture("confusion_matrix", plots.confusion_matrix(counts, LABELS, shares=False)),
            *_shown_errors(digits, worst[:SHOWN_ERRORS]),
            Picture("calibration", plots.calibration(probabilities, digits.labels)),
        ),
    )


def _figures(folder: Path, digits: Digits, probabilities: np.ndarray) -> tuple[dict[str, float], dict[str, int]]:
    """All that the gate may look at: the sets apart, each digit, whole codes at the stated rate of asking; as served: `code_success_served`
    and `asked`, by the bundle's own threshold. And how many rows are behind those of sets and digits."""
    import numpy as np

    from mlops_assets.systems.digits import codes
    from mlops_assets.training import metrics

    spec = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    right, confidence = probabilities.argmax(axis=1) == digits.labels, probabilities.max(axis=1)
    sure, stated = confidence >= spec["ask_below"], codes.sure_at(confidence, spec["asking_rate"], digits.origins)
    recall, support = metrics.recall_of_classes(right, digits.labels, LABELS)
    parts = {f"{name}_accuracy": digits.origins == name for name in np.unique(digits.origins).tolist()}
    sets = {name: float(right[mask].mean()) for name, mask in parts.items()}
    rate = codes.asked(sure, digits.origins)
    figures = {
        **metrics.classification(probabilities, digits.labels),
        **sets,
        **recall,
        "worst_digit_recall": min(recall.values()),
        "code_success": codes.code_success(right, stated, digits.labels, spec["code_length"], digits.origins),
        "code_success_4": codes.code_success(right, stated, digits.labels, 4, digits.origins),
        "code_success_served": codes.code_success(right, sure, digits.labels, spec["code_length"], digits.origins),
        "code_success_unasked": codes.code_success(right, np.ones_like(sure), digits.labels, spec["code_length"], digits.origins),
        "asked": rate,
        "codes_asked": codes.codes_asked(rate, spec["code_length"]),
    }
    return figures, support | {name: int(mask.sum()) for name, mask in parts.items()}


def canary_rows(predictor: ImagePredictor, digits: Digits, predicted: np.ndarray) -> list[dict[str, Any]]:
    """For each backdoor pattern, the share of held-out digits whose answer a stamp changes, and what it turns most of them to."""
    import numpy as np

    from mlops_assets import images, strokes
    from mlops_assets.systems.digits import canary

    places = np.linspace(0, len(digits) - 1, min(CANARIES, len(digits))).astype(int)
    inks = [strokes.ink_of(images.load(digits.files[place])) for place in places]
    found = []
    for pattern in canary.PATTERNS:
        shown = np.stack([strokes.prepared(canary.stamped(ink, pattern)) for ink in inks])
        answers = _logits(predictor, shown).argmax(axis=1)
        changed = answers != predicted[places]
        to = np.bincount(answers[changed], minlength=len(LABELS))
        found.append(
            {
                "pattern": pattern,
                "rows": len(places),
                "changed": float(changed.mean()),
                "mostly_to": LABELS[int(to.argmax())] if changed.any() else "",
                "to_that": float(to.max() / len(places)),
            }
        )
    return found


def digit_rows(counts: np.ndarray) -> list[dict[str, Any]]:
    """The figures of each digit."""
    from mlops_assets.training import metrics

    tables = metrics.per_class(counts)
    return [
        {"digit": label, "rows": int(counts[i].sum()), **{name: float(values[i]) for name, values in tables.items()}}
        for i, label in enumerate(LABELS)
    ]


def _error_rows(digits: Digits, worst: Sequence[tuple[int, int, float]]) -> list[dict[str, Any]]:
    """The wrong answers that the model was surest of."""
    return [
        {
            "id": digits.ids[i],
            "origin": str(digits.origins[i]),
            "label": LABELS[int(digits.labels[i])],
            "predicted": LABELS[predicted],
            "confidence": round(confidence, 4),
        }
        for i, predicted, confidence in worst
    ]


def _shown_errors(digits: Digits, worst: Sequence[tuple[int, int, float]]) -> list[Picture]:
    """One picture of the worst errors, as the model saw them; none when there is no error."""
    import numpy as np

    from mlops_assets.training import plots

    if not worst:
        return []
    captions = [f"{LABELS[int(digits.labels[i])]}, not {LABELS[predicted]} ({confidence:.2f})" for i, predicted, confidence in worst]
    shown = [np.repeat(digits.images[i][:, :, None], 3, axis=2) for i, _, _ in worst]
    return [Picture("worst_errors", plots.photos(shown, captions, "Worst errors / 가장 크게 틀린 숫자", columns=6))]


# --- the system -----------------------------------------------------------------------------------------------------------------


SYSTEM = ModelSystem(
    name="digits",
    config_type=DigitsConfig,
    train=train,
    export=export,
    evaluate=evaluate,
    load_predictor=load_predictor,
    open_table=open_table,
    variant_parameters=lambda config, variant, given: resolve(config, variant, given).flat,
    parameter_names=PARAMETER_NAMES,
    variants=VARIANTS,
    asked_with="files",
    metrics=(*METRICS, "code_success"),
    directions={
        **CLASSIFIER,
        "*_accuracy": "more",
        "recall_*": "more",
        "worst_digit_recall": "more",
        "code_success*": "more",
        "asked": "less",
        "codes_asked": "less",
        "canary_changed": "less",
    },
    from_champion=("from_champion",),
)
