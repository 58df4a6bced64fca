"""The application's table of comments, read and never written: which columns it has, and the few queries that are asked of it.

Every query is one consistent read of its own in a READ ONLY session: no lock, no open transaction that would hold the source's purge back.
Every query walks an index from a known key and has a bound. Hashes are computed by the source itself, so that what is the same on both
sides does not travel.

Belongs here: the configuration section, SQL for MySQL and MariaDB. Does not belong here: what is done with the rows (`comments.py`), our
own tables, Dagster.
"""

from __future__ import annotations

import re
import secrets
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias
from zoneinfo import ZoneInfo

from pydantic import Field, PositiveInt, field_validator, model_validator

from mlops_assets.settings import SettingsError, Strict, read_yaml, validate

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Connection

    from mlops_assets.settings import Settings

#: The ids that our tables can hold. Nothing was read up to MIN_ID.
MIN_ID: Final = -(2**63)
MAX_ID: Final = 2**63 - 1
EPOCH: Final = datetime(1970, 1, 1)
#: Ranges of ids in one query.
MAX_RANGES: Final = 500

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
        return {str(key): item for key, item in value.items()} if isinstance(value, dict) else value

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
    time_zone: str = "UTC"
    """Zone of its DATETIME columns (TIMESTAMP columns need none)."""

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
    bytes: int | None
    created: int | None
    updated: int | None
    fields: tuple[str | None, ...]


class Bucket(NamedTuple):
    """`rows` rows up to the id `last`, and the exclusive or of their hashes."""

    last: int
    rows: int
    xor: int


class Edit(NamedTuple):
    at: datetime
    id: int
    row_hash: int


