"""Helpers of the comment tests: an application that writes comments into a real MariaDB, and what must be here afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine, text

from mlops_assets.ingest import comments
from mlops_assets.ingest.comment_source import CommentsSection
from mlops_assets.settings import Settings
from mlops_assets_tests.mariadb import MariaDB

#: As an application's own migration would create it.
TABLE = """CREATE TABLE comments (
  id bigint AUTO_INCREMENT PRIMARY KEY,
  text mediumtext,
  created_at datetime(6) NULL DEFAULT '2026-03-01 09:00:00',
  updated_at timestamp(6) NOT NULL DEFAULT current_timestamp(6) ON UPDATE current_timestamp(6),
  status varchar(80), flags varchar(200),
  KEY (updated_at)
) CHARACTER SET utf8mb4"""

MODERATION = {
    "column": "status",
    "decisions": {"ok": ["clean"], "removed": "listed", "pending": None, 7: ["악플/욕설"]},
    "listed": "flags",
    "names": {"women": "여성/가족", "region": "지역"},
}


def section(**changes: Any) -> CommentsSection:
    """Small pages, so that few rows are several; holes expire when nobody has filled them for a day."""
    given = {"source": "app", "table": "comments", "time_zone": "Asia/Seoul", "batch_rows": 50, "moderation": MODERATION}
    return CommentsSection.model_validate(given | changes)


class Application:
    def __init__(self, server: MariaDB, name: str) -> None:
        self.server, self.name = server, name
        self._begun: list[Any] = []
        server.run(f"CREATE DATABASE {name}")
        self.run(TABLE)

    @property
    def url(self) -> str:
        return self.server.url(self.name)

    def run(self, *statements: str) -> list[tuple[Any, ...]]:
        return self.server.run(*statements, database=self.name)

    def begin(self) -> Any:
        """A connection whose transactions the test ends itself."""
        self._begun.append(self.server.connect(self.name, autocommit=False))
        return self._begun[-1]

    def drop(self) -> None:
        for connection in self._begun:  # an open transaction would hold the database
            if connection.open:
                connection.close()
        self.server.run(f"DROP DATABASE {self.name}")

    def add(self, *texts: str, connection: Any = None, **columns: Any) -> list[int]:
        """Insert comments; their ids."""
        own = connection or self.server.connect(self.name)
        names = ["text", *columns]
        sql = f"INSERT INTO comments ({', '.join(names)}) VALUES ({', '.join(['%s'] * len(names))})"
        ids = []
        with own.cursor() as cursor:
            for one in texts:
                cursor.execute(sql, [one, *columns.values()])
                ids.append(columns.get("id") or cursor.lastrowid)
        if connection is None:
            own.close()
        return ids

    def comments(self) -> dict[int, str]:
        return dict(self.run("SELECT id, text FROM comments ORDER BY id"))


def stored(engine: Engine, source: str = "app") -> dict[int, str]:
    """id -> text of the comments that are alive here."""
    with engine.connect() as connection:
        sql = "SELECT id, text FROM comment WHERE source = :s AND deleted_at IS NULL ORDER BY id"
        return dict(connection.execute(text(sql), {"s": source}).tuples().all())


def ask(engine: Engine, sql: str, **values: Any) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(sql), values)]


def holes(engine: Engine) -> list[tuple[int, int]]:
    """(first, last) of every hole, in order."""
    return [(int(first), int(last)) for first, last in ask(engine, "SELECT first_id, last_id FROM comment_hole ORDER BY first_id")]


def look_again(engine: Engine) -> None:
    """As if the time until every hole's next look had passed."""
    with engine.begin() as connection:
        connection.execute(text("UPDATE comment_hole SET next_look_at = '-infinity'"))


def look_far_back(engine: Engine) -> None:
    """As if the time until edits are looked for from far back had passed."""
    with engine.begin() as connection:
        connection.execute(text("UPDATE comment_source SET looked_back_at = NULL"))


def reader(engine: Engine, settings: Settings, **changes: Any) -> Callable[[], comments.Tick]:
    """A function that makes one tick."""
    configured = section(**changes)
    return lambda: comments.tick(engine, settings, configured)


class Cursor:
    """The naive way: remember the greatest id, read what is above it. It loses what commits late."""

    def __init__(self, app: Application) -> None:
        self.app, self.last, self.found = app, 0, {}

    def __call__(self) -> None:
        rows = dict(self.app.run(f"SELECT id, text FROM comments WHERE id > {self.last} ORDER BY id"))
        self.found |= rows
        self.last = max([self.last, *rows])
