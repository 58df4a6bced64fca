"""Figures of a classifier: loss, accuracy, precision, recall, F1, calibration, and the paired test between two models on the same rows.

Belongs here: pure functions over arrays. Does not belong here: thresholds (the gate's), pictures (`plots.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

ECE_BINS = 15


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities [rows, classes] in float64."""
    shifted = np.asarray(logits, np.float64)
    shifted = np.exp(shifted - shifted.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean cross-entropy in nats."""
    chosen = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.clip(chosen, 1e-12, 1.0)).mean()) + 0.0  # never -0.0


def confusion(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Counts [true class, predicted class]."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def confusion_rows(counts: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """`confusion` as rows for people: the true class, and how often each class was predicted."""
    return [
        {"true": true, **{name: int(count) for name, count in zip(names, row, strict=True)}}
        for true, row in zip(names, counts, strict=True)
    ]


def surest_errors(probabilities: np.ndarray, labels: np.ndarray, at_most: int) -> list[tuple[int, int, float]]:
    """(row, predicted class, its probability) of the wrong answers [rows, classes] that were surest, the surest first."""
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    return [(int(i), int(predicted[i]), float(confidence[i])) for i in wrong[np.argsort(-confidence[wrong], kind="stable")][:at_most]]


def classification(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """loss, accuracy, precision, recall, f1, ece of probabilities [rows, classes] against labels [rows].

    With two classes, precision, recall and F1 are those of class 1; with more, the plain mean over the classes that occur. What is
    undefined (no such row, never predicted) counts as 0. One probability that is not a number makes every figure NaN.
    """
    if not np.isfinite(probabilities).all():
        return dict.fromkeys(("loss", "accuracy", "precision", "recall", "f1", "ece"), math.nan)
    predicted = probabilities.argmax(axis=-1)
    counts = confusion(predicted, labels, probabilities.shape[1])
    chosen = np.array([1]) if len(counts) == 2 else np.flatnonzero(counts.sum(axis=0) + counts.sum(axis=1))
    return {
        "loss": log_loss(probabilities, labels),
        "accuracy": float((predicted == labels).mean()),
        **{name: float(values[chosen].mean()) for name, values in per_class(counts).items()},
        "ece": expected_calibration_error(probabilities, labels),
    }


def always_one(labels: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Trivial answers where classes exclude each other: "always <name>" -> accuracy and F1, as `classification` has them."""
    found: dict[str, dict[str, float]] = {}
    for place, name in enumerate(names):
        said = np.eye(len(names))[np.full(len(labels), place)]
        figures = classification(said, labels)
        found[f"always {name}"] = {metric: figures[metric] for metric in ("accuracy", "f1")}
    return found


def per_class(counts: np.ndarray) -> dict[str, np.ndarray]:
    """precision, recall and f1 of each class, from counts [true, predicted]; what is undefined is 0."""
    hits = np.diag(counts).astype(float)
    precision = np.divide(hits, counts.sum(axis=0), out=np.zeros_like(hits), where=counts.sum(axis=0) > 0)
    recall = np.divide(hits, counts.sum(axis=1), out=np.zeros_like(hits), where=counts.sum(axis=1) > 0)
    f1 = np.divide(2 * precision * recall, precision + recall, out=np.zeros_like(hits), where=precision + recall > 0)
    return {"precision": precision, "recall": recall, "f1": f1}


def recall_of_classes(right: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> tuple[dict[str, float], dict[str, int]]:
    """`recall_<name>` of every class that occurs, and of every class the rows behind it.

    Args:
        right: bool [rows]; labels: [rows], places in `names`.
    """
    masks = {f"recall_{name}": labels == place for place, name in enumerate(names)}
    return (
        {metric: float(right[mask].mean()) for metric, mask in masks.items() if mask.any()},
        {metric: int(mask.sum()) for metric, mask in masks.items()},
    )


def calibration_bins(probabilities: np.ndarray, labels: np.ndarray, bins: int = ECE_BINS) -> list[tuple[float, float, int]]:
    """(mean confidence, accuracy, rows) of each bin of equal width that holds rows."""
    confidence = probabilities.max(axis=-1)
    correct = probabilities.argmax(axis=-1) == labels
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    return [
        (float(confidence[which == b].mean()), float(correct[which == b].mean()), int((which == b).sum()))
        for b in range(bins)
        if (which == b).any()
    ]


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = ECE_BINS) -> float:
    """How far confidence and accuracy lie apart, on average over the rows."""
    return sum(rows * abs(confidence - accuracy) for confidence, accuracy, rows in calibration_bins(probabilities, labels, bins)) / len(
        labels
    )


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature that, dividing the logits, gives the least cross-entropy; labels [rows], or of several labels a row [rows, classes].

    Golden-section search: the loss has one valley in log T.
    """
    low, high = math.log(0.05), math.log(20.0)
    ratio = (math.sqrt(5) - 1) / 2

    def loss(log_temperature: float) -> float:
        scaled = logits / math.exp(log_temperature)
        return log_loss(softmax(scaled), labels) if np.ndim(labels) == 1 else binary_log_loss(sigmoid(scaled), labels)

    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = loss(left), loss(right)
    while high - low > 1e-4:
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = loss(right)
    return math.exp((low + high) / 2)


def slices(groups: Mapping[str, np.ndarray], probabilities: np.ndarray, labels: np.ndarray) -> dict[str, dict[str, float]]:
    """The figures of each group of rows (name -> boolean mask), with `rows`; empty groups are left out."""
    return {
        name: {"rows": float(mask.sum()), **classification(probabilities[mask], labels[mask])}
        for name, mask in groups.items()
        if mask.any()
    }


def precision_recall_curve(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """(precision, recall, average precision) over falling thresholds; equal scores are one threshold."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[order])
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    precision = hits[last] / (last + 1)
    recall = hits[last] / max(1, int(hits[-1]))
    average = float(np.sum(np.diff(np.concatenate([[0.0], recall])) * precision))
    return precision, recall, average


@dataclass(frozen=True)
class McNemar:
    """Two models on the same rows.

    Attributes:
        only_first: rows that only the first model has right.
        only_second: rows that only the second has right.
        p_value: chance of a difference at least this large, either way, if both were equally good.
        p_better: chance of at least as many rows that only the first has right.
        exact: whether it is the binomial test (few rows differ) or chi-squared with continuity correction.
    """

    only_first: int
    only_second: int
    p_value: float
    p_better: float
    exact: bool


BOOTSTRAP_ROUNDS, BOOTSTRAP_AT_ONCE = 2000, 50
LABEL_ROUNDS = 500


def group_intervals(predicted: np.ndarray, labels: np.ndarray, groups: Sequence[str], *, seed: int = 0) -> dict[str, tuple[float, float]]:
    """95 % intervals of accuracy, precision, recall, f1 and the number of missed rows of class 1, for two classes.

    A bootstrap over groups, not rows: photos of one piece are right or wrong together, and rows would make intervals too narrow.
    """
    names, which = np.unique(np.asarray(groups), return_inverse=True)
    counts = np.zeros((len(names), 4))
    np.add.at(counts, (which, labels * 2 + predicted), 1)
    random, even = np.random.default_rng(seed), np.full(len(names), 1 / len(names))
    parts = [random.multinomial(len(names), even, BOOTSTRAP_AT_ONCE) @ counts for _ in range(BOOTSTRAP_ROUNDS // BOOTSTRAP_AT_ONCE)]
    good, false_alarms, missed, hits = np.concatenate(parts).T
    figures = {
        "accuracy": (good + hits) / (good + false_alarms + missed + hits),
        "precision": hits / np.maximum(1, hits + false_alarms),
        "recall": hits / np.maximum(1, hits + missed),
        "f1": 2 * hits / np.maximum(1, 2 * hits + false_alarms + missed),
        "missed": missed,
    }
    return {name: (float(low), float(high)) for name, (low, high) in ((n, np.quantile(v, (0.025, 0.975))) for n, v in figures.items())}


EXACT_BELOW = 1000


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """The paired test on the rows that the two models answer differently well. Raises ValueError for lists of different length."""
    if len(first) != len(second):
        raise ValueError(f"a paired test needs the same rows: {len(first)} against {len(second)}")
    a, b = np.asarray(first, bool), np.asarray(second, bool)
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    n = only_first + only_second
    if n == 0:
        return McNemar(0, 0, 1.0, 1.0, True)
    if n < EXACT_BELOW:

        def tail(most: int) -> float:
            return float(sum(math.comb(n, k) for k in range(most + 1)) / 2**n)

        return McNemar(only_first, only_second, min(1.0, 2 * tail(min(only_first, only_second))), tail(only_second), True)
    statistic = max(0, abs(only_first - only_second) - 1) ** 2 / n
    p_better = math.erfc((only_first - only_second - 1) / math.sqrt(2 * n)) / 2
    return McNemar(only_first, only_second, math.erfc(math.sqrt(statistic / 2)), p_better, False)


# --- several labels a row: probabilities, truth and what is said are [rows, classes] ----------------------------------------------


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * np.asarray(logits, np.float64))))


