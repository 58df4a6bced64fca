"""Judges the columns of the application's table by their declared types and a sample of rows: how each is read, or why it cannot be.

Every judgement is one sentence with column, type and fix; what can be read in two ways is never chosen silently. A sentence never quotes a
comment.

Belongs here: types of MySQL and MariaDB, and the SQL by which a column of each is read. Does not belong here: connections and queries
(`comment_source.py`), what is done with the rows (`comments.py`).
"""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, Literal, NamedTuple, TypeAlias
from zoneinfo import ZoneInfo

Unit: TypeAlias = Literal["seconds", "milliseconds", "microseconds"]
#: Names as Python knows them; `cp949` is EUC-KR as Windows writes it.
Encoding: TypeAlias = Literal["utf-8", "cp949"]

#: Microseconds of one.
UNITS: Final[Mapping[Unit, int]] = {"seconds": 1_000_000, "milliseconds": 1_000, "microseconds": 1}
INTEGERS: Final = frozenset({"tinyint", "smallint", "mediumint", "int", "bigint"})
TEXTS: Final = frozenset({"char", "varchar", "tinytext", "text", "mediumtext", "longtext"})
BYTES: Final = frozenset({"binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob"})
SHAPES: Final = frozenset(
    {"geometry", "point", "linestring", "polygon", "multipoint", "multilinestring", "multipolygon", "geometrycollection", "vector"}
)
UNICODE: Final[Mapping[str, str]] = {
    "utf8mb4": "utf-8",
    "utf8mb3": "utf-8",
    "utf8": "utf-8",
    "ucs2": "utf-16-be",
    "utf16": "utf-16-be",
    "utf16le": "utf-16-le",
    "utf32": "utf-32-be",
}
#: Moments that a number can mean (1990 to 2100): the three units do not meet.
_LEAST, _MOST = (int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000 for year in (1990, 2100))
#: What PostgreSQL and Python can hold, in microseconds: the years 1 to 9999, a day off each end for the zones.
_FIRST, _LAST = (int(datetime(*day, tzinfo=UTC).timestamp()) * 1_000_000 for day in ((1, 1, 2), (9999, 12, 30)))
EPOCH: Final = datetime(1970, 1, 1)
#: Bytes of a text that are looked at.
LOOKED_AT: Final = 400
SECTION: Final = "in the section `comments`"


class Column(NamedTuple):
    name: str
    type: str
    """Such as `varchar`, in small letters."""
    declared: str
    """Such as `varchar(80)`."""
    charset: str | None
    nullable: bool
    counts_up: bool
    """AUTO_INCREMENT."""

    @property
    def sql(self) -> str:
        return quoted(self.name)

    @property
    def is_number(self) -> bool:
        return self.type in INTEGERS or self.type == "decimal"

    @property
    def is_words(self) -> bool:
        return self.type in TEXTS | BYTES | {"enum", "set"}


def quoted(name: str) -> str:
    return ".".join(f"`{part}`" for part in name.split("."))


# --- how a column is read -----------------------------------------------------------------------------------------------------------------


class Clock(NamedTuple):
    """How a column tells time. `unit`: microseconds of one, of a number since 1970; None: a date and time in `zone`."""

    column: str
    zone: ZoneInfo
    unit: int | None

    @property
    def microseconds(self) -> str:
        """SQL: microseconds since 1970 in the column's zone, NULL for what is no moment."""
        name = quoted(self.column)
        if self.unit is None:
            return f"TIMESTAMPDIFF(MICROSECOND, '1970-01-01', {name})"
        return f"IF({name} BETWEEN {_FIRST // self.unit + 1} AND {_LAST // self.unit}, ROUND({name} * {self.unit}), NULL)"

    def of(self, at: datetime) -> Any:
        """The moment as the column has it, to compare with."""
        naive = at.astimezone(self.zone).replace(tzinfo=None)
        if self.unit is None:
            return naive.isoformat(" ", "microseconds")
        passed = naive - EPOCH
        return Decimal(passed.days * 86_400_000_000 + passed.seconds * 1_000_000 + passed.microseconds) / self.unit


def clock(column: Column, zone: ZoneInfo, epochs: Mapping[str, Unit]) -> Clock:
    if column.is_number:
        return Clock(column.name, ZoneInfo("UTC"), UNITS[epochs[column.name]])
    return Clock(column.name, ZoneInfo("UTC") if column.type == "timestamp" else zone, None)


def words(column: Column, encodings: Mapping[str, Encoding]) -> str:
    """SQL: the column's value as text; as its bytes, which `encodings` says how to read."""
    if column.name in encodings:
        return f"CAST({column.sql} AS BINARY)"
    if column.type == "bit" or "zerofill" in column.declared:  # a number, not the character of that number nor its padding
        return f"CAST({column.sql} + 0 AS CHAR CHARACTER SET utf8mb4)"
    return f"CONVERT({column.sql} USING utf8mb4)"


# --- what a declared type says ------------------------------------------------------------------------------------------------------------


