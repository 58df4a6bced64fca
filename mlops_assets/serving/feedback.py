"""The truth about an answer, when somebody learns it: kept beside what was said, so that a model's live accuracy is known.

Belongs here: checking and storing it, the accuracy over the latest. Does not belong here: HTTP, what is done about a bad one (alert rules
in `deploy/prometheus/`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mlops_assets.serving.errors import ApiError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, RowMapping

#: The live accuracy of a version is that of its latest this many truths.
LATEST = 500


class Given(NamedTuple):
    """What was stored, and the version's accuracy over its latest truths with it."""

    system: str
    version: int
    right: int
    wrong: int
    live_accuracy: float
    truths: int


def give(
    engine: Engine,
    request_id: str,
    labels: Sequence[Any],
    known: Sequence[str],
    actor: str,
    canonical_label: Callable[[Any], str | None] | None = None,
) -> Given:
    """Store the true labels of a request's inputs, in their order; None where the truth is not known.

    Args:
        known: the labels that the model has.
        canonical_label: a truth as answers say it (the several labels of a text are given as a list); None: it is none of them. Default: a
            truth is one of `known`.

    Raises:
        ApiError: 404 `unknown_request`, 400 `wrong_labels`, 409 `already_given`; nothing is stored then.
    """
    from sqlalchemy import text

    with engine.begin() as connection:
        answer = find(connection, request_id)
        labels = _canonical(labels, answer, known, canonical_label or (lambda truth: truth if truth in known else None))
        rows = [
            {"r": request_id, "p": position, "s": answer["system"], "v": answer["version"], "said": said, "truth": truth, "actor": actor}
            for position, (said, truth) in enumerate(zip(answer["labels"], labels, strict=True))
            if truth is not None
        ]
        sql = (
            "INSERT INTO feedback (request_id, position, system, version, said, truth, actor) "
            "VALUES (:r, :p, :s, :v, :said, :truth, :actor) ON CONFLICT DO NOTHING"
        )
        if sum(connection.execute(text(sql), row).rowcount for row in rows) != len(rows):
            fix = "A truth is given once; what was given stays, in the table `feedback`."
            raise ApiError(409, "already_given", f"the truth about {request_id} was given before", "이미 정답이 등록된 요청입니다.", fix)
        right = sum(row["said"] == row["truth"] for row in rows)
        accuracy, truths = live_accuracy(connection, answer["system"], answer["version"])
    return Given(answer["system"], answer["version"], right, len(rows) - right, accuracy, truths)


def find(connection: Connection, request_id: str) -> RowMapping:
    """The latest answer with that id. Raises ApiError when none was recorded, or before its labels were."""
    from sqlalchemy import text

    sql = text("SELECT system, version, inputs, labels FROM answer WHERE request_id = :id ORDER BY at DESC LIMIT 1")
    found = connection.execute(sql, {"id": request_id}).mappings().first()
    if found is None or found["labels"] is None:
        raise unknown_request(request_id)
    return found


def unknown_request(request_id: str) -> ApiError:
    fix = "Use the X-Request-ID of an answer of POST /predict/{system}; answers are recorded within a second."
    message = f"no answer with the id {request_id[:64]} is recorded"
    return ApiError(404, "unknown_request", message, "기록된 요청이 아닙니다.", fix, field="request_id")


def live_accuracy(connection: Connection, system: str, version: int) -> tuple[float, int]:
    """The share of right answers among the latest truths about a version, and how many there are."""
    from sqlalchemy import text

    sql = text(
        "SELECT avg((said = truth)::int)::float8, count(*) FROM "
        "(SELECT said, truth FROM feedback WHERE system = :s AND version = :v ORDER BY at DESC LIMIT :n) latest"
    )
    accuracy, truths = connection.execute(sql, {"s": system, "v": version, "n": LATEST}).one()
    return float(accuracy or 0.0), int(truths)


def _canonical(
    labels: Sequence[Any], answer: RowMapping, known: Sequence[str], canonical_label: Callable[[Any], str | None]
) -> list[str | None]:
    """The truths as answers say them. Raises ApiError."""
    names = ", ".join(known)
    fix = f'Send {{"labels": [...]}}: one of {names}, or null, for each of the {answer["inputs"]} inputs; of several labels a list.'
    if len(labels) != answer["inputs"]:
        message = f"{len(labels)} labels for {answer['inputs']} inputs"
        raise ApiError(400, "wrong_labels", message, "정답 개수가 입력 개수와 다릅니다.", fix, field="labels", limit=answer["inputs"])
    if all(label is None for label in labels):
        raise ApiError(400, "wrong_labels", "no label is given", "정답이 없습니다.", fix, field="labels")
    found = [None if label is None else canonical_label(label) for label in labels]
    for position, (label, truth) in enumerate(zip(labels, found, strict=True)):
        if label is not None and truth is None:
            message, field = f"labels[{position}] is none of {names}", f"labels[{position}]"
            raise ApiError(400, "wrong_labels", message, f"알 수 없는 정답입니다. ({names})", fix, field=field)
    return found
