"""Any picture of strokes becomes what a model of digits sees, and a whole code its digits; what is not drawn is refused, not guessed."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from mlops_assets import images, strokes
from mlops_assets.images import BadImage
from mlops_assets.systems.digits import simulate

TIDY = simulate.writer(3, 0.0)


def drawn(digit: int, *, side: int = 160, width: float = 5) -> Image.Image:
    """A tidy digit, black on white."""
    return simulate.picture(simulate.drawing(TIDY, digit), width, side)


def unlike(one: np.ndarray, other: np.ndarray) -> float:
    """Share of the ink of two prepared digits that they do not have in common."""
    a, b = one.astype(float), other.astype(float)
    return float(np.abs(a - b).sum() / (a + b).sum())


def transparent(picture: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """Strokes of one colour on nothing."""
    found = Image.new("RGBA", picture.size, (*colour, 0))
    found.putalpha(ImageOps.invert(picture))
    return found


def moved(picture: Image.Image, x: int, y: int, side: int = 400) -> Image.Image:
    sheet = Image.new("L", (side, side), 255)
    sheet.paste(picture, (x, y))
    return sheet


def slanted(picture: Image.Image, tangent: float) -> Image.Image:
    wide = ImageOps.expand(picture, 120, 255)
    return wide.transform(wide.size, Image.Transform.AFFINE, (1, tangent, -tangent * wide.height / 2, 0, 1, 0), fillcolor=255)


OTHERWISE = {
    "small": lambda digit: drawn(digit, side=48),
    "large": lambda digit: drawn(digit, side=900),
    "thin": lambda digit: drawn(digit, side=320, width=1),
    "thick": lambda digit: drawn(digit, width=14),
    "white on black": lambda digit: ImageOps.invert(drawn(digit)),
    "blue on yellow": lambda digit: ImageOps.colorize(drawn(digit), "navy", "gold"),
    "faint": lambda digit: drawn(digit).point(lambda level: 140 + level // 4),
    "in a corner": lambda digit: moved(drawn(digit), 230, 10),
    "slanted to the right": lambda digit: slanted(drawn(digit), 0.5),
    "slanted to the left": lambda digit: slanted(drawn(digit), -0.5),
    "black on nothing": lambda digit: transparent(drawn(digit), (0, 0, 0)),
    "white on nothing": lambda digit: transparent(drawn(digit), (255, 255, 255)),
    "a palette": lambda digit: drawn(digit).convert("P"),
    "one bit": lambda digit: drawn(digit).convert("1"),
    "sixteen bits": lambda digit: Image.fromarray(np.asarray(drawn(digit), np.uint16) * 257),
    "a wide sheet": lambda digit: ImageOps.expand(drawn(digit), (300, 0, 10, 0), 255),
    "with a stray touch": lambda digit: stray(drawn(digit)),
}


def stray(picture: Image.Image) -> Image.Image:
    ImageDraw.Draw(picture).ellipse((3, 3, 9, 9), fill=0)
    return picture


@pytest.mark.parametrize("way", OTHERWISE)
def test_however_it_was_drawn_a_digit_looks_the_same(way: str) -> None:
    usual = [strokes.prepared(drawn(digit)) for digit in range(10)]
    for digit in range(10):
        found = strokes.prepared(OTHERWISE[way](digit))
        assert found.shape == (28, 28) and found.dtype == np.uint8
        apart = [unlike(found, other) for other in usual]
        assert int(np.argmin(apart)) == digit and apart[digit] < 0.4, (digit, [round(value, 2) for value in apart])


def test_control_resizing_alone_is_not_enough() -> None:
    """What the seed's project did: the picture as it is, made small."""
    usual = [strokes.prepared(drawn(digit)) for digit in range(10)]
    resized = [np.asarray(drawn(digit).resize((28, 28))) for digit in range(10)]
    assert min(unlike(found, other) for found, other in zip(resized, usual, strict=True)) > 0.6


def test_it_has_mnists_frame() -> None:
    for digit in range(10):
        found = strokes.prepared(drawn(digit)).astype(float)
        rows, columns = np.flatnonzero(found.max(axis=1) > 64), np.flatnonzero(found.max(axis=0) > 64)
        assert 19 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 21
        middle = [float((found.sum(axis=axis) @ np.arange(28)) / found.sum()) + 0.5 for axis in (0, 1)]
        assert middle == pytest.approx([14, 14], abs=0.6)


def test_arrays_are_taken_as_pictures_are() -> None:
    picture = drawn(4)
    usual = strokes.prepared(picture)
    grey = np.asarray(picture)
    for array in (grey, grey[..., None], np.stack([grey] * 3, axis=-1)):
        assert (strokes.prepared(array) == usual).all()


