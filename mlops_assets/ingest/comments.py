"""Comments of the application's database, each exactly once in `comment`, however late its transaction commits.

`id > cursor` alone loses rows: ids are handed out before transactions commit, and a row may appear below the cursor. Here every id that is
passed without a row is in a *hole*, made in the transaction that stores the page and moves the mark `read_to`; holes are looked at again
until they fill or expire. So at each moment every id up to `read_to` is in the ledger, or in a hole, or was in one that expired. A hole is
a range: where ids come with gaps between them (a cluster of writers counts 1, 3, 5) neighbouring gaps are one, with the comments between
them, and a look at it asks for their number and a checksum. Edits are found by `updated_at`, with an overlap; deletions (and edits without
`updated_at`) by comparing the newest ids; and the night compares everything, by count and hash of a bucket of ids, and reads only buckets
that differ.

What the application only marks as deleted is deleted here, as if its row were gone: text and label with it. Its row fills no hole and is
none.

Each step reads the source and stores the outcome in one PostgreSQL transaction under a lock of the source: a kill at any point, or two
ticks at the same time, lose and double nothing. Texts are masked before they are stored.

Belongs here: the steps, holes, what is stored. Does not belong here: how the source is asked (`comment_source.py`), which label holds
(`labels.py`), Dagster (`sensors.py`).
"""

from __future__ import annotations

import json
import logging
import time
import unicodedata
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from mlops_assets import crash, database
from mlops_assets.characters import is_blank
from mlops_assets.ingest.comment_source import (
    MAX_RANGES,
    MIN_ID,
    CommentsError,
    CommentsSection,
    Row,
    Signature,
    Table,
    connect,
    labels_of,
)
from mlops_assets.ingest.masking import mask

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from mlops_assets.settings import Settings

logger = logging.getLogger(__name__)

#: The actor of labels that the source's moderators gave.
MODERATOR: Final = "source moderation"
#: Most transactions that edit a comment commit within this: so far back each tick looks for edits.
SHORT: Final = timedelta(minutes=1)
#: Holes that one page of ids leaves at most.
HOLES_PER_PAGE: Final = 10
#: A decision that is not mapped is named in messages up to here.
EXCERPT: Final = 60


@dataclass
class Tick:
    """What one tick (or one reconciliation) did. `problems`: sentences; the rest of the tick was done all the same."""

    source: str
    at: datetime | None = None
    """When it began, by our database's clock."""
    new: int = 0
    changed: int = 0
    deleted: int = 0
    labels: int = 0
    quarantined: int = 0
    holes_filled: int = 0
    holes_expired: int = 0
    compared: int = 0
    unmapped: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    behind: bool = False
    """Time was up before everything was read."""

    def sentence(self) -> str:
        """One line for people."""
        counts = [f"{n} {what}" for what, n in (("new", self.new), ("changed", self.changed), ("deleted", self.deleted)) if n]
        counts += [f"{self.labels} labelled by moderators"] if self.labels else []
        counts += [f"{self.quarantined} in quarantine"] if self.quarantined else []
        return f"{self.source}: {', '.join(counts) or 'nothing new'}{', more to come' if self.behind else ''}"

    def as_json(self) -> dict[str, Any]:
        return vars(self) | {"at": self.at.isoformat() if self.at else None, "unmapped": dict(self.unmapped)}


def tick(engine: Engine, settings: Settings, section: CommentsSection) -> Tick:
    """Read what is new, edited or deleted, for at most `seconds_per_tick`; what is left is the next tick's.

    Raises:
        SettingsError: comments_url is not set.
        CommentsError: the source does not answer or is not as configured; what was stored before stays, and is right.
    """
    until = time.monotonic() + section.seconds_per_tick
    done = Tick(section.source)
    with connect(settings, section) as table:
        done.at = _begin(engine, table)
        steps: list[Callable[[Engine, Table, Tick], bool]] = [_new_rows, _holes, _edits, _newest]
        while steps:  # each at least once, then in turn those that have more to do
            steps = [step for step in steps if step(engine, table, done)]
            if steps and time.monotonic() >= until:
                done.behind = True
                break
        done.problems += _said_of(table)
    return _said(done, section)


