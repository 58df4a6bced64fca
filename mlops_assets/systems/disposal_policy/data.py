"""Disposal policies: from a version's frozen sheet to the cleaned table. Every row ends as accepted or quarantined with a reason.

Two steps. Python reads each row by itself (`rows.py`); Spark then applies the rules that compare rows of the same place. Belongs here:
those rules, and the account of every row. Does not belong here: what a cell means (`rows.py`), what becomes of the policies
(`history.py`), Dagster.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from mlops_assets import crash, regions
from mlops_assets.database import copy_rows
from mlops_assets.files import LFS_POINTER, LFS_REASON, is_lfs_pointer
from mlops_assets.ingest import rows as common
from mlops_assets.ingest import sheet
from mlops_assets.ingest.rows import Rejected, Violation, find_cleaned, mark_files, quarantined_count, replace_quarantine
from mlops_assets.lifecycle import dataset
from mlops_assets.settings import canonical
from mlops_assets.sources import code_version
from mlops_assets.systems.disposal_policy import rows as rules
from mlops_assets.systems.disposal_policy.config import STANDARD_COLUMNS

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession
    from sqlalchemy import Connection, Engine

    from mlops_assets.lifecycle.dataset import Entry, Manifest, PublishedTable
    from mlops_assets.store import ObjectStore
    from mlops_assets.systems.disposal_policy.config import CleaningSection

SYSTEM: Final = "disposal_policy"
FIELDS: Final = tuple(STANDARD_COLUMNS)
ROW_REASONS: Final = rules.REASONS
FILE_REASONS: Final = {
    "unexpected_file": "matches none of `files` in configs/disposal_policy.yaml",
    LFS_POINTER: f"is {LFS_REASON}",
    "unreadable": "is not a sheet with the columns of configs/disposal_policy.yaml",
}
EXCERPT: Final = 200
#: A sheet is held whole while it is read.
MAX_SHEET_BYTES: Final = 256 * 1024**2
#: Of the columns of the table, those that are not fields.
EXTRA: Final = {"key": "the place, and which of its rules", "content_hash": "of all fields", "source": "the file", "line": "its row there"}


class Spark(Protocol):
    """What cleaning needs of `resources.spark.SparkEngine`."""

    def session(self) -> AbstractContextManager[SparkSession]: ...


@dataclass(frozen=True)
class Cleaned:
    """The cleaned table and the account of every row and file.

    Attributes:
        quarantined: reason code -> rows.
        findings: rule -> cells that were repaired, or kept although they look wrong.
        splits: empty; no model is trained on policies.
    """

    table: PublishedTable
    rows_in: int
    accepted: int
    quarantined: Mapping[str, int]
    findings: Mapping[str, int]
    refused_files: Mapping[str, str]
    unchanged: bool = False
    splits: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Scanned:
    """What reading row by row found. `rows`: (source, line, row). `turned_away`: the places of rejected rows."""

    rows_in: int = 0
    turned_away: set[rules.Place] = field(default_factory=set)
    rows: list[tuple[str, int, rules.Row]] = field(default_factory=list)
    rejected: list[tuple[str, int, Rejected]] = field(default_factory=list)
    refused: dict[str, tuple[Entry, Rejected]] = field(default_factory=dict)


# --- row by row -----------------------------------------------------------------------------------------------------------------


def scan(store: ObjectStore, manifest: Manifest, section: CleaningSection) -> Scanned:
    done = Scanned()
    types = {"".join(name.split()): kind for kind, others in section.collection_types.items() for name in (kind, *others)}
    for entry in sorted(manifest.entries, key=lambda entry: entry.path):
        name = entry.path if entry.from_version == manifest.version else f"{entry.from_version}/{entry.path}"
        base = entry.folders_and_name[1]
        if not any(fnmatchcase(base, pattern) for pattern in section.files):
            done.refused[name] = (entry, Rejected("unexpected_file", base))
            continue
        if entry.size > MAX_SHEET_BYTES:
            done.refused[name] = (entry, Rejected("unreadable", f"{entry.size} bytes, the limit is {MAX_SHEET_BYTES}: split it"))
            done.turned_away.add(rules.NOWHERE)
            continue
        try:
            data = b"".join(dataset.open_entry(store, entry))
            if is_lfs_pointer(data):
                done.refused[name] = (entry, Rejected(LFS_POINTER, base))
                done.turned_away.add(rules.NOWHERE)
                continue
            table = _read(data, base, section)
        except sheet.SheetError as error:
            done.refused[name] = (entry, Rejected("unreadable", str(error)[: 2 * EXCERPT]))
            done.turned_away.add(rules.NOWHERE)
            continue
        _scan_table(table, name, section, types, done)
    return done


def _read(data: bytes, base: str, section: CleaningSection) -> sheet.Table:
    required = list(section.columns.values())
    if base.endswith(".jsonl"):
        return sheet.load(data, base, required)
    return sheet.read_csv(data, base, required, max_rows=section.max_rows)


def _scan_table(table: sheet.Table, name: str, section: CleaningSection, types: Mapping[str, str], done: Scanned) -> None:
    at = {column: number for number, column in enumerate(table.header)}
    places = [(field_name, at[section.columns[field_name]]) for field_name in FIELDS]
    for line, cells in table.rows:
        done.rows_in += 1
        if torn := _torn(cells, len(table.header)):
            # Which cell belongs to which column, nobody knows: it may have been any place's row.
            done.rejected.append((name, line, Rejected("malformed_row", torn.replace("\x00", "\ufffd")[:EXCERPT])))
            done.turned_away.add(rules.NOWHERE)
            continue
        fields = {field_name: cells[place] for field_name, place in places}
        row = rules.clean_row(fields, types)
        if isinstance(row, Rejected):
            done.rejected.append((name, line, row))
            done.turned_away.add(rules.place_of(fields))
        else:
            done.rows.append((name, line, row))


def _torn(cells: Sequence[str], columns: int) -> str | None:
    """Why the cells are not those of one row, or None."""
    if len(cells) > columns:
        return f"beyond the last column: {' '.join(cells[columns:])}"
    for cell in cells:
        if "\n" in cell and any(line.count(mark) >= columns - 1 > 0 for line in cell.split("\n")[1:] for mark in sheet.DELIMITERS):
            return f"a quote holds other rows: {cell}"
    return None


def _raw(scanned: Scanned) -> pa.Table:
    import pyarrow as pa

    columns: dict[str, list[Any]] = {name: [row.values[name] for _, _, row in scanned.rows] for name in FIELDS}
    arrays = {name: pa.array(values, pa.string()) for name, values in columns.items()}
    extra = {
        "place_key": pa.array([row.place_key for _, _, row in scanned.rows], pa.string()),
        "content_hash": pa.array([row.content_hash for _, _, row in scanned.rows], pa.string()),
        "source": pa.array([source for source, _, _ in scanned.rows], pa.string()),
        "line": pa.array([line for _, line, _ in scanned.rows], pa.int64()),
    }
    return pa.table(arrays | extra)


# --- rows with each other (Spark) -----------------------------------------------------------------------------------------------


def judge(raw: DataFrame) -> DataFrame:
    """`raw` with `reason` (null: the row survives) and `key`: the place, and which of its rules, counted from 1.

    A place may have several rules, for other days each. Where two claim it: of equal rows the first stays; the newer 데이터기준일자 wins;
    then the provider that comes first, and rules for the same days give way to the first. A rule looks only at what
    the rules before it left.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    place = Window.partitionBy("place_key")
    order = ("source", "line")
    alive = F.col("reason").isNull()

    def turn_away(rows: DataFrame, code: str, when: Any) -> DataFrame:
        return rows.withColumn("reason", F.when(alive & when, code).otherwise(F.col("reason")))

    rows = raw.withColumn("reason", F.lit(None).cast("string"))
    rows = rows.withColumn("nth", F.row_number().over(Window.partitionBy("place_key", "content_hash").orderBy(*order)))
    rows = turn_away(rows, "duplicate_row", F.col("nth") > 1)
    rows = rows.withColumn("newest", F.max(F.when(alive, F.col("data_date"))).over(place))
    rows = turn_away(rows, "superseded", F.col("data_date") < F.col("newest"))
    among_living = Window.partitionBy("place_key").orderBy(F.col("reason").isNotNull(), *order)
    rows = rows.withColumn("nth", F.row_number().over(among_living))
    rows = rows.withColumn("first_provider", F.max(F.when(alive & (F.col("nth") == 1), F.coalesce("provider_code", F.lit("")))).over(place))
    rows = turn_away(rows, "conflicting_rule", F.coalesce("provider_code", F.lit("")) != F.col("first_provider"))
    # A day that the rule names and an earlier one named. Rules without days of general waste cannot be told apart: only one may stand.
    until_here = among_living.rowsBetween(Window.unboundedPreceding, Window.currentRow)
    names = [F.col("general_days").contains(day) for day in rules.WEEK] + [F.col("general_days").isNull()]
    claimed = [F.when(named, F.sum(F.when(alive & named, 1).otherwise(0)).over(until_here)).otherwise(0) for named in names]
    rows = rows.withColumn("claims", F.greatest(*claimed))
    rows = turn_away(rows, "conflicting_rule", F.col("claims") > 1)
    # By their days, not by their line: sorting the sheet changes no policy.
    by_days = Window.partitionBy("place_key").orderBy(F.col("reason").isNotNull(), "general_days", *order)
    rows = rows.withColumn("nth", F.row_number().over(by_days))
    key = F.when(alive, F.concat("place_key", F.lit("-"), F.col("nth").cast("string")))
    return rows.withColumn("key", key).drop("nth", "newest", "first_provider", "claims", "place_key")


