"""One text, one answer: int8 of KcBERT-base's size, alone and in batches, in texts per processor-second. Peer: ONNX Runtime's own
`quantize_dynamic` of the same graph, whose scales are those of the batch.

    python benchmarks/int8_neighbours.py [--quick]

Asserts that no probability of a text moves by 1e-3 with what is asked beside it, and shows how far the peer's do.
"""

from __future__ import annotations

import argparse
import random
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import _kcbert as kcbert
import numpy as np
from _common import interleave, pressure, report

from mlops_assets.kinds.text.predict import TextPredictor, load_text_predictor
from mlops_assets.training.export import BATCH_TOLERANCE

GOAL = 0.97
SIZES = (2, 4, 8, 32, 1000)


def measured_scales(folder: Path, bundle: Path, fp32: Path) -> Path:
    """The bundle with the peer's model in place of ours."""
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    shutil.copytree(bundle, folder)
    options = {"DefaultTensorType": onnx.TensorProto.FLOAT}
    quantize_dynamic(str(fp32), str(folder / "model.onnx"), per_channel=True, reduce_range=True, extra_options=options)
    return folder


def moved(predictor: TextPredictor, texts: Sequence[str]) -> float:
    """The largest difference of a probability between a text alone and in batches of several sizes and neighbours."""
    alone = np.concatenate([predictor.probabilities([text]) for text in texts])
    order, worst = list(range(len(texts))), 0.0
    for size in SIZES:
        random.Random(size).shuffle(order)
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            worst = max(worst, float(np.abs(predictor.probabilities([texts[row] for row in rows]) - alone[rows]).max()))
    return worst


def rate(predictor: TextPredictor, texts: Sequence[str], size: int = 8) -> float:
    """Texts per second of processor time."""
    started = time.process_time()
    for start in range(0, len(texts), size):
        predictor.probabilities(texts[start : start + size])
    return len(texts) / (time.process_time() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="100 texts instead of 2,000")
    quick = parser.parse_args().quick
    load = pressure()
    bundle = kcbert.build(kcbert.models_folder() / "kcbert")
    texts = kcbert.reviews(100 if quick else 2000)
    with kcbert.workplace() as folder:
        ours = load_text_predictor(bundle, 1)
        peer = load_text_predictor(measured_scales(folder / "peer", bundle, bundle.parent / "fp32.onnx"), 1)
        ours_moved, peer_moved = moved(ours, texts), moved(peer, texts[:200])
        assert ours_moved < BATCH_TOLERANCE, f"a probability moved by {ours_moved:.2g}"
        equal = float((ours.probabilities(texts).argmax(axis=1) == peer.probabilities(texts).argmax(axis=1)).mean())
        rates = interleave(lambda: rate(ours, texts[:160]), lambda: rate(peer, texts[:160]), 3 if quick else 9)
    more = {"moved": float(f"{ours_moved:.2g}"), "peer_moved": float(f"{peer_moved:.2g}"), "equal_labels": round(equal, 4)}
    report("int8_neighbours", *rates, GOAL, load=load, unit="texts per processor-second", **more)


if __name__ == "__main__":
    main()