def _said_of(table: Table) -> list[str]:
    beyond = f"{table.section.table} has ids above {2**63 - 1}: those comments cannot be kept. Nothing of them was read."
    return [*table.problems, *([beyond] if table.beyond() else [])]


def _said(done: Tick, section: CommentsSection) -> Tick:
    if done.unmapped:
        most = ", ".join(f"{value[:EXCERPT]} ({n})" for value, n in done.unmapped.most_common(5))
        done.problems.append(
            f"decisions that the section `comments` does not map, these comments have no label: {most}. "
            "Add them to moderation.decisions or moderation.names; the next reconciliation labels what is there."
        )
    for problem in done.problems:
        logger.warning("%s: %s", section.source, problem)
    return done


# --- one step: one transaction under the source's lock ------------------------------------------------------------------------------------


@contextmanager
def _step(engine: Engine, source: str) -> Iterator[Connection]:
    with engine.begin() as connection, database.lock(connection, f"comments:{source}"):
        yield connection
        crash.reach("comments.before_commit")
    crash.reach("comments.after_commit")


def _state(connection: Connection, source: str) -> Any:
    from sqlalchemy import text

    return connection.execute(text("SELECT * FROM comment_source WHERE source = :s"), {"s": source}).one()


def _begin(engine: Engine, table: Table) -> datetime:
    """The source's row; and that the key of its hashes is still the one they were made with. Returns our database's time."""
    from sqlalchemy import text

    section, check = table.section, table.key_check()
    with engine.begin() as connection:
        known = connection.execute(text("SELECT key_check FROM comment_source WHERE source = :s"), {"s": section.source}).one_or_none()
        if known is None:
            now = datetime.now(UTC)
            newest = (table.newest_edit() or now) if table.by_time else None
            connection.execute(
                text(
                    "INSERT INTO comment_source (source, read_to, edits_to, key_check) VALUES (:s, :read_to, :edits_to, :check) "
                    "ON CONFLICT DO NOTHING"
                ),
                {"s": section.source, "read_to": MIN_ID, "edits_to": min(newest, now) if newest else None, "check": check},
            )
        elif known.key_check != check:
            raise CommentsError(
                f"keys/comments.key is not the key that the hashes of {section.source} were made with: every comment would look changed. "
                "Put the former file back under MLOPS_HOME."
            )
        at: datetime = connection.execute(text("SELECT now()")).scalar_one()
    return at


def gaps(after: int, ids: Iterable[int]) -> list[tuple[int, int]]:
    """The ranges of ids between `after` and the last of `ids` (ascending) that are not among them."""
    found = []
    for id_ in ids:
        if id_ > after + 1:
            found.append((after + 1, id_ - 1))
        after = id_
    return found


@dataclass(frozen=True)
class Hole:
    """The ids from `first` to `last` that are not here yet, and the signature of those that the source has within."""

    first: int
    last: int
    there: Signature = Signature(0, 0)


def holes_of(after: int, ids: Sequence[int], last: int | None = None) -> list[Hole]:
    """The holes between `after`, the known `ids` (ascending) and, where it is given, `last` (a hole may end there).

    There are at most HOLES_PER_PAGE: of more gaps those that have the fewest ids between them are one hole, with these ids in it.
    """
    found = gaps(after, ids if last is None else [*ids, last + 1])
    between = [bisect_left(ids, second[0]) - bisect_right(ids, first[1]) for first, second in pairwise(found)]
    kept = sorted(sorted(range(len(between)), key=lambda n: (-between[n], n))[: HOLES_PER_PAGE - 1])
    starts, ends = [0, *(n + 1 for n in kept)], [*kept, len(found) - 1]
    joined = [(found[start][0], found[end][1]) for start, end in zip(starts, ends, strict=True)] if found else []
    return [Hole(first, last, Signature.of(ids[bisect_left(ids, first) : bisect_right(ids, last)])) for first, last in joined]


def _new_rows(engine: Engine, table: Table, done: Tick) -> bool:
    """The next page above `read_to`. True: it was full."""
    from sqlalchemy import text

    section = table.section
    with _step(engine, section.source) as connection:
        read_to = _state(connection, section.source).read_to
        rows = table.page(read_to, section.batch_rows)
        crash.reach("comments.after_read")
        if rows:
            _store(connection, section, table, rows, done)
            _dig(connection, section.source, holes_of(read_to, [row.id for row in rows]))
            crash.reach("comments.after_holes")
            mark = {"s": section.source, "read_to": rows[-1].id}
            connection.execute(text("UPDATE comment_source SET read_to = :read_to WHERE source = :s"), mark)
    return len(rows) == section.batch_rows


