"""tires' half of the model lifecycle: train, export, evaluate, predict, and the one `SYSTEM` that `lifecycle/` takes.

Belongs here: what is particular to photos of tires. Does not belong here: the run itself (`training/trainer.py`), images as tensors
(`training/image.py`), architectures (`models/`), Dagster. Nothing heavy is imported when this module is.

The seed's early stopping is a condition on registering: a run with `min_loss` and `min_accuracy` that never reaches both still gives a
bundle and a report, whose metric `early_stopping_reached` is 0; `register_threshold` must demand 1, and so the gate refuses it.
"""

from __future__ import annotations

import base64
import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mlops_assets.lifecycle.report import CLASSIFIER
from mlops_assets.lifecycle.system import CleanedTable, Evaluation, ModelSystem, Picture, TrainContext, Trained
from mlops_assets.settings import SettingsError
from mlops_assets.systems.tires import models
from mlops_assets.systems.tires.config import ALIASES, LABELS, VARIANTS, DatasetSection, ModelSection, TiresConfig, TrainingSection
from mlops_assets.training.config import TRAINING_PARAMETERS, chosen, override, valid

if TYPE_CHECKING:
    import numpy as np
    from sqlalchemy import Engine

    from mlops_assets.serving.images import ImagePredictor
    from mlops_assets.store import ObjectStore
    from mlops_assets.training.image import ImageCache, Preprocessing, Rows

log = logging.getLogger(__name__)

GOLDEN_SAMPLES, GOLDEN_SIDE = 8, 96
WORST_ERRORS = 20
SHOWN_ERRORS, SHOWN_SIDE = 8, 96
#: Validation photos on which the temperature is fitted.
JUDGED_ROWS = 2_000
#: Images that a network sees at once outside of training: of 256 pixels, ResNet-50's maps of these are 0.5 GB.
AT_ONCE = 32
MAX_FOLDERS = 30
#: Folders that say nothing of what is in them.
PLAIN_FOLDERS = frozenset({"img", "imgs", "image", "images"})
REACHED = "early_stopping_reached"


# --- parameters -----------------------------------------------------------------------------------------------------------------

#: What `mlops train` and the launchpad may override. `dataset` is a name in the configuration's `datasets`.
PARAMETER_NAMES: Mapping[str, type] = {
    "dataset": str,
    "sampling_rate": float,
    "image_size": int,
    "pretrained": str,
    "rotation": float,
    "mirror_vertical": bool,
    "standardize": bool,
    "early_stopping_min_loss": float,
    "early_stopping_min_accuracy": float,
    "early_stopping_delta": float,
    "max_minutes": float,
    **TRAINING_PARAMETERS,
}
PREPROCESSING = ("rotation", "mirror_vertical", "standardize")
#: The configuration's name -> the parameter's, which is what the team's runs in MLflow have.
EARLY_STOPPING = {name: f"early_stopping_{name}" for name in ("min_loss", "min_accuracy", "patience", "delta")}


@dataclass(frozen=True)
class Choice:
    """What one training uses, after overrides. `flat` names also the model, as the seed logs it."""

    dataset: DatasetSection
    model: ModelSection
    flat: Mapping[str, Any]

    @property
    def image_size(self) -> int:
        return self.model.image_size or self.dataset.image_size

    @property
    def preprocessing(self) -> Preprocessing:
        from mlops_assets.training.image import Preprocessing

        return Preprocessing(**{name: getattr(self.model, name) for name in PREPROCESSING})

    @property
    def targets(self) -> dict[str, float]:
        """The validation figures that must be reached for the model to register; empty: no condition."""
        wanted = {"loss": self.model.training.min_loss, "accuracy": self.model.training.min_accuracy}
        return {name: value for name, value in wanted.items() if value is not None}


def _flat(config: TiresConfig, variant: str, dataset: str) -> dict[str, Any]:
    section, model = chosen("데이터셋", dataset, config.datasets), config.model_of(variant)
    training = {EARLY_STOPPING.get(name, name): value for name, value in model.training.model_dump(mode="json").items()}
    return {
        "model_name": variant,
        "dataset": dataset,
        "sampling_rate": section.sampling_rate,
        "image_size": model.image_size or section.image_size,
        "pretrained": model.pretrained,
        **{name: getattr(model, name) for name in PREPROCESSING},
        **training,
    }


