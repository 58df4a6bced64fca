"""Comments with several labels: what a row is, which rules it is judged by, and where data sets stand among the comments.

A comment is known by its source and its id (of a data set's file: the line). Versions extend their parents, so the newest line about a
comment counts, and one that says `deleted` takes it away. Belongs here: those rules. Does not belong here: training, Dagster, how files are
streamed and splits kept (`ingest/texts.py`), where new comments come from.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mlops_assets.characters import is_blank
from mlops_assets.database import copy_rows
from mlops_assets.files import LFS_POINTER, LFS_REASON
from mlops_assets.ingest import cleaning, lines, texts
from mlops_assets.ingest.lines import Parse, Reader, fields_of
from mlops_assets.ingest.masking import mask
from mlops_assets.ingest.rows import Rejected, Violation, find_cleaned, quarantined_count, torn, violations
from mlops_assets.ingest.texts import Account, Cleaned, Spark, group_of
from mlops_assets.lifecycle import dataset
from mlops_assets.lifecycle.system import CleanedTable
from mlops_assets.settings import canonical
from mlops_assets.sources import code_version
from mlops_assets.systems.hate_speech.config import JOINT
from mlops_assets.unambiguous import Ambiguous, loads

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from pyspark.sql import DataFrame
    from sqlalchemy import Connection, Engine

    from mlops_assets.lifecycle.dataset import Manifest
    from mlops_assets.store import ObjectStore
    from mlops_assets.systems.hate_speech.config import DatasetSection, TableSection

SYSTEM: Final = "hate_speech"

#: Why a row is turned away -> what that means, for the metadata.
ROW_REASONS: Final = {
    "malformed_row": "not the columns of its file, or not a comment as the ledger writes it",
    "not_utf8": "bytes that are not UTF-8",
    "too_large": "longer than MLOPS_MAX_LINE_BYTES",
    "bad_label": "a label column with something else than 0 and 1",
    "unlabelled": "no label at all",
    "unmapped_label": "a label that configs/hate_speech.yaml maps to none of ours",
    "unknown_label": "a label that is none of ours",
    "clean_and_hateful": "clean together with another label",
    "superseded": "a newer line about the same comment stands in the version",
    "deleted": "the comment was deleted at its source",
    **cleaning.REASONS,
    "conflicting_labels": "the same text with other labels in the training rows",
    "duplicate_text": "an earlier row has the same text and labels",
    "in_holdout": "a training row whose text, or one that differs in spaces, signs or repeated letters alone, is held out",
    "in_train": "a held-out row whose text an earlier version trained on",
}
FILE_REASONS: Final = {
    "unexpected_file": "matches neither a table's files nor comment_files in configs/hate_speech.yaml",
    "not_utf8": "is not UTF-8",
    LFS_POINTER: f"is {LFS_REASON}",
    "empty_file": "holds no row",
    "second_file": "is a second file of its table, and a row is known by its table and line alone: put the rows into one file and land it "
    "as a new version; in a version that extends another, under the name that the file has there",
    "wrong_columns": "has not the columns of its table",
}

#: The raw row's own columns. `labels` are joined, and so are `names`, the groups that the text names; `problem` is a reason that the row
#: brings with it.
COLUMNS: Final = {
    "comment": "string",
    "number": "int64",
    "text": "string",
    "labels": "string",
    "names": "string",
    "personal": "bool",
    "deleted": "bool",
    "problem": "string",
}


# --- rows -----------------------------------------------------------------------------------------------------------------------


def reader_of(section: DatasetSection, name: str) -> Reader | None:
    """How the file `name` is read; None: the configuration does not expect it."""
    if any(fnmatchcase(name, pattern) for pattern in section.comment_files):
        held_out = frozenset(source for source, table in section.tables.items() if table.holdout)
        return Reader(lambda header: lambda line, number: parse_comment(line, section, held_out), has_header=False)
    for source, table in section.tables.items():
        if any(fnmatchcase(name, pattern) for pattern in table.files):
            return Reader(_opener(section, source, table), table.holdout, only_file_of=source)
    return None


def _opener(section: DatasetSection, source: str, table: TableSection) -> Callable[[bytes], Parse | Rejected]:
    """The parser of a table's lines, by where its header has the columns."""
    own = [table.label] if table.label else list(section.labels)
    wanted = [table.text, *own, *([table.personal] if table.personal else [])]

    def opened(header: bytes) -> Parse | Rejected:
        found = header.decode().split("\t")
        # A column of a label that nobody knows must not be left out silently; where one column has the label, the others say nothing.
        if set(wanted) - set(found) or (table.label is None and set(found) - set(wanted)):
            return lines.wrong_columns("\t".join(wanted), header)
        at = {column: found.index(column) for column in wanted}

        def parse(line: bytes, number: int) -> Mapping[str, Any] | Rejected:
            fields = fields_of(line, len(found))
            if isinstance(fields, Rejected):
                return fields
            values = {column: fields[place].strip() for column, place in at.items()}
            labels, problem = _mapped(values, table) if table.label else _flagged(values, section)
            personal = values[table.personal] == "1" if table.personal else None
            if table.personal and values[table.personal] not in ("0", "1"):
                problem = problem or "bad_label"
            return _row(section, source, number, values[table.text], labels, problem, personal=personal)

        return parse

    return opened


