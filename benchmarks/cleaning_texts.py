"""Cleaning 200,000 comments (`ingest/cleaning.py`): the embedded engine (Sail) against local Spark on the JVM, the same code on each.

Two figures. The headline is the whole job as the platform runs it: a run is a process of its own, so from starting the process to the
written Parquet, imports and the engine's (and the JVM's) start included, on both sides. `warm` is the second cleaning in a process that is
up already, the start outside. Local Spark is tuned for one machine (few shuffle partitions, no UI), once also as documented.
Equal rows and equal accounts are asserted first. NSMC is read where MLOPS_REAL_DATA names it, else generated reviews; one row in ten
gets a number, repeats or another row's text, so that every rule has work.
    python benchmarks/cleaning_texts.py [--quick]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _common import interleave, pressure, report

ROWS = 200_000
TUNED = {
    "spark.sql.shuffle.partitions": str(os.cpu_count() or 1),
    "spark.ui.enabled": "false",
    "spark.driver.memory": "2g",
    "spark.sql.session.timeZone": "UTC",
}


def write_input(target: Path) -> None:
    """The rows to clean, the same for both sides."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from mlops_assets.sample_data import write_reviews

    real = os.environ.get("MLOPS_REAL_DATA")
    folder = Path(real) / "nsmc" if real else target.parent / "reviews"
    if not real:
        write_reviews(folder, train=150_000, test=50_000)
    rows = []
    for name in ("ratings_train.txt", "ratings_test.txt"):
        for line in (folder / name).read_text(encoding="utf-8").split("\n")[1:]:
            fields = line.split("\t")
            if len(fields) == 3:
                rows.append((fields[1], fields[2]))
    rows = rows[:ROWS]
    dirt = ("", " 010-1234-5678로 연락", " ㅋㅋㅋㅋㅋㅋㅋㅋ", " a.b@example.com", "\u200b&lt;3 !!!!!!")
    texts = [text + dirt[n // 10 % len(dirt)] if n % 10 == 0 else text for n, (text, _) in enumerate(rows)]
    table = {"id": list(range(len(rows))), "text": texts, "labels": [label if n % 3 else None for n, (_, label) in enumerate(rows)]}
    pq.write_table(pa.table(table, schema=pa.schema([("id", pa.int64()), ("text", pa.string()), ("labels", pa.string())])), target)


def clean_once(kind: str, source: Path, target: Path) -> None:
    from mlops_assets.ingest.cleaning import CleaningRules, clean_texts
    from mlops_assets.resources.spark import SparkEngine

    def work(session: Any) -> None:
        frame = session.read.parquet(source.as_uri())
        clean_texts(frame, CleaningRules(), order=["id"]).write.mode("overwrite").parquet(target.as_uri())

    if kind == "sail":
        with SparkEngine().session() as session:
            work(session)
        return
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master("local[*]")
    for name, value in (TUNED if kind == "tuned" else {"spark.sql.session.timeZone": "UTC"}).items():
        builder = builder.config(name, value)
    work(builder.getOrCreate())  # it stays: the second cleaning finds a warm JVM and the same session


def worker(kind: str, source: Path, target: Path) -> None:
    """Clean once per line of stdin; answers with the seconds."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the engines print to stdout
    for _ in sys.stdin:
        started = time.perf_counter()
        clean_once(kind, source, target)
        answers.write(f"{time.perf_counter() - started}\n")
        answers.flush()


class Side:
    """One engine: `cold` is a fresh process from its start to its result, `warm` the next cleaning in that process."""

    def __init__(self, kind: str, source: Path, target: Path) -> None:
        self.command = [sys.executable, __file__, "--worker", kind, str(source), str(target)]
        self.target = target
        self.colds: list[float] = []
        self.warms: list[float] = []

    def round(self, *, warm: bool = True) -> float:
        started = time.perf_counter()
        process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1
        )
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("\n")
        assert process.stdout.readline(), f"{self.command[3]} failed"
        self.colds.append(time.perf_counter() - started)
        if warm:
            process.stdin.write("\n")
            self.warms.append(float(process.stdout.readline()))
        process.stdin.close()
        process.wait(60)
        return self.colds[-1]

    def output(self) -> tuple[str, dict[str, int]]:
        """SHA-256 over the rows by id, and the account."""
        import pyarrow.parquet as pq

        rows = sorted(pq.read_table(self.target, columns=["id", "text", "labels", "reason"]).to_pylist(), key=lambda row: row["id"])
        account: dict[str, int] = {}
        for row in rows:
            account[row["reason"] or "accepted"] = account.get(row["reason"] or "accepted", 0) + 1
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest(), dict(sorted(account.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker(given.worker[0], Path(given.worker[1]), Path(given.worker[2]))
        return
    if shutil.which("java") is None:
        raise SystemExit("the peer, local Spark, needs Java: install a JRE (apt-get install default-jre-headless) and run this again")
    load = pressure()
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as name:
        home = Path(name)
        source = home / "comments.parquet"
        write_input(source)
        sail, tuned, plain = (Side(kind, source, home / kind) for kind in ("sail", "tuned", "jvm"))
        mine, theirs = interleave(sail.round, tuned.round, 1 if given.quick else 3)
        (ours, account), (peers, _) = sail.output(), tuned.output()
        assert ours == peers, "the engines gave other rows"
        assert sum(account.values()) == ROWS, "rows in = accepted + quarantined"
        if not given.quick:
            plain.round(warm=False)
    warm, peer_warm = statistics.median(sail.warms), statistics.median(tuned.warms)
    report(
        "cleaning 200,000 comments (rows/s)",
        ROWS / mine,
        ROWS / theirs,
        3.0,
        load=load,
        peer_name="local Spark on the JVM, tuned; both from the start of the process",
        seconds=round(mine, 2),
        peer_seconds=round(theirs, 2),
        warm_seconds=round(warm, 2),
        peer_warm_seconds=round(peer_warm, 2),
        warm_ratio=round(peer_warm / warm, 2),
        account=account,
        **({"peer_as_documented_seconds": round(plain.colds[0], 2)} if plain.colds else {}),
    )


if __name__ == "__main__":
    main()
