"""Time from a rollback's commit in the ledger until its answers are served, the previous champion resident. Peer: none resident."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import _kcbert as kcbert
from _common import pressure, report

GOAL_SECONDS = 1.0


def measure(settings: Any, world: Any, rounds: int) -> list[float]:
    """Seconds of each rollback, sorted; the two versions take turns."""
    body = json.dumps({"inputs": ["다시 보고 싶은 영화"]}).encode()
    url = f"http://127.0.0.1:{settings.serve_port}/predict/sentiment"
    log = settings.home / "serve.log"
    found = []
    with kcbert.our_server(settings) as child:
        now = kcbert.first_answer(url, body, 180, log, child)["version"]
        for number in range(rounds + 1):
            target = world.registrar().rollback(reason="benchmark", to=3 - now).version
            committed = time.perf_counter()
            while now != target:
                now = kcbert.first_answer(url, body, 60, log, child)["version"]
            if number:  # the first one waits for the former champion to become resident again
                found.append(time.perf_counter() - committed)
    return sorted(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    load = pressure()
    bundle = kcbert.build(kcbert.models_folder() / "kcbert")
    with kcbert.workplace() as folder, kcbert.platform(folder) as settings:
        world = kcbert.world(settings)
        for temperature in (1.0, 2.0):
            made = kcbert.variant(bundle, folder / str(temperature), temperature=temperature)
            version = world.registered("v1", folder=made).receipt.version
            world.registrar().produce(version=version, reason="benchmark")
        resident = measure(settings, world, 20 if quick else 200)
        reloading = measure(settings.model_copy(update={"resident_previous": 0}), world, 3 if quick else 10)
        world.engine.dispose()
    p99 = resident[min(len(resident) - 1, int(len(resident) * 0.99))]
    peer = reloading[len(reloading) // 2]
    more = {
        "p99_s": round(p99, 3),
        "p99_goal_s": GOAL_SECONDS,
        "median_s": round(resident[len(resident) // 2], 3),
        "met": p99 < GOAL_SECONDS,
    }
    report("rollback", 1 / p99, 1 / peer, 1.0, load=load, unit="1 / s", rounds=len(resident), peer_median_s=round(peer, 2), **more)


if __name__ == "__main__":
    main()
