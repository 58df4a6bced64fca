"""Photos of tires: from the frozen files of a dataset version to the cleaned table. Every file and every item of an index ends as accepted
or quarantined with a reason.

A row is one claim that a picture has a label: an item of a JSON index, or a picture in a folder that no index names. Belongs here: reading
both forms, the rules, the families that never cross a split, the table. Does not belong here: training, Dagster, decoding (`images.py`).
"""

from __future__ import annotations

import hashlib
import posixpath
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mlops_assets import crash, images, unambiguous
from mlops_assets.files import LFS_POINTER, LFS_REASON, PATH_REASONS, Paths, is_lfs_pointer, normal_path, too_many_values
from mlops_assets.formats import OTHER_SUFFIXES, SUFFIXES
from mlops_assets.ingest import accounts, examples
from mlops_assets.ingest.accounts import Account
from mlops_assets.ingest.likeness import Union, difference_hash, near_pairs
from mlops_assets.ingest.rows import EXCERPT, Rejected, Violation, shown, torn, violations
from mlops_assets.lifecycle import dataset
from mlops_assets.lifecycle.system import CleanedTable
from mlops_assets.settings import canonical
from mlops_assets.sources import code_version
from mlops_assets.systems.tires.config import LABELS

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    from PIL.Image import Image
    from sqlalchemy import Engine

    from mlops_assets.lifecycle.dataset import Entry, Manifest, PublishedTable
    from mlops_assets.store import ObjectStore
    from mlops_assets.systems.tires.config import DatasetSection

SYSTEM: Final = "tires"
LABELS_KO: Final = {0: "정상", 1: "결함"}

#: Why a row is turned away -> what that means, for the metadata. Those of `images.BadImage` among them.
ROW_REASONS: Final = {
    **examples.REASONS,
    "malformed_row": "an item of an index without a text FilePath and a label_value",
    **PATH_REASONS,
    "unknown_label": "neither its folders nor its label_value is a label in configs/tires.yaml",
    "empty_file": "no byte",
    "too_large_file": "more bytes than a picture may have",
    "not_an_image": "bytes that are no picture",
    LFS_POINTER: LFS_REASON,
    "bad_format": "a picture of a format that is not read",
    "too_many_pixels": "more pixels than a picture may have",
    "truncated": "a picture that ends too early, or is damaged",
    "animated": "several frames",
    "wrong_extension": "a name that says another format than the bytes have",
    "conflicting_labels": "the same picture with both labels, by its folders, its indexes, or the other",
    "duplicate_image": "an earlier row has the same picture",
    "near_duplicate_in_train": "like a picture, or of the same piece, that training or validation has had since an earlier version",
    "in_other_split": "earlier versions have the picture in one split and its group in another",
}
FILE_REASONS: Final = {
    "unexpected_file": "has neither a picture's name nor that of an index of configs/tires.yaml",
    "empty_file": "holds no byte",
    "too_large_index": "is too large for an index",
    LFS_POINTER: f"is {LFS_REASON}",
    "not_json": "is not JSON in UTF-8",
    "wrong_shape": "has no list at annotation.data, an empty one, or two",
}

MAX_INDEX_BYTES: Final = 256 * 1024**2
SHARD_BYTES: Final = 64 * 1024**2
ROW_GROUP_BYTES: Final = 8 * 1024**2
SHEET_PER_LABEL: Final = 16
#: The contact sheet's photos are so large (pixels a side) and it has so many colours, the first that fits.
SHEET_SIZES: Final = ((96, 64), (80, 48), (64, 32), (48, 24), (32, 16), (16, 8))
EXAMPLES: Final = 20


