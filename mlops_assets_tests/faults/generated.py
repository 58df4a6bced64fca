"""Inputs that nobody wrote: for every kind of file, table, key and body that we read, a function (random) -> one input, whole or broken.

The same seed gives the same inputs. Belongs here: bytes and values. Does not belong here: how they are read, what must become of them
(`test_generated_inputs.py`).
"""

from __future__ import annotations

# With one odd value a line nobody would read them.
# fmt: off
import csv
import gzip
import io
import json
import struct
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from mlops_assets import otp
from mlops_assets.sample_data import policy_rows
from mlops_assets_tests import drawings
from mlops_assets_tests.factories import POINTER

#: Text that tools have tripped over: halves of surrogate pairs are only in the strings for JSON (`odd_json`).
ODD_TEXTS = (
    *("", " ", "\u200b", "\ufeff", "\x00", "a\x00b", "\x1b[31m", "\x7f", "\x85", "\u2028", "\u202e거꾸로", "한글", "\u1112\u1161\u11ab"),
    *(
        "😀", "👩‍👩‍👧", "a" * 3000, "ㅋ" * 500, "=1+1", "#N/A", "Loading...", "NaN", "null", "-1", "1e999", "٣", "²", "'", '"', "''",
        '"";', "\\",
    ),
    *(
        "../../etc/passwd", "C:\\x.jpg", "s3://b/k", "<script>", "%00", "%ed%a0%80", "{}", "[]", "1" * 400, "010-1234-5678",
        "a@b.kr", "\r\n",
    ),
)
#: What JSON can say beside objects and lists.
ODD_JSON = (
    "\ud800", "\udfff", True, False, None, 0, -1, 2**31, 2**63, 2**64, -(2**70), 10**300, 0.5, -0.0, 1e308, float("nan"),
    float("inf"),
)


def odd_text(random: Random) -> str:
    return "".join(random.choice(ODD_TEXTS) for _ in range(random.choice((1, 1, 1, 2, 3))))


def odd_json(random: Random, depth: int = 3) -> Any:
    kind = random.randrange(8)
    if kind == 0 and depth:
        return [odd_json(random, depth - 1) for _ in range(random.randrange(4))]
    if kind == 1 and depth:
        return {odd_text(random): odd_json(random, depth - 1) for _ in range(random.randrange(4))}
    return odd_text(random) + random.choice(("", "", "", "\ud800")) if kind < 5 else random.choice(ODD_JSON)


def odd_bytes(random: Random) -> bytes:
    return odd_text(random).encode("utf-8", "surrogatepass")


def damaged(random: Random, data: bytes) -> bytes:
    """Cut off, with other bits or bytes, a part of it twice, gone or moved, or nothing of all that."""
    found = bytearray(data)
    for _ in range(random.choice((0, 1, 1, 1, 2, 5))):
        at, to = sorted(random.randrange(len(found) + 1) for _ in range(2))
        how = random.randrange(8)
        if how == 0:
            del found[at:]
        elif how == 1:
            del found[at : min(to, at + 64)]
        elif how == 2:
            found[at:at] = found[at : min(to, at + 64)]
        elif how == 3:
            found[at:at] = odd_bytes(random)
        elif how == 4:
            found[at : at + 4] = random.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\1"))
        elif how == 5:
            found += random.randbytes(random.randrange(200))
        elif found and at < len(found):
            found[at] = random.randrange(256)
    return bytes(found)


def encoded(random: Random, text: str) -> bytes:
    """As the tools of people write text: nearly always UTF-8, with either kind of line end, perhaps a mark."""
    text = text.replace("\n", random.choice(("\n", "\n", "\n", "\r\n", "\r", "\n\n")))
    how = random.choice(("utf-8",) * 25 + ("utf-8-sig", "utf-8-sig", "utf-16", "utf-16-be", "cp949", "utf-32", "latin-1"))
    return text.encode(how, "surrogatepass" if how.startswith("utf") else "replace")


