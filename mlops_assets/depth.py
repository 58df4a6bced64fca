"""From pictures of any bits and colour space to 8 bits a colour. Cameras of 10 and 12 bits write their values as they are into files of 16,
whose highest byte alone would be black: what counts is how many bits are in use.

Belongs here: numbers of pixels. Does not belong here: limits, orientation, transparency (`images.py`).
"""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

#: Modes that Pillow converts no further, or not to grey -> the nearest that it does.
_NEAREST = {"La": "LA", "RGBa": "RGBA", "LAB": "RGB", "RGBX": "RGB"}


def eight_bits(picture: Image, said: int | None = None) -> Image:
    """A picture of any of Pillow's modes in 8 bits a colour, in a mode that Pillow converts to grey, RGB and RGBA.

    Whole numbers are scaled by the bits in use (at least 8): those of the largest power of two above the highest. Fractions up to 1 are
    shares of white; below 0 is black.

    Args:
        said: bits that the file itself says are significant.
    """
    import numpy as np
    from PIL import Image

    mode: Any = picture.mode
    if mode in _NEAREST:
        return picture.convert(_NEAREST[mode])
    if not (mode.startswith("I") or mode == "F"):
        return picture
    values = np.asarray(picture)
    if values.dtype.itemsize == 2:
        top = 2 ** _bits(int(values.max(initial=0)), said, lambda unit: not (values % unit).any()) - 1
        table = (np.arange(65536) * (255 / top)).round().clip(0, 255).astype(np.uint8)
        scaled = Image.fromarray(table[values])
        if isinstance(clear := picture.info.get("transparency"), int):
            scaled.info["transparency"] = int(table[min(clear, 65535)])
        return scaled
    values = np.nan_to_num(values.clip(0), nan=0.0, posinf=0.0)
    highest = float(values.max(initial=0))
    top = 1 if mode == "F" and highest <= 1 else 2 ** max(8, int(highest).bit_length()) - 1
    return Image.fromarray((values * (255 / top)).round().astype(np.uint8))


def of_png(picture: Image, data: bytes) -> Image:
    """A PNG as Pillow has loaded it, in 8 bits: of 16 bits Pillow gives colours by their highest byte alone.

    Args:
        data: the file's bytes.
    """
    from PIL import Image, ImageChops

    if data[24] != 16:
        return picture
    said = _significant_bits(data)
    if picture.mode not in ("RGB", "RGBA"):
        return eight_bits(picture, said)
    highest = max(high for _, high in picture.getextrema()[:3])  # type: ignore[misc]
    clear = picture.info.get("transparency")
    low = _low_bytes(data) if highest < 128 else None
    bits = 16
    if low is not None:
        colours = low.split()[:3]
        bits = _bits(highest << 8 | 255, said, lambda unit: not any(max(band.point(lambda v: v % unit).getextrema()) for band in colours))
    if isinstance(clear, tuple):
        picture.info["transparency"] = tuple(min(value >> bits - 8, 255) for value in clear)
    if low is None or bits == 16:
        return picture
    up, down = 16 - bits, bits - 8
    high_bands, low_bands = picture.split(), low.split()
    bands = [
        ImageChops.add(high.point(lambda v: min(v << up, 255)), lower.point(lambda v: v >> down))
        for high, lower in zip(high_bands[:3], low_bands[:3], strict=True)
    ]
    if picture.mode == "RGBA":  # some write what is opaque in the bits of the colours, some in all 16
        deep = max(high_bands[3].getextrema()) << 8 >= 1 << bits  # type: ignore[operator]
        alpha = ImageChops.add(high_bands[3].point(lambda v: min(v << up, 255)), low_bands[3].point(lambda v: v >> down))
        bands.append(high_bands[3] if deep else alpha)
    scaled = Image.merge(picture.mode, bands)
    scaled.info |= picture.info
    return scaled


def _bits(highest: int, said: int | None, all_multiples_of: Any) -> int:
    """How many of 16 bits are in use.

    A file that says 10 has them scaled up to 16, as PNG's specification wants it, or as they are: then no value is above 2 ** 10, and
    not all are multiples of 2 ** 6.
    """
    if said is None:
        return min(max(8, highest.bit_length()), 16)
    said = min(max(8, said), 16)
    return said if highest < 2**said and not all_multiples_of(2 ** (16 - said)) else 16


def _significant_bits(data: bytes) -> int | None:
    """The most that PNG's chunk sBIT says of a colour; None: it is not there."""
    place = 8
    while place + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, place)
        if name == b"sBIT" and length and place + 8 + length <= len(data):
            said = data[place + 8 : place + 8 + length]
            return max(said[:3] if length >= 3 else said[:1]) or None
        if name in (b"IDAT", b"PLTE", b"IEND"):
            return None
        place += 12 + length
    return None


def _low_bytes(data: bytes) -> Image:
    """The lower bytes of a 16-bit PNG in colour: read as if the lower byte of each number came first."""
    from PIL import Image

    picture: Any = Image.open(io.BytesIO(data), formats=("PNG",))
    (tile,) = picture.tile
    grey = tile.args == "LA;16B"
    picture.tile = [tile._replace(args="RGBA" if grey else tile.args.replace("16B", "16L"))]
    picture.load()
    if not grey:
        return picture  # type: ignore[no-any-return]
    _, level, _, alpha = picture.split()
    return Image.merge("RGBA", (level, level, level, alpha))
