"""Film reviews: what a row is, which rules it is judged by, and the table `review`. `ingest/texts.py` does the rest.

Belongs here: those rules. Does not belong here: training, Dagster, how files are streamed and splits kept.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mlops_assets.characters import is_blank
from mlops_assets.database import copy_rows
from mlops_assets.files import LFS_POINTER, LFS_REASON
from mlops_assets.ingest import texts
from mlops_assets.ingest.lines import Reader, exact_header, excerpt, fields_of
from mlops_assets.ingest.rows import Rejected, Violation, find_cleaned, quarantined_count, torn, violations
from mlops_assets.ingest.texts import Account, Cleaned, Spark, group_of
from mlops_assets.lifecycle import dataset
from mlops_assets.lifecycle.system import CleanedTable
from mlops_assets.settings import canonical
from mlops_assets.sources import code_version

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame
    from sqlalchemy import Connection, Engine

    from mlops_assets.lifecycle.dataset import Manifest
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
    "empty_document": "no text, or none that is seen",
    "duplicate_id": "an earlier row has the same id",
    "conflicting_labels": "the same text with both labels in the training rows",
    "in_holdout": "a training row whose text is held out",
    "in_train": "a held-out row whose text an earlier version trained on",
}
FILE_REASONS: Final = {
    "unexpected_file": "matches neither train_files nor holdout_files in configs/sentiment.yaml",
    "not_utf8": "is not UTF-8",
    LFS_POINTER: f"is {LFS_REASON}",
    "empty_file": "holds no row",
    "wrong_columns": "does not begin with the header id, document, label between tabs",
}

MAX_ID: Final = 128


# --- rows -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Review:
    """A row as it stands in the file, text stripped. `label` is still text: Spark judges it."""

    id: str
    document: str
    label: str


def parse_row(line: bytes) -> Review | Rejected:
    """One line after the header."""
    fields = fields_of(line, len(COLUMNS))
    if isinstance(fields, Rejected):
        return fields
    if not fields[0].strip() or len(fields[0]) > MAX_ID:
        return Rejected("malformed_row", excerpt(line))
    return Review(fields[0].strip(), fields[1].strip(), fields[2].strip())


def _parse(line: bytes, number: int) -> Mapping[str, Any] | Rejected:
    parsed = parse_row(line)
    if isinstance(parsed, Rejected) or not is_blank(parsed.document):
        return parsed if isinstance(parsed, Rejected) else vars(parsed)
    return {**vars(parsed), "document": ""}


def reader_of(section: DatasetSection, name: str) -> Reader | None:
    """How the file `name` is read; None: the configuration does not expect it."""
    holdout = any(fnmatchcase(name, pattern) for pattern in section.holdout_files)
    if not holdout and not any(fnmatchcase(name, pattern) for pattern in section.train_files):
        return None
    return Reader(exact_header(HEADER, _parse), holdout)


def former_group_of(text: str) -> bytes:
    """Before `texts.group_of`: NFC, whitespace collapsed."""
    return hashlib.sha256(" ".join(unicodedata.normalize("NFC", text).split()).encode()).digest()


def judge(raw: DataFrame) -> DataFrame:
    """`raw` with a column `reason`, null for rows that survive: label and text, then ids, then labels that contradict each other.

    Each rule looks only at what the rules before it left: a row that is turned away cannot take another with it.
    """
    from pyspark.sql import functions as F

    own = F.when(~F.col("label").isin("0", "1"), "bad_label").when(F.col("document") == "", "empty_document")
    rows = texts.turn_away_repeated(raw.withColumn("reason", own), ["id"], ["file", "line"], "duplicate_id")
    return texts.turn_away_contradicted(rows, "label", "conflicting_labels")


# --- cleaning -------------------------------------------------------------------------------------------------------------------


def rules(section: DatasetSection, max_line_bytes: int) -> texts.Rules:
    import pyarrow as pa

    config = section.model_dump(mode="json", include={"train_files", "holdout_files", "validation_fraction", "holdout_fraction"})
    digest = hashlib.sha256((code_version(__name__) + canonical([config, max_line_bytes])).encode()).hexdigest()
    schema = pa.schema(
        [("id", pa.string()), ("document", pa.string()), ("label", pa.int8()), ("split", pa.string()), ("source", pa.string())]
    )
    return texts.Rules(
        digest=digest,
        reader_of=lambda name: reader_of(section, name),
        columns=dict.fromkeys(COLUMNS, "string"),
        text="document",
        former_group_of=former_group_of,
        judge=judge,
        validation_fraction=section.validation_fraction,
        holdout_fraction=section.holdout_fraction,
        schema=schema,
        cleaned=lambda rows: rows,
        excerpt=lambda row: "\t".join(row[name] for name in COLUMNS),
        file_reasons=FILE_REASONS,
        store_rows=_replace_reviews,
        is_stored=lambda connection, table: _stored(connection, table.version) == table.rows,
    )


def clean(
    engine: Engine, store: ObjectStore, manifest: Manifest, section: DatasetSection, spark: Spark, scratch: Path, *, max_line_bytes: int
) -> Cleaned:
    """Clean a frozen version into Parquet in the store and the rows of `review`; see `texts.clean`."""
    return texts.clean(engine, store, manifest, rules(section, max_line_bytes), spark, scratch, max_line_bytes=max_line_bytes)


def _stored(connection: Connection, version: str) -> int:
    from sqlalchemy import text

    return int(connection.execute(text("SELECT count(*) FROM review WHERE version = :v"), {"v": version}).scalar_one())


def _replace_reviews(connection: Connection, manifest: Manifest, parts: Sequence[Path]) -> None:
    """What is the same is not written again."""
    import pyarrow.parquet as pq
    from sqlalchemy import text

    version = manifest.version
    columns = ("version", "id", "document", "label", "split", "source")

    def rows() -> Iterator[tuple[Any, ...]]:
        for part in parts:
            for batch in pq.ParquetFile(part).iter_batches(columns=list(columns[1:])):
                for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    yield (version, *values)

    connection.execute(text("CREATE TEMPORARY TABLE arrived (LIKE review) ON COMMIT DROP"))
    count = copy_rows(connection, "arrived", columns, rows())
    if (
        _stored(connection, version) == count
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
            "document": pa.Column(str, pa.Check(lambda text: not is_blank(text), element_wise=True, name="text_not_empty")),
            "label": pa.Column("int8", pa.Check.isin(list(LABELS))),
            "split": pa.Column(str, pa.Check.isin(list(dataset.SPLITS))),
            "source": pa.Column(str),
        },
        strict=True,
    )
    return violations(schema, frame, lambda rows: torn(rows["document"].map(group_of), rows["split"], "no text in two splits"))


def contract(store: ObjectStore, engine: Engine, version: str, folder: Path) -> tuple[int, list[Violation]]:
    """Rows of a cleaned version, downloaded to `folder` and verified, and what is wrong with them."""
    table = load_cleaned(store, engine, version, folder)
    return table.rows, check_contract(read_table(table))


def account(engine: Engine, store: ObjectStore, version: str) -> Account:
    """The account of a cleaned version, from the database and the store.

    Raises:
        DatasetError: it is not cleaned.
    """
    _, table = find_cleaned(engine, store, SYSTEM, version)
    with engine.connect() as connection:
        accepted = _stored(connection, version)
    return Account(table.body["rows_in"], accepted, quarantined_count(engine, SYSTEM, version), table.rows)
