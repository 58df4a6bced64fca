"""One row of the sheet: from cells as people type them to a policy, every repair named, or why the row is turned away.

Pure functions. Belongs here: what a cell may look like and what it means. Does not belong here: rules between rows, files (`data.py`).
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mlops_assets import regions
from mlops_assets.ingest.rows import Rejected
from mlops_assets.ingest.sheet import is_error
from mlops_assets.settings import canonical

WEEK: Final = "월화수목금토일"
#: Kinds of waste that have days, hours and a method; bulky waste has no days.
KINDS: Final = ("general", "food", "recycling", "bulky")
WITH_DAYS: Final = KINDS[:3]
#: Where a rule holds: what its key is made of.
PLACE: Final = ("sido", "sigungu", "zone", "area", "place")
#: The values of PLACE, without spaces; None: it could not be read.
Place = tuple[str | None, ...]
NOWHERE: Final[Place] = (None,) * len(PLACE)

#: Why a row is turned away -> what that means.
REASONS: Final = {
    "malformed_row": "text beyond the last column, a quote round several rows, or characters that no text has",
    "formula_error": "a cell shows the error of a formula, or that its value is still computed",
    "bad_region": "no 시도 of that name, or no 시군구",
    "bad_collection_type": "a type that configs/disposal_policy.yaml does not name",
    "bad_days": "not days of the week, or none at all",
    "bad_time": "not a time from 00:00 to 24:00",
    "bad_date": "데이터기준일자 is not a date",
    "duplicate_row": "an earlier row is the same",
    "superseded": "another row of the same place has a newer 데이터기준일자",
    "conflicting_rule": "an earlier row of the same place and date says otherwise for the same days, or another provider does",
}

#: Another row of the same place says what holds instead. A row that is turned away for any other reason ends nothing.
REPLACED: Final = frozenset({"duplicate_row", "superseded"})

#: What is noticed in a row that is kept -> what that means, and what was done.
FINDINGS: Final = {
    "not_nfc": "decomposed characters, composed",
    "whitespace": "spaces at the ends, several together, or other characters than a space",
    "placeholder": "a mark for nothing (-, 해당없음), made empty",
    "excel_zero": "1899-12-30, what a spreadsheet shows for an empty date, made empty",
    "lost_character": "a ? that stands for a character that an earlier export could not write; kept, nobody can know it",
    "region_note": "a note in brackets behind the 시군구, taken off",
    "region_spelling": "a 시도 in short, written out",
    "type_spelling": "another spelling of a collection type, unified",
    "day_spelling": "days written otherwise than joined by +, unified",
    "repeated_day": "a day named twice, once is enough",
    "time_spelling": "a time written otherwise than HH:MM, unified",
    "time_24": "24:00: as a beginning it is 00:00, as an end it stays, the end of the day",
    "midnight_end": "an end of 00:00, which is the end of the day: 24:00",
    "no_duration": "beginning and end are the same; kept",
    "one_time_missing": "a beginning without an end, or the other way round; kept",
    "phone_spelling": "a telephone number written otherwise, unified",
    "bad_phone": "not a telephone number, made empty",
    "date_spelling": "a date written otherwise than YYYY-MM-DD, unified",
}

_NOTHING: Final = frozenset({"없음"})
_PLACEHOLDERS: Final = frozenset({"-", "해당없음", "해당 없음"})
_LOST: Final = re.compile("\ufffd|\\?(?=[가-힣])|(?<=[가-힣])\\?(?=\\S)")
_EXCEL_ZERO: Final = re.compile(r"1899-12-30( 00:00(:00)?)?")
_SEPARATORS: Final = re.compile(r"[+,/·、\s]+")
_SPANS: Final = {"매일": WEEK, "평일": WEEK[:5], "주말": WEEK[5:]}
_RANGE: Final = re.compile(f"([{WEEK}])(?:요일)?[~∼-]([{WEEK}])(?:요일)?")
_DAY: Final = re.compile(f"(?:매주)?([{WEEK}]+)(?:요일)?")
_TIME: Final = re.compile(r"(오전|오후)?\s*(\d{1,2})\s*(?::|시)\s*(?:(\d{1,2})\s*분?)?(?::\d{2})?")
_DATE: Final = re.compile(r"(\d{4})\s*(?:[-./]|년)\s*(\d{1,2})\s*(?:[-./]|월)\s*(\d{1,2})\s*(?:\.|일)?")
_PHONE: Final = re.compile(r"(02|0\d{2}|1\d{3})(\d{3,4})?(\d{4})")
_NOTE: Final = re.compile(r"\s*\([^()]*\)$")


@dataclass(frozen=True)
class Finding:
    """What was noticed in one cell. `after` None: it counts as empty now; equal to `before`: kept as it is."""

    field: str
    rule: str
    before: str
    after: str | None


@dataclass
class Row:
    """A policy as text by field (None: nothing), and what was noticed on the way."""

    values: dict[str, str | None] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def place_key(self) -> str:
        """The same for every spelling of the same place: spaces and the province's former names make no difference."""
        return place_key(place_of({name: self.values[name] or "" for name in PLACE}))

    @property
    def content_hash(self) -> str:
        return hashlib.sha256(canonical(self.values).encode()).hexdigest()[:32]


