"""Which files of this package decide what a module does, read from its imports: nobody keeps a list of them.

Belongs here: following imports without importing anything. Does not belong here: what a version is used for.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import resolve_name
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent


def code_version(*modules: str, root: Path = ROOT) -> str:
    """Changes when, and only when, the text of one of `modules` does, or of a module of ours that they import, however far down."""
    digest = hashlib.sha256()
    for path in imported(*modules, root=root):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def imported(*modules: str, root: Path = ROOT) -> list[Path]:
    """The files of `modules` and of all modules of their package that they import, in functions too, sorted.

    What is imported for type checkers alone does not count; neither does a package's `__init__` when one of its modules is meant. What is
    imported by a name that is put together while the program runs cannot be seen: give it as one of `modules`.

    Raises:
        ModuleNotFoundError: one of `modules` is no module below `root`.
    """
    packages = {name.partition(".")[0] for name in modules}
    found: dict[str, Path] = {}
    left = list(modules)
    while left:
        name = left.pop()
        if name in found:
            continue
        path = _file(name, root)
        if path is None:
            raise ModuleNotFoundError(f"{name} is no module below {root}", name=name)
        found[name] = path
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for module, member in _imports(path.read_bytes(), package):
            if module.partition(".")[0] in packages:
                inner = f"{module}.{member}" if member else module
                left.append(inner if _file(inner, root) else module)
    return sorted(found.values())


def _file(module: str, root: Path) -> Path | None:
    path = root.joinpath(*module.split("."))
    return next((file for file in (path.with_name(f"{path.name}.py"), path / "__init__.py") if file.is_file()), None)


@lru_cache(maxsize=1024)
def _imports(text: bytes, package: str) -> tuple[tuple[str, str], ...]:
    """(module, name taken from it or "") of every import statement in a module of `package`. Reading 15,000 lines takes 0.2 s, once."""
    return tuple(_statements(ast.parse(text).body, package))


def _statements(body: list[ast.stmt], package: str) -> Iterator[tuple[str, str]]:
    for statement in body:
        if isinstance(statement, ast.Import):
            yield from ((alias.name, "") for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            module = resolve_name("." * statement.level + (statement.module or ""), package)
            yield from ((module, alias.name) for alias in statement.names)
        elif isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            yield from _statements(statement.orelse, package)
        else:  # expressions hold no statements, so only the bodies of statements are entered
            for name in ("body", "orelse", "finalbody"):
                yield from _statements(getattr(statement, name, []), package)
            for part in (*getattr(statement, "handlers", ()), *getattr(statement, "cases", ())):
                yield from _statements(part.body, package)
