"""Dataset versions cut from the ledger of comments: what changed since the version that one extends, as lines of JSON in the landing zone.

A cut's rows and its name are committed first; its objects are a function of those rows, written as often as it takes until `_READY` is
there. What it holds is the difference between how comments stand now and what the versions before it say, not what lies behind a cursor:
a label whose transaction commits late has an old sequence, and is in the next cut all the same. Belongs here: when a cut is due, what it
holds, landing it. Does not belong here: which label holds (`labels.py`), freezing (`lifecycle/dataset.py`), Dagster (`sensors.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mlops_assets import crash
from mlops_assets.database import lock
from mlops_assets.ingest.objects import PARENT, READY, prefix_of
from mlops_assets.settings import CutsSection, canonical

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from mlops_assets.store import ObjectStore

OBJECT: Final = "comments.jsonl"
PAGE_ROWS: Final = 10_000


@dataclass(frozen=True)
class Cut:
    """One row of `comment_cut`."""

    system: str
    version: str
    parent: str
    sequence_from: int
    sequence_to: int
    rows: int
    reason: str
    state: str


@dataclass(frozen=True)
class Ledger:
    """How things stand for a system: plain values that `due` decides on.

    Attributes:
        parent: the newest frozen version, which a cut would extend.
        busy: a sentence while an earlier cut is on its way, else None.
        changed: comments of which the next cut would say something else than the versions before it.
        arriving: a comment arrived within the section's `quiet_minutes`.
    """

    parent: str | None
    busy: str | None
    changed: int
    arriving: bool


@dataclass(frozen=True)
class Due:
    cut: bool
    why: str


def due(ledger: Ledger, section: CutsSection, *, asked: bool = False) -> Due:
    """Whether a version is to be cut now, and why (not).

    Args:
        asked: by a person or by the schedule: neither the number of new labels nor quiet is waited for.
    """
    if ledger.busy is not None:
        return Due(False, ledger.busy)
    if ledger.parent is None:
        return Due(False, "no version is frozen yet that a cut could extend: land the data set first")
    if ledger.changed == 0:
        return Due(False, "no comment has another label than before")
    new = f"{ledger.changed} comments with a new label, or gone"
    if asked:
        return Due(True, new)
    if ledger.changed < section.min_new_labels:
        return Due(False, f"{new}: {section.min_new_labels} are waited for")
    if section.when == "schedule":
        return Due(False, f"{new}: cut at {section.cron}")
    if section.when == "collection_end":
        if ledger.arriving:
            return Due(False, f"{new}: comments still arrive, {section.quiet_minutes:g} min without one are waited for")
        return Due(True, f"{new}; the collection has ended")
    return Due(True, new)


# --- what a cut holds -----------------------------------------------------------------------------------------------------------

#: What the versions say that a cut would extend: of each comment the latest. A refused version is in nobody's ancestry.
_BEFORE = (
    "WITH RECURSIVE ancestor AS ("
    "  SELECT version, parent, 0 AS distance FROM dataset_version WHERE system = :s AND version = :p"
    "  UNION ALL SELECT d.version, d.parent, a.distance + 1"
    "  FROM dataset_version d JOIN ancestor a ON d.version = a.parent WHERE d.system = :s"
    "), before AS ("
    "  SELECT DISTINCT ON (source, id) source, id, content_hash, labels, deleted"
    "  FROM comment_cut_row r JOIN ancestor USING (version) WHERE r.system = :s ORDER BY source, id, distance"
    ")"
)
#: Comments that stand otherwise now. One that has lost its label (its text changed) is told of once, without labels: it trains no more.
_CHANGED = (
    _BEFORE + ", now AS ("
    "  SELECT c.source, c.id, c.content_hash, c.text, c.created_at, c.deleted_at IS NOT NULL AS deleted,"
    "    CASE WHEN c.deleted_at IS NULL AND (s.origin = ANY(:o) OR b.source IS NOT NULL) THEN s.labels END AS labels,"
    "    b.source IS NOT NULL AS known, b.content_hash AS said_of, b.labels AS said, b.deleted AS gone"
    "  FROM comment c LEFT JOIN comment_standing s USING (source, id) LEFT JOIN before b USING (source, id)"
    ") SELECT source, id, content_hash, CASE WHEN labels IS NULL THEN '' ELSE text END AS text, coalesce(labels, '{}') AS labels,"
    "    created_at, deleted"
    "  FROM now WHERE CASE"
    "    WHEN deleted THEN NOT coalesce(gone, false) AND (known OR EXISTS"
    "      (SELECT FROM comment_label l WHERE l.source = now.source AND l.id = now.id))"
    "    WHEN labels IS NULL THEN known AND (gone OR cardinality(said) > 0)"
    "    ELSE (said_of, said, gone) IS DISTINCT FROM (content_hash, labels, false) END"
)


def look(connection: Connection, system: str, section: CutsSection) -> Ledger:
    """How things stand now. Counting what changed reads every label that holds: ask when `hint` has changed."""
    from sqlalchemy import text

    parent = newest_frozen(connection, system)
    busy = _busy(connection, system)
    changed = 0
    if parent is not None and busy is None:
        values = {"s": system, "p": parent, "o": list(section.origins)}
        changed = int(connection.execute(text(f"SELECT count(*) FROM ({_CHANGED}) changed"), values).scalar_one())
    return Ledger(parent, busy, changed, arriving(connection, section))


def arriving(connection: Connection, section: CutsSection) -> bool:
    """Whether a comment arrived within `quiet_minutes`."""
    from sqlalchemy import text

    sql = text("SELECT EXISTS (SELECT FROM comment_ledger WHERE seen_at > clock_timestamp() - make_interval(secs => :seconds))")
    return bool(connection.execute(sql, {"seconds": section.quiet_minutes * 60}).scalar_one())


def hint(connection: Connection, system: str) -> str:
    """A text that changes when something was said or has arrived, and when a version was frozen. Cheap; only a hint."""
    from sqlalchemy import text

    sql = text(
        "SELECT (SELECT max(sequence) FROM comment_label), (SELECT max(frozen_at) FROM dataset_version WHERE system = :s), "
        "(SELECT count(*) FROM comment_cut WHERE system = :s), (SELECT string_agg(concat(source, read_to, edits_to, reconciled_at), ',' "
        "ORDER BY source) FROM comment_source)"
    )
    return "|".join(str(value) for value in connection.execute(sql, {"s": system}).one())


def newest_frozen(connection: Connection, system: str) -> str | None:
    """The version that a cut would extend."""
    from sqlalchemy import text

    sql = text(
        "SELECT version FROM dataset_version WHERE system = :s AND state = 'frozen' "
        "ORDER BY frozen_at DESC NULLS LAST, version DESC LIMIT 1"
    )
    found = connection.execute(sql, {"s": system}).scalar()
    return None if found is None else str(found)


def _busy(connection: Connection, system: str) -> str | None:
    """A sentence while the latest cut is neither frozen nor refused."""
    from sqlalchemy import text

    sql = text(
        "SELECT c.version, c.state AS cut, d.state FROM comment_cut c LEFT JOIN dataset_version d USING (system, version) "
        "WHERE c.system = :s AND (d.state IS NULL OR d.state NOT IN ('frozen', 'refused')) LIMIT 1"
    )
    row = connection.execute(sql, {"s": system}).one_or_none()
    return None if row is None else f"{row.version} is on its way: {row.state or row.cut}, not frozen yet"


# --- cutting --------------------------------------------------------------------------------------------------------------------


def cut(engine: Engine, system: str, section: CutsSection, *, asked: bool = False) -> tuple[Cut | None, str]:
    """Settle what the next version holds, in one transaction, if one is due. Returns the cut, or None, and why (not)."""
    from sqlalchemy import text

    with engine.begin() as connection, lock(connection, f"comment_cut/{system}"):  # of two at once the second finds the first one's cut
        decided = due(look(connection, system, section), section, asked=asked)
        if not decided.cut:
            return None, decided.why
        parent = newest_frozen(connection, system)
        assert parent is not None
        known = connection.execute(
            text(
                "SELECT (SELECT coalesce(max(sequence_to), 0) FROM comment_cut WHERE system = :s) AS low, "
                "(SELECT coalesce(max(sequence), 0) FROM comment_label) AS high, now() AS at"
            ),
            {"s": system},
        ).one()
        version = _name(connection, system, known.at, known.high)
        row = {"s": system, "v": version, "p": parent, "low": known.low, "high": known.high, "r": decided.why}
        connection.execute(
            text(
                "INSERT INTO comment_cut (system, version, parent, sequence_from, sequence_to, rows, reason) "
                "VALUES (:s, :v, :p, :low, :high, 0, :r)"
            ),
            row,
        )
        rows = connection.execute(
            text(
                "INSERT INTO comment_cut_row (system, version, source, id, content_hash, text, labels, created_at, deleted) "
                f"SELECT :s, :v, changed.* FROM ({_CHANGED}) changed"
            ),
            {**row, "o": list(section.origins)},
        ).rowcount
        if rows == 0:  # what had changed has changed back meanwhile
            connection.rollback()
            return None, "no comment has another label than before"
        connection.execute(text("UPDATE comment_cut SET rows = :n WHERE system = :s AND version = :v"), {**row, "n": rows})
        crash.reach("cut.before_commit")
    crash.reach("cut.after_commit")
    return Cut(system, version, parent, known.low, known.high, int(rows), decided.why, "cut"), decided.why


def _name(connection: Connection, system: str, at: datetime, sequence: int) -> str:
    """Named by its watermark. A second cut at the same one (a label that committed late, a comment that went) gets a number."""
    from sqlalchemy import text

    name = f"comments-{at:%Y%m%d}-{sequence:09d}"
    sql = text("SELECT count(*) FROM comment_cut WHERE system = :s AND (version = :v OR version LIKE :v || '.%')")
    before = int(connection.execute(sql, {"s": system, "v": name}).scalar_one())
    return name if before == 0 else f"{name}.{before + 1}"


# --- landing ----------------------------------------------------------------------------------------------------------------------


def unfinished(connection: Connection, system: str) -> list[Cut]:
    """Cuts whose objects are not all in the landing zone, oldest first."""
    from sqlalchemy import text

    sql = text(
        "SELECT system, version, parent, sequence_from, sequence_to, rows, reason, state FROM comment_cut "
        "WHERE system = :s AND state = 'cut' ORDER BY at"
    )
    return [Cut(*row) for row in connection.execute(sql, {"s": system})]


def land(engine: Engine, store: ObjectStore, found: Cut, scratch: Path) -> None:
    """Write the cut's objects, `_READY` last. Again, it only completes: what is there is never written twice.

    The parent's name comes first: whatever lies there without `_READY` counts as complete when it has been quiet for long enough.
    """
    from sqlalchemy import text

    prefix = prefix_of(found.system, found.version)
    there = {info.key for info in store.list(prefix)}
    if f"{prefix}/{PARENT}" not in there:
        store.put(f"{prefix}/{PARENT}", found.parent.encode())
    crash.reach("cut.after_parent")
    if f"{prefix}/{OBJECT}" not in there:
        file = scratch / OBJECT
        with file.open("w", encoding="utf-8", newline="\n") as lines, engine.connect() as connection:
            lines.writelines(line + "\n" for line in lines_of(connection, found))
        store.put(f"{prefix}/{OBJECT}", file)
        file.unlink()
    crash.reach("cut.after_object")
    if f"{prefix}/{READY}" not in there:
        store.put(f"{prefix}/{READY}", b"")
    crash.reach("cut.after_ready")
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE comment_cut SET state = 'landed', landed_at = now() WHERE system = :s AND version = :v AND state = 'cut'"),
            {"s": found.system, "v": found.version},
        )


def lines_of(connection: Connection, found: Cut) -> Iterator[str]:
    """The cut's lines: canonical JSON, by source and id, the same bytes however often."""
    from sqlalchemy import text

    sql = text(
        "SELECT source, id, content_hash, text, labels, created_at, deleted FROM comment_cut_row "
        'WHERE system = :s AND version = :v ORDER BY source COLLATE "C", id'
    )
    rows = connection.execution_options(stream_results=True, yield_per=PAGE_ROWS).execute(sql, {"s": found.system, "v": found.version})
    for row in rows.mappings():
        yield canonical({**row, "labels": list(row["labels"]), "created_at": row["created_at"].isoformat()})


@dataclass(frozen=True)
class Done:
    """`landed`: versions that are in the landing zone now. `why`: a cut was made, or not, because of this."""

    landed: list[str]
    why: str


def run(engine: Engine, store: ObjectStore, system: str, section: CutsSection, scratch: Path, *, asked: bool = False) -> Done:
    """Complete what was cut before, cut what is due, and land it."""
    with engine.connect() as connection:
        waiting = unfinished(connection, system)
    for one in waiting:
        land(engine, store, one, scratch)
    made, why = cut(engine, system, section, asked=asked)
    if made is not None:
        land(engine, store, made, scratch)
    return Done([one.version for one in [*waiting, *([made] if made else [])]], why)
