"""From the bytes of a picture to pixels, the one way in which cleaning, training and the server read an image; and back, for people.

Pictures come from strangers: what decoding would cost is known from the header before a pixel is decoded, and only formats that photos come
in are read at all. Belongs here: limits, decoding, orientation, colour, size. Does not belong here: where pictures come from, models.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlops_assets.files import LFS_POINTER, LFS_REASON, is_lfs_pointer

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")


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
    """The picture as RGB, 8 bits, upright. Transparent parts are white; 16 bits are scaled down.

    Raises:
        BadImage
    """
    picture = load(data, limits=limits)
    try:
        return _rgb(picture)
    except (OSError, ValueError) as error:
        raise _damaged(error) from None


def load(data: bytes, *, limits: Limits = DEFAULT) -> Image:
    """The picture upright, in the mode of its file: for those to whom transparency means something else than white.

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
        return _upright(picture)
    except (OSError, SyntaxError, ValueError, IndexError, EOFError) as error:
        raise _damaged(error) from None


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


def _open(data: bytes) -> Image:
    """The header alone."""
    from PIL import Image, UnidentifiedImageError

    # Pillow's own limit warns at half of where it refuses, and warnings cannot be silenced for one thread: ours is the only one.
    Image.MAX_IMAGE_PIXELS = None
    known = ", ".join(FORMATS)
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        pass
    except (OSError, SyntaxError, ValueError, IndexError, EOFError) as error:
        raise _damaged(error) from None
    if is_lfs_pointer(data):
        message_ko = "Git LFS 포인터 파일입니다. `git lfs pull`을 실행해 주세요."
        raise BadImage(LFS_POINTER, f"this is {LFS_REASON}", message_ko, "Run `git lfs pull` and send the picture itself.")
    other = _other_format(data)
    if other:
        message = f"{other} pictures are not read, only {known}"
        raise BadImage("bad_format", message, f"{known} 이미지만 받을 수 있습니다.", f"Convert it to one of {known}.")
    raise BadImage("not_an_image", f"this is no picture of a known format ({known})", "이미지 파일이 아닙니다.", f"Send a {known} file.")


def _damaged(error: Exception) -> BadImage:
    message = f"the picture is cut off or damaged: {' '.join(str(error).split())[:100]}"
    return BadImage("truncated", message, "이미지 파일이 손상되었습니다.", "Send the whole file again.")


def _other_format(data: bytes) -> str | None:
    """The name of a format that we do not read; only the first bytes are looked at, nothing of it is parsed."""
    signatures = {
        b"GIF8": "GIF",
        b"II*\x00": "TIFF",
        b"MM\x00*": "TIFF",
        b"8BPS": "PSD",
        b"\x00\x00\x01\x00": "ICO",
        b"%!PS": "EPS",
        b"%PDF": "PDF",
    }
    for signature, name in signatures.items():
        if data.startswith(signature):
            return name
    if data[4:12] in (b"ftypavif", b"ftypheic", b"ftypmif1"):
        return "HEIF"
    return "SVG" if b"<svg" in data[:1000].lower() else None


def eight_bits(picture: Image) -> Image:
    """16 bits and more scaled down to 8; others as they are."""
    from PIL import Image

    mode: Any = picture.mode
    if not (mode.startswith("I") or mode == "F"):
        return picture
    import numpy as np

    values = np.asarray(picture, np.float64)  # Pillow's own conversion clips at 255
    top = 65535.0 if values.max(initial=0.0) > 255 or mode.startswith("I;16") else 255.0
    return Image.fromarray((values.clip(0, top) * (255.0 / top)).round().astype(np.uint8))


def _rgb(picture: Image) -> Image:
    from PIL import Image

    picture = eight_bits(picture)
    mode: Any = picture.mode
    if mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        whole = picture.convert("RGBA")
        white = Image.new("RGBA", whole.size, "white")
        white.alpha_composite(whole)
        return white.convert("RGB")
    return picture.convert("RGB")