def nested(random: Random) -> bytes:
    """Deeper than Python reads, or just not."""
    depth = random.choice((50, 900, 20_000, 200_000))
    return b'{"a":' * depth + b"1" + b"}" * depth if random.random() < 0.5 else b"[" * depth + b"]" * depth


# --- pictures -------------------------------------------------------------------------------------------------------------------

MODES = ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA", "I;16", "I;16B", "La", "RGBa", "RGBX")
FORMATS = (
    "PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "JPEG2000", "PPM", "ICO", "TGA", "MPO", "DIB", "PCX", "SGI", "IM", "DDS",
)  # not AVIF: Pillow 13 dies while it writes some
SUFFIXES = (".jpg", ".JPG", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".jp2", ".heic", ".txt", "", ".jpg.tmp")


def picture(random: Random, side: int = 96) -> bytes:
    """Any mode in any format that can hold it, small, sometimes one pixel high or with the camera's notes."""
    size = (random.randrange(1, side), random.randrange(1, side))
    for _ in range(50):
        mode, form = random.choice(MODES), random.choice(FORMATS)
        out = io.BytesIO()
        try:
            made = Image.frombytes("RGB", size, random.randbytes(3 * size[0] * size[1]))
            if random.random() < 0.7:
                made = made.resize((3, 3)).resize(size)
            made = made.convert(mode)
            options: dict[str, Any] = {}
            if random.random() < 0.3:
                options["exif"] = b"Exif\0\0" + damaged(random, b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0")
            if random.random() < 0.2:
                options |= {"save_all": True, "append_images": [made.copy()] * random.randrange(3)}
            if form in ("PNG", "WEBP") and random.random() < 0.2:
                options["icc_profile"] = random.randbytes(random.randrange(300))
            made.save(out, form, **options)
        except (OSError, ValueError, LookupError, TypeError, SystemError, SyntaxError, AttributeError, ArithmeticError, struct.error):
            continue
        return out.getvalue()
    return photo(random)


def photo(random: Random, form: str = "JPEG") -> bytes:
    cells = np.frombuffer(random.randbytes(64), np.uint8).reshape(8, 8)
    out = io.BytesIO()
    Image.fromarray(cells).resize((48, 48), Image.Resampling.BICUBIC).save(out, form)
    return out.getvalue()


def damaged_picture(random: Random) -> bytes:
    form = random.choice(("JPEG", "PNG", "WEBP", "BMP", "MPO", ""))
    return damaged(random, photo(random, form) if form else picture(random))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@cache
def _packed() -> bytes:
    """60 KB that unpack to 60 MB."""
    return zlib.compress(bytes(60 * 1024**2), 9)


def bomb(random: Random) -> bytes:
    """A few hundred bytes that promise, or unpack to, gigabytes; PNG's checksums are right, so that the numbers are believed."""
    width, height = (random.choice((1, 2, 7_000, 60_000, 2**16 - 1, 2**31 - 1)) for _ in range(2))
    kind = random.randrange(8)
    if kind == 0:
        data = photo(random, "BMP")
        return data[:18] + struct.pack("<ii", width, random.choice((height, -height))) + data[26:]
    if kind == 1:
        data = photo(random)
        at = data.index(b"\xff\xc0") + 5
        return data[:at] + struct.pack(">HH", min(height, 65535), min(width, 65535)) + data[at + 4 :]
    if kind == 2:
        return b"GIF89a" + struct.pack("<HH", min(width, 65535), min(height, 65535)) + random.randbytes(30)
    if kind == 3:
        data = bytearray(photo(random, "WEBP"))
        data[26:30] = struct.pack("<HH", 16383, 16383)
        return bytes(data)
    size = (width, height) if kind < 6 else (20, 20)
    bits, colour = random.choice(((8, 0), (8, 2), (16, 2), (16, 6), (1, 0), (8, 3), (16, 0), (8, 6), (4, 4)))
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, random.choice((0, 0, 1))))]
    packed = _packed()
    if kind == 6:
        parts.append(
            chunk(*random.choice(((b"zTXt", b"Comment\0\0" + packed), (b"iCCP", b"x\0\0" + packed), (b"iTXt", b"x\0\1\0\0\0" + packed))))
        )
    if kind == 7:
        parts += [chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)), chunk(b"sBIT", bytes((random.randrange(256),)))]
    parts.append(chunk(b"IDAT", packed if random.random() < 0.5 else zlib.compress(bytes(20 * 21 * 8))))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def no_picture(random: Random) -> bytes:
    starts = (
        b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"\xff\xd8\xff", b"RIFF\x10\0\0\0WEBPVP8 ", b"BM", b"GIF89a", b"II*\0",
        b"\0\0\0\x0cjP  ",
    )
    whole = (b"", POINTER, b"<html>404</html>", b"%PDF-1.7", b"PK\x03\x04", b"\0\0\0 ftypheic")
    return random.choice((*whole, *(start + random.randbytes(random.randrange(300)) for start in starts)))