def _mapped(values: Mapping[str, str], table: TableSection) -> tuple[Sequence[str], str | None]:
    assert table.label is not None
    labels = table.labels.get(values[table.label])
    return (labels, None) if labels else ((), "unmapped_label")


def _flagged(values: Mapping[str, str], section: DatasetSection) -> tuple[Sequence[str], str | None]:
    if any(values[label] not in ("0", "1") for label in section.labels):
        return (), "bad_label"
    return [label for label in section.labels if values[label] == "1"], None


def parse_comment(line: bytes, section: DatasetSection, held_out: frozenset[str] = frozenset()) -> Mapping[str, Any] | Rejected:
    """A line as cut from the ledger of comments. One about a held-out comment of a data set stays held out."""
    try:
        found = loads(line.decode())
    except UnicodeDecodeError:
        return Rejected("not_utf8", lines.excerpt(line))
    except Ambiguous as error:
        return Rejected("malformed_row", lines.excerpt(str(error).encode()))
    except (ValueError, RecursionError):
        found = None
    kinds = {"source": str, "id": int, "text": str, "labels": list, "deleted": bool}
    # Exactly: in Python true is an integer, in a column it is none.
    whole = isinstance(found, dict) and all(type(found.get(name)) is kind for name, kind in kinds.items())
    if not whole or not all(isinstance(label, str) for label in found["labels"]) or not _can_be_stored(found):
        return Rejected("malformed_row", lines.excerpt(line))
    problem = "unknown_label" if set(found["labels"]) - set(section.labels) else None
    row = _row(section, found["source"], found["id"], found["text"], found["labels"], problem, deleted=found["deleted"])
    return {**row, "holdout": found["source"] in held_out}


def _can_be_stored(comment: Mapping[str, Any]) -> bool:
    """What JSON can say and no column holds: an id over 64 bits, half of a surrogate pair, a zero character."""
    try:
        said = (comment["source"] + comment["text"]).encode()
    except UnicodeEncodeError:
        return False
    return b"\x00" not in said and -(2**63) <= comment["id"] < 2**63


def _row(
    section: DatasetSection,
    source: str,
    number: int,
    text: str,
    labels: Sequence[str],
    problem: str | None,
    *,
    personal: bool | None = None,
    deleted: bool = False,
) -> Mapping[str, Any]:
    if problem is None and not labels:
        problem = "unlabelled"
    if problem is None and section.clean in labels and len(labels) > 1:
        problem = "clean_and_hateful"
    text = mask(text.strip())
    return {
        "comment": source,
        "number": number,
        "text": text,
        "labels": JOINT.join(label for label in section.labels if label in labels),
        "names": JOINT.join(label for label, words in section.groups.items() if any(word in text for word in words)),
        "personal": personal,
        "deleted": deleted,
        "problem": problem,
    }


