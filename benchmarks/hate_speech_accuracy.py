"""LRAP, F1 and false flags on UnSmile's valid: the baseline, or a network from scratch within 20 minutes, by the platform's own cleaning
rules, train, export and evaluate.

    python benchmarks/hate_speech_accuracy.py [../shared/data/unsmile] [--quick] [--variant linear] [--set learning_rate=0.001 ...]

Peer: the KcBERT base that its authors pretrained on 12 GB of comments and fine-tuned on UnSmile; its figures are quoted from the data set's
README (macro F1 0.76, micro F1 0.77), not run here: no hub is reachable. That README gives no LRAP. What is measured is the exported bundle
under its own label rule, on all 3,737 held-out rows; training rows whose text is held out are left out.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

from _common import pressure, report
from _kcbert import real_data

PUBLISHED = {"f1": 0.76, "micro_f1": 0.77}
MINUTES = 20.0


def cleaned(folder: Path, target: Path, limit: int | None) -> int:
    """The table that `cleaned` would make of UnSmile, by the same parser and groups."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from mlops_assets.ingest.texts import unit_of
    from mlops_assets.settings import load_config, load_settings
    from mlops_assets.systems.hate_speech import data
    from mlops_assets.systems.hate_speech.config import JOINT, HateSpeechConfig

    section = load_config(HateSpeechConfig, "hate_speech", load_settings().configs).dataset
    rows: list[dict[str, object]] = []
    held_out: set[bytes] = set()
    for path in sorted(folder.glob("unsmile_*.tsv"), reverse=True):  # valid first
        reader = data.reader_of(section, path.name)
        assert reader is not None
        header, *lines = path.read_bytes().removesuffix(b"\n").split(b"\n")
        parse = reader.open(header)
        assert callable(parse)
        for number, line in enumerate(lines[:limit], start=2):
            row = parse(line, number)
            if not isinstance(row, dict) or row["problem"] or not row["text"]:
                continue
            group = data.group_of(row["text"])
            if reader.holdout:
                held_out.add(group)
            elif group in held_out:
                continue
            split = "holdout" if reader.holdout else "validation" if unit_of(group) < section.validation_fraction else "train"
            labels = row["labels"].split(JOINT)
            rows.append({"id": f"{row['comment']}#{number}", "labels": labels, "split": split, **{k: row[k] for k in ("text", "names")}})
    pq.write_table(pa.Table.from_pylist(rows), target / "part-0.parquet")
    return len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("unsmile", type=Path, nargs="?", help="folder of UnSmile's two files; default $MLOPS_REAL_DATA/unsmile")
    parser.add_argument("--quick", action="store_true", help="3,000 rows, 24 seconds: shows that it runs, not what it reaches")
    parser.add_argument("--variant", choices=("linear", "anew"), default="anew")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="parameters over configs/hate_speech.yaml")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    data = real_data()
    folder = arguments.unsmile or (data / "unsmile" if data else None)
    if folder is None or not list(folder.glob("unsmile_valid*.tsv")):
        parser.error("no UnSmile: give its folder, or set MLOPS_REAL_DATA to the folder that holds unsmile/")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("transformers").setLevel(logging.WARNING)

    from mlops_assets.lifecycle.system import CleanedTable, TrainContext
    from mlops_assets.settings import load_config, load_settings
    from mlops_assets.systems.hate_speech.config import HateSpeechConfig
    from mlops_assets.systems.hate_speech.training import SYSTEM

    load = pressure()
    settings = load_settings()
    config = load_config(HateSpeechConfig, "hate_speech", settings.configs)
    threads = arguments.threads or settings.threads
    variant = arguments.variant
    given: dict[str, Any] = {} if variant == "linear" else {"max_minutes": 0.4 if arguments.quick else MINUTES - 1}
    for pair in arguments.set:
        name, _, value = pair.partition("=")
        given[name] = value if SYSTEM.parameter_names[name] is str else json.loads(value)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        (work / "table").mkdir()
        rows = cleaned(folder, work / "table", 3_000 if arguments.quick else None)
        table = CleanedTable("hate_speech", "unsmile", "0" * 64, work / "table", rows)
        context = TrainContext(
            system="hate_speech",
            variant=variant,
            table=table,
            config=config,
            parameters=SYSTEM.variant_parameters(config, variant, given),
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
    for title in ("labels", "false_flags", "intervals"):
        for row in evaluation.tables[title]:
            print(title, {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()})
    metrics = {name: round(value, 4) for name, value in evaluation.metrics.items()}
    intervals = {row["metric"]: [round(row["low"], 4), round(row["high"], 4)] for row in evaluation.tables["intervals"]}
    report(
        f"macro F1 on UnSmile's valid, {variant}",
        evaluation.metrics["f1"],
        PUBLISHED["f1"],
        1.0,
        load=load,
        lrap=metrics["lrap"],
        lrap_interval=intervals["lrap"],
        f1_interval=intervals["f1"],
        micro_f1=metrics["micro_f1"],
        exact=metrics["accuracy"],
        **{name: value for name, value in metrics.items() if name.startswith("false_flag_rate") or name.endswith("_any")},
        flags_everything=round(evaluation.trivial["flags everything"]["f1_any"], 4),
        published=PUBLISHED,
        minutes=round(minutes, 2),
        cpu_minutes=round(cpu_minutes, 2),
        train_rows=int(trained.metrics["train_rows"]),
        test_rows=evaluation.rows,
        precision=precision,
        threads=threads,
    )


if __name__ == "__main__":
    main()
