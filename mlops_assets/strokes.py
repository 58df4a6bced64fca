"""From any picture of strokes to what a model of digits sees: the one preparation that training, server and page share.

A picture may have any size, paper, pen, thickness, place and slant; what `prepared` gives has one of each, as MNIST's makers gave theirs:
white on black, 28 x 28, upright, the longer side 20 pixels, the centre of mass in the middle. Belongs here: numpy and Pillow. Does not
belong here: decoding a file (`images.py`), what a digit looks like.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlops_assets.depth import eight_bits
from mlops_assets.images import BadImage

if TYPE_CHECKING:
    from PIL.Image import Image

#: Side of what a model sees, and of the box in it that a digit fills, in pixels.
SIDE, BOX = 28, 20
#: A larger picture is reduced first: nothing of a digit is lost, and a page may send what its screen has.
MOST_PIXELS_ASIDE = 512
#: Of 255: paper and pen must differ by as much.
CONTRAST = 40
#: Of 255, of the strongest stroke: fainter is paper (JPEG's noise, a pen's halo).
FAINT = 40
#: The longest drawn part must be this share of the picture's longer side; less is a tap, not a digit.
LEAST_SHARE = 0.06
#: Parts shorter than this share of the longest are stray touches.
SPECK = 0.3
#: Cells of the grid on which parts are told apart; strokes that nearly touch share a cell.
GRID = 48
#: Strokes are measured and mended on a canvas on which a digit is this large: three times what the model sees.
FINE, CANVAS = 60, 136
#: Width of strokes there; thinner ones are thickened, thicker ones thinned.
THIN, THICK = 6.0, 12.0
#: Tangent of the largest slant that is taken for one (35 degrees).
MOST_SLANT = 0.7
#: Digits of a whole code.
MOST_DIGITS = 12

_AT, _ONE = np.arange(CANVAS, dtype=np.float32), np.ones(CANVAS, np.float32)


def prepared(picture: Image | np.ndarray) -> np.ndarray:
    """uint8 [28, 28], white on black, of a picture (Pillow, or uint8 [height, width] or [height, width, 1..4]) of one digit.

    Raises:
        BadImage: `nothing_drawn`, `too_little_drawn`.
    """
    return fitted(_cut(ink_of(picture)))


def cells_of(picture: Image | np.ndarray) -> np.ndarray:
    """uint64 [16]: which of 32 x 32 cells of the picture have ink. Two drawings hardly ever agree in nearly all of them, a copy does.

    Raises:
        BadImage: `nothing_drawn`.
    """
    from PIL import Image

    cells = Image.fromarray(np.where(ink_of(picture) > 127, np.uint8(255), np.uint8(0))).resize((32, 32), Image.Resampling.BOX)
    return np.packbits(np.asarray(cells) > 0).view(np.uint64)


# --- ink ------------------------------------------------------------------------------------------------------------------------


def ink_of(picture: Image | np.ndarray) -> np.ndarray:
    """uint8 [height, width]: how unlike the paper each point is, 255 where it is most. Dark on light and light on dark are the same.

    Paper is what most of the picture's rim is.

    Raises:
        BadImage: `nothing_drawn`.
    """
    from PIL import Image

    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture.squeeze(-1) if picture.ndim == 3 and picture.shape[2] == 1 else picture)
    picture = eight_bits(picture)
    if max(picture.size) > MOST_PIXELS_ASIDE:
        if picture.mode in ("P", "1"):
            picture = picture.convert("RGBA")
        picture = picture.reduce(-(-max(picture.size) // MOST_PIXELS_ASIDE))
    grey = _grey(picture)
    levels = np.asarray(grey)
    rim = np.sort(np.concatenate([levels[0], levels[-1], levels[:, 0], levels[:, -1]]))
    paper = int(rim[len(rim) // 2])
    darkest, lightest = int(levels.min()), int(levels.max())
    strongest = max(paper - darkest, lightest - paper)
    if strongest < CONTRAST:
        raise _refused("nothing_drawn", "nothing is drawn", "아무것도 그려지지 않았습니다.")
    ink_of_level = np.minimum(np.abs(np.arange(256) - paper) * 255 // strongest, 255)
    ink_of_level[ink_of_level < FAINT] = 0
    return np.asarray(grey.point(ink_of_level.tolist()))


def _grey(picture: Image) -> Image:
    """As mode L. What is transparent shows the paper: under a drawn sheet its own colour, under bare strokes the opposite."""
    from PIL import Image

    if not (picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info):
        return picture.convert("L")
    grey, alpha = picture.convert("RGBA").convert("LA").split()
    if alpha.getextrema()[0] == 255:
        return grey
    levels, opaque = np.asarray(grey), np.asarray(alpha) > 0
    if not opaque.any():
        return Image.new("L", picture.size)
    drawn = levels[opaque]
    if opaque.mean() > 0.5:
        paper = int(np.median(drawn))
    else:
        paper = 255 if drawn.mean() < 128 else 0
    return Image.composite(grey, Image.new("L", picture.size, paper), alpha)


def _refused(code: str, message: str, message_ko: str, fix: str = "Draw one digit, large and with a clear line.") -> BadImage:
    return BadImage(code, message, message_ko, fix)


# --- parts ----------------------------------------------------------------------------------------------------------------------


@dataclass
class _Part:
    """Connected cells of the grid: their runs (row, first column, column after the last) and the box around them."""

    runs: list[tuple[int, int, int]]
    top: int
    bottom: int
    left: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def extent(self) -> int:
        return max(self.height, self.width)

    @classmethod
    def of(cls, runs: Sequence[tuple[int, int, int]]) -> _Part:
        rows = [row for row, _, _ in runs]
        return cls(list(runs), min(rows), max(rows) + 1, min(first for _, first, _ in runs), max(after for _, _, after in runs))


def _cells(ink: np.ndarray, cell: int) -> np.ndarray:
    """bool [rows, columns]: squares of `cell` points in which there is ink."""
    from PIL import Image

    return np.asarray(ink if cell == 1 else Image.fromarray(ink).reduce(cell)) > 0


def _parts(cells: np.ndarray) -> list[_Part]:
    """Parts that touch nowhere, not even at a corner."""
    framed = np.zeros((cells.shape[0], cells.shape[1] + 2), np.int8)
    framed[:, 1:-1] = cells
    edges = framed[:, 1:] - framed[:, :-1]
    rows, firsts = (found.tolist() for found in np.nonzero(edges == 1))
    afters = np.nonzero(edges == -1)[1].tolist()
    parent = list(range(len(rows)))

    def find(item: int) -> int:
        while (above := parent[item]) != item:
            parent[item] = item = parent[above]
        return item

    before = 0
    for number, row in enumerate(rows):
        while rows[before] < row - 1 or (rows[before] == row - 1 and afters[before] < firsts[number]):
            before += 1
        other = before
        while rows[other] == row - 1 and firsts[other] <= afters[number]:
            parent[find(other)] = find(number)
            other += 1
    together: dict[int, list[tuple[int, int, int]]] = {}
    for number, run in enumerate(zip(rows, firsts, afters, strict=True)):
        together.setdefault(find(number), []).append(run)
    return [_Part.of(runs) for runs in together.values()]


def _keep(ink: np.ndarray, parts: Sequence[_Part], cell: int) -> np.ndarray:
    """The ink of these parts alone."""
    shown = np.zeros((-(-ink.shape[0] // cell), -(-ink.shape[1] // cell)), np.uint8)
    for part in parts:
        for row, first, after in part.runs:
            shown[row, first:after] = 1
    whole = shown if cell == 1 else shown.repeat(cell, axis=0).repeat(cell, axis=1)
    return ink * whole[: ink.shape[0], : ink.shape[1]]


def _drawn(ink: np.ndarray, cell: int) -> tuple[list[_Part], list[_Part]]:
    """(parts, those of them that are no stray touches). Raises BadImage `too_little_drawn`."""
    parts = _parts(_cells(ink, cell))
    longest = max((part.extent for part in parts), default=0)
    if longest * cell < LEAST_SHARE * max(ink.shape):
        message, korean = "too little is drawn: a touch, not a digit", "너무 작게 그려졌습니다. 숫자를 더 크게 그려 주세요."
        raise _refused("too_little_drawn", message, korean)
    return parts, [part for part in parts if part.extent >= SPECK * longest]


def _cut(ink: np.ndarray) -> np.ndarray:
    """What is drawn, without stray touches and without the paper around it."""
    cell = -(-max(ink.shape) // GRID)
    parts, kept = _drawn(ink, cell)
    return _framed(ink if len(parts) == len(kept) else _keep(ink, kept, cell))


def _framed(ink: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


# --- shape ----------------------------------------------------------------------------------------------------------------------


def fitted(ink: np.ndarray) -> np.ndarray:
    """uint8 [28, 28] of the ink of one digit, framed tightly: upright, of one thickness and size, centred by mass."""
    from PIL import Image

    canvas = _even(_upright(_on_canvas(ink)))
    columns, rows, mass = _profiles(canvas.astype(np.float32))
    across, down = np.flatnonzero(columns), np.flatnonzero(rows)
    extent = max(int(across[-1] - across[0]), int(down[-1] - down[0])) + 1
    side = extent * SIDE / BOX
    x, y = float(columns @ _AT) / mass + 0.5, float(rows @ _AT) / mass + 0.5
    # Nothing may be cut off by being centred: a digit whose mass is far from its middle is moved less.
    x = min(max(x, across[-1] + 1 - side / 2), across[0] + side / 2)
    y = min(max(y, down[-1] + 1 - side / 2), down[0] + side / 2)
    margin = CANVAS // 2  # the window may reach beyond the canvas
    left, top = x - side / 2 + margin, y - side / 2 + margin
    padded = np.zeros((2 * CANVAS, 2 * CANVAS), np.uint8)
    padded[margin : margin + CANVAS, margin : margin + CANVAS] = canvas
    return np.asarray(Image.fromarray(padded).resize((SIDE, SIDE), Image.Resampling.BOX, box=(left, top, left + side, top + side)))


def _profiles(canvas: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Ink by column and by row, and all of it (float32)."""
    columns, rows = _ONE @ canvas, canvas @ _ONE
    return columns, rows, float(columns.sum())