def any_picture(random: Random) -> bytes:
    return random.choice((picture, damaged_picture, bomb, no_picture))(random)


def picture_path(random: Random) -> str:
    """Below the folder of a label, or of none, or where masks and copies are kept."""
    folder = random.choice(
        ("good", "MT_Crack/Imgs", "MT_Crack/good", "0", "1", "unknown", "ground_truth/good", "thumbs/good", "__MACOSX/good")
    )
    tail = random.choice(("", "", "", "_mask", "_thumb", " (1)", "_contact_sheet", "한글", "\u1112\u1161\u11ab", "a\\b", "#1", "%20"))
    return f"{folder}/{random.randrange(10**9)}{tail}{random.choice(SUFFIXES)}"


def label_index(random: Random) -> bytes:
    """tires' JSON index: of items that are as they should be, nearly, or not at all."""
    if random.random() < 0.15:
        return nested(random)

    def item() -> Any:
        found: Any = {"FilePath": f"good/base{random.randrange(40)}.jpg", "label_value": random.choice(("정상", "결함", "0", 1))}
        for name in random.sample(sorted(found), random.randrange(3)):
            found[name] = odd_json(random)
        return found if random.random() < 0.8 else odd_json(random)

    content: Any = {"annotation": {"data": [item() for _ in range(random.randrange(6))]}}
    if random.random() < 0.2:
        content["annotation"][odd_text(random)] = odd_json(random)
    text = json.dumps(content, ensure_ascii=random.random() < 0.5)
    if random.random() < 0.2:
        text = text.replace('{"FilePath"', '{"FilePath": "good/base1.jpg", "FilePath"', 1)
    data = encoded(random, text)
    return damaged(random, data) if random.random() < 0.4 else data


# --- digits ---------------------------------------------------------------------------------------------------------------------


def idx(random: Random, dimensions: int) -> bytes:
    """A file of MNIST's form, whole, damaged, of other dimensions, promising far more than it holds, or unpacking to far more."""
    count, side = random.choice((3, 3, 3, 3, 0, 1, 5)), random.choice((28, 28, 28, 28, 28, 28, 20, 0))
    shape = [count, side, side][:dimensions]
    content = random.randbytes(int(np.prod(shape))) if dimensions > 1 else bytes(random.randrange(12) for _ in range(count))
    kind = random.randrange(8)
    if kind == 0:
        shape = [random.choice((2**32 - 1, 2**31, 10**6, 1, 0)) for _ in range(random.choice((dimensions, 1, 3, 4)))]
    if kind == 1:
        content += bytes(40 * 1024**2)
    head = bytes((0, 0, random.choice((8, 8, 8, 8, 9, 13, 255)), len(shape))) + struct.pack(f">{len(shape)}I", *shape)
    data = head + content
    if kind == 2:
        data = damaged(random, data)
    if kind != 3:
        data = gzip.compress(data, mtime=0)
    return damaged(random, data) if kind == 4 else data


def index_rows(random: Random) -> list[dict[str, Any]]:
    rows = []
    for _ in range(random.randrange(1, 5)):
        row: dict[str, Any] = {
            "file": f"base{random.randrange(20)}.png",
            "label": random.choice((*range(10), "3", "12", -1)),
            "writer": "w1",
        }
        for name in random.sample(sorted(row), random.choice((0, 0, 1, 2))):
            row[name] = odd_json(random)
        rows.append(row)
    return rows


