"""What a file is by its first bytes, so that a picture that is not read is called by its name. Nothing of a file is parsed here.

Belongs here: signatures, and the names of files that pictures come in. Does not belong here: decoding (`images.py`), what is done about it.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

#: What `images.py` reads.
READ: Final = ("JPEG", "PNG", "WEBP", "BMP")
#: What a name promises -> what the bytes must be.
SUFFIXES: Final = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".apng": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".dib": "BMP",
}
_OTHERS: Final = """
gif tif tiff heic heif hif avif jp2 j2k jpx jpf j2c jxl jxr jls ico cur svg svgz psd psb pdf eps ai dcm dicom nii raw dng cr2
cr3 nef arw orf rw2 raf pef srw ppm pgm pbm pnm pam pfm tga pcx dds exr hdr qoi emf wmf djvu xcf fits
"""
#: Names of pictures all the same; decoding says why they are refused.
OTHER_SUFFIXES: Final = frozenset(f".{name}" for name in _OTHERS.split())

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_STARTS: Final[tuple[tuple[bytes, str], ...]] = (
    (_JPEG, "JPEG"),
    (_PNG, "PNG"),
    (b"\xff\xd8", "JPEG"),
    (b"\x89PNG", "PNG"),
    (b"GIF8", "GIF"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"II\xbc", "JPEG XR"),
    (b"II*\x00\x10\x00\x00\x00CR", "Canon raw"),
    (b"IIRO", "Olympus raw"),
    (b"IIRS", "Olympus raw"),
    (b"IIU\x00", "Panasonic raw"),
    (b"FUJIFILMCCD-RAW", "Fujifilm raw"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
    (b"MM\x00+", "TIFF"),
    (b"8BPS", "PSD"),
    (b"gimp xcf", "XCF"),
    (b"\x00\x00\x01\x00", "ICO"),
    (b"\x00\x00\x02\x00", "ICO"),
    (b"icns", "ICNS"),
    (b"%!PS", "EPS"),
    (b"\xc5\xd0\xd3\xc6", "EPS"),
    (b"%PDF", "PDF"),
    (b"qoif", "QOI"),
    (b"DDS ", "DDS"),
    (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"#?RGBE", "Radiance HDR"),
    (b"AT&TFORM", "DjVu"),
    (b"SIMPLE  =", "FITS"),
    (b"\xd7\xcd\xc6\x9a", "WMF"),
    (b"BPG\xfb", "BPG"),
    (b"\x01\xda\x00\x01", "SGI"),
    (b"\x01\xda\x01\x01", "SGI"),
)
#: Beginnings of what is no picture, in the words of a sentence.
_NO_PICTURES: Final[tuple[tuple[bytes, str], ...]] = (
    (b"\x00\x05\x16\x07", "notes that macOS kept beside a file (._NAME)"),
    (b"Bud1", "notes that macOS kept of a folder"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"PK\x05\x06", "a ZIP archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF\r\n", "an HDF5 file"),
    (b"PAR1", "a Parquet file"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\xd0\xcf\x11\xe0", "an Office document"),
    (b"\x1aE\xdf\xa3", "a video"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
)
_HEIF: Final = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))


class Kind(NamedTuple):
    """`name`: of a picture (`TIFF`), or of what is none, with its article (`an HTML page`)."""

    name: str
    is_picture: bool


def kind_of(data: bytes) -> Kind | None:
    """What `data` is by its first bytes; None: nothing that is known."""
    head = data[:1024]
    for start, name in _STARTS:
        if head.startswith(start):
            return Kind(name, True)
    if head.startswith(b"RIFF"):
        return {b"WEBP": Kind("WEBP", True), b"WAVE": Kind("a sound", False)}.get(head[8:12], Kind("a video", False))
    if head.startswith(b"BM") and head[15:18] == b"\x00\x00\x00":  # the size of its header: not a text that says BMW
        return Kind("BMP", True)
    if head[4:8] == b"ftyp":
        if head[8:12] in (b"avif", b"avis"):
            return Kind("AVIF", True)
        if head[8:12] == b"crx ":
            return Kind("Canon raw", True)
        return Kind("HEIC", True) if head[8:12] in _HEIF else Kind("a video", False)
    if head[128:132] == b"DICM":
        return Kind("DICOM", True)
    if re.match(rb"P[1-7Ff]\s", head):
        return Kind("PNM", True)
    if head[40:44] == b" EMF" and head.startswith(b"\x01\x00\x00\x00"):
        return Kind("EMF", True)
    if re.match(rb"\x0a[\x00\x02-\x05]\x01[\x01\x02\x04\x08]", head):
        return Kind("PCX", True)
    for start, name in _NO_PICTURES:
        if head.startswith(start):
            return Kind(name, False)
    return _text_kind(head)


def _text_kind(head: bytes) -> Kind | None:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"<") and b"<svg" in text:
        return Kind("SVG", True)
    if text.startswith((b"<!doctype html", b"<html")):
        return Kind("an HTML page", False)
    if text.startswith((b"<?xml", b"<error", b"<")):
        return Kind("an XML text, such as the error of a download", False)
    if text.startswith((b"{", b"[")):
        return Kind("a JSON text, such as the error of a download", False)
    if text.startswith(b"data:image/"):
        return Kind("a data URL: decode its base64 first", False)
    return None


def jpeg_kind(data: bytes) -> str | None:
    """What makes a JPEG one of those that are hardly ever seen and not read (`12 bits a colour`); None: nothing does."""
    place = 2
    while place + 9 < len(data) and data[place] == 0xFF:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == 0xFF:  # filling
            place += 1
            continue
        if marker == 0xF7:
            return "JPEG-LS"
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if data[place + 4] != 8:
                return f"JPEG of {data[place + 4]} bits a colour"
            return "lossless JPEG" if marker in (0xC3, 0xC7, 0xCB, 0xCF) else None
        if marker == 0xDA or length < 2:
            return None
        place += 2 + length
    return None
