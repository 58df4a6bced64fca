"""Names that become folders and keys: one rule each, asked wherever a name that was stored elsewhere (a row, a file) becomes a path.

Whoever can insert a row can write any text into it; the database has the same rules as constraints (schema 0015).
Belongs here: the rules. Does not belong here: what a name means.
"""

from __future__ import annotations

import re
from typing import Final

SYSTEM: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")
VERSION: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
DIGEST: Final = re.compile(r"[0-9a-f]{64}")


class BadName(ValueError):
    """A stored name that nothing of the platform writes. It is never made part of a path."""


def is_system(name: str) -> bool:
    return SYSTEM.fullmatch(name) is not None


def is_version(name: str) -> bool:
    return VERSION.fullmatch(name) is not None and ".." not in name


def system(name: str) -> str:
    """`name`, if it may name a system. Raises BadName."""
    if not is_system(name):
        raise BadName(f"{name!r} cannot name a system: 1 to 63 of a-z 0-9 _ - beginning with a letter")
    return name


def version(name: str) -> str:
    """`name`, if it may name a dataset version. Raises BadName."""
    if not is_version(name):
        raise BadName(f"{name!r} cannot name a dataset version: 1 to 63 of a-z 0-9 . _ - beginning with a letter or digit, without `..`")
    return name


def digest(value: str) -> str:
    """`value`, if it is a SHA-256 in hexadecimal digits. Raises BadName."""
    if DIGEST.fullmatch(value) is None:
        raise BadName(f"{value[:80]!r} is no SHA-256")
    return value
