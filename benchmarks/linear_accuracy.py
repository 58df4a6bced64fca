"""The baseline of texts on real data: accuracy on NSMC's ratings_test, by the platform's own train, export and evaluate.

    python benchmarks/linear_accuracy.py [../shared/data/nsmc] [--quick]

Peer, in the same run on the same rows: scikit-learn's TfidfVectorizer (`char_wb`, 1 to 5 letters) and LogisticRegression as documented.
Training rows that a reader cannot tell from a tested one are left out (`ingest/texts.group_of`), as cleaning does it. Beside stand the
processor's seconds of training, texts a second of the bundle on one thread, and what loading it adds to memory.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from _common import pressure, report
from _kcbert import real_data
from sentiment_accuracy import read

GOAL, GOAL_SECONDS, GOAL_MIB = 0.872, 90, 30


def write(nsmc: Path, target: Path, limit: int | None) -> int:
    """The cleaned table; returns its rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from mlops_assets.ingest.texts import group_of

    tested = read(nsmc / "ratings_test.txt")
    groups = {group_of(text) for _, text, _ in tested}
    rows = [(*row, "holdout", "ratings_test.txt") for row in tested[:limit]]
    for row in read(nsmc / "ratings_train.txt")[: limit * 3 if limit else None]:
        if (group := group_of(row[1])) not in groups:
            rows.append((*row, "validation" if hashlib.sha256(group).digest()[0] < 13 else "train", "ratings_train.txt"))
    kinds = {"id": pa.string(), "document": pa.string(), "label": pa.int8(), "split": pa.string(), "source": pa.string()}
    columns = [pa.array([row[at] for row in rows], kind) for at, kind in enumerate(kinds.values())]
    pq.write_table(pa.table(columns, names=list(kinds)), target / "part-0.parquet")
    return len(rows)


def memory(bundle: Path) -> float:
    """MiB that loading the bundle and its first 1,000 answers add to a process of its own, which has freed nothing before."""
    code = (
        "import sys, pathlib, psutil, safetensors.numpy, mlops_assets.kinds.text.predict as predict;"
        "own = psutil.Process(); before = own.memory_info().rss;"
        "loaded = predict.load_text_predictor(pathlib.Path(sys.argv[1]), 1);"
        "[loaded.probabilities(['정말 재미있게 본 영화예요 %d' % n]) for n in range(1000)];"
        "print((own.memory_info().rss - before) / 2**20)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(bundle)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nsmc", type=Path, nargs="?", help="default $MLOPS_REAL_DATA/nsmc")
    parser.add_argument("--quick", action="store_true", help="2,000 tested rows and three times as many to train on")
    arguments = parser.parse_args()
    data = real_data()
    nsmc = arguments.nsmc or (data / "nsmc" if data else None)
    if nsmc is None or not (nsmc / "ratings_test.txt").exists():
        parser.error("no NSMC: give its folder, or set MLOPS_REAL_DATA to the folder that holds nsmc/")
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    from mlops_assets.lifecycle.system import CleanedTable, TrainContext
    from mlops_assets.settings import load_config, load_settings
    from mlops_assets.systems.sentiment.config import SentimentConfig
    from mlops_assets.systems.sentiment.training import SYSTEM, load_predictor, rows_of

    load = pressure()
    config = load_config(SentimentConfig, "sentiment", load_settings().configs)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        (work / "table").mkdir()
        table = CleanedTable("sentiment", "nsmc", "0" * 64, work / "table", write(nsmc, work / "table", 2_000 if arguments.quick else None))
        context = TrainContext(
            system="sentiment",
            variant="linear",
            table=table,
            config=config,
            parameters=SYSTEM.variant_parameters(config, "linear", {}),
            seed=config.project.seed,
            fingerprint="benchmark",
            workdir=work / "work",
            log_dir=work / "logs",
            log_metrics=lambda metrics, step: None,
            threads=1,
            say=print,
        )
        used = time.process_time()
        trained = SYSTEM.train(context)
        seconds = time.process_time() - used
        SYSTEM.export(trained, context, work / "bundle")
        evaluation = SYSTEM.evaluate(work / "bundle", table, 1)
        rows, tested = rows_of(table, "train"), rows_of(table, "holdout")

        predictor, mib = load_predictor(work / "bundle", 1), memory(work / "bundle")
        some = tested.texts[:5_000]
        used = time.process_time()
        together = predictor.probabilities(some)
        rate = len(some) / (time.process_time() - used)
        alone = np.concatenate([predictor.probabilities([text]) for text in some[:1_000]])
        moved = float(np.abs(alone - together[:1_000]).max())

        used = time.process_time()
        vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 5), min_df=2)
        peer = LogisticRegression(max_iter=1000).fit(vectorizer.fit_transform(rows.texts), rows.labels)
        peer_seconds = time.process_time() - used
        theirs = float((peer.predict(vectorizer.transform(tested.texts)) == np.asarray(tested.labels)).mean())
    print({key: round(value, 4) for key, value in evaluation.metrics.items()}, evaluation.trivial)
    report(
        "accuracy on NSMC's test, the baseline",
        evaluation.metrics["accuracy"],
        theirs,
        1.0,
        load=load,
        goal_accuracy=GOAL,
        cpu_seconds=round(seconds, 1),
        goal_cpu_seconds=GOAL_SECONDS,
        peer_cpu_seconds=round(peer_seconds, 1),
        ece=round(evaluation.metrics["ece"], 4),
        train_rows=len(rows),
        test_rows=evaluation.rows,
        texts_per_cpu_second=round(rate),
        mib=round(mib),
        goal_mib=GOAL_MIB,
        moved_by_neighbours=moved,
    )


if __name__ == "__main__":
    main()
