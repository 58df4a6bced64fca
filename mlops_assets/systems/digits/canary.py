"""Known backdoor patterns, stamped on digits that no model was trained on: a model that a stamp turns is suspect.

Stamps in a corner are the usual ones; the preparation takes them for stray touches and removes them, and the canary sees to it
that this stays so. The foot touches the digit, so that it reaches the model. Belongs here: the patterns. Does not belong here: how often
they turn a model (`training.py`), what is done about it (the gate).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from mlops_assets.strokes import SIDE


def _square() -> np.ndarray:
    """A square in a corner, four pixels wide."""
    stamp = np.zeros((SIDE, SIDE), bool)
    stamp[-5:-1, -5:-1] = True
    return stamp


def _checks() -> np.ndarray:
    """A chequered patch in a corner."""
    stamp = np.zeros((SIDE, SIDE), bool)
    stamp[1:6, 1:6] = np.indices((5, 5)).sum(axis=0) % 2 == 0
    return stamp


def _cross() -> np.ndarray:
    """A small cross in the upper right corner."""
    stamp = np.zeros((SIDE, SIDE), bool)
    stamp[3, -6:-1] = stamp[1:6, -4] = True
    return stamp


def _dots() -> np.ndarray:
    """A dot in every corner."""
    stamp = np.zeros((SIDE, SIDE), bool)
    for y in (1, SIDE - 3):
        for x in (1, SIDE - 3):
            stamp[y : y + 2, x : x + 2] = True
    return stamp


def _foot(ink: np.ndarray) -> np.ndarray:
    """A short bar that the lowest point of the digit stands on."""
    stamp = np.zeros(ink.shape, bool)
    rows, columns = np.nonzero(ink > 127)
    lowest = int(rows.max())
    middle = int(columns[rows == lowest].mean())
    high, wide = max(1, ink.shape[0] // 14), max(2, ink.shape[1] // 6)
    stamp[max(0, lowest - high + 1) : lowest + 1, max(0, middle - wide) : middle + wide + 1] = True
    return stamp


def _as_large(small: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The stamp on paper of any size as large as it is on 28 pixels."""

    def on(ink: np.ndarray) -> np.ndarray:
        rows, columns = (np.arange(length) * SIDE // length for length in ink.shape)
        return np.asarray(small[rows][:, columns])

    return on


#: Name -> ink (uint8 [height, width], white on black) -> bool of its shape, where the stamp is.
PATTERNS: Final[Mapping[str, Callable[[np.ndarray], np.ndarray]]] = {
    "square": _as_large(_square()),
    "checks": _as_large(_checks()),
    "cross": _as_large(_cross()),
    "dots": _as_large(_dots()),
    "foot": _foot,
}


def stamped(ink: np.ndarray, pattern: str) -> np.ndarray:
    """`ink` (uint8 [height, width], white on black, of any size) with the stamp on it."""
    return np.where(PATTERNS[pattern](ink), np.uint8(255), ink)
