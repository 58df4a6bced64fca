"""What every benchmark shares: interleaving two sides, noticing other load, and the one JSON line at the end."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: `some avg10` of /proc/pressure/cpu, in percent, above which other work on the machine makes a figure noisy.
NOISY_PRESSURE = 10.0


def pressure() -> float:
    """Percent of the last ten seconds in which something waited for a processor; 0 where the kernel does not say."""
    try:
        line = Path("/proc/pressure/cpu").read_text(encoding="ascii").splitlines()[0]
    except OSError:
        return 0.0
    return float(line.split("avg10=")[1].split()[0])


def timed(work: Callable[[], Any]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def interleave(ours: Callable[[], float], peer: Callable[[], float], rounds: int) -> tuple[float, float]:
    """Medians of the figures of the two sides, measured in turn so that a drift of the machine meets both."""
    pairs = [(ours(), peer()) if i % 2 == 0 else (peer(), ours())[::-1] for i in range(rounds)]
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)


def report(name: str, ours: float, peer: float, goal: float, *, load: float | None = None, **more: Any) -> None:
    """Print the benchmark's last line. `ours` and `peer` are rates: the ratio is ours / peer.

    Args:
        load: pressure() taken before the benchmark loaded the machine itself.
    """
    noisy = (load if load is not None else 0.0) > NOISY_PRESSURE
    line = {"name": name, "ours": round(ours, 4), "peer": round(peer, 4), "ratio": round(ours / peer, 4), "goal": goal, **more}
    print(json.dumps(line | ({"noisy": True} if noisy else {}), ensure_ascii=False))
