"""Milliseconds for one drawn digit over HTTP, 8 users at once, each asking again as soon as it has its answer: the real server.

    python benchmarks/digits_http.py [--quick]

Drawings of 280 pixels, as a page sends them. The weights are a network of the configured size that has seen a few hundred simulated digits:
the time does not depend on what it learned. Peer: the goal of 25 ms for the 95th percentile.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import random
from pathlib import Path

import _kcbert as bench
import httpx
from _common import pressure, report

GOAL_P95_MS, USERS, SIDE = 25.0, 8, 280
BOUNDARY = b"digit"


def drawings(count: int) -> list[tuple[int, bytes]]:
    from mlops_assets.systems.digits import simulate

    found = []
    for number in range(count):
        by = simulate.writer(number, 0.5)
        out = io.BytesIO()
        simulate.picture(simulate.drawing(by, number % 10), by.width, SIDE).save(out, "PNG")
        found.append((number % 10, out.getvalue()))
    return found


def build(folder: Path) -> Path:
    """A bundle as training exports it, of a network that was trained for seconds."""
    import numpy as np
    import torch

    from mlops_assets import strokes
    from mlops_assets.images import load
    from mlops_assets.serving.images import load_image_predictor
    from mlops_assets.settings import load_config
    from mlops_assets.systems.digits import model
    from mlops_assets.systems.digits.config import LABELS, DigitsConfig
    from mlops_assets.training import export

    torch.manual_seed(0)
    config = load_config(DigitsConfig, "digits", bench.REPOSITORY / "configs")
    classifier = model.Classifier(model.build(config.models["anew"].width, 0.0))
    learn = drawings(300)
    shown = torch.from_numpy(np.stack([strokes.prepared(load(picture)) for _, picture in learn]))
    labels = torch.tensor([label for label, _ in learn])
    optimizer = torch.optim.Adam(classifier.parameters(), 0.003)
    for _ in range(30):
        optimizer.zero_grad()
        classifier(shown, labels)["loss"].backward()
        optimizer.step()
    bundle = folder / "bundle"
    bundle.mkdir()
    export.export_image_model(classifier, bundle / "model.onnx", size=28, channels=None)
    export.write_spec(bundle, "digits", "image-classification", LABELS, "fp32", 1.0, image_size=28, preprocessing="strokes", ask_below=0.6)
    golden = [base64.b64encode(picture).decode() for _, picture in learn[:10]]
    export.write_golden(bundle, golden, load_image_predictor(bundle, 1).probabilities)
    return bundle


def body_of(picture: bytes) -> bytes:
    head = b'--%b\r\nContent-Disposition: form-data; name="files"; filename="digit.png"\r\nContent-Type: image/png\r\n\r\n' % BOUNDARY
    return head + picture + b"\r\n--%b--\r\n" % BOUNDARY


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    seconds = 5.0 if parser.parse_args().quick else 30.0
    load = pressure()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(bench.workplace())
        bundle = build(folder)
        settings = stack.enter_context(bench.platform(folder))
        world = bench.world(settings, "digits")
        world.registrar().produce(version=world.registered("v1", folder=bundle).receipt.version, reason="benchmark")
        world.engine.dispose()
        child = stack.enter_context(bench.our_server(settings))
        client = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{settings.serve_port}", timeout=60))
        asked = drawings(100)
        first = json.dumps({"inputs": [base64.b64encode(asked[0][1]).decode()]}).encode()
        bench.first_answer(f"http://127.0.0.1:{settings.serve_port}/predict/digits", first, 60, settings.home / "serve.log", child)
        answers = [client.post("/predict/digits", files=[("files", ("d.png", picture))]).json()["predictions"][0] for _, picture in asked]
        assert all({"label", "confidence", "sure"} <= set(answer) for answer in answers)
        bodies = [body_of(picture) for _, picture in random.Random(0).sample(asked, len(asked))]
        kind = f"multipart/form-data; boundary={BOUNDARY.decode()}"
        bench.clients(settings.serve_port, "/predict/digits", bodies, count=USERS, seconds=2.0, content_type=kind)
        found = bench.clients(settings.serve_port, "/predict/digits", bodies, count=USERS, seconds=seconds, content_type=kind)
        assert not found.bad, found.bad[0]
    percentiles = {f"p{percent}_ms": round(found.percentile(percent), 1) for percent in (50, 95, 99)}
    more = {"users": USERS, "digits_per_second": round(found.rate, 1), "picture_pixels": SIDE, **percentiles}
    report(
        "digits: one digit over HTTP, 95th percentile of 8 users", 1000 / found.percentile(95), 1000 / GOAL_P95_MS, 1.0, load=load, **more
    )


if __name__ == "__main__":
    main()
