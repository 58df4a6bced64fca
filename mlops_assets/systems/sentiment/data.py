"""Film reviews: from the frozen files of a dataset version to the cleaned table. Every row ends as accepted or quarantined with a reason.

Two steps. Python streams the bytes once within fixed memory: lines, UTF-8, columns, and the group (SHA-256 of the normalized text). Spark
then applies the rules that compare rows. Belongs here: those rules. Does not belong here: training, Dagster, how Spark is started.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from mlops_assets import crash
from mlops_assets.database import copy_rows
from mlops_assets.ingest.rows import Rejected, Violation, find_cleaned, mark_files, quarantined_count, replace_quarantine, torn, violations
from mlops_assets.lifecycle import dataset
from mlops_assets.lifecycle.system import CleanedTable
from mlops_assets.settings import canonical

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession
    from sqlalchemy import Connection, Engine

    from mlops_assets.lifecycle.dataset import Entry, Manifest, PublishedTable
    from mlops_assets.store import ObjectStore
    from mlops_assets.systems.sentiment.config import DatasetSection

SYSTEM: Final = "sentiment"
COLUMNS: Final = ("id", "document", "label")
HEADER: Final = b"\t".join(name.encode() for name in COLUMNS)
LABELS: Final = {0: "부정", 1: "긍정"}

#: Why a row is turned away -> what that means, for the metadata.
ROW_REASONS: Final = {
    "malformed_row": "not exactly id, document and label between tabs",
    "not_utf8": "bytes that are not UTF-8",
    "too_large": "longer than MLOPS_MAX_LINE_BYTES",
    "bad_label": "a label other than 0 and 1",
    "empty_document": "no text",
    "duplicate_id": "an earlier row has the same id",
    "conflicting_labels": "the same text with both labels in the training rows",
    "in_holdout": "a training row whose text is held out",
    "in_train": "a held-out row whose text an earlier version trained on",
}
FILE_REASONS: Final = {
    "unexpected_file": "matches neither train_files nor holdout_files in configs/sentiment.yaml",
    "not_utf8": "is not UTF-8",
    "empty_file": "holds no row",
    "wrong_columns": "does not begin with the header id, document, label between tabs",
}

BATCH_ROWS: Final = 50_000
PART_ROWS: Final = 500_000
MAX_ID: Final = 128
EXCERPT: Final = 200
#: A file of which more than this share of lines is not UTF-8 is in another encoding as a whole.
NOT_UTF8_SHARE: Final = 0.5


class Spark(Protocol):
    """What cleaning needs of `resources.spark.SparkEngine`."""

    @property
    def sees_local_files(self) -> bool: ...

    def session(self) -> AbstractContextManager[SparkSession]: ...


# --- bytes to rows --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Review:
    """A row as it stands in the file, text stripped. `label` is still text: Spark judges it."""

    id: str
    document: str
    label: str


def lines_of(chunks: Iterable[bytes], limit: int) -> Iterator[bytes | Rejected]:
    """Lines without their ending, in order. Of a line over `limit` bytes only the beginning is ever held: memory is one chunk and `limit`.

    Only `\\n` and `\\r\\n` end a line: Unicode's other separators occur inside reviews.
    """
    held = b""
    too_long = False
    for chunk in chunks:
        pieces = chunk.split(b"\n")
        for piece in pieces[:-1]:
            if too_long or len(held) + len(piece) > limit:
                yield Rejected("too_large", _excerpt(held or piece[:EXCERPT]))
            else:
                line = held + piece
                yield line[:-1] if line.endswith(b"\r") else line
            held, too_long = b"", False
        if not too_long:
            held += pieces[-1]
            if len(held) > limit:
                held, too_long = held[: 4 * EXCERPT], True
    if too_long:
        yield Rejected("too_large", _excerpt(held))
    elif held:
        yield held[:-1] if held.endswith(b"\r") else held


def parse_row(line: bytes) -> Review | Rejected:
    """One line after the header. Quotes mean nothing in these files: `"` is a character like any other."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        return Rejected("not_utf8", _excerpt(line))
    fields = text.split("\t")
    if len(fields) != len(COLUMNS) or not fields[0].strip() or len(fields[0]) > MAX_ID or "\x00" in text:
        return Rejected("malformed_row", _excerpt(line))
    return Review(fields[0].strip(), fields[1].strip(), fields[2].strip())