def _holes(engine: Engine, table: Table, done: Tick) -> bool:
    """Look at the holes that are due, at each once a tick. True: there are more."""
    from sqlalchemy import text

    section = table.section
    due_sql = (
        "SELECT first_id, last_id, rows, ids, since FROM comment_hole WHERE source = :s AND next_look_at <= :at "
        "ORDER BY next_look_at, first_id LIMIT :n"
    )
    with _step(engine, section.source) as connection:
        due = connection.execute(text(due_sql), {"s": section.source, "n": MAX_RANGES, "at": done.at}).all()
        if not due:
            return False
        signatures = table.signatures([(hole.first_id, hole.last_id) for hole in due])
        crash.reach("comments.after_read")
        changed = [hole for hole, there in zip(due, signatures, strict=True) if (hole.rows, hole.ids) != there]
        unchanged = [hole.first_id for hole, there in zip(due, signatures, strict=True) if (hole.rows, hole.ids) == there]
        read = 0
        while changed and read < section.batch_rows:  # about a page at a time: the others are due still
            read += _fill(connection, table, changed.pop(0), done)
        values = {
            "s": section.source,
            "first": unchanged,
            "expiry": timedelta(hours=section.hole_expiry_hours),
            "longest": timedelta(seconds=section.hole_look_seconds),
        }
        # The next look comes after half their age.
        of_them = "source = :s AND first_id = ANY(:first)"
        expired = connection.execute(text(f"DELETE FROM comment_hole WHERE {of_them} AND since <= now() - :expiry"), values)
        connection.execute(
            text(f"UPDATE comment_hole SET next_look_at = now() + least((now() - since) / 2, :longest) WHERE {of_them}"), values
        )
        done.holes_expired += expired.rowcount
        crash.reach("comments.after_holes")
    return bool(changed) or read >= section.batch_rows or len(due) == MAX_RANGES


def _fill(connection: Connection, table: Table, hole: Any, done: Tick) -> int:
    """Read what came into a hole, a page of it at most; what is left of it are holes. Returns how many ids are there.

    What is left above an id that came is young again: more may come there.
    """
    from sqlalchemy import text

    section = table.section
    ids = table.ids(hole.first_id, hole.last_id, section.batch_rows)
    seen_sql = "SELECT id, min(seen_at) FROM comment_ledger WHERE source = :s AND id = ANY(:ids) GROUP BY id"
    seen = dict(connection.execute(text(seen_sql), {"s": section.source, "ids": ids}).tuples().all())
    if fresh := [id_ for id_ in ids if id_ not in seen]:
        _store(connection, section, table, table.rows(fresh), done)
    came = [id_ for id_ in ids if id_ not in seen or seen[id_] > hole.since]  # a look for edits may have been first
    done.holes_filled += len(came)
    connection.execute(
        text("DELETE FROM comment_hole WHERE source = :s AND first_id = :first"), {"s": section.source, "first": hole.first_id}
    )
    full = len(ids) == section.batch_rows
    left = holes_of(hole.first_id - 1, ids, ids[-1] if full else hole.last_id)
    newest = came[-1] if came else MIN_ID
    _dig(connection, section.source, [one for one in left if one.last > newest], since=None if came else hole.since)
    _dig(connection, section.source, [one for one in left if one.last <= newest], since=hole.since)
    if full and ids[-1] < hole.last_id:  # goes on at once
        _dig(connection, section.source, [Hole(ids[-1] + 1, hole.last_id)], since=hole.since, at_once=True)
    return len(ids)