# --- cleaning -------------------------------------------------------------------------------------------------------------------


def rules_digest(section: CleaningSection) -> str:
    """Changes when, and only when, the same files could be cleaned differently: the text of the rules and their configuration."""
    return hashlib.sha256((code_version(__name__) + canonical(section.model_dump(mode="json"))).encode()).hexdigest()


def clean(engine: Engine, store: ObjectStore, manifest: Manifest, section: CleaningSection, spark: Spark, scratch: Path) -> Cleaned:
    """Clean a frozen version into Parquet in the store; what was turned away or repaired is named, row by row. Again: no change.

    Raises:
        NothingLeft: no row is left; the version is refused, its rows and files say why.
    """
    digest = rules_digest(section)
    before = dataset.find_table(engine, manifest.system, manifest.version, manifest.sha256)
    if before is not None and before.rules == digest and dataset.is_whole(store, before):
        return _account(before, unchanged=True)
    scanned = scan(store, manifest, section)
    accepted, quarantine, contradicted = _run_rules(spark, scanned)
    if scanned.rows_in != accepted.num_rows + len(quarantine):
        raise dataset.DatasetError(
            f"{manifest.version}: {scanned.rows_in} rows in, {accepted.num_rows} accepted and {len(quarantine)} quarantined do not add up: "
            "this is a defect of the cleaning, no table is written"
        )
    counts = Counter(code for _, _, code, _ in quarantine)
    problem = None
    if accepted.num_rows == 0:
        why = counts + Counter(f"{what.code} (file: {what.excerpt})" for _, what in scanned.refused.values())
        problem = f"no policy is left of {scanned.rows_in} rows ({', '.join(f'{n} {code}' for code, n in why.most_common(4)) or 'no file'})"
    kept = set(zip(accepted["source"].to_pylist(), accepted["line"].to_pylist(), strict=True))
    findings = [
        (source, line, f.field, f.rule, f.before, f.after)
        for source, line, row in scanned.rows
        if (source, line) in kept
        for f in row.findings
    ]
    turned_away = scanned.turned_away | contradicted
    parts = [] if problem else dataset.upload_parts(store, manifest, [_write(accepted, turned_away, scratch)])
    crash.reach("cleaned.after_parts")
    with engine.begin() as connection:
        replace_quarantine(connection, manifest, quarantine)
        _replace_findings(connection, manifest, findings)
        refused = ((entry.key, (what.code, f"{FILE_REASONS[what.code]} ({what.excerpt})")) for entry, what in scanned.refused.values())
        mark_files(connection, manifest, dict(refused))
        dataset.refuse(connection, manifest.system, manifest.version, problem)
        crash.reach("cleaned.before_commit")
    crash.reach("cleaned.after_commit")
    store.put(report_key(manifest), sheet.csv_bytes(REPORT_HEADER, _report(quarantine, findings)))
    if problem:
        raise dataset.NothingLeft(
            f"{manifest.system} {manifest.version} is refused: {problem}. Correct the sheet; the next reading lands it."
        )
    body = {
        "rows_in": scanned.rows_in,
        "quarantined": dict(sorted(counts.items())),
        "findings": dict(sorted(Counter(found[3] for found in findings).items())),
        "refused_files": {name: what.code for name, (_, what) in sorted(scanned.refused.items())},
    }
    table = dataset.PublishedTable(manifest.system, manifest.version, manifest.sha256, accepted.num_rows, digest, parts, body)
    dataset.publish_table(engine, store, table)
    return _account(table)