def id_fault(table: str, column: Column) -> str | None:
    if column.type in INTEGERS or (column.type == "decimal" and column.declared.replace(" ", "").split(")")[0].endswith(",0")):
        return None
    return (
        f"{table}.{column.name} is {column.declared}, not an integer that grows: comments that commit late could not be found. Give `id` "
        f"{SECTION} a column that is one, or add it: `ALTER TABLE {table} ADD seq BIGINT UNSIGNED AUTO_INCREMENT UNIQUE`."
    )


def time_fault(table: str, column: Column, epochs: Mapping[str, Unit], *, of_edits: bool) -> str | None:
    """Also says of a number that nobody has said what it counts; `number_fault` looks at the values."""
    if column.type in ("datetime", "timestamp") or (column.is_number and column.name in epochs):
        return None
    if column.type == "date" and not of_edits:
        return None
    if column.is_number:
        return None  # its values say more
    why = "which has no time of day" if column.type == "date" else "not DATETIME or TIMESTAMP"
    return f"{table}.{column.name} is {column.declared}, {why}. {_another_time(table, column, of_edits)}"


def _another_time(table: str, column: Column, of_edits: bool) -> str:
    setting = "updated_at" if of_edits else "created_at"
    other = f"Give `{setting}` {SECTION} a column that is one, or add one (`ALTER TABLE {table} ADD {column.name}_time DATETIME`)"
    return f"{other}, or `updated_at: null`: edits are then found among the newest ids, and at night." if of_edits else f"{other}."


def number_fault(table: str, column: Column, numbers: Iterable[Any], epochs: Mapping[str, Unit], *, of_edits: bool) -> str | None:
    """What speaks against reading the numbers of a column as times."""
    seen = [value for value in numbers if value]  # 0 is written where there is no moment
    fit: dict[Unit, int] = {unit: sum(_LEAST <= value * each < _MOST for value in seen) for unit, each in UNITS.items()}
    likely = max(fit, key=lambda unit: fit[unit])
    looks = f"its values look like {likely} since 1970" if fit[likely] * 2 > len(seen) else ""
    what = f"{table}.{column.name} is {column.declared}, not DATETIME or TIMESTAMP"
    if column.name in epochs:
        said = epochs[column.name]
        if likely == said or not (looks or (len(seen) > 2 and not fit[said])):
            return None
        return f"{what}, and `epochs` says {said}: {looks or f'its values, such as {seen[0]}, are none'}. Mend it {SECTION}."
    if seen and not looks:
        return f"{what}: its values, such as {seen[0]}, are no time since 1970. {_another_time(table, column, of_edits)}"
    unit = likely if looks else "seconds"
    fix = f"`epochs: {{{column.name}: {unit}}}`"
    said_so = f"{looks}. If they are, write {fix} {SECTION}" if looks else f"write what its numbers count, such as {fix}, {SECTION}"
    return f"{what}: {said_so}; if not: {_another_time(table, column, of_edits)}"


def text_fault(table: str, column: Column, encodings: Mapping[str, Encoding]) -> str | None:
    if column.type in TEXTS or column.type in BYTES:
        return None  # what is in them says more
    fix = f"Give `text` {SECTION} a column that is one"
    if column.type == "json":
        fix += f", or add it: {_taken_out(table, column)}"
    return f"{table}.{column.name} is {column.declared}, not a text. {fix}."


def field_fault(table: str, column: Column) -> str | None:
    if column.type not in SHAPES:
        return None
    return f"{table}.{column.name} is {column.declared}, which has no value to compare. Take it out of `kept` and `moderation` {SECTION}."


def deleted_fault(table: str, column: Column, *, named: bool) -> str | None:
    """Where neither `values` nor `alive` is given, what is not NULL means deleted: of which columns that cannot be."""
    if named or (column.nullable and not (column.is_number or column.type in ("bit", "enum", "set") or column.type in BYTES)):
        return None
    what = f"{table}.{column.name} is {column.declared}{'' if column.nullable else ' NOT NULL'}"
    return (
        f"{what}: that it is not NULL does not say that a comment is deleted. "
        f"Write which values do: `deleted: {{column: {column.name}, values: [...]}}`, or which do not: `alive: [...]`, {SECTION}."
    )


# --- what a sample says -------------------------------------------------------------------------------------------------------------------