def _dig(connection: Connection, source: str, holes: Sequence[Hole], since: datetime | None = None, *, at_once: bool = False) -> None:
    """Remember holes, made now or before; they are looked at again when this tick is over, or `at_once`."""
    from sqlalchemy import text

    if not holes:
        return
    sql = (
        "INSERT INTO comment_hole (source, first_id, last_id, rows, ids, since, next_look_at) SELECT :s, h.*, coalesce(:since, now()), "
        "CASE WHEN :at_once THEN '-infinity' ELSE now() END "
        "FROM unnest(CAST(:first AS bigint[]), CAST(:last AS bigint[]), CAST(:rows AS bigint[]), CAST(:ids AS bigint[])) h"
    )
    values = {
        "s": source,
        "since": since,
        "at_once": at_once,
        "first": [hole.first for hole in holes],
        "last": [hole.last for hole in holes],
        "rows": [hole.there.rows for hole in holes],
        "ids": [hole.there.sum for hole in holes],
    }
    connection.execute(text(sql), values)


def _edits(engine: Engine, table: Table, done: Tick) -> bool:
    """What was changed since the last look, and a little before. True: a page was full."""
    from sqlalchemy import text

    section = table.section
    if table.by_time is None:
        return False
    with _step(engine, section.source) as connection:
        state, now = _state(connection, section.source), datetime.now(UTC)
        overlap = timedelta(minutes=section.overlap_minutes)
        edits_to, looked_back = state.edits_to or now, state.looked_back_at
        if state.sweep_at:
            at, after = state.sweep_at, state.sweep_id
        elif looked_back is None or looked_back <= now - overlap:
            at, after, looked_back = edits_to - 2 * overlap, MIN_ID, now
        else:
            at, after = edits_to - min(overlap, SHORT), MIN_ID
        found = table.edited(at, after, section.batch_rows)
        crash.reach("comments.after_read")
        known = [edit for edit in found if edit.id <= state.read_to]
        different = _different(connection, section.source, [e.id for e in known], [e.row_hash for e in known])
        if different:
            _store(connection, section, table, table.rows(different), done)
        full = len(found) == section.batch_rows
        mark = {
            "s": section.source,
            # A moment in the future is no mark: what is edited until then would be passed.
            "to": edits_to if full or not found else max(edits_to, min(found[-1].at, now)),
            "at": found[-1].at if full else None,
            "id": found[-1].id if full else None,
            "back": looked_back,
        }
        sql = "UPDATE comment_source SET edits_to = :to, sweep_at = :at, sweep_id = :id, looked_back_at = :back WHERE source = :s"
        if (mark["to"], mark["at"], mark["id"], looked_back) != (state.edits_to, state.sweep_at, state.sweep_id, state.looked_back_at):
            connection.execute(text(sql), mark)
    return full


def _different(connection: Connection, source: str, ids: Sequence[int], hashes: Sequence[int | None]) -> list[int]:
    """Of rows of the source (without a hash: marked deleted) those that do not stand so in `comment`, by id."""
    from sqlalchemy import text

    if not ids:
        return []
    sql = (
        "SELECT s.id FROM unnest(CAST(:ids AS bigint[]), CAST(:hashes AS bigint[])) AS s (id, row_hash) "
        "LEFT JOIN comment c ON c.source = :s AND c.id = s.id WHERE CASE WHEN s.row_hash IS NULL "
        "THEN c.id IS NOT NULL AND c.deleted_at IS NULL "
        "ELSE c.id IS NULL OR (c.row_hash, c.deleted_at) IS DISTINCT FROM (s.row_hash, NULL) END ORDER BY s.id"
    )
    return list(connection.execute(text(sql), {"s": source, "ids": list(ids), "hashes": list(hashes)}).scalars())


def _newest(engine: Engine, table: Table, done: Tick) -> bool:
    """Compare the next slice of the newest comments with the source; one slice a tick."""
    from sqlalchemy import text

    section = table.section
    with _step(engine, section.source) as connection:
        state = _state(connection, section.source)
        after = state.window_id
        if after is None:
            sql = "SELECT id FROM comment WHERE source = :s ORDER BY id DESC OFFSET :n LIMIT 1"
            after = connection.execute(text(sql), {"s": section.source, "n": section.window_rows}).scalar()
            after = MIN_ID if after is None else after
        difference = _compare(connection, table, after, state.read_to, section.window_slice)
        crash.reach("comments.after_read")
        done.compared += difference.count
        gone = difference.gone
        if len(gone) > max(section.max_deleted_rows, section.max_deleted_share * difference.ours):
            done.problems.append(
                f"{len(gone)} of {difference.ours} comments up to the id {difference.last} are gone from {section.table}. None is marked "
                "deleted: `mlops ingest comments --reconcile` compares the whole table, and says more."
            )
            gone = []
        _apply(connection, table, difference.read, gone, done)
        mark = {"s": section.source, "w": difference.last if difference.last < state.read_to else None}
        if mark["w"] != state.window_id:
            connection.execute(text("UPDATE comment_source SET window_id = :w WHERE source = :s"), mark)
    return False


