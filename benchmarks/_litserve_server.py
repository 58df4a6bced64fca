"""LitServe around the same engine (session, tokenizer, bundle), a peer of serving_throughput.py, in a virtual environment of its own.

Arguments: PORT BUNDLE WORKERS THREADS BATCH. The batch is tokenized, padded and run as LitServe's documentation batches; how requests are
put together is what is compared, so our own way of doing it stays ours.
"""

import sys
from pathlib import Path

import litserve
import numpy as np

from mlops_assets.kinds.text.predict import TextPredictor, load_text_predictor, softmax


class Api(litserve.LitAPI):
    def __init__(self, bundle, threads, **options):  # type: ignore[no-untyped-def]  # LitServe reads annotations as schemas
        super().__init__(**options)
        self.bundle, self.threads = bundle, threads

    def setup(self, device):  # type: ignore[no-untyped-def]
        self.predictor: TextPredictor = load_text_predictor(Path(self.bundle), self.threads)
        self.predictor.predict(["따뜻하게"] * 8)

    def decode_request(self, request):  # type: ignore[no-untyped-def]
        return request["inputs"][0]

    def predict(self, texts):  # type: ignore[no-untyped-def]
        single = isinstance(texts, str)
        encoded = self.predictor._tokenizer.encode_batch_fast([texts] if single else list(texts))
        rows = softmax(self.predictor._run([e.ids for e in encoded]))
        return rows[0] if single else list(rows)

    def batch(self, inputs):  # type: ignore[no-untyped-def]
        return inputs

    def unbatch(self, output):  # type: ignore[no-untyped-def]
        return output

    def encode_response(self, output):  # type: ignore[no-untyped-def]
        labels = self.predictor.labels
        best = int(np.argmax(output))
        probs = dict(zip(labels, output.tolist(), strict=True))
        return {"predictions": [{"label": labels[best], "confidence": float(output[best]), "probs": probs}]}


if __name__ == "__main__":
    port, bundle, workers, threads, batch = sys.argv[1:]
    # Two milliseconds are enough for the requests of eight clients to arrive.
    options = {"max_batch_size": int(batch), "batch_timeout": 0.002} if int(batch) > 1 else {}
    server = litserve.LitServer(Api(bundle, int(threads), **options), accelerator="cpu", workers_per_device=int(workers))
    server.run(port=int(port), host="127.0.0.1", log_level="error", generate_client_file=False, access_log=False)
