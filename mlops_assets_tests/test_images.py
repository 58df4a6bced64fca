"""Pictures from strangers: what is refused and by which code, and what is read right whatever its colours and orientation."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from mlops_assets.images import BadImage, Limits, decode, to_array
from mlops_assets_tests.factories import POINTER


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def grey(level: int = 128) -> Image.Image:
    return Image.new("RGB", (20, 10), (level, level, level))


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))


def bomb() -> bytes:
    """A PNG of a few hundred bytes whose header claims 60,000 x 60,000 pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def frames(kind: str) -> bytes:
    return encoded(grey(0), kind, save_all=True, append_images=[grey(255)], duration=50)


HOSTILE = {
    "empty": (b"", "empty_file"),
    "pointer of git lfs": (POINTER, "lfs_pointer"),
    "text named jpg": ("안녕하세요".encode(), "not_an_image"),
    "svg": (b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "bad_format"),
    "gif": (frames("GIF"), "bad_format"),
    "tiff": (encoded(grey(), "TIFF"), "bad_format"),
    "bomb": (bomb(), "too_many_pixels"),
    "truncated jpeg": (encoded(noise(), "JPEG")[:-400], "truncated"),
    "truncated png": (encoded(noise())[:-400], "truncated"),
    "animated webp": (frames("WEBP"), "animated"),
    "apng": (frames("PNG"), "animated"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_with_a_code_and_a_fix(name: str) -> None:
    data, code = HOSTILE[name]
    with pytest.raises(BadImage) as refused:
        decode(data)
    assert refused.value.code == code
    assert refused.value.fix
    assert any("가" <= letter <= "힣" for letter in refused.value.message_ko)


def test_limits_are_exact() -> None:
    data = encoded(grey())
    assert decode(data, limits=Limits(max_bytes=len(data), max_pixels=200)).size == (20, 10)
    for limits, code in ((Limits(max_bytes=len(data) - 1), "too_large_file"), (Limits(max_pixels=199), "too_many_pixels")):
        with pytest.raises(BadImage) as refused:
            decode(data, limits=limits)
        assert refused.value.code == code


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_every_format_is_read(kind: str) -> None:
    pixels = to_array(encoded(grey(), kind), 16)
    assert (pixels.shape, pixels.dtype) == ((16, 16, 3), np.uint8)
    assert abs(int(pixels.mean()) - 128) <= 2


@pytest.mark.parametrize("mode", ["CMYK", "L", "P", "1"])
def test_other_colours_become_rgb(mode: str) -> None:
    data = encoded(grey(255).convert(mode), "JPEG" if mode == "CMYK" else "PNG")
    assert decode(data).mode == "RGB"
    assert to_array(data, 16).mean() > 250


def test_transparent_is_white_and_16_bits_are_scaled() -> None:
    assert to_array(encoded(Image.new("RGBA", (9, 9), (0, 0, 0, 0))), 16).min() == 255
    deep = Image.fromarray(np.full((9, 9), 32_768, np.uint16))
    assert abs(int(to_array(encoded(deep), 16).mean()) - 128) <= 1
    assert to_array(encoded(Image.fromarray(np.full((9, 9), 200, np.uint16))), 16).max() <= 1  # dark in 16 bits stays dark


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA", "1"])
def test_a_photo_is_resized_to_the_pixels_that_all_of_its_channels_would_give(mode: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise).convert(mode))
    assert (to_array(data, 24) == np.asarray(decode(data).resize((24, 24), Image.Resampling.BILINEAR))).all()


def test_a_picture_is_upright() -> None:
    picture = Image.new("RGB", (20, 10))
    picture.paste((255, 255, 255), (0, 0, 10, 10))  # the left half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    assert decode(encoded(picture, "PNG")).size == (20, 10)
    turned = decode(encoded(picture, "PNG", exif=exif))
    assert turned.size == (10, 20)
    assert turned.getpixel((5, 2)) == (255, 255, 255)
    assert turned.getpixel((5, 17)) == (0, 0, 0)


def test_no_damaged_byte_of_the_cameras_notes_breaks_a_photo() -> None:
    picture = Image.effect_noise((40, 20), 50).convert("RGB")
    exif = Image.Exif()
    exif[0x0112], exif[0x0110], exif[0x829A] = 6, "camera", 0.5  # orientation, model, exposure
    sound = encoded(picture, "JPEG", exif=exif)
    start = sound.index(b"Exif") + 6
    sizes, pillow_fails = set(), 0
    for at in range(start, sound.index(b"camera") + 16):
        for value in (0, 1, 7, 9, 255):
            damaged = sound[:at] + bytes([value]) + sound[at + 1 :]
            sizes.add(decode(damaged).size)
            try:
                ImageOps.exif_transpose(Image.open(io.BytesIO(damaged)))
            except Exception:
                pillow_fails += 1
    assert sizes == {(20, 40), (40, 20)} and pillow_fails, "control: what Pillow offers does not survive them"
