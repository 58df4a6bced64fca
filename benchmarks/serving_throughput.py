"""Texts per second over HTTP, 8 closed-loop clients, a model of KcBERT-base's size, real review lengths.

Peers: `mlflow models serve` as documented (a transformers pipeline), the same tuned (a worker per core, one thread each), and LitServe
around our own engine, in the best of three tunings. Every side answers the same texts with the same labels first. LitServe's processes
poll, and three idle ones took half a processor from whoever was measured: they are stopped (SIGSTOP) but for their turn.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import _kcbert as kcbert
from _common import pressure, report

GOAL_MLFLOW, GOAL_LITSERVE, GOAL_P99_MS = 15.0, 1.2, 100.0
MIN_EQUAL = 0.99  # int8 against fp32, as the export itself demands
CLEAR = 0.55  # random weights put many texts on the border between the labels, a trained model few: the border is left out


@dataclass
class Side:
    """A running server: where it answers and how its label is read. `loads` grows with each round; `group` is stopped but for its turn."""

    name: str
    port: int
    path: str
    label: Callable[[Any], str]
    group: int | None = None
    loads: list[kcbert.Load] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return kcbert.median([load.rate for load in self.loads])

    def p99(self) -> float:
        return kcbert.median([load.percentile(99) for load in self.loads])

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        if self.group is not None:
            os.killpg(self.group, signal.SIGCONT)
        try:
            yield
        finally:
            if self.group is not None:
                os.killpg(self.group, signal.SIGSTOP)


def bodies_of(texts: list[str]) -> list[bytes]:
    return [json.dumps({"inputs": [text]}, ensure_ascii=False).encode() for text in texts]


def labels_of(side: Side, texts: list[str]) -> list[str]:
    url = f"http://127.0.0.1:{side.port}{side.path}"
    return [side.label(post(url, body)) for body in bodies_of(texts)]


def confidence(side: Side, text: str) -> float:
    answer = post(f"http://127.0.0.1:{side.port}{side.path}", bodies_of([text])[0])
    return float(answer["predictions"][0]["confidence"])


def post(url: str, body: bytes) -> Any:
    import urllib.request

    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())


@contextlib.contextmanager
def ours(folder: Path, bundle: Path) -> Iterator[Side]:
    with kcbert.platform(folder) as settings:
        world = kcbert.world(settings)
        registration = world.registered("v1", folder=bundle)
        world.registrar().produce(version=registration.receipt.version, reason="benchmark")
        world.engine.dispose()
        with kcbert.our_server(settings) as child:
            url = f"http://127.0.0.1:{settings.serve_port}/predict/sentiment"
            kcbert.first_answer(url, bodies_of(["좋다"])[0], 180, settings.home / "serve.log", child)
            yield Side("ours", settings.serve_port, "/predict/sentiment", lambda a: a["predictions"][0]["label"])


def save_mlflow(folder: Path, fp32: Path) -> Path:
    """The model as MLflow's documentation saves a transformers pipeline."""
    import mlflow
    from transformers import pipeline

    target = folder / "mlflow_model"
    mlflow.transformers.save_model(pipeline("text-classification", model=str(fp32)), str(target), pip_requirements=["mlflow"])
    return target


@contextlib.contextmanager
def mlflow_serve(folder: Path, model: Path, *, tuned: bool) -> Iterator[Side]:
    port, name = kcbert.free_port(), "mlflow_tuned" if tuned else "mlflow"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model), "-p", str(port), "--env-manager", "local"]
    # As documented means without our own setting of OpenMP, which is worth threefold to it on two busy processors.
    tuning = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} if tuned else {"OMP_WAIT_POLICY": None}
    log = folder / f"{name}.log"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with kcbert.process([*command, *(["--workers", "2"] if tuned else [])], log, PATH=path, **tuning) as child:
        kcbert.first_answer(f"http://127.0.0.1:{port}/invocations", bodies_of(["좋다"])[0], 180, log, child)
        yield Side(name, port, "/invocations", lambda a: (a.get("predictions", a) if isinstance(a, dict) else a)[0]["label"])


