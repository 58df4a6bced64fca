"""Labelled texts of any system: from the frozen files of a dataset version to its cleaned table. Every row is accepted or has a reason.

Python streams the bytes once (`lines.py`), Spark applies the rules that compare rows, the split ledger says who may see a text, and table,
quarantine and files change together. Belongs here: all of that, and rules that any text system has. Does not belong here: what a row is and
which rules it is judged by (the systems' `data.py`), how Spark is started.
"""

from __future__ import annotations

import hashlib
import html
import logging
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from mlops_assets import crash
from mlops_assets.characters import visible
from mlops_assets.ingest import cleaning, lines
from mlops_assets.ingest.lines import EXCERPT, Reader, Scanned
from mlops_assets.ingest.masking import mask_plain
from mlops_assets.ingest.rows import mark_files, replace_quarantine
from mlops_assets.lifecycle import dataset

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import Column, DataFrame, SparkSession
    from sqlalchemy import Connection, Engine

    from mlops_assets.lifecycle.dataset import Manifest, PublishedTable
    from mlops_assets.store import ObjectStore

PART_ROWS: Final = 500_000
_LOG: Final = logging.getLogger(__name__)


class Spark(Protocol):
    """What cleaning needs of `resources.spark.SparkEngine`."""

    @property
    def sees_local_files(self) -> bool: ...

    def session(self) -> AbstractContextManager[SparkSession]: ...


@dataclass(frozen=True)
class Rules:
    """What is a system's own in the cleaning of its texts.

    Attributes:
        digest: changes when, and only when, the same files could be cleaned differently.
        reader_of: (file name) -> how it is read; None: it is not expected.
        columns: the system's own columns of a raw row -> their Arrow type's name. `text` is the one that is grouped and split by.
        former_group_of: (text) -> the group that it has in a split ledger older than `group_of`.
        judge: raw rows -> the same with a column `reason`, null for rows that survive.
        schema: of the cleaned table.
        cleaned: surviving rows -> rows of the cleaned table.
        excerpt: a judged row -> what quarantine shows of it.
        file_reasons: reason code -> what it means.
        store_rows: (connection, manifest, parts) puts the cleaned rows into the system's tables, in the transaction of everything else.
        is_stored: whether they are there.
    """

    digest: str
    reader_of: Callable[[str], Reader | None]
    columns: Mapping[str, str]
    text: str
    former_group_of: Callable[[str], bytes]
    judge: Callable[[DataFrame], DataFrame]
    validation_fraction: float
    holdout_fraction: float
    schema: pa.Schema
    cleaned: Callable[[pa.Table], pa.Table]
    excerpt: Callable[[Mapping[str, Any]], str]
    file_reasons: Mapping[str, str]
    store_rows: Callable[[Connection, Manifest, Sequence[Path]], None]
    is_stored: Callable[[Connection, PublishedTable], bool]


# --- groups ---------------------------------------------------------------------------------------------------------------------


#: By which function groups are made, in the split ledger. 1: by that of the system (`Rules.former_group_of`); 2: by `group_of`.
SCHEME: Final = 2
#: What stands round a text that somebody quotes, in NFKC.
_QUOTES: Final = "\"'`´‘’‚‛“”„‟′″‴‵‶‷«»‹›「」『』〈〉《》〝〞〟❛❜❝❞⹂"
_NESTED_ENTITY: Final = re.compile("&(?:amp;)+")
_NO_LETTER: Final = re.compile(r"[\W_]+")
#: 11 is another number than 1.
_RUN: Final = re.compile(r"([^0-9])\1+", re.DOTALL)


def _once(run: re.Match[str]) -> str:
    return run[1]


def as_read(text: str) -> str:
    """What a reader takes for one text: without invisible characters, enclosing quotes and double spaces, entities decoded, in NFKC."""
    text = unicodedata.normalize("NFKC", visible(text))
    if "&" in text:
        text = unicodedata.normalize("NFKC", visible(html.unescape(_NESTED_ENTITY.sub("&", text))))
    return " ".join(text.split()).strip(_QUOTES + " ")


def group_of(text: str) -> bytes:
    """The group of the split ledger, in every text system: rows of one group are never on both sides of a split.

    Of what a reader reads the letters and digits alone, each letter once in a row: spaces, signs, case and ㅋㅋㅋ make no other text.
    Personal numbers and addresses count as their masks, so that cleaning a text leaves it in its group.
    """
    return compared(text)[0]


