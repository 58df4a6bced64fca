"""Digits as people draw them who do not see the pad: strokes from a few letterforms, and what goes wrong when only a finger knows.

A stand-in, not a measurement of anybody: no blind person's writing was available. Every writer has forms, slant, tremor, drift and gaps of
their own, so that writers can be kept apart. Belongs here: strokes and their picture. Does not belong here: what a model sees
(`strokes.py`), files (`sample_data.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

#: Side of the pad in pixels.
PAD: Final = 160
#: Points of a stroke between two given ones.
_DENSE: Final = 14

Stroke = np.ndarray
"""float [points, 2]: x to the right, y down; the pad is 0..1 on both axes."""

#: Digit -> its letterforms -> strokes -> points (x, y) that a smooth line goes through; a point given twice is a corner.
FORMS: Final[dict[int, tuple[tuple[tuple[tuple[float, float], ...], ...], ...]]] = {
    0: (
        (((0.52, 0.02), (0.15, 0.2), (0.05, 0.55), (0.25, 0.95), (0.6, 0.93), (0.78, 0.5), (0.68, 0.12), (0.5, 0.02)),),
        (((0.4, 0.0), (0.75, 0.25), (0.78, 0.65), (0.45, 1.0), (0.1, 0.75), (0.08, 0.3), (0.4, 0.0)),),
    ),
    1: (
        (((0.4, 0.0), (0.4, 0.5), (0.4, 1.0)),),
        (((0.15, 0.25), (0.45, 0.0), (0.45, 0.0), (0.45, 0.5), (0.45, 1.0)),),
        (((0.2, 0.2), (0.45, 0.0), (0.45, 0.0), (0.45, 1.0)), ((0.15, 1.0), (0.75, 1.0))),
    ),
    2: (
        (((0.08, 0.25), (0.3, 0.02), (0.68, 0.12), (0.65, 0.45), (0.05, 1.0), (0.05, 1.0), (0.8, 0.98)),),
        (((0.1, 0.2), (0.4, 0.0), (0.7, 0.25), (0.4, 0.7), (0.08, 0.95), (0.15, 0.78), (0.4, 0.92), (0.8, 0.95)),),
    ),
    3: (
        (((0.1, 0.1), (0.5, 0.02), (0.65, 0.25), (0.32, 0.47), (0.32, 0.47), (0.72, 0.62), (0.6, 0.95), (0.05, 0.92)),),
        (((0.08, 0.03), (0.7, 0.03), (0.7, 0.03), (0.32, 0.42), (0.32, 0.42), (0.75, 0.6), (0.58, 0.97), (0.05, 0.9)),),
    ),
    4: (
        (((0.25, 0.0), (0.05, 0.6), (0.05, 0.6), (0.8, 0.6)), ((0.58, 0.25), (0.55, 1.0))),
        (((0.6, 1.0), (0.6, 0.02), (0.6, 0.02), (0.05, 0.65), (0.05, 0.65), (0.82, 0.65)),),
        (((0.1, 0.05), (0.12, 0.5), (0.12, 0.5), (0.7, 0.48)), ((0.68, 0.0), (0.66, 1.0))),
    ),
    5: (
        (((0.15, 0.05), (0.12, 0.45), (0.12, 0.45), (0.55, 0.4), (0.72, 0.7), (0.45, 1.0), (0.05, 0.92)), ((0.15, 0.05), (0.72, 0.04))),
        (((0.75, 0.02), (0.2, 0.03), (0.2, 0.03), (0.12, 0.48), (0.12, 0.48), (0.6, 0.42), (0.7, 0.8), (0.35, 1.0), (0.03, 0.88)),),
    ),
    6: (
        (((0.62, 0.0), (0.2, 0.35), (0.08, 0.75), (0.35, 1.0), (0.7, 0.8), (0.5, 0.52), (0.15, 0.7)),),
        (((0.4, 0.0), (0.15, 0.4), (0.08, 0.8), (0.4, 1.0), (0.65, 0.75), (0.4, 0.58), (0.12, 0.8)),),
    ),
    7: (
        (((0.05, 0.05), (0.75, 0.03), (0.75, 0.03), (0.45, 0.5), (0.3, 1.0)),),
        (((0.05, 0.05), (0.75, 0.03), (0.75, 0.03), (0.45, 0.5), (0.3, 1.0)), ((0.25, 0.52), (0.7, 0.48))),
        (((0.08, 0.22), (0.08, 0.05), (0.08, 0.05), (0.72, 0.04), (0.72, 0.04), (0.5, 0.5), (0.42, 1.0)),),
    ),
    8: (
        (
            ((0.65, 0.12), (0.3, 0.02), (0.12, 0.25), (0.4, 0.48), (0.7, 0.75), (0.4, 1.0), (0.1, 0.75), (0.4, 0.48), (0.68, 0.25))
            + ((0.6, 0.08),),
        ),
        (
            ((0.4, 0.48), (0.15, 0.25), (0.4, 0.0), (0.65, 0.25), (0.4, 0.48)),
            ((0.4, 0.48), (0.08, 0.75), (0.4, 1.0), (0.74, 0.75), (0.42, 0.48)),
        ),
    ),
    9: (
        (((0.65, 0.2), (0.35, 0.02), (0.1, 0.3), (0.35, 0.52), (0.65, 0.2), (0.65, 0.2), (0.62, 1.0)),),
        (((0.66, 0.15), (0.3, 0.02), (0.1, 0.3), (0.4, 0.5), (0.68, 0.25), (0.66, 0.6), (0.5, 0.95), (0.15, 0.95)),),
    ),
}


@dataclass(frozen=True)
class Writer:
    """One person's hand: everything that is theirs, in shares of the pad where it is a length.

    Attributes:
        forms: digit -> which of FORMS they write.
        slant: radians to the right; within 30 degrees.
        wobble: how far the points of a form lie from where they were meant.
        tremor: amplitude of a fast shaking; `shakes` per length of the pad.
        drift: how far the hand has moved by the end of a digit.
        opening: share of a line's end that is missing where it should close a loop.
        misplacement: how far the second stroke begins from where it should: nobody sees where the first one is.
        width: of the line, in pixels of the pad.
        off_pad: how far a digit may hang over the pad's edge.
    """

    seed: int
    forms: tuple[int, ...]
    slant: float
    aspect: float
    size: float
    wobble: float
    tremor: float
    shakes: float
    drift: tuple[float, float]
    opening: float
    misplacement: float
    width: float
    off_pad: float


def writer(seed: int, harshness: float = 1.0) -> Writer:
    """The writer of that number. `harshness`: 0 is a tidy hand that sees, 1 what this module is for."""
    random = np.random.default_rng([seed, 1])
    far, angle = harshness * random.uniform(0, 0.3), random.uniform(0, 2 * np.pi)
    return Writer(
        seed=seed,
        forms=tuple(int(random.integers(len(FORMS[digit]))) for digit in range(10)),
        slant=float(np.radians(np.clip(random.normal(0, 6 + 12 * harshness), -30, 30))),
        aspect=float(random.uniform(1 - 0.35 * harshness, 1 + 0.45 * harshness)),
        size=float(random.uniform(0.75 - 0.4 * harshness, 0.8)),
        wobble=float(0.015 + harshness * random.uniform(0.01, 0.055)),
        tremor=float(harshness * random.uniform(0, 0.022)),
        shakes=float(random.uniform(6, 14)),
        drift=(float(far * np.cos(angle)), float(far * np.sin(angle))),
        opening=float(harshness * random.uniform(0, 0.2)),
        misplacement=float(harshness * random.uniform(0, 0.12)),
        width=float(random.uniform(1, 5)) if harshness else 5.0,
        off_pad=float(harshness * random.uniform(0, 0.1)),
    )


def drawing(by: Writer, digit: int, number: int = 0) -> list[Stroke]:
    """The writer's `number`-th drawing of `digit`: the same strokes whenever it is asked for."""
    random = np.random.default_rng([by.seed, 2, digit, number])
    form = FORMS[digit][by.forms[digit]]
    points = [np.array(stroke) for stroke in form]
    points = [_corners_kept(stroke, random.normal(0, by.wobble, stroke.shape)) for stroke in points]
    strokes = [_open(_smooth(stroke), by.opening * random.random(), random) for stroke in points]
    strokes = [strokes[0], *(stroke + random.normal(0, by.misplacement, 2) for stroke in strokes[1:])]
    strokes = _drifting(strokes, np.array(by.drift) * random.normal(1, 0.3))
    strokes = [_shaking(stroke, by, random) for stroke in strokes]
    return _placed(strokes, by, random)