class Table:
    """An open connection to the source, and the queries. Use `connect`."""

    def __init__(self, connection: Connection, section: CommentsSection, key: str, max_bytes: int) -> None:
        self.section, self._connection, self._key, self._max_bytes = section, connection, key, max_bytes
        types, indexes = self._columns(), self._indexes()
        zone = ZoneInfo(section.time_zone)
        self.created_zone = ZoneInfo("UTC") if types[section.created_at.lower()] == "timestamp" else zone
        updated = section.updated_at or section.created_at
        self.updated_zone = ZoneInfo("UTC") if types[updated.lower()] == "timestamp" else zone
        by_id = next((name for name, (columns, unique) in indexes.items() if unique and columns == [section.id.lower()]), None)
        if by_id is None:
            raise CommentsError(
                f"{section.table} has no unique index on {section.id} alone: every look would read the whole table. Add one."
            )
        #: Whether edits can be found by time without reading the whole table.
        self.by_time = next((name for name, (columns, _) in indexes.items() if columns[0] == (section.updated_at or "").lower()), None)
        if section.updated_at and self.by_time is None:
            raise CommentsError(
                f"{section.table} has no index that begins with {section.updated_at}: every look for edits would read the whole table. "
                f"Add one (`CREATE INDEX ... ON {section.table} ({section.updated_at})`), or set updated_at: null in `comments`."
            )
        self._id = _quoted(section.id)
        self._from = f"FROM {_quoted(section.table)} FORCE INDEX ({_quoted(by_id)})"
        self._from_by_time = f"FROM {_quoted(section.table)} FORCE INDEX ({_quoted(self.by_time or by_id)})"
        content = f"SHA2(CONCAT(%(key)s, CONVERT({_quoted(section.text)} USING utf8mb4)), 256)"
        fields = [f"CONVERT({_quoted(name)} USING utf8mb4)" for name in section.fields]
        # Hexadecimal and N for NULL: no two rows have the same concatenation. The id is in the row's hash, or equal texts that change
        # alike (or swap) would cancel out in a bucket's exclusive or.
        whole = ", ',', ".join([self._id, *[f"COALESCE({one}, 'N')" for one in (content, *[f"HEX({field})" for field in fields])]])
        self._content_hash = _signed(f"COALESCE({content}, SHA2(%(key)s, 256))")
        self._row_digest = f"LEFT(SHA2(CONCAT(%(key)s, {whole}), 256), 16)"
        size = f"OCTET_LENGTH({_quoted(section.text)})"
        short = f"IF({size} > {int(max_bytes)}, NULL, CONVERT({_quoted(section.text)} USING utf8mb4))"
        times = [f"TIMESTAMPDIFF(MICROSECOND, '1970-01-01', {_quoted(name)})" for name in (section.created_at, updated)]
        self._row = ", ".join([self._id, self._content_hash, f"CONV({self._row_digest}, 16, -10)", short, size, *times, *fields])

    def key_check(self) -> int:
        """The hash of a constant, to notice another key."""
        return int(self._ask(f"SELECT {_signed('SHA2(%(key)s, 256)')}")[0][0])

    def page(self, after: int, limit: int) -> list[Row]:
        """The next rows by id, at most `limit`."""
        return self._rows(f"{self._id} > %(after)s AND {self._id} <= {MAX_ID}", {"after": after}, limit)

    def beyond(self) -> bool:
        """Whether there is an id that our tables cannot hold."""
        return bool(self._ask(f"SELECT 1 {self._from} WHERE {self._id} > {MAX_ID} LIMIT 1"))

    def within(self, ranges: Sequence[tuple[int, int]], limit: int) -> list[Row]:
        """Rows whose id is in one of at most MAX_RANGES ranges (both ends count), by id, at most `limit`."""
        return self._rows(" OR ".join(f"{self._id} BETWEEN {int(first)} AND {int(last)}" for first, last in ranges), {}, limit)

    def rows(self, ids: Sequence[int]) -> Iterator[Row]:
        for start in range(0, len(ids), MAX_RANGES):
            yield from self._rows(f"{self._id} IN ({', '.join(str(int(one)) for one in ids[start : start + MAX_RANGES])})", {}, MAX_RANGES)

    def bucket(self, after: int, last: int, limit: int) -> Bucket:
        """Count and hash of the next `limit` rows after `after` up to `last`."""
        inner = f"SELECT {self._id} AS id, CAST(CONV({self._row_digest}, 16, 10) AS UNSIGNED) AS hash {self._from}"
        inner += f" WHERE {self._id} > %(after)s AND {self._id} <= %(last)s ORDER BY {self._id} LIMIT {int(limit)}"
        values = {"after": after, "last": last}
        ((found, count, xor),) = self._ask(f"SELECT MAX(id), COUNT(*), BIT_XOR(hash) FROM ({inner}) AS page", values)
        return Bucket(last if count < limit else int(found), int(count), _as_signed(int(xor)))

    def hashes(self, after: int, last: int) -> dict[int, int]:
        """id -> hash of every row after `after` up to `last`."""
        sql = f"SELECT {self._id}, CONV({self._row_digest}, 16, -10) {self._from} WHERE {self._id} > %(after)s AND {self._id} <= %(last)s"
        return {int(id_): int(hash_) for id_, hash_ in self._ask(sql, {"after": after, "last": last})}

    def newest_edit(self) -> datetime | None:
        """The latest `updated_at`."""
        column = _quoted(self.section.updated_at or "")
        sql = f"SELECT TIMESTAMPDIFF(MICROSECOND, '1970-01-01', {column}) {self._from_by_time} ORDER BY {column} DESC LIMIT 1"
        found = self._ask(sql)
        return self._time(found[0][0]) if found and found[0][0] is not None else None

    def edited(self, at: datetime, after: int, limit: int) -> list[Edit]:
        """What was changed at `at` (ids after `after`) or later, by time and id, at most `limit`."""
        column = _quoted(self.section.updated_at or "")
        sql = (
            f"SELECT TIMESTAMPDIFF(MICROSECOND, '1970-01-01', {column}), {self._id}, CONV({self._row_digest}, 16, -10) {self._from_by_time}"
            f" WHERE ({column} = %(at)s AND {self._id} > %(after)s) OR {column} > %(at)s ORDER BY {column}, {self._id} LIMIT {int(limit)}"
        )
        at_source = at.astimezone(self.updated_zone).replace(tzinfo=None).isoformat(" ", "microseconds")
        found = self._ask(sql, {"at": at_source, "after": after})
        return [Edit(self._time(when), int(id_), int(hash_)) for when, id_, hash_ in found]

    def _time(self, microseconds: int) -> datetime:
        return (EPOCH + timedelta(microseconds=int(microseconds))).replace(tzinfo=self.updated_zone).astimezone(UTC)

    def _rows(self, where: str, values: Mapping[str, Any], limit: int) -> list[Row]:
        found = self._ask(f"SELECT {self._row} {self._from} WHERE {where} ORDER BY {self._id} LIMIT {int(limit)}", values)
        return [Row._make((*row[:7], tuple(row[7:]))) for row in found]

    def _ask(self, sql: str, values: Mapping[str, Any] | None = None) -> Sequence[Any]:
        from sqlalchemy.exc import SQLAlchemyError

        try:
            return self._connection.exec_driver_sql(sql, {"key": self._key, **(values or {})}).fetchall()
        except (SQLAlchemyError, OSError, struct.error, AssertionError, IndexError) as error:  # the last ones: pymysql on a torn packet
            raise _unreachable(error, self._connection.engine.url) from None

    def _columns(self) -> dict[str, str]:
        """Column -> type, of all columns of the table, in small letters."""
        section = self.section
        schema, _, name = section.table.rpartition(".")
        sql = "SELECT LOWER(column_name), LOWER(data_type) FROM information_schema.columns WHERE table_name = %(name)s "
        found: dict[str, str] = dict(self._ask(sql + _IN_SCHEMA, {"name": name, "schema": schema}))
        wanted = [section.id, section.text, section.created_at, *([section.updated_at] if section.updated_at else []), *section.fields]
        missing = [column for column in wanted if column.lower() not in found]
        if not found:
            raise CommentsError(
                f"there is no table {section.table}, or the user of MLOPS_COMMENTS_URL may not read it: GRANT SELECT ON it."
            )
        if missing:
            raise CommentsError(
                f"{section.table} has no column {', '.join(missing)}; it has {', '.join(sorted(found))}. Mend the section `comments`."
            )
        return found

    def _indexes(self) -> dict[str, tuple[list[str], bool]]:
        """Index -> its columns in their order (small letters), and whether it is unique."""
        schema, _, name = self.section.table.rpartition(".")
        sql = (
            "SELECT index_name, LOWER(column_name), non_unique FROM information_schema.statistics WHERE table_name = %(name)s "
            f"{_IN_SCHEMA} ORDER BY index_name, seq_in_index"
        )
        indexes: dict[str, tuple[list[str], bool]] = {}
        for index, column, non_unique in self._ask(sql, {"name": name, "schema": schema}):
            indexes.setdefault(index, ([], not int(non_unique)))[0].append(column)
        return indexes


_IN_SCHEMA: Final = "AND table_schema = IF(%(schema)s = '', DATABASE(), %(schema)s)"


@contextmanager
def connect(settings: Settings, section: CommentsSection) -> Iterator[Table]:
    """The table, connected for one tick: in READ ONLY sessions, UTC, utf8mb4, each statement a transaction of its own.

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
        yield Table(opened, section, hash_key(settings), settings.max_line_bytes)
    finally:
        opened.close()
        engine.dispose()


def _unreachable(error: BaseException, url: Any) -> CommentsError:
    """Only the server's own words: a statement or its values might hold what is nobody's business."""
    said = getattr(error, "orig", None) or error
    where = f"{url.host}:{url.port or 3306}/{url.database}"
    return CommentsError(f"the source of comments at {where} did not answer: {str(said)[:300]}. Nothing is lost: the next tick goes on.")


def _quoted(name: str) -> str:
    return ".".join(f"`{part}`" for part in name.split("."))


def _signed(digest: str) -> str:
    """The first 64 bits of a hexadecimal digest as a signed number."""
    return f"CONV(LEFT({digest}, 16), 16, -10)"


def _as_signed(unsigned: int) -> int:
    return unsigned - 2**64 if unsigned >= 2**63 else unsigned
