"""Every figure against scikit-learn, SciPy or a value worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn

from mlops_assets.training import metrics


def answers(rows: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, rows)
    logits = random.normal(size=(rows, classes)) + 1.2 * np.eye(classes)[labels]
    return metrics.softmax(logits), labels


@pytest.mark.parametrize("classes", [2, 4])
def test_figures_are_those_of_sklearn(classes: int) -> None:
    probabilities, labels = answers(500, classes)
    predicted = probabilities.argmax(axis=1)
    average = "binary" if classes == 2 else "macro"
    ours = metrics.classification(probabilities, labels)
    assert ours["loss"] == pytest.approx(sklearn.log_loss(labels, probabilities))
    assert ours["accuracy"] == pytest.approx(sklearn.accuracy_score(labels, predicted))
    assert ours["precision"] == pytest.approx(sklearn.precision_score(labels, predicted, average=average))
    assert ours["recall"] == pytest.approx(sklearn.recall_score(labels, predicted, average=average))
    assert ours["f1"] == pytest.approx(sklearn.f1_score(labels, predicted, average=average))
    assert metrics.confusion(predicted, labels, classes).tolist() == sklearn.confusion_matrix(labels, predicted).tolist()


def test_a_class_that_is_never_predicted_counts_as_zero() -> None:
    figures = metrics.classification(np.array([[0.9, 0.1], [0.8, 0.2]]), np.array([0, 1]))
    assert (figures["accuracy"], figures["precision"], figures["recall"], figures["f1"]) == (0.5, 0.0, 0.0, 0.0)


def test_nan_is_not_hidden() -> None:
    probabilities, labels = answers(10, 2)
    probabilities[3] = np.nan
    assert all(np.isnan(value) for value in metrics.classification(probabilities, labels).values())


def test_calibration_error_by_hand() -> None:
    """Four answers at 0.9, three right; one at 0.6, wrong: (4 * 0.15 + 1 * 0.6) / 5."""
    probabilities = np.array([[0.1, 0.9]] * 4 + [[0.4, 0.6]])
    assert metrics.expected_calibration_error(probabilities, np.array([1, 1, 1, 0, 0])) == pytest.approx(0.24)


def test_temperature_undoes_overconfidence() -> None:
    random = np.random.default_rng(0)
    true = random.normal(size=(5000, 2))
    labels = (random.random(5000) < metrics.softmax(true)[:, 1]).astype(int)
    found = metrics.fit_temperature(3 * true, labels)
    assert found == pytest.approx(3, rel=0.15)
    before, after = metrics.softmax(3 * true), metrics.softmax(3 * true / found)
    assert metrics.expected_calibration_error(after, labels) < metrics.expected_calibration_error(before, labels) / 3
    assert (before.argmax(axis=1) == after.argmax(axis=1)).all()


def test_precision_recall_curve_is_that_of_sklearn() -> None:
    probabilities, labels = answers(400, 2)
    scores = np.round(probabilities[:, 1], 2)  # ties
    precision, recall, average = metrics.precision_recall_curve(scores, labels == 1)
    wanted_precision, wanted_recall, _ = sklearn.precision_recall_curve(labels, scores)
    assert average == pytest.approx(sklearn.average_precision_score(labels, scores))
    assert precision[::-1].tolist() == pytest.approx(wanted_precision[:-1].tolist())
    assert recall[::-1].tolist() == pytest.approx(wanted_recall[:-1].tolist())


def test_slices_count_their_rows_and_leave_out_empty_ones() -> None:
    probabilities, labels = answers(10, 2)
    first = np.arange(10) < 4
    found = metrics.slices({"first": first, "rest": ~first, "none": np.zeros(10, bool)}, probabilities, labels)
    assert {name: figures["rows"] for name, figures in found.items()} == {"first": 4, "rest": 6}
    assert found["first"]["accuracy"] == metrics.classification(probabilities[:4], labels[:4])["accuracy"]


# --- the paired test ------------------------------------------------------------------------------------------------------------


def pair(only_first: int, only_second: int, both: int = 50, neither: int = 5) -> tuple[list[bool], list[bool]]:
    first = [True] * only_first + [False] * only_second + [True] * both + [False] * neither
    second = [False] * only_first + [True] * only_second + [True] * both + [False] * neither
    return first, second


@pytest.mark.parametrize(("b", "c"), [(0, 1), (1, 5), (3, 12), (10, 10), (40, 61), (0, 20), (450, 500)])
def test_mcnemar_is_the_binomial_test(b: int, c: int) -> None:
    found = metrics.mcnemar(*pair(b, c))
    assert (found.only_first, found.only_second, found.exact) == (b, c, True)
    assert found.p_value == pytest.approx(stats.binomtest(b, b + c).pvalue)


@pytest.mark.parametrize(("b", "c"), [(600, 650), (2000, 2200), (500, 500), (1500, 100)])
def test_mcnemar_of_many_rows_is_chi_squared_with_continuity(b: int, c: int) -> None:
    found = metrics.mcnemar(*pair(b, c))
    assert not found.exact
    assert found.p_value == pytest.approx(stats.chi2.sf(max(0, abs(b - c) - 1) ** 2 / (b + c), 1))


def test_mcnemar_says_who_is_better() -> None:
    """One-sided: a challenger that is significantly worse is not significantly better."""
    assert metrics.mcnemar(*pair(5, 1)).p_better == 7 / 64 == 1 - metrics.mcnemar(*pair(2, 4)).p_better
    assert metrics.mcnemar(*pair(40, 10)).p_better < 0.001 < 0.999 < metrics.mcnemar(*pair(10, 40)).p_better
    assert metrics.mcnemar(*pair(700, 500)).p_better < 0.001 < 0.999 < metrics.mcnemar(*pair(500, 700)).p_better
    assert metrics.mcnemar([True], [True]).p_better == 1.0


def test_recall_of_classes_with_the_rows_behind_it() -> None:
    right, labels = np.array([True, False, True, True]), np.array([0, 0, 1, 1])
    assert metrics.recall_of_classes(right, labels, ["a", "b", "c"]) == (
        {"recall_a": 0.5, "recall_b": 1.0},
        {"recall_a": 2, "recall_b": 2, "recall_c": 0},
    )


def test_mcnemar_by_hand() -> None:
    """One against five: 2 * (1 + 6) / 2**6."""
    assert metrics.mcnemar(*pair(1, 5)).p_value == 0.21875


def test_equal_models_do_not_differ() -> None:
    assert metrics.mcnemar([True, False], [True, False]).p_value == 1.0


def test_control_an_unpaired_test_misses_what_the_paired_one_sees() -> None:
    first, second = pair(only_first=0, only_second=12, both=800, neither=200)
    unpaired = stats.chi2_contingency([[sum(first), len(first) - sum(first)], [sum(second), len(second) - sum(second)]]).pvalue
    assert metrics.mcnemar(first, second).p_value < 0.001 < 0.05 < unpaired


def test_different_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="same rows: 1 against 2"):
        metrics.mcnemar([True], [True, False])


def test_intervals_over_groups_are_wider_than_over_rows() -> None:
    """Ten pieces of ten photos each, of a piece all right or all wrong: 100 rows, but only 10 independent answers."""
    labels = np.tile([0, 1], 50)
    right = np.repeat(np.arange(10) < 8, 10)
    predicted = np.where(right, labels, 1 - labels)
    pieces, alone = [f"piece {i // 10}" for i in range(100)], [str(i) for i in range(100)]
    by_piece, by_row = metrics.group_intervals(predicted, labels, pieces), metrics.group_intervals(predicted, labels, alone)
    (low, high), (narrow_low, narrow_high) = by_piece["accuracy"], by_row["accuracy"]
    assert low <= 0.6 < narrow_low < 0.8 < narrow_high < high
    assert by_piece["missed"][0] <= 10 <= by_piece["missed"][1]
    assert metrics.group_intervals(predicted, labels, pieces) == by_piece, "the same whenever it is asked"
    assert metrics.group_intervals(labels, labels, pieces)["f1"] == (1.0, 1.0)