def parameters(config: TiresConfig, variant: str, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Plain JSON values, flat: `given` over those of the variant and of the data set that it names, or else of the configured one.

    Raises:
        SettingsError: an unknown name, with the choices.
    """

    def sections(given: Mapping[str, Any]) -> dict[str, Any]:
        if (name := given.get("model_name", variant)) != variant:
            raise SettingsError(f"model_name {name!r}: {variant} is trained here; choose the model with model_type")
        return _flat(config, variant, str(given.get("dataset", config.project.dataset)))

    return override(given or {}, {*PARAMETER_NAMES, "model_name"}, sections)


def resolve(config: TiresConfig, variant: str, given: Mapping[str, Any]) -> Choice:
    """`parameters` as validated sections.

    Raises:
        SettingsError: an unknown name or a bad value, with the choices; an early stopping whose outcome the gate would not look at.
    """

    def build() -> Choice:
        dataset = config.datasets[flat["dataset"]].model_dump() | {"sampling_rate": flat["sampling_rate"]}
        training = {name: flat[EARLY_STOPPING.get(name, name)] for name in TrainingSection.model_fields}
        model = {name: flat[name] for name in ("pretrained", "image_size", *PREPROCESSING)} | {"training": training}
        return Choice(DatasetSection.model_validate(dataset), ModelSection.model_validate(model), flat)

    flat = parameters(config, variant, given)
    choice = valid(build)
    if choice.targets and not config.register_threshold.get(REACHED, 0) >= 1:
        raise SettingsError(
            f"early_stopping_min_loss and early_stopping_min_accuracy decide what may register only when register_threshold of "
            f"configs/tires.yaml has `{REACHED}: 1`: add it there, or leave both null."
        )
    return choice


def open_table(store: ObjectStore, engine: Engine, version: str, folder: Path) -> CleanedTable:
    """The cleaned photos of a version, downloaded and verified."""
    from mlops_assets.systems.tires.data import load_cleaned

    return load_cleaned(store, engine, version, folder)


# --- train ----------------------------------------------------------------------------------------------------------------------


def train(context: TrainContext) -> Trained:
    """Train, or go on where a killed training of the same fingerprint stopped, or return what it had finished.

    Raises:
        SettingsError: bad parameters, or pretrained weights that cannot be loaded.
        ValueError: no photos to train on.
        Diverged: no figure on validation was ever a number.
    """
    import torch
    from safetensors.torch import save_file

    from mlops_assets.training import attempt, image
    from mlops_assets.training.trainer import TARGETS_REACHED

    choice = resolve(_config(context), context.variant, context.parameters)
    if finished := attempt.finished(context, choice.flat):
        return finished
    rows, validation = _cached(context, choice, "train", choice.dataset.sampling_rate), _cached(context, choice, "validation")
    torch.manual_seed(context.seed)
    net = _network(context, choice.model.pretrained)
    classifier = image.classifier(net, choice.preprocessing, choice.model.training.label_smoothing)
    log.info("training %s on %d photos, validating on %d", context.variant, len(rows.rows), len(validation.rows))
    fitted, metrics = attempt.fit(context, classifier, image.ImageExamples(rows), image.ImageExamples(validation), _recipe(choice))
    reached = not choice.targets or fitted.stopped == TARGETS_REACHED
    log.info(_outcome(fitted.stopped, reached))

    def write(folder: Path) -> None:
        save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, folder / "model.safetensors")

    return attempt.keep(context, fitted, metrics | {REACHED: float(reached)}, choice.flat, write)


def _config(context: TrainContext) -> TiresConfig:
    if not isinstance(context.config, TiresConfig):
        raise TypeError(f"tires trains with a TiresConfig, not {type(context.config).__name__}")
    return context.config


def _cached(context: TrainContext, choice: Choice, split: str, rate: float = 1.0) -> ImageCache:
    """The photos of a split, decoded once for all variants: beside the trainings' own folders, which go when they end."""
    from mlops_assets.training.image import ImageCache

    return ImageCache.build(context.table, split, choice.image_size, context.workdir.parent / "images", rate=rate)


def _network(context: TrainContext, pretrained: str | None) -> Any:
    """The champion's weights where it is fine-tuned, else configured or new ones."""
    net = models.build(context.variant, len(LABELS), None if context.parent else pretrained)
    if context.parent is not None:
        _load(net, context.parent)
    return net


def _load(net: Any, folder: Path) -> None:
    from safetensors.torch import load_file

    net.load_state_dict(load_file(folder / "model.safetensors"))


def _recipe(choice: Choice) -> Any:
    """The seed's early stopping: patience counts evaluations in which neither loss nor accuracy improves by `delta`."""
    from mlops_assets.training.trainer import Recipe

    section = choice.model.training
    shared = set(TrainingSection.model_fields) - {*EARLY_STOPPING, "label_smoothing"}
    return Recipe(
        **{name: getattr(section, name) for name in shared},
        early_stopping_patience=section.patience,
        watched={"loss": section.delta, "accuracy": section.delta},
        targets=choice.targets,
        bucketing=False,
        evaluation_batch_size=AT_ONCE,
        log_every_step=True,
    )


def _outcome(stopped: str, reached: bool) -> str:
    if not reached:
        return "최소값을 넘지 못해 모델 등록에 실패하였습니다. / min_loss and min_accuracy were not both reached: the gate will refuse it"
    if stopped == "targets_reached":
        return "조기 종료 조건을 만족하여 모델을 로그하고 학습을 종료합니다. / min_loss and min_accuracy are reached: training ends"
    return f"training ended: {stopped}"


# --- export ---------------------------------------------------------------------------------------------------------------------


def export(trained: Trained, context: TrainContext, folder: Path) -> None:
    """Write the bundle into `folder`: ONNX, labels, calibration, golden samples.

    Raises:
        ExportDiffers: ONNX answers differently than torch.
    """
    from mlops_assets.training import export as writing
    from mlops_assets.training import image
    from mlops_assets.training.metrics import fit_temperature

    choice = resolve(_config(context), context.variant, trained.parameters)
    net = models.build(context.variant, len(LABELS))
    _load(net, trained.folder)
    folder.mkdir(parents=True, exist_ok=True)
    writing.export_image_model(
        image.classifier(net, choice.preprocessing), folder / "model.onnx", size=choice.image_size, threads=context.threads
    )
    reached = bool(trained.metrics[REACHED])
    _describe(folder, choice.image_size, 1.0, reached)
    judged = _cached(context, choice, "validation")
    logits = _logits(load_predictor(folder, context.threads), judged.images[:JUDGED_ROWS])
    _describe(folder, choice.image_size, fit_temperature(logits, judged.rows.labels[:JUDGED_ROWS]), reached)
    writing.write_golden(folder, list(golden(context.table)), load_predictor(folder, context.threads).probabilities)


def _describe(folder: Path, image_size: int, temperature: float, reached: bool) -> None:
    from mlops_assets.training.export import write_spec

    names = list(LABELS.values())
    write_spec(folder, "tires", "image-classification", names, "fp32", temperature, image_size=image_size, training={REACHED: reached})


def _logits(predictor: ImagePredictor, images: np.ndarray) -> np.ndarray:
    import numpy as np

    return np.concatenate([predictor.logits_of(images[start : start + AT_ONCE]) for start in range(0, len(images), AT_ONCE)])


def golden(table: CleanedTable) -> Iterator[str]:
    """Validation photos of both labels, small, as base64 of PNG; the same ones for a table whenever it is asked."""
    from PIL import Image

    from mlops_assets.images import decode
    from mlops_assets.training import image

    rows = image.read_rows(table, "validation")
    by_label = [[name for name, of in zip(rows.ids, rows.labels.tolist(), strict=True) if of == label] for label in LABELS]
    wanted = sorted({name for names in by_label for name in names[: GOLDEN_SAMPLES // len(LABELS)]})
    found = _find(table, "validation", wanted)
    for name in wanted:
        photo = decode(found[name])
        photo.thumbnail((GOLDEN_SIDE, GOLDEN_SIDE), Image.Resampling.BILINEAR)
        out = io.BytesIO()
        photo.save(out, "PNG", optimize=True)
        yield base64.b64encode(out.getvalue()).decode()


def _find(table: CleanedTable, split: str, ids: Sequence[str]) -> dict[str, bytes]:
    """The encoded images of a few rows."""
    from mlops_assets.training.image import read_images

    wanted = set(ids)
    return {name: data for batch in read_images(table, split) for name, data in batch if name in wanted}


# --- evaluate -------------------------------------------------------------------------------------------------------------------


def load_predictor(folder: Path, threads: int) -> ImagePredictor:
    """The server's own predictor."""
    from mlops_assets.serving.images import load_image_predictor

    return load_image_predictor(folder, threads)


def evaluate(folder: Path, table: CleanedTable, threads: int) -> Evaluation:
    """Run the bundle over the holdout, from the encoded photos on: what users send.

    Raises:
        ValueError: the table has no holdout rows.
    """
    from mlops_assets.training import image, metrics, plots

    rows = image.read_rows(table, "holdout")
    if not len(rows):
        raise ValueError(f"{table.dataset_version} of {table.system} has no holdout photos: nothing can be measured. Land labelled photos.")
    probabilities = _answers(folder, table, rows, threads)
    labels, predicted = rows.labels, probabilities.argmax(axis=1)
    counts = metrics.confusion(predicted, labels, len(LABELS))
    recall, support = metrics.recall_of_classes(predicted == labels, labels, list(LABELS.values()))
    figures = metrics.classification(probabilities, labels) | recall
    figures |= {"missed_defects": float(counts[1, 0]), REACHED: float(_reached(folder))}
    worst = worst_errors(rows, probabilities)
    return Evaluation(
        metrics=figures,
        trivial=metrics.always_one(labels, list(LABELS.values())),
        support=support,
        rows=len(rows),
        holdout_sha256=rows.sha256,
        correct=(predicted == labels).tolist(),
        slices=metrics.slices(by_folder(rows.paths), probabilities, labels),
        tables={
            "worst_errors": worst,
            "confusion_matrix": metrics.confusion_rows(counts, list(LABELS.values())),
            "intervals_95": _interval_rows(figures, metrics.group_intervals(predicted, labels, rows.groups)),
        },
        pictures=(
            Picture("confusion_matrix", plots.confusion_matrix(counts, tuple(LABELS.values()))),
            Picture("precision_recall", plots.precision_recall(probabilities[:, 1], labels == 1, LABELS[1])),
            Picture("calibration", plots.calibration(probabilities, labels)),
            *_shown_errors(table, worst[:SHOWN_ERRORS]),
        ),
    )


def _answers(folder: Path, table: CleanedTable, rows: Rows, threads: int) -> np.ndarray:
    """Probabilities [rows, labels] of the bundle in the order of `rows`."""
    import numpy as np

    from mlops_assets.training.image import read_images

    predictor = load_predictor(folder, threads)
    places = {name: place for place, name in enumerate(rows.ids)}
    probabilities = np.full((len(rows), len(LABELS)), np.nan)
    for batch in read_images(table, "holdout"):
        probabilities[[places[name] for name, _ in batch]] = predictor.probabilities([data for _, data in batch])
    return probabilities


def _reached(folder: Path) -> bool:
    """Whether the bundle's training reached its early stopping's condition, or had none."""
    return bool(json.loads((folder / "bundle.json").read_text(encoding="utf-8")).get("training", {}).get(REACHED, True))


def by_folder(paths: Sequence[str]) -> dict[str, np.ndarray]:
    """Rows by the folder that their photo lay in, which names the kind of defect: folder -> mask; empty where folders tell nothing."""
    import numpy as np

    names = np.array(
        [next((part for part in reversed(PurePosixPath(p).parts[:-1]) if part.lower() not in PLAIN_FOLDERS), "") for p in paths]
    )
    found = sorted(set(names.tolist()) - {""})
    return {name: names == name for name in found} if 1 < len(found) <= MAX_FOLDERS else {}


def worst_errors(rows: Rows, probabilities: np.ndarray) -> list[dict[str, Any]]:
    """The wrong answers that the model was surest of."""
    from mlops_assets.training.metrics import surest_errors

    return [
        {
            "id": rows.ids[i],
            "path": rows.paths[i],
            "label": LABELS[int(rows.labels[i])],
            "predicted": LABELS[predicted],
            "confidence": round(confidence, 4),
        }
        for i, predicted, confidence in surest_errors(probabilities, rows.labels, WORST_ERRORS)
    ]


def _shown_errors(table: CleanedTable, worst: Sequence[Mapping[str, Any]]) -> Iterator[Picture]:
    """One picture of the worst errors; none when there is no error."""
    from mlops_assets.images import to_array
    from mlops_assets.training import plots

    if not worst:
        return
    found = _find(table, "holdout", [row["id"] for row in worst])
    captions = [f"{row['label']}, not {row['predicted']} ({row['confidence']:.2f})" for row in worst]
    images = [to_array(found[row["id"]], SHOWN_SIDE) for row in worst]
    yield Picture("worst_errors", plots.photos(images, captions, "Worst errors / 가장 크게 틀린 사진"))


def _interval_rows(figures: Mapping[str, float], intervals: Mapping[str, tuple[float, float]]) -> list[dict[str, Any]]:
    named = {"missed_defects" if name == "missed" else name: ends for name, ends in intervals.items()}
    return [{"metric": name, "value": figures[name], "low": low, "high": high} for name, (low, high) in named.items()]


# --- the system -----------------------------------------------------------------------------------------------------------------


SYSTEM = ModelSystem(
    name="tires",
    config_type=TiresConfig,
    train=train,
    export=export,
    evaluate=evaluate,
    load_predictor=load_predictor,
    open_table=open_table,
    variant_parameters=lambda config, variant, given: resolve(config, variant, given).flat,
    parameter_names=PARAMETER_NAMES,
    loaded_by_name=lambda variant: (models.module_of(variant),),
    variants=VARIANTS,
    asked_with="files",
    aliases=ALIASES,
    directions={**CLASSIFIER, "recall_*": "more", "missed_defects": "less", REACHED: "more"},
)
