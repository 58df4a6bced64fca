"""Digits: from the frozen files of a dataset version to the cleaned table. Each digit and file ends as accepted or has a reason.

A row is one claim that a picture shows a digit: a place in a pair of IDX files, or a line of an index of drawings. Belongs here: reading
both forms, the rules, what never crosses a split, the table. Does not belong here: training, Dagster, what a model sees (`strokes.py`).
"""

from __future__ import annotations

import csv
import hashlib
import io
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mlops_assets import crash, formats, images, strokes, unambiguous
from mlops_assets.files import LFS_POINTER, LFS_REASON, PATH_REASONS, Paths, is_lfs_pointer, too_many_values
from mlops_assets.images import BadImage, Limits
from mlops_assets.ingest import accounts
from mlops_assets.ingest.accounts import Account
from mlops_assets.ingest.likeness import Union, near_pairs
from mlops_assets.ingest.rows import EXCERPT, Rejected, Violation, shown, torn, violations
from mlops_assets.lifecycle import dataset
from mlops_assets.lifecycle.system import CleanedTable
from mlops_assets.settings import canonical
from mlops_assets.sources import code_version
from mlops_assets.systems.digits import idx
from mlops_assets.systems.digits.config import LABELS, ORIGINS, USERS

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    from sqlalchemy import Engine

    from mlops_assets.lifecycle.dataset import Entry, Manifest, PublishedTable
    from mlops_assets.store import ObjectStore
    from mlops_assets.systems.digits.config import DatasetSection, DrawnSection, IdxSection

SYSTEM: Final = "digits"

#: Why a row is turned away -> what that means, for the metadata. Those of `images.BadImage` among them.
ROW_REASONS: Final = {
    "bad_label": "a label that is not 0 to 9",
    "malformed_row": "a line of an index without a picture's name and a label",
    **PATH_REASONS,
    "unlabelled": "a picture that no index names",
    "empty_file": "no byte",
    "too_large_file": "more bytes than a drawing may have",
    "not_an_image": "bytes that are no picture",
    LFS_POINTER: LFS_REASON,
    "bad_format": "a picture of a format that is not read",
    "too_many_pixels": "more pixels than a drawing may have",
    "truncated": "a picture that ends too early, or is damaged",
    "animated": "several frames",
    "nothing_drawn": "a blank picture",
    "too_little_drawn": "a touch, not a digit",
    "conflicting_labels": "the same picture with two labels",
    "duplicate_image": "an earlier row has the same picture",
    "near_duplicate_in_train": "like a picture, or by a writer, that training or validation has had since an earlier version",
    "like_held_out": "drawn by a user like a picture that is measured on: it may not push that one out",
    "in_other_split": "earlier versions have the picture in one split and its writer in another",
}
FILE_REASONS: Final = {
    "unexpected_file": "is neither IDX, nor an index, nor a picture of configs/digits.yaml",
    "not_digits": "holds no digits: letters are not used",
    "empty_file": "holds no byte",
    "not_idx": "is not IDX",
    "truncated_idx": "is IDX that does not hold what its header promises",
    "too_large_idx": "is too large when unpacked",
    "not_28": "holds pictures of another size than 28 x 28",
    "no_labels": "has no labels beside it",
    "no_images": "has no pictures beside it",
    "ambiguous_pair": "has a name that several files of pictures or labels share: rename them so that each pair has its own",
    "count_mismatch": "has another number of labels than of pictures",
    "too_large_index": "is too large for an index",
    LFS_POINTER: f"is {LFS_REASON}",
    "not_an_index": "is neither CSV nor JSON lines in UTF-8",
}

#: A drawing from a page has a few kilobytes.
LIMITS: Final = Limits(max_bytes=1024**2, max_pixels=4_000_000)
SUFFIXES: Final = formats.OTHER_SUFFIXES | formats.SUFFIXES.keys()
MAX_INDEX_BYTES: Final = 256 * 1024**2
SHARD_ROWS: Final = 100_000
ROW_GROUP_ROWS: Final = 4_096
PREPARED_AT_ONCE: Final = 1_000
EXAMPLES: Final = 20
SHEET_PER_LABEL: Final = 4


