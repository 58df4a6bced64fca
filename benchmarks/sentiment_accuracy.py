"""Accuracy on NSMC's ratings_test, from scratch, by the platform's own train, export and evaluate. Peer: the goal of 0.85.

    python benchmarks/sentiment_accuracy.py [../shared/data/nsmc] [--quick] [--set learning_rate=0.001 ...]

Training rows whose text is in the test are left out, and what is measured is the exported int8 bundle.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

from _common import pressure, report
from _kcbert import real_data

GOAL = 0.85
VALIDATION_SHARE = 0.05


def read(path: Path) -> list[tuple[str, str, int]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        next(rows)
        return [(row[0], row[1].strip(), int(row[2])) for row in rows if len(row) == 3 and row[1].strip()]


def cleaned(nsmc: Path, target: Path, limit: int | None) -> int:
    """The table that `cleaned` would make: split by text, no text in two splits."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    holdout = read(nsmc / "ratings_test.txt")[:limit]
    tested = {text for _, text, _ in read(nsmc / "ratings_test.txt")}
    rows = [(*row, "holdout", "ratings_test.txt") for row in holdout]
    for row in read(nsmc / "ratings_train.txt")[: limit * 3 if limit else None]:
        if row[1] not in tested:
            share = int.from_bytes(hashlib.sha256(row[1].encode()).digest()[:4], "big") / 2**32
            rows.append((*row, "validation" if share < VALIDATION_SHARE else "train", "ratings_train.txt"))
    names = ["id", "document", "label", "split", "source"]
    types = [pa.string(), pa.string(), pa.int8(), pa.string(), pa.string()]
    columns = [pa.array([row[i] for row in rows], kind) for i, kind in enumerate(types)]
    pq.write_table(pa.table(columns, names=names), target / "part-0.parquet")
    return len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "nsmc", type=Path, nargs="?", help="folder of ratings_train.txt and ratings_test.txt; default $MLOPS_REAL_DATA/nsmc"
    )
    parser.add_argument("--quick", action="store_true", help="6,000 training rows, half an epoch: shows that it runs, not what it reaches")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="parameters over configs/sentiment.yaml")
    parser.add_argument("--limit", type=int, help="test rows; training rows are three times as many")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    data = real_data()
    nsmc = arguments.nsmc or (data / "nsmc" if data else None)
    if nsmc is None or not (nsmc / "ratings_test.txt").exists():
        parser.error("no NSMC: give its folder, or set MLOPS_REAL_DATA to the folder that holds nsmc/")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("transformers").setLevel(logging.WARNING)

    from mlops_assets.lifecycle.system import CleanedTable, TrainContext
    from mlops_assets.settings import load_config, load_settings
    from mlops_assets.systems.sentiment.config import SentimentConfig
    from mlops_assets.systems.sentiment.training import SYSTEM

    load = pressure()
    settings = load_settings()
    config = load_config(SentimentConfig, "sentiment", settings.configs)
    threads = arguments.threads or settings.threads
    limit = 2_000 if arguments.quick else arguments.limit
    given: dict[str, Any] = {"epochs": 0.5, "max_minutes": 0.4} if arguments.quick else {}
    for pair in arguments.set:
        name, _, value = pair.partition("=")
        given[name] = value if SYSTEM.parameter_names[name] is str else json.loads(value)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        (work / "table").mkdir()
        rows = cleaned(nsmc, work / "table", limit)
        table = CleanedTable("sentiment", "nsmc", "0" * 64, work / "table", rows)
        context = TrainContext(
            system="sentiment",
            variant="",
            table=table,
            config=config,
            parameters=SYSTEM.variant_parameters(config, "", given),
            seed=config.project.seed,
            fingerprint="benchmark",
            workdir=work / "work",
            log_dir=work / "logs",
            log_metrics=lambda metrics, step: print(step, {name: round(value, 4) for name, value in metrics.items()}, flush=True),
            threads=threads,
        )
        started, used = time.monotonic(), time.process_time()
        trained = SYSTEM.train(context)
        minutes, cpu_minutes = (time.monotonic() - started) / 60, (time.process_time() - used) / 60
        SYSTEM.export(trained, context, work / "bundle")
        evaluation = SYSTEM.evaluate(work / "bundle", table, threads)
        precision = json.loads((work / "bundle" / "bundle.json").read_text(encoding="utf-8"))["precision"]
    for name, figures in evaluation.slices.items():
        print(name, {key: round(value, 4) for key, value in figures.items()})
    print({key: round(value, 4) for key, value in evaluation.metrics.items()}, {k: round(v, 4) for k, v in trained.metrics.items()})
    report(
        "accuracy on NSMC's test, from scratch",
        evaluation.metrics["accuracy"],
        GOAL,
        1.0,
        load=load,
        minutes=round(minutes, 2),
        # On a machine that others use too, what the training itself took: divided by `threads`, its minutes on a quiet one.
        cpu_minutes=round(cpu_minutes, 2),
        train_rows=int(trained.metrics["train_rows"]),
        test_rows=evaluation.rows,
        precision=precision,
        threads=threads,
    )


if __name__ == "__main__":
    main()