def _on_canvas(ink: np.ndarray) -> np.ndarray:
    """Its longer side FINE, in the middle of the canvas, strokes as strong however thin they were."""
    from PIL import Image

    height, width = ink.shape
    scale = FINE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.asarray(Image.fromarray(ink).resize(size, Image.Resampling.BILINEAR))
    seen = np.sort(small[small > 8])
    usual = float(seen[len(seen) * 3 // 4]) if len(seen) else 255.0
    canvas = np.zeros((CANVAS, CANVAS), np.uint8)
    top, left = (CANVAS - size[1]) // 2, (CANVAS - size[0]) // 2
    canvas[top : top + size[1], left : left + size[0]] = np.minimum(small * np.float32(255 / usual), 255)
    return canvas


def _upright(canvas: np.ndarray) -> np.ndarray:
    """Without the slant that its moments show."""
    from PIL import Image

    floats = canvas.astype(np.float32)
    columns, rows, mass = _profiles(floats)
    x, y = _AT - float(columns @ _AT) / mass, _AT - float(rows @ _AT) / mass
    tall, wide = float(rows @ (y * y)), float(columns @ (x * x))
    if tall < 0.1 * wide:  # a dash: it leans to no side
        return canvas
    slant = float(y @ (floats @ x)) / tall
    slant = min(max(slant, -MOST_SLANT), MOST_SLANT)
    middle = float(rows @ _AT) / mass
    drawn = np.flatnonzero(rows)
    top, bottom = int(drawn[0]), int(drawn[-1]) + 1  # rows stay where they are: only those with ink are worth the work
    turned = Image.fromarray(canvas[top:bottom]).transform(
        (CANVAS, bottom - top), Image.Transform.AFFINE, (1, slant, slant * (top - middle), 0, 1, 0), Image.Resampling.BILINEAR
    )
    upright = np.zeros_like(canvas)
    upright[top:bottom] = np.asarray(turned)
    return upright


def _even(canvas: np.ndarray) -> np.ndarray:
    """Strokes between THIN and THICK."""
    width = stroke_width(canvas)
    if width < THIN:
        return _spread(canvas, max(1, round((THIN - width) / 2)), np.maximum)
    if width > THICK:
        return _spread(canvas, max(1, round((width - THICK) / 2)), np.minimum)
    return canvas


def stroke_width(canvas: np.ndarray) -> float:
    """About how wide the strokes are, in pixels: twice the area over the outline, which lines of every direction cross (Crofton)."""
    mask = canvas > 127
    crossings = np.count_nonzero(mask[1:] != mask[:-1]) + np.count_nonzero(mask[:, 1:] != mask[:, :-1])
    return 2 * float(np.count_nonzero(mask)) / max(1.0, crossings * np.pi / 4)


def _spread(canvas: np.ndarray, steps: int, better: np.ufunc) -> np.ndarray:
    """Each point becomes the best of its neighbours, `steps` times, alternately in a cross and in a square: nearly round."""
    for step in range(steps):
        square = canvas.copy()
        better(square[:, 1:], canvas[:, :-1], out=square[:, 1:])
        better(square[:, :-1], canvas[:, 1:], out=square[:, :-1])
        above = square.copy() if step % 2 else canvas
        better(square[1:], above[:-1], out=square[1:])
        better(square[:-1], above[1:], out=square[:-1])
        canvas = square
    return canvas


# --- a whole code ---------------------------------------------------------------------------------------------------------------


def segmented(picture: Image | np.ndarray, length: int) -> list[Image]:
    """The `length` digits of a code written in one line, left to right, each a picture (white on black) of its own ink.

    Raises:
        BadImage: `nothing_drawn`, `too_little_drawn`; `cannot_segment` when it does not fall into so many parts of like height.
    """
    from PIL import Image

    ink = ink_of(picture)
    cell = max(1, min(ink.shape) // GRID)
    _, kept = _drawn(ink, cell)
    digits = _count_to(_columns(kept), length, _thinness(ink, cell))
    if digits is None or len(digits) != length:
        raise cannot_segment(length)
    tallest = max(digit.height for digit in digits)
    if any(digit.height < 0.4 * tallest for digit in digits):
        raise cannot_segment(length)
    return [Image.fromarray(np.pad(_framed(_keep(ink, [digit], cell)), 4 * cell)) for digit in digits]


def cannot_segment(length: int) -> BadImage:
    message = f"the picture does not fall into {length} digits"
    korean = f"그림을 숫자 {length}개로 나눌 수 없습니다."
    return _refused("cannot_segment", message, korean, "Leave a gap between digits, or send one picture per digit.")


def _columns(parts: Sequence[_Part]) -> list[_Part]:
    """Parts above each other are one digit (the bar of a 5)."""
    digits: list[_Part] = []
    for part in sorted(parts, key=lambda part: part.left + part.right):
        before = digits[-1] if digits else None
        shared = min(before.right, part.right) - max(before.left, part.left) if before else 0
        if before is not None and shared > 0.4 * min(before.width, part.width):
            digits[-1] = _Part.of([*before.runs, *part.runs])
        else:
            digits.append(part)
    return digits


def _thinness(ink: np.ndarray, cell: int) -> float:
    """Cells that a single line may be high where two digits touch."""
    return 2.0 + 1.5 * stroke_width(ink) / cell


def _count_to(digits: list[_Part], length: int, line: float) -> list[_Part] | None:
    """Join the closest, or cut the widest where it is thin, until there are `length`; None when that would be a guess."""
    height = max(digit.height for digit in digits)
    while len(digits) > length:
        gaps = [(right.left - left.right, number) for number, (left, right) in enumerate(zip(digits, digits[1:], strict=False))]
        gap, number = min(gaps)
        joined = _Part.of([*digits[number].runs, *digits[number + 1].runs])
        small = min(digits[number].extent, digits[number + 1].extent)
        if gap > 0.1 * height or joined.width > 1.1 * height or small > 0.5 * height:
            return None
        digits[number : number + 2] = [joined]
    while len(digits) < length:
        widest = max(range(len(digits)), key=lambda number: digits[number].width)
        halves = _halves(digits[widest], line)
        if halves is None or digits[widest].width < 0.8 * height:
            return None
        digits[widest : widest + 1] = halves
    return digits


def _halves(part: _Part, line: float) -> list[_Part] | None:
    """Cut at the column near the middle that has the least ink; None when that is more than a line that touches."""
    counts = np.zeros(part.width, np.int64)
    for _, first, after in part.runs:
        counts[first - part.left : after - part.left] += 1
    side = max(1, round(0.35 * part.width))
    middle = counts[side : part.width - side]
    if not len(middle) or middle.min() > line:
        return None
    at = part.left + side + int(middle.argmin())
    left = [(row, first, min(after, at)) for row, first, after in part.runs if first < at]
    right = [(row, max(first, at), after) for row, first, after in part.runs if after > at]
    return [_Part.of(left), _Part.of(right)] if left and right else None