def csv_index(random: Random) -> bytes:
    header = random.choice(
        (["image", "label"], ["image", "label", "writer"], ["image", "label", "Label "], ["file", "label"], ["image", "label", "x"])
    )
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    for row in index_rows(random):
        cells = [str(row["file"]), str(row["label"]), str(row["writer"]), "more"]
        writer.writerow([cell.encode("utf-8", "replace").decode() for cell in cells[: len(header) + random.choice((-1, 0, 0, 0, 1))]])
    data = encoded(random, out.getvalue() + random.choice(("", "", '"', "x" * 200_000, "\x00")))
    return damaged(random, data) if random.random() < 0.3 else data


def jsonl_index(random: Random) -> bytes:
    lines = [
        json.dumps(row if random.random() < 0.9 else odd_json(random), ensure_ascii=random.random() < 0.6) for row in index_rows(random)
    ]
    if random.random() < 0.1:
        lines.append(nested(random).decode())
    data = encoded(random, "\n".join(lines))
    return damaged(random, data) if random.random() < 0.3 else data


# --- texts ----------------------------------------------------------------------------------------------------------------------


def cell(random: Random) -> str:
    text = (
        odd_text(random) if random.random() < 0.5 else random.choice(("재미있다", "최고의 영화", "별로", "시험 문장 하나", "역겹다 정말"))
    )
    return text if random.random() < 0.2 else text.replace("\t", " ").replace("\r", " ").replace("\n", " ")


def tsv(random: Random, header: str, label: Callable[[], str]) -> bytes:
    """A file of tables: its lines are as they should be or nearly."""
    width = header.count("\t") + 1
    lines = [header if random.random() < 0.8 else random.choice((header.upper(), header + "\t" + header, "", odd_text(random), header[1:]))]
    for number in range(random.randrange(1, 8)):
        cells = [cell(random) if random.random() < 0.3 else label() for _ in range(width)]
        cells[0] = str(random.choice((number, number, 1, odd_text(random)))) if header.startswith("id") else cell(random)
        if header.startswith("id"):
            cells[1] = cell(random)
        lines.append("\t".join(cells[: width + random.choice((0, 0, 0, -1))]) + random.choice(("", "", "", "\tmore")))
    data = encoded(random, "\n".join(lines) + random.choice(("", "\n")))
    return damaged(random, data) if random.random() < 0.4 else data


def reviews(random: Random) -> bytes:
    return tsv(random, "id\tdocument\tlabel", lambda: random.choice(("0", "1", "1", "2")))


def comment_lines(random: Random, labels: Sequence[str]) -> bytes:
    lines = []
    for number in range(random.randrange(1, 6)):
        found: Any = {
            "source": "app", "id": number, "content_hash": 1, "text": cell(random), "labels": [random.choice(labels)],
            "deleted": False,
        }
        for name in random.sample(sorted(found), random.choice((0, 0, 1, 2))):
            found[name] = odd_json(random)
        lines.append(json.dumps(found if random.random() < 0.9 else odd_json(random), ensure_ascii=random.random() < 0.6))
    if random.random() < 0.1:
        lines.append(nested(random).decode())
    data = encoded(random, "\n".join(lines))
    return damaged(random, data) if random.random() < 0.3 else data


# --- policies -------------------------------------------------------------------------------------------------------------------

HEADER, *POLICIES = policy_rows(30)
_ODD_CELLS = (
    "월~금", "격주", "24:00", "25:00", "오후 8시", "2026-13-01", "٣:٣٣", "한양", "전라북도", "- ", "#REF!",
    "불러오는 중", "+82 10 1234 5678",
)


def policy_grid(random: Random) -> list[list[str]]:
    rows = [list(HEADER), *(list(random.choice(POLICIES)) for _ in range(random.randrange(1, 6)))]
    for row in rows if random.random() < 0.3 else rows[1:]:
        for _ in range(random.choice((0, 0, 1, 3))):
            at = random.randrange(len(row))
            row[at] = odd_text(random) if random.random() < 0.5 else random.choice(_ODD_CELLS)
        if random.random() < 0.1:
            row += [odd_text(random)]
        if random.random() < 0.1:
            del row[random.randrange(len(row)) :]
    return rows