def _account(table: PublishedTable, *, unchanged: bool = False) -> Cleaned:
    body = table.body
    return Cleaned(table, body["rows_in"], table.rows, body["quarantined"], body["findings"], body["refused_files"], unchanged)


def _run_rules(spark: Spark, scanned: Scanned) -> tuple[pa.Table, list[tuple[str, int, str, str]], set[rules.Place]]:
    """The accepted rows in the sheet's order, the quarantined ones (source, line, code, excerpt) in theirs, and the places of those that
    another row contradicts."""
    import pyarrow.compute as pc

    raw, contradicted = _raw(scanned), set[rules.Place]()
    quarantine = [(source, line, what.code, what.excerpt) for source, line, what in scanned.rejected]
    if raw.num_rows:
        with spark.session() as session:
            judged = judge(session.createDataFrame(raw)).toArrow().sort_by([("source", "ascending"), ("line", "ascending")])
        turned = judged.filter(pc.is_valid(judged["reason"])).select(["source", "line", "reason", "sido", "sigungu", "area", "place"])
        quarantine += [
            (source, line, code, " ".join(filter(None, where))[:EXCERPT])
            for source, line, code, *where in zip(*turned.to_pydict().values(), strict=True)
        ]
        for row in judged.filter(pc.equal(judged["reason"], "conflicting_rule")).select(list(rules.PLACE)).to_pylist():
            contradicted.add(rules.place_of({name: cell or "" for name, cell in row.items()}))
        accepted = judged.filter(pc.is_null(judged["reason"])).drop_columns(["reason"])
    else:
        accepted = raw.rename_columns({"place_key": "key"})
    return accepted.select([*EXTRA, *FIELDS]), sorted(quarantine), contradicted


