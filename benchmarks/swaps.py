"""50 swaps under the closed-loop load of 8 clients: no request fails, no answer names another version than gave it, p99 at most twice.

Four versions take turns with one former champion resident, so that every swap really fetches, tries and loads a KcBERT-base-sized model.
Each version has a temperature of its own: the probabilities of an answer show which one gave it. Peer: the same server without swaps.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from typing import Any

import _kcbert as kcbert
from _common import pressure, report

GOAL = 0.5  # p99 while steady / p99 while swapping
TEMPERATURES = [1.0, 2.0, 3.0, 4.0]
TEXT_COUNT = 200


def wrong_answers(answers: list[bytes], reference: dict[str, list[float]], versions: dict[int, float]) -> int:
    """Answers whose probabilities are nearer to those of another version than to those of the one they name."""
    import math

    wrong = 0
    for raw in answers:
        head, content = raw.split(b"\r\n\r\n", 1)
        body = json.loads(content)
        header = int(dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])[b"x-model-version"])
        answer = body["predictions"][0]
        logit = reference[answer["text"]][1] - reference[answer["text"]][0]
        said = answer["probs"]["긍정"]
        nearest = min(versions, key=lambda v: abs(said - 1 / (1 + math.exp(-logit / versions[v]))))
        clear = abs(logit) > 1.0  # near one half all temperatures answer alike
        wrong += header != body["version"] or (clear and nearest != body["version"])
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="8 swaps")
    quick = parser.parse_args().quick
    swaps, steady_seconds = (8, 5.0) if quick else (50, 30.0)
    load = pressure()
    bundle = kcbert.build(kcbert.models_folder() / "kcbert")
    texts = kcbert.reviews(TEXT_COUNT)
    bodies = [json.dumps({"inputs": [text]}).encode() for text in texts]
    from mlops_assets.kinds.text.predict import load_text_predictor

    reference = {text: row.tolist() for text, row in zip(texts, load_text_predictor(bundle, 2).predict_logits(texts), strict=True)}
    with kcbert.workplace() as folder, kcbert.platform(folder) as settings:
        world = kcbert.world(settings)
        versions: dict[int, float] = {}
        for t in TEMPERATURES:
            made = kcbert.variant(bundle, folder / f"t{t}", temperature=t)
            versions[world.registered("v1", folder=made).receipt.version] = t
        world.registrar().produce(version=1, reason="first")
        path, port = "/predict/sentiment", settings.serve_port
        with kcbert.our_server(settings) as child:
            kcbert.first_answer(f"http://127.0.0.1:{port}{path}", bodies[0], 180, settings.home / "serve.log", child)
            kcbert.clients(port, path, bodies, seconds=2.0)
            steady = kcbert.clients(port, path, bodies, seconds=steady_seconds / 2)
            done: dict[str, Any] = {"swaps": 0}

            def swap() -> None:
                for number in range(1, swaps + 1):
                    version = 1 + number % len(TEMPERATURES)
                    world.registrar().produce(version=version, reason="swap")
                    while served(port) != version:
                        time.sleep(0.05)
                    done["swaps"] = number

            swapper = threading.Thread(target=swap, daemon=True)
            swapper.start()
            under: list[kcbert.Load] = []
            while swapper.is_alive():
                under.append(kcbert.clients(port, path, bodies, seconds=2.0, keep=True))
            steady_after = kcbert.clients(port, path, bodies, seconds=steady_seconds / 2)
        world.engine.dispose()
    latencies = [x for one in under for x in one.latencies]
    swapping = kcbert.Load(1.0, latencies, [], []).percentile(99)
    calm = kcbert.Load(1.0, steady.latencies + steady_after.latencies, [], []).percentile(99)
    failed = sum(len(one.bad) for one in under)
    wrong = sum(wrong_answers(one.answers, reference, versions) for one in under)
    named = {json.loads(raw.split(b"\r\n\r\n", 1)[1])["version"] for one in under for raw in one.answers}
    assert done["swaps"] == swaps
    assert len(named) == len(TEMPERATURES), f"only versions {named} answered"
    assert failed == 0, f"{failed} requests failed"
    assert wrong == 0, f"{wrong} answers name the wrong version"
    more = {"swaps": swaps, "requests": len(latencies), "failed": failed, "wrong_version": wrong}
    more |= {"p99_swapping_ms": round(swapping, 1), "p99_steady_ms": round(calm, 1)}
    report("swaps", 1000 / swapping, 1000 / calm, GOAL, load=load, unit="1 / p99 s", **more)


def served(port: int) -> int | None:
    import urllib.request

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/models/sentiment", timeout=60) as answer:
        serving = json.loads(answer.read())["serving"]
    return serving["version"] if serving else None


if __name__ == "__main__":
    main()