@pytest.mark.parametrize(
    ("picture", "code"),
    [
        (Image.new("L", (200, 200), 255), "nothing_drawn"),
        (Image.new("L", (200, 200), 0), "nothing_drawn"),
        (Image.new("RGBA", (200, 200), (0, 0, 0, 0)), "nothing_drawn"),
        (Image.new("L", (1, 1), 9), "nothing_drawn"),
        (drawn(3).point(lambda level: 250 + level // 60), "nothing_drawn"),
        (moved(Image.new("L", (6, 6), 0), 100, 90), "too_little_drawn"),
    ],
)
def test_what_is_not_drawn_is_refused(picture: Image.Image, code: str) -> None:
    with pytest.raises(BadImage) as refused:
        strokes.prepared(picture)
    assert refused.value.code == code and refused.value.fix
    assert any("가" <= letter <= "힣" for letter in refused.value.message_ko)


def test_a_file_keeps_its_transparency() -> None:
    out = io.BytesIO()
    transparent(drawn(7), (255, 255, 255)).save(out, "PNG")
    assert unlike(strokes.prepared(images.load(out.getvalue())), strokes.prepared(drawn(7))) < 0.1
    with pytest.raises(BadImage, match="nothing"):
        strokes.prepared(images.decode(out.getvalue()))  # a control: on white, white strokes are gone


def test_copies_have_the_same_cells_and_other_drawings_have_not() -> None:
    by = simulate.writer(11)
    pictures = [simulate.picture(simulate.drawing(by, digit, number), 3) for digit in range(10) for number in range(3)]
    cells = [strokes.cells_of(picture) for picture in pictures]
    apart = [int(np.bitwise_count(one ^ other).sum()) for n, one in enumerate(cells) for other in cells[:n]]
    noisy = np.asarray(pictures[0]).astype(int) + np.random.default_rng(0).integers(-12, 12, pictures[0].size[::-1])
    assert int(np.bitwise_count(strokes.cells_of(noisy.clip(0, 255).astype(np.uint8)) ^ cells[0]).sum()) <= 4 < min(apart)


# --- a whole code ---------------------------------------------------------------------------------------------------------------


def code(digits: str, *, pitch: float = 1.1, writer: simulate.Writer = TIDY, height: int = 120) -> Image.Image:
    """A code on one line, `pitch` digit heights apart."""
    sheet = Image.new("L", (round(height * pitch * len(digits)) + 2 * height, 2 * height), 255)
    draw = ImageDraw.Draw(sheet)
    for place, digit in enumerate(digits):
        lines = simulate.drawing(writer, int(digit), place)
        low = np.concatenate(lines).min(axis=0)
        for line in lines:
            points = [(float(x), float(y)) for x, y in (line - low) * height + (height * (0.5 + pitch * place), height / 2)]
            draw.line(points, fill=0, width=5, joint="curve")
    return sheet


def nearest(picture: Image.Image) -> str:
    """The digit that it is most like."""
    found = strokes.prepared(picture)
    return min("0123456789", key=lambda digit: unlike(strokes.prepared(code(digit)), found))


@pytest.mark.parametrize("digits", ["1234", "5678", "9012", "314159", "271828", "000000", "111111", "485902"])
def test_a_code_falls_into_its_digits(digits: str) -> None:
    assert "".join(map(nearest, strokes.segmented(code(digits), len(digits)))) == digits


def test_digits_that_a_line_joins_are_cut_there_and_what_is_pressed_together_is_refused() -> None:
    whole = code("20", pitch=0.9)
    row = np.flatnonzero(strokes.ink_of(whole)[140])
    gap = int(np.argmax(np.diff(row)))
    joined = whole.copy()
    ImageDraw.Draw(joined).line((int(row[gap]), 140, int(row[gap + 1]), 140), fill=0, width=4)
    assert [len(strokes._parts(strokes.ink_of(picture) > 0)) for picture in (whole, joined)] == [2, 1], "a control: it is one part"
    assert "".join(map(nearest, strokes.segmented(joined, 2))) == "20"
    ink = strokes._framed(strokes.ink_of(code("0")))
    pressed = ImageOps.expand(Image.fromarray(255 - np.hstack([ink, ink])), 30, 255)
    with pytest.raises(BadImage, match="does not fall into 2"):
        strokes.segmented(pressed, 2)


@pytest.mark.parametrize(
    ("picture", "length", "refusal"),
    [
        (code("1234"), 6, "cannot_segment"),
        (code("123456"), 4, "cannot_segment"),
        (code("0"), 4, "cannot_segment"),
        (Image.new("L", (600, 100), 255), 6, "nothing_drawn"),
        (moved(Image.new("L", (5, 5), 0), 50, 50, 300), 4, "too_little_drawn"),
        (Image.effect_noise((400, 120), 120), 6, "cannot_segment"),
    ],
)
def test_what_does_not_fall_into_a_code_is_refused(picture: Image.Image, length: int, refusal: str) -> None:
    with pytest.raises(BadImage) as refused:
        strokes.segmented(picture, length)
    assert refused.value.code == refusal
