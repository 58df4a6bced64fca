"""What single digits mean for whole codes: how often a code goes through at a rate of asking, and from which confidence to ask.

Belongs here: pure functions over arrays. Does not belong here: models, thresholds (the gate's).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence


def ask_below(confidence: np.ndarray, rate: float) -> float:
    """The confidence below which `rate` of these digits, the least sure ones, are asked again."""
    if not len(confidence):
        return 0.5
    return float(np.quantile(confidence, rate, method="higher"))


def sure_at(confidence: np.ndarray, rate: float, origins: Sequence[str] | np.ndarray) -> np.ndarray:
    """bool [rows]: all but the least sure `rate` of each origin's digits. Two models that ask equally often can be compared; one that asks
    more by its own threshold would only look better."""
    names, sure = np.asarray(origins), np.ones(len(confidence), bool)
    for name in np.unique(names):
        of = np.flatnonzero(names == name)
        sure[of[np.argsort(confidence[of], kind="stable")[: int(rate * len(of))]]] = False
    return sure


def digit_success(right: np.ndarray, sure: np.ndarray, labels: np.ndarray) -> float:
    """The chance that a digit ends up right, the mean over the digits that occur.

    A sure answer counts as it is: nobody is asked. A doubtful one is drawn again, once, by another draw from the same digit's pictures, and
    then counts whether sure or not.

    Args:
        right, sure: bool [rows], of the same pictures as `labels`.
    """
    found = []
    for digit in np.unique(labels):
        of_digit = labels == digit
        again = float(right[of_digit].mean())
        found.append(float((right & sure)[of_digit].mean()) + float((~sure)[of_digit].mean()) * again)
    return float(np.mean(found)) if found else float("nan")


def code_success(right: np.ndarray, sure: np.ndarray, labels: np.ndarray, length: int, origins: Sequence[str] | np.ndarray) -> float:
    """The chance that all `length` digits of a code end up right, the doubtful ones asked again once.

    Digits of a code are taken as independent, each equally often, and each origin of pictures counts alike: MNIST has twenty times as many
    as people have drawn.
    """
    names = np.asarray(origins)
    masks = [names == name for name in np.unique(names)]
    return float(np.mean([digit_success(right[mask], sure[mask], labels[mask]) for mask in masks]) ** length)


def asked(sure: np.ndarray, origins: Sequence[str] | np.ndarray) -> float:
    """Share of the digits that are asked again, each origin counting alike."""
    names = np.asarray(origins)
    return float(np.mean([(~sure[names == name]).mean() for name in np.unique(names)]))


def codes_asked(rate: float, length: int) -> float:
    """Share of the codes in which at least one digit is asked again."""
    return 1 - (1 - rate) ** length