# --- files to rows --------------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """One claim: `source` and `line` say where it stands (the item of an index, from 1; 0 is a picture's own file).

    `rejected` is set by the first rule that turns it away; it keeps its `entry`, if it has one, for the account of files. `said`: every
    label that its index or folders say, also when they disagree.
    """

    source: str
    line: int
    name: str
    entry: Entry | None = None
    label: int | None = None
    group: str | None = None
    rejected: Rejected | None = None
    said: frozenset[int] = frozenset()

    def reject(self, code: str, excerpt: str = "") -> None:
        self.rejected = Rejected.of(code, excerpt or self.name)

    @property
    def where(self) -> str:
        return f"{self.source} item {self.line}" if self.line else self.source

    @property
    def sha256(self) -> str:
        assert self.entry is not None
        return self.entry.sha256

    @property
    def group_key(self) -> bytes:
        """The group in the split ledger; a photo without one is its own, whatever its name."""
        return bytes.fromhex(self.sha256) if self.group is None else hashlib.sha256(b"group\0" + self.group.encode()).digest()

    @property
    def keys(self) -> tuple[bytes, bytes]:
        """What the ledger remembers of it: its group and its bytes, which may come again under another name."""
        return self.group_key, bytes.fromhex(self.sha256)


@dataclass
class Scanned:
    """The rows of a version in the order of its files (the parent's first), its indexes, and the files turned away as a whole."""

    rows: list[Row] = field(default_factory=list)
    indexes: dict[str, Entry] = field(default_factory=dict)
    refused: dict[str, tuple[Entry, Rejected]] = field(default_factory=dict)

    def alive(self) -> list[Row]:
        return [row for row in self.rows if row.rejected is None]

    def files(self) -> dict[str, int]:
        """How many files are what; together they are all files of the manifest."""
        others = self.holders() | {entry.key for entry, _ in self.refused.values()}
        pictures = {row.entry.key for row in self.rows if row.entry is not None} - others
        return {"pictures": len(pictures), "indexes": len(self.indexes), "refused": len(self.refused)}

    def holders(self) -> set[str]:
        """Keys of the files that hold rows."""
        return {entry.key for entry in self.indexes.values()}


def scan(store: ObjectStore, manifest: Manifest, section: DatasetSection) -> Scanned:
    """The rows of both landing forms, each with its label and group or the first reason against it. Reads indexes, not pictures."""
    ordered = sorted(manifest.entries, key=lambda entry: (entry.from_version == manifest.version, entry.from_version, entry.path))
    names = {entry.key: _name_of(entry, manifest) for entry in ordered}
    done = Scanned()
    readers = _Labels(section, ordered)
    by_path = Paths(ordered)
    for entry in (entry for entry in ordered if _matches(entry.path, section.index_files)):
        items = _read_index(store, entry)
        if isinstance(items, Rejected):
            done.refused[names[entry.key]] = (entry, items)
            continue
        done.indexes[names[entry.key]] = entry
        done.rows += [_indexed(names, entry, number, item, by_path, readers) for number, item in enumerate(items, start=1)]
    named = {row.entry.key for row in done.rows if row.entry is not None}
    for entry in ordered:
        if entry.key in named or names[entry.key] in done.refused or names[entry.key] in done.indexes:
            continue
        if not _is_picture(entry):
            done.refused[names[entry.key]] = (entry, Rejected("unexpected_file", posixpath.basename(entry.path)))
            continue
        row = Row(names[entry.key], 0, names[entry.key], entry)
        _take_label(row, readers.of_folders(entry))
        done.rows.append(row)
    _set_no_examples_aside(done.rows, ordered, section)
    _set_masks_aside(done.rows, ordered, section)
    for row in done.rows:
        row.group = _group_of(row.name, section)
    return done


def _name_of(entry: Entry, manifest: Manifest) -> str:
    return entry.path if entry.from_version == manifest.version else f"{entry.from_version}/{entry.path}"


def _suffix(path: str) -> str:
    return posixpath.splitext(path)[1].lower()


def _is_picture(entry: Entry) -> bool:
    """By its name."""
    return _suffix(entry.path) in SUFFIXES or _suffix(entry.path) in OTHER_SUFFIXES


def _matches(path: str, patterns: Sequence[str]) -> bool:
    base = posixpath.basename(path.replace("\\", "/")).lower()
    return any(fnmatchcase(base, pattern.lower()) for pattern in patterns)


def _plain(text: str) -> str:
    """Korean names come decomposed from some file systems; case is nobody's meaning."""
    return unicodedata.normalize("NFC", text).strip().casefold()


class _Labels:
    """Names of folders and values of `label_value` -> label number."""

    def __init__(self, section: DatasetSection, entries: Iterable[Entry]) -> None:
        self.known = {_plain(name): number for number, label in LABELS.items() for name in section.labels[label]}
        self._numbers_are_none: set[str] = set()
        for entry in entries:
            words, numbers = self._named(entry.path)
            if words and not words.keys() >= numbers.keys():
                self._numbers_are_none.add(entry.from_version)

    def _named(self, path: str) -> tuple[dict[int, str], dict[int, str]]:
        """(label -> the folder that says it) by words, and by numbers."""
        words: dict[int, str] = {}
        numbers: dict[int, str] = {}
        for folder in (normal_path(path) or path).split("/")[:-1]:
            if (label := self.known.get(_plain(folder))) is not None:
                (numbers if folder.strip().isdecimal() else words).setdefault(label, folder)
        return words, numbers

    def by_words(self, path: str) -> dict[int, str]:
        """Label -> the folder that says it, of those that are no number: a number may count cameras, lots or days as well."""
        return self._named(path)[0]

    def of_folders(self, entry: Entry) -> dict[int, str]:
        """Label -> the folder that says it. A number says one where no word does, and nowhere in the version is something else."""
        words, numbers = self._named(entry.path)
        return words or ({} if entry.from_version in self._numbers_are_none else numbers)

    def numbers_are_none(self, entry: Entry) -> None:
        """An index says otherwise than a number in a path: it counts something else in this version."""
        self._numbers_are_none.add(entry.from_version)

    def of_number(self, path: str) -> dict[int, str]:
        return self._named(path)[1]

    def of_value(self, value: object) -> int | None:
        if isinstance(value, bool) or not isinstance(value, str | int):
            return None
        return self.known.get(_plain(str(value)))


def _read_index(store: ObjectStore, entry: Entry) -> list[Any] | Rejected:
    """The items of an index, unjudged, or why the file is none."""
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
        content = unambiguous.loads_each(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return Rejected("not_json", str(error)[:EXCERPT])
    annotation = content.get("annotation") if isinstance(content, dict) else None
    for twice in (content, annotation):
        if isinstance(twice, unambiguous.Ambiguous):
            return Rejected("wrong_shape", str(twice)[:EXCERPT])
    items = annotation.get("data") if isinstance(annotation, dict) else None
    if not isinstance(items, list) or not items:
        return Rejected("wrong_shape", f"found {type(content).__name__}: {shown(content)[:80]}")
    return items


def _indexed(names: Mapping[str, str], index: Entry, number: int, item: object, paths: Paths, labels: _Labels) -> Row:
    """One item of an index as a row."""
    row = Row(names[index.key], number, shown(item))
    path = item.get("FilePath") if isinstance(item, dict) else None
    if not isinstance(item, dict) or not isinstance(path, str) or item.get("label_value") is None:
        row.reject("malformed_row")
        return row
    found = paths.find(index, path)
    if isinstance(found, tuple):
        row.reject(*found)
        return row
    row.entry, row.name = found, names[found.key]
    value = item["label_value"]
    in_index = labels.of_value(value)
    by_folder = {label: f"the folder {folder}" for label, folder in labels.by_words(found.path).items()}
    if in_index is None:
        row.reject("unknown_label", f"{shown(value)!r} of {path}")
    else:
        _take_label(row, by_folder | {in_index: f"{value!r} in the index"})
    if row.label is not None and not labels.of_number(found.path).keys() <= {row.label}:
        labels.numbers_are_none(found)
    return row


def _take_label(row: Row, said: Mapping[int, str]) -> None:
    """The label that everything says, or why there is none: (label -> what says it)."""
    row.said = frozenset(said)
    if len(said) == 1:
        (row.label,) = said
    elif said:
        readings = " and ".join(f"{LABELS[label]} by {what}" for label, what in sorted(said.items()))
        row.reject("conflicting_labels", f"{row.name}: {readings}")
    else:
        row.reject("unknown_label")


def _set_masks_aside(rows: Iterable[Row], entries: Iterable[Entry], section: DatasetSection) -> None:
    beside: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        if _suffix(entry.path) in SUFFIXES:
            beside[posixpath.splitext(entry.key)[0]].add(entry.key)
    for row in rows:
        if row.entry is None or not _matches(row.entry.path, section.ignored_files):
            continue
        photos = beside[posixpath.splitext(row.entry.key)[0]] - {row.entry.key}
        if any(not _matches(key, section.ignored_files) for key in photos):
            row.reject(examples.MASK)


def _set_no_examples_aside(rows: Iterable[Row], entries: Iterable[Entry], section: DatasetSection) -> None:
    """What its place or its name shows to be no photo, whatever label its folders have."""
    labels = {_plain(name) for names in section.labels.values() for name in names}
    places = {entry.key: examples.by_place(entry.path, labels) for entry in entries if _is_picture(entry)}
    photos = {examples.stem(entry.path) for entry in entries if entry.key in places and places[entry.key] is None}
    wanted = {*section.set_aside, examples.SYSTEM_FILE}
    for row in rows:
        if row.entry is None or row.entry.key not in places:
            continue
        if (place := places[row.entry.key]) in wanted and place is not None:
            row.reject(place, f"{row.name}, by its place")
        elif (named := examples.by_name(row.entry.path, photos)) is not None and named[0] in wanted:
            row.reject(named[0], f"{row.name}, by its name, of {named[1]}")


def _group_of(name: str, section: DatasetSection) -> str | None:
    found = re.search(section.group_pattern, posixpath.basename(name.replace("\\", "/"))) if section.group_pattern else None
    if found is None:
        return None
    return (found.group(1) if found.re.groups else None) or found.group(0)


# --- rows to pictures -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """What is known of a decoded picture: pixels, 256 bits of perceptual hash (4 x uint64), and what kind of picture it is."""

    width: int
    height: int
    bits: np.ndarray
    looks: examples.Looks


def keep_one_of_each(rows: Iterable[Row]) -> None:
    """The same bytes twice: with one label the first row stays; with both labels none does, whoever says so, a row that contradicts itself
    too."""
    same: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.entry is not None and (row.rejected is None or row.rejected.code == "conflicting_labels"):
            same[row.sha256].append(row)
    for found in same.values():
        alive = [row for row in found if row.rejected is None]
        if len(frozenset[int]().union(*(row.said for row in found))) > 1:
            for row in alive:
                other = next(o for o in found if o.said != row.said)
                row.reject("conflicting_labels", f"{row.name}: {_said(row)} in {row.where}, {_said(other)} in {other.where}")
        else:
            for row in alive[1:]:
                row.reject("duplicate_image", f"{row.name} = {alive[0].name}")


def _said(row: Row) -> str:
    return " and ".join(LABELS[label] for label in sorted(row.said))


def inspect(store: ObjectStore, rows: Sequence[Row], folder: Path, threads: int) -> dict[str, Picture]:
    """Bring each picture to `folder/<sha256>`, decode it, and turn away what cannot be used; digest -> what is known of the others.

    Bytes come over the network many at a time; a decoded picture may take 200 MB, so only `threads` are in memory.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def fetch(row: Row) -> None:
        assert row.entry is not None
        if 0 < row.entry.size <= images.DEFAULT.max_bytes:
            (folder / row.sha256).write_bytes(b"".join(dataset.open_entry(store, row.entry)))

    def look(row: Row) -> Picture | None:
        assert row.entry is not None
        size = row.entry.size
        if not 0 < size <= images.DEFAULT.max_bytes:
            row.reject("too_large_file" if size else "empty_file", f"{row.name}: {size} bytes")
            return None
        data = (folder / row.sha256).read_bytes()
        try:
            picture = images.decode(data)
        except images.BadImage as error:
            row.reject(error.code, f"{row.name}: {error.message}")
            return None
        promised, found = SUFFIXES.get(_suffix(row.name), "another format"), _format_of(data)
        if promised != found:
            row.reject("wrong_extension", f"{row.name}: {found}")
            return None
        return Picture(picture.width, picture.height, difference_hash(picture), examples.look(picture))

    with ThreadPoolExecutor(dataset.COPIES_AT_ONCE) as pool:
        list(pool.map(fetch, rows))
    with ThreadPoolExecutor(max(1, threads)) as pool:
        looked = list(pool.map(look, rows))
    return {row.sha256: picture for row, picture in zip(rows, looked, strict=True) if picture is not None}


def set_flat_and_sheets_aside(rows: Sequence[Row], pictures: Mapping[str, Picture], section: DatasetSection) -> None:
    """Pictures of a few flat colours beside photos are masks; those in which several others are found are sheets."""
    looks = {row.sha256: pictures[row.sha256].looks for row in rows}
    photos = sum(not one.flat for one in looks.values())
    sheets = examples.sheets_among(looks, {key: pictures[key].bits for key in looks}) if examples.SHEET in section.set_aside else {}
    for row in rows:
        if looks[row.sha256].flat and examples.MASK in section.set_aside and photos >= examples.PHOTOS_SHARE * len(rows):
            row.reject(examples.MASK, f"{row.name}: a few flat colours, beside {photos} photos")
        elif row.sha256 in sheets:
            row.reject(examples.SHEET, f"{row.name}: {sheets[row.sha256]}")


def set_small_copies_aside(
    rows: Sequence[Row], pairs: Sequence[tuple[int, int]], pictures: Mapping[str, Picture], folder: Path
) -> list[tuple[int, int]]:
    """Of photos that are alike and have one label, those far smaller and the same in every detail are thumbnails.

    Args:
        pairs: numbers of `rows` that are alike.

    Returns:
        The pairs of rows that stay, by their numbers among these.
    """

    def read(row: Row) -> Image:
        return images.decode((folder / row.sha256).read_bytes())

    def width(row: Row) -> int:
        return pictures[row.sha256].width

    for pair in pairs:
        small, large = sorted((rows[number] for number in pair), key=width)
        if small.rejected or large.rejected or small.label != large.label or width(small) > examples.THUMBNAIL_SIDE * width(large):
            continue
        if examples.is_small_copy(read(small), read(large)):
            small.reject(examples.THUMBNAIL, f"{small.name} of {large.name}")
    staying = {old: new for new, old in enumerate(number for number, row in enumerate(rows) if row.rejected is None)}
    return [(staying[one], staying[other]) for one, other in pairs if one in staying and other in staying]


def _format_of(data: bytes) -> str:
    """By the first bytes of what was decoded already."""
    magic = ((b"\xff\xd8\xff", "JPEG"), (b"\x89PNG", "PNG"), (b"RIFF", "WEBP"), (b"BM", "BMP"))
    return next((name for start, name in magic if data.startswith(start)), "unknown")


# --- families and splits --------------------------------------------------------------------------------------------------------


def families(rows: Sequence[Row], pairs: Iterable[tuple[int, int]], section: DatasetSection) -> list[list[Row]]:
    """Rows that must be on one side of a split: of one group, of one series of frames, or near duplicates; and so on in a chain.

    A near duplicate moves with its like instead of being thrown away: nothing is lost, and nothing is measured on what was trained on.
    """
    union = Union(len(rows))
    first: dict[bytes, int] = {}
    for number, row in enumerate(rows):
        for key in row.keys:
            union.join(number, first.setdefault(key, number))
    if section.series_gap is not None:
        for label in LABELS:
            frames = sorted(
                (int(row.group or 0), number) for number, row in enumerate(rows) if row.label == label and _is_number(row.group)
            )
            for (low, one), (high, other) in zip(frames, frames[1:], strict=False):
                if high - low <= section.series_gap:
                    union.join(one, other)
    for one, other in pairs:
        union.join(one, other)
    found: dict[int, list[Row]] = defaultdict(list)
    for number, row in enumerate(rows):
        found[union.find(number)].append(row)
    return list(found.values())


def _is_number(group: str | None) -> bool:
    return group is not None and group.isascii() and group.isdigit() and len(group) < 19


def assign(engine: Engine, manifest: Manifest, related: Sequence[Sequence[Row]], section: DatasetSection) -> dict[str, str]:
    """Digest -> split of the rows that stay. A family new to the ledger falls by hash; a known one stays where it was first.

    Where earlier versions put parts of a family in different splits (they did not know that these belong together), only the part in
    train stays, or else the one in validation: what is measured on was never trained on. Nothing moves, as the ledger never changes.
    """
    with engine.begin() as connection:
        known = dataset.known_splits(connection, SYSTEM, {key for family in related for row in family for key in row.keys})
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
            group, own = (claimed[key] for key in row.keys)
            if group != own:
                row.reject("in_other_split", f"{row.name}: its group {group}, itself {own}")
            else:
                splits[row.sha256] = group
        staying = [row for row in family if row.rejected is None]
        first = min(staying, key=lambda row: dataset.SPLITS.index(splits[row.sha256]), default=None)
        for row in staying:
            if first is not None and splits[row.sha256] != splits[first.sha256]:
                row.reject(
                    "near_duplicate_in_train", f"{row.name} ({splits.pop(row.sha256)}) is like {first.name} ({splits[first.sha256]})"
                )
    return splits


def _by_hash(family: Sequence[Row], section: DatasetSection) -> str:
    """Where a family falls: the same on every machine. Hashed once more, as the least of several digests is not evenly spread."""
    digest = hashlib.sha256(min(row.group_key for row in family)).digest()
    unit = int.from_bytes(digest[:6], "big") / (1 << 48)
    if unit < section.holdout_fraction:
        return "holdout"
    return "validation" if unit < section.holdout_fraction + section.validation_fraction else "train"


# --- cleaning -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cleaned:
    """The cleaned table and the account of every row and file.

    Attributes:
        quarantined: reason code -> rows.
        splits: split -> rows.
        labels: label -> rows.
        refused_files: source -> reason code.
        near_duplicates: `pairs`, `pairs_across_labels`, `families` of more than one picture and the `largest_family`.
        alike: the first pairs with different labels, for people: a mistaken label, or a small defect.
        unchanged: the table was there already, made by the same rules.
    """

    table: PublishedTable
    rows_in: int
    accepted: int
    quarantined: Mapping[str, int]
    splits: Mapping[str, int]
    labels: Mapping[str, int]
    refused_files: Mapping[str, str]
    near_duplicates: Mapping[str, int]
    alike: Sequence[Sequence[str]]
    unchanged: bool = False


@dataclass
class _Judged:
    """All rules applied: the rows that stay in the table's order, with what the table and the report want of them."""

    rows: list[Row]
    pictures: Mapping[str, Picture]
    splits: Mapping[str, str]
    family: Mapping[str, str]
    near: Mapping[str, int]
    alike: list[list[str]]


def rules_digest(section: DatasetSection) -> str:
    """Changes when, and only when, the same files could be cleaned differently: this module's text, decoding's, and the configuration."""
    of = {
        "labels",
        "index_files",
        "ignored_files",
        "set_aside",
        "group_pattern",
        "series_gap",
        "near_duplicate_bits",
        "holdout_fraction",
        "validation_fraction",
    }
    return hashlib.sha256((code_version(__name__) + canonical(section.model_dump(mode="json", include=of))).encode()).hexdigest()


def clean(engine: Engine, store: ObjectStore, manifest: Manifest, section: DatasetSection, scratch: Path, *, threads: int) -> Cleaned:
    """Clean a frozen version into Parquet shards in the store. The same rules again change nothing.

    Args:
        scratch: an empty folder of this call's own; holds the pictures twice for a while.
        threads: pictures decoded at once.

    Raises:
        NothingLeft: a label is missing in training or in the holdout; the version is refused, its rows and files say why.
    """
    rules = rules_digest(section)
    before = dataset.find_table(engine, manifest.system, manifest.version, manifest.sha256)
    if before is not None and before.rules == rules and accounts.is_complete(engine, store, before):
        return _account(before, unchanged=True)
    scanned = scan(store, manifest, section)
    judged = _judge(engine, store, manifest, section, scanned, scratch / "pictures", threads)
    accounts.check_account(manifest, scanned, len(judged.rows))
    if problem := _nothing_left(judged, scanned):
        accounts.store_rows(engine, manifest, scanned, ROW_REASONS, FILE_REASONS, refusal=problem)
        raise dataset.NothingLeft(f"{manifest.system} {manifest.version} is refused: {problem}. Land the corrected data under a new name.")
    body = {
        "rows_in": len(scanned.rows),
        "files": scanned.files(),
        "quarantined": dict(sorted(accounts.quarantined(scanned.rows).items())),
        "splits": dict(sorted(Counter(judged.splits[row.sha256] for row in judged.rows).items())),
        "labels": dict(sorted(Counter(LABELS[row.label] for row in judged.rows if row.label is not None).items())),
        "refused_files": {name: what.code for name, (_, what) in sorted(scanned.refused.items())},
        "near_duplicates": dict(judged.near),
        "alike": judged.alike,
        "sheet": _chosen(judged.rows),
    }
    parts = dataset.upload_parts(store, manifest, list(_write_shards(judged, scratch)))
    crash.reach("cleaned.after_parts")
    table = dataset.PublishedTable(manifest.system, manifest.version, manifest.sha256, len(judged.rows), rules, parts, body)
    accounts.store_rows(engine, manifest, scanned, ROW_REASONS, FILE_REASONS, refusal=None)
    crash.reach("cleaned.after_commit")
    dataset.publish_table(engine, store, table)
    return _account(table)


def _judge(
    engine: Engine, store: ObjectStore, manifest: Manifest, section: DatasetSection, scanned: Scanned, folder: Path, threads: int
) -> _Judged:
    """The rules in their order; each looks only at what the rules before it left."""
    import numpy as np

    for row in scanned.alive():
        if row.entry is not None and row.entry.size == 0:
            row.reject("empty_file")  # before its bytes are compared: all empty files are alike
    keep_one_of_each(scanned.rows)
    pictures = inspect(store, scanned.alive(), folder, threads)
    set_flat_and_sheets_aside(scanned.alive(), pictures, section)
    rows = scanned.alive()
    bits = np.stack([pictures[row.sha256].bits for row in rows]) if rows else np.empty((0, 4), np.uint64)
    pairs = list(near_pairs(bits, section.near_duplicate_bits))
    if examples.THUMBNAIL in section.set_aside:
        pairs = set_small_copies_aside(rows, pairs, pictures, folder)
        rows = scanned.alive()
    related = families(rows, pairs, section)
    splits = assign(engine, manifest, related, section)
    across = [(rows[i], rows[j]) for i, j in pairs if rows[i].label != rows[j].label]
    near = {
        "pairs": len(pairs),
        "pairs_across_labels": len(across),
        "families": sum(len(family) > 1 for family in related),
        "largest_family": max(map(len, related), default=0),
    }
    family = {row.sha256: min(other.group or other.sha256[:12] for other in members) for members in related for row in members}
    # By split: who reads the holdout reads few row groups.
    stay = sorted(scanned.alive(), key=lambda row: dataset.SPLITS.index(splits[row.sha256]))
    return _Judged(stay, pictures, splits, family, near, [[one.name, other.name] for one, other in across[:EXAMPLES]])


def _account(table: PublishedTable, *, unchanged: bool = False) -> Cleaned:
    body = table.body
    kept = ("rows_in", "quarantined", "splits", "labels", "refused_files", "near_duplicates", "alike")
    return Cleaned(table, accepted=table.rows, unchanged=unchanged, **{name: body[name] for name in kept})


def _nothing_left(judged: _Judged, scanned: Scanned) -> str | None:
    """Why nothing can be trained on or measured on these photos, or None."""
    there = {(judged.splits[row.sha256], row.label) for row in judged.rows}
    wanted = [(split, label) for split in ("train", "holdout") for label in LABELS]
    missing = [f"no {split} photo is {LABELS[label]}" for split, label in wanted if (split, label) not in there]
    if not missing:
        return None
    largest = judged.near["largest_family"]
    hint = f"; {largest} of them belong together (series_gap, near_duplicate_bits)" if 2 * largest > len(judged.rows) > 1 else ""
    return f"{', '.join(missing)} of {len(scanned.rows)} rows ({accounts.why_nothing(scanned)}{hint})"


def _write_shards(judged: _Judged, scratch: Path) -> Iterator[Path]:
    """The table as Parquet files of about SHARD_BYTES: few large objects, whatever the number of photos."""
    import pyarrow.parquet as pq

    schema = table_schema()
    writer: pq.ParquetWriter | None = None
    shard, written, batch, held = 0, 0, list[Row](), 0
    for number, row in enumerate(judged.rows, start=1):
        assert row.entry is not None
        batch.append(row)
        held += row.entry.size
        last = number == len(judged.rows)
        if held < ROW_GROUP_BYTES and not last:
            continue
        target = scratch / f"shard-{shard:05d}.parquet"
        # The pictures are compressed already.
        writer = writer or pq.ParquetWriter(target, schema, compression="none", use_dictionary=["group", "split"])
        writer.write_table(_as_table(judged, batch, scratch / "pictures", schema))
        written, batch, held = written + held, [], 0
        if written >= SHARD_BYTES or last:
            writer.close()
            yield target
            writer, shard, written = None, shard + 1, 0


def table_schema() -> pa.Schema:
    """The columns of the cleaned table, in order."""
    import pyarrow as pa

    text = [(name, pa.string()) for name in ("group", "split", "path")]
    return pa.schema(
        [("id", pa.string()), ("image", pa.binary()), ("label", pa.int8()), *text, ("width", pa.int32()), ("height", pa.int32())]
    )


def _as_table(judged: _Judged, rows: Sequence[Row], folder: Path, schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    columns = {
        "id": [row.sha256 for row in rows],
        "image": [(folder / row.sha256).read_bytes() for row in rows],
        "label": [row.label for row in rows],
        "group": [judged.family[row.sha256] for row in rows],
        "split": [judged.splits[row.sha256] for row in rows],
        "path": [row.name for row in rows],
        "width": [judged.pictures[row.sha256].width for row in rows],
        "height": [judged.pictures[row.sha256].height for row in rows],
    }
    return pa.table(columns, schema=schema)


def load_cleaned(store: ObjectStore, engine: Engine, version: str, folder: Path) -> CleanedTable:
    """The cleaned photos of a version, downloaded to `folder` and verified: what training and evaluation read."""
    return dataset.load_table(store, engine, SYSTEM, version, folder)


# --- what people see ------------------------------------------------------------------------------------------------------------


def _chosen(rows: Sequence[Row]) -> list[list[Any]]:
    """(digest, label) of the photos of the contact sheet: of each label a few, evenly over the table."""
    chosen: list[list[Any]] = []
    for label in LABELS:
        of_label = [row for row in rows if row.label == label]
        step = max(1, len(of_label) // SHEET_PER_LABEL)
        chosen += [[row.sha256, label] for row in of_label[::step][:SHEET_PER_LABEL]]
    return chosen


def contact_sheet(store: ObjectStore, table: PublishedTable, limit: int) -> bytes:
    """A PNG of at most `limit` bytes: a few photos of each label, good ones framed green, defective ones red."""
    from PIL import Image, ImageOps

    photos = [(images.decode(dataset.read_object(store, digest)), label) for digest, label in table.body["sheet"]]
    columns = 8

    def sheet(side: int) -> Image.Image:
        drawn = Image.new("RGB", (columns * side, -(-len(photos) // columns) * side), "white")
        for number, (photo, label) in enumerate(photos):
            tile = ImageOps.expand(ImageOps.pad(photo, (side - 6, side - 6), color="white"), 2, "#2e7d32" if label == 0 else "#c62828")
            drawn.paste(tile, (number % columns * side + 1, number // columns * side + 1))
        return drawn

    return images.png_within(limit, ((sheet(side), colours) for side, colours in SHEET_SIZES))


# --- the contract ---------------------------------------------------------------------------------------------------------------


def read_table(table: CleanedTable) -> pd.DataFrame:
    """The table without its pictures, and `image_sha256`, their digests: reads 8 MB of pictures at a time."""
    import pandas as pd
    import pyarrow.parquet as pq

    found: list[pd.DataFrame] = []
    for file in sorted(table.folder.glob("*.parquet")):
        for batch in pq.ParquetFile(file).iter_batches(batch_size=64):
            digests = [hashlib.sha256(image).hexdigest() for image in batch.column("image").to_pylist()]
            found.append(batch.drop_columns(["image"]).to_pandas().assign(image_sha256=digests))
    return pd.concat(found, ignore_index=True)


def check_contract(frame: pd.DataFrame) -> list[Violation]:
    """What is wrong with a cleaned table (of `read_table`); nothing when it keeps the contract."""
    import pandera.pandas as pa

    text = {name: pa.Column(str, pa.Check.str_length(min_value=1)) for name in ("group", "path", "image_sha256")}
    schema = pa.DataFrameSchema(
        {
            "id": pa.Column(str, pa.Check.str_matches("^[0-9a-f]{64}$"), unique=True),
            "label": pa.Column("int8", pa.Check.isin(list(LABELS))),
            "split": pa.Column(str, pa.Check.isin(list(dataset.SPLITS))),
            "width": pa.Column("int32", pa.Check.ge(1)),
            "height": pa.Column("int32", pa.Check.ge(1)),
            **text,
        },
        strict=True,
    )
    return violations(schema, frame, _between_columns)


def _between_columns(frame: pd.DataFrame) -> Iterator[Violation]:
    changed = frame[frame["id"] != frame["image_sha256"]]
    if len(changed):
        yield Violation.of("id is the digest of image", changed["path"].tolist())
    yield from torn(frame["group"], frame["split"], "no group in two splits")


def contract(store: ObjectStore, engine: Engine, version: str, folder: Path) -> tuple[int, list[Violation]]:
    """Rows of a cleaned version, downloaded to `folder` and verified, and what is wrong with them."""
    table = load_cleaned(store, engine, version, folder)
    return table.rows, check_contract(read_table(table))


def account(engine: Engine, store: ObjectStore, version: str) -> Account:
    """The account of a cleaned version. Raises DatasetError: it is not cleaned."""
    return accounts.account(engine, store, SYSTEM, version)