def _excerpt(data: bytes) -> str:
    return data[: 4 * EXCERPT].decode("utf-8", "replace").replace("\x00", "\ufffd")[:EXCERPT]


def normalized(document: str) -> str:
    """What makes two reviews the same text: NFC, whitespace collapsed."""
    return " ".join(unicodedata.normalize("NFC", document).split())


def group_of(document: str) -> bytes:
    """The group of the split ledger: reviews of the same text are never on both sides of a split."""
    return hashlib.sha256(normalized(document).encode()).digest()


def _unit(group: bytes) -> float:
    """Where a group falls in [0, 1): the same in every version, on every machine."""
    return int.from_bytes(group[:6], "big") / (1 << 48)


# --- files to raw Parquet -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """One file of the version. `name` is unique within it; `holdout` says which rows it holds."""

    name: str
    entry: Entry
    holdout: bool


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


def sources_of(manifest: Manifest, section: DatasetSection) -> tuple[list[Source], dict[str, tuple[Entry, Rejected]]]:
    """The files to read, held-out ones first (the first of two rows with one id is kept), and the unexpected ones."""
    found: list[Source] = []
    unexpected: dict[str, tuple[Entry, Rejected]] = {}
    for entry in manifest.entries:
        base = entry.path.rsplit("/", 1)[-1]
        name = entry.path if entry.from_version == manifest.version else f"{entry.from_version}/{entry.path}"
        holdout = any(fnmatchcase(base, pattern) for pattern in section.holdout_files)
        if holdout or any(fnmatchcase(base, pattern) for pattern in section.train_files):
            found.append(Source(name, entry, holdout))
        else:
            unexpected[name] = (entry, Rejected("unexpected_file", base))
    # The parent's rows come before the version's own, so that extending never takes a row away.
    found.sort(key=lambda source: (not source.holdout, source.entry.from_version == manifest.version, source.name))
    return found, unexpected


def scan(store: ObjectStore, manifest: Manifest, section: DatasetSection, folder: Path, max_line_bytes: int) -> Scanned:
    """Stream every file of the manifest once and write its rows as `folder/<n>.parquet`."""
    sources, unexpected = sources_of(manifest, section)
    done = Scanned(refused=dict(unexpected))
    folder.mkdir(parents=True, exist_ok=True)
    for number, source in enumerate(sources):
        target = folder / f"{number:05d}.parquet"
        outcome = _scan_file(dataset.open_entry(store, source.entry), source, number, target, max_line_bytes)
        if isinstance(outcome, Rejected):
            target.unlink(missing_ok=True)
            done.refused[source.name] = (source.entry, outcome)
            continue
        rows, rejected = outcome
        done.rows += rows
        done.rejected += [(source.name, line, what) for line, what in rejected]
        done.files.append(target)
        done.lines[number] = rows + 1
        done.has_holdout |= source.holdout
    return done


def _scan_file(
    chunks: Iterator[bytes], source: Source, number: int, target: Path, max_line_bytes: int
) -> tuple[int, list[tuple[int, Rejected]]] | Rejected:
    """Rows seen and those rejected, or why the whole file is."""
    import pyarrow.parquet as pq

    lines = lines_of(chunks, max_line_bytes)
    header = next(lines, None)
    if header is None:
        return Rejected("empty_file", "0 bytes")
    problem = _check_header(header)
    if problem is not None:
        return problem
    rows = 0
    rejected: list[tuple[int, Rejected]] = []
    with pq.ParquetWriter(target, _raw_schema(), compression="zstd") as writer:
        batch: list[tuple[int, Review]] = []
        for line_number, line in enumerate(lines, start=2):
            rows += 1
            parsed = line if isinstance(line, Rejected) else parse_row(line)
            if isinstance(parsed, Rejected):
                rejected.append((line_number, parsed))
            else:
                batch.append((line_number, parsed))
                if len(batch) == BATCH_ROWS:
                    writer.write_table(_raw_table(source, number, batch))
                    batch.clear()
        if batch:
            writer.write_table(_raw_table(source, number, batch))
    if rows == 0:
        return Rejected("empty_file", "only a header")
    strange = sum(what.code == "not_utf8" for _, what in rejected)
    if strange > NOT_UTF8_SHARE * rows:
        return Rejected("not_utf8", f"{strange} of {rows} lines: save the file as UTF-8 and land it as a new version")
    return rows, rejected


