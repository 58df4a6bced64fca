"""The review queue: which comment a person is asked about next, what they answer, and what the random arm says of the stream.

Most questions are about what the champion is least certain of; a configured share is drawn at random, in an order that depends on nothing
but the comment's number (`sample_order`). Those that this order has reached, however they came by their label, are an even sample of the
comments that are there: they alone estimate how often a label truly is. What the champion said is not shown to people: it would decide for
them. Texts are masked before they come into the database. Belongs here: drawing, leases, answers, the estimate. Does not belong here:
which label holds (`labels.py`), HTTP (`serving/review.py`), Dagster.
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from mlops_assets.database import lock
from mlops_assets.ingest.labels import label_set, standing_of
from mlops_assets.settings import ReviewSection

if TYPE_CHECKING:
    from sqlalchemy import Connection

MAX_NAME: Final = 64
PAGE: Final = 200


class ReviewProblem(ValueError):
    """What a person asks cannot be done. `code` is stable."""

    def __init__(self, code: str, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.code, self.field = code, field


@dataclass(frozen=True)
class Task:
    """A question that is one person's until `leased_until`. `opinions`: how many others were asked before."""

    task: int
    system: str
    source: str
    id: int
    text: str
    arm: str
    opinions: int
    leased_until: datetime


def person(name: object) -> str:
    """A reviewer's name in one form. Raises ReviewProblem `bad_reviewer`."""
    found = unicodedata.normalize("NFC", name).strip() if isinstance(name, str) else ""
    if not 0 < len(found) <= MAX_NAME or not found.isprintable():
        raise ReviewProblem("bad_reviewer", f"`reviewer` must be a name of 1 to {MAX_NAME} characters", field="reviewer")
    return found


# --- the next question ------------------------------------------------------------------------------------------------------------


def take(connection: Connection, system: str, reviewer: str, section: ReviewSection) -> Task | None:
    """The person's next question, theirs alone for `lease_minutes`; the one that they have already, if they do. None: nothing to ask.

    One person at a time is served, in the transaction of the caller: two never get the same question.
    """
    from sqlalchemy import text

    with lock(connection, f"review/{system}"):
        found = _waiting(connection, system, reviewer, section)
        if found is None:
            found = _draw(connection, system, section)
        if found is None:
            return None
        row = connection.execute(
            text(
                "UPDATE review_task t SET leased_to = :r, leased_until = clock_timestamp() + make_interval(secs => :seconds) "
                "FROM comment c "
                "WHERE t.task = :t AND (c.source, c.id) = (t.source, t.id) "
                "RETURNING t.task, t.system, t.source, t.id, c.text, t.arm, t.leased_until"
            ),
            {"t": found, "r": reviewer, "seconds": section.lease_minutes * 60},
        ).one()
    opinions = standing_of(connection, row.source, row.id).persons
    return Task(row.task, row.system, row.source, row.id, row.text, row.arm, opinions, row.leased_until)


def _waiting(connection: Connection, system: str, reviewer: str, section: ReviewSection) -> int | None:
    """A question drawn before: the person's own, then those that want another opinion. What has settled otherwise is closed on the way."""
    from sqlalchemy import text

    sql = text(
        "SELECT t.task, t.source, t.id FROM review_task t JOIN comment c USING (source, id, content_hash) "
        "WHERE t.system = :s AND t.closed_at IS NULL AND c.deleted_at IS NULL AND c.quarantined IS NULL AND NOT :r = ANY(t.skipped_by) "
        "AND (t.leased_until IS NULL OR t.leased_until < clock_timestamp() OR t.leased_to = :r) "
        "AND NOT EXISTS (SELECT FROM comment_label l WHERE (l.source, l.id, l.content_hash) = (t.source, t.id, t.content_hash) "
        "  AND l.origin = 'review' AND l.actor = :r) "
        "ORDER BY coalesce(t.leased_to = :r AND t.leased_until >= clock_timestamp(), false) DESC, t.task LIMIT 1"
    )
    while (row := connection.execute(sql, {"s": system, "r": reviewer}).one_or_none()) is not None:
        stands = standing_of(connection, row.source, row.id)
        if not stands.settled and stands.persons < section.max_opinions:
            return int(row.task)
        _close(connection, row.task)
    return None


