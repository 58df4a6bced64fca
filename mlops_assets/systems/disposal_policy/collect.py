"""The nightly reading: the sheet as it is now lands as a dataset version, if it differs from the newest one. The rest is the sensor's.

Belongs here: whether it lands, and under which name. Does not belong here: how a sheet is read (`ingest/sheet.py`), what is in it
(`data.py`), Dagster.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo

from mlops_assets.ingest import objects, sheet
from mlops_assets.systems.disposal_policy.data import SYSTEM

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Engine

    from mlops_assets.settings import Settings
    from mlops_assets.store import ObjectStore
    from mlops_assets.systems.disposal_policy.config import PolicyConfig

ZONE: Final = ZoneInfo("Asia/Seoul")
FILE: Final = "sheet.jsonl"


@dataclass(frozen=True)
class Collected:
    """What a reading did. `version` None: nothing landed, and `why`."""

    rows: int
    version: str | None
    why: str


def collect(
    engine: Engine, store: ObjectStore, settings: Settings, config: PolicyConfig, scratch: Path, *, now: datetime | None = None
) -> Collected:
    """Read the sheet and land it, if it differs from the newest version.

    Raises:
        SheetError: it could not be read; nothing lands.
        LandingError: it could not land.
    """
    source = config.sheet
    if source.spreadsheet is None and source.csv is None:
        return Collected(
            0, None, "configs/disposal_policy.yaml names no sheet (`sheet.spreadsheet` or `sheet.csv`): only landed files count"
        )
    table = read(settings, config)
    data = sheet.dump(table)
    # What landed a moment ago counts, also before the sensor has seen it.
    objects.discover(engine, store, settings, SYSTEM)
    newest = _newest(engine, store)
    if newest is not None and newest[1] == hashlib.sha256(data).hexdigest():
        return Collected(len(table.rows), None, f"the sheet is as in {newest[0]}")
    version = f"{(now or datetime.now(ZONE)).astimezone(ZONE):%Y%m%d-%H%M%S}"
    path = scratch / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    objects.land(settings, store, SYSTEM, path, version, engine=engine)
    why = "the sheet differs from " + (newest[0] if newest else "nothing: it is the first")
    if waiting := sum(sheet.is_computing(cell) for _, cells in table.rows for cell in cells):
        why += f"; {waiting} cells are still being computed after {source.seconds:g} s, their rows are turned away"
    return Collected(len(table.rows), version, why)


def read(settings: Settings, config: PolicyConfig) -> sheet.Table:
    """Raises SheetError."""
    source, cleaning = config.sheet, config.cleaning
    required = list(cleaning.columns.values())
    if source.csv is not None:
        return sheet.fetch_csv(
            source.csv,
            required,
            encoding=source.encoding,
            max_bytes=settings.max_object_bytes,
            max_rows=cleaning.max_rows,
            seconds=source.seconds,
        )
    if settings.sheets_credentials is None:
        raise sheet.SheetError("MLOPS_SHEETS_CREDENTIALS is not set: it names the JSON file of the service account that may read the sheet")
    assert source.spreadsheet is not None
    google = sheet.GoogleSheet(
        source.spreadsheet,
        source.worksheet,
        settings.sheets_credentials,
        url=settings.sheets_url or sheet.SHEETS_URL,
        page_rows=source.page_rows,
        max_rows=cleaning.max_rows,
        seconds=source.seconds,
    )
    return sheet.read_google(google, required)


def _newest(engine: Engine, store: ObjectStore) -> tuple[str, str] | None:
    """Name of the newest version, and the digest of its one object ("" when it has several, or none)."""
    from sqlalchemy import text

    with engine.connect() as connection:
        newest = "SELECT version FROM dataset_version WHERE system = :s ORDER BY first_seen_at DESC, version DESC LIMIT 1"
        version = connection.execute(text(newest), {"s": SYSTEM}).scalar_one_or_none()
        if version is None:
            return None
        found = "SELECT key, sha256 FROM landing_object WHERE system = :s AND version = :v AND (sha256 IS NOT NULL OR state = 'pending')"
        rows = connection.execute(text(found), {"s": SYSTEM, "v": version}).all()
    if len(rows) != 1:
        return str(version), ""
    try:
        return str(version), rows[0].sha256 or hashlib.sha256(store.get(rows[0].key)).hexdigest()
    except FileNotFoundError:
        return str(version), ""
