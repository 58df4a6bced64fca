"""Milliseconds for one photo, resnet18 at 224 pixels, asked one after the other: our server over HTTP against torch eager without any HTTP.

The weights are random, the photos are real ones where MLOPS_REAL_DATA has them. The peer is torch's eager mode as its documentation shows
it, with all processors; both decode, resize and normalise. Equal probabilities are asserted first.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import _kcbert as bench
import httpx
from _common import pressure, report

GOAL, SIZE = 1.5, 224


def photos(folder: Path, count: int) -> list[bytes]:
    data = bench.real_data()
    if data is None:
        from mlops_assets.sample_data import write_tires

        write_tires(folder, count=2 * count)
    found = sorted((data / "magnetic_tile" if data else folder).rglob("exp*.jpg"))
    return [path.read_bytes() for path in random.Random(0).sample(found, count)]


def build(folder: Path, samples: list[bytes]) -> tuple[Path, Path]:
    """The bundle, and the same weights as torch saves them."""
    import torch

    from mlops_assets.serving.images import load_image_predictor
    from mlops_assets.systems.tires import models
    from mlops_assets.training import export, image

    torch.manual_seed(0)
    net = models.build("resnet18", 2).eval()
    bundle = folder / "bundle"
    bundle.mkdir()
    torch.save(net.state_dict(), folder / "weights.pt")
    export.export_image_model(image.classifier(net), bundle / "model.onnx", size=SIZE)
    spec = {"format": 1, "system": "tires", "kind": "image-classification", "labels": ["good", "defective"], "image_size": SIZE}
    export.write_json(bundle / "bundle.json", spec | {"precision": "fp32", "calibration": {"temperature": 1.0}})
    golden = [base64.b64encode(one).decode() for one in samples[:2]]
    export.write_golden(bundle, golden, load_image_predictor(bundle, 1).probabilities)
    return bundle, folder / "weights.pt"


@contextlib.contextmanager
def torch_eager(weights: Path) -> Iterator[Callable[[bytes], list[float]]]:
    command = [sys.executable, str(Path(__file__).with_name("_torch_images.py")), str(weights), str(SIZE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:

        def ask(photo: bytes) -> list[float]:
            child.stdin.write(base64.b64encode(photo).decode() + "\n")  # type: ignore[union-attr]
            child.stdin.flush()  # type: ignore[union-attr]
            return list(json.loads(child.stdout.readline()))  # type: ignore[union-attr]

        yield ask
        child.stdin.close()  # type: ignore[union-attr]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    rounds = 3 if parser.parse_args().quick else 15
    load = pressure()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(bench.workplace())
        asked = photos(folder / "photos", 20)
        bundle, weights = build(folder, asked)
        settings = stack.enter_context(bench.platform(folder))
        world = bench.world(settings, "tires")
        world.registrar().produce(version=world.registered("v1", folder=bundle).receipt.version, reason="benchmark")
        world.engine.dispose()
        child = stack.enter_context(bench.our_server(settings))
        client = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{settings.serve_port}", timeout=60))

        def ours(photo: bytes) -> list[float]:
            answer = client.post("/predict/tires", files=[("files", ("photo.jpg", photo))])
            return list(answer.json()["predictions"][0]["probs"].values())

        body = json.dumps({"inputs": [base64.b64encode(asked[0]).decode()]}).encode()
        url = f"http://127.0.0.1:{settings.serve_port}/predict/tires"
        bench.first_answer(url, body, 180, settings.home / "serve.log", child)
        libraries = Path(f"/proc/{child.pid}/maps").read_text(encoding="utf-8")
        assert "libtorch" not in libraries, "the serving process has loaded torch"
        eager = stack.enter_context(torch_eager(weights))
        for photo in asked:
            difference = max(abs(a - b) for a, b in zip(ours(photo), eager(photo), strict=True))
            assert difference < 1e-3, f"a probability differs by {difference}"
        seconds: dict[str, list[float]] = {"ours": [], "eager": []}
        for _ in range(rounds):
            for name, ask in (("ours", ours), ("eager", eager)):
                for photo in asked:
                    started = time.perf_counter()
                    ask(photo)
                    seconds[name].append(time.perf_counter() - started)
    ours_ms, eager_ms = (1000 * bench.median(seconds[name]) for name in ("ours", "eager"))
    more = {"ours_ms": round(ours_ms, 1), "peer_ms": round(eager_ms, 1), "peer_name": "torch eager, no HTTP"}
    report("image_serving", 1000 / ours_ms, 1000 / eager_ms, GOAL, load=load, unit="photos/s", **more)


if __name__ == "__main__":
    main()