def compared(text: str) -> tuple[bytes, int]:
    """The group of `text`, and 64 bits that are the same for texts that a reader takes for one."""
    said = as_read(text)
    same = int.from_bytes(hashlib.sha256(said.encode("utf-8", "surrogatepass")).digest()[:8], "big", signed=True)
    said = mask_plain(said)
    if "://" in said or "www." in said:
        said = cleaning.without_urls(said)
    folded = said.casefold()
    if folded != said:
        folded = unicodedata.normalize("NFKC", folded)
    skeleton = _RUN.sub(_once, _NO_LETTER.sub("", folded)) or _RUN.sub(_once, said.replace(" ", ""))
    return hashlib.sha256(skeleton.encode("utf-8", "surrogatepass")).digest(), same


def unit_of(group: bytes) -> float:
    """Where a group falls in [0, 1): the same in every version, on every machine."""
    return int.from_bytes(group[:6], "big") / (1 << 48)


def _raw_table(rules: Rules, with_former: bool) -> Callable[[Sequence[Mapping[str, Any]]], pa.Table]:
    """`group`, `former` (when wanted) in hex, `unit`, and `same` are what the row's text is compared by."""
    import pyarrow as pa

    kinds = {"source": "string", "holdout": "bool", "file": "int32", "line": "int64", **rules.columns}
    given = [(name, pa.type_for_alias(kind)) for name, kind in kinds.items()]

    def table_of(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
        columns = {name: pa.array([row[name] for row in rows], kind) for name, kind in given}
        said = [row[rules.text] for row in rows]
        made = [compared(text) for text in said]
        former = [rules.former_group_of(text).hex() for text in said] if with_former else [None] * len(said)
        return pa.table(
            columns
            | {
                "group": pa.array([group.hex() for group, _ in made], pa.string()),
                "unit": pa.array([unit_of(group) for group, _ in made], pa.float64()),
                "same": pa.array([same for _, same in made], pa.int64()),
                "former": pa.array(former, pa.string()),
            }
        )

    return table_of


# --- groups of an older scheme --------------------------------------------------------------------------------------------------


def carry_over(engine: Engine, store: ObjectStore, system: str, rules: Rules, scratch: Path, max_line_bytes: int) -> bool:
    """Give each text that has a split under its former group the same split under `group_of`: what was held out stays held out, and so
    do its copies that look different. Once for each version that claimed former groups, from its frozen bytes.

    Returns:
        Whether there are former groups: then a text whose bytes are gone may still be known by one when it lands again.
    """
    with engine.connect() as connection:
        versions, waiting = dataset.versions_of_scheme(connection, system, before=SCHEME)
    for number, version in enumerate(waiting):
        folder = scratch / f"former-{number}"
        try:
            manifest = dataset.read_manifest(engine, store, system, version)
            sources, _ = lines.sources_of(manifest, rules.reader_of)
            scanned = lines.scan(store, sources, {}, folder, max_line_bytes, _raw_table(rules, with_former=True))
        except (dataset.DatasetError, FileNotFoundError) as error:
            _LOG.warning(
                "the splits of %s %s could not be carried over (%s): its texts are known by their exact spelling alone",
                system,
                version,
                error,
            )
            continue
        with engine.begin() as connection:
            dataset.carry_splits(connection, system, version, _former_pairs(scanned.files), SCHEME)
        shutil.rmtree(folder)
    return bool(versions)


def _former_pairs(files: Sequence[Path]) -> Iterator[tuple[bytes, bytes]]:
    """(former group, group) of raw rows."""
    import pyarrow.parquet as pq

    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(columns=["former", "group"]):
            for former, group in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield bytes.fromhex(former), bytes.fromhex(group)


# --- the rules (Spark) ----------------------------------------------------------------------------------------------------------


def turn_away(rows: DataFrame, condition: Column, reason: str | Column) -> DataFrame:
    """`rows` with `reason` for those that survived until now and meet the condition: a row that is turned away takes no other with it."""
    from pyspark.sql import functions as F

    return rows.withColumn("reason", F.when(F.col("reason").isNull() & condition, reason).otherwise(F.col("reason")))


def turn_away_repeated(rows: DataFrame, key: Sequence[str], order: Sequence[Column | str], reason: str) -> DataFrame:
    """Of the surviving rows with the same `key` all but the first in `order`."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    window = Window.partitionBy(*key).orderBy(F.col("reason").isNotNull(), *order)
    return turn_away(rows.withColumn("nth", F.row_number().over(window)), F.col("nth") > 1, reason).drop("nth")


def turn_away_contradicted(rows: DataFrame, label: str, reason: str, *, of: str = "same") -> DataFrame:
    """Surviving training rows of which another one that reads the same has another `label`: nobody can say which is right.

    Args:
        of: the column that is equal for rows that read the same.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    counted = F.when(F.col("reason").isNull() & ~F.col("holdout"), F.col(label))
    group = Window.partitionBy(of)
    rows = rows.withColumn("low", F.min(counted).over(group)).withColumn("high", F.max(counted).over(group))
    return turn_away(rows, ~F.col("holdout") & (F.col("low") != F.col("high")), reason).drop("low", "high")


def wanted_splits(judged: DataFrame, rules: Rules, has_holdout: bool) -> DataFrame:
    """One row per surviving group: the split it would have if nobody had claimed it. Held-out files claim before training files do."""
    from pyspark.sql import functions as F

    held_out = 0.0 if has_holdout else rules.holdout_fraction
    unit = F.col("unit")
    by_hash = F.when(unit < held_out, "holdout").when(unit < held_out + rules.validation_fraction, "validation").otherwise("train")
    groups = judged.where(F.col("reason").isNull()).groupBy("group").agg(F.max("holdout").alias("holdout"), F.max("unit").alias("unit"))
    return groups.select("group", F.when(F.col("holdout"), "holdout").otherwise(by_hash).alias("split"))


def apply_splits(judged: DataFrame, splits: DataFrame, has_holdout: bool) -> DataFrame:
    """The judged rows with the split their group has in the ledger; what would leak from one side to the other gets a reason."""
    from pyspark.sql import functions as F

    rows = judged.join(splits, "group", "left")
    # Without held-out files the ledger alone says what is held out, and every row simply has its group's split.
    rows = turn_away(rows, F.lit(has_holdout) & ~F.col("holdout") & (F.col("split") == "holdout"), "in_holdout")
    return turn_away(rows, F.col("holdout") & (F.col("split") != "holdout"), "in_train")


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


def clean(
    engine: Engine, store: ObjectStore, manifest: Manifest, rules: Rules, spark: Spark, scratch: Path, *, max_line_bytes: int
) -> Cleaned:
    """Clean a frozen version into Parquet in the store and the system's tables. The same rules again change nothing.

    Args:
        scratch: an empty folder of this call's own.

    Raises:
        NothingLeft: no training or no held-out row is left; the version is refused, its rows and files say why.
    """
    before = dataset.find_table(engine, manifest.system, manifest.version, manifest.sha256)
    if before is not None and before.rules == rules.digest and _is_complete(engine, store, before, rules):
        return _account(before, unchanged=True)
    sources, unexpected = lines.sources_of(manifest, rules.reader_of)
    with_former = carry_over(engine, store, manifest.system, rules, scratch, max_line_bytes)
    scanned = lines.scan(store, sources, unexpected, scratch / "raw", max_line_bytes, _raw_table(rules, with_former))
    rows: list[Path] = []
    if scanned.files:
        with spark.session() as session, _shared(store, spark, scratch, manifest) as shared:
            rows = _run_rules(engine, session, shared, scanned, rules, manifest, with_former)
    result = _split_result(rows, scanned, scratch, rules)
    _check_account(manifest.version, scanned.rows, result.accepted, result.quarantined)
    if problem := _nothing_left(result, scanned):
        _store_rows(engine, manifest, result, scanned, rules, refusal=problem)
        raise dataset.NothingLeft(f"{manifest.system} {manifest.version} is refused: {problem}. Land the corrected data under a new name.")
    body = {
        "rows_in": scanned.rows,
        "quarantined": dict(sorted(result.quarantined.items())),
        "splits": dict(sorted(result.splits.items())),
        "refused_files": {name: what.code for name, (_, what) in sorted(scanned.refused.items())},
    }
    parts = dataset.upload_parts(store, manifest, result.parts)
    crash.reach("cleaned.after_parts")
    table = dataset.PublishedTable(manifest.system, manifest.version, manifest.sha256, result.accepted, rules.digest, parts, body)
    _store_rows(engine, manifest, result, scanned, rules, refusal=None)
    crash.reach("cleaned.after_commit")
    dataset.publish_table(engine, store, table)
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


def _is_complete(engine: Engine, store: ObjectStore, table: PublishedTable, rules: Rules) -> bool:
    """Both outputs are there: every part with its bytes, and the rows in the database."""
    with engine.connect() as connection:
        stored = rules.is_stored(connection, table)
    return stored and dataset.is_whole(store, table)


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
    engine: Engine, session: SparkSession, shared: _Shared, scanned: Scanned, rules: Rules, manifest: Manifest, with_former: bool
) -> list[Path]:
    """The files of judged rows, in the order of their rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rules.judge(session.read.parquet(*shared.give(scanned.files))).write.parquet(shared.output("judged"))
    judged = session.read.parquet(shared.output("judged"))
    wanted = wanted_splits(judged, rules, scanned.has_holdout).toArrow()
    with engine.begin() as connection:
        if with_former:
            dataset.carry_splits(connection, manifest.system, manifest.version, _former_pairs(scanned.files), SCHEME)
        pairs = zip(wanted["group"].to_pylist(), wanted["split"].to_pylist(), strict=True)
        claims = ((bytes.fromhex(group), split) for group, split in pairs)
        splits = dataset.assign_splits(connection, manifest.system, manifest.version, claims, scheme=SCHEME)
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


def _split_result(files: Sequence[Path], scanned: Scanned, scratch: Path, rules: Rules) -> _Result:
    """Write the accepted rows as the table's parts and gather the quarantined ones, in the files' order."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    result = _Result(quarantine=[(source, line, what.code, what.excerpt) for source, line, what in scanned.rejected])
    writer: pq.ParquetWriter | None = None
    for rows in _in_order(files, scanned.lines):
        alive = pc.is_null(rows["reason"])
        for row in rows.filter(pc.invert(alive)).select(["source", "line", "reason", *rules.columns]).to_pylist():
            result.quarantine.append((row["source"], row["line"], row["reason"], rules.excerpt(row)[:EXCERPT]))
        kept = rules.cleaned(rows.filter(alive)).select(rules.schema.names).cast(rules.schema)
        if not kept.num_rows:
            continue
        if writer is None or result.accepted // PART_ROWS >= len(result.parts):
            if writer is not None:
                writer.close()
            result.parts.append(scratch / f"part-{len(result.parts):05d}.parquet")
            writer = pq.ParquetWriter(result.parts[-1], rules.schema, compression="zstd")
        writer.write_table(kept)
        result.accepted += kept.num_rows
        result.splits.update({pair["values"]: pair["counts"] for pair in pc.value_counts(kept["split"]).to_pylist()})
    if writer is not None:
        writer.close()
    return result


def _in_order(files: Sequence[Path], last_lines: Mapping[int, int]) -> Iterator[pa.Table]:
    """Spark's rows in the order of the sources, a bounded number at a time; its own files are in no order that engines agree on."""
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    if not files:
        return
    found = ds.dataset(files)
    for number, last in sorted(last_lines.items()):
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
    counts = ", ".join(f"{count} {code}" for code, count in why.most_common(4)) or "no file of texts"
    return f"no {' and no '.join(missing)} row is left of {scanned.rows} ({counts})"


def _store_rows(engine: Engine, manifest: Manifest, result: _Result, scanned: Scanned, rules: Rules, *, refusal: str | None) -> None:
    """The system's rows, quarantined rows and the files' states change together, in one transaction."""
    with engine.begin() as connection:
        rules.store_rows(connection, manifest, [] if refusal else result.parts)
        replace_quarantine(connection, manifest, result.quarantine)
        refused = (
            (entry.key, (what.code, f"{rules.file_reasons[what.code]} ({what.excerpt})")) for entry, what in scanned.refused.values()
        )
        mark_files(connection, manifest, dict(refused))
        dataset.refuse(connection, manifest.system, manifest.version, refusal)
        crash.reach("cleaned.before_commit")


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
