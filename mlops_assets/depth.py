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
    if data[24] != 16:
        return picture
    said = _significant_bits(data)
    if picture.mode not in ("RGB", "RGBA"):
        return eight_bits(picture, said)
    highest = max(high for _, high in picture.getextrema()[:3])  # type: ignore[misc]
    low = _low_bytes(data) if highest < 128 else None
    bits = 16 if low is None else _bits(highest << 8 | 255, said, lambda unit: _are_multiples(low, unit))
    if isinstance(clear := picture.info.get("transparency"), tuple):
        picture.info["transparency"] = tuple(min(value >> bits - 8, 255) for value in clear)
    if low is not None and bits < 16:
        _put_together(picture, low, bits)
    return picture


#: Rows that are worked on at once: of the largest picture nothing but its two halves is held.
_STRIP = 256


def _put_together(high: Image, low: Image, bits: int) -> None:
    """`high` becomes the upper 8 of so many `bits` in use. Some write what is opaque in the bits of the colours, some in all 16."""
    from PIL import Image, ImageChops

    up, down = [min(value << 16 - bits, 255) for value in range(256)], [value >> bits - 8 for value in range(256)]
    bands = len(high.getbands())
    if bands == 4 and max(high.getchannel(3).getextrema()) << 8 >= 1 << bits:  # type: ignore[operator]
        bands = 3
    for top in range(0, high.height, _STRIP):
        box = (0, top, high.width, min(top + _STRIP, high.height))
        upper, lower = high.crop(box).split(), low.crop(box).split()
        parts = [ImageChops.add(one.point(up), other.point(down)) for one, other in zip(upper[:bands], lower[:bands], strict=True)]
        high.paste(Image.merge(high.mode, [*parts, *upper[bands:]]), box)


def _are_multiples(low: Image, unit: int) -> bool:
    remainders = [value % unit for value in range(256)]
    return not any(max(low.getchannel(band).point(remainders).getextrema()) for band in range(3))


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
