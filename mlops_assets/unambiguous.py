"""What can be read in two ways is refused, and both are named: columns of a header, names in JSON.

Belongs here: what every reader of tables asks. Does not belong here: files, reason codes (the systems' `data.py`), YAML (`settings.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from mlops_assets.characters import same_name


class Ambiguous(ValueError):
    """It can be read in two ways. The message names both."""


def named_twice(names: Iterable[str], what: str = "columns") -> str | None:
    """A sentence about names that a reader takes for one (spaces, case, form and invisible characters make no other), or None.

    Args:
        what: they are the names of.
    """
    first: dict[str, tuple[int, str]] = {}
    for number, name in enumerate(names, start=1):
        before = first.setdefault(same_name(name), (number, name))
        if before[0] != number:
            return f"{what} {before[0]} and {number} have one name: {before[1][:80]!r} and {name[:80]!r}. Rename or remove one."
    return None


def loads(text: str | bytes) -> Any:
    """JSON, as `json.loads` reads it.

    Raises:
        ValueError, RecursionError: it is none.
        Ambiguous (a ValueError): an object has a name twice.
    """
    return json.loads(text, object_pairs_hook=_refused)


def loads_each(text: str | bytes) -> Any:
    """As `loads`, but in the place of an object that has a name twice stands the Ambiguous: of a list, the other items can be used."""
    return json.loads(text, object_pairs_hook=_marked)


def _refused(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    made = _marked(pairs)
    if isinstance(made, Ambiguous):
        raise made
    return made


def _marked(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any] | Ambiguous:
    made = dict(pairs)
    if len(pairs) > 1 and (len(made) < len(pairs) or len({same_name(name) for name, _ in pairs}) < len(pairs)):
        return Ambiguous(str(named_twice((name for name, _ in pairs), "entries")))
    return made