def _close(connection: Connection, task: int) -> None:
    from sqlalchemy import text

    connection.execute(
        text("UPDATE review_task SET closed_at = clock_timestamp(), leased_to = NULL, leased_until = NULL WHERE task = :t"), {"t": task}
    )


def _draw(connection: Connection, system: str, section: ReviewSection) -> int | None:
    """A question about a comment that nobody was asked about; which arm's turn it is hangs on how many were drawn before."""
    from sqlalchemy import text

    sql = text("SELECT count(*) FROM review_task WHERE system = :s AND arm <> 'known'")
    drawn = int(connection.execute(sql, {"s": system}).scalar_one())
    arms = (_uncertain, _random) if not random_turn(system, drawn, section.random_share) else (_random, _uncertain)
    for arm in arms:
        if arm is _random and section.random_share == 0:
            continue
        found = arm(connection, system)
        if found is not None:
            return found
    return None


def random_turn(system: str, drawn: int, share: float) -> bool:
    """Whether question number `drawn` is the random arm's: a coin with a seed, so that nobody can choose it and tests can repeat it."""
    coin = hashlib.sha256(f"{system}/{drawn}".encode()).digest()
    return int.from_bytes(coin[:8], "big") / 2**64 < share


def _uncertain(connection: Connection, system: str) -> int | None:
    from sqlalchemy import text

    # OFFSET 0: the index's order is followed until the first that fits, whatever the planner knows of the tables.
    sql = text(
        "INSERT INTO review_task (system, source, id, content_hash, arm, sampled, predicted, uncertainty, bundle_sha256) "
        "SELECT system, source, id, content_hash, 'uncertain', false, labels, uncertainty, bundle_sha256 FROM comment_score s "
        "WHERE system = :s AND EXISTS (SELECT FROM comment c "
        "  WHERE (c.source, c.id, c.content_hash) = (s.source, s.id, s.content_hash) AND c.deleted_at IS NULL "
        "  AND c.quarantined IS NULL OFFSET 0) "
        "AND NOT EXISTS (SELECT FROM review_task t "
        "  WHERE (t.system, t.source, t.id, t.content_hash) = (s.system, s.source, s.id, s.content_hash) OFFSET 0) "
        "AND NOT EXISTS (SELECT FROM comment_label l WHERE (l.source, l.id, l.content_hash) = (s.source, s.id, s.content_hash) OFFSET 0) "
        "ORDER BY uncertainty DESC, source, id LIMIT 1 RETURNING task"
    )
    return connection.execute(sql, {"s": system}).scalar()


def _random(connection: Connection, system: str) -> int | None:
    """The next of the random order without a label. Those before it that have one, or were asked about, belong to the sample too."""
    from sqlalchemy import text

    sql = text(
        "SELECT c.source, c.id, c.content_hash, t.task FROM comment c "
        "LEFT JOIN review_task t ON t.system = :s AND (t.source, t.id, t.content_hash) = (c.source, c.id, c.content_hash) "
        "WHERE c.deleted_at IS NULL AND c.quarantined IS NULL AND (t.task IS NULL OR NOT t.sampled) "
        "AND NOT EXISTS (SELECT FROM comment_label l WHERE (l.source, l.id) = (c.source, c.id) AND l.origin = 'dataset') "
        "ORDER BY sample_order(c.source, c.id) LIMIT :n"
    )
    insert = text(
        "INSERT INTO review_task (system, source, id, content_hash, arm, sampled, predicted, uncertainty, bundle_sha256, closed_at) "
        "SELECT :s, c.source, c.id, c.content_hash, :arm, true, p.labels, p.uncertainty, p.bundle_sha256, "
        "CASE WHEN :arm = 'known' THEN clock_timestamp() END FROM comment c "
        "LEFT JOIN comment_score p ON p.system = :s AND (p.source, p.id, p.content_hash) = (c.source, c.id, c.content_hash) "
        "WHERE (c.source, c.id) = (:source, :id) RETURNING task"
    )
    while rows := connection.execute(sql, {"s": system, "n": PAGE}).all():
        for row in rows:
            if row.task is not None:
                connection.execute(text("UPDATE review_task SET sampled = true WHERE task = :t"), {"t": row.task})
                continue
            known = standing_of(connection, row.source, row.id).labels is not None
            values = {"s": system, "source": row.source, "id": row.id, "arm": "known" if known else "random"}
            task = int(connection.execute(insert, values).scalar_one())
            if not known:
                return task
    return None


