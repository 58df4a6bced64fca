"""Files of lines: streamed once, within fixed memory, into Parquet files of raw rows. Every line ends as a row or rejected with a reason.

Belongs here: bytes, lines, encodings, headers, and which files of a version are read. Does not belong here: what a column means (the
systems' `data.py`), rules that compare rows (`texts.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mlops_assets.files import LFS_POINTER, is_lfs_pointer
from mlops_assets.ingest.masking import mask
from mlops_assets.ingest.rows import Rejected
from mlops_assets.lifecycle import dataset
from mlops_assets.unambiguous import named_twice

if TYPE_CHECKING:
    import pyarrow as pa

    from mlops_assets.lifecycle.dataset import Entry, Manifest
    from mlops_assets.store import ObjectStore

BATCH_ROWS: Final = 50_000
EXCERPT: Final = 200
#: Bytes that an excerpt is made of, and characters at their end that may be half of what would be masked (an e-mail address is longest).
_LOOKED_AT: Final = 8 * EXCERPT
_HALF: Final = 130
#: A file of which more than this share of lines is not UTF-8 is in another encoding as a whole.
NOT_UTF8_SHARE: Final = 0.5

#: (line without its ending, its number) -> the values of the system's own columns.
Parse = Callable[[bytes, int], "Mapping[str, Any] | Rejected"]


@dataclass(frozen=True)
class Reader:
    """How a file is read.

    Attributes:
        open: (header line) -> how its lines are read, or why the file is not; for a file without a header it is given b"".
        holdout: whether its rows are only measured on. A row's own value under `holdout` goes over it.
        only_file_of: a table that has one file in a version, as its rows are known by their lines; None: there may be many.
    """

    open: Callable[[bytes], Parse | Rejected]
    holdout: bool = False
    has_header: bool = True
    only_file_of: str | None = None


@dataclass(frozen=True)
class Source:
    """One file of the version. `name` is unique within it."""

    name: str
    entry: Entry
    reader: Reader


@dataclass
class Scanned:
    """What the streaming step found: Parquet files of raw rows, rejected rows (source, line, what), and files turned away as a whole.

    `lines`: number of the file among the sources -> its last line.
    """

    files: list[Path] = field(default_factory=list)
    lines: dict[int, int] = field(default_factory=dict)
    rejected: list[tuple[str, int, Rejected]] = field(default_factory=list)
    refused: dict[str, tuple[Entry, Rejected]] = field(default_factory=dict)
    rows: int = 0
    has_holdout: bool = False


def lines_of(chunks: Iterable[bytes], limit: int) -> Iterator[bytes | Rejected]:
    """Lines without their ending, in order. Of a line over `limit` bytes only the beginning is ever held: memory is one chunk and `limit`.

    Only `\\n` and `\\r\\n` end a line: Unicode's other separators occur inside texts.
    """
    held = b""
    too_long = False
    for chunk in chunks:
        pieces = chunk.split(b"\n")
        for piece in pieces[:-1]:
            if too_long or len(held) + len(piece) > limit:
                yield Rejected("too_large", excerpt(held + piece[:_LOOKED_AT]))
            else:
                line = held + piece
                yield line[:-1] if line.endswith(b"\r") else line
            held, too_long = b"", False
        if too_long:
            held += pieces[-1][: _LOOKED_AT - len(held)]
            continue
        held += pieces[-1]
        if len(held) > limit:
            held, too_long = held[:_LOOKED_AT], True
    if too_long:
        yield Rejected("too_large", excerpt(held))
    elif held:
        yield held[:-1] if held.endswith(b"\r") else held


def fields_of(line: bytes, count: int) -> list[str] | Rejected:
    """`count` values between tabs. Quotes mean nothing in these files: `"` is a character like any other."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        return Rejected("not_utf8", excerpt(line))
    fields = text.split("\t")
    if len(fields) != count or "\x00" in text:
        return Rejected("malformed_row", excerpt(line))
    return fields


def excerpt(data: bytes) -> str:
    """The beginning of a line, masked before it is cut: half a number would not be recognized."""
    seen = mask(data[:_LOOKED_AT].decode("utf-8", "replace").replace("\x00", "\ufffd"))
    return (seen if len(data) < _LOOKED_AT else seen[:-_HALF])[:EXCERPT]


def sources_of(manifest: Manifest, reader_of: Callable[[str], Reader | None]) -> tuple[list[Source], dict[str, tuple[Entry, Rejected]]]:
    """The files to read, held-out ones first (the first of two rows with one id is kept), and the unexpected or second ones.

    Args:
        reader_of: (file name) -> how it is read; None: it is not expected.
    """
    found: list[Source] = []
    unexpected: dict[str, tuple[Entry, Rejected]] = {}
    for entry in manifest.entries:
        base = entry.folders_and_name[1]
        name = entry.path if entry.from_version == manifest.version else f"{entry.from_version}/{entry.path}"
        reader = reader_of(base)
        if reader is None:
            unexpected[name] = (entry, Rejected("unexpected_file", base))
        else:
            found.append(Source(name, entry, reader))
    # Rows of a parent come before those of what extends it, so that extending never takes a row away.
    landed: dict[str, datetime] = {}
    for entry in manifest.entries:
        landed[entry.from_version] = min(entry.last_modified, landed.get(entry.from_version, entry.last_modified))
    found.sort(
        key=lambda source: (
            not source.reader.holdout,
            source.entry.from_version == manifest.version,
            landed[source.entry.from_version],
            source.name,
        )
    )
    return _without_second(found, unexpected), unexpected