def _check_header(header: bytes | Rejected) -> Rejected | None:
    if isinstance(header, Rejected):
        return Rejected("wrong_columns", f"the first line is longer than the limit: {header.excerpt}")
    if header.startswith((b"\xff\xfe", b"\xfe\xff")):
        return Rejected("not_utf8", "it is UTF-16: save it as UTF-8 and land it as a new version")
    header = header.removeprefix(b"\xef\xbb\xbf")
    try:
        header.decode("utf-8")
    except UnicodeDecodeError:
        return Rejected("not_utf8", _excerpt(header))
    if header != HEADER:
        return Rejected("wrong_columns", f"expected {HEADER.decode()!r}, found {_excerpt(header)!r}")
    return None


def _raw_schema() -> pa.Schema:
    import pyarrow as pa

    names = ("id", "document", "label", "group")
    return pa.schema(
        [("source", pa.string()), ("holdout", pa.bool_()), ("file", pa.int32()), ("line", pa.int64())]
        + [(name, pa.string()) for name in names]
        + [("unit", pa.float64())]
    )


def _raw_table(source: Source, number: int, batch: Sequence[tuple[int, Review]]) -> pa.Table:
    import pyarrow as pa

    groups = [group_of(review.document) for _, review in batch]
    columns: dict[str, list[Any]] = {
        "source": [source.name] * len(batch),
        "holdout": [source.holdout] * len(batch),
        "file": [number] * len(batch),
        "line": [line for line, _ in batch],
        "id": [review.id for _, review in batch],
        "document": [review.document for _, review in batch],
        "label": [review.label for _, review in batch],
        "group": [group.hex() for group in groups],
        "unit": [_unit(group) for group in groups],
    }
    return pa.table(columns, schema=_raw_schema())


# --- the rules (Spark) ----------------------------------------------------------------------------------------------------------