_FORMERLY_INVISIBLE: Final = re.compile(
    "[\u0000-\u0008\u000e-\u001f\u007f-\u0084\u0086-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200c\u200e\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb]+"
)
_FORMER_ENTITIES: Final = (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&#39;", "'"), ("&apos;", "'"), ("&nbsp;", " "), ("&amp;", "&"))


def former_group_of(text: str) -> bytes:
    """Before `texts.group_of`: letters and digits alone, each once in a row, with fewer entities and invisible characters known."""
    plain = _FORMERLY_INVISIBLE.sub("", text.translate(str.maketrans("０１２３４５６７８９－．＠＋（）", "0123456789-.@+()")))
    for entity, character in _FORMER_ENTITIES:
        plain = plain.replace(entity, character)
    letters = (c for c in unicodedata.normalize("NFKC", cleaning.without_urls(plain)).casefold() if c.isalnum())
    skeleton = "".join(letter for letter, _ in itertools.groupby(letters))
    return hashlib.sha256((skeleton or " ".join(unicodedata.normalize("NFC", text).split())).encode()).digest()


# --- the rules (Spark) ----------------------------------------------------------------------------------------------------------


def judge(raw: DataFrame, section: DatasetSection) -> DataFrame:
    """`raw` with a column `reason`, null for rows that survive: first which line counts, then the row by itself, then rows of one text."""
    from pyspark.sql import functions as F

    rows = raw.withColumn("reason", F.lit(None).cast("string"))
    rows = texts.turn_away_repeated(rows, ["comment", "number"], [F.desc("file"), F.desc("line")], "superseded")
    rows = texts.turn_away(rows, F.col("deleted"), "deleted")
    rows = texts.turn_away(rows, F.col("problem").isNotNull(), F.col("problem"))
    rows = cleaning.cleaned(rows, "text", section.cleaning)
    unfit = cleaning.judged(F.col("text"), section.cleaning)
    # Of what is held out, only what is empty: a figure is comparable when it is of all the rows that others measured.
    rows = texts.turn_away(rows, unfit.isNotNull() & (~F.col("holdout") | (unfit == "empty_text")), unfit)
    rows = texts.turn_away_contradicted(rows, "labels", "conflicting_labels", of="text")
    return texts.turn_away_repeated(rows, ["text", "holdout"], ["file", "line"], "duplicate_text")


# --- cleaning -------------------------------------------------------------------------------------------------------------------


def rules(section: DatasetSection, max_line_bytes: int) -> texts.Rules:
    import pyarrow as pa

    # What only training and measuring read does not change a table.
    config = section.model_dump(mode="json", exclude={"sampling_rate", "max_length", "licence", "attribution"})
    digest = code_version(__name__) + canonical([config, max_line_bytes])
    schema = pa.schema(
        [("id", pa.string()), ("source", pa.string()), ("number", pa.int64()), ("text", pa.string())]
        + [
            ("labels", pa.list_(pa.string())),
            ("names", pa.string()),
            ("personal", pa.bool_()),
            ("split", pa.string()),
            ("file", pa.string()),
        ]
    )
    return texts.Rules(
        digest=hashlib.sha256(digest.encode()).hexdigest(),
        reader_of=lambda name: reader_of(section, name),
        columns=COLUMNS,
        text="text",
        former_group_of=former_group_of,
        judge=partial(judge, section=section),
        validation_fraction=section.validation_fraction,
        holdout_fraction=section.holdout_fraction,
        schema=schema,
        cleaned=_cleaned,
        excerpt=_excerpt,
        file_reasons=FILE_REASONS,
        store_rows=lambda connection, manifest, parts: _store_comments(connection, manifest, parts, section),
        is_stored=lambda connection, table: True,  # comments live on: what a later version or the source said of them stands there
    )


def _cleaned(rows: pa.Table) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    ids = pc.binary_join_element_wise(rows["comment"], pc.cast(rows["number"], pa.string()), "#")
    labels = pc.split_pattern(rows["labels"], JOINT)
    renamed = rows.drop_columns(["file", "labels"]).rename_columns({"source": "file", "comment": "source"})
    return renamed.append_column("id", ids).append_column("labels", labels)


def _excerpt(row: Mapping[str, Any]) -> str:
    """Who was deleted is not quoted."""
    name = f"{row['comment']}#{row['number']}"
    return name if row["reason"] in ("deleted", "superseded") else "\t".join((name, row["labels"], row["text"]))


def clean(
    engine: Engine, store: ObjectStore, manifest: Manifest, section: DatasetSection, spark: Spark, scratch: Path, *, max_line_bytes: int
) -> Cleaned:
    """Clean a frozen version into Parquet in the store, and its data sets' rows into `comment`; see `texts.clean`."""
    return texts.clean(engine, store, manifest, rules(section, max_line_bytes), spark, scratch, max_line_bytes=max_line_bytes)


# --- among the comments ---------------------------------------------------------------------------------------------------------


def content_hash(text: str) -> int:
    """Of a data set's text. Nothing in it was secret, so no key is needed."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)


def _store_comments(connection: Connection, manifest: Manifest, parts: Sequence[Path], section: DatasetSection) -> None:
    """The data sets' rows as comments with their labels. What the ledger of comments itself gave stands there already.

    Again it changes nothing, and an old version that is cleaned again takes back nothing that a newer one said.
    """
    from sqlalchemy import text

    connection.execute(
        text(
            "CREATE TEMPORARY TABLE arrived (source text, id bigint, content_hash bigint, text text, at timestamptz, moderation jsonb, "
            "labels text[]) ON COMMIT DROP"
        )
    )
    columns = ("source", "id", "content_hash", "text", "at", "moderation", "labels")
    copy_rows(connection, "arrived", columns, _of_data_sets(manifest, parts, section))
    for statement in _ARRIVED:
        connection.execute(text(statement))


#: Whether a row of `arrived` is not older than the comment that stands there.
_NEWEST = "NOT EXISTS (SELECT FROM comment c WHERE c.source = a.source AND c.id = a.id AND c.updated_at > a.at)"
_ARRIVED: Final = (
    "INSERT INTO comment_source AS s (source, read_to) SELECT source, max(id) FROM arrived GROUP BY source "
    "ON CONFLICT (source) DO UPDATE SET read_to = excluded.read_to WHERE s.read_to < excluded.read_to",
    "INSERT INTO comment_ledger (source, id, content_hash) SELECT source, id, content_hash FROM arrived ON CONFLICT DO NOTHING",
    # The label first: it counts what the comment said before.
    "INSERT INTO comment_label (source, id, content_hash, labels, origin, actor) "
    "SELECT a.source, a.id, a.content_hash, a.labels, 'dataset', a.source FROM arrived a "
    "LEFT JOIN LATERAL (SELECT l.content_hash, l.labels FROM comment_label l WHERE l.source = a.source AND l.id = a.id "
    "AND l.origin = 'dataset' ORDER BY l.sequence DESC LIMIT 1) l ON true "
    f"WHERE (l.content_hash, l.labels) IS DISTINCT FROM (a.content_hash, a.labels) AND {_NEWEST} ORDER BY a.source, a.id",
    "INSERT INTO comment AS c (source, id, content_hash, text, created_at, updated_at, moderation) "
    f"SELECT source, id, content_hash, text, at, at, moderation FROM arrived a WHERE {_NEWEST} "
    "ON CONFLICT (source, id) DO UPDATE SET content_hash = excluded.content_hash, text = excluded.text, updated_at = excluded.updated_at, "
    "moderation = excluded.moderation, deleted_at = NULL "
    "WHERE excluded.updated_at > c.updated_at OR c.deleted_at IS NOT NULL",
)


def _of_data_sets(manifest: Manifest, parts: Sequence[Path], section: DatasetSection) -> Iterator[tuple[Any, ...]]:
    import pyarrow.parquet as pq

    landed: dict[str, datetime] = {}
    for entry in manifest.entries:
        landed[entry.path if entry.from_version == manifest.version else f"{entry.from_version}/{entry.path}"] = entry.last_modified
    for part in parts:
        for batch in pq.ParquetFile(part).iter_batches(columns=["source", "number", "text", "labels", "personal", "file"]):
            for row in batch.to_pylist():
                table = section.tables.get(row["source"])
                if table is None or any(fnmatchcase(row["file"].rsplit("/", 1)[-1], pattern) for pattern in section.comment_files):
                    continue
                apart = json.dumps({table.personal: row["personal"]}, ensure_ascii=False) if table.personal else None
                yield (
                    row["source"],
                    row["number"],
                    content_hash(row["text"]),
                    row["text"],
                    landed[row["file"]],
                    apart,
                    row["labels"],
                )


# --- the contract ---------------------------------------------------------------------------------------------------------------


def load_cleaned(store: ObjectStore, engine: Engine, version: str, folder: Path) -> CleanedTable:
    """The cleaned comments of a version, downloaded to `folder` and verified: what training and evaluation read."""
    return dataset.load_table(store, engine, SYSTEM, version, folder)


def read_table(table: CleanedTable) -> pd.DataFrame:
    import pyarrow.parquet as pq

    frame: pd.DataFrame = pq.read_table(sorted(table.folder.glob("*.parquet"))).to_pandas()
    return frame.assign(labels=[JOINT.join(labels) for labels in frame["labels"]])


def check_contract(frame: pd.DataFrame, section: DatasetSection) -> list[Violation]:
    """What is wrong with a cleaned table (labels joined); nothing when it keeps the contract."""
    import pandera.pandas as pa

    def proper(joined: str) -> bool:
        labels = joined.split(JOINT)
        return labels == [label for label in section.labels if label in labels] and (
            labels == [section.clean] or section.clean not in labels
        )

    schema = pa.DataFrameSchema(
        {
            "id": pa.Column(str, unique=True),
            "source": pa.Column(str, pa.Check.str_length(min_value=1)),
            "number": pa.Column("int64"),
            "text": pa.Column(str, pa.Check(lambda text: not is_blank(text), element_wise=True, name="text_not_empty")),
            "labels": pa.Column(str, pa.Check(proper, element_wise=True, name="known_labels")),
            "names": pa.Column(str),
            "personal": pa.Column(object, pa.Check.isin([True, False]), nullable=True),
            "split": pa.Column(str, pa.Check.isin(list(dataset.SPLITS))),
            "file": pa.Column(str),
        },
        strict=True,
    )
    frame = frame.assign(personal=frame["personal"].astype(object)) if "personal" in frame else frame
    groups = "no text in two splits, whatever its spaces, signs and repeated letters"
    return violations(schema, frame, lambda rows: torn(rows["text"].map(group_of), rows["split"], groups))


def contract(store: ObjectStore, engine: Engine, version: str, folder: Path, section: DatasetSection) -> tuple[int, list[Violation]]:
    """Rows of a cleaned version, downloaded to `folder` and verified, and what is wrong with them."""
    table = load_cleaned(store, engine, version, folder)
    return table.rows, check_contract(read_table(table), section)


def account(engine: Engine, store: ObjectStore, version: str) -> Account:
    """The account of a cleaned version, from the database and the store.

    Raises:
        DatasetError: it is not cleaned.
    """
    _, table = find_cleaned(engine, store, SYSTEM, version)
    return Account(table.body["rows_in"], sum(table.body["splits"].values()), quarantined_count(engine, SYSTEM, version), table.rows)
