"""Rows of comments and labels that tests begin with, as the poller would have left them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, text

AT = "2026-11-20T00:00:00+00:00"


def add_comment(connection: Connection, id: int, words: str = "", *, source: str = "app", content_hash: int = 1, at: str = AT) -> None:
    """A comment, or another content of one that is there."""
    connection.execute(
        text(
            "INSERT INTO comment (source, id, content_hash, text, created_at, updated_at) VALUES (:s, :i, :h, :t, :at, :at) "
            "ON CONFLICT (source, id) DO UPDATE SET content_hash = EXCLUDED.content_hash, text = EXCLUDED.text"
        ),
        {"s": source, "i": id, "h": content_hash, "t": words or f"댓글 {id}번 😀", "at": at},
    )
    connection.execute(
        text("INSERT INTO comment_ledger (source, id, content_hash) VALUES (:s, :i, :h) ON CONFLICT DO NOTHING"),
        {"s": source, "i": id, "h": content_hash},
    )


def add_label(
    connection: Connection,
    id: int,
    labels: Sequence[str],
    *,
    origin: str = "moderation",
    actor: str = "moderator",
    source: str = "app",
    content_hash: int = 1,
    predicted: Sequence[str] | None = None,
) -> int:
    sql = text(
        "INSERT INTO comment_label (source, id, content_hash, labels, origin, actor, predicted) "
        "VALUES (:s, :i, :h, :l, :o, :a, :p) RETURNING sequence"
    )
    values: dict[str, Any] = {"s": source, "i": id, "h": content_hash, "l": list(labels), "o": origin, "a": actor}
    return int(connection.execute(sql, {**values, "p": None if predicted is None else list(predicted)}).scalar_one())


def delete_comment(connection: Connection, id: int, source: str = "app") -> None:
    connection.execute(text("UPDATE comment SET deleted_at = now() WHERE source = :s AND id = :i"), {"s": source, "i": id})
