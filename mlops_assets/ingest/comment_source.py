"""The application's table of comments, read and never written: which columns it has, and the few queries that are asked of it.

Every query is one consistent read of its own in a READ ONLY session: no lock, no open transaction that would hold the source's purge back.
Every query walks an index from a known key and has a bound. Hashes are computed by the source itself, so that what is the same on both
sides does not travel.

Belongs here: the configuration section, SQL for MySQL and MariaDB. Does not belong here: which columns can be read
(`comment_columns.py`), what is done with the rows (`comments.py`), our own tables, Dagster.
"""

from __future__ import annotations

import re
import secrets
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias
from zoneinfo import ZoneInfo

from pydantic import Field, PositiveInt, field_validator, model_validator

from mlops_assets.ingest import comment_columns as columns
from mlops_assets.ingest.comment_columns import EPOCH, Column, Encoding, Unit, quoted
from mlops_assets.settings import SettingsError, Strict, read_yaml, validate

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Connection

    from mlops_assets.settings import Settings

#: The ids that our tables can hold. Nothing was read up to MIN_ID.
MIN_ID: Final = -(2**63)
MAX_ID: Final = 2**63 - 1
#: Ranges, or ids, in one query.
MAX_RANGES: Final = 100
MAX_IDS: Final = 500
#: Rows at either end of the table that are looked at when its columns are judged.
SAMPLED: Final = 50

Labels: TypeAlias = tuple[str, ...]


class CommentsError(RuntimeError):
    """Comments could not be read or compared. The message says what, why and the next command; nothing was lost."""


# --- the section `comments:` of a system's configuration --------------------------------------------------------------------------------


class ModerationSection(Strict):
    """What a decision of the source's moderators says about a comment."""

    column: str
    """Holds the decision. NULL: nobody has decided."""
    decisions: dict[str, Labels | Literal["listed"] | None]
    """Its value -> labels; `listed`: those that the column `listed` names; null: it says nothing about labels. A value that is not here is
    reported at each tick, and the comment stays without a label."""
    listed: str | None = None
    """Column of label names, separated by commas."""
    names: dict[str, str] = {}
    """The source's name of a label -> ours."""

    @field_validator("decisions", "names", mode="before")
    @classmethod
    def _text_keys(cls, value: Any) -> Any:
        """YAML reads 1 as a number, the source's column says '1'."""
        return {_as_the_source_says(key): item for key, item in value.items()} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _listed_has_a_column(self) -> ModerationSection:
        if "listed" in self.decisions.values() and not (self.listed and self.names):
            raise ValueError("a decision says `listed`, but `listed` (the column) or `names` (its labels) is not given")
        if any(labels == () for labels in self.decisions.values()):
            raise ValueError("a decision has an empty list of labels: write null when it says nothing about labels")
        return self

    @property
    def labels(self) -> frozenset[str]:
        """Every label that a decision may give."""
        decided = (labels for labels in self.decisions.values() if isinstance(labels, tuple))
        return frozenset(label for labels in decided for label in labels) | frozenset(self.names.values())


def _as_the_source_says(value: Any) -> str:
    """A value of a column as YAML has it, as text."""
    if value is None or isinstance(value, bool):
        raise ValueError(
            f"{value} is not what a column says: yes, no, on, off, true, false, null need quotes; a boolean column says 0 or 1"
        )
    return str(value)


