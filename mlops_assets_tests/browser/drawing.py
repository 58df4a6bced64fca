"""Digits as a hand draws them on the pad of `/otp`: strokes in parts of its side, from the upper left corner."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mlops_assets_tests.browser.chromium import Page, Point
from mlops_assets_tests.conftest import wait_for

if TYPE_CHECKING:
    from PIL.Image import Image

Stroke = list[Point]


def arc(x: float, y: float, width: float, height: float, begin: float, end: float) -> Stroke:
    """Part of an ellipse around (x, y), in degrees clockwise from the right."""
    steps = [math.radians(begin + (end - begin) * n / 24) for n in range(25)]
    return [(x + width * math.cos(angle), y + height * math.sin(angle)) for angle in steps]


DIGITS: dict[str, list[Stroke]] = {
    "0": [arc(0.5, 0.5, 0.2, 0.33, -90, 270)],
    "1": [[(0.5, 0.15), (0.5, 0.5), (0.5, 0.85)]],
    "2": [arc(0.5, 0.33, 0.2, 0.18, 190, 390) + [(0.3, 0.82), (0.5, 0.82), (0.74, 0.82)]],
    "3": [arc(0.47, 0.33, 0.19, 0.17, 210, 440) + arc(0.47, 0.67, 0.22, 0.18, 280, 510)],
    "4": [[(0.42, 0.15), (0.28, 0.58), (0.75, 0.58)], [(0.62, 0.3), (0.62, 0.6), (0.6, 0.9)]],
    "5": [[(0.34, 0.16), (0.33, 0.3), (0.32, 0.46)] + arc(0.47, 0.63, 0.22, 0.2, 220, 500), [(0.34, 0.16), (0.5, 0.16), (0.72, 0.16)]],
    "6": [[(0.62, 0.14), (0.45, 0.3), (0.34, 0.5)] + arc(0.5, 0.67, 0.17, 0.18, 180, 540)],
    "7": [[(0.27, 0.17), (0.5, 0.17), (0.74, 0.17), (0.6, 0.45), (0.45, 0.87)]],
    "8": [arc(0.5, 0.32, 0.15, 0.16, 90, -270) + arc(0.5, 0.66, 0.19, 0.18, -90, 270)],
    "9": [arc(0.48, 0.34, 0.17, 0.18, 0, -360) + [(0.64, 0.45), (0.62, 0.65), (0.56, 0.88)]],
}


#: Not a digit: a model that knows ten of them must not be sure.
SCRAWL: list[Stroke] = [
    [(0.15, 0.15), (0.5, 0.5), (0.85, 0.85)],
    [(0.85, 0.15), (0.5, 0.5), (0.15, 0.85)],
    arc(0.5, 0.5, 0.38, 0.38, 0, 360),
]


def pictures(size: int = 280, width: int = 16) -> dict[str, list[Image]]:
    """The digits drawn without a browser: upright, and slanted a little to either side."""
    found: dict[str, list[Image]] = {}
    for digit, strokes in DIGITS.items():
        found[digit] = [_picture(strokes, size, width, slant) for slant in (0.0, -0.15, 0.15)]
    return found


def _picture(strokes: list[Stroke], size: int, width: int, slant: float) -> Image:
    from PIL import Image, ImageDraw

    picture = Image.new("L", (size, size))
    pen = ImageDraw.Draw(picture)
    for stroke in strokes:
        points = [((x + slant * (0.5 - y)) * size, y * size) for x, y in stroke]
        pen.line(points, fill=255, width=width, joint="curve")
        for x, y in points:
            pen.ellipse([x - width / 2, y - width / 2, x + width / 2, y + width / 2], fill=255)
    return picture


def on_pad(page: Page, stroke: Stroke) -> Stroke:
    """The stroke in the screen's pixels; the pad is brought into view."""
    x, y = page.centre("#pad")
    side = page.run("document.getElementById('pad').clientWidth")
    return [(x + (px - 0.5) * side, y + (py - 0.5) * side) for px, py in stroke]


def draw(page: Page, strokes: list[Stroke]) -> None:
    """With the mouse."""
    for stroke in strokes:
        page.drag(on_pad(page, stroke))


def draw_with_finger(page: Page, strokes: list[Stroke]) -> None:
    for stroke in strokes:
        first, *others = on_pad(page, stroke)
        page.fingers("touchStart", first)
        for point in others:
            page.fingers("touchMove", point)
        page.fingers("touchEnd")


def hold(page: Page) -> None:
    """A finger stays on the pad until the page's own timer has said, by a tone, that it was long enough."""
    at = page.centre("#pad")
    page.run("window.heard = []")
    page.fingers("touchStart", at)
    wait_for(lambda: page.run("heard.length") > 0, "the pad was held long enough")
    page.fingers("touchEnd")


def tap_with_two_fingers(page: Page) -> None:
    """A mouse stands for the first finger: the protocol can lift two only at once, and Chromium takes later strokes for scrolling then."""
    x, y = page.centre("#pad")
    page.mouse("mousePressed", (x - 40, y))
    page.fingers("touchStart", (x + 40, y))
    page.fingers("touchEnd")
    page.mouse("mouseReleased", (x - 40, y))