# --- comparing -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """Of the rows up to the id `last`: how many the source has (`count`) and we (`ours`), which are to be read, which are gone."""

    last: int
    count: int
    ours: int
    read: Sequence[int] = ()
    gone: Sequence[int] = ()

    def __bool__(self) -> bool:
        return bool(self.read or self.gone)


def _compare(connection: Connection, table: Table, after: int, upto: int, limit: int) -> Difference:
    """The next `limit` rows of the source after `after` up to `upto`, against ours."""
    from sqlalchemy import text

    theirs = table.bucket(after, upto, limit)
    where = "FROM comment WHERE source = :s AND id > :after AND id <= :last AND deleted_at IS NULL"
    values = {"s": table.section.source, "after": after, "last": theirs.last}
    count, xor = connection.execute(text(f"SELECT count(*), coalesce(bit_xor(row_hash), 0) {where}"), values).one()
    if (count, xor) == (theirs.rows, theirs.xor):
        return Difference(theirs.last, theirs.rows, count)
    there = table.hashes(after, theirs.last)
    here = dict(connection.execute(text(f"SELECT id, row_hash {where}"), values).tuples().all())
    return Difference(
        theirs.last,
        theirs.rows,
        count,
        read=sorted(id_ for id_, hash_ in there.items() if (id_ in here if hash_ is None else here.get(id_) != hash_)),
        gone=sorted(here.keys() - there.keys()),
    )


def _apply(connection: Connection, table: Table, read: Sequence[int], gone: Sequence[int], done: Tick) -> None:
    if read:
        _store(connection, table.section, table, table.rows(read), done)
    _delete(connection, table.section.source, gone, done)


def _delete(connection: Connection, source: str, ids: Sequence[int], done: Tick) -> None:
    """Their texts go at once; ledger and labels tell only that there was something."""
    from sqlalchemy import text

    if ids:
        sql = "UPDATE comment SET deleted_at = now(), text = '' WHERE source = :s AND id = ANY(:ids) AND deleted_at IS NULL"
        done.deleted += connection.execute(text(sql), {"s": source, "ids": list(ids)}).rowcount


def reconcile(engine: Engine, settings: Settings, section: CommentsSection, *, accept_deletions: bool = False) -> Tick:
    """Compare every comment up to `read_to` with the source, and mend what differs. First all is compared, then anything is changed.

    Args:
        accept_deletions: mark deleted what is gone, however much it is.

    Raises:
        CommentsError: the source does not answer, or so much of it is gone that it may be another database: nothing was changed.
    """
    from sqlalchemy import text

    done = Tick(section.source)
    with connect(settings, section) as table:
        done.at = _begin(engine, table)
        differing: list[tuple[int, int]] = []
        gone = ours = 0
        for after, difference in _buckets(engine, table):
            gone, ours, done.compared = gone + len(difference.gone), ours + difference.ours, done.compared + difference.count
            if difference:
                differing.append((after, difference.last))
        allowed = ours if accept_deletions else max(section.max_deleted_rows, section.max_deleted_share * ours)
        if gone > allowed or (gone and not done.compared and not accept_deletions):
            raise CommentsError(
                f"{gone} of {ours} comments of {section.source} are gone from {section.table}, more than max_deleted_share "
                f"({section.max_deleted_share:.0%}) allows: is MLOPS_COMMENTS_URL another database, or one restored? Nothing was changed. "
                "If they are really deleted: `mlops ingest comments --reconcile --accept-deletions`."
            )
        taken = 0
        for after, last in differing:
            with _step(engine, section.source) as connection:
                difference = _compare(connection, table, after, last, section.bucket_rows)
                crash.reach("comments.after_read")
                taken += len(difference.gone)
                if taken > allowed:
                    raise CommentsError(f"{section.table} is losing rows while it is compared: stopped. Look at it, then reconcile again.")
                _apply(connection, table, difference.read, difference.gone, done)
        with _step(engine, section.source) as connection:
            done.labels += _label_again(connection, section, done)
            connection.execute(text("UPDATE comment_source SET reconciled_at = now() WHERE source = :s"), {"s": section.source})
        done.problems += _said_of(table)
    return _said(done, section)