def litserve_python() -> str:
    """The interpreter of LitServe's own virtual environment, made on first use with the engine's own versions."""
    import onnxruntime
    import tokenizers

    folder = kcbert.REPOSITORY / ".venv-peers" / "litserve"
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    probe = subprocess.run([str(python), "-c", "import litserve, onnxruntime, tokenizers, pydantic_settings, yaml"], capture_output=True)
    if probe.returncode != 0:
        wanted = [
            f"onnxruntime=={onnxruntime.__version__}",
            f"tokenizers=={tokenizers.__version__}",
            "litserve",
            "pydantic-settings",
            "pyyaml",
        ]
        subprocess.run([str(python), "-m", "pip", "install", "-q", *wanted], check=True)
    return str(python)


@contextlib.contextmanager
def litserve(folder: Path, bundle: Path, workers: int, threads: int, batch: int) -> Iterator[Side]:
    port, name = kcbert.free_port(), f"litserve_{workers}x{threads}_batch{batch}"
    log = folder / f"{name}.log"
    script = str(Path(__file__).with_name("_litserve_server.py"))
    command = [litserve_python(), script, *map(str, (port, bundle, workers, threads, batch))]
    with kcbert.process(command, log, PYTHONPATH=str(kcbert.REPOSITORY)) as child:
        kcbert.first_answer(f"http://127.0.0.1:{port}/predict", bodies_of(["좋다"])[0], 180, log, child)
        side = Side(name, port, "/predict", lambda a: a["predictions"][0]["label"], child.pid)
        os.killpg(child.pid, signal.SIGSTOP)
        yield side


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute once the model is built")
    quick = parser.parse_args().quick
    load = pressure()
    bundle = kcbert.build(kcbert.models_folder() / "kcbert")
    texts = kcbert.reviews(1000)
    rounds, seconds, checked = (2, 2.0, 40) if quick else (7, 8.0, 300)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(kcbert.workplace())
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"  # its default is a file where one stands
        model = save_mlflow(folder, bundle.parent / "fp32")
        sides = [stack.enter_context(ours(folder, bundle)), stack.enter_context(mlflow_serve(folder, model, tuned=False))]
        if not quick:
            sides.append(stack.enter_context(mlflow_serve(folder, model, tuned=True)))
            sides.append(stack.enter_context(litserve(folder, bundle, 1, os.cpu_count() or 1, 8)))
            sides.append(stack.enter_context(litserve(folder, bundle, os.cpu_count() or 1, 1, 4)))
        sides.append(stack.enter_context(litserve(folder, bundle, os.cpu_count() or 1, 1, 1)))
        sure = [text for text in texts[: 2 * checked] if confidence(sides[0], text) >= CLEAR][:checked]
        expected = labels_of(sides[0], sure)
        assert len(set(expected)) == 2, "the model tells nothing apart: equal labels would mean nothing"
        for side in sides[1:]:
            with side.turn():
                found = labels_of(side, sure)
            equal = sum(a == b for a, b in zip(expected, found, strict=True)) / len(sure)
            assert equal >= MIN_EQUAL, f"{side.name} answers {equal:.1%} of the texts as we do"
        bodies = bodies_of(texts)
        for number in range(rounds):
            for side in sides[number % len(sides) :] + sides[: number % len(sides)]:
                with side.turn():
                    kcbert.clients(side.port, side.path, bodies, seconds=seconds / 8)  # awake again, and warm
                    side.loads.append(kcbert.clients(side.port, side.path, bodies, seconds=seconds))
                assert not side.loads[-1].bad, f"{side.name}: {side.loads[-1].bad[0]}"
                print(f"{side.name}: {side.loads[-1].rate:.1f} texts/s, p99 {side.loads[-1].percentile(99):.0f} ms", flush=True)
    us, documented = sides[0], sides[1]
    tuned = {side.name: round(side.rate, 1) for side in sides[2:]}
    best_lit = max(side.rate for side in sides if side.name.startswith("litserve"))
    more = {
        "p99_ms": round(us.p99(), 1),
        "p99_goal_ms": GOAL_P99_MS,
        "litserve_ratio": round(us.rate / best_lit, 3),
        "litserve_goal": GOAL_LITSERVE,
    }
    report("serving_throughput", us.rate, documented.rate, GOAL_MLFLOW, load=load, unit="texts/s", **more, **tuned)


if __name__ == "__main__":
    main()
