"""`make bench`: runs every script of this folder and writes their last lines as a table to benchmarks/RESULTS.md.

A figure that is not measured anew keeps its row, with the day, the commit and the processor of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlops_assets.settings import git_commit

HERE = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="each ends within a minute")
    parser.add_argument("names", nargs="*", help="only these, such as `orchestration`")
    given = parser.parse_args()
    scripts = sorted(p for p in HERE.glob("*.py") if not p.name.startswith("_") and p != Path(__file__))
    figures, failed = [], []
    for script in scripts:
        if given.names and script.stem not in given.names:
            continue
        print(f"--- {script.stem}", flush=True)
        figure = run(script, quick=given.quick)
        (figures if figure else failed).append(figure or script.stem)
    write([row(figure, quick=given.quick) for figure in figures])
    if failed:
        print(f"failed: {', '.join(failed)}")
    return int(bool(failed))


def run(script: Path, *, quick: bool) -> dict[str, Any] | None:
    """The script's JSON line, or None when it failed; its other lines are shown."""
    command = [sys.executable, str(script), *(["--quick"] if quick else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=HERE.parent)
    print(done.stdout, flush=True)
    lines = done.stdout.strip().splitlines()
    try:
        return dict(json.loads(lines[-1])) if done.returncode == 0 and lines else None
    except ValueError:
        return None


def processor() -> str:
    """What decides most figures: the processor, and which instructions for int8 and bf16 it has."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
    has = [flag for flag in wanted if flag in fields.get("flags", "").split()]
    return f"{fields.get('model name', platform.machine())} ({', '.join(has)}), {os.cpu_count()} processors"


def row(f: dict[str, Any], *, quick: bool) -> str:
    shown = ("name", "ours", "peer", "ratio", "goal", "noisy")
    more = [*(["noisy machine"] if f.get("noisy") else []), *(f"{name} {value}" for name, value in f.items() if name not in shown)]
    measured = f"{datetime.now(UTC):%F}, `{git_commit()[:7]}`, {processor()}" + (", quick" if quick else "")
    return f"| {f['name']} | {f['ours']:g} | {f['peer']:g} | {f['ratio']:g} | {f['goal']:g} | {', '.join(more)} | {measured} |"


HEAD = (
    "# Figures",
    "",
    "Each ratio is ours over a named peer in the same run; see the script of that name.",
    "",
    "| figure | ours | peer | ratio | goal | more | measured |",
    "|---|---|---|---|---|---|---|",
)


def write(rows: list[str]) -> None:
    """The table, `rows` in place of those of the same name."""
    path = HERE / "RESULTS.md"
    before = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("| ")] if path.exists() else []
    by_name = {line.split(" | ")[0]: line for line in [*before, *rows] if line != HEAD[4]}
    path.write_text("\n".join([*HEAD, *sorted(by_name.values()), ""]), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