def _buckets(engine: Engine, table: Table) -> Iterator[tuple[int, Difference]]:
    """(after, difference) of each bucket up to `read_to`; changes nothing."""
    after, section = MIN_ID, table.section
    while True:
        with engine.begin() as connection, database.lock(connection, f"comments:{section.source}"):
            read_to = _state(connection, section.source).read_to
            if after >= read_to:
                return
            difference = _compare(connection, table, after, read_to, section.bucket_rows)
        yield after, difference
        after = difference.last


def _label_again(connection: Connection, section: CommentsSection, done: Tick) -> int:
    """Label what the configuration maps now and did not when it was read."""
    from sqlalchemy import text

    if section.moderation is None:
        return 0
    distinct = text("SELECT DISTINCT moderation FROM comment WHERE source = :s AND moderation IS NOT NULL")
    mapped = []
    for (values,) in connection.execute(distinct, {"s": section.source}):
        labels, unknown = labels_of(section.moderation, values)
        if unknown is not None:
            done.unmapped[mask(unknown)] += 1
        if labels is not None:
            mapped.append((json.dumps(values), _array(labels)))
    if not mapped:
        return 0
    sql = (
        "INSERT INTO comment_label (source, id, content_hash, labels, origin, actor) "
        "SELECT c.source, c.id, c.content_hash, CAST(m.labels AS text[]), 'moderation', :actor FROM comment c "
        "JOIN unnest(CAST(:values AS jsonb[]), CAST(:labels AS text[])) AS m (moderation, labels) ON m.moderation = c.moderation "
        f"{_LAST_LABEL.format(row='c')} WHERE c.source = :s AND c.deleted_at IS NULL AND c.quarantined IS NULL "
        "AND l.labels IS DISTINCT FROM CAST(m.labels AS text[]) ORDER BY c.id"
    )
    values, labels_ = zip(*mapped, strict=True)
    return connection.execute(
        text(sql), {"s": section.source, "actor": MODERATOR, "values": list(values), "labels": list(labels_)}
    ).rowcount


#: What the moderators said last about this content.
_LAST_LABEL: Final = (
    "LEFT JOIN LATERAL (SELECT labels FROM comment_label WHERE source = :s AND id = {row}.id AND content_hash = {row}.content_hash "
    "AND origin = 'moderation' ORDER BY sequence DESC LIMIT 1) l ON true"
)


# --- storing --------------------------------------------------------------------------------------------------------------------------

_COLUMNS: Final = ("id", "content_hash", "row_hash", "text", "created", "updated", "moderation", "labels", "quarantined")
_STAGING: Final = (
    "CREATE TEMP TABLE IF NOT EXISTS comment_arrived (id bigint, content_hash bigint, row_hash bigint, text text, created bigint, "
    "updated bigint, moderation jsonb, labels text[], quarantined text) ON COMMIT DELETE ROWS"
)
_LEDGER: Final = (
    "INSERT INTO comment_ledger (source, id, content_hash) SELECT :s, id, content_hash FROM comment_arrived ON CONFLICT DO NOTHING"
)
_COMMENTS: Final = """
WITH stored AS (
  INSERT INTO comment AS c (source, id, content_hash, row_hash, text, created_at, updated_at, moderation, quarantined)
  SELECT :s, id, content_hash, row_hash, text, coalesce(created_at, now()), coalesce(updated_at, created_at, now()), moderation, quarantined
  FROM (
    SELECT *, (timestamp 'epoch' + created * interval '1 microsecond') AT TIME ZONE :created_zone AS created_at,
      (timestamp 'epoch' + updated * interval '1 microsecond') AT TIME ZONE :updated_zone AS updated_at
    FROM comment_arrived
  ) arrived
  ON CONFLICT (source, id) DO UPDATE SET content_hash = excluded.content_hash, row_hash = excluded.row_hash, text = excluded.text,
    created_at = excluded.created_at, updated_at = excluded.updated_at, moderation = excluded.moderation,
    quarantined = excluded.quarantined, deleted_at = NULL
  WHERE (c.row_hash, c.deleted_at) IS DISTINCT FROM (excluded.row_hash, NULL)
  RETURNING xmax = 0 AS new, quarantined
)
SELECT count(*) FILTER (WHERE new), count(*) FILTER (WHERE NOT new), count(quarantined) FROM stored"""
_LABELS: Final = (
    "INSERT INTO comment_label (source, id, content_hash, labels, origin, actor) "
    "SELECT :s, a.id, a.content_hash, coalesce(a.labels, '{}'), 'moderation', :actor FROM comment_arrived a "
    # Without labels only where there were some: the decision was taken back.
    f"{_LAST_LABEL.format(row='a')} WHERE a.quarantined IS NULL AND (a.labels IS NOT NULL OR cardinality(l.labels) > 0) "
    "AND l.labels IS DISTINCT FROM coalesce(a.labels, '{}') ORDER BY a.id"
)