def place_key(place: Place) -> str:
    return hashlib.sha256("\x1f".join(part or "" for part in place).encode()).hexdigest()[:32]


def place_of(cells: Mapping[str, str]) -> Place:
    """The place that a row is for, as places are compared. What cannot be read of it is None: it may be any."""
    parts: list[str | None] = []
    for name in PLACE:
        try:
            value = _text(Row(), name, cells[name]) or ""
        except _Turned:
            parts.append(None)
            continue
        if name == "sido":
            names = regions.sido(value)
            value = names[0] if names else ""
        elif name == "sigungu":
            value = _NOTE.sub("", value)
        # No row is without a province and a district: what is empty there was lost.
        parts.append("".join(value.split()) or (None if name in ("sido", "sigungu") else ""))
    return tuple(parts)


class _Turned(Exception):
    """The row is turned away."""

    def __init__(self, code: str, what: str) -> None:
        super().__init__(what)
        self.code = code


def clean_row(cells: Mapping[str, str], types: Mapping[str, str]) -> Row | Rejected:
    """The policy in `cells` (field -> text of its cell).

    Args:
        types: every spelling of a collection type, without spaces -> the type.
    """
    row = Row()
    try:
        for name, cell in cells.items():
            row.values[name] = _text(row, name, cell)
        _region(row)
        _type(row, types)
        for kind in WITH_DAYS:
            _repair(row, f"{kind}_days", _days)
        if not any(row.values[f"{kind}_days"] for kind in WITH_DAYS):
            raise _Turned("bad_days", "no day for any kind of waste")
        for kind in KINDS:
            _times(row, kind)
        _repair(row, "phone", _phone)
        _repair(row, "data_date", _date)
        if row.values["data_date"] is None:
            raise _Turned("bad_date", "data_date is empty")
    except _Turned as why:
        where = " ".join(filter(None, (cells["sido"], cells["sigungu"], cells["place"])))
        return Rejected(why.code, f"{why} ({where})".replace("\x00", "\ufffd")[:200])
    return row


def _repair(row: Row, name: str, parse: Any) -> None:
    """`name` becomes what `parse` makes of it: (value, rules that it was repaired by)."""
    before = row.values[name]
    if before is None:
        return
    after, rules = parse(name, before)
    row.values[name] = after
    row.findings += [Finding(name, rule, before, after) for rule in rules]


def _text(row: Row, name: str, cell: str) -> str | None:
    if "\x00" in cell or any(unicodedata.category(c) == "Cs" for c in cell):
        raise _Turned("malformed_row", f"{name} holds a character that no text has")
    composed = unicodedata.normalize("NFC", cell)
    if composed != cell:
        row.findings.append(Finding(name, "not_nfc", cell, composed))
    plain = " ".join("".join(" " if unicodedata.category(c) in ("Cc", "Cf") else c for c in composed).split())
    if plain != composed:
        row.findings.append(Finding(name, "whitespace", composed, plain or None))
    if is_error(plain):
        raise _Turned("formula_error", f"{name}={plain}")
    for rule, found in (("placeholder", plain in _PLACEHOLDERS), ("excel_zero", _EXCEL_ZERO.fullmatch(plain) is not None)):
        if found:
            row.findings.append(Finding(name, rule, plain, None))
            return None
    if _LOST.search(plain):
        row.findings.append(Finding(name, "lost_character", plain, plain))
    return None if plain in _NOTHING else plain or None


