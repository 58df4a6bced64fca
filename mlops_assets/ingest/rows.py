"""What cleaning says of rows and files, the same in every system: turned away with a reason, kept where the tables are, and a contract.

Belongs here: what does not depend on what a row is. Does not belong here: rules (the systems' `data.py`), Dagster (`ingest/assets.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mlops_assets.database import copy_rows
from mlops_assets.lifecycle import dataset

if TYPE_CHECKING:
    import pandas as pd
    from pandera.pandas import DataFrameSchema
    from sqlalchemy import Connection, Engine

    from mlops_assets.lifecycle.dataset import Manifest, PublishedTable
    from mlops_assets.store import ObjectStore

SHOWN = 5
EXCERPT = 200


@dataclass(frozen=True)
class Rejected:
    """A row (or file) that is turned away: a code of the system's ROW_REASONS (FILE_REASONS) and what was seen."""

    code: str
    excerpt: str

    @classmethod
    def of(cls, code: str, seen: str) -> Rejected:
        """With what was seen as the database can keep it: short, no zero byte, no half of a surrogate pair (JSON may hold one)."""
        return cls(code, seen[:EXCERPT].replace("\x00", "\ufffd").encode("utf-8", "replace").decode())


def shown(value: object) -> str:
    """The beginning of a value as text, also of one that is nested more deeply than Python writes."""
    try:
        return str(value)[:EXCERPT]
    except RecursionError:
        return f"a {type(value).__name__} that is nested too deeply"


class Cleaned(Protocol):
    """What `clean` of a system returns, as far as all systems have it.

    Attributes:
        quarantined: reason code -> rows.
        splits: split -> rows.
        refused_files: source -> reason code.
        unchanged: the table was there already, made by the same rules.
    """

    @property
    def table(self) -> PublishedTable: ...
    @property
    def rows_in(self) -> int: ...
    @property
    def accepted(self) -> int: ...
    @property
    def quarantined(self) -> Mapping[str, int]: ...
    @property
    def splits(self) -> Mapping[str, int]: ...
    @property
    def refused_files(self) -> Mapping[str, str]: ...
    @property
    def unchanged(self) -> bool: ...


class Account(Protocol):
    """Rows in, accepted and quarantined, each read where it is kept."""

    @property
    def rows_in(self) -> int: ...
    @property
    def accepted(self) -> int: ...
    @property
    def quarantined(self) -> int: ...
    @property
    def adds_up(self) -> bool: ...
    @property
    def sentence(self) -> str: ...


# --- in the database ------------------------------------------------------------------------------------------------------------


def replace_quarantine(connection: Connection, manifest: Manifest, rows: Iterable[tuple[str, int, str, str]]) -> None:
    """The version's quarantined rows become `rows`: (source, line, reason code, excerpt)."""
    from sqlalchemy import text

    key = {"s": manifest.system, "v": manifest.version}
    connection.execute(text("DELETE FROM quarantined_row WHERE system = :s AND version = :v"), key)
    columns = ["system", "version", "source", "line", "reason_code", "excerpt"]
    stored = ((manifest.system, manifest.version, source, line, code, storable(said)) for source, line, code, said in rows)
    copy_rows(connection, "quarantined_row", columns, stored)


def storable(said: str) -> str:
    """What was seen, as PostgreSQL can hold it: without its zero characters and halves of surrogate pairs."""
    return said.encode("utf-8", "replace").decode().replace("\x00", "\ufffd")


def quarantined_count(engine: Engine, system: str, version: str) -> int:
    from sqlalchemy import text

    with engine.connect() as connection:
        query = text("SELECT count(*) FROM quarantined_row WHERE system = :s AND version = :v")
        return int(connection.execute(query, {"s": system, "v": version}).scalar_one())


def mark_files(connection: Connection, manifest: Manifest, unused: Mapping[str, tuple[str, str]]) -> None:
    """The version's own frozen files are accepted, but those of `unused` (key -> reason code and reason) quarantined; their bytes stay in
    the manifest. A changed configuration may use them after all, so this is judged anew each time."""
    from sqlalchemy import text

    connection.execute(text("CREATE TEMPORARY TABLE unused (key text, code text, reason text) ON COMMIT DROP"))
    copy_rows(connection, "unused", ["key", "code", "reason"], ((key, code, storable(reason)) for key, (code, reason) in unused.items()))
    connection.execute(
        text(
            "UPDATE landing_object o SET state = CASE WHEN n.code IS NULL THEN 'accepted' ELSE 'quarantined' END, "
            "reason_code = n.code, reason = n.reason "
            "FROM landing_object own LEFT JOIN unused n USING (key) "
            "WHERE own.system = :s AND own.version = :v AND own.sha256 IS NOT NULL AND (o.system, o.version, o.key, o.etag) = "
            "(own.system, own.version, own.key, own.etag) AND o.reason_code IS DISTINCT FROM n.code"
        ),
        {"s": manifest.system, "v": manifest.version},
    )


def find_cleaned(engine: Engine, store: ObjectStore, system: str, version: str) -> tuple[Manifest, PublishedTable]:
    """Raises DatasetError: the version is not cleaned."""
    manifest = dataset.read_manifest(engine, store, system, version)
    table = dataset.find_table(engine, system, version, manifest.sha256)
    if table is None:
        raise dataset.not_cleaned(store, system, version, manifest.sha256)
    return manifest, table


# --- the contract ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Violation:
    """One rule of the contract that the table breaks, with the number of cases and the first few."""

    rule: str
    cases: int
    examples: Sequence[str]

    @classmethod
    def of(cls, rule: str, cases: Sequence[object]) -> Violation:
        return cls(rule, len(cases), [str(case)[:80] for case in cases[:SHOWN]])


def violations(
    schema: DataFrameSchema, frame: pd.DataFrame, between_columns: Callable[[pd.DataFrame], Iterable[Violation]]
) -> list[Violation]:
    """What is wrong with a cleaned table: column by column, then, when that is in order, what `between_columns` finds."""
    import pandera.pandas as pa

    try:
        schema.validate(frame, lazy=True)
    except pa.errors.SchemaErrors as error:
        cases = error.failure_cases.groupby(["column", "check"], dropna=False, sort=True)
        return [Violation.of(f"{column}: {check}", rows["failure_case"].tolist()) for (column, check), rows in cases]
    return list(between_columns(frame))


def torn(groups: pd.Series, splits: pd.Series, rule: str) -> Iterator[Violation]:
    """Groups that are in two splits."""
    counts = splits.groupby(groups).nunique()
    if len(found := counts[counts > 1]):
        yield Violation.of(rule, found.index.tolist())
