"""Mutants of what decides about production, and the tests that notice them: gate, registrar, promotion, signing, ledger, retention.

A mutant is one change of one place: a comparison, a connective, a number, a statement left out, a word of an SQL statement. Sentences for
people are not changed. Each mutant lives in a fork of this process, as the module that its tests import; no file is changed.
Run: python benchmarks/mutants.py [MODULE ...] [--sample N] [--jobs N]
"""

from __future__ import annotations

import argparse
import ast
import importlib.abc
import importlib.util
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
LIFECYCLE, FAULTS = "mlops_assets_tests/lifecycle", "mlops_assets_tests/faults"
#: Module -> the test files that are asked, the quickest first.
TESTS = {
    "gate": [f"{LIFECYCLE}/test_gate.py"],
    "registrar": [
        f"{LIFECYCLE}/test_registrar.py",
        f"{FAULTS}/test_holdouts.py",
        f"{FAULTS}/test_forged_rows.py",
        f"{FAULTS}/test_retried_run.py",
        f"{LIFECYCLE}/test_clients.py",
        f"{LIFECYCLE}/test_history.py",
    ],
    "promotion": [
        f"{LIFECYCLE}/test_registrar.py",
        f"{FAULTS}/test_forged_rows.py",
        f"{LIFECYCLE}/test_history.py",
        f"{LIFECYCLE}/test_upgrade.py",
    ],
    "signing": [f"{FAULTS}/test_mounted_key.py", f"{LIFECYCLE}/test_registrar.py", f"{FAULTS}/test_forged_rows.py"],
    "ledger": [
        f"{FAULTS}/test_forged_rows.py",
        f"{LIFECYCLE}/test_registrar.py",
        f"{LIFECYCLE}/test_upgrade.py",
        f"{LIFECYCLE}/test_assets.py",
    ],
    "retention": [f"{LIFECYCLE}/test_registrar.py", f"{FAULTS}/test_forged_rows.py", f"{LIFECYCLE}/test_clients.py"],
}
#: A mutant whose tests take longer than this hangs, and is noticed.
SECONDS = 300
COMPARED: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
CALCULATED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
SQL = re.compile(r"\b(SELECT|INSERT|UPDATE|DELETE|WHERE|ORDER BY|RETURNING)\b")
WORDS = [
    (r"\bDESC\b", "ASC"),
    (r"\bAND\b", "OR"),
    (r"\bOR\b", "AND"),
    (r"\bIS NOT NULL\b", "IS NULL"),
    (r"\bIS NULL\b", "IS NOT NULL"),
    (r"<=", "<"),
    (r"(?<![<>])>(?!=)", ">="),
    (r"(?<![<>])<(?![=>])", "<="),
    (r"\bcount\(", "1 + count("),
    (r"ORDER BY \w+$", ""),
]


@dataclass(frozen=True)
class Mutant:
    line: int
    change: str
    source: str


def mutants(source: str) -> list[Mutant]:
    """Every mutant of a module's functions, by lines."""
    found: dict[tuple[int, str, str], Mutant] = {}
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef):
            defaults = [node for node in (*function.args.defaults, *function.args.kw_defaults) if node is not None]
            for node in _nodes([*function.body, *defaults]):
                for instead in changes(node):
                    mutant = _replaced(source, node, instead)
                    found.setdefault((mutant.line, mutant.change, mutant.source), mutant)
    return sorted(found.values(), key=lambda mutant: mutant.line)


def _nodes(nodes: list[Any]) -> Iterator[ast.AST]:
    """The nodes below, but for those of f-strings, whose places Python 3.11 does not know, and of annotations."""
    for node in nodes:
        if isinstance(node, ast.JoinedStr | ast.FunctionDef):
            continue
        yield node
        yield from _nodes([child for child in ast.iter_child_nodes(node) if child is not getattr(node, "annotation", None)])


def changes(node: ast.AST) -> Iterator[str]:
    """What may stand in the place of a node."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        for other in COMPARED[type(node.ops[0])]:
            yield f"({ast.unparse(ast.Compare(node.left, [other()], node.comparators))})"
    elif isinstance(node, ast.BoolOp):
        other_op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield f"({ast.unparse(ast.BoolOp(other_op, node.values))})"
        for number in range(len(node.values)):
            rest = [value for at, value in enumerate(node.values) if at != number]
            yield f"({ast.unparse(ast.BoolOp(node.op, rest) if len(rest) > 1 else rest[0])})"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield f"({ast.unparse(node.operand)})"
    elif isinstance(node, ast.BinOp) and type(node.op) in CALCULATED and not _is_text(node):
        yield f"({ast.unparse(ast.BinOp(node.left, CALCULATED[type(node.op)](), node.right))})"
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield str(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield str(node.value + 1)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and SQL.search(node.value):
        yield from (repr(changed) for changed in _sql(node.value))
    elif isinstance(node, ast.IfExp):
        yield from (f"({ast.unparse(part)})" for part in (node.body, node.orelse))
    elif isinstance(node, ast.If | ast.While):
        pass  # its condition is changed
    elif isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield "return None"
    elif isinstance(node, ast.Continue | ast.Break | ast.Raise) or _is_call(node):
        yield "pass"


def _is_call(node: ast.AST) -> bool:
    """Whether it is a statement that calls something, but for the tests' own door, which does nothing otherwise."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and not ast.unparse(node).startswith("crash.reach(")


