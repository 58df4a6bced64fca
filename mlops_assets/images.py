"""From the bytes of a picture to pixels, the one way in which cleaning, training and the server read an image; and back, for people.

Pictures come from strangers: what decoding would cost is known from the header before a pixel is decoded, and only formats that photos come
in are read at all. Belongs here: limits, decoding, orientation, colour, size. Does not belong here: where pictures come from, models.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlops_assets import depth, formats
from mlops_assets.files import LFS_POINTER, LFS_REASON, is_lfs_pointer

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

FORMATS = formats.READ
_CONVERT = "Convert it to PNG or JPEG."


class BadImage(ValueError):
    """A picture that is refused. `code` is stable: empty_file, too_large_file, not_an_image, lfs_pointer, bad_format, too_many_pixels,
    truncated or animated."""

    def __init__(self, code: str, message: str, message_ko: str, fix: str, limit: int | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.message_ko, self.fix, self.limit = code, message, message_ko, fix, limit


@dataclass(frozen=True)
class Limits:
    max_bytes: int = 20 * 1024**2
    max_pixels: int = 50_000_000
    """Width times height, as the header says: checked before anything is decoded."""


DEFAULT = Limits()


def decode(data: bytes, *, limits: Limits = DEFAULT) -> Image:
    """The picture as RGB, 8 bits, upright. Transparent parts are white; more bits are scaled by those in use (`depth.py`).

    Raises:
        BadImage
    """
    picture = load(data, limits=limits)
    try:
        return _rgb(picture)
    except (OSError, ValueError) as error:
        raise _damaged(error) from None


def load(data: bytes, *, limits: Limits = DEFAULT) -> Image:
    """The picture upright, 8 bits, in the colours of its file: for those to whom transparency means something else than white.

    Raises:
        BadImage
    """
    check_size(data, limits)
    picture = _open(data)
    width, height = picture.size
    if width * height > limits.max_pixels:
        raise BadImage(
            "too_many_pixels",
            f"the picture has {width} x {height} pixels, at most {limits.max_pixels} in all",
            f"이미지는 {limits.max_pixels:,}픽셀까지 받을 수 있습니다. ({width} x {height})",
            "Send a smaller picture.",
            limits.max_pixels,
        )
    if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":  # a phone's JPEG with a depth map behind the photo
        raise BadImage("animated", "the picture is animated", "움직이는 이미지는 받을 수 없습니다.", "Send one frame of it.")
    try:
        picture.load()
        return _upright(_plain(picture, data))
    except (OSError, SyntaxError, ValueError, IndexError, EOFError) as error:
        raise _damaged(error, data) from None


def _plain(picture: ImageFile, data: bytes) -> Image:
    """As what its numbers mean, in 8 bits."""
    from PIL import ImageChops

    if picture.format == "PNG":
        return depth.of_png(picture, data)
    if picture.mode == "CMYK" and "adobe" not in picture.info:
        # Pillow takes every CMYK for Adobe's, whose 0 is full ink; without its mark 0 is none, as browsers have it.
        return ImageChops.invert(picture)
    return picture


def _upright(picture: Image) -> Image:
    """As the camera was held. Pillow's own `exif_transpose` also writes the other tags anew, and fails in many ways when one is damaged."""
    from PIL import ExifTags
    from PIL.Image import Transpose

    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation)
    except (OSError, SyntaxError, ValueError, LookupError, EOFError, TypeError, ArithmeticError, struct.error):
        return picture  # nothing but the camera's notes is damaged
    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    turn = turns.get(orientation) if isinstance(orientation, int) else None
    return picture if turn is None else picture.transpose(turn)


def to_array(data: bytes, size: int, *, limits: Limits = DEFAULT) -> np.ndarray:
    """uint8 [size, size, 3], RGB: the whole picture resized (bilinear, antialiased, its shape not kept), as torchvision's Resize does.

    Raises:
        BadImage
    """
    import numpy as np
    from PIL.Image import Resampling

    picture = load(data, limits=limits)
    try:
        if picture.mode != "L" or "transparency" in picture.info:
            picture = _rgb(picture)
        # A grey photo has three equal channels: it is resized once, and the pixels are the same.
        return np.asarray(picture.resize((size, size), Resampling.BILINEAR).convert("RGB"), np.uint8)
    except (OSError, ValueError) as error:
        raise _damaged(error) from None


def png_within(limit: int, attempts: Iterable[tuple[Image, int]]) -> bytes:
    """The PNG of the first (picture, colours) that has at most `limit` bytes; of the last, when none has."""
    from PIL.Image import Dither

    for picture, colours in attempts:
        out = io.BytesIO()
        picture.quantize(colours, dither=Dither.NONE).save(out, "PNG", optimize=True)
        if out.tell() <= limit:
            break
    return out.getvalue()


def check_size(data: bytes, limits: Limits = DEFAULT) -> None:
    """The limits that need no look into the file. Raises BadImage."""
    if not data:
        raise BadImage("empty_file", "the file is empty", "빈 파일입니다.", "Send a JPEG, PNG, WEBP or BMP file.")
    if len(data) > limits.max_bytes:
        megabytes = limits.max_bytes // 1024**2
        raise BadImage(
            "too_large_file",
            f"the file has {len(data)} bytes, at most {limits.max_bytes}",
            f"파일은 {megabytes}MB까지 받을 수 있습니다.",
            "Send a smaller picture.",
            limits.max_bytes,
        )


def _open(data: bytes) -> ImageFile:
    """The header alone."""
    from PIL import Image, UnidentifiedImageError

    # Pillow's own limit warns at half of where it refuses, and warnings cannot be silenced for one thread: ours is the only one.
    Image.MAX_IMAGE_PIXELS = None
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise _unread(data) from None
    except (OSError, SyntaxError, ValueError, IndexError, EOFError) as error:
        raise _damaged(error, data) from None


def _unread(data: bytes) -> BadImage:
    """By its name: a picture of another format, one of ours whose header is broken, or none at all."""
    if is_lfs_pointer(data):
        message_ko = "Git LFS 포인터 파일입니다. `git lfs pull`을 실행해 주세요."
        return BadImage(LFS_POINTER, f"this is {LFS_REASON}", message_ko, "Run `git lfs pull` and send the picture itself.")
    kind, known = formats.kind_of(data), ", ".join(FORMATS)
    if kind is None or not kind.is_picture:
        message = f"this is no picture ({known})" if kind is None else f"this is {kind.name}, no picture"
        return BadImage("not_an_image", message, "이미지 파일이 아닙니다.", f"Send a {known} file.")
    if kind.name in FORMATS:
        return _damaged(ValueError(f"its {kind.name} header"), data)
    return _bad_format(kind.name)


def _bad_format(name: str) -> BadImage:
    korean = f"{name} 이미지는 읽을 수 없습니다. PNG나 JPEG로 변환해 주세요."
    return BadImage("bad_format", f"this is a {name} picture, which is not read; convert it to PNG or JPEG", korean, _CONVERT)


def _damaged(error: Exception, data: bytes = b"") -> BadImage:
    if rare := formats.jpeg_kind(data) if data.startswith(b"\xff\xd8") else None:
        return _bad_format(rare)
    message = f"the picture is cut off or damaged: {' '.join(str(error).split())[:100]}"
    return BadImage("truncated", message, "이미지 파일이 손상되었습니다.", "Send the whole file again.")


def _rgb(picture: Image) -> Image:
    from PIL import Image

    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        whole = picture.convert("RGBA")
        white = Image.new("RGBA", whole.size, "white")
        white.alpha_composite(whole)
        return white.convert("RGB")
    return picture.convert("RGB")
