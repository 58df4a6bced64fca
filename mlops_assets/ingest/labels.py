"""Which label of a comment holds. New comments come without labels; data sets, the source's moderators and people in the review queue say
what a comment is, each about one content of it; only comments with a label that holds train.

The rule, over what is said about the current content:
1. What two or more persons say, when no other answer has as many. (Of each person the latest answer counts.)
2. Otherwise the latest that a data set or a moderator says; without labels it takes back what was said before. One person who says
   otherwise asks for a second opinion and changes nothing.
3. Otherwise what one person alone says, when the champion had predicted the same.

Belongs here: that rule as a function; as the view `comment_standing` it stands in `migrations/0006_review.sql`. Does not belong here: who
is asked (`queue.py`), what becomes of labels (`cuts.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from sqlalchemy import Connection

Origin = Literal["dataset", "moderation", "review"]
LabelSet = tuple[str, ...]


@dataclass(frozen=True)
class Said:
    """One row of `comment_label` about the current content. `predicted`: what the champion had said when the person was asked."""

    origin: Origin
    actor: str
    labels: Sequence[str]
    predicted: Sequence[str] | None = None


@dataclass(frozen=True)
class Standing:
    """`labels`: those that hold, or None. `contested`: people disagree with each other or with what was known: another is to be asked."""

    labels: LabelSet | None
    origin: Origin | None
    persons: int
    contested: bool

    @property
    def settled(self) -> bool:
        return self.labels is not None and not self.contested


def label_set(labels: Iterable[str]) -> LabelSet:
    """In one order and without repeats, so that sets compare."""
    return tuple(sorted(set(labels)))


def standing(said: Iterable[Said]) -> Standing:
    """The rule.

    Args:
        said: in the order in which it was said.
    """
    people: dict[str, Said] = {}
    given: Said | None = None
    for one in said:
        if one.origin == "review":
            people[one.actor] = one
        else:
            given = one if one.labels else None
    votes = Counter(label_set(one.labels) for one in people.values())
    ranked = votes.most_common(2)
    if ranked and ranked[0][1] >= 2 and (len(ranked) == 1 or ranked[1][1] < ranked[0][1]):
        return Standing(ranked[0][0], "review", len(people), contested=False)
    alone = next(iter(people.values())) if len(people) == 1 else None
    if given is not None:
        holds = label_set(given.labels)
        return Standing(holds, given.origin, len(people), contested=bool(people) and (alone is None or label_set(alone.labels) != holds))
    if alone is not None and alone.predicted is not None and label_set(alone.labels) == label_set(alone.predicted):
        return Standing(label_set(alone.labels), "review", 1, contested=False)
    return Standing(None, None, len(people), contested=bool(people))


def standing_of(connection: Connection, source: str, id: int) -> Standing:
    """The standing of one comment as the database has it."""
    from sqlalchemy import text

    sql = text("SELECT labels, origin, persons, contested FROM comment_standing WHERE source = :source AND id = :id")
    row = connection.execute(sql, {"source": source, "id": id}).one_or_none()
    if row is None:
        return Standing(None, None, 0, contested=False)
    return Standing(None if row.labels is None else tuple(row.labels), row.origin, int(row.persons), bool(row.contested))
