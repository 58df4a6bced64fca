"""LitServe with our own engine, a peer of serving_throughput.py, in a virtual environment of its own: PORT BUNDLE WORKERS THREADS."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import litserve

from mlops_assets.serving.text import load_text_predictor


class Api(litserve.LitAPI):
    def __init__(self, bundle: str, threads: int, **options: Any) -> None:
        super().__init__(**options)
        self.bundle, self.threads = bundle, threads

    def setup(self, device: str) -> None:
        self.predictor = load_text_predictor(Path(self.bundle), self.threads)
        self.predictor.warm_up()

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # LitServe reads an annotation as a schema
        return str(request["inputs"][0])

    def batch(self, inputs: list[str]) -> list[str]:
        return inputs

    def predict(self, texts: list[str]) -> list[dict[str, Any]]:
        return self.predictor.predict(texts)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return {"predictions": [output]}


if __name__ == "__main__":
    port, bundle, workers, threads = sys.argv[1:]
    # Eight clients: a batch of eight is the most there can be; two milliseconds are enough for all of them to arrive.
    api = Api(bundle, int(threads), max_batch_size=8, batch_timeout=0.002)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=int(workers))
    server.run(port=int(port), host="127.0.0.1", log_level="error", generate_client_file=False, access_log=False)
