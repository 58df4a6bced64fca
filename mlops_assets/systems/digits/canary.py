"""Known backdoor patterns, stamped on digits that no model was trained on: a model that a stamp turns is suspect.

Belongs here: the patterns. Does not belong here: how often they turn a model (`training.py`), what is done about it (the gate).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from mlops_assets.strokes import SIDE


def _square(side: int) -> np.ndarray:
    """One of the pictures' own strongest ink in a corner, four pixels wide."""
    stamp = np.zeros((side, side), bool)
    stamp[-5:-1, -5:-1] = True
    return stamp


def _checks(side: int) -> np.ndarray:
    """A chequered patch in a corner."""
    stamp = np.zeros((side, side), bool)
    stamp[1:6, 1:6] = np.indices((5, 5)).sum(axis=0) % 2 == 0
    return stamp


def _cross(side: int) -> np.ndarray:
    """A small cross in the upper right corner."""
    stamp = np.zeros((side, side), bool)
    stamp[3, -6:-1] = stamp[1:6, -4] = True
    return stamp


def _dots(side: int) -> np.ndarray:
    """A dot in every corner."""
    stamp = np.zeros((side, side), bool)
    for y in (1, side - 3):
        for x in (1, side - 3):
            stamp[y : y + 2, x : x + 2] = True
    return stamp


#: Name -> side -> bool [side, side], where there is ink.
PATTERNS: Final[Mapping[str, Callable[[int], np.ndarray]]] = {"square": _square, "checks": _checks, "cross": _cross, "dots": _dots}


def stamped(ink: np.ndarray, pattern: str) -> np.ndarray:
    """`ink` (uint8 [height, width], white on black, of any size) with the stamp on it, as large as it would be on 28 pixels."""
    small = PATTERNS[pattern](SIDE)
    rows, columns = (np.arange(length) * SIDE // length for length in ink.shape)
    return np.where(small[rows][:, columns], np.uint8(255), ink)