def policy_csv(random: Random) -> bytes:
    out = io.StringIO()
    csv.writer(out, delimiter=random.choice((",", ",", ",", "\t", ";")), lineterminator="\n").writerows(policy_grid(random))
    data = encoded(random, out.getvalue())
    return damaged(random, data) if random.random() < 0.3 else data


def policy_lines(random: Random) -> bytes:
    header, *rows = policy_grid(random)
    lines: list[Any] = [header, *([number, row] for number, row in enumerate(rows, start=2))]
    if random.random() < 0.3:
        lines[random.randrange(len(lines))] = odd_json(random)
    data = "".join(json.dumps(line, ensure_ascii=random.random() < 0.5) + "\n" for line in lines).encode("utf-8", "surrogatepass")
    data = nested(random) + b"\n" if random.random() < 0.1 else data
    return damaged(random, data) if random.random() < 0.3 else data


def sheet_answers(random: Random) -> tuple[Any, Any]:
    """What the service answers when it is asked for the book, and for the values: as bytes, or as something that JSON can say."""
    size = {"rowCount": random.choice((1, 20, 20, 0, 10**9)), "columnCount": random.choice((26, 1, 0))}
    page: dict[str, Any] = {"sheetId": 0, "title": odd_text(random) or "x", "index": 0, "sheetType": "GRID", "gridProperties": size}
    book: Any = {"spreadsheetId": "b", "properties": {"title": "b"}, "sheets": [{"properties": page}]}
    values: Any = {"range": "A1", "majorDimension": "ROWS", "values": policy_grid(random)}
    kind = random.randrange(8)
    if kind == 0:
        page[random.choice(sorted(page))] = odd_json(random)
    if kind == 1:
        book[random.choice(sorted(book))] = odd_json(random)
    if kind == 2:
        values[random.choice(sorted(values))] = odd_json(random)
    if kind == 3:
        values["values"] = [odd_json(random) for _ in range(3)]
    if kind == 4:
        return (book, odd_json(random)) if random.random() < 0.5 else (odd_json(random), values)
    if kind == 5:
        broken = damaged(random, json.dumps(values).encode())
        return (book, broken) if random.random() < 0.7 else (broken, values)
    return book, values


# --- configurations -------------------------------------------------------------------------------------------------------------


def configuration(random: Random, shipped: str) -> bytes:
    """A YAML file that is nearly one of ours, or what YAML can say and few expect."""
    if random.random() < 0.5:
        return damaged(random, shipped.encode())
    lines = shipped.split("\n")
    odd = (
        *(
            "2026-13-45", "2026-02-30 10:00:00", "!!binary '%'", "!!int x", "!!python/object/apply:os.system [ls]", "!!set {a: 1}",
            "*nobody",
        ),
        *(
            "&a [*a]", "&a {b: *a}", "[" * 2_000, "{a: " * 3_000, "1" * 5_000, "0x" + "f" * 5_000, "1:99999:99", ".nan", ".inf",
            "!!float x", "? [a]\n: b",
        ),
        *(
            "<<: 1", "<<: [1, 2]", "!!timestamp x", "!!omap [1]", "{[a]: b}", "{{a: b}: c}", "'\\ud800'", '"\\ud800"', '"\\x00"',
            "- - -", "%YAML 3.0",
        ),
        "[" + ",".join(f"&x{n} [{','.join([f'*x{n - 1}'] * 9) if n else 1}]" for n in range(9)) + "]",
    )
    lines.insert(random.randrange(len(lines)), f"odd: {random.choice(odd)}" if random.random() < 0.7 else random.choice(odd))
    return encoded(random, "\n".join(lines))


# --- bodies of requests ---------------------------------------------------------------------------------------------------------


