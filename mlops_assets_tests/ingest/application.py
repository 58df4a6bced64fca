"""An application with comments as configs/hate_speech.yaml ships its table, for the tests of the whole platform."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mlops_assets_tests import mariadb

TABLE = """CREATE TABLE comment (
  id bigint AUTO_INCREMENT PRIMARY KEY,
  text text NOT NULL,
  created_at datetime(6) NOT NULL DEFAULT '2026-11-01 09:00:00',
  updated_at datetime(6) NOT NULL DEFAULT '2026-11-01 09:00:00',
  moderation varchar(20) NOT NULL, labels varchar(200),
  KEY (updated_at)
) CHARACTER SET utf8mb4"""


@contextmanager
def running() -> Iterator[str]:
    """The address at which the platform reads it."""
    if mariadb.MISSING:
        pytest.skip(mariadb.MISSING)
    with mariadb.running() as server:
        server.run("CREATE DATABASE application")
        server.run(TABLE, database="application")
        rows = [(f"오늘 뉴스 {number}번을 보고 든 생각을 적어 봅니다", "approved") for number in range(20)]
        rows += [(f"기사 {number}번 쓴 사람 정말 한심하네 꺼져라", "abusive") for number in range(20)]
        values = ", ".join(f"('{text}', '{state}')" for text, state in rows)
        server.run(f"INSERT INTO comment (text, moderation) VALUES {values}", database="application")
        yield server.url("application")
