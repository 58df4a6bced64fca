"""Photos per second for training, from an S3 store (moto's server, a process of its own): shards and a cache against one object each.

The peer is the seed's loader: a GET, a decode and a resize per photo and epoch, with a client that is kept. Tuned, it has eight threads.
Ours is measured in the first epoch (download, decode, write the cache, read it) and in those after it. The pixels are the same.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import _kcbert as bench
import httpx
import numpy as np
from _common import pressure, report

GOAL_FIRST, GOAL_AFTER, SIZE, BATCH = 5.0, 20.0, 256, 32


@contextlib.contextmanager
def s3(folder: Path) -> Iterator[str]:
    port = bench.free_port()
    command = [sys.executable, "-c", f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"]
    with bench.process(command, folder / "moto.log"):
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                httpx.get(url + "/moto-api/")
                break
        yield url


def cleaned(settings: Any, folder: Path) -> tuple[Any, Any, dict[str, str]]:
    """The store and engine with one cleaned version, and the key of each photo by its id."""
    from mlops_assets import database
    from mlops_assets.ingest import objects
    from mlops_assets.lifecycle import dataset as versions
    from mlops_assets.sample_data import write_tires
    from mlops_assets.settings import load_config
    from mlops_assets.store import ObjectStore
    from mlops_assets.systems.tires import data
    from mlops_assets.systems.tires.config import TiresConfig

    real = bench.real_data()
    source = folder / "photos" if real is None else real / "magnetic_tile"
    if real is None:
        write_tires(source)
    section = load_config(TiresConfig, "tires", settings.configs).dataset
    store, engine = ObjectStore.of(settings), database.connect(settings.database_url)
    objects.land(settings, store, "tires", source, "v1")
    objects.discover(engine, store, settings, "tires")
    (folder / "scratch").mkdir()
    manifest = versions.freeze(engine, store, "tires", "v1", max_object_bytes=settings.max_object_bytes, scratch=folder / "scratch")
    data.clean(engine, store, manifest, section, folder / "scratch", threads=2)
    return store, engine, {entry.sha256: versions.object_key(entry.sha256) for entry in manifest.entries}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    rounds = 1 if parser.parse_args().quick else 5
    load = pressure()
    os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1", "AWS_REGION": "us-east-1"}
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(bench.workplace())
        endpoint = stack.enter_context(s3(folder))
        import boto3

        client = boto3.client("s3", endpoint_url=endpoint)
        client.create_bucket(Bucket="photos")
        plain = stack.enter_context(bench.platform(folder))
        settings = plain.model_copy(update={"object_store_url": "s3://photos/assets", "s3_endpoint_url": endpoint})
        store, engine, keys = cleaned(settings, folder)
        stack.callback(engine.dispose)
        measure(rounds, load, folder, store, engine, client, keys)


def measure(rounds: int, load: float, folder: Path, store: Any, engine: Any, client: Any, keys: dict[str, str]) -> None:
    from PIL import Image

    from mlops_assets.systems.tires.data import load_cleaned
    from mlops_assets.training.image import ImageCache, ImageExamples

    def epoch(images: ImageExamples) -> None:
        for start in range(0, len(images), BATCH):
            images.batch(range(start, min(start + BATCH, len(images))))

    def first(number: int) -> ImageExamples:
        table = load_cleaned(store, engine, "v1", folder / f"table-{number}")
        made = ImageExamples(ImageCache.build(table, "train", SIZE, folder / f"cache-{number}"))
        epoch(made)
        return made

    def one(name: str) -> np.ndarray:
        body = client.get_object(Bucket="photos", Key="assets/" + keys[name])["Body"].read()
        return np.asarray(Image.open(io.BytesIO(body)).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR))

    examples = first(-1)
    names = examples.cache.rows.ids
    for place, name in enumerate(names[:20]):
        assert (one(name) == examples.cache.images[place]).all(), "the pixels differ"

    def tuned() -> None:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(one, names))

    sides: dict[str, Callable[[int], Any]] = {
        "first": first,
        "after": lambda number: [epoch(examples) for _ in range(20)],
        "seed": lambda number: [one(name) for name in names],
        "tuned": lambda number: tuned(),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, work in sides.items():
            started = time.perf_counter()
            work(number)
            seconds[name].append((time.perf_counter() - started) / (20 if name == "after" else 1))
    rate = {name: len(names) / bench.median(values) for name, values in seconds.items()}
    more = {f"{name}_per_s": round(value, 1) for name, value in rate.items()}
    ratios = {"first_against_seed": round(rate["first"] / rate["seed"], 2), "after_against_tuned": round(rate["after"] / rate["tuned"], 2)}
    report("image_loader", rate["after"], rate["seed"], GOAL_AFTER, load=load, unit="photos/s", goal_first=GOAL_FIRST, **ratios, **more)


if __name__ == "__main__":
    main()