def judge(raw: DataFrame) -> DataFrame:
    """`raw` with a column `reason`, null for rows that survive: label and text, then ids, then labels that contradict each other.

    Each rule looks only at what the rules before it left: a row that is turned away cannot take another with it.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    own = F.when(~F.col("label").isin("0", "1"), "bad_label").when(F.col("document") == "", "empty_document")
    rows = raw.withColumn("reason", own)
    order = Window.partitionBy("id").orderBy(F.col("reason").isNotNull(), "file", "line")
    rows = rows.withColumn("nth", F.row_number().over(order))
    rows = rows.withColumn("reason", F.when(F.col("reason").isNull() & (F.col("nth") > 1), "duplicate_id").otherwise(F.col("reason")))
    counted = F.when(F.col("reason").isNull() & ~F.col("holdout"), F.col("label"))
    same_text = Window.partitionBy("group")
    rows = rows.withColumn("low", F.min(counted).over(same_text)).withColumn("high", F.max(counted).over(same_text))
    conflict = F.col("reason").isNull() & ~F.col("holdout") & (F.col("low") != F.col("high"))
    return rows.withColumn("reason", F.when(conflict, "conflicting_labels").otherwise(F.col("reason"))).drop("nth", "low", "high")


def wanted_splits(judged: DataFrame, section: DatasetSection, has_holdout: bool) -> DataFrame:
    """One row per surviving group: the split it would have if nobody had claimed it. Held-out files claim before training files do."""
    from pyspark.sql import functions as F

    held_out = 0.0 if has_holdout else section.holdout_fraction
    unit = F.col("unit")
    by_hash = F.when(unit < held_out, "holdout").when(unit < held_out + section.validation_fraction, "validation").otherwise("train")
    groups = judged.where(F.col("reason").isNull()).groupBy("group").agg(F.max("holdout").alias("holdout"), F.max("unit").alias("unit"))
    return groups.select("group", F.when(F.col("holdout"), "holdout").otherwise(by_hash).alias("split"))


def apply_splits(judged: DataFrame, splits: DataFrame, has_holdout: bool) -> DataFrame:
    """The judged rows with the split their group has in the ledger; what would leak from one side to the other gets a reason."""
    from pyspark.sql import functions as F

    rows = judged.join(splits, "group", "left")
    alive = F.col("reason").isNull()
    # Without held-out files the ledger alone says what is held out, and every row simply has its group's split.
    leaks_in = alive & F.lit(has_holdout) & ~F.col("holdout") & (F.col("split") == "holdout")
    leaks_out = alive & F.col("holdout") & (F.col("split") != "holdout")
    reason = F.when(leaks_in, "in_holdout").when(leaks_out, "in_train").otherwise(F.col("reason"))
    return rows.withColumn("reason", reason)


# --- cleaning -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cleaned:
    """The cleaned table and the account of every row and file.

    Attributes:
        quarantined: reason code -> rows.
        splits: split -> rows.
        refused_files: source -> reason code.
        unchanged: the table was there already, made by the same rules.
    """

    table: PublishedTable
    rows_in: int
    accepted: int
    quarantined: Mapping[str, int]
    splits: Mapping[str, int]
    refused_files: Mapping[str, str]
    unchanged: bool = False


def rules_digest(section: DatasetSection, max_line_bytes: int) -> str:
    """Changes when, and only when, the same files could be cleaned differently: this module's text and what it is configured by."""
    config = section.model_dump(mode="json", include={"train_files", "holdout_files", "validation_fraction", "holdout_fraction"})
    text = Path(__file__).read_bytes() + canonical([config, max_line_bytes]).encode()
    return hashlib.sha256(text).hexdigest()


def clean(
    engine: Engine, store: ObjectStore, manifest: Manifest, section: DatasetSection, spark: Spark, scratch: Path, *, max_line_bytes: int
) -> Cleaned:
    """Clean a frozen version into Parquet in the store and the rows of `review`. The same rules again change nothing.

    Args:
        scratch: an empty folder of this call's own.

    Raises:
        NothingLeft: no training or no held-out row is left; the version is refused, its rows and files say why.
    """
    rules = rules_digest(section, max_line_bytes)
    before = dataset.find_table(store, manifest.system, manifest.version, manifest.sha256)
    if before is not None and before.rules == rules and _is_complete(engine, store, before):
        return _account(before, unchanged=True)
    scanned = scan(store, manifest, section, scratch / "raw", max_line_bytes)
    rows: list[Path] = []
    if scanned.files:
        with spark.session() as session, _shared(store, spark, scratch, manifest) as shared:
            rows = _run_rules(engine, session, shared, scanned, section, manifest)
    result = _split_result(rows, scanned, scratch)
    _check_account(manifest.version, scanned.rows, result.accepted, result.quarantined)
    if problem := _nothing_left(result, scanned):
        _store_rows(engine, manifest, result, scanned, refusal=problem)
        raise dataset.NothingLeft(f"{manifest.system} {manifest.version} is refused: {problem}. Land the corrected data under a new name.")
    body = {
        "rows_in": scanned.rows,
        "quarantined": dict(sorted(result.quarantined.items())),
        "splits": dict(sorted(result.splits.items())),
        "refused_files": {name: what.code for name, (_, what) in sorted(scanned.refused.items())},
    }
    parts = dataset.upload_parts(store, manifest, result.parts)
    crash.reach("cleaned.after_parts")
    table = dataset.PublishedTable(manifest.system, manifest.version, manifest.sha256, result.accepted, rules, parts, body)
    _store_rows(engine, manifest, result, scanned, refusal=None)
    crash.reach("cleaned.after_commit")
    dataset.publish_table(store, table)
    return _account(table)