def _region(row: Row) -> None:
    names = regions.sido(row.values["sido"] or "")
    if names is None:
        raise _Turned("bad_region", f"sido={row.values['sido']}")
    before = str(row.values["sido"])
    if before not in names:
        row.values["sido"] = names[0]
        row.findings.append(Finding("sido", "region_spelling", before, names[0]))
    sigungu = row.values["sigungu"]
    if sigungu is not None and _NOTE.search(sigungu):
        row.values["sigungu"] = _NOTE.sub("", sigungu)
        row.findings.append(Finding("sigungu", "region_note", sigungu, row.values["sigungu"]))
    if not row.values["sigungu"]:
        raise _Turned("bad_region", "sigungu is empty")


def _type(row: Row, types: Mapping[str, str]) -> None:
    before = row.values["collection_type"]
    after = types.get("".join((before or "").split()))
    if after is None:
        raise _Turned("bad_collection_type", f"collection_type={before}")
    row.values["collection_type"] = after
    if after != before:
        row.findings.append(Finding("collection_type", "type_spelling", str(before), after))


def _days(name: str, text: str) -> tuple[str, list[str]]:
    """Days in the week's order, joined by +. 격주 (every other week) and dates are not days of the week."""
    days: list[str] = []
    plain = True
    for token in filter(None, _SEPARATORS.split(text)):
        if found := _RANGE.fullmatch(token):
            first, last = WEEK.index(found[1]), WEEK.index(found[2])
            days += [WEEK[(first + i) % 7] for i in range((last - first) % 7 + 1)]
        elif token in _SPANS:
            days += _SPANS[token]
        elif found := _DAY.fullmatch(token):
            days += found[1]
        else:
            raise _Turned("bad_days", f"{name}={text}")
        plain &= token in WEEK
    if not days:
        raise _Turned("bad_days", f"{name}={text}")
    plain &= "+".join(days) == text
    rules = ([] if plain else ["day_spelling"]) + (["repeated_day"] if len(set(days)) < len(days) else [])
    return "+".join(sorted(set(days), key=WEEK.index)), rules


def _times(row: Row, kind: str) -> None:
    for edge in ("start", "end"):
        _repair(row, f"{kind}_{edge}", _time)
    start, end = row.values[f"{kind}_start"], row.values[f"{kind}_end"]
    if (start is None) != (end is None):
        given = f"{start or ''}~{end or ''}"
        row.findings.append(Finding(f"{kind}_start" if start is None else f"{kind}_end", "one_time_missing", given, given))
    elif start is not None and start == end:
        row.findings.append(Finding(f"{kind}_end", "no_duration", start, end))


def _time(name: str, text: str) -> tuple[str, list[str]]:
    """HH:MM; a beginning is 00:00 to 23:59, an end 00:01 to 24:00. An end before its beginning is on the next day."""
    found = _TIME.fullmatch(text)
    if found is None:
        raise _Turned("bad_time", f"{name}={text}")
    half, hour, minute = found[1], int(found[2]), int(found[3] or 0)
    if half is not None:
        if not 1 <= hour <= 12:
            raise _Turned("bad_time", f"{name}={text}")
        hour = hour % 12 + (12 if half == "오후" else 0)
    if minute > 59 or hour * 60 + minute > 24 * 60:
        raise _Turned("bad_time", f"{name}={text}")
    value = f"{hour:02d}:{minute:02d}"
    rules = [] if value == text else ["time_spelling"]
    if value == "24:00":
        rules.append("time_24")
        value = "00:00" if name.endswith("_start") else value
    elif value == "00:00" and name.endswith("_end"):
        rules.append("midnight_end")
        value = "24:00"
    return value, rules


def _phone(name: str, text: str) -> tuple[str | None, list[str]]:
    digits = re.sub(r"^\+?82\s*-?\s*0?", "0", text) if text.startswith(("+82", "82-")) else text
    found = _PHONE.fullmatch(re.sub(r"[-\s().]", "", digits))
    if found is None or (found[2] is None) != (found[1].startswith("1")):
        return None, ["bad_phone"]
    value = "-".join(part for part in found.groups() if part)
    return value, [] if value == text else ["phone_spelling"]


def _date(name: str, text: str) -> tuple[str, list[str]]:
    from datetime import date

    found = _DATE.fullmatch(text) or re.fullmatch(r"(\d{4})(\d{2})(\d{2})", text)
    try:
        value = date(*map(int, found.groups())).isoformat() if found else ""
    except ValueError:
        value = ""
    if not value:
        raise _Turned("bad_date", f"{name}={text}")
    return value, [] if value == text else ["date_spelling"]
