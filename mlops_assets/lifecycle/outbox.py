"""The outbox: what MLflow and people still have to be told. A row is written in the transaction of what it tells of, so that neither is
without the other, and handed out afterwards: in order, one at a time, until the receiver has taken it.

Belongs here: writing rows, saying a thing once, handing out. Does not belong here: the receivers (`mirror.py`, `monitoring/alerts.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from mlops_assets import crash
from mlops_assets.settings import canonical, shown

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

logger = logging.getLogger(__name__)

SLACK = "slack"

Receiver = Callable[[Mapping[str, Any]], None]


#: Topic -> what its rows say.
_SAID: Mapping[str, Mapping[str, type]] = {
    SLACK: {"text": str},
    "mlflow.version": {"system": str, "version": int},
    "mlflow.aliases": {"system": str, "version": int},
    "clients": {"system": str, "version": int, "promoted": bool},
}


def _is_ours(topic: str, payload: Any) -> bool:
    said = _SAID.get(topic, {})
    return isinstance(payload, dict) and all(isinstance(payload.get(name), kind) for name, kind in said.items())


def put(connection: Connection, topic: str, payload: Mapping[str, Any]) -> None:
    from sqlalchemy import text

    sql = text("INSERT INTO outbox (topic, payload) VALUES (:topic, :payload)")
    connection.execute(sql, {"topic": topic, "payload": canonical(dict(payload))})


def tell(connection: Connection, message: str, *more: str) -> None:
    """One message to people: a line in English, then others (the same in Korean, a link)."""
    put(connection, SLACK, {"text": "\n".join([message, *more])})


def became(connection: Connection, kind: str, subject: str, state: str) -> bool:
    """Remember that `subject` is in `state` now; whether that is new. Of several callers at the same time one is told so."""
    from sqlalchemy import text

    sql = text(
        "INSERT INTO alert (kind, subject, state) VALUES (:kind, :subject, :state) ON CONFLICT (kind, subject) "
        "DO UPDATE SET state = excluded.state, at = now() WHERE alert.state <> excluded.state RETURNING 1"
    )
    return connection.execute(sql, {"kind": kind, "subject": subject, "state": state}).first() is not None


def state_of(connection: Connection, kind: str, subject: str) -> str | None:
    from sqlalchemy import text

    sql = text("SELECT state FROM alert WHERE kind = :kind AND subject = :subject")
    return connection.execute(sql, {"kind": kind, "subject": subject}).scalar()


def deliver(engine: Engine, receivers: Mapping[str, Receiver], *, limit: int = 100) -> int:
    """Hand out what waits for `receivers` (by topic), oldest first; returns how many were taken.

    A row that its receiver does not take stays, with the error, and holds back the later ones of its own topic only.
    """
    from sqlalchemy import text

    with engine.connect() as connection:
        with connection.begin():
            sql = text("SELECT topic FROM outbox WHERE delivered_at IS NULL GROUP BY topic ORDER BY min(id)")
            found = [topic for topic in connection.execute(sql).scalars() if topic in receivers]
        # People first: a receiver that is away may take minutes to say so.
        topics = sorted(found, key=lambda topic: topic != SLACK)
        taken = 0
        for topic in topics:
            of_topic = 0
            while of_topic < limit and _deliver_next(connection, topic, receivers[topic]):
                of_topic += 1
            taken += of_topic
    return taken


def _deliver_next(connection: Connection, topic: str, receive: Receiver) -> bool:
    """One row, one transaction: a process that dies here repeats at most this one."""
    from sqlalchemy import text

    with connection.begin():
        # Whoever has the lock hands out this topic now: two at the same time would lose the order.
        lock = text("SELECT pg_try_advisory_xact_lock(hashtextextended(:name, 0))")
        if not connection.execute(lock, {"name": f"mlops_assets.outbox.{topic}"}).scalar():
            return False
        sql = text("SELECT id, payload FROM outbox WHERE delivered_at IS NULL AND topic = :topic ORDER BY id LIMIT 1")
        row = connection.execute(sql, {"topic": topic}).first()
        if row is None:
            return False
        if not _is_ours(topic, row.payload):
            # Inserted by somebody: nobody can take it, and it must not hold back what follows.
            logger.error("outbox %s (%s) was not written by the platform: it is passed over", row.id, topic)
            sql = text("UPDATE outbox SET delivered_at = now(), error = 'not written by the platform' WHERE id = :id")
            connection.execute(sql, {"id": row.id})
            return True
        try:
            receive(row.payload)
        except Exception as error:  # the outside may fail in any way; the row stays and says how
            said = shown(str(error))[:2000]
            logger.warning("outbox %s (%s) not delivered: %s", row.id, topic, said)
            sql = text("UPDATE outbox SET tries = tries + 1, error = :error WHERE id = :id")
            connection.execute(sql, {"id": row.id, "error": said})
            return False
        crash.reach("mirror.before_delivered")
        connection.execute(text("UPDATE outbox SET delivered_at = now(), error = NULL WHERE id = :id"), {"id": row.id})
        return True