def _store(connection: Connection, section: CommentsSection, table: Table, rows: Iterable[Row], done: Tick) -> None:
    """Rows as the source has them now, into the ledger, `comment`, `comment_label`."""
    from sqlalchemy import text

    unmapped: Counter[str] = Counter()
    marked: list[int] = []
    connection.execute(text(_STAGING))
    database.copy_rows(connection, "comment_arrived", _COLUMNS, _arrived(section, _alive(rows, marked), unmapped))
    crash.reach("comments.after_staging")
    values = {"s": section.source, "created_zone": table.created_zone.key, "updated_zone": table.updated_zone.key}
    connection.execute(text(_LEDGER), values)
    crash.reach("comments.after_ledger")
    new, changed, quarantined = connection.execute(text(_COMMENTS), values).one()
    _delete(connection, section.source, marked, done)
    if section.moderation is not None:
        done.labels += connection.execute(text(_LABELS), {**values, "actor": MODERATOR}).rowcount
    crash.reach("comments.after_rows")
    # Empty again for the next rows of the same transaction.
    connection.execute(text("TRUNCATE comment_arrived"))
    done.new, done.changed, done.quarantined = done.new + new, done.changed + changed, done.quarantined + quarantined
    done.unmapped.update(unmapped)


def _alive(rows: Iterable[Row], marked: list[int]) -> Iterator[Row]:
    """Rows that are not marked deleted; the ids of those that are go into `marked`."""
    for row in rows:
        if row.deleted:
            marked.append(row.id)
        else:
            yield row


def _arrived(section: CommentsSection, rows: Iterable[Row], unmapped: Counter[str]) -> Iterator[tuple[Any, ...]]:
    """Rows for the staging table. Few fields' values differ, and each is looked at once."""
    seen: dict[tuple[str | None, ...], tuple[str | None, str | None, str | None]] = {}
    for row in rows:
        if row.fields not in seen:
            seen[row.fields] = _moderation(section, row.fields)
        moderation, labels, unknown = seen[row.fields]
        if unknown is not None:
            unmapped[unknown] += 1
        flaw = row.flaw
        if flaw is None and row.text is not None and is_blank(row.text):
            flaw = "no_text"  # nobody can be asked about it, and no model reads it
        content = "" if row.text is None or flaw else clean(row.text)
        yield row.id, row.content_hash, row.row_hash, content, row.created, row.updated, moderation, labels, flaw


def _moderation(section: CommentsSection, fields: Sequence[str | None]) -> tuple[str | None, str | None, str | None]:
    """(the fields as JSON, the labels as an array of PostgreSQL, what is not mapped)."""
    if not fields:
        return None, None, None
    values = {name: None if value is None else clean(value) for name, value in zip(section.fields, fields, strict=True)}
    labels, unknown = labels_of(section.moderation, values) if section.moderation else (None, None)
    return json.dumps(values, ensure_ascii=False), None if labels is None else _array(labels), unknown


def clean(raw: str) -> str:
    """A text as it may be stored: masked, in one Unicode form, without the one character that PostgreSQL has not."""
    return mask(unicodedata.normalize("NFC", raw).replace("\x00", "\ufffd"))


def _array(labels: Iterable[str]) -> str:
    """A literal of text[]."""
    return "{" + ",".join('"' + label.replace("\\", "\\\\").replace('"', '\\"') + '"' for label in labels) + "}"
