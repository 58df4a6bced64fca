"""Digits from MNIST alone, read on MNIST's test pictures and on 500 really drawn ones: land, clean, train, gate.

    python benchmarks/digits_accuracy.py [--quick]

Needs MLOPS_REAL_DATA with mnist/ and hwd1000/. No drawn digit is trained on. Peer: the same network, fed the drawn pictures as they are,
as the seed's project did. Prints figures per digit, of whole codes at the configured rate of asking, the calibration error before and after
the temperature, and how many answers int8 changes.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import _digits as bench
import numpy as np
from _common import pressure, report
from _kcbert import platform, real_data, workplace

GOAL_MNIST, GOAL_DRAWN, GOAL_MINUTES = 0.995, 0.99, 15.0
VERSION = "mnist-1"


def unprepared(predictor: Any, digits: Any) -> float:
    """Accuracy on the drawn pictures as they are, 28 x 28, black on white."""
    from PIL import Image

    drawn = np.flatnonzero(digits.origins == "drawn")
    shown = np.stack([np.asarray(Image.open(io.BytesIO(digits.files[n])).convert("L").resize((28, 28))) for n in drawn])
    return float((predictor.logits_of(shown).argmax(axis=1) == digits.labels[drawn]).mean())


def calibration(predictor: Any, digits: Any) -> tuple[float, float]:
    """The calibration error without and with the temperature, on the held-out digits, each origin alike."""
    from mlops_assets.systems.digits.training import _logits
    from mlops_assets.training import metrics

    logits = _logits(predictor, digits.images)
    errors = []
    for temperature in (1.0, predictor.temperature):
        of = [digits.origins == name for name in np.unique(digits.origins)]
        found = [metrics.expected_calibration_error(metrics.softmax(logits[mask] / temperature), digits.labels[mask]) for mask in of]
        errors.append(float(np.mean(found)))
    return errors[0], errors[1]


def int8(there: Any, config: Any, tried: bench.Tried, folder: Path, digits: Any) -> dict[str, float]:
    """The same weights as int8, beside fp32 on the held-out digits."""
    from mlops_assets.systems.digits import data
    from mlops_assets.systems.digits.training import _logits, load_predictor
    from mlops_assets.training import export

    validation = data.read_digits(data.load_cleaned(there.store, there.engine, VERSION, folder / "table"), "validation")
    target = folder / "int8"
    shutil.copytree(tried.folder, target)
    export.convolutions_to_int8(validation.images[:512])(tried.folder / "model.onnx", target / "model.onnx")
    fp32, quantized = (_logits(load_predictor(place, 2), digits.images) for place in (tried.folder, target))
    quality = export.int8_quality(fp32, quantized, digits.labels)
    return {"int8_equal": round(quality.equal_labels, 5), "int8_accuracy_loss": round(quality.accuracy_loss, 5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the digits, one epoch: shows that it runs")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the training")
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
    overrides = {name: json.loads(value) for name, _, value in (one.partition("=") for one in given.set)}
    if given.quick:
        overrides |= {"sampling_rate": 0.1, "epochs": 2}
    with workplace() as folder, platform(folder) as settings:
        ensure_key(settings)
        there = connect(settings)
        config = load_config(DigitsConfig, "digits", settings.configs)
        for name in ("mnist", "hwd1000"):
            shutil.copytree(data / name, folder / "landed" / name)
        bench.cleaned(there, config, folder / "landed", VERSION, folder / "scratch")
        tried = bench.tried(there, config, VERSION, "anew", folder / "bundles", overrides)
        digits = bench.holdout(there, VERSION, folder / "holdout")
        predictor = load_predictor(tried.folder, settings.threads)
        raw = unprepared(predictor, digits)
        before, after = calibration(predictor, digits)
        spec = json.loads((tried.folder / "bundle.json").read_text(encoding="utf-8"))
        more = int8(there, config, tried, folder, digits)
    print({row["digit"]: round(row["recall"], 4) for row in tried.evaluation.tables["digits"]})
    m = tried.metrics
    report(
        "digits: 500 drawn ones read, trained on MNIST alone, against the same network without the preparation",
        m["drawn_accuracy"],
        raw,
        GOAL_DRAWN / raw,
        load=load,
        mnist_accuracy=round(m["mnist_accuracy"], 4),
        goal_mnist=GOAL_MNIST,
        goal_drawn=GOAL_DRAWN,
        minutes=round(tried.minutes, 1),
        goal_minutes=GOAL_MINUTES,
        worst_digit=round(m["worst_digit_recall"], 4),
        asked=round(m["asked"], 4),
        ask_below=spec["ask_below"],
        code_success_6=round(m["code_success"], 4),
        code_success_4=round(m["code_success_4"], 4),
        code_success_served=round(m["code_success_served"], 4),
        code_success_unasked=round(m["code_success_unasked"], 4),
        codes_asked=round(m["codes_asked"], 4),
        canary_changed=round(m["canary_changed"], 4),
        ece_before=round(before, 5),
        ece_after=round(after, 5),
        verdict=tried.outcome,
        **more,
    )


if __name__ == "__main__":
    main()