def _nearly(random: Random, value: Any) -> Any:
    """The value, in a list perhaps with others in place of its own; or another one. What is as deep here can be read, but not written."""
    if isinstance(value, list) and random.random() < 0.6:
        return [_nearly(random, one) for one in value]
    if random.random() < 0.6:
        return value
    return json.loads("[" * 700 + "]" * 700) if random.random() < 0.1 else odd_json(random)


def json_body(random: Random, usual: Any) -> bytes:
    """A body that is nearly `usual`."""
    content = usual
    if random.random() < 0.15:
        return nested(random)
    if isinstance(usual, dict) and random.random() < 0.8:
        content = {name: _nearly(random, value) for name, value in usual.items() if random.random() < 0.95}
        if random.random() < 0.2:
            content[odd_text(random)] = odd_json(random)
    elif random.random() < 0.5:
        content = odd_json(random)
    data = encoded(random, json.dumps(content, ensure_ascii=random.random() < 0.6))
    if random.random() < 0.1:
        data = data.replace(b"{", b'{"inputs": 1, "labels": 1, ', 1)
    return damaged(random, data) if random.random() < 0.2 else data


def multipart_body(random: Random) -> tuple[bytes, str]:
    """(body, its content type)."""
    parts = []
    for _ in range(random.choice((0, *[1] * 8, 2, 3, 40))):
        name = random.choice((*["files"] * 8, "files[]", "Files", "other", odd_text(random)[:300]))
        more = random.choice(
            (
                "", '; filename="a.png"', '; filename=""', "; filename*=UTF-8''%ED%83%80.png", "; filename*=utf-7''+2AA-",
                "; filename*=undefined''x",
            )
        )
        extra = random.choice(
            (*[""] * 8, "Content-Type: image/png\r\n", "Content-Transfer-Encoding: base64\r\n", f"{odd_text(random)[:50]}: x\r\n")
        )
        head = f'Content-Disposition: form-data; name="{name}"{more}\r\n{extra}\r\n'
        parts.append(head.encode("utf-8", "replace") + (any_picture(random) if random.random() < 0.8 else odd_bytes(random)))
    body = b"".join(b"--x\r\n" + part + b"\r\n" for part in parts) + random.choice((b"--x--\r\n", b"--x--\r\n", b"--x--\r\n", b""))
    said = random.choice(
        ("multipart/form-data; boundary=x",) * 20
        + ("multipart/form-data", 'multipart/form-data; boundary=""', "multipart/form-data; boundary=y")
    )
    return (damaged(random, body) if random.random() < 0.3 else body), said


def strokes(random: Random) -> Any:
    """The body of POST /otp/confirmation, of a session that is one or nearly."""
    code = "".join(random.choice("0123456789") for _ in range(6))
    given = drawings.token()
    if random.random() < 0.1:
        given = random.choice((given[:-2], given + "=", odd_text(random), otp.make_token("x" * 40, "u", 6, drawings.VERIFY_URL)))
    body = drawings.confirmation(given, code, save=random.random() < 0.8, seed=random.randrange(1000))
    for entry in body["entries"]:
        if random.random() < 0.3 and entry["drawn"]:
            entry["drawn"] = drawings.base64.b64encode(any_picture(random)).decode()
        if random.random() < 0.1:
            entry[random.choice(sorted(entry))] = odd_json(random)
    return body


# --- keys -----------------------------------------------------------------------------------------------------------------------


def key(random: Random, *, of_files: bool) -> str:
    """A key below a system's folder, as strangers' tools write them. In files `..` would lead out; there a name need not be UTF-8."""
    odd = ["", " ", "a b", "a\nb", "a\rb", "\x1b[31m", "한글", "\u1112\u1161\u11ab", "#1", "%2F", "\\", "😀", "x" * 200, "a.jpg", "good"]
    odd += ["_READY", "_PARENT", "_$folder$", *([] if of_files else [".", ".."])]
    parts = [random.choice(("v1", "v2", "V 3", "v" * 70, "new\nline", "")), *random.choices(odd, k=random.randrange(1, 4))]
    name = "/".join(parts) + random.choice(("", "", "", "/", ".jpg", "\udcff" if of_files else "é"))
    return name.lstrip("/") or "x"
