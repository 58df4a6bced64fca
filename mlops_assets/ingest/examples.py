"""Which pictures of a version are no examples: masks, thumbnails, contact sheets, files of the operating system. They are known by their
place, by their name beside that of a photo, and by what kind of picture they are; nothing is learned from them or measured on them.

Belongs here: what every system of photos shares. Does not belong here: labels, splits (the systems' `data.py`), which photos are alike
(`likeness.py`).
"""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, get_args

from mlops_assets.files import normal_path
from mlops_assets.ingest.likeness import difference_hash

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

Kind = Literal["mask", "thumbnail", "contact_sheet"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
MASK, THUMBNAIL, SHEET = KINDS
SYSTEM_FILE: Final = "system_file"
#: Reason code -> what it means.
REASONS: Final = {
    MASK: "a mask by its place, by its name beside a photo's, or by its few flat colours: no example",
    THUMBNAIL: "a small copy of a photo, by its place, by its name beside the photo's, or by its pixels: no example",
    SHEET: "a sheet of several photos, by its place, its name or its pixels: no example",
    SYSTEM_FILE: "what an operating system or a tool keeps beside pictures: no example",
}

_PLACE_WORDS: Final = {
    MASK: "mask masks groundtruth groundtruths segmentation segmentations seg segs annotation annotations segmentationclass "
    "segmentationobject trimap trimaps matte mattes labelmask labelmasks 마스크",
    THUMBNAIL: "thumb thumbs thumbnail thumbnails preview previews eadir 썸네일",
    SHEET: "contactsheet contactsheets",
}
#: Last words of folders -> what lies in them. Of one that means a label, the label counts.
_PLACES: Final = {word: kind for kind, words in _PLACE_WORDS.items() for word in words.split()}
#: Whole names of folders; as the end of a name they are more often something else (GT is a kind of car).
_WHOLE_PLACES: Final = {"gt": MASK, "gts": MASK}
_SYSTEM_PLACES: Final = frozenset({"__macosx", ".ipynb_checkpoints", "$recycle.bin", ".trash", ".trashes", ".git", ".appledouble"})
_PARTS: Final = {
    MASK: "mask|masks|gt|ground[-_. ]?truth|seg|segmentation|annotation|trimap|matte|label|labels|마스크",
    THUMBNAIL: "thumb|thumbs|thumbnail|tn|small|preview|썸네일",
}
_NAMED: Final = {
    kind: (re.compile(rf"(?P<photo>.+?)[-_. ]+(?:{words})[-_. ]?\d*"), re.compile(rf"(?:{words})[-_. ]+(?P<photo>.+)"))
    for kind, words in _PARTS.items()
}
_RESIZED: Final = re.compile(r"(?P<photo>.+)[-_. ]\d{2,4}x\d{2,4}")

#: A mask has at most so many colours, or so large a share of its pixels is next to black or white.
FEW_COLOURS, BLACK_AND_WHITE = 8, 0.98
#: Photos must be this share of a version for other kinds of pictures to stand out: in scans in black and white they do not.
PHOTOS_SHARE: Final = 0.2
#: A thumbnail is at most so large, a side, as its photo, and its fine detail agrees with that of the photo so well (correlation).
THUMBNAIL_SIDE, SAME_DETAIL = 0.55, 0.6
#: Photos of a sheet; rows or columns of one, at most; bits of 256 in which a photo of a sheet may differ from the photo itself.
SHEET_PHOTOS, SHEET_LINES, SHEET_BITS = 4, 12, 24
#: A sheet is looked for in no more pixels a side.
SHEET_SIDE: Final = 1024


# --- by place and name ----------------------------------------------------------------------------------------------------------


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip().casefold()


def stem(path: str) -> str:
    """The name of a picture without folder, form and case: that by which a mask names its photo."""
    return _plain(posixpath.splitext(posixpath.basename(normal_path(path) or path))[0])


def by_place(path: str, label_names: Container[str]) -> str | None:
    """The code of REASONS that a picture's folders and name alone give, or None.

    Args:
        label_names: folders, in small letters, that mean a label: they mean nothing else.
    """
    *folders, name = (normal_path(path) or path).split("/")
    for folder in map(_plain, folders):
        if folder in _SYSTEM_PLACES:
            return SYSTEM_FILE
        if folder not in label_names and (found := _last_words(folder)):
            return found
    if name.startswith("._"):
        return SYSTEM_FILE
    words = _words(stem(path))
    return SHEET if "contact sheet" in words or "contactsheet" in words.split() else None


def _words(name: str) -> str:
    return " ".join(re.split(r"[\W_]+", name)).strip()


def _last_words(folder: str) -> str | None:
    words = _words(folder).split() or [""]
    if words[0] in ("no", "without", "non"):  # people without a mask
        return None
    return _PLACES.get("".join(words[-2:])) or _PLACES.get(words[-1]) or _WHOLE_PLACES.get(folder)


def by_name(path: str, photos: Container[str]) -> tuple[str, str] | None:
    """(code of REASONS, the photo) of a picture that is named after a photo of the version (NAME_mask of NAME), or None.

    Args:
        photos: the `stem`s of the version's pictures.
    """
    own = stem(path)
    for kind, patterns in _NAMED.items():
        for pattern in patterns:
            if (found := pattern.fullmatch(own)) and found["photo"] in photos:
                return kind, found["photo"]
    if (found := _RESIZED.fullmatch(own)) and found["photo"] in photos:
        return THUMBNAIL, found["photo"]
    return None


# --- by kind of picture ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Looks:
    """What kind of picture it is.

    Attributes:
        flat: of few colours or black and white, as masks are.
        tiles: uint64 [n, 4]: hashes of the pictures that it would consist of if it were a sheet; none for most.
        framed: these lie in an even grid on an even ground.
    """

    flat: bool
    tiles: np.ndarray
    framed: bool


def look(picture: Image) -> Looks:
    """`picture`: RGB."""
    import numpy as np

    grey = picture.convert("L")
    levels = np.array(grey.histogram())
    black, white = levels[:16].sum() / levels.sum(), levels[240:].sum() / levels.sum()
    two = black + white >= BLACK_AND_WHITE and min(black, white) > 0
    flat = bool(two) or picture.getcolors(FEW_COLOURS) is not None
    if flat:
        return Looks(True, np.empty((0, 4), np.uint64), False)
    boxes = _framed(grey)
    framed = bool(boxes)
    boxes = boxes or _edge_to_edge(grey)
    tiles = [difference_hash(grey.crop(box)) for box in boxes]
    return Looks(False, np.stack(tiles) if tiles else np.empty((0, 4), np.uint64), framed)


Box = tuple[int, int, int, int]


def _framed(grey: Image) -> list[Box]:
    """Boxes of pictures of one size in rows and columns on an even ground; none where there is no such grid."""
    import numpy as np

    factor = -(-max(grey.size) // SHEET_SIDE)
    levels = np.asarray(grey.reduce(factor) if factor > 1 else grey).astype(np.int16)
    rim = np.sort(np.concatenate([levels[0], levels[-1], levels[:, 0], levels[:, -1]]))
    drawn = np.abs(levels - rim[len(rim) // 2]) > 12
    boxes: list[Box] = []
    bands = _runs(drawn.mean(axis=1) > 0.01)
    if not 1 <= len(bands) <= 4 * SHEET_LINES:
        return []
    for top, bottom in bands:
        for left, right in _runs(drawn[top:bottom].mean(axis=0) > 0.01):
            boxes.append((left, top, right, bottom))
    largest = max((_area(box) for box in boxes), default=0)
    boxes = [box for box in boxes if 3 * _area(box) >= largest and min(box[2] - box[0], box[3] - box[1]) >= 8]  # captions are smaller
    if len(boxes) < SHEET_PHOTOS or len({box[1] for box in boxes}) < 2 or len({box[0] for box in boxes}) < 2:
        return []
    widths, heights = (np.array([box[n + 2] - box[n] for box in boxes]) for n in (0, 1))
    even = (np.abs(widths - np.median(widths)) <= 0.05 * np.median(widths) + 1) & (
        np.abs(heights - np.median(heights)) <= 0.05 * np.median(heights) + 1
    )
    if even.mean() < 0.8:
        return []
    return [(left * factor, top * factor, right * factor, bottom * factor) for left, top, right, bottom in boxes]


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _runs(there: np.ndarray) -> list[tuple[int, int]]:
    """(first, after the last) of each run of True."""
    import numpy as np

    edges = np.flatnonzero(np.diff(np.concatenate([[0], there.astype(np.int8), [0]])))
    return [(int(start), int(end)) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def _edge_to_edge(grey: Image) -> list[Box]:
    """Boxes of pictures that fill a whole one in equal rows and columns, where all seams between them are sharp; else none."""
    import numpy as np

    side = 4 * SHEET_LINES * 8
    levels = np.asarray(grey.resize((side, side)) if max(grey.size) > side else grey).astype(np.int16)
    rows = _lines(np.abs(np.diff(levels, axis=0)).mean(axis=1))
    columns = _lines(np.abs(np.diff(levels, axis=1)).mean(axis=0))
    if rows * columns < SHEET_PHOTOS:
        return []
    width, height = grey.size
    return [
        (width * x // columns, height * y // rows, width * (x + 1) // columns, height * (y + 1) // rows)
        for y in range(rows)
        for x in range(columns)
    ]


def _lines(steps: np.ndarray) -> int:
    """The most equal lines at all of whose seams the picture changes far more than elsewhere; 1: there are none."""
    import numpy as np

    if len(steps) < 15:
        return 1
    usual = float(np.median(steps)) + 1
    for count in range(min(SHEET_LINES, (len(steps) + 1) // 8), 1, -1):
        seams = [round((len(steps) + 1) * n / count) for n in range(1, count)]
        if all(steps[max(0, seam - 2) : seam + 1].max() > 2 * usual for seam in seams):
            return count
    return 1


def sheets_among(looks: Mapping[str, Looks], bits: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Key of a sheet -> what shows it. `bits`: key -> hash (uint64 [4]) of all pictures."""
    import numpy as np

    found: dict[str, str] = {}
    keys = list(bits)
    hashes = np.stack([bits[key] for key in keys]) if keys else np.zeros((0, 4), np.uint64)
    for key, one in looks.items():
        if not len(one.tiles):
            continue
        apart = np.bitwise_count(one.tiles[:, None, :] ^ hashes[None, :, :]).sum(axis=2)
        apart[:, [n for n, other in enumerate(keys) if other == key]] = 256
        shown = {keys[int(row.argmin())] for row in apart if row.min(initial=256) <= SHEET_BITS}
        if len(shown) >= SHEET_PHOTOS - 1:
            found[key] = f"{len(one.tiles)} pictures in one, {len(shown)} of them photos of this version"
        elif one.framed and len(one.tiles) >= 2 * SHEET_PHOTOS - 2:
            found[key] = f"{len(one.tiles)} pictures of one size on an even ground"
    return found


def is_small_copy(small: Image, large: Image) -> bool:
    """Whether `small` is `large` (both RGB) reduced: not only alike, but the same in its fine detail."""
    import numpy as np
    from PIL import ImageFilter
    from PIL.Image import Resampling

    if max(small.width / large.width, small.height / large.height) > THUMBNAIL_SIDE:
        return False
    if abs(small.width * large.height / (small.height * large.width) - 1) > 0.05 + 1 / min(small.size):
        return False
    details = []
    for picture in (small, large.resize(small.size, Resampling.BOX)):
        grey = picture.convert("L")
        detail = np.asarray(grey).astype(np.float32) - np.asarray(grey.filter(ImageFilter.GaussianBlur(2)))
        details.append(detail - detail.mean())
    one, other = details
    strength = float(np.sqrt((one**2).mean() * (other**2).mean()))
    return strength > 0.5 and float((one * other).mean()) / strength >= SAME_DETAIL