def words_fault(table: str, column: Column, samples: Iterable[bytes | None], encodings: Mapping[str, Encoding]) -> str | None:
    """What speaks against reading the bytes of a column as its declared character set (or `encodings`) says.

    Only where it holds of half of those that could tell, or more: one odd comment stops nobody.
    """
    seen = [sample for sample in samples if sample is not None]
    telling = [sample for sample in seen if not sample.isascii()]
    what = f"{table}.{column.name} is {column.declared}" + (f" of {column.charset}" if column.charset and column.type in TEXTS else "")
    if column.name in encodings:
        wrong = [sample for sample in telling if _read(sample, encodings[column.name]) is None]
        if not wrong or len(wrong) * 2 < len(telling):
            return None
        return f"{what}, and {len(wrong)} of {len(telling)} texts are not {encodings[column.name]}, as `encodings` says: mend it {SECTION}."
    if column.type in BYTES:
        return _bytes_fault(what, column, seen, telling)
    charset = column.charset or ""
    if charset in UNICODE:
        twice = [sample for sample in telling if _encoded_twice(_read(sample, UNICODE[charset]) or "")]
        if not twice or len(twice) * 2 < len(telling):
            return None
        return (
            f"{what}, and {len(twice)} of {len(telling)} texts in it were encoded twice (좋 stands there as ì¢‹): the application writes "
            f"UTF-8 over a connection of another character set. Mend the connection, and the rows: `UPDATE {table} SET {column.name} = "
            f"CONVERT(CAST(CONVERT({column.name} USING latin1) AS BINARY) USING utf8mb4)`."
        )
    encoding, count = _most(_encoding_of(sample, charset) for sample in telling)
    if encoding is None or count * 2 < len(telling):
        return None
    return (
        f"{what}, and {count} of {len(telling)} texts in it are {_NAMES[encoding]} bytes (좋 would be read as ì¢‹): write "
        f"`encodings: {{{column.name}: {encoding}}}` {SECTION}, or convert the column by way of a BLOB: `ALTER TABLE {table} MODIFY "
        f"{column.name} BLOB`, then `MODIFY {column.name} TEXT CHARACTER SET {'utf8mb4' if encoding == 'utf-8' else 'euckr'}`."
    )


_NAMES: Final[Mapping[str, str]] = {"utf-8": "UTF-8", "cp949": "EUC-KR"}


def _bytes_fault(what: str, column: Column, seen: Sequence[bytes], telling: Sequence[bytes]) -> str | None:
    if not telling and seen and all(sample.decode("ascii").isprintable() for sample in seen):
        return None  # the same in every encoding
    encoding, count = _most(_encoding_of(sample, "") for sample in telling)
    looks = f"its bytes look like {_NAMES[encoding]}" if encoding and count * 2 > len(telling) else "its bytes may be anything"
    return (
        f"{what}, which has no character set; {looks}. If it holds text, write `encodings: {{{column.name}: {encoding or 'utf-8'}}}` "
        f"{SECTION}; if not, name another column."
    )


def _most(found: Iterable[Encoding | None]) -> tuple[Encoding | None, int]:
    """The encoding that was found most often, and how often one was found."""
    counts = Counter(encoding for encoding in found if encoding is not None)
    return (counts.most_common(1)[0][0], counts.total()) if counts else (None, 0)


def json_fault(table: str, column: Column) -> str:
    what = f"{table}.{column.name} is {column.declared} and holds JSON documents, not texts"
    return f"{what}: give `text` {SECTION} a column that is one, or add it: {_taken_out(table, column)}."


def _taken_out(table: str, column: Column) -> str:
    taken = f"JSON_UNQUOTE(JSON_EXTRACT({column.name}, '$.text'))"
    return f"`ALTER TABLE {table} ADD {column.name}_text TEXT AS ({taken}) STORED`"


def are_documents(samples: Iterable[bytes | None]) -> bool:
    """Whether every one of some texts begins as a JSON object does."""
    seen = [sample for sample in samples if sample]
    return len(seen) >= 3 and all(re.match(rb'\s*\{\s*"', sample) for sample in seen)


def _read(sample: bytes, encoding: str) -> str | None:
    """A text, or the beginning of one, which may end within a character; None: it is not in that encoding."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(sample, final=len(sample) < LOOKED_AT)
    except UnicodeDecodeError:
        return None


def _encoding_of(sample: bytes, charset: str) -> Encoding | None:
    """The encoding in which bytes that are not ASCII read as Korean or as UTF-8; None: they are what `charset` says, or nothing known."""
    if _read(sample, "utf-8") is not None:
        return "utf-8"
    if charset in ("euckr", "cp949"):
        return None
    read = _read(sample, "cp949")
    foreign = [sign for sign in read or "" if not sign.isascii()]
    return "cp949" if foreign and sum(_is_hangul(sign) for sign in foreign) * 2 > len(foreign) else None


def _encoded_twice(text: str) -> bool:
    """Whether a text reads as Korean when its characters are taken for bytes, as MySQL's latin1 has them."""
    try:
        taken = b"".join(_LATIN1.get(sign) or sign.encode("latin-1") for sign in text)
    except UnicodeEncodeError:
        return False
    for read in (_read(taken, "utf-8"), _read(taken, "cp949")):
        foreign = [sign for sign in read or "" if not sign.isascii()]
        if foreign and sum(_is_hangul(sign) for sign in foreign) * 2 > len(foreign):
            return True
    return False


def _is_hangul(sign: str) -> bool:
    return "가" <= sign <= "힣" or "ㄱ" <= sign <= "ㆎ"


def _cp1252() -> dict[str, bytes]:
    decode: Callable[[bytes], tuple[str, int]] = codecs.getdecoder("cp1252")
    return {decode(bytes([one]))[0]: bytes([one]) for one in range(0x80, 0xA0) if one not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)}


_LATIN1: Final = _cp1252()