# --- files to rows --------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Row:
    """One claim: `source` and `line` say where it stands (a place in IDX or a line of an index, from 1; 0 is a picture's own file).

    Attributes:
        pixels: uint8 [28, 28] of IDX; a drawing has its `entry` instead.
        id: SHA-256 of the pixels, or of the drawing's file.
        rejected: set by the first rule that turns it away.
    """

    source: str
    line: int
    name: str
    origin: str
    holdout: bool = False
    label: int = -1
    writer: str | None = None
    pixels: np.ndarray | None = None
    entry: Entry | None = None
    id: str = ""
    rejected: Rejected | None = None

    def reject(self, code: str, excerpt: str = "") -> None:
        self.rejected = Rejected.of(code, excerpt or self.name)

    @property
    def where(self) -> str:
        return f"{self.source} line {self.line}"

    @property
    def keys(self) -> tuple[bytes, ...]:
        """What the split ledger remembers of it: its writer, if one is known, and its bytes."""
        own = bytes.fromhex(self.id)
        return (own,) if self.writer is None else (hashlib.sha256(b"writer\0" + self.writer.encode()).digest(), own)


@dataclass
class Scanned:
    """The rows of a version in the order of its files (the parent's first), the files that hold rows, and those turned away as a whole."""

    rows: list[Row] = field(default_factory=list)
    idx: dict[str, Entry] = field(default_factory=dict)
    indexes: dict[str, Entry] = field(default_factory=dict)
    refused: dict[str, tuple[Entry, Rejected]] = field(default_factory=dict)

    def alive(self) -> list[Row]:
        return [row for row in self.rows if row.rejected is None]

    def files(self) -> dict[str, int]:
        """How many files are what; together they are all files of the manifest."""
        others = self.holders() | {entry.key for entry, _ in self.refused.values()}
        drawn = {row.entry.key for row in self.rows if row.entry is not None} - others
        return {"idx": len(self.idx), "indexes": len(self.indexes), "drawings": len(drawn), "refused": len(self.refused)}

    def holders(self) -> set[str]:
        """Keys of the files that hold rows."""
        return {entry.key for entry in (*self.idx.values(), *self.indexes.values())}


def scan(store: ObjectStore, manifest: Manifest, section: DatasetSection) -> Scanned:
    """The rows of both forms, each with its label or the first reason against it. Reads IDX and indexes, not drawings."""
    ordered = sorted(manifest.entries, key=lambda entry: (entry.from_version == manifest.version, entry.from_version, entry.path))
    names = {entry.key: _name_of(entry, manifest) for entry in ordered}
    done, taken = Scanned(), set[str]()

    def refuse(entry: Entry, code: str, excerpt: str) -> None:
        taken.add(entry.key)
        done.refused[names[entry.key]] = (entry, Rejected.of(code, excerpt))

    for entry in ordered:
        if _matches(entry, section.ignored_files):
            refuse(entry, "not_digits", posixpath.basename(entry.path))
    for source in section.idx:
        for pictures, labels in list(_pairs([entry for entry in ordered if entry.key not in taken], source)):
            if pictures and labels and (len(pictures) > 1 or len(labels) > 1 or pictures == labels):
                for entry in {entry.key: entry for entry in (*pictures, *labels)}.values():
                    other = next((other for other in (*labels, *pictures) if other is not entry), entry)
                    refuse(entry, "ambiguous_pair", f"{posixpath.basename(entry.path)} and {posixpath.basename(other.path)}")
                continue
            for picture, label in zip_longest(pictures, labels):
                taken |= {entry.key for entry in (picture, label) if entry is not None}
                _take_pair(store, source, picture, label, names, done, refuse)
    by_path = Paths(ordered)
    for drawn in section.drawn:
        for entry in (entry for entry in ordered if entry.key not in taken and _matches(entry, (drawn.index,))):
            taken.add(entry.key)
            items = _read_index(store, entry)
            if isinstance(items, Rejected):
                refuse(entry, items.code, items.excerpt)
                continue
            done.indexes[names[entry.key]] = entry
            done.rows += [_drawn(names, entry, number, item, by_path, drawn) for number, item in items]
    taken |= {row.entry.key for row in done.rows if row.entry is not None}
    for entry in (entry for entry in ordered if entry.key not in taken):
        if posixpath.splitext(entry.path)[1].lower() not in SUFFIXES:
            refuse(entry, "unexpected_file", posixpath.basename(entry.path))
            continue
        row = Row(names[entry.key], 0, names[entry.key], "drawn", entry=entry)
        row.reject("unlabelled")
        done.rows.append(row)
    return done


def _name_of(entry: Entry, manifest: Manifest) -> str:
    return entry.path if entry.from_version == manifest.version else f"{entry.from_version}/{entry.path}"


def _matches(entry: Entry, patterns: Sequence[str]) -> bool:
    base = entry.folders_and_name[1].lower()
    return any(fnmatchcase(base, pattern.lower()) for pattern in patterns)