#: In the metadata of the table's schema: the places of rows that were turned away, as JSON. It is part of the bytes that are verified.
TURNED_AWAY: Final = b"turned_away"


def turned_away(policies: pa.Table) -> set[rules.Place] | None:
    """The places of rows that were turned away when `policies` was cleaned; None: by an older cleaning that did not keep them."""
    found = (policies.schema.metadata or {}).get(TURNED_AWAY)
    return None if found is None else {tuple(place) for place in json.loads(found)}


def _write(table: pa.Table, turned_away: set[rules.Place], scratch: Path) -> Path:
    import pyarrow.parquet as pq

    places = sorted(turned_away, key=lambda place: [part or "" for part in place])
    table = table.replace_schema_metadata({TURNED_AWAY: canonical(places).encode()})

    path = scratch / "policies.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd")
    return path


def _replace_findings(connection: Connection, manifest: Manifest, findings: Sequence[tuple[Any, ...]]) -> None:
    from sqlalchemy import text

    key = {"s": manifest.system, "v": manifest.version}
    connection.execute(text("DELETE FROM row_finding WHERE system = :s AND version = :v"), key)
    columns = ["system", "version", "source", "line", "field", "rule", "before", "after"]
    copy_rows(connection, "row_finding", columns, ((manifest.system, manifest.version, *_storable(row)) for row in findings))


def _storable(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value[: sheet.MAX_CELL] if isinstance(value, str) else value for value in row)


# --- for the people who keep the sheet ------------------------------------------------------------------------------------------

REPORT_HEADER: Final = ("file", "row", "column", "code", "means", "before", "after")


def report_key(manifest: Manifest) -> str:
    """Where the CSV of dirty rows is."""
    return f"reports/{manifest.system}/{manifest.version}/dirty_rows.csv"