def _sql(statement: str) -> Iterator[str]:
    for word, instead in WORDS:
        for match in re.finditer(word, statement):
            yield statement[: match.start()] + instead + statement[match.end() :]


def _is_text(node: ast.BinOp) -> bool:
    return any(
        isinstance(side, ast.JoinedStr) or (isinstance(side, ast.Constant) and isinstance(side.value, str))
        for side in (node.left, node.right)
    )


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _replaced(source: str, node: Any, instead: str) -> Mutant:
    lines = source.encode().splitlines(keepends=True)
    begin = sum(map(len, lines[: node.lineno - 1])) + node.col_offset
    end = sum(map(len, lines[: node.end_lineno - 1])) + node.end_col_offset
    whole = b"".join(lines)
    before = " ".join(whole[begin:end].decode().split())
    return Mutant(node.lineno, f"{before[:90]} -> {instead[:90]}", (whole[:begin] + instead.encode() + whole[end:]).decode())


class _Loader(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports `name` from a mutant's source."""

    def __init__(self, name: str, path: Path, source: str) -> None:
        self.name, self.path, self.source = name, path, source

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def create_module(self, spec: Any) -> None:
        return None

    def exec_module(self, module: Any) -> None:
        exec(compile(self.source, self.path, "exec"), module.__dict__)


def tested(module: str, mutant: Mutant, output: Path) -> int:
    """Fork a process that runs the module's tests on the mutant; its pid. It ends with 0 when no test fails."""
    pid = os.fork()
    if pid:
        return pid
    code = 3
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        signal.alarm(SECONDS)
        path = ROOT / "mlops_assets" / "lifecycle" / f"{module}.py"
        sys.meta_path.insert(0, _Loader(f"mlops_assets.lifecycle.{module}", path, mutant.source))
        import pytest

        code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *TESTS[module]]))
    finally:
        os._exit(code)


def preload() -> None:
    """Import what is slow to import, and nothing of ours, which a mutant must be imported before."""
    import alembic  # noqa: F401
    import dagster  # noqa: F401
    import nacl.signing  # noqa: F401
    import pandas  # noqa: F401
    import pyarrow  # noqa: F401
    import pytest  # noqa: F401
    import sqlalchemy  # noqa: F401


def control(module: str, folder: Path) -> None:
    """Run the tests on the module as it is: where they fail, they say nothing of a mutant."""
    source = (ROOT / "mlops_assets" / "lifecycle" / f"{module}.py").read_text(encoding="utf-8")
    _, status = os.waitpid(tested(module, Mutant(0, "none", source), folder / "control.txt"), 0)
    assert status == 0, (folder / "control.txt").read_text()


def survivors_of(module: str, chosen: list[Mutant], jobs: int, folder: Path) -> list[Mutant]:
    """Run them, `jobs` at a time; the survivors."""
    survivors: list[Mutant] = []
    running: dict[int, Mutant] = {}
    waiting = list(chosen)
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop(0)
            running[tested(module, mutant, folder / f"{module}-{len(waiting)}.txt")] = mutant
        pid, status = os.wait()
        mutant = running.pop(pid)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            survivors.append(mutant)
            print(f"survived {module}.py:{mutant.line}: {mutant.change}", flush=True)
    return survivors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", choices=[*TESTS, []], default=list(TESTS))
    parser.add_argument("--sample", type=int, help="so many of each module, chosen by a seed; default: all")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    os.chdir(ROOT)
    preload()
    from mlops_assets_tests import postgres_server

    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, postgres_server.running() as url:
        os.environ["TESTS_POSTGRES_URL"] = url
        early = [name for name in sys.modules if name.startswith("mlops_assets.lifecycle.")]
        assert not early, f"imported before its mutants: {early}"
        for module in arguments.modules:
            found = mutants((ROOT / "mlops_assets" / "lifecycle" / f"{module}.py").read_text(encoding="utf-8"))
            chosen = found
            if arguments.sample is not None and arguments.sample < len(found):
                chosen = sorted(random.Random(14).sample(found, arguments.sample), key=lambda mutant: mutant.line)
            started = time.perf_counter()
            control(module, Path(folder))
            survivors = survivors_of(module, chosen, arguments.jobs, Path(folder))
            killed = len(chosen) - len(survivors)
            line = {
                "name": f"mutants of {module}",
                "ours": killed,
                "peer": len(chosen),
                "ratio": round(killed / len(chosen), 4),
                "goal": 0.85,
            }
            print(json.dumps(line | {"of": len(found), "minutes": round((time.perf_counter() - started) / 60, 1)}), flush=True)


if __name__ == "__main__":
    main()