def _pairs(entries: Sequence[Entry], source: IdxSection) -> Iterator[tuple[Sequence[Entry], Sequence[Entry]]]:
    """Pictures with the labels of the same version, folder and name: one of each is a pair, whatever is without a partner stands alone.

    First by the whole name, then without `.gz`: who lands both forms means the same pictures.
    """
    named: tuple[list[Entry], list[Entry]] = ([], [])
    for entry in entries:
        for number, pattern in enumerate((source.images, source.labels)):
            if _matches(entry, (pattern,)):
                named[number].append(entry)
    for whole in (True, False):
        found: dict[tuple[str, ...], tuple[list[Entry], list[Entry]]] = defaultdict(lambda: ([], []))
        for number, pattern in enumerate((source.images, source.labels)):
            for entry in named[number]:
                found[_pair_name(entry, pattern, whole)][number].append(entry)
        pairs = [pair for pair in found.values() if not whole or (len(pair[0]), len(pair[1])) == (1, 1)]
        yield from pairs
        taken = {entry.key for pair in pairs for side in pair for entry in side}
        named = ([e for e in named[0] if e.key not in taken], [e for e in named[1] if e.key not in taken])


def _pair_name(entry: Entry, pattern: str, whole: bool) -> tuple[str, ...]:
    """What a file of pictures and that of their labels have in common: what `*` and `?` of their patterns stand for, but for idx3 and idx1.

    Folders named after what they hold (images, labels) are one.
    """
    stands_for = "".join({"*": "(.*)", "?": "(.)"}.get(part, re.escape(part)) for part in re.split(r"([*?])", pattern.lower()))
    base = entry.folders_and_name[1].lower()
    found = re.fullmatch(stands_for, base)  # None: the pattern has a set of letters
    parts = found.groups() if found else (re.sub("images?|labels?", "", base),)
    parts = tuple(re.sub(r"[-_.]+", "-", re.sub("idx[13]", "idx", part.removesuffix("" if whole else ".gz"))) for part in parts)
    folder = ["" if re.fullmatch("images?|labels?", name.lower()) else name for name in entry.folders_and_name[0].split("/")]
    return entry.from_version, "/".join(folder), *parts


def _take_pair(
    store: ObjectStore,
    source: IdxSection,
    pictures: Entry | None,
    labels: Entry | None,
    names: Mapping[str, str],
    done: Scanned,
    refuse: Callable[[Entry, str, str], None],
) -> None:
    """The rows of a pair of IDX files, or why they give none: a file alone, damaged, or of another length than the other."""
    found: list[np.ndarray] = []
    for entry, other, dimensions, missing in ((pictures, labels, 3, "no_labels"), (labels, pictures, 1, "no_images")):
        if entry is None:
            continue
        if other is None:
            refuse(entry, missing, f"{posixpath.basename(entry.path)}: no file beside it has the same name but for that")
            continue
        try:
            found.append(_read_idx(store, entry, dimensions))
        except idx.BadIdx as error:
            refuse(entry, error.code, str(error))
    if pictures is None or labels is None or len(found) < 2:
        for entry in (pictures, labels):
            if entry is not None and names[entry.key] not in done.refused:
                refuse(entry, "no_labels" if entry is pictures else "no_images", "the other file of the pair is refused")
        return
    if len(found[0]) != len(found[1]):
        for entry in (pictures, labels):
            refuse(entry, "count_mismatch", f"{len(found[0])} pictures, {len(found[1])} labels")
        return
    images_of, labels_of = (found[0].transpose(0, 2, 1) if source.transposed else found[0]), found[1].tolist()
    done.idx |= {names[entry.key]: entry for entry in (pictures, labels)}
    where = names[pictures.key]
    for number, (pixels, label) in enumerate(zip(images_of, labels_of, strict=True), start=1):
        row = Row(where, number, f"{where}#{number}", source.origin, source.holdout, label, pixels=pixels)
        if not 0 <= label < len(LABELS):
            row.reject("bad_label", f"{row.name}: {label}")
        done.rows.append(row)


