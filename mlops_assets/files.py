"""People's files before anybody reads them: which file of a version a path in an index means, and what is only a pointer to a file.

Belongs here: the rules that every reader shares, over names and first bytes. Does not belong here: what a file holds (the systems).
"""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mlops_assets.lifecycle.dataset import Entry

#: The reason code of a pointer, in every system, and what it means.
LFS_POINTER: Final = "lfs_pointer"
LFS_REASON: Final = "a pointer of Git LFS and not the file itself: run `git lfs pull` where it comes from and land it as a new version"
#: The specification allows no longer one.
MAX_POINTER_BYTES: Final = 1024
_POINTER: Final = re.compile(rb"\A(?:\xef\xbb\xbf)?\s*version https?://(?:git-lfs\.github\.com|hawser\.github\.com|git-media\.io)/\S+\s")

OUTSIDE: Final = "outside_dataset"
MISSING: Final = "missing_file"
AMBIGUOUS: Final = "ambiguous_file"
#: The reasons of `Paths.find`, for rows of an index.
PATH_REASONS: Final = {
    OUTSIDE: "an item of an index whose path is empty or leads out of the data set: a drive, an address, a root, or `..`",
    MISSING: "an item of an index whose path names no file of the version",
    AMBIGUOUS: "an item of an index whose path may mean either of two files that differ: rename one of them",
}


def is_lfs_pointer(start: bytes) -> bool:
    """Whether a file that begins so (its first line is enough) is a pointer that Git LFS left in place of the file."""
    return _POINTER.match(start[:MAX_POINTER_BYTES]) is not None


#: Of one index: a value of two bytes in JSON takes a hundred in memory, and an item that is none still becomes a row.
MAX_INDEX_VALUES: Final = 4_000_000


def too_many_values(data: bytes) -> str | None:
    """Why an index (JSON, lines of it, CSV) would take far more memory than its size says; None: it would not."""
    values = sum(map(data.count, (b",", b"{", b"[", b"\n")))
    return f"about {values} values, the limit is {MAX_INDEX_VALUES}: split it into several" if values > MAX_INDEX_VALUES else None


def normal_path(given: str) -> str | None:
    """A path as one writes it: slashes, composed Hangul, no `.` and no doubled slash. None: it leads out of the data set.

    Tools on Windows write backslashes. A data set names its own files: neither a drive, nor an address, nor a way up, nor a root.
    """
    path = unicodedata.normalize("NFC", given).replace("\\", "/")
    if not path.strip() or re.search(r"[\x00-\x1f]", path) or path.startswith("/") or ".." in path.split("/"):
        return None
    if re.match(r"[A-Za-z]:|[A-Za-z][A-Za-z0-9+.-]+:/", path.lstrip()):
        return None
    return posixpath.normpath(path)


def _alike(path: str) -> str:
    """What two paths have in common that Windows and macOS take for one."""
    return "/".join(part.strip() for part in path.casefold().split("/"))


class Paths:
    """Which of a version's files a path in one of its indexes means."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        """`entries`: the newest version last, where one extends another."""
        self._exact: dict[str, dict[str, list[Entry]]] = {}
        self._alike: dict[str, dict[str, list[Entry]]] = {}
        for entry in entries:
            path = normal_path(entry.path) or entry.path
            for of, name in ((self._exact, path), (self._alike, _alike(path))):
                of.setdefault(entry.from_version, {}).setdefault(name, []).append(entry)

    def find(self, index: Entry, given: str, *, beside_only: bool = False) -> Entry | tuple[str, str]:
        """The file, or the code of PATH_REASONS and what was seen.

        A path is from the folder of the index or from the version's root; one that differs in case alone counts when no other fits. The
        index's own version goes before those that it extends.

        Args:
            beside_only: neither from the root nor in another version.
        """
        path = normal_path(given)
        if path is None:
            return OUTSIDE, given
        beside = posixpath.normpath(posixpath.join(posixpath.dirname(normal_path(index.path) or index.path), path))
        names = [beside] if beside_only else list(dict.fromkeys((path, beside)))
        own = index.from_version
        for version in [own] if beside_only else [own, *(other for other in reversed(list(self._exact)) if other != own)]:
            exact, alike = self._exact.get(version, {}), self._alike.get(version, {})
            for found in ([e for n in names for e in exact.get(n, [])], [e for n in names for e in alike.get(_alike(n), [])]):
                if len({entry.sha256 for entry in found}) > 1:
                    return AMBIGUOUS, f"{given}: {' or '.join(sorted(entry.path for entry in found)[:3])}"
                if found:
                    return found[0]
        return MISSING, given
