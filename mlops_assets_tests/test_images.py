"""Pictures from strangers: what is refused and by which code, and what is read right whatever its colours and orientation."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from mlops_assets.depth import eight_bits
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


def test_transparent_is_white() -> None:
    assert to_array(encoded(Image.new("RGBA", (9, 9), (0, 0, 0, 0))), 16).min() == 255


# --- more bits than eight -------------------------------------------------------------------------------------------------------


def png_of(values: np.ndarray, *, significant: int | None = None, clear: Sequence[int] = ()) -> bytes:
    """A 16-bit PNG of uint16 [height, width, channels]; `significant`: what its chunk sBIT says; `clear`: the colour that is none."""
    height, width, channels = values.shape

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    said = chunk(b"sBIT", bytes([significant] * channels)) if significant else b""
    said += chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear)) if clear else b""
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + said + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def camera(channels: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """(values of a camera of so many bits [40, 60, channels], the same picture as RGB of 8 bits); what is transparent is opaque."""
    shares = np.random.default_rng(bits).random((40, 60, channels))
    shares[0, 0], shares[0, 1] = 0, 1
    if channels in (2, 4):
        shares[..., -1] = 1
    colours = shares[..., : 3 if channels > 2 else 1]
    return (shares * (2**bits - 1)).round().astype(np.uint16), np.broadcast_to((colours * 255).round(), (40, 60, 3))


@pytest.mark.parametrize("channels", [1, 2, 3, 4], ids=["grey", "grey and alpha", "RGB", "RGBA"])
@pytest.mark.parametrize("bits", range(8, 17))
def test_cameras_of_any_bits_give_the_same_picture(channels: int, bits: int) -> None:
    """Of 12 bits in 16, the highest byte alone has 17 levels: nearly black."""
    values, wanted = camera(channels, bits)
    data = png_of(values)
    assert np.abs(np.asarray(decode(data)).astype(int) - wanted).max() <= 2
    small = np.asarray(Image.fromarray(wanted.astype(np.uint8)).resize((24, 24), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(to_array(data, 24).astype(int) - small).max() <= 2
    naive = np.asarray(Image.fromarray((values[..., 0] >> 8).astype(np.uint8)))
    assert (len(np.unique(naive)) < 18) == (bits <= 12), "control"


def test_alpha_in_all_16_bits_beside_colours_of_12() -> None:
    values, wanted = camera(4, 12)
    values[..., 3] = 65535
    assert np.abs(np.asarray(decode(png_of(values))).astype(int) - wanted).max() <= 2


def test_the_bits_that_a_file_says_it_has_are_believed_when_its_values_fit() -> None:
    dark = np.full((9, 9, 1), 512, np.uint16)
    dark[0, 0] = 3
    levels = [np.asarray(decode(png_of(dark, significant=said)))[5, 5, 0] for said in (None, 10, 12, 16)]
    assert levels == [128, 128, 32, 2], "without a word, the bits of the highest value"
    for channels in (1, 3):
        values, wanted = camera(channels, 12)
        scaled = (values << 4 | values >> 8).astype(np.uint16)  # as PNG's specification wants what is less than 16 bits
        for content in (scaled, values):
            assert np.abs(np.asarray(decode(png_of(content, significant=12))).astype(int) - wanted).max() <= 2
        faint = np.full((9, 9, channels), 128 << 4, np.uint16)  # scaled, and dark: not 2,048 of 4,096
        assert np.asarray(decode(png_of(faint, significant=12))).max() <= 8


def test_a_transparent_colour_of_16_bits_is_white() -> None:
    for channels in (1, 3):
        values, _ = camera(channels, 12)
        values[10:20] = 700
        shown = np.asarray(decode(png_of(values, clear=[700] * channels)))
        assert shown[10:20].min() == 255 and shown[20:].min() < 40


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr", "LAB", "HSV", "I", "F"])
def test_every_mode_of_pillow_becomes_eight_bits(mode: str) -> None:
    paper = Image.linear_gradient("L").point(lambda level: 255 if level > 127 else 0)
    rgb = paper.convert("RGB")
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        picture = ImageCms.profileToProfile(rgb, *profiles, outputMode="LAB") or rgb
    else:
        picture = paper.convert({"La": "LA", "RGBa": "RGBA", "HSV": "RGB", "PA": "P"}.get(mode, mode)).convert(mode)
    plain = eight_bits(picture)
    for wanted in ("L", "RGB", "RGBA"):
        shown = np.asarray(plain.convert(wanted).convert("L")).astype(int)
        assert np.abs(shown - np.asarray(paper)).max() <= 3


@pytest.mark.parametrize("order", ["I;16", "I;16L", "I;16B", "I;16N", "I"])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_grey_of_more_bits_in_any_order_is_scaled_by_those_in_use(order: str, bits: int) -> None:
    values = np.linspace(0, 2**bits - 1, 64).round().astype(np.uint16).reshape(8, 8)
    kind = {"I;16B": ">u2", "I": "<i4"}.get(order, "<u2")
    picture = Image.frombytes(order, (8, 8), values.astype(kind).tobytes())
    assert np.abs(np.asarray(eight_bits(picture)).astype(int) - (values / (2**bits - 1) * 255)).max() <= 1


def test_fractions_are_shares_of_white_and_no_number_is_black() -> None:
    shares = Image.fromarray(np.array([[0, 0.5, 1], [-1, np.nan, np.inf]], np.float32))
    assert np.asarray(eight_bits(shares)).tolist() == [[0, 128, 255], [0, 0, 0]]
    assert np.asarray(eight_bits(Image.fromarray(np.array([[0, 100, 200]], np.float32)))).tolist() == [[0, 100, 200]]


def test_ink_without_adobes_mark_is_not_inverted() -> None:
    """Adobe writes full ink as 0 and says so; Pillow takes every file for Adobe's."""
    adobe = encoded(Image.new("CMYK", (16, 16), (0, 0, 0, 0)), "JPEG")
    at = adobe.index(b"\xff\xee")
    unmarked = adobe[:at] + adobe[at + 2 + int.from_bytes(adobe[at + 2 : at + 4], "big") :]
    assert decode(adobe).getpixel((5, 5)) == (255, 255, 255)
    assert decode(unmarked).getpixel((5, 5)) == (0, 0, 0)
    assert Image.open(io.BytesIO(unmarked)).convert("RGB").getpixel((5, 5)) == (255, 255, 255), "control"