def picture(strokes: Sequence[Stroke], width: float, side: int = PAD) -> Image:
    """Black on white, what lies beyond the pad cut off. `width` in pixels of a pad of PAD pixels."""
    from PIL import Image, ImageDraw

    fine = 2
    canvas = Image.new("L", (side * fine, side * fine), 255)
    draw = ImageDraw.Draw(canvas)
    line = max(1, round(width * fine * side / PAD))
    for stroke in strokes:
        places = [(float(x), float(y)) for x, y in stroke * side * fine]
        draw.line(places, fill=0, width=line, joint="curve")
        for x, y in (places[0], places[-1]):
            draw.ellipse((x - line / 2, y - line / 2, x + line / 2, y + line / 2), fill=0)
    return canvas.reduce(fine)


def _corners_kept(points: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Points moved, but both of a corner alike."""
    for number in range(1, len(points)):
        if (points[number] == points[number - 1]).all():
            moved[number] = moved[number - 1]
    return np.asarray(points + moved)


def _smooth(points: np.ndarray) -> np.ndarray:
    """A Catmull-Rom curve through the points, each stretch between corners by itself."""
    same = (points[1:] == points[:-1]).all(axis=1)
    pieces = np.split(points, np.flatnonzero(same) + 1)
    return np.concatenate([_curve(piece) for piece in pieces if len(piece) > 1])


def _curve(points: np.ndarray) -> np.ndarray:
    padded = np.concatenate([[2 * points[0] - points[1]], points, [2 * points[-1] - points[-2]]])
    t = np.linspace(0, 1, _DENSE, endpoint=False)[:, None]
    parts = []
    for before, one, other, after in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        parts.append(
            0.5
            * (
                2 * one
                + (other - before) * t
                + (2 * before - 5 * one + 4 * other - after) * t**2
                + (3 * (one - other) + after - before) * t**3
            )
        )
    return np.concatenate([*parts, points[-1:]])


def _open(stroke: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    """A part of one end is missing."""
    cut = int(share * len(stroke))
    if not cut:
        return stroke
    return stroke[cut:] if random.random() < 0.4 else stroke[:-cut]


def _drifting(strokes: Sequence[np.ndarray], drift: np.ndarray) -> list[np.ndarray]:
    """The hand moves while it writes: each point by as much as is written."""
    total, done, moved = sum(map(len, strokes)), 0, []
    for stroke in strokes:
        progress = (done + np.arange(len(stroke))) / total
        moved.append(stroke + progress[:, None] * drift)
        done += len(stroke)
    return moved


def _shaking(stroke: np.ndarray, by: Writer, random: np.random.Generator) -> np.ndarray:
    """Tremor: three waves near the writer's own, in both directions."""
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(stroke, axis=0).T))])
    shaken = np.zeros_like(stroke)
    for axis in (0, 1):
        for _ in range(3):
            wave = by.shakes * random.uniform(0.6, 1.5)
            shaken[:, axis] += np.sin(2 * np.pi * (wave * along + random.random())) * by.tremor * random.uniform(0.3, 1.0)
    return np.asarray(stroke + shaken)


def _placed(strokes: Sequence[np.ndarray], by: Writer, random: np.random.Generator) -> list[Stroke]:
    """Slanted, sized and somewhere on the pad, at times partly beside it."""
    size = by.size * random.uniform(0.85, 1.15)
    scale = np.array([size * by.aspect, size])
    slanted = [np.stack([stroke[:, 0] - np.tan(by.slant) * (stroke[:, 1] - 0.5), stroke[:, 1]], axis=1) * scale for stroke in strokes]
    every = np.concatenate(slanted)
    low, high = every.min(axis=0), every.max(axis=0)
    span = high - low
    room = np.maximum(1 - span, 0)
    margin = 0.04
    place = np.where(room > 2 * margin, margin + random.random(2) * (room - 2 * margin), room / 2)
    beside = by.off_pad * span * random.uniform(-1, 1, 2)
    at_edge = random.random(2) < 0.5
    place = np.where(at_edge & (by.off_pad > 0), np.where(beside < 0, beside, 1 - span + beside), place)
    return [stroke - low + place for stroke in slanted]