def _account(table: PublishedTable, *, unchanged: bool = False) -> Cleaned:
    body = table.body
    return Cleaned(table, body["rows_in"], table.rows, body["quarantined"], body["splits"], body["refused_files"], unchanged)


def _check_account(version: str, rows_in: int, accepted: int, quarantined: Mapping[str, int]) -> None:
    """Lines were counted while streaming, accepted and quarantined rows when they came back from Spark: they must add up."""
    if rows_in != accepted + sum(quarantined.values()):
        raise dataset.DatasetError(
            f"{version}: {rows_in} rows in, {accepted} accepted and {sum(quarantined.values())} quarantined do not add up: "
            "this is a defect of the cleaning, no table is written"
        )


def _is_complete(engine: Engine, store: ObjectStore, table: PublishedTable) -> bool:
    """Both outputs are there: every part with its size, and the rows in the database."""
    from sqlalchemy import text

    sizes = {info.key: info.size for info in store.list(table.prefix)}
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT count(*) FROM review WHERE version = :v"), {"v": table.version}).scalar_one()
    return int(rows) == table.rows and all(sizes.get(f"{table.prefix}/{part.name}") == part.size for part in table.parts)


class _Shared:
    """A folder that this process and Spark both see: local, or under `staging/` in the object store."""

    def __init__(self, local: Path, store: ObjectStore | None, prefix: str) -> None:
        self.local, self.store, self.prefix = local, store, prefix

    def __enter__(self) -> _Shared:
        return self

    def __exit__(self, *_: object) -> None:
        if self.store is not None:
            for info in list(self.store.list(self.prefix)):
                self.store.delete(info.key)

    def give(self, files: Sequence[Path]) -> list[str]:
        """Addresses under which Spark reads `files`."""
        if self.store is None:
            return [file.as_uri() for file in files]
        for file in files:
            self.store.put(f"{self.prefix}/{file.parent.name}/{file.name}", file)
        return [self._address(f"{file.parent.name}/{file.name}") for file in files]

    def output(self, name: str) -> str:
        return (self.local / name).as_uri() if self.store is None else self._address(name)

    def take(self, name: str) -> list[Path]:
        """The Parquet files that Spark wrote to `output(name)`."""
        folder = self.local / name
        if self.store is not None:
            for info in self.store.list(f"{self.prefix}/{name}"):
                self.store.download(info.key, folder / info.key.rsplit("/", 1)[-1])
        return sorted(folder.glob("*.parquet"))

    def _address(self, name: str) -> str:
        assert self.store is not None
        return self.store.uri(f"{self.prefix}/{name}").replace("s3://", "s3a://", 1)


def _shared(store: ObjectStore, spark: Spark, scratch: Path, manifest: Manifest) -> _Shared:
    remote = None if spark.sees_local_files else store
    return _Shared(scratch, remote, f"staging/{manifest.system}/{manifest.version}/{scratch.name}")


