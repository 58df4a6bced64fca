"""Pictures for people who read a report: PNG bytes of at most 64 KiB, so that they fit into an event. Hangul is drawn as Hangul.

Belongs here: drawing of figures that `metrics.py` computed. Does not belong here: computing them.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np

from mlops_assets.images import png_within
from mlops_assets.training import metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_BYTES = 64 * 1024
BLUE, GREY = "#2563eb", "#9ca3af"
#: The two pictures of a sweep go into one event.
PARALLEL_BYTES, HISTORY_BYTES = 36 * 1024, 12 * 1024
#: Lines that an eye can follow; of more trials the best are drawn.
LINES = 60
CURVE_POINTS = 500


class NoHangul(RuntimeError):
    """Nothing here can draw Korean."""


@functools.cache
def hangul_font() -> str:
    """Name of a font with Hangul: the one that the wheel `koreanize-matplotlib` ships, else a usual one, else any that is installed.

    Raises:
        NoHangul: there is none.
    """
    from matplotlib import font_manager

    spec = importlib.util.find_spec("koreanize_matplotlib")
    for place in (spec.submodule_search_locations or []) if spec else []:
        path = Path(place) / "fonts" / "NanumGothic.ttf"
        if path.exists():
            font_manager.fontManager.addfont(str(path))
            return str(font_manager.FontProperties(fname=str(path)).get_name())
    installed = {font.name for font in font_manager.fontManager.ttflist}
    for name in ("NanumGothic", "NanumBarunGothic", "Noto Sans CJK KR", "Malgun Gothic", "AppleGothic"):
        if name in installed:
            return name
    for font in font_manager.fontManager.ttflist:
        with contextlib.suppress(OSError, RuntimeError):  # a list of fonts may be older than the fonts
            if font_manager.get_font(font.fname).get_char_index(ord("가")):
                return str(font.name)
    raise NoHangul("no font with Hangul is installed: labels would be drawn as boxes. Run `pip install koreanize-matplotlib`.")


P = ParamSpec("P")


def _in_hangul(draw: Callable[P, bytes]) -> Callable[P, bytes]:
    """Draw with the Hangul font, falling back to matplotlib's own for what it lacks."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> bytes:
        import matplotlib

        with matplotlib.rc_context({"font.family": [hangul_font(), "DejaVu Sans"], "axes.unicode_minus": False}):
            return draw(*args, **kwargs)

    return drawn