def _report(quarantine: Sequence[tuple[str, int, str, str]], findings: Sequence[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    for source, line, code, excerpt in quarantine:
        stays = "" if code in rules.REPLACED else "; what held at its place before stays / 이전 정책을 유지합니다"
        yield source, line, "", code, f"turned away: {rules.REASONS[code]}{stays}", excerpt, ""
    for source, line, name, rule, before, after in findings:
        yield source, line, STANDARD_COLUMNS[name], rule, rules.FINDINGS[rule], before, after


# --- the contract ---------------------------------------------------------------------------------------------------------------


def read_policies(store: ObjectStore, table: PublishedTable) -> pa.Table:
    """The cleaned policies, every part verified.

    Raises:
        DatasetError: a part is gone, or was changed.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = []
    for part in table.parts:
        key, again = f"{table.prefix}/{part.name}", f"materialize `{SYSTEM}/cleaned` for {table.version} again"
        try:
            content = store.get(key)
        except FileNotFoundError:
            raise dataset.DatasetError(f"{store.uri(key)} is gone: {again}") from None
        if hashlib.sha256(content).hexdigest() != part.sha256:
            raise dataset.DatasetError(f"{store.uri(key)} was changed: {again}")
        parts.append(pq.read_table(pa.BufferReader(content)))
    return pa.concat_tables(parts)


def check_contract(frame: pd.DataFrame) -> list[Violation]:
    """What is wrong with a cleaned table; nothing when it keeps the contract."""
    import pandera.pandas as pa

    days = pa.Check.str_matches(r"^(?=.)월?\+?화?\+?수?\+?목?\+?금?\+?토?\+?일?$")
    joined = pa.Check(lambda texts: texts.map(lambda text: set(text.split("+")) <= set(rules.WEEK)), name="days_joined_by_plus")
    start = pa.Check.str_matches(r"^([01]\d|2[0-3]):[0-5]\d$")
    end = pa.Check.str_matches(r"^(([01]\d|2[0-3]):[0-5]\d|24:00)$")
    columns: dict[str, Any] = {name: pa.Column(str, nullable=True) for name in FIELDS}
    columns |= {f"{kind}_days": pa.Column(str, [days, joined], nullable=True) for kind in rules.WITH_DAYS}
    columns |= {f"{kind}_start": pa.Column(str, start, nullable=True) for kind in rules.KINDS}
    columns |= {f"{kind}_end": pa.Column(str, [end, pa.Check.ne("00:00")], nullable=True) for kind in rules.KINDS}
    columns |= {
        "sido": pa.Column(str, pa.Check(lambda names: names.map(lambda name: name in (regions.sido(name) or ())), name="known_sido")),
        "sigungu": pa.Column(str, pa.Check.str_length(min_value=1)),
        "collection_type": pa.Column(str, pa.Check.str_length(min_value=1)),
        "phone": pa.Column(str, pa.Check.str_matches(r"^(0\d{1,2}-\d{3,4}|1\d{3})-\d{4}$"), nullable=True),
        "data_date": pa.Column(str, pa.Check.str_matches(r"^\d{4}-\d\d-\d\d$")),
        "key": pa.Column(str, pa.Check.str_matches(r"^[0-9a-f]{32}-[1-9]\d*$"), unique=True),
        "content_hash": pa.Column(str, pa.Check.str_length(32, 32)),
        "source": pa.Column(str),
        "line": pa.Column("int64", pa.Check.ge(2)),
    }
    return common.violations(pa.DataFrameSchema(columns, strict=True), frame, _some_days)


def _some_days(frame: pd.DataFrame) -> Iterator[Violation]:
    none = frame[[f"{kind}_days" for kind in rules.WITH_DAYS]].isna().all(axis=1)
    if none.any():
        yield Violation.of("a day for some kind of waste", frame.loc[none, "line"].tolist())


def contract(store: ObjectStore, engine: Engine, version: str, folder: Path) -> tuple[int, list[Violation]]:
    """Rows of a cleaned version and what is wrong with them."""
    table = read_policies(store, find_cleaned(engine, store, SYSTEM, version)[1])
    return table.num_rows, check_contract(table.to_pandas())


@dataclass(frozen=True)
class Account:
    """Rows in, accepted (counted in Parquet) and quarantined (in the database)."""

    rows_in: int
    accepted: int
    quarantined: int

    @property
    def adds_up(self) -> bool:
        return self.rows_in == self.accepted + self.quarantined

    @property
    def sentence(self) -> str:
        return f"{self.rows_in} rows in {'=' if self.adds_up else '≠'} {self.accepted} accepted + {self.quarantined} quarantined"


def account(engine: Engine, store: ObjectStore, version: str) -> Account:
    """Raises DatasetError: the version is not cleaned."""
    _, table = find_cleaned(engine, store, SYSTEM, version)
    accepted = read_policies(store, table).num_rows
    return Account(table.body["rows_in"], accepted, quarantined_count(engine, SYSTEM, version))
