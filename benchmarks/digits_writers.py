"""What one round of feedback is worth, on simulated writers who do not see the pad: before and after, on writers kept apart.

    python benchmarks/digits_writers.py [--quick]

Writers are simulated (`systems/digits/simulate.py`: tremor, drift, open loops, overlap, slant to 30 degrees, lines of 1 to 5 pixels, parts
off the pad); no blind person's writing was available. A champion is trained on MNIST (MLOPS_REAL_DATA) and read on writers that nobody
trains on. Then the training writers use it: what they confirm is landed as users' drawings extending its data, the champion is trained on
from there, and the new model is read on the writers kept apart. Peer: the champion before.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import _digits as bench
import numpy as np
from _common import pressure, report
from _kcbert import platform, real_data, workplace

GOAL = 2.0
TRAIN_WRITERS, TEST_WRITERS, EACH, TEST_EACH = 60, 60, 3, 2
CODE = 6


def land(folder: Path, writers: range, each: int) -> int:
    """What the writers drew and confirmed, as it lands from the page: a code's digits one by one, without order."""
    from mlops_assets import strokes
    from mlops_assets.images import BadImage
    from mlops_assets.systems.digits import simulate

    (folder / "img").mkdir(parents=True)
    lines = []
    for number in writers:
        by = simulate.writer(number)
        for digit in range(10):
            for n in range(each):
                picture = simulate.picture(simulate.drawing(by, digit, n), by.width)
                try:
                    strokes.prepared(picture)
                except BadImage:
                    continue  # the page asks again
                name = f"img/{number}-{digit}-{n}.png"
                picture.save(folder / name)
                lines.append(json.dumps({"file": name, "label": digit, "writer": f"writer-{number}", "origin": "users"}))
    (folder / "labels.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines)


def read(predictor: Any, writers: range, each: int) -> dict[str, float]:
    """How writers fare: each digit, and whole codes in which a doubtful digit is drawn again, once."""
    from mlops_assets import strokes
    from mlops_assets.images import BadImage
    from mlops_assets.systems.digits import simulate
    from mlops_assets.systems.digits.training import _logits
    from mlops_assets.training.metrics import softmax

    shown, labels, of, refused = [], [], [], 0
    for number in writers:
        by = simulate.writer(number)
        for digit in range(10):
            for n in range(each):
                try:
                    shown.append(strokes.prepared(simulate.picture(simulate.drawing(by, digit, n), by.width)))
                except BadImage:
                    refused += 1
                    continue
                labels.append(digit)
                of.append(number)
    probabilities = softmax(_logits(predictor, np.stack(shown)) / predictor.temperature)
    right, sure = probabilities.argmax(axis=1) == np.array(labels), probabilities.max(axis=1) >= predictor.ask_below
    return {"error": 1 - float(right.mean()), "asked": float((~sure).mean()), "refused": refused} | codes(right, sure, np.array(of))


def codes(right: np.ndarray, sure: np.ndarray, of: np.ndarray, rounds: int = 4_000) -> dict[str, float]:
    """Codes of one writer's own digits: how many go through, at once and with the doubtful ones drawn again."""
    random = np.random.default_rng(0)
    asked = unasked = with_asking = 0
    for writer in random.choice(np.unique(of), rounds):
        mine = np.flatnonzero(of == writer)
        first, second = random.choice(mine, CODE), random.choice(mine, CODE)
        unasked += bool(right[first].all())
        asked += bool((~sure[first]).any())
        with_asking += bool(np.where(sure[first], right[first], right[second]).all())
    return {"codes_unasked": unasked / rounds, "codes": with_asking / rounds, "codes_asked": asked / rounds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of MNIST, few writers: shows that it runs")
    parser.add_argument("--champion", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the first training")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the training that goes on")
    given = parser.parse_args()
    data = real_data()
    if data is None or not (data / "mnist").is_dir() or not (data / "hwd1000").is_dir():
        parser.error("set MLOPS_REAL_DATA to the folder that holds mnist/ and hwd1000/")
    logging.basicConfig(level=logging.WARNING)

    from mlops_assets.lifecycle.pipeline import connect
    from mlops_assets.lifecycle.signing import ensure_key
    from mlops_assets.settings import load_config
    from mlops_assets.systems.digits.config import DigitsConfig
    from mlops_assets.systems.digits.training import load_predictor

    load = pressure()
    few = {"sampling_rate": 0.1, "epochs": 2} if given.quick else {}
    first, second = (
        few | {name: json.loads(value) for name, _, value in (one.partition("=") for one in given_for)}
        for given_for in (given.champion, given.set)
    )
    train, test = range(1000, 1000 + (10 if given.quick else TRAIN_WRITERS)), range(9000, 9000 + (10 if given.quick else TEST_WRITERS))
    with workplace() as folder, platform(folder) as settings:
        ensure_key(settings)
        there = connect(settings)
        config = load_config(DigitsConfig, "digits", settings.configs)
        if given.quick:
            config = config.model_copy(update={"register_threshold": {"mnist_accuracy": 0.5}})
        for name in ("mnist", "hwd1000"):
            shutil.copytree(data / name, folder / "landed" / name)
        bench.cleaned(there, config, folder / "landed", "mnist-1", folder / "scratch" / "1")
        champion = bench.tried(there, config, "mnist-1", "anew", folder / "bundles", first)
        before = read(load_predictor(champion.folder, settings.threads), test, TEST_EACH)
        print(f"before: {before}", flush=True)
        drawn = land(folder / "drawn", train, EACH)
        started = time.monotonic()
        bench.cleaned(there, config, folder / "drawn", "drawn-1", folder / "scratch" / "2", parent="mnist-1")
        child = bench.tried(there, config, "drawn-1", "from_champion", folder / "bundles", second)
        minutes = (time.monotonic() - started) / 60
        after = read(load_predictor(child.folder, settings.threads), test, TEST_EACH)
        print(f"after:  {after}", flush=True)
    report(
        "digits: error on simulated writers kept apart, before over after one round of feedback",
        before["error"],
        max(after["error"], 1e-4),
        GOAL,
        load=load,
        drawings=drawn,
        writers=len(train),
        writers_apart=len(test),
        **{f"{name}_before": round(value, 4) for name, value in before.items()},
        **{f"{name}_after": round(value, 4) for name, value in after.items()},
        **({"first_training": first} if first else {}),
        **({"second_training": second} if second else {}),
        mnist_accuracy_before=round(champion.metrics["mnist_accuracy"], 4),
        mnist_accuracy_after=round(child.metrics["mnist_accuracy"], 4),
        drawn_accuracy_before=round(champion.metrics["drawn_accuracy"], 4),
        verdict=child.outcome,
        why=child.sentence,
        minutes_of_the_round=round(minutes, 1),
    )


if __name__ == "__main__":
    main()