class DeletedSection(Strict):
    """The column by which the application marks comments as deleted. Such a comment is deleted here, as if its row were gone."""

    column: str
    values: tuple[str, ...] = ()
    """What it says of a deleted comment. With neither `values` nor `alive`: whatever is not NULL."""
    alive: tuple[str, ...] = ()
    """Or what it says (beside NULL) of one that is not deleted."""

    @field_validator("values", "alive", mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        return tuple(_as_the_source_says(one) for one in value) if isinstance(value, list | tuple) else value

    @model_validator(mode="after")
    def _one_of_both(self) -> DeletedSection:
        if self.values and self.alive:
            raise ValueError("`deleted` has both `values` and `alive`: say which values mean deleted, or which do not")
        return self


class CommentsSection(Strict):
    """A table of comments in the application's database (MLOPS_COMMENTS_URL), and how it is read."""

    source: str = Field(min_length=1)
    """What the table is called here; never change it, the ledger goes by it."""
    table: str
    """`table` or `schema.table`."""
    id: str = "id"
    """An integer that grows with each new comment, with a unique index (the primary key)."""
    text: str = "text"
    created_at: str = "created_at"
    updated_at: str | None = "updated_at"
    """When the comment was changed last, with an index; null: edits are found among the newest ids, and at night."""
    kept: tuple[str, ...] = ()
    """Further columns that are kept as they are (moderation fields)."""
    moderation: ModerationSection | None = None
    deleted: DeletedSection | None = None
    """How comments are marked that are deleted and whose rows stay; null: a deleted comment's row is gone."""
    time_zone: str = "UTC"
    """Zone of its DATETIME columns (TIMESTAMP columns need none)."""
    epochs: dict[str, Unit] = {}
    """Time columns that are numbers -> what they count since 1970 (UTC): seconds, milliseconds or microseconds."""
    encodings: dict[str, Encoding] = {}
    """Columns whose bytes are not what their character set says (UTF-8 in latin1), or that have none (BLOB) -> utf-8 or cp949."""

    batch_rows: PositiveInt = 5_000
    """Rows of one page, which is one transaction."""
    seconds_per_tick: float = Field(default=20.0, gt=0, le=50)
    """A tick begins no further page after so long: Dagster ends a sensor after 60 s."""
    overlap_minutes: float = Field(default=15.0, ge=0)
    """A transaction that changes a comment commits later than its `updated_at`, by so much at most: every so many minutes edits are looked
    for again from twice as far back; at each tick from a minute back."""
    hole_expiry_hours: float = Field(default=24.0, ge=0)
    """An id that was passed and did not come within so long belonged to a transaction that was rolled back; the night looks once more."""
    hole_look_seconds: float = Field(default=600.0, gt=0)
    """The longest time between two looks at the same hole; young ones are looked at more often."""
    window_rows: PositiveInt = 20_000
    """The newest comments, which are compared with the source again and again, for deletions (and edits without `updated_at`)."""
    window_slice: PositiveInt = 1_000
    """How many of them at each tick."""
    bucket_rows: PositiveInt = 5_000
    """Rows of which the night compares count and hash at a time."""
    max_deleted_share: float = Field(default=0.2, ge=0, le=1)
    """When more of the comments than this are gone at once nothing is marked deleted: it may be another database. Up to
    `max_deleted_rows` are always believed, unless the table is empty."""
    max_deleted_rows: int = Field(default=20, ge=0)

    @field_validator("id", "text", "created_at", "updated_at", "kept", "table")
    @classmethod
    def _is_a_name(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        for name in (value,) if isinstance(value, str) else value or ():
            if not re.fullmatch(r"[\w$]+(\.[\w$]+)?", name):
                raise ValueError(f"{name!r} cannot be the name of a column or table")
        return value

    @model_validator(mode="after")
    def _zone(self) -> CommentsSection:
        try:
            zone = ZoneInfo(self.time_zone)
        except (KeyError, ValueError, OSError):
            raise ValueError(f"time_zone {self.time_zone!r} is unknown: such as Asia/Seoul") from None
        shifts = {datetime(2026, month, 1, tzinfo=zone).utcoffset() for month in range(1, 13)}
        if len(shifts) > 1 and self.overlap_minutes < 75:
            raise ValueError(f"clocks in {self.time_zone} go back an hour once a year: overlap_minutes must be 75 or more")
        return self

    @model_validator(mode="after")
    def _names_its_own_columns(self) -> CommentsSection:
        for setting, named, known in (
            ("epochs", self.epochs, (self.created_at, self.updated_at)),
            ("encodings", self.encodings, (self.text, *self.fields)),
        ):
            if strange := sorted(set(named) - set(known)):
                raise ValueError(f"`{setting}` names {', '.join(strange)}: it may name {', '.join(one for one in known if one)}")
        return self

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns that are kept beside the text, in one order."""
        named = (self.moderation.column, self.moderation.listed) if self.moderation else ()
        return tuple(dict.fromkeys(name for name in (*self.kept, *named) if name))


def section_of(settings: Settings, system: str) -> CommentsSection:
    """The section `comments` of `configs/<system>.yaml`.

    Raises:
        SettingsError: there is none, or it is wrong.
    """
    path = settings.configs / f"{system}.yaml"
    values = read_yaml(path).get("comments")
    if not isinstance(values, dict):
        raise SettingsError(f"{path} has no section `comments`: {system} reads no table of comments.")
    return validate(CommentsSection, values, f"{path}, section comments")


def labels_of(section: ModerationSection, values: Mapping[str, str | None]) -> tuple[Labels | None, str | None]:
    """What the moderators say of a comment with these fields: (labels, None), (None, None) for nothing, or (None, what is not mapped).

    A list of which one name is not mapped gives no label at all: the other names alone would say that it is not that one.
    """
    decision = values.get(section.column)
    if decision is None:
        return None, None
    if decision not in section.decisions:
        return None, f"{section.column}={decision}"
    labels = section.decisions[decision]
    if labels != "listed":
        return labels, None
    names = [name.strip() for name in (values.get(section.listed or "") or "").split(",") if name.strip()]
    unknown = [name for name in names if name not in section.names]
    if unknown or not names:
        return None, f"{section.listed}={','.join(unknown)}"
    return tuple(sorted({section.names[name] for name in names})), None


def hash_key(settings: Settings) -> str:
    """The key of the hashes, made at first use (0600): without it a hash tells nothing about the text that was masked."""
    import os

    path: Path = settings.home / "keys" / "comments.key"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(aside, path)  # of two at the same time the first wins, and nobody reads half a key
        except FileExistsError:
            pass
        finally:
            aside.unlink()
    return path.read_text(encoding="ascii").strip()


# --- the table --------------------------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A comment as the source has it. Hashes are decimal text of signed 64 bits; times are microseconds since 1970 in the column's zone."""

    id: int
    content_hash: str
    row_hash: str
    text: str | None
    flaw: str | None
    """Why there is no text: the reason of the quarantine."""
    created: int | None
    updated: int | None
    deleted: bool
    """The application has marked it so; its text did not travel."""
    fields: tuple[str | None, ...]


class Bucket(NamedTuple):
    """Up to the id `last`: how many rows are not marked deleted, and the exclusive or of their hashes."""

    last: int
    rows: int
    xor: int


class Edit(NamedTuple):
    at: datetime
    id: int
    row_hash: int | None
    """None: it is marked deleted."""


class Signature(NamedTuple):
    """Tells whether the ids of a range are still the same: how many, and the sum of their checksums."""

    rows: int
    sum: int

    @classmethod
    def of(cls, ids: Sequence[int]) -> Signature:
        return cls(len(ids), sum(zlib.crc32(str(id_).encode()) for id_ in ids))


class Table:
    """An open connection to the source, and the queries. Use `connect`."""

    def __init__(self, connection: Connection, section: CommentsSection, key: str, max_bytes: int) -> None:
        self.section, self._connection, self._key, self._max_bytes = section, connection, key, max_bytes
        #: What people should hear of though the table can be read.
        self.problems: list[str] = []
        self._values: dict[str, Any] = {}
        found = self._columns()
        id_, text_, created, updated, gone = (
            found[name.lower()]._replace(name=name) if name else None
            for name in (section.id, section.text, section.created_at, section.updated_at, section.deleted and section.deleted.column)
        )
        assert id_ and text_ and created
        fields = [found[name.lower()]._replace(name=name) for name in section.fields]
        self._refuse(
            columns.id_fault(section.table, id_),
            columns.text_fault(section.table, text_, section.encodings),
            columns.time_fault(section.table, created, section.epochs, of_edits=False),
            columns.time_fault(section.table, updated, section.epochs, of_edits=True) if updated else None,
            columns.deleted_fault(section.table, gone, named=bool(section.deleted and (section.deleted.values or section.deleted.alive)))
            if gone
            else None,
            *(columns.field_fault(section.table, field) for field in fields),
        )
        indexes = self._indexes()
        by_id, self.unique = _index_of_id(section, id_, indexes)
        #: Whether edits can be found by time without reading the whole table.
        self.by_time = next((name for name, index in indexes.items() if index.columns[0] == (section.updated_at or "").lower()), None)
        if section.updated_at and self.by_time is None:
            raise CommentsError(
                f"{section.table} has no index that begins with {section.updated_at}: every look for edits would read the whole table. "
                f"Add one (`CREATE INDEX ... ON {section.table} ({section.updated_at})`), or set updated_at: null in `comments`."
            )
        self._id = quoted(section.id)
        self._from = f"FROM {quoted(section.table)} FORCE INDEX ({quoted(by_id)})"
        self._from_by_time = f"FROM {quoted(section.table)} FORCE INDEX ({quoted(self.by_time or by_id)})"
        self._deleted = self._marked_deleted(gone) if gone else "FALSE"
        self._judge(id_, text_, fields, {False: created, True: updated})
        zone = ZoneInfo(section.time_zone)
        created_clock, updated_clock = (columns.clock(one, zone, section.epochs) for one in (created, updated or created))
        self.created_zone, self.updated_zone, self._edited = created_clock.zone, updated_clock.zone, updated_clock
        content = f"SHA2(CONCAT(%(key)s, {columns.words(text_, section.encodings)}), 256)"
        values = [columns.words(field, section.encodings) for field in fields]
        # Hexadecimal and N for NULL: no two rows have the same concatenation. The id is in the row's hash, or equal texts that change
        # alike (or swap) would cancel out in a bucket's exclusive or.
        whole = ", ',', ".join([self._id, *[f"COALESCE({one}, 'N')" for one in (content, *[f"HEX({value})" for value in values])]])
        self._content_hash = _signed(f"COALESCE({content}, SHA2(%(key)s, 256))")
        self._row_digest = f"LEFT(SHA2(CONCAT(%(key)s, {whole}), 256), 16)"
        size = f"OCTET_LENGTH({text_.sql})"
        short = f"IF({self._deleted} OR {size} > {int(max_bytes)}, NULL, {columns.words(text_, section.encodings)})"
        parts = [self._id, self._content_hash, f"CONV({self._row_digest}, 16, -10)", short, size]
        self._row = ", ".join([*parts, created_clock.microseconds, updated_clock.microseconds, self._deleted, *values])

    def _refuse(self, *faults: str | None) -> None:
        if told := " ".join(fault for fault in faults if fault):
            raise CommentsError(told)

    def _marked_deleted(self, column: Column) -> str:
        """SQL: whether a row is marked deleted; never NULL."""
        section, value = self.section.deleted, columns.words(column, {})
        assert section is not None
        for number, one in enumerate(section.values or section.alive):
            self._values[f"deleted_{number}"] = one
        named = ", ".join(f"%({name})s" for name in self._values)
        if section.values:
            return f"COALESCE({value} IN ({named}), FALSE)"
        if section.alive:
            return f"COALESCE({value} NOT IN ({named}), FALSE)"
        never = f" AND LEFT({value}, 10) <> '0000-00-00'" if column.type in ("date", "datetime", "timestamp") else ""
        return f"({column.sql} IS NOT NULL{never})"

    def _judge(self, id_: Column, text_: Column, fields: Sequence[Column], times: Mapping[bool, Column | None]) -> None:
        """Look at some rows of either end, whether they are what the columns say."""
        table, section = self.section.table, self.section
        worded = {column.name: column for column in (text_, *fields) if column.is_words}
        numbers = {column.name: column for column in times.values() if column and column.is_number}
        shown = [f"LEFT(CAST({column.sql} AS BINARY), {columns.LOOKED_AT})" for column in worded.values()]
        what = ", ".join([self._id, self._deleted, *shown, *(column.sql for column in numbers.values())])
        ends = (f"(SELECT {what} {self._from} ORDER BY {self._id}{order} LIMIT {SAMPLED})" for order in ("", " DESC"))
        rows = {row[0]: row for row in self._ask(" UNION ALL ".join(ends))}.values()
        samples = dict(zip((*worded, *numbers), zip(*(row[2:] for row in rows), strict=True), strict=False)) if rows else {}
        self._refuse(
            *(columns.words_fault(table, worded[name], samples.get(name, ()), section.encodings) for name in worded),
            *(
                columns.number_fault(table, column, samples.get(column.name, ()), section.epochs, of_edits=of_edits)
                for of_edits, column in times.items()
                if column and column.is_number
            ),
            columns.json_fault(table, text_) if self._is_json(text_) or columns.are_documents(samples.get(text_.name, ())) else None,
        )
        if len(rows) >= SAMPLED and all(row[1] for row in rows):
            raise CommentsError(
                f"all of {len(rows)} comments at both ends of {table} are deleted as `deleted` {columns.SECTION} has it: "
                "does it name the values of those that are not? (`alive` instead of `values`)"
            )
        if id_.nullable and self._ask(f"SELECT 1 {self._from} WHERE {self._id} IS NULL LIMIT 1"):
            self.problems.append(f"{table} has rows whose {id_.name} is NULL: they cannot be told apart, and are not read. Give them one.")

    def key_check(self) -> int:
        """The hash of a constant, to notice another key."""
        return int(self._ask(f"SELECT {_signed('SHA2(%(key)s, 256)')}")[0][0])

    def page(self, after: int, limit: int) -> list[Row]:
        """The next rows by id, at most `limit`."""
        return self._rows(f"{self._id} > %(after)s AND {self._id} <= {MAX_ID}", {"after": after}, limit)

    def beyond(self) -> bool:
        """Whether there is an id that our tables cannot hold."""
        return bool(self._ask(f"SELECT 1 {self._from} WHERE {self._id} > {MAX_ID} LIMIT 1"))

    def signatures(self, ranges: Sequence[tuple[int, int]]) -> list[Signature]:
        """Of each of at most MAX_RANGES ranges (both ends count) what ids are there."""
        one = f"SELECT {{}}, COUNT(*), SUM(CRC32({self._id} + 0)) {self._from} WHERE {self._id} BETWEEN {{}} AND {{}}"
        sql = " UNION ALL ".join(one.format(number, int(first), int(last)) for number, (first, last) in enumerate(ranges))
        return [Signature(int(rows), int(sum_ or 0)) for _, rows, sum_ in sorted(self._ask(sql), key=lambda row: int(row[0]))]

    def ids(self, first: int, last: int, limit: int) -> list[int]:
        """The ids from `first` to `last`, ascending, at most `limit`."""
        sql = f"SELECT {self._id} {self._from} WHERE {self._id} BETWEEN {int(first)} AND {int(last)} ORDER BY {self._id}"
        return self._each_once([int(row[0]) for row in self._ask(f"{sql} LIMIT {int(limit) + 1}")], limit)

    def rows(self, ids: Sequence[int]) -> Iterator[Row]:
        for start in range(0, len(ids), MAX_IDS):
            yield from self._rows(f"{self._id} IN ({', '.join(str(int(one)) for one in ids[start : start + MAX_IDS])})", {}, MAX_IDS)

    def bucket(self, after: int, last: int, limit: int) -> Bucket:
        """Count and hash of the next `limit` rows after `after` up to `last`."""
        hash_ = f"IF({self._deleted}, NULL, CAST(CONV({self._row_digest}, 16, 10) AS UNSIGNED))"
        inner = f"SELECT {self._id} AS id, {hash_} AS hash {self._from}"
        inner += f" WHERE {self._id} > %(after)s AND {self._id} <= %(last)s ORDER BY {self._id} LIMIT {int(limit)}"
        values = {"after": after, "last": last}
        of_all = "MAX(id), COUNT(*), COUNT(hash), BIT_XOR(hash)" + ("" if self.unique else ", COUNT(DISTINCT id)")
        ((found, count, alive, xor, *distinct),) = self._ask(f"SELECT {of_all} FROM ({inner}) AS page", values)
        if distinct and distinct[0] != count:
            raise self._twice(f"up to {found}")
        return Bucket(last if count < limit else int(found), int(alive), _as_signed(int(xor)))

    def hashes(self, after: int, last: int) -> dict[int, int | None]:
        """id -> hash of every row after `after` up to `last`; None: it is marked deleted."""
        hash_ = f"IF({self._deleted}, NULL, CONV({self._row_digest}, 16, -10))"
        sql = f"SELECT {self._id}, {hash_} {self._from} WHERE {self._id} > %(after)s AND {self._id} <= %(last)s"
        return {int(id_): None if hash_ is None else int(hash_) for id_, hash_ in self._ask(sql, {"after": after, "last": last})}

    def newest_edit(self) -> datetime | None:
        """The latest `updated_at`."""
        column = quoted(self._edited.column)
        sql = f"SELECT {self._edited.microseconds} {self._from_by_time} ORDER BY {column} DESC LIMIT 1"
        found = self._ask(sql)
        return self._time(found[0][0]) if found and found[0][0] is not None else None

    def edited(self, at: datetime, after: int, limit: int) -> list[Edit]:
        """What was changed at `at` (ids after `after`) or later, by time and id, at most `limit`."""
        column, when = quoted(self._edited.column), self._edited.microseconds
        hash_ = f"IF({self._deleted}, NULL, CONV({self._row_digest}, 16, -10))"
        sql = (
            f"SELECT {when}, {self._id}, {hash_} {self._from_by_time} WHERE (({column} = %(at)s AND {self._id} > %(after)s) OR "
            f"{column} > %(at)s) AND {when} IS NOT NULL AND {self._id} IS NOT NULL ORDER BY {column}, {self._id} LIMIT {int(limit)}"
        )
        found = self._ask(sql, {"at": self._edited.of(at), "after": after})
        return [Edit(self._time(when), int(id_), None if hash_ is None else int(hash_)) for when, id_, hash_ in found]

    def _time(self, microseconds: int) -> datetime:
        return (EPOCH + timedelta(microseconds=int(microseconds))).replace(tzinfo=self.updated_zone).astimezone(UTC)

    def _rows(self, where: str, values: Mapping[str, Any], limit: int) -> list[Row]:
        asked = limit if self.unique else limit + 1  # the other of two rows with one id might begin the next page
        found = self._ask(f"SELECT {self._row} {self._from} WHERE {where} ORDER BY {self._id} LIMIT {int(asked)}", values)
        self._each_once([int(row[0]) for row in found], limit)
        return [self._made(row) for row in found[:limit]]

    def _made(self, row: Any) -> Row:
        id_, content_hash, row_hash, text, size, created, updated, deleted, *fields = row
        flaw = "no_text" if size is None else "too_large" if text is None else None
        if isinstance(text, bytes):
            try:
                text = text.decode(self.section.encodings[self.section.text])
            except UnicodeDecodeError:
                text, flaw = None, "undecodable"
        flaw = flaw or ("no_time" if created is None else None)
        read = (
            value.decode(self.section.encodings.get(name, "utf-8"), "replace") if isinstance(value, bytes) else value
            for name, value in zip(self.section.fields, fields, strict=True)
        )
        return Row(int(id_), content_hash, row_hash, text, flaw, created, updated, bool(deleted), tuple(read))

    def _each_once(self, ids: list[int], limit: int) -> list[int]:
        if not self.unique:
            for one, other in pairwise(ids):
                if one == other:
                    raise self._twice(str(one))
        return ids[:limit]

    def _twice(self, where: str) -> CommentsError:
        section = self.section
        return CommentsError(
            f"{section.table} has two rows with one {section.id} ({where}): its key is not {section.id} alone, and comments are known "
            f"by it. Give one of them another {section.id}, or `id` in the section `comments` a column that is unique."
        )

    def _ask(self, sql: str, values: Mapping[str, Any] | None = None) -> Sequence[Any]:
        from sqlalchemy.exc import SQLAlchemyError

        try:
            return self._connection.exec_driver_sql(sql, {"key": self._key, **self._values, **(values or {})}).fetchall()
        except (SQLAlchemyError, OSError, struct.error, AssertionError, IndexError) as error:  # the last ones: pymysql on a torn packet
            raise _unreachable(error, self._connection.engine.url) from None

    def _columns(self) -> dict[str, Column]:
        """Every column of the table, by its name in small letters."""
        section = self.section
        schema, _, name = section.table.rpartition(".")
        sql = (
            "SELECT column_name, LOWER(data_type), LOWER(column_type), LOWER(character_set_name), is_nullable = 'YES', "
            "LOWER(extra) LIKE '%%auto_increment%%' FROM information_schema.columns WHERE table_name = %(name)s "
        )
        found = self._ask(sql + _IN_SCHEMA, {"name": name, "schema": schema})
        if not found:
            raise CommentsError(
                f"there is no table {section.table}, or the user of MLOPS_COMMENTS_URL may not read it: GRANT SELECT ON it."
            )
        known = {row[0].lower(): Column(row[0], row[1], row[2], row[3], bool(row[4]), bool(row[5])) for row in found}
        if missing := [column for column in self._wanted() if column.lower() not in known]:
            raise CommentsError(
                f"{section.table} has no column {', '.join(missing)}; it has {', '.join(sorted(known))}. Mend the section `comments`."
            )
        return known

    def _wanted(self) -> list[str]:
        section = self.section
        deleted = section.deleted.column if section.deleted else None
        named = (section.id, section.text, section.created_at, section.updated_at, deleted, *section.fields)
        return list(dict.fromkeys(name for name in named if name))

    def _indexes(self) -> dict[str, Index]:
        """The indexes that can be walked in order, by name."""
        schema, _, name = self.section.table.rpartition(".")
        sql = f"SELECT * FROM information_schema.statistics WHERE table_name = %(name)s {_IN_SCHEMA} ORDER BY index_name, seq_in_index"
        found = self._ask(sql, {"name": name, "schema": schema})
        view = "SELECT 1 FROM information_schema.tables WHERE table_name = %(name)s AND table_type = 'VIEW' "
        if not found and self._ask(view + _IN_SCHEMA, {"name": name, "schema": schema}):
            raise CommentsError(
                f"{self.section.table} is a view, which has no index: every look would read the whole table. Name the table beneath it; "
                f"that the user of MLOPS_COMMENTS_URL reads no other column: `GRANT SELECT ({', '.join(self._wanted())}) ON` that table."
            )
        indexes: dict[str, Index] = {}
        for row in found:
            told = {key.lower(): value for key, value in row._mapping.items()}
            hidden = str(told.get("is_visible", "YES")) == "NO" or str(told.get("ignored", "NO")) == "YES"
            if told["index_type"] == "BTREE" and not hidden:
                column = "" if told["sub_part"] else (told["column_name"] or "").lower()  # the beginning of a value is not the value
                indexes.setdefault(told["index_name"], Index([], not int(told["non_unique"]))).columns.append(column)
        return indexes

    def _is_json(self, column: Column) -> bool:
        """Whether MariaDB knows a column as JSON, which is LONGTEXT with a constraint there."""
        if column.type != "longtext" or not getattr(self._connection.dialect, "is_mariadb", False):
            return False
        schema, _, name = self.section.table.rpartition(".")
        sql = "SELECT 1 FROM information_schema.check_constraints WHERE table_name = %(name)s AND constraint_schema = "
        sql += "IF(%(schema)s = '', DATABASE(), %(schema)s) AND LOWER(check_clause) = %(clause)s"
        return bool(self._ask(sql, {"name": name, "schema": schema, "clause": f"json_valid({column.sql.lower()})"}))


class Index(NamedTuple):
    columns: list[str]
    """In their order, in small letters."""
    unique: bool


def _index_of_id(section: CommentsSection, id_: Column, indexes: Mapping[str, Index]) -> tuple[str, bool]:
    """The index by which rows are read in the order of their ids, and whether the database itself keeps ids unique."""
    name = section.id.lower()
    begin = {index: of for index, of in indexes.items() if of.columns[0] == name}
    if alone := [index for index, of in begin.items() if of.unique and len(of.columns) == 1]:
        return alone[0], True
    # As partitioned tables have it: PRIMARY KEY (id, created_at). Ids that the database counts up are unique unless somebody writes them.
    if composite := [index for index, of in begin.items() if of.unique or id_.counts_up]:
        return composite[0], False
    raise CommentsError(
        f"{section.table} has no unique index on {section.id} alone, nor one that begins with it: every look would read the whole table, "
        f"and two comments might have one id. Add one: `ALTER TABLE {section.table} ADD UNIQUE ({section.id})`."
    )


_IN_SCHEMA: Final = "AND table_schema = IF(%(schema)s = '', DATABASE(), %(schema)s)"


@contextmanager
def connect(settings: Settings, section: CommentsSection, key: str | None = None) -> Iterator[Table]:
    """The table, connected for one tick: in READ ONLY sessions, UTC, utf8mb4, each statement a transaction of its own.

    Args:
        key: of the hashes; None: the one that is kept, made when there is none.

    Raises:
        SettingsError: comments_url is not set.
        CommentsError: the source does not answer, or the table is not as configured.
    """
    from sqlalchemy import NullPool, create_engine
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    url = make_url(settings.require("comments_url"))
    arguments = {
        "charset": "utf8mb4",
        "connect_timeout": 5,
        "read_timeout": 30,
        "write_timeout": 30,
        "init_command": "SET SESSION time_zone = '+00:00'",
    }
    engine = create_engine(url, poolclass=NullPool, connect_args=arguments, isolation_level="AUTOCOMMIT", hide_parameters=True)
    try:
        opened = engine.connect()
        opened.exec_driver_sql("SET SESSION TRANSACTION READ ONLY")
    except (SQLAlchemyError, OSError, struct.error) as error:
        raise _unreachable(error, url) from None
    try:
        yield Table(opened, section, key or hash_key(settings), settings.max_line_bytes)
    finally:
        opened.close()
        engine.dispose()


def _unreachable(error: BaseException, url: Any) -> CommentsError:
    """Only the server's own words: a statement or its values might hold what is nobody's business."""
    said = getattr(error, "orig", None) or error
    where = f"{url.host}:{url.port or 3306}/{url.database}"
    return CommentsError(f"the source of comments at {where} did not answer: {str(said)[:300]}. Nothing is lost: the next tick goes on.")


def _signed(digest: str) -> str:
    """The first 64 bits of a hexadecimal digest as a signed number."""
    return f"CONV(LEFT({digest}, 16), 16, -10)"


def _as_signed(unsigned: int) -> int:
    return unsigned - 2**64 if unsigned >= 2**63 else unsigned