def _run_rules(
    engine: Engine, session: SparkSession, shared: _Shared, scanned: Scanned, section: DatasetSection, manifest: Manifest
) -> list[Path]:
    """The files of judged rows, in the order of their rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    judge(session.read.parquet(*shared.give(scanned.files))).write.parquet(shared.output("judged"))
    judged = session.read.parquet(shared.output("judged"))
    wanted = wanted_splits(judged, section, scanned.has_holdout).toArrow()
    with engine.begin() as connection:
        pairs = zip(wanted["group"].to_pylist(), wanted["split"].to_pylist(), strict=True)
        splits = dataset.assign_splits(connection, manifest.system, manifest.version, ((bytes.fromhex(g), s) for g, s in pairs))
    crash.reach("cleaned.after_splits")
    columns = {"group": pa.array([group.hex() for group in splits], pa.string()), "split": pa.array(list(splits.values()), pa.string())}
    local = shared.local / "splits" / "00000.parquet"
    local.parent.mkdir()
    pq.write_table(pa.table(columns), local)
    apply_splits(judged, session.read.parquet(*shared.give([local])), scanned.has_holdout).write.parquet(shared.output("ruled"))
    return shared.take("ruled")


@dataclass
class _Result:
    """Judged rows, taken apart. `quarantine` holds (source, line, code, excerpt)."""

    parts: list[Path] = field(default_factory=list)
    accepted: int = 0
    splits: Counter[str] = field(default_factory=Counter)
    quarantine: list[tuple[str, int, str, str]] = field(default_factory=list)

    @property
    def quarantined(self) -> Counter[str]:
        return Counter(code for _, _, code, _ in self.quarantine)


def _split_result(files: Sequence[Path], scanned: Scanned, scratch: Path) -> _Result:
    """Write the accepted rows as the table's parts and gather the quarantined ones, in the files' order."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    result = _Result(quarantine=[(source, line, what.code, what.excerpt) for source, line, what in scanned.rejected])
    schema = pa.schema(
        [("id", pa.string()), ("document", pa.string()), ("label", pa.int8()), ("split", pa.string()), ("source", pa.string())]
    )
    writer: pq.ParquetWriter | None = None
    for rows in _in_order(files, scanned.lines):
        alive = pc.is_null(rows["reason"])
        for row in rows.filter(pc.invert(alive)).select(["source", "line", "reason", "id", "document", "label"]).to_pylist():
            excerpt = "\t".join((row["id"], row["document"], row["label"]))[:EXCERPT]
            result.quarantine.append((row["source"], row["line"], row["reason"], excerpt))
        kept = rows.filter(alive).select(schema.names).cast(schema)
        if not kept.num_rows:
            continue
        if writer is None or result.accepted // PART_ROWS >= len(result.parts):
            if writer is not None:
                writer.close()
            result.parts.append(scratch / f"part-{len(result.parts):05d}.parquet")
            writer = pq.ParquetWriter(result.parts[-1], schema, compression="zstd")
        writer.write_table(kept)
        result.accepted += kept.num_rows
        result.splits.update({pair["values"]: pair["counts"] for pair in pc.value_counts(kept["split"]).to_pylist()})
    if writer is not None:
        writer.close()
    return result


def _in_order(files: Sequence[Path], lines: Mapping[int, int]) -> Iterator[pa.Table]:
    """Spark's rows in the order of the sources, a bounded number at a time; its own files are in no order that engines agree on."""
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    if not files:
        return
    found = ds.dataset(files)
    for number, last in sorted(lines.items()):
        for start in range(0, last + 1, PART_ROWS):
            within = (pc.field("file") == number) & (pc.field("line") >= start) & (pc.field("line") < start + PART_ROWS)
            rows = found.to_table(filter=within).sort_by("line")
            if len(pc.unique(rows["line"])) != rows.num_rows:
                raise dataset.DatasetError("Spark returned a row twice: the table is not written, materialize `cleaned` again")
            yield rows


def _nothing_left(result: _Result, scanned: Scanned) -> str | None:
    """Why nothing can be trained on or measured on these rows, or None."""
    missing = [split for split in ("train", "holdout") if not result.splits[split]]
    if not missing:
        return None
    why = Counter(result.quarantined) + Counter(f"{what.code} (file)" for _, what in scanned.refused.values())
    counts = ", ".join(f"{count} {code}" for code, count in why.most_common(4)) or "no file of reviews"
    return f"no {' and no '.join(missing)} row is left of {scanned.rows} ({counts})"


def _store_rows(engine: Engine, manifest: Manifest, result: _Result, scanned: Scanned, *, refusal: str | None) -> None:
    """Reviews, quarantined rows and the files' states change together, in one transaction; what is the same is not written again."""
    with engine.begin() as connection:
        _replace_reviews(connection, manifest.version, [] if refusal else result.parts)
        replace_quarantine(connection, manifest, result.quarantine)
        refused = ((entry.key, (what.code, f"{FILE_REASONS[what.code]} ({what.excerpt})")) for entry, what in scanned.refused.values())
        mark_files(connection, manifest, dict(refused))
        dataset.refuse(connection, manifest.system, manifest.version, refusal)
        crash.reach("cleaned.before_commit")