# --- answers ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answered:
    """`labels`: those that hold now, or None while another opinion is wanted."""

    task: int
    labels: tuple[str, ...] | None
    settled: bool


def answer(
    connection: Connection, system: str, task: int, reviewer: str, labels: Sequence[str], known: Sequence[str], section: ReviewSection
) -> Answered:
    """Store what the person says. The same answer again (a lost response) stores nothing and says the same.

    Args:
        known: the labels that may be given.

    Raises:
        ReviewProblem: `wrong_labels`, `unknown_task`, `text_changed`, `lease_lost`, `already_given`.
    """
    from sqlalchemy import text

    _check(labels, known, section)
    given = list(label_set(labels))
    row = _locked(connection, system, task)
    before = connection.execute(
        text(
            "SELECT labels FROM comment_label WHERE (source, id, content_hash) = (:source, :id, :hash) "
            "AND origin = 'review' AND actor = :r ORDER BY sequence DESC LIMIT 1"
        ),
        {"source": row.source, "id": row.id, "hash": row.content_hash, "r": reviewer},
    ).scalar()
    if before is not None and list(label_set(before)) != given:
        raise ReviewProblem("already_given", f"{reviewer} has answered question {task} before, with {', '.join(before)}")
    if before is None:
        _check_lease(connection, row, reviewer)
        connection.execute(
            text(
                "INSERT INTO comment_label (source, id, content_hash, labels, origin, actor, predicted) "
                "VALUES (:source, :id, :hash, :labels, 'review', :r, :predicted)"
            ),
            {"source": row.source, "id": row.id, "hash": row.content_hash, "labels": given, "r": reviewer, "predicted": row.predicted},
        )
    stands = standing_of(connection, row.source, row.id)
    if stands.settled or stands.persons >= section.max_opinions:
        _close(connection, task)
    elif before is None:
        connection.execute(text("UPDATE review_task SET leased_to = NULL, leased_until = NULL WHERE task = :t"), {"t": task})
    return Answered(task, stands.labels, stands.settled)


def skip(connection: Connection, system: str, task: int, reviewer: str) -> None:
    """The person does not want to answer: they are not asked again, others are. Raises ReviewProblem."""
    from sqlalchemy import text

    row = _locked(connection, system, task)
    if reviewer in row.skipped_by:
        return
    _check_lease(connection, row, reviewer)
    sql = "UPDATE review_task SET skipped_by = array_append(skipped_by, :r), leased_to = NULL, leased_until = NULL WHERE task = :t"
    connection.execute(text(sql), {"t": task, "r": reviewer})


def _locked(connection: Connection, system: str, task: int) -> Any:
    from sqlalchemy import text

    sql = text(
        "SELECT t.*, c.content_hash = t.content_hash AND c.deleted_at IS NULL AND c.quarantined IS NULL AS current "
        "FROM review_task t JOIN comment c USING (source, id) "
        "WHERE t.system = :s AND t.task = :t FOR UPDATE OF t"
    )
    row = connection.execute(sql, {"s": system, "t": task}).one_or_none()
    if row is None:
        raise ReviewProblem("unknown_task", f"{system} has no question {task}")
    return row


def _check_lease(connection: Connection, row: Any, reviewer: str) -> None:
    if not row.current:
        raise ReviewProblem("text_changed", f"the comment of question {row.task} was edited or deleted meanwhile")
    if row.closed_at is not None or row.leased_to != reviewer:
        raise ReviewProblem("lease_lost", f"question {row.task} is not {reviewer}'s: it was answered or went to somebody else meanwhile")


