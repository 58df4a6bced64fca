"""A source of MNIST's four files near by, and configs/ that name it: what the platform fetches in the tests, where no network is."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import yaml

from mlops_assets.settings import REPOSITORY


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def _idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    return gzip.compress(header + values.astype(np.uint8).tobytes())


@contextmanager
def running(folder: Path) -> Iterator[Path]:
    """A copy of configs/ below `folder` in which `mlops data pull mnist` has this source."""
    random, files = np.random.default_rng(0), {}
    for name, rows in (("train", 60), ("t10k", 20)):
        files[f"{name}-images-idx3-ubyte.gz"] = _idx(random.integers(0, 255, (rows, 28, 28)))
        files[f"{name}-labels-idx1-ubyte.gz"] = _idx(np.arange(rows) % 10)
    (folder / "files").mkdir()
    for name, content in files.items():
        (folder / "files" / name).write_bytes(content)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder / "files")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    shutil.copytree(REPOSITORY / "configs", folder / "configs")
    path = folder / "configs" / "digits.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["datasets"]["mnist"]["official"] = [
        {"name": name, "url": f"http://127.0.0.1:{server.server_port}/{name}", "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
    ]
    path.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    try:
        yield folder / "configs"
    finally:
        server.shutdown()
        server.server_close()