def _without_second(found: Sequence[Source], refused: dict[str, tuple[Entry, Rejected]]) -> list[Source]:
    """`found` without second files of a table, which join `refused`. One of the same name in an extending version is no second file."""
    kept: list[Source] = []
    files: dict[str, dict[str, Source]] = {}  # table -> version -> its file
    for source in found:
        table, version, base = source.reader.only_file_of, source.entry.from_version, source.entry.folders_and_name[1]
        if table is not None:
            others = files.setdefault(table, {})
            first = next(iter(others.values()), source)
            if version in others or first.entry.folders_and_name[1] != base:
                refused[source.name] = (source.entry, Rejected("second_file", f"{table}: {first.name} is there already"))
                continue
            others[version] = source
        kept.append(source)
    return kept


def scan(
    store: ObjectStore,
    sources: Sequence[Source],
    unexpected: Mapping[str, tuple[Entry, Rejected]],
    folder: Path,
    max_line_bytes: int,
    table_of: Callable[[Sequence[Mapping[str, Any]]], pa.Table],
) -> Scanned:
    """Stream every file once and write its rows as `folder/<n>.parquet`.

    Args:
        table_of: rows (`source`, `holdout`, `file`, `line` and the system's own columns) as a table; of no rows, one with the schema.
    """
    done = Scanned(refused=dict(unexpected))
    folder.mkdir(parents=True, exist_ok=True)
    for number, source in enumerate(sources):
        target = folder / f"{number:05d}.parquet"
        outcome = _scan_file(dataset.open_entry(store, source.entry), source, number, target, max_line_bytes, table_of)
        if isinstance(outcome, Rejected):
            target.unlink(missing_ok=True)
            done.refused[source.name] = (source.entry, outcome)
            continue
        rows, rejected = outcome
        done.rows += rows
        done.rejected += [(source.name, line, what) for line, what in rejected]
        done.files.append(target)
        done.lines[number] = rows + source.reader.has_header
        done.has_holdout |= source.reader.holdout
    return done


def _scan_file(
    chunks: Iterator[bytes],
    source: Source,
    number: int,
    target: Path,
    max_line_bytes: int,
    table_of: Callable[[Sequence[Mapping[str, Any]]], pa.Table],
) -> tuple[int, list[tuple[int, Rejected]]] | Rejected:
    """Rows seen and those rejected, or why the whole file is."""
    import pyarrow.parquet as pq

    lines = lines_of(chunks, max_line_bytes)
    first = next(lines, None)
    if isinstance(first, bytes) and is_lfs_pointer(first + b"\n"):
        return Rejected(LFS_POINTER, excerpt(first))
    lines = lines if first is None else chain([first], lines)
    parse = _opened(lines, source.reader)
    if isinstance(parse, Rejected):
        return parse
    rows = 0
    rejected: list[tuple[int, Rejected]] = []
    with pq.ParquetWriter(target, table_of([]).schema, compression="zstd") as writer:
        batch: list[Mapping[str, Any]] = []
        for line_number, line in enumerate(lines, start=1 + source.reader.has_header):
            rows += 1
            parsed = line if isinstance(line, Rejected) else parse(line, line_number)
            if isinstance(parsed, Rejected):
                rejected.append((line_number, parsed))
            else:
                batch.append({"source": source.name, "holdout": source.reader.holdout, "file": number, "line": line_number, **parsed})
                if len(batch) == BATCH_ROWS:
                    writer.write_table(table_of(batch))
                    batch.clear()
        if batch:
            writer.write_table(table_of(batch))
    if rows == 0:
        return Rejected("empty_file", "only a header" if source.reader.has_header else "0 bytes")
    strange = sum(what.code == "not_utf8" for _, what in rejected)
    if strange > NOT_UTF8_SHARE * rows:
        return Rejected("not_utf8", f"{strange} of {rows} lines: save the file as UTF-8 and land it as a new version")
    return rows, rejected


def _opened(lines: Iterator[bytes | Rejected], reader: Reader) -> Parse | Rejected:
    """The header read and judged."""
    if not reader.has_header:
        return reader.open(b"")
    header = next(lines, None)
    if header is None:
        return Rejected("empty_file", "0 bytes")
    if isinstance(header, Rejected):
        return Rejected("wrong_columns", f"the first line is longer than the limit: {header.excerpt}")
    if header.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\x00" in header:
        return Rejected("not_utf8", "it is UTF-16: save it as UTF-8 and land it as a new version")
    header = header.removeprefix(b"\xef\xbb\xbf")
    try:
        columns = header.decode("utf-8").split("\t")
    except UnicodeDecodeError:
        return Rejected("not_utf8", excerpt(header))
    if twice := named_twice(columns):
        return Rejected("wrong_columns", excerpt(twice.encode()))
    return reader.open(header)


def exact_header(wanted: bytes, parse: Parse) -> Callable[[bytes], Parse | Rejected]:
    """`Reader.open` of a file that begins with exactly `wanted`."""
    return lambda header: parse if header == wanted else wrong_columns(wanted.decode(), header)


def wrong_columns(wanted: str, header: bytes) -> Rejected:
    return Rejected("wrong_columns", f"expected {wanted!r}, found {excerpt(header)!r}")