def _check(labels: Sequence[Any], known: Sequence[str], section: ReviewSection) -> None:
    names = ", ".join(known)
    if not labels or not all(isinstance(label, str) for label in labels):
        raise ReviewProblem("wrong_labels", f"give one or more of {names}", field="labels")
    unknown = sorted(set(labels) - set(known))
    if unknown:
        raise ReviewProblem("wrong_labels", f"{', '.join(unknown)[:100]}: none of {names}", field="labels")
    alone = sorted(set(labels) & set(section.exclusive))
    if alone and len(set(labels)) > 1:
        raise ReviewProblem("wrong_labels", f"{alone[0]} stands alone", field="labels")


# --- figures ----------------------------------------------------------------------------------------------------------------------


def stats(connection: Connection, system: str) -> dict[str, Any]:
    """How far people are, how often the champion's prediction was theirs, and how often each label truly is (`sample`)."""
    from sqlalchemy import text

    counts = connection.execute(
        text(
            "SELECT count(*) FILTER (WHERE closed_at IS NULL) AS open, "
            "count(*) FILTER (WHERE closed_at IS NULL AND leased_until >= clock_timestamp()) AS leased, "
            "count(*) FILTER (WHERE closed_at IS NOT NULL AND arm <> 'known') AS closed, "
            "count(*) FILTER (WHERE arm = 'random') AS random, count(*) FILTER (WHERE arm = 'uncertain') AS uncertain "
            "FROM review_task WHERE system = :s"
        ),
        {"s": system},
    ).one()
    waiting = connection.execute(
        text(
            "SELECT count(*) FROM comment_score s JOIN comment c USING (source, id, content_hash) "
            "WHERE s.system = :s AND c.deleted_at IS NULL AND c.quarantined IS NULL "
            "AND NOT EXISTS (SELECT FROM review_task t WHERE t.system = :s "
            "  AND (t.source, t.id, t.content_hash) = (c.source, c.id, c.content_hash)) "
            "AND NOT EXISTS (SELECT FROM comment_label l WHERE (l.source, l.id, l.content_hash) = (c.source, c.id, c.content_hash))"
        ),
        {"s": system},
    ).scalar_one()
    agreed = connection.execute(
        text(
            "SELECT count(*) AS answers, count(*) FILTER (WHERE label_set(l.labels) = label_set(l.predicted)) AS agreed "
            "FROM comment_label l JOIN review_task t USING (source, id, content_hash) WHERE t.system = :s AND l.origin = 'review' "
            "AND l.predicted IS NOT NULL"
        ),
        {"s": system},
    ).one()
    return {
        "system": system,
        "waiting": int(waiting),
        "open": counts.open,
        "leased": counts.leased,
        "closed": counts.closed,
        "drawn": {"uncertain": counts.uncertain, "random": counts.random},
        "answers": agreed.answers,
        "agreed_with_champion": agreed.agreed,
        "sample": sample(connection, system),
    }


def sample(connection: Connection, system: str) -> dict[str, Any]:
    """How often each label is, over the comments that the random order has reached and whose label holds.

    `pending`: reached, and not known yet (people were not asked, disagree, or skipped): while there are many, the rates may be biased.
    Comments that were deleted before they were reached are in no rate.
    """
    from sqlalchemy import text

    sql = text(
        "SELECT s.labels FROM review_task t JOIN comment c USING (source, id, content_hash) "
        "LEFT JOIN LATERAL (SELECT labels FROM comment_standing s WHERE s.source = t.source AND s.id = t.id OFFSET 0) s "
        "ON true WHERE t.system = :s AND t.sampled"
    )
    found = [row.labels for row in connection.execute(sql, {"s": system})]
    known = [labels for labels in found if labels is not None]
    counts = Counter(label for labels in known for label in labels)
    rates = {label: dict(zip(("rate", "low", "high"), wilson(n, len(known)), strict=True)) for label, n in sorted(counts.items())}
    return {"known": len(known), "pending": len(found) - len(known), "rates": rates}


def wilson(hits: int, of: int, z: float = 1.96) -> tuple[float, float, float]:
    """A share, and its 95 % interval (Wilson's score)."""
    if of == 0:
        return 0.0, 0.0, 1.0
    share = hits / of
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z / (1 + z * z / of) * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return round(share, 6), round(max(0.0, middle - half), 6), round(min(1.0, middle + half), 6)