# --- called by name -------------------------------------------------------------------------------------------------------------


def jpeg_with(precision: int = 8, marker: int = 0xC0) -> bytes:
    data = bytearray(encoded(noise(), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 1], data[at + 4] = marker, precision
    return bytes(data)


NAMED = {
    "JPEG 2000": encoded(grey(), "JPEG2000"),
    "AVIF": encoded(grey(), "AVIF"),
    "HEIC": b"\0\0\0\x18ftypheic" + bytes(40),
    "GIF": encoded(grey(), "GIF"),
    "TIFF": encoded(grey(), "TIFF"),
    "ICO": encoded(grey().resize((32, 32)), "ICO"),
    "PNM": encoded(grey(), "PPM"),
    "PCX": encoded(grey(), "PCX"),
    "DDS": encoded(grey(), "DDS"),
    "SGI": encoded(grey(), "SGI"),
    "QOI": encoded(grey(), "QOI"),
    "EPS": encoded(grey(), "EPS"),
    "PDF": encoded(grey(), "PDF"),
    "SVG": b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- made -->\n<svg/>",
    "DICOM": bytes(128) + b"DICM" + bytes(40),
    "Canon raw": b"II*\0\x10\0\0\0CR\2\0",
    "JPEG XL": b"\xff\x0a\xfa\x1f",
    "JPEG of 12 bits a colour": jpeg_with(12),
    "lossless JPEG": jpeg_with(8, 0xC3),
    "JPEG-LS": jpeg_with(8, 0xF7),
}


@pytest.mark.parametrize("name", NAMED)
def test_a_picture_that_is_not_read_is_called_by_its_name(name: str) -> None:
    with pytest.raises(BadImage) as refused:
        decode(NAMED[name])
    assert refused.value.code == "bad_format"
    assert refused.value.message == f"this is a {name} picture, which is not read; convert it to PNG or JPEG"
    assert name in refused.value.message_ko and "Convert" in refused.value.fix


@pytest.mark.parametrize(
    ("data", "code", "word"),
    [
        (b"\xff\xd8\xff\xe0" + bytes(100), "truncated", "damaged"),
        (b"\x89PNG\r\n\x1a\n", "truncated", "damaged"),
        (b"BM" + bytes(40), "truncated", "damaged"),
        (b"RIFF\x24\0\0\0WEBPVP8 ", "truncated", "damaged"),
        (b"BMW is no picture", "not_an_image", "no picture"),
        (b"<!DOCTYPE html><html>404</html>", "not_an_image", "an HTML page"),
        (b'{"message": "Not Found"}', "not_an_image", "a JSON text"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "not_an_image", "an XML text"),
        (b"\0\5\x16\7" + bytes(40), "not_an_image", "macOS"),
        (b"PK\3\4" + bytes(40), "not_an_image", "a ZIP archive"),
        (b"\0\0\0\x18ftypisom" + bytes(40), "not_an_image", "a video"),
        (b"data:image/png;base64,iVBORw0KGgo=", "not_an_image", "data URL"),
    ],
)
def test_what_is_said_of_a_file_is_true(data: bytes, code: str, word: str) -> None:
    with pytest.raises(BadImage) as refused:
        decode(data)
    assert refused.value.code == code and word in refused.value.message


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