def _figure(title: str, width: float = 5.0, height: float = 4.2) -> tuple[Figure, Any]:
    """An empty figure without pyplot: no global state, so that several runs may draw at once."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title)
    return figure, axes


def _png(figure: Figure) -> bytes:
    """The figure as PNG; coarser when it would not fit."""
    for dpi in (110, 80, 60, 40):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
        if buffer.tell() <= MAX_BYTES:
            break
    return buffer.getvalue()


@_in_hangul
def confusion_matrix(
    counts: np.ndarray, labels: Sequence[str], title: str = "Confusion matrix / 혼동 행렬", *, shares: bool = True
) -> bytes:
    """Counts [true, predicted], each with its share of the true class unless there are too many classes to read them."""
    figure, axes = _figure(title)
    share = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(counts.shape):
        colour = "white" if share[row, column] > 0.5 else "black"
        text = f"{counts[row, column]:,}" + (f"\n{share[row, column]:.1%}" if shares else "")
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=None if shares else 7)
    axes.set_xticks(range(len(labels)), labels)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("predicted / 예측")
    axes.set_ylabel("true / 실제")
    return _png(figure)


@_in_hangul
def precision_recall(scores: np.ndarray, positive: np.ndarray, name: str) -> bytes:
    """Precision over recall for the class `name`."""
    precision, recall, average = metrics.precision_recall_curve(scores, positive)
    keep = np.unique(np.linspace(0, len(recall) - 1, min(len(recall), CURVE_POINTS)).astype(int))
    figure, axes = _figure(f"Precision-recall, {name}: average precision {average:.4f}")
    axes.plot(recall[keep], precision[keep], color=BLUE)
    axes.axhline(positive.mean(), color=GREY, linestyle="--", linewidth=1)
    axes.set(xlabel="recall / 재현율", ylabel="precision / 정밀도", xlim=(0, 1.01), ylim=(0, 1.01))
    return _png(figure)


@_in_hangul
def precision_recall_of_labels(scores: np.ndarray, truth: np.ndarray, names: Sequence[str], columns: int = 4) -> bytes:
    """A small precision-recall curve for each label, in one picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-len(names) // columns)
    figure = Figure(figsize=(2.4 * columns, 2.2 * rows + 0.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle("Precision-recall by label / 라벨별 정밀도-재현율")
    for number, name in enumerate(names):
        positive = truth[:, number] > 0
        precision, recall, average = metrics.precision_recall_curve(scores[:, number], positive)
        keep = np.unique(np.linspace(0, len(recall) - 1, min(len(recall), CURVE_POINTS)).astype(int))
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.plot(recall[keep], precision[keep], color=BLUE, linewidth=1)
        axes.axhline(positive.mean(), color=GREY, linestyle="--", linewidth=0.8)
        axes.set_title(f"{name}: {average:.3f}", fontsize=8)
        axes.set(xlim=(0, 1.01), ylim=(0, 1.01))
        axes.tick_params(labelsize=6)
    return _png(figure)


@_in_hangul
def calibration(probabilities: np.ndarray, labels: np.ndarray) -> bytes:
    """Accuracy over confidence, with the share of rows in each bin."""
    bins = metrics.calibration_bins(probabilities, labels)
    error = metrics.expected_calibration_error(probabilities, labels)
    figure, axes = _figure(f"Calibration / 보정: ECE {error:.4f}")
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
    axes.bar([b[0] for b in bins], [b[2] / len(labels) for b in bins], width=0.02, color=GREY, label="share of rows / 비율")
    axes.plot([b[0] for b in bins], [b[1] for b in bins], marker="o", color=BLUE, label="accuracy / 정확도")
    axes.set(xlabel="confidence / 확신도", ylabel="accuracy / 정확도", xlim=(0.0, 1.01), ylim=(0, 1.01))
    axes.legend(loc="upper left")
    return _png(figure)


# --- sweeps: rows are trials, with `trial`, `state`, their parameters, and the figure under `metric` (None: it has none) ----------


@_in_hangul
def parallel_coordinates(
    trials: Sequence[Mapping[str, Any]], parameters: Sequence[str], metric: str, label: str, *, less_is_better: bool = False
) -> bytes:
    """A line per trial over its parameters and its figure: the darker, the better; dashed where it was pruned. Of many, the best."""
    shown = [row for row in trials if row.get(metric) is not None and all(name in row for name in parameters)]
    shown = sorted(shown, key=lambda row: float(row[metric]), reverse=not less_is_better)[:LINES]
    figure, axes = _figure("Parallel coordinates / 평행 좌표", width=6.5)
    columns = [_heights([row[name] for row in shown], log=name == "learning_rate") for name in (*parameters, metric)]
    for number, row in sorted(enumerate(shown), key=lambda one: one[1]["state"] == "complete"):
        heights = [heights[number] for heights, _ in columns]
        good = 1 - heights[-1] if less_is_better else heights[-1]
        complete = row["state"] == "complete"
        style = {"color": BLUE, "alpha": 0.15 + 0.85 * good**2} if complete else {"color": GREY, "linestyle": "--", "linewidth": 1}
        axes.plot(range(len(columns)), heights, **style)
    for place, (_, ticks) in enumerate(columns):
        axes.axvline(place, color="black", linewidth=0.8)
        for height, text in ticks:
            axes.text(
                place + 0.03, height, text, va="center", fontsize=8, bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 1}
            )
    axes.set_xticks(range(len(columns)), [*(name.replace("_", " ") for name in parameters), label])
    axes.set(yticks=[], ylim=(-0.05, 1.05), xlim=(-0.1, len(columns) - 0.6))
    axes.spines[:].set_visible(False)
    return _png_of_few_colours(figure, PARALLEL_BYTES)  # many crossing lines are as bad as a photo


def _heights(values: Sequence[Any], log: bool) -> tuple[list[float], list[tuple[float, str]]]:
    """Each value's height on an axis from 0 to 1, and the axis's (height, text): names in their order, numbers from least to most."""
    if any(isinstance(value, str) for value in values):
        names = sorted(set(values))
        at = {name: index / max(1, len(names) - 1) for index, name in enumerate(names)}
        return [at[value] for value in values], [(height, name) for name, height in at.items()]
    numbers = np.log10(values) if log else np.asarray(values, float)
    if not len(numbers):
        return [], []
    low, high = float(numbers.min()), float(numbers.max())
    ticks = [(fraction, low + fraction * (high - low)) for fraction in ((0.0, 0.5, 1.0) if high > low else (0.0,))]
    heights = (numbers - low) / ((high - low) or 1.0)
    return heights.tolist(), [(fraction, f"{10**value if log else value:.3g}") for fraction, value in ticks]


@_in_hangul
def optimisation_history(trials: Sequence[Mapping[str, Any]], metric: str, label: str, *, less_is_better: bool = False) -> bytes:
    """The figure of every trial in order, and the best one so far."""
    figure, axes = _figure("Optimisation history / 최적화 기록", width=6.5)
    complete = [(row["trial"], row[metric]) for row in trials if row["state"] == "complete"]
    pruned = [(row["trial"], row[metric]) for row in trials if row["state"] == "pruned" and row.get(metric) is not None]
    best = np.minimum.accumulate if less_is_better else np.maximum.accumulate
    if complete:
        numbers, values = zip(*complete, strict=True)
        axes.scatter(numbers, values, color=BLUE, label="to its end / 완료")
        axes.step(numbers, best(np.asarray(values, float)), where="post", color=BLUE, label="best so far / 최고")
    if pruned:
        axes.scatter(*zip(*pruned, strict=True), color=GREY, marker="x", label="pruned / 중단")
    axes.set(xlabel="trial / 시도", ylabel=label)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if complete or pruned:
        axes.legend()
    return _png_of_few_colours(figure, HISTORY_BYTES)


# --- photos ---------------------------------------------------------------------------------------------------------------------


@_in_hangul
def photos(images: Sequence[np.ndarray], captions: Sequence[str], title: str, columns: int = 4) -> bytes:
    """Images (uint8 [height, width, 3]) in a grid, each under its caption."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-len(images) // columns)
    figure = Figure(figsize=(2 * columns, 2.2 * rows + 0.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    for number in range(rows * columns):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.set_axis_off()
        if number < len(images):
            axes.imshow(images[number])
            axes.set_title(captions[number], fontsize=7)
    return _png_of_few_colours(figure)


def _png_of_few_colours(figure: Figure, limit: int = MAX_BYTES) -> bytes:
    """For what compresses badly, as photos do: first fewer colours, then fewer pixels, until it fits."""
    from PIL import Image

    def drawn(dpi: int) -> Image.Image:
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=dpi)
        return Image.open(file).convert("RGB")

    sizes = ((110, 128), (110, 32), (80, 32), (60, 16), (40, 8))
    return png_within(limit, ((drawn(dpi), colours) for dpi, colours in sizes))
