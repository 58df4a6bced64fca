"""Memory and time to the first answers of a server with three models of KcBERT-base's size; peer: fp32 transformers in one process.

Ours starts on bundles that it has verified before, as a restarted server does (`first_start_s` is the start that fetches and tries them).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import _kcbert as kcbert
import psutil
from _common import pressure, report

GOAL_MB, GOAL_SECONDS, GOAL_RATIO = 450.0, 1.5, 2.5
SYSTEMS = ["sentiment", "first_copy", "second_copy"]


def measure_ours(settings: Any, texts: list[str]) -> tuple[float, float, list[str], float]:
    """Seconds until all three systems have answered, MB then, the labels of all texts, and MB after them: embeddings are mapped from the
    disk, so the more words were asked for, the more of them is resident."""
    bodies = [json.dumps({"inputs": [text]}).encode() for text in texts]
    base = f"http://127.0.0.1:{settings.serve_port}/predict/"
    started = time.perf_counter()
    with kcbert.our_server(settings) as child:
        for system in SYSTEMS:
            kcbert.first_answer(base + system, bodies[0], 180, settings.home / "serve.log", child)
        seconds = time.perf_counter() - started
        server = psutil.Process(child.pid)
        kcbert.until_idle(server)  # the ledger's driver is read behind the first answers: it counts too
        memory = server.memory_info().rss / 1e6
        labels = []
        for system in SYSTEMS:
            labels += [
                kcbert.first_answer(base + system, body, 60, settings.home / "serve.log", child)["predictions"][0]["label"]
                for body in bodies
            ]
        return seconds, memory, labels, server.memory_info().rss / 1e6


def measure_torch(fp32: Path, texts: list[str]) -> tuple[float, float, list[str]]:
    started = time.perf_counter()
    command = [sys.executable, str(Path(__file__).with_name("_torch_server.py")), *[str(fp32)] * 3]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None

        def ask(number: int, text: str) -> str:
            child.stdin.write(json.dumps([number, text]) + "\n")  # type: ignore[union-attr]
            child.stdin.flush()  # type: ignore[union-attr]
            return str(json.loads(child.stdout.readline())["label"])  # type: ignore[union-attr]

        for number in range(3):
            ask(number, texts[0])
        seconds = time.perf_counter() - started
        labels = [ask(number, text) for number in range(3) for text in texts]
        memory = psutil.Process(child.pid).memory_info().rss / 1e6
        child.stdin.close()
    return seconds, memory, labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    load = pressure()
    bundle = kcbert.build(kcbert.models_folder() / "kcbert")
    texts = kcbert.reviews(20 if quick else 100)
    with kcbert.workplace() as folder, kcbert.platform(folder) as settings:
        for system in SYSTEMS:
            world = kcbert.world(settings, system)
            version = world.registered("v1", folder=kcbert.variant(bundle, folder / system, system)).receipt.version
            world.registrar().produce(version=version, reason="benchmark")
            world.engine.dispose()
        first_start = measure_ours(settings, texts[:1])[0]
        ours, torch = [], []
        for _ in range(1 if quick else 3):
            ours.append(measure_ours(settings, texts))
            torch.append(measure_torch(bundle.parent / "fp32", texts))
            equal = sum(a == b for a, b in zip(ours[-1][2], torch[-1][2], strict=True)) / len(ours[-1][2])
            assert equal >= 0.95, f"{equal:.1%} of the labels are equal"  # random weights put many texts on the border
            here, there = ours[-1], torch[-1]
            print(
                f"ours {here[0]:.2f} s, {here[1]:.0f} MB, {here[3]:.0f} MB after all texts; torch fp32 {there[0]:.2f} s, {there[1]:.0f} MB",
                flush=True,
            )
    memory, seconds = kcbert.median([o[1] for o in ours]), kcbert.median([o[0] for o in ours])
    peer_memory, peer_seconds = kcbert.median([t[1] for t in torch]), kcbert.median([t[0] for t in torch])
    more = {
        "rss_mb": round(memory),
        "rss_goal_mb": GOAL_MB,
        f"rss_mb_after_{len(texts)}_texts_each": round(kcbert.median([o[3] for o in ours])),
        "first_answers_s": round(seconds, 2),
        "first_answers_goal_s": GOAL_SECONDS,
        "first_start_s": round(first_start, 2),
        "peer_rss_mb": round(peer_memory),
        "peer_first_answers_s": round(peer_seconds, 2),
        "met": memory <= GOAL_MB and seconds <= GOAL_SECONDS,
    }
    report("serving_memory", 3000 / memory, 3000 / peer_memory, GOAL_RATIO, load=load, unit="models per GB", **more)


if __name__ == "__main__":
    main()
