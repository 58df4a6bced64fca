"""The account of labelled pictures, the same in every system of pictures: each row stays or has a reason, each file is used or refused.

Belongs here: what does not depend on what a picture shows. Does not belong here: rules and tables (the systems' `data.py`), which pictures
are alike (`likeness.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mlops_assets import crash
from mlops_assets.ingest.rows import Rejected, find_cleaned, mark_files, quarantined_count, replace_quarantine
from mlops_assets.lifecycle import dataset

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from mlops_assets.lifecycle.dataset import Entry, Manifest, PublishedTable
    from mlops_assets.store import ObjectStore


class Row(Protocol):
    """One claim that a picture has a label. `entry`: its own file, if it has one; `rejected`: the first reason against it."""

    @property
    def source(self) -> str: ...
    @property
    def line(self) -> int: ...
    @property
    def entry(self) -> Entry | None: ...
    @property
    def rejected(self) -> Rejected | None: ...


class Scanned(Protocol):
    """The rows of a version and the files turned away as a whole: source -> (file, why)."""

    @property
    def rows(self) -> Sequence[Row]: ...
    @property
    def refused(self) -> Mapping[str, tuple[Entry, Rejected]]: ...

    def files(self) -> dict[str, int]:
        """How many files are what; together they are all files of the manifest."""

    def holders(self) -> set[str]:
        """Keys of the files that hold rows: used, whatever becomes of their rows, and even if a row names one as its picture."""


def quarantined(rows: Iterable[Row]) -> Counter[str]:
    """Reason code -> rows."""
    return Counter(row.rejected.code for row in rows if row.rejected is not None)


def check_account(manifest: Manifest, scanned: Scanned, accepted: int) -> None:
    """Every row stays or has a reason, and every file of the manifest holds rows, is a picture, or is refused.

    Raises:
        DatasetError: they do not add up.
    """
    turned_away = sum(quarantined(scanned.rows).values())
    files = sum(scanned.files().values())
    if len(scanned.rows) != accepted + turned_away or files != len(manifest.entries):
        raise dataset.DatasetError(
            f"{manifest.version}: {len(scanned.rows)} rows in, {accepted} accepted and {turned_away} quarantined of "
            f"{files} of {len(manifest.entries)} files do not add up: this is a defect of the cleaning, no table is written"
        )


def is_complete(engine: Engine, store: ObjectStore, table: PublishedTable) -> bool:
    """Both outputs are there: every part with its bytes, and the quarantined rows in the database."""
    quarantined = quarantined_count(engine, table.system, table.version)
    return quarantined == sum(table.body["quarantined"].values()) and dataset.is_whole(store, table)


def why_nothing(scanned: Scanned) -> str:
    """The most frequent reasons, rows and files."""
    why = quarantined(scanned.rows) + Counter(f"{what.code} (file)" for _, what in scanned.refused.values())
    return ", ".join(f"{count} {code}" for code, count in why.most_common(4)) or "none quarantined"


def store_rows(
    engine: Engine, manifest: Manifest, scanned: Scanned, means: Mapping[str, str], files_mean: Mapping[str, str], *, refusal: str | None
) -> None:
    """Quarantined rows, the files' states and the version's change together, in one transaction.

    Args:
        means, files_mean: reason code of a row, of a file -> what it means.
    """
    with engine.begin() as connection:
        turned_away = ((row.source, row.line, row.rejected.code, row.rejected.excerpt) for row in scanned.rows if row.rejected is not None)
        replace_quarantine(connection, manifest, turned_away)
        mark_files(connection, manifest, _unused(scanned, means, files_mean))
        dataset.refuse(connection, manifest.system, manifest.version, refusal)
        crash.reach("cleaned.before_commit")


def _unused(scanned: Scanned, means: Mapping[str, str], files_mean: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Key -> (code, reason) of the files of which nothing is used, each with its first reason."""
    found = {entry.key: (what.code, f"{files_mean[what.code]} ({what.excerpt})") for entry, what in scanned.refused.values()}
    used = scanned.holders()
    for row in scanned.rows:
        if row.entry is not None and row.rejected is not None:
            found.setdefault(row.entry.key, (row.rejected.code, f"{means[row.rejected.code]} ({row.rejected.excerpt})"))
        elif row.entry is not None:
            used.add(row.entry.key)
    return {key: why for key, why in found.items() if key not in used}


@dataclass(frozen=True)
class Account:
    """Rows in, accepted and quarantined, and files: each read where it is kept."""

    rows_in: int
    accepted: int
    quarantined: int
    files: Mapping[str, int]
    frozen: int

    @property
    def adds_up(self) -> bool:
        return self.rows_in == self.accepted + self.quarantined and sum(self.files.values()) == self.frozen

    @property
    def sentence(self) -> str:
        rows = "=" if self.rows_in == self.accepted + self.quarantined else "≠"
        files = "=" if sum(self.files.values()) == self.frozen else "≠"
        kinds = " + ".join(f"{count} {kind}" for kind, count in self.files.items())
        return (
            f"{self.rows_in} rows in {rows} {self.accepted} accepted + {self.quarantined} quarantined; {self.frozen} files {files} {kinds}"
        )


def account(engine: Engine, store: ObjectStore, system: str, version: str) -> Account:
    """The account of a cleaned version, from the manifest, the published table and the database.

    Raises:
        DatasetError: it is not cleaned.
    """
    manifest, table = find_cleaned(engine, store, system, version)
    turned_away = quarantined_count(engine, system, version)
    return Account(table.body["rows_in"], table.rows, turned_away, table.body["files"], len(manifest.entries))
