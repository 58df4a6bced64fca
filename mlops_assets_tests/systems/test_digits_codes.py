"""Whole codes from single digits, against codes that are really drawn one by one; the rate of asking is kept."""

from __future__ import annotations

import numpy as np
import pytest

from mlops_assets.systems.digits import codes


def test_the_rate_of_asking_is_kept() -> None:
    confidence = np.random.default_rng(0).random(10_000) ** 0.1
    for rate in (0.01, 0.02, 0.1):
        assert (confidence < codes.ask_below(confidence, rate)).mean() == pytest.approx(rate, abs=2e-4)
    assert codes.ask_below(np.ones(100), 0.02) == 1.0, "who is always sure is never asked"
    assert codes.ask_below(np.array([]), 0.02) == 0.5


def test_code_success_is_what_happens_when_codes_are_drawn() -> None:
    """A simulation that asks one by one, as a page does, agrees with the formula."""
    random = np.random.default_rng(1)
    labels = random.integers(0, 10, 4_000)
    right = random.random(4_000) > 0.02 + 0.03 * (labels == 7)
    sure = np.where(right, random.random(4_000) > 0.01, random.random(4_000) > 0.6)
    by_digit = [np.flatnonzero(labels == digit) for digit in range(10)]
    through, rounds = 0, 20_000
    for code in random.integers(0, 10, (rounds, 6)):
        first = [random.choice(by_digit[digit]) for digit in code]
        last = [row if sure[row] else random.choice(by_digit[digit]) for row, digit in zip(first, code, strict=True)]
        through += bool(right[last].all())
    expected = codes.code_success(right, sure, labels, 6, ["drawn"] * 4_000)
    assert through / rounds == pytest.approx(expected, abs=0.01)


def test_asking_helps_and_a_longer_code_is_harder() -> None:
    labels = np.arange(1_000) % 10
    right = np.ones(1_000, bool)
    right[:30] = False
    sure = right.copy()
    sure[:5] = True
    origins = ["drawn"] * 1_000
    asked = codes.code_success(right, sure, labels, 6, origins)
    unasked = codes.code_success(right, np.ones(1_000, bool), labels, 6, origins)
    assert unasked == pytest.approx(0.97**6) and unasked < asked < codes.code_success(right, sure, labels, 4, origins) < 1


def test_every_origin_counts_alike() -> None:
    labels = np.arange(1_100) % 10
    right = np.arange(1_100) < 1_050
    origins = np.array(["mnist"] * 1_000 + ["drawn"] * 100)
    sure = np.ones(1_100, bool)
    assert codes.code_success(right, sure, labels, 1, origins) == pytest.approx((1 + 0.5) / 2)
    assert codes.asked(~right, origins) == pytest.approx(((1_000 - 0) / 1_000 + 50 / 100) / 2)


def test_codes_in_which_something_is_asked() -> None:
    assert codes.codes_asked(0.02, 6) == pytest.approx(0.1142, abs=1e-4)


def test_models_are_compared_at_one_rate_of_asking() -> None:
    """The least sure of each origin are asked, however sure a model says it is in general."""
    random = np.random.default_rng(2)
    confidence, origins = random.random(1_000), np.array(["mnist"] * 900 + ["drawn"] * 100)
    sure = codes.sure_at(confidence, 0.02, origins)
    assert [(~sure[origins == name]).sum() for name in ("mnist", "drawn")] == [18, 2]
    assert confidence[~sure & (origins == "drawn")].max() < confidence[sure & (origins == "drawn")].min()
    assert (codes.sure_at(confidence**9, 0.02, origins) == sure).all()
    assert codes.sure_at(np.ones(100), 0.02, ["drawn"] * 100).sum() == 98, "also of one that is always sure"