def _read_idx(store: ObjectStore, entry: Entry, dimensions: int) -> np.ndarray:
    """Raises BadIdx."""
    if entry.size == 0:
        raise idx.BadIdx("empty_file", "0 bytes")
    if entry.size > idx.MAX_BYTES:
        raise idx.BadIdx("too_large_idx", f"{entry.size} bytes, the limit is {idx.MAX_BYTES}")
    if dimensions == 1:  # no more labels than there can be pictures
        return idx.read(dataset.open_entry(store, entry), 1, max_bytes=idx.MAX_BYTES // strokes.SIDE**2)
    return idx.read(dataset.open_entry(store, entry), dimensions, side=strokes.SIDE)


def _read_index(store: ObjectStore, entry: Entry) -> list[tuple[int, Any]] | Rejected:
    """(line, item) of an index, unjudged, or why the file is none."""
    if entry.size == 0:
        return Rejected("empty_file", "0 bytes")
    if entry.size > MAX_INDEX_BYTES:
        return Rejected("too_large_index", f"{entry.size} bytes, the limit is {MAX_INDEX_BYTES}")
    data = b"".join(dataset.open_entry(store, entry))
    if problem := too_many_values(data):
        return Rejected("too_large_index", problem)
    if is_lfs_pointer(data):
        return Rejected(LFS_POINTER, data[:EXCERPT].decode("utf-8", "replace"))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Rejected("not_an_index", str(error))
    if entry.path.lower().endswith(".jsonl"):
        return [(number, _json(line)) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    try:
        reader = csv.DictReader(io.StringIO(text))
        if twice := unambiguous.named_twice(reader.fieldnames or ()):
            return Rejected("not_an_index", twice)
        if not {"image", "label"} <= set(reader.fieldnames or ()):
            return Rejected("not_an_index", f"columns {', '.join(reader.fieldnames or ())[:80]}, not image and label")
        return [(reader.line_num, _item(row)) for row in reader]
    except csv.Error as error:
        return Rejected("not_an_index", str(error))


def _item(row: Mapping[str | None, Any]) -> Any:
    """A line of a CSV as one of JSON; as it is when it has more cells than the header, for then nobody knows which is which."""
    if None in row:
        return ",".join(map(str, row.values()))
    return {"file": row.get("image"), "label": row.get("label"), "writer": row.get("writer")}


def _json(line: str) -> Any:
    try:
        return unambiguous.loads_each(line)
    except (ValueError, RecursionError):
        return line


def _is_text(value: str) -> bool:
    """Without half of a surrogate pair, which JSON may hold and nothing else."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _drawn(names: Mapping[str, str], index: Entry, number: int, item: Any, by_path: Paths, source: DrawnSection) -> Row:
    """One line of an index as a row."""
    row = Row(names[index.key], number, shown(item), source.origin, source.holdout)
    path, label = (item.get("file"), item.get("label")) if isinstance(item, dict) else (None, None)
    writer = item.get("writer") if isinstance(item, dict) else None
    if not isinstance(path, str) or not isinstance(label, str | int) or isinstance(label, bool):
        row.reject("malformed_row")
        return row
    if not isinstance(writer, str | int | None) or isinstance(writer, bool) or not _is_text(str(writer)):
        row.reject("malformed_row", f"the writer of {path}: {shown(writer)}")
        return row
    found = by_path.find(index, path, beside_only=True)
    if isinstance(found, tuple):
        row.reject(*found)
        return row
    row.entry, row.name, row.id, row.writer = found, names[found.key], found.sha256, None if writer in (None, "") else str(writer)
    row.origin = USERS if item.get("origin") == USERS else row.origin
    if str(label) not in LABELS:
        row.reject("bad_label", f"{path}: {label!r}")
    else:
        row.label = int(label)
    return row


# --- rows to pictures -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """What is known of a picture that can be used: its file's bytes, and uint8 [28, 28] as a model sees it."""

    image: bytes
    prepared: np.ndarray


def inspect(store: ObjectStore, rows: Sequence[Row], threads: int, known: Mapping[str, Seen]) -> dict[str, Seen]:
    """Prepare each picture, and turn away what cannot be used; id -> what is known of the others.

    Args:
        known: pictures that the parent's table has prepared by the same rules.
    """

    def look(some: Sequence[Row]) -> list[tuple[str, Seen]]:
        found = []
        for row in some:
            try:
                found.append((row.id, known.get(row.id) or _seen(store, row)))
            except BadImage as error:
                row.reject(error.code, f"{row.name}: {error.message}")
        return found

    with ThreadPoolExecutor(max(1, threads)) as pool:
        return dict(pair for some in pool.map(look, _batches(rows, PREPARED_AT_ONCE)) for pair in some)


def _batches(rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _seen(store: ObjectStore, row: Row) -> Seen:
    """Raises BadImage."""
    from PIL import Image

    if row.pixels is not None:
        out = io.BytesIO()
        Image.fromarray(row.pixels).save(out, "PNG")
        return Seen(out.getvalue(), strokes.prepared(row.pixels))
    assert row.entry is not None
    if row.entry.size > LIMITS.max_bytes:
        raise BadImage("too_large_file", f"{row.entry.size} bytes", "", "")
    data = b"".join(dataset.open_entry(store, row.entry))
    return Seen(data, strokes.prepared(images.load(data, limits=LIMITS)))


def keep_one_of_each(rows: Iterable[Row]) -> None:
    """The same picture twice: with one label the first row stays, with two none does. What is measured on stays where it is."""
    same: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        same[row.id].append(row)
    for found in same.values():
        if len({row.label for row in found}) > 1:
            for row in found:
                other = next(o for o in found if o.label != row.label)
                row.reject("conflicting_labels", f"{row.name}: {row.label} in {row.where}, {other.label} in {other.where}")
        for row in sorted(found, key=lambda row: not row.holdout)[1:]:
            if row.rejected is None:
                row.reject("duplicate_image", f"{row.name} = {found[0].name}")


def families(rows: Sequence[Row], bits: Mapping[str, np.ndarray], at_most: int) -> list[list[Row]]:
    """Rows that must be on one side of a split: of one writer, or nearly the same drawing; and so on in a chain."""
    import numpy as np

    union, first = Union(len(rows)), dict[bytes, int]()
    for number, row in enumerate(rows):
        for key in row.keys:
            union.join(number, first.setdefault(key, number))
    drawn = [number for number, row in enumerate(rows) if row.id in bits]
    if drawn:
        for one, other in near_pairs(np.stack([bits[rows[number].id] for number in drawn]), at_most):
            union.join(drawn[one], drawn[other])
    found: dict[int, list[Row]] = defaultdict(list)
    for number, row in enumerate(rows):
        found[union.find(number)].append(row)
    return list(found.values())


def assign(engine: Engine, manifest: Manifest, related: Sequence[Sequence[Row]], section: DatasetSection) -> dict[str, str]:
    """Id -> split of the rows that stay. A family new to the ledger falls by hash, with a file that is held out into the holdout; a known
    one stays where it was first. Where parts of a family are in different splits, only the part that was trained on stays.

    What users drew is never measured on, and takes nothing away from what is: like a held-out drawing, it goes."""
    with engine.begin() as connection:
        known = dataset.known_splits(connection, manifest.system, {key for family in related for row in family for key in row.keys})
        related = [_without_copies(family, known) for family in related]
        wanted: dict[bytes, str] = {}
        for family in related:
            before = {known[key] for row in family for key in row.keys if key in known}
            split = next((split for split in dataset.SPLITS if split in before), None) or _by_hash(family, section)
            wanted |= dict.fromkeys((key for row in family for key in row.keys), split)
        claimed = dataset.assign_splits(connection, manifest.system, manifest.version, wanted.items())
    crash.reach("cleaned.after_splits")
    splits: dict[str, str] = {}
    for family in related:
        for row in family:
            found = {claimed[key] for key in row.keys}
            if len(found) > 1:
                row.reject("in_other_split", f"{row.name}: {' and '.join(sorted(found))}")
            else:
                splits[row.id] = found.pop()
        staying = [row for row in family if row.rejected is None]
        first = min(staying, key=lambda row: dataset.SPLITS.index(splits[row.id]), default=None)
        for row in staying:
            if first is not None and splits[row.id] != splits[first.id]:
                row.reject("near_duplicate_in_train", f"{row.name} ({splits.pop(row.id)}) is like {first.name} ({splits[first.id]})")
    return splits


def _without_copies(family: Sequence[Row], known: Mapping[bytes, str]) -> list[Row]:
    """The family without what users drew, if anything of it is measured on."""
    held = any(row.holdout or (row.origin != USERS and known.get(row.keys[-1]) == "holdout") for row in family)
    for row in family:
        if held and row.origin == USERS:
            row.reject("like_held_out")
    return [row for row in family if row.rejected is None]


def _by_hash(family: Sequence[Row], section: DatasetSection) -> str:
    """Where a family falls: the same on every machine. Hashed once more, as the least of several digests is not evenly spread.

    IDX has its own file to hold out, so that only drawings are held out by hash."""
    if any(row.holdout for row in family):
        return "holdout"
    unit = int.from_bytes(hashlib.sha256(min(row.keys[0] for row in family)).digest()[:6], "big") / (1 << 48)
    held = section.holdout_fraction if all(row.entry is not None and row.origin != USERS for row in family) else 0.0
    if unit < held:
        return "holdout"
    return "validation" if unit < held + section.validation_fraction else "train"


# --- cleaning -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cleaned:
    """The cleaned table and the account of every row and file.

    Attributes:
        quarantined: reason code -> rows.
        splits: split -> rows.
        labels, origins: label, origin -> rows.
        refused_files: source -> reason code.
        unchanged: the table was there already, made by the same rules.
    """

    table: PublishedTable
    rows_in: int
    accepted: int
    quarantined: Mapping[str, int]
    splits: Mapping[str, int]
    labels: Mapping[str, int]
    origins: Mapping[str, int]
    refused_files: Mapping[str, str]
    unchanged: bool = False


@dataclass
class _Judged:
    """All rules applied: the rows that stay in the table's order, with what the table wants of them."""

    rows: list[Row]
    seen: Mapping[str, Seen]
    splits: Mapping[str, str]
    family: Mapping[str, str]


def rules_digest(section: DatasetSection) -> str:
    """Changes when, and only when, the same files could be cleaned differently: the code that reads and prepares, and the configuration."""
    of = {"idx", "drawn", "ignored_files", "near_duplicate_bits", "holdout_fraction", "validation_fraction"}
    return hashlib.sha256((code_version(__name__) + canonical(section.model_dump(mode="json", include=of))).encode()).hexdigest()


def clean(engine: Engine, store: ObjectStore, manifest: Manifest, section: DatasetSection, scratch: Path, *, threads: int) -> Cleaned:
    """Clean a frozen version into Parquet shards in the store. The same rules again change nothing.

    Args:
        scratch: an empty folder of this call's own.
        threads: pictures prepared at once.

    Raises:
        NothingLeft: a digit is missing in training or in the holdout; the version is refused, its rows and files say why.
    """
    rules = rules_digest(section)
    before = dataset.find_table(engine, manifest.system, manifest.version, manifest.sha256)
    same = before is not None and (before.rules, before.forgotten) == (rules, len(manifest.forgotten))
    if before is not None and same and accounts.is_complete(engine, store, before):
        return _account(before, unchanged=True)
    scanned = scan(store, manifest, section)
    judged = _judge(engine, store, manifest, section, scanned, _known(engine, store, manifest, rules, scratch / "parent"), threads)
    accounts.check_account(manifest, scanned, len(judged.rows))
    if problem := _nothing_left(judged, scanned):
        accounts.store_rows(engine, manifest, scanned, ROW_REASONS, FILE_REASONS, refusal=problem)
        raise dataset.NothingLeft(f"{manifest.system} {manifest.version} is refused: {problem}. Land the corrected data under a new name.")
    body = {
        "rows_in": len(scanned.rows),
        "files": scanned.files(),
        "quarantined": dict(sorted(accounts.quarantined(scanned.rows).items())),
        "splits": dict(sorted(Counter(judged.splits[row.id] for row in judged.rows).items())),
        "labels": dict(sorted(Counter(LABELS[row.label] for row in judged.rows).items())),
        "origins": dict(sorted(Counter(row.origin for row in judged.rows).items())),
        "refused_files": {name: what.code for name, (_, what) in sorted(scanned.refused.items())},
    }
    parts = dataset.upload_parts(store, manifest, list(_write_shards(judged, scratch)))
    crash.reach("cleaned.after_parts")
    forgotten = len(manifest.forgotten)
    table = dataset.PublishedTable(manifest.system, manifest.version, manifest.sha256, len(judged.rows), rules, parts, body, forgotten)
    accounts.store_rows(engine, manifest, scanned, ROW_REASONS, FILE_REASONS, refusal=None)
    crash.reach("cleaned.after_commit")
    dataset.publish_table(engine, store, table)
    return _account(table)


def _known(engine: Engine, store: ObjectStore, manifest: Manifest, rules: str, folder: Path) -> dict[str, Seen]:
    """What the parent's table has of its pictures, when it was made by the same rules: a hundred new drawings must not cost 70,000 old."""
    if manifest.parent is None:
        return {}
    import numpy as np
    import pyarrow.parquet as pq

    parent = dataset.read_manifest(engine, store, manifest.system, manifest.parent)
    table = dataset.find_table(engine, manifest.system, manifest.parent, parent.sha256)
    if table is None or (table.rules, table.forgotten) != (rules, len(parent.forgotten)):
        return {}
    found = dataset.load_table(store, engine, manifest.system, manifest.parent, folder)
    seen: dict[str, Seen] = {}
    for file in sorted(found.folder.glob("*.parquet")):
        for batch in pq.ParquetFile(file).iter_batches(columns=["id", "image", "prepared"], batch_size=ROW_GROUP_ROWS):
            for name, image, pixels in zip(*(batch.column(column).to_pylist() for column in ("id", "image", "prepared")), strict=True):
                seen[name] = Seen(image, np.frombuffer(pixels, np.uint8).reshape(strokes.SIDE, strokes.SIDE))
    return seen


def _judge(
    engine: Engine,
    store: ObjectStore,
    manifest: Manifest,
    section: DatasetSection,
    scanned: Scanned,
    known: Mapping[str, Seen],
    threads: int,
) -> _Judged:
    """The rules in their order; each looks only at what the rules before it left."""
    for row in scanned.alive():
        if row.pixels is not None:
            row.id = hashlib.sha256(row.pixels.tobytes()).hexdigest()
        elif row.entry is not None and row.entry.size == 0:
            row.reject("empty_file")  # before its bytes are compared: all empty files are alike
    keep_one_of_each(scanned.alive())
    seen = inspect(store, scanned.alive(), threads, known)
    bits = {row.id: strokes.cells_of(images.load(seen[row.id].image)) for row in scanned.alive() if row.entry is not None}
    related = families(scanned.alive(), bits, section.near_duplicate_bits)
    splits = assign(engine, manifest, related, section)
    family = {row.id: min(other.writer or other.id[:12] for other in members) for members in related for row in members}
    # By split: who reads the holdout reads few row groups.
    stay = sorted(scanned.alive(), key=lambda row: (dataset.SPLITS.index(splits[row.id]), row.id))
    return _Judged(stay, seen, splits, family)


def _account(table: PublishedTable, *, unchanged: bool = False) -> Cleaned:
    kept = ("rows_in", "quarantined", "splits", "labels", "origins", "refused_files")
    return Cleaned(table, accepted=table.rows, unchanged=unchanged, **{name: table.body[name] for name in kept})


def _nothing_left(judged: _Judged, scanned: Scanned) -> str | None:
    """Why nothing can be trained on or measured on these digits, or None."""
    there = {(judged.splits[row.id], row.label) for row in judged.rows}
    missing = [f"no {split} picture is a {label}" for split in ("train", "holdout") for label in LABELS if (split, int(label)) not in there]
    if not missing and not any(split == "validation" for split, _ in there):
        missing = ["no picture is for validation"]
    if not missing:
        return None
    return (
        f"{', '.join(missing[:3])}{' and so on' if len(missing) > 3 else ''} of {len(scanned.rows)} rows ({accounts.why_nothing(scanned)})"
    )


def _write_shards(judged: _Judged, scratch: Path) -> Iterator[Path]:
    """The table as Parquet files: few large objects, whatever the number of digits."""
    import pyarrow.parquet as pq

    schema = table_schema()
    scratch.mkdir(parents=True, exist_ok=True)
    for shard, rows in enumerate(_batches(judged.rows, SHARD_ROWS)):
        target = scratch / f"shard-{shard:05d}.parquet"
        with pq.ParquetWriter(target, schema, compression={"prepared": "zstd"}, use_dictionary=["group", "split", "origin"]) as writer:
            for some in _batches(rows, ROW_GROUP_ROWS):
                writer.write_table(_as_table(judged, some, schema))
        yield target


def table_schema() -> pa.Schema:
    """The columns of the cleaned table, in order."""
    import pyarrow as pa

    pictures = [("image", pa.binary()), ("prepared", pa.binary(strokes.SIDE**2))]
    text = [(name, pa.string()) for name in ("group", "split", "origin", "path")]
    return pa.schema([("id", pa.string()), *pictures, ("label", pa.int8()), *text])


def _as_table(judged: _Judged, rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    columns = {
        "id": [row.id for row in rows],
        "image": [judged.seen[row.id].image for row in rows],
        "prepared": [judged.seen[row.id].prepared.tobytes() for row in rows],
        "label": [row.label for row in rows],
        "group": [judged.family[row.id] for row in rows],
        "split": [judged.splits[row.id] for row in rows],
        "origin": [row.origin for row in rows],
        "path": [row.name for row in rows],
    }
    return pa.table(columns, schema=schema)


def load_cleaned(store: ObjectStore, engine: Engine, version: str, folder: Path) -> CleanedTable:
    """The cleaned digits of a version, downloaded to `folder` and verified: what training and evaluation read."""
    return dataset.load_table(store, engine, SYSTEM, version, folder)


# --- reading the table ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Digits:
    """The rows of one split, sorted by id.

    Attributes:
        images: uint8 [rows, 28, 28], prepared.
        labels: int64 [rows].
        origins, groups, ids: one text per row.
        files: the pictures as they came, PNG or what was drawn; empty unless asked for.
    """

    ids: list[str]
    images: np.ndarray
    labels: np.ndarray
    origins: np.ndarray
    groups: list[str]
    files: list[bytes]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def sha256(self) -> str:
        """Of all rows, with their labels."""
        digest = hashlib.sha256()
        for name, label in zip(self.ids, self.labels.tolist(), strict=True):
            digest.update(f"{name} {label}\n".encode())
        return digest.hexdigest()


def read_digits(table: CleanedTable, split: str, *, rate: float = 1.0, files: bool = False) -> Digits:
    """The rows of `split`, or about `rate` of them, chosen by id: the same digit is in or out in every version."""
    import numpy as np
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    columns = ["id", "prepared", "label", "origin", "group", *(["image"] if files else [])]
    found = ds.dataset(table.folder, format="parquet").to_table(columns=columns, filter=pc.field("split") == split).sort_by("id")
    if rate < 1:
        found = found.filter([_share_of(name) < rate for name in found["id"].to_pylist()])
    pixels = b"".join(found["prepared"].to_pylist())
    return Digits(
        found["id"].to_pylist(),
        np.frombuffer(pixels, np.uint8).reshape(-1, strokes.SIDE, strokes.SIDE),
        found["label"].to_numpy().astype(np.int64),
        np.array(found["origin"].to_pylist(), dtype=str),
        found["group"].to_pylist(),
        found["image"].to_pylist() if files else [],
    )


def _share_of(name: str) -> float:
    """A number from 0 to 1 that depends on the id alone. Hashed again: the id may have served another choice already."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def contact_sheet(store: ObjectStore, table: PublishedTable, scratch: Path, limit: int) -> bytes:
    """A PNG of at most `limit` bytes: a few digits of each label of each origin as they came, each above what the model sees of it."""
    from PIL import Image

    scratch.mkdir(parents=True, exist_ok=True)
    part = table.parts[-1]  # sorted by split: the last shard ends with the holdout
    dataset.fetch_part(store, table, part, scratch)
    found = read_digits(CleanedTable(table.system, table.version, table.manifest_sha256, scratch, table.rows), "holdout", files=True)
    side = strokes.SIDE
    rows: list[list[int]] = []
    for origin in sorted(set(found.origins.tolist())):
        of_label = [[n for n in range(len(found)) if found.labels[n] == label and found.origins[n] == origin] for label in range(10)]
        rows += [[numbers[n] for numbers in of_label if len(numbers) > n] for n in range(SHEET_PER_LABEL)]
    sheet = Image.new("L", (10 * (side + 2), max(1, len(rows)) * (2 * side + 4)), 128)
    for y, numbers in enumerate(rows):
        for x, number in enumerate(numbers):
            raw = images.decode(found.files[number]).convert("L").resize((side, side), Image.Resampling.BOX)
            for down, tile in ((0, raw), (side, Image.fromarray(found.images[number]))):
                sheet.paste(tile, (x * (side + 2) + 1, y * (2 * side + 4) + 1 + down))
    return images.png_within(limit, ((sheet, colours) for colours in (64, 16, 8, 4, 2)))


# --- the contract ---------------------------------------------------------------------------------------------------------------


def read_table(table: CleanedTable) -> pd.DataFrame:
    """The table without its pictures; `blank` says whether a prepared one shows nothing."""
    import pandas as pd
    import pyarrow.parquet as pq

    found: list[pd.DataFrame] = []
    for file in sorted(table.folder.glob("*.parquet")):
        for batch in pq.ParquetFile(file).iter_batches(batch_size=ROW_GROUP_ROWS):
            blank = [not any(pixels) for pixels in batch.column("prepared").to_pylist()]
            empty = [not image for image in batch.column("image").to_pylist()]
            found.append(batch.drop_columns(["image", "prepared"]).to_pandas().assign(blank=blank, empty=empty))
    return pd.concat(found, ignore_index=True)


def check_contract(frame: pd.DataFrame) -> list[Violation]:
    """What is wrong with a cleaned table (of `read_table`); nothing when it keeps the contract."""
    import pandera.pandas as pa

    text = {name: pa.Column(str, pa.Check.str_length(min_value=1)) for name in ("group", "path")}
    schema = pa.DataFrameSchema(
        {
            "id": pa.Column(str, pa.Check.str_matches("^[0-9a-f]{64}$"), unique=True),
            "label": pa.Column("int8", pa.Check.isin(list(range(len(LABELS))))),
            "split": pa.Column(str, pa.Check.isin(list(dataset.SPLITS))),
            "origin": pa.Column(str, pa.Check.isin(list(ORIGINS))),
            "blank": pa.Column(bool, pa.Check.eq(False)),
            "empty": pa.Column(bool, pa.Check.eq(False)),
            **text,
        },
        strict=True,
    )
    return violations(schema, frame, lambda found: torn(found["group"], found["split"], "no writer in two splits"))


def contract(store: ObjectStore, engine: Engine, version: str, folder: Path) -> tuple[int, list[Violation]]:
    """Rows of a cleaned version, downloaded to `folder` and verified, and what is wrong with them."""
    table = load_cleaned(store, engine, version, folder)
    return table.rows, check_contract(read_table(table))


def account(engine: Engine, store: ObjectStore, version: str) -> Account:
    """The account of a cleaned version. Raises DatasetError: it is not cleaned."""
    return accounts.account(engine, store, SYSTEM, version)