def binary_log_loss(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Mean binary cross-entropy in nats, over rows and classes."""
    chosen = np.where(truth > 0, probabilities, 1 - probabilities)
    return float(-np.log(np.clip(chosen, 1e-12, 1.0)).mean()) + 0.0


def ranking_precisions(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Per row: of the labels ranked at least as high as a true one, the share that is true, on average over the true ones.

    Their mean is the label ranking average precision (LRAP). Equal scores share the worst rank; a row without a true label counts 1.
    """
    truth = truth > 0
    not_lower = scores[:, None, :] >= scores[:, :, None]  # [row, label, other]: the other is ranked at least as high
    precision = (not_lower & truth[:, None, :]).sum(axis=2) / not_lower.sum(axis=2)
    true = truth.sum(axis=1)
    return np.where(true > 0, (precision * truth).sum(axis=1) / np.maximum(true, 1), 1.0)


def hits(said: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Rightly said, said, and true, by class: [3, classes]."""
    truth = truth > 0
    return np.stack([(said & truth).sum(axis=0), said.sum(axis=0), truth.sum(axis=0)]).astype(float)


def precision_recall_f1(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of `hits`; what is undefined counts as 0."""
    right, said, true = counts
    f1 = 2 * right / np.maximum(1, said + true)
    return right / np.maximum(1, said), right / np.maximum(1, true), f1


def several_labels(probabilities: np.ndarray, truth: np.ndarray, said: np.ndarray) -> dict[str, float]:
    """loss, lrap, accuracy (the whole set of labels is right), precision, recall, f1 (means over the classes), micro_f1, ece.

    Args:
        said: which labels the model says. One probability that is not a number makes every figure NaN.
    """
    names = ("loss", "lrap", "accuracy", "precision", "recall", "f1", "micro_f1", "ece")
    if not np.isfinite(probabilities).all():
        return dict.fromkeys(names, math.nan)
    counts = hits(said, truth)
    precision, recall, f1 = (float(values.mean()) for values in precision_recall_f1(counts))
    micro = float(precision_recall_f1(counts.sum(axis=1, keepdims=True))[2][0])
    exact = float((said == (truth > 0)).all(axis=1).mean())
    values = (binary_log_loss(probabilities, truth), float(ranking_precisions(probabilities, truth).mean()), exact)
    return dict(zip(names, (*values, precision, recall, f1, micro, binary_calibration_error(probabilities, truth)), strict=True))


def binary_calibration_error(probabilities: np.ndarray, truth: np.ndarray, bins: int = ECE_BINS) -> float:
    """`expected_calibration_error` of every row's and class's yes or no."""
    yes = probabilities.ravel()
    return expected_calibration_error(np.stack([1 - yes, yes], axis=1), (truth.ravel() > 0).astype(int), bins)


def best_thresholds(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """For each class the threshold with the best F1, between two probabilities that occur; 0.5 for a class that never is true."""
    found = np.full(probabilities.shape[1], 0.5)
    for number, (scores, true) in enumerate(zip(probabilities.T, truth.T > 0, strict=True)):
        if not true.any():
            continue
        order = np.argsort(-scores, kind="stable")
        ranked, right = scores[order], np.cumsum(true[order])
        f1 = 2 * right / (np.arange(1, len(ranked) + 1) + true.sum())
        ends = np.append(ranked[:-1] > ranked[1:], True)  # equal scores are one threshold
        best = int(np.argmax(np.where(ends, f1, -1.0)))
        lower = ranked[best + 1] if best + 1 < len(ranked) else 0.0
        found[number] = np.clip((ranked[best] + lower) / 2, 0.01, 0.99)
    return found


def best_cut(suspicion: np.ndarray, hateful: np.ndarray, max_false_flags: float) -> float:
    """The least suspicion to be flagged, by the best F1 of flagging among the cuts that flag at most `max_false_flags` of the other rows.

    It lies between two values that occur. 0.5 where there is nothing of either kind to choose by; where even the first flags are too many,
    above them all.
    """
    if hateful.all() or not hateful.any():
        return 0.5
    order = np.argsort(-suspicion, kind="stable")
    ranked, right = suspicion[order], np.cumsum(hateful[order])
    wrong = np.arange(1, len(ranked) + 1) - right
    f1 = 2 * right / (right + wrong + hateful.sum())
    ends = np.append(ranked[:-1] > ranked[1:], True)  # equal values are flagged together
    allowed = ends & (wrong <= max_false_flags * (~hateful).sum())
    if not allowed.any():
        return float(np.clip((ranked[0] + 1) / 2, 0.01, 0.99))
    best = int(np.argmax(np.where(allowed, f1, -1.0)))
    lower = ranked[best + 1] if best + 1 < len(ranked) else 0.0
    return float(np.clip((ranked[best] + lower) / 2, 0.01, 0.99))


def flagging(flagged: np.ndarray, hateful: np.ndarray) -> dict[str, float]:
    """f1_any, recall_any: of whether anything is said of a row. false_flag_rate: of the rows of which nothing is true, those flagged."""
    precision, recall, f1 = (float(part[0]) for part in precision_recall_f1(hits(flagged[:, None], hateful[:, None])))
    return {"f1_any": f1, "recall_any": recall, "false_flag_rate": float(flagged[~hateful].mean()) if not hateful.all() else 0.0}


def false_flags_at_recall(suspicion: np.ndarray, hateful: np.ndarray, recall: float) -> float:
    """Share of the rows of which nothing is true that are flagged by the highest cut that finds `recall` of the others."""
    found = np.sort(suspicion[hateful])[::-1]
    cut = found[max(0, math.ceil(recall * len(found)) - 1)]
    return float((suspicion[~hateful] >= cut).mean())


def flags_all_or_nothing(truth: np.ndarray, clean: int) -> dict[str, dict[str, float]]:
    """Trivial answers of a model of several labels: "flags everything" and "flags nothing" -> metrics."""
    hateful = truth[:, clean] == 0
    said = np.zeros(truth.shape, bool)
    said[:, clean] = True
    nothing = several_labels(said.astype(float), truth, said)
    return {
        "flags everything": {"f1_any": flagging(np.ones(len(truth), bool), hateful)["f1_any"]},
        "flags nothing": {"f1": nothing["f1"], "accuracy": nothing["accuracy"], "f1_any": 0.0},
    }


def several_labels_intervals(
    probabilities: np.ndarray, truth: np.ndarray, said: np.ndarray, *, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % intervals of lrap, accuracy and f1: a bootstrap over rows."""
    random, rows = np.random.default_rng(seed), len(truth)
    ranking, exact = ranking_precisions(probabilities, truth), (said == (truth > 0)).all(axis=1)
    drawn: dict[str, list[float]] = {"lrap": [], "accuracy": [], "f1": []}
    for _ in range(LABEL_ROUNDS):
        chosen = random.integers(0, rows, rows)
        drawn["lrap"].append(float(ranking[chosen].mean()))
        drawn["accuracy"].append(float(exact[chosen].mean()))
        drawn["f1"].append(float(precision_recall_f1(hits(said[chosen], truth[chosen]))[2].mean()))
    return {name: (float(low), float(high)) for name, (low, high) in ((n, np.quantile(v, (0.025, 0.975))) for n, v in drawn.items())}