def _replace_reviews(connection: Connection, version: str, parts: Sequence[Path]) -> None:
    import pyarrow.parquet as pq
    from sqlalchemy import text

    columns = ("version", "id", "document", "label", "split", "source")

    def rows() -> Iterator[tuple[Any, ...]]:
        for part in parts:
            for batch in pq.ParquetFile(part).iter_batches(columns=list(columns[1:])):
                for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    yield (version, *values)

    connection.execute(text("CREATE TEMPORARY TABLE arrived (LIKE review) ON COMMIT DROP"))
    count = copy_rows(connection, "arrived", columns, rows())
    there = connection.execute(text("SELECT count(*) FROM review WHERE version = :v"), {"v": version}).scalar_one()
    if (
        there == count
        and not connection.execute(
            text("SELECT EXISTS (SELECT * FROM arrived EXCEPT ALL SELECT * FROM review WHERE version = :v)"), {"v": version}
        ).scalar_one()
    ):
        return
    connection.execute(text("DELETE FROM review WHERE version = :v"), {"v": version})
    connection.execute(text(f"INSERT INTO review ({', '.join(columns)}) SELECT {', '.join(columns)} FROM arrived"))


def load_cleaned(store: ObjectStore, engine: Engine, version: str, folder: Path) -> CleanedTable:
    """The cleaned reviews of a version, downloaded to `folder` and verified: what training and evaluation read."""
    return dataset.load_table(store, engine, SYSTEM, version, folder)


# --- the contract ---------------------------------------------------------------------------------------------------------------


def read_table(table: CleanedTable) -> pd.DataFrame:
    import pyarrow.parquet as pq

    frame: pd.DataFrame = pq.read_table(sorted(table.folder.glob("*.parquet"))).to_pandas()
    return frame


def check_contract(frame: pd.DataFrame) -> list[Violation]:
    """What is wrong with a cleaned table; nothing when it keeps the contract."""
    import pandera.pandas as pa

    schema = pa.DataFrameSchema(
        {
            "id": pa.Column(str, pa.Check.str_length(1, MAX_ID), unique=True),
            "document": pa.Column(str, pa.Check(lambda text: text.str.strip() != "", name="text_not_empty")),
            "label": pa.Column("int8", pa.Check.isin(list(LABELS))),
            "split": pa.Column(str, pa.Check.isin(list(dataset.SPLITS))),
            "source": pa.Column(str),
        },
        strict=True,
    )
    return violations(schema, frame, lambda rows: torn(rows["document"].map(normalized), rows["split"], "no text in two splits"))


def contract(store: ObjectStore, engine: Engine, version: str, folder: Path) -> tuple[int, list[Violation]]:
    """Rows of a cleaned version, downloaded to `folder` and verified, and what is wrong with them."""
    table = load_cleaned(store, engine, version, folder)
    return table.rows, check_contract(read_table(table))


@dataclass(frozen=True)
class Account:
    """Rows in, accepted and quarantined, each read where it is kept; `table` is what Parquet holds, `accepted` what the database does."""

    rows_in: int
    accepted: int
    quarantined: int
    table: int

    @property
    def adds_up(self) -> bool:
        return self.rows_in == self.accepted + self.quarantined and self.accepted == self.table

    @property
    def sentence(self) -> str:
        sign = "=" if self.adds_up else "≠"
        return f"{self.rows_in} rows in {sign} {self.accepted} accepted + {self.quarantined} quarantined ({self.table} in Parquet)"


def account(engine: Engine, store: ObjectStore, version: str) -> Account:
    """The account of a cleaned version, from the database and the store.

    Raises:
        DatasetError: it is not cleaned.
    """
    from sqlalchemy import text

    _, table = find_cleaned(engine, store, SYSTEM, version)
    with engine.connect() as connection:
        accepted = connection.execute(text("SELECT count(*) FROM review WHERE version = :v"), {"v": version}).scalar_one()
    return Account(table.body["rows_in"], int(accepted), quarantined_count(engine, SYSTEM, version), table.rows)
