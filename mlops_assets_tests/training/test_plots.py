"""Pictures are PNG, small enough for an event, and show Hangul (a missing glyph is a warning, and warnings are errors here)."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest

from mlops_assets.training import metrics, plots

LABELS = ("부정", "긍정")


def answers(rows: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, rows)
    return metrics.softmax(random.normal(size=(rows, 2)) + np.eye(2)[labels]), labels


def pictures(rows: int) -> dict[str, bytes]:
    probabilities, labels = answers(rows)
    counts = metrics.confusion(probabilities.argmax(axis=1), labels, 2)
    return {
        "confusion": plots.confusion_matrix(counts, LABELS),
        "curve": plots.precision_recall(probabilities[:, 1], labels == 1, LABELS[1]),
        "calibration": plots.calibration(probabilities, labels),
    }


@pytest.mark.parametrize("rows", [2, 50_000])
def test_pictures_fit_into_an_event(rows: int) -> None:
    from PIL import Image

    for name, png in pictures(rows).items():
        assert len(png) <= plots.MAX_BYTES, name
        image = Image.open(io.BytesIO(png))
        assert image.format == "PNG" and image.width >= 300, name


def test_pictures_of_the_same_figures_are_the_same_bytes() -> None:
    assert pictures(100) == pictures(100)


def test_control_without_the_font_hangul_is_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "hangul_font", lambda: "DejaVu Sans")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="missing from font"):
            plots.confusion_matrix(np.array([[1, 2], [3, 4]]), LABELS)


def test_photos_fit_into_an_event() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 96, 96, 3), dtype=np.uint8)
    drawn = plots.photos(list(noise), [f"결함 {i}" for i in range(9)], "Worst errors / 오류")
    assert drawn.startswith(b"\x89PNG") and len(drawn) <= plots.MAX_BYTES


@pytest.mark.parametrize("trials", [0, 1, 200])
@pytest.mark.parametrize("metric", ["loss", "f1"])
def test_the_pictures_of_a_sweep_fit_into_one_event(trials: int, metric: str) -> None:
    random = np.random.default_rng(0)
    names, states = ("cnn", "resnet18", "tinyvgg"), ("complete", "pruned", "fail")
    rows = [
        {"trial": i, "state": states[i % 3], "model_type": names[i % 2], "learning_rate": 10 ** random.uniform(-4, -1)}
        | {metric: random.random() if i % 3 < 2 else None}
        for i in range(trials)
    ]
    less = metric == "loss"
    parallel = plots.parallel_coordinates(rows, ["model_type", "learning_rate"], metric, metric, less_is_better=less)
    history = plots.optimisation_history(rows, metric, metric, less_is_better=less)
    assert all(png.startswith(b"\x89PNG") for png in (parallel, history))
    assert len(parallel) + len(history) <= 48 * 1024
