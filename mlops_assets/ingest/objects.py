"""Objects that arrive: landing them, the object ledger, when a version is complete, and which runs were asked for.

The ledger in PostgreSQL is the truth: one row per (key, etag) ever seen. Belongs here: everything up to the closing of a version. Does not
belong here: what becomes of its bytes (`lifecycle/dataset.py`), what they mean (the systems), Dagster (`sensors.py`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mlops_assets import crash, names
from mlops_assets.database import copy_rows
from mlops_assets.store import ObjectInfo, sha256_file

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from mlops_assets.settings import Settings
    from mlops_assets.store import ObjectStore

logger = logging.getLogger(__name__)

#: Written last: everything of the version is there.
READY: Final = "_READY"
#: Optional: the name of the version that this one extends.
PARENT: Final = "_PARENT"
#: Written first and removed last by `land`: while it is there and READY is not, silence does not mean that the version is complete.
LANDING: Final = "_LANDING"
MARKERS: Final = frozenset({READY, PARENT, LANDING})
MAX_PARENT_BYTES: Final = 256
#: Names that the local store itself uses for files it is still writing; it never lists them, so they must not land.
STAGED_NAME: Final = re.compile(r"#\d+$")


class LandingError(ValueError):
    """Something cannot land. The message says what, why and the next command."""


def prefix_of(system: str, version: str | None = None) -> str:
    """The folder of a version in the landing zone (of a system without one), no slash at the end."""
    return f"landing/{system}" if version is None else f"landing/{system}/{version}"


def is_marker(key: str) -> bool:
    """Whether the key is a version's own marker: deeper down, a file of that name is an object like any other."""
    parts = key.split("/")
    return len(parts) == 4 and parts[3] in MARKERS


def is_version_name(version: str) -> bool:
    return names.is_version(version)


def check_version_name(version: str) -> None:
    """Raises LandingError unless `version` may name a dataset version."""
    if not is_version_name(version):
        raise LandingError(
            f"{version!r} cannot name a dataset version: 1 to 63 of a-z 0-9 . _ - beginning with a letter or digit, without `..`. "
            "Choose another, for example nsmc-2."
        )


# --- landing --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Landed:
    """What `land` did. `unchanged`: all of it had landed before, nothing was written."""

    system: str
    version: str
    objects: int
    bytes: int
    unchanged: bool


def land(
    settings: Settings,
    store: ObjectStore,
    system: str,
    path: Path,
    version: str,
    *,
    engine: Engine | None = None,
    parent: str | None = None,
    systems: Collection[str] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Landed:
    """Copy a file or folder into the landing zone as one dataset version, the `_READY` marker last.

    The same call again is safe: what is there already is not written again, and a killed landing is completed; until then its
    `_LANDING` marker keeps the version open, however long nothing comes.

    Args:
        engine: the platform's database, to see which versions are closed; by default the one of the settings. Where there is none
            (yet), only the marker tells.
        parent: the version that this one extends.
        systems: names that exist, for the error message; None accepts any.
        progress: called with (file name, bytes landed so far, bytes of all files) after each file.

    Raises:
        LandingError: with the fix; what this call wrote before a full disk is removed.
    """
    if systems is not None and system not in systems:
        raise LandingError(f"unknown system {system!r}: choose from {', '.join(sorted(systems))}")
    check_version_name(version)
    files, parent = _files_to_land(settings, path, parent)
    prefix = prefix_of(system, version)
    there = {info.key: info for info in store.list(prefix)}
    with _reachable(settings, engine) as reachable:
        if parent is not None:
            _check_parent(reachable, system, version, parent)
        frozen, closed = _closed(reachable, system, version, there)
    wanted = {f"{prefix}/{name}": file for name, file in files.items()}
    missing = {key: file for key, file in wanted.items() if not _same(store, there.get(key), frozen.get(key), file)}
    size = sum(file.stat().st_size for file in files.values())
    if closed:
        if missing:
            names = ", ".join(key.removeprefix(prefix + "/") for key in sorted(missing)[:3])
            raise LandingError(
                f"{system} {version} is {closed}: it never changes, and what it holds of {names} is not what is to land. "
                f"Land under a new name: `mlops land {system} {path} --dataset-version NEW` (with `--parent {version}` to extend it)."
            )
        return Landed(system, version, len(files), size, unchanged=True)
    markers = {f"{prefix}/{LANDING}": b""} | ({f"{prefix}/{PARENT}": parent.encode()} if parent is not None else {})
    _write(store, prefix, {**markers, **missing}, there, size, progress)
    crash.reach("land.before_ready")
    store.put(f"{prefix}/{READY}", b"")
    try:
        store.delete(f"{prefix}/{LANDING}")
    except Exception as error:  # _READY outweighs it: whoever may write and not delete has landed all the same
        logger.warning("%s/%s could not be removed (%s); it does no harm", prefix, LANDING, error)
    return Landed(system, version, len(files), size, unchanged=False)


def _files_to_land(settings: Settings, path: Path, parent: str | None) -> tuple[dict[str, Path], str | None]:
    """Name in the landing zone -> file; and the parent, which a folder may name in a `_PARENT` file."""
    if not path.exists():
        raise LandingError(f"{path} does not exist. Give a file or a folder: `mlops land SYSTEM PATH --dataset-version V`.")
    if path.is_file():
        found = {path.name: path}
    else:
        found = {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*")) if file.is_file()}
        found = {name: file for name, file in found.items() if not any(part.startswith(".") for part in name.split("/"))}
    if PARENT in found and parent is None:
        parent = found[PARENT].read_bytes()[:MAX_PARENT_BYTES].decode("utf-8", "replace").strip()
    found = {name: file for name, file in found.items() if name not in MARKERS}
    if not found:
        raise LandingError(f"{path} holds no file (hidden ones do not count): nothing was landed.")
    for name, file in found.items():
        if any(STAGED_NAME.search(part) for part in name.split("/")):
            raise LandingError(f"{name}: a name that ends in # and digits cannot land, the store uses such names itself. Rename the file.")
        if file.stat().st_size > settings.max_object_bytes:
            raise LandingError(
                f"{name} has {file.stat().st_size} bytes, the limit is {settings.max_object_bytes}. "
                "Split it, or raise MLOPS_MAX_OBJECT_BYTES."
            )
    return found, parent


@contextlib.contextmanager
def _reachable(settings: Settings, engine: Engine | None) -> Iterator[Engine | None]:
    """The given engine, else the settings' one if it answers: landing works while the platform is down."""
    from sqlalchemy import text
    from sqlalchemy.exc import OperationalError

    from mlops_assets import database

    if engine is not None or settings.database_url is None:
        yield engine
        return
    own = database.connect(settings.database_url, pool_size=1)
    try:
        try:
            with own.connect() as connection:
                connection.execute(text("SELECT 1"))
        except OperationalError as error:
            logger.warning("the platform's database does not answer (%s): only the _READY marker tells what is closed", error.orig)
            yield None
        else:
            yield own
    finally:
        own.dispose()


def _check_parent(engine: Engine | None, system: str, version: str, parent: str) -> None:
    from sqlalchemy import text

    check_version_name(parent)
    if parent == version:
        raise LandingError(f"{system} {version} cannot extend itself: give another --parent.")
    if engine is not None:
        with engine.connect() as connection:
            rows = connection.execute(text("SELECT version FROM dataset_version WHERE system = :s ORDER BY 1"), {"s": system})
            known = [str(row.version) for row in rows]
        if parent not in known:
            raise LandingError(f"{system} has no version {parent!r} to extend: known are {', '.join(known) or 'none yet'}.")


def _closed(engine: Engine | None, system: str, version: str, there: Mapping[str, ObjectInfo]) -> tuple[dict[str, str], str | None]:
    """Digests of what is frozen already (key -> SHA-256), and the state when nothing may be added any more."""
    from sqlalchemy import text

    closed = "complete (its _READY marker is there)" if f"{prefix_of(system, version)}/{READY}" in there else None
    if engine is None:
        return {}, closed
    key = {"s": system, "v": version}
    with engine.connect() as connection:
        state = connection.execute(text("SELECT state FROM dataset_version WHERE system = :s AND version = :v"), key).scalar()
        rows = connection.execute(
            text("SELECT key, sha256 FROM landing_object WHERE system = :s AND version = :v AND sha256 IS NOT NULL"), key
        )
        frozen = {str(row.key): str(row.sha256) for row in rows}
    return frozen, str(state) if state in ("closed", "frozen", "refused") else closed


def _same(store: ObjectStore, there: ObjectInfo | None, frozen: str | None, file: Path) -> bool:
    if frozen is not None:
        return sha256_file(file) == frozen
    if there is None or there.size != file.stat().st_size:
        return False
    digest = hashlib.sha256()
    for chunk in store.stream(there.key):
        digest.update(chunk)
    return digest.hexdigest() == sha256_file(file)


def _write(
    store: ObjectStore,
    prefix: str,
    contents: Mapping[str, Path | bytes],
    there: Collection[str],
    total: int,
    progress: Callable[[str, int, int], None] | None,
) -> None:
    done = 0
    written: list[str] = []
    for key, content in contents.items():
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        name = key.removeprefix(prefix + "/")
        try:
            if key not in there:
                written.append(key)
            store.put(key, content)
        except Exception as error:
            if not is_disk_full(error):
                raise
            _remove(store, prefix, written)
            raise LandingError(
                f"no space left in {store.url} while landing {name} ({size} bytes, {total} in all). "
                "What this call had written is removed. Free space or set MLOPS_OBJECT_STORE_URL to a larger store, then land again."
            ) from error
        done += size
        if progress is not None and not is_marker(key):
            progress(name, done, total)


def is_disk_full(error: BaseException) -> bool:
    """No space, quota or file size limit, however deep the store has wrapped it."""
    codes = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    if isinstance(error, OSError) and error.errno in codes:
        return True
    found = re.search(r"code: (\d+)", str(error))
    return found is not None and int(found.group(1)) in codes


def _remove(store: ObjectStore, prefix: str, keys: Iterable[str]) -> None:
    for key in keys:
        store.delete(key)
    if store.local_root is not None:
        # The local store leaves the file it was staging when the disk is full.
        for path in (store.local_root / prefix).rglob("*"):
            if STAGED_NAME.search(path.name):
                with contextlib.suppress(OSError):
                    path.unlink()


# --- the ledger -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """What a tick is to do with the folders it found."""

    read: Sequence[str]
    refuse: Sequence[str]


def plan(folders: Iterable[str], states: Mapping[str, str]) -> Reading:
    """Versions to list, sorted: new ones and those still open. Closed ones are left to the nightly reconciliation, so that a tick costs
    what is new. A folder whose name cannot be a version is refused, once.

    Args:
        folders: the names under the system's landing folder.
        states: version -> state, as the ledger has it.
    """
    open_or_new = sorted(name for name in set(folders) if states.get(name, "open") == "open")
    return Reading(
        read=[name for name in open_or_new if is_version_name(name)],
        refuse=[name for name in open_or_new if not is_version_name(name)],
    )


@dataclass(frozen=True)
class Completion:
    """Whether a version closes now, and why (not)."""

    close: bool
    why: str


def completion(
    *, ready: bool, landing: bool, objects: int, quiet_seconds: float, settle_seconds: float, parent: str | None, parent_state: str | None
) -> Completion:
    """When a version is complete: marked ready, or unchanged for the quiet period and not being landed; and its parent, if any, frozen."""
    if landing and not ready:
        return Completion(
            False, f"`mlops land` has begun and not ended ({LANDING} is there): if it was killed, the same command completes it"
        )
    if not ready and objects == 0:
        return Completion(False, "no object yet")
    if not ready and quiet_seconds < settle_seconds:
        return Completion(False, f"unchanged for {quiet_seconds:.0f} s of {settle_seconds:.0f} s")
    if parent is not None and not is_version_name(parent):
        return Completion(False, f"its {PARENT} marker names {parent[:80]!r}, which cannot be a version: correct the marker")
    if parent is not None and parent_state != "frozen":
        state = f"is {parent_state}" if parent_state else "is unknown"
        return Completion(False, f"it extends {parent}, which {state}, not frozen")
    return Completion(True, "ready marker" if ready else f"unchanged for {quiet_seconds:.0f} s")


@dataclass
class Tick:
    """What one tick did. `problems`: version -> sentence; they concern that version alone."""

    recorded: int = 0
    closed: list[str] = field(default_factory=list)
    waiting: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


def tick(engine: Engine, store: ObjectStore, system: str, *, settle_seconds: float) -> Tick:
    """Record what is new under the system's landing folder and close what is complete, one transaction per version.

    Raises:
        Exception: the folder itself cannot be listed. A version that cannot be read is a problem in the result, the others go on.
    """
    from sqlalchemy import text

    folders = store.folders(prefix_of(system))
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT version, state FROM dataset_version WHERE system = :s"), {"s": system})
        states = {str(row.version): str(row.state) for row in rows}
    todo = plan(folders, states)
    done = Tick()
    for name in todo.refuse:
        try:
            _refuse_name(engine, store, system, name)
        except Exception as error:  # one bad version must not stop the others
            logger.exception("%s %s could not be refused", system, name)
            done.problems[name] = f"{type(error).__name__}: {error}"
        else:
            done.problems[name] = f"refused: {name!r} cannot name a dataset version"
    for version in todo.read:
        try:
            recorded, verdict = _read_version(engine, store, system, version, settle_seconds)
        except Exception as error:
            logger.exception("%s %s could not be read", system, version)
            done.problems[version] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            continue
        done.recorded += recorded
        if verdict.close:
            done.closed.append(version)
        else:
            done.waiting[version] = verdict.why
    return done


def discover(engine: Engine, store: ObjectStore, settings: Settings, system: str) -> Tick:
    """One tick now, for commands that do not wait for the sensor."""
    return tick(engine, store, system, settle_seconds=settings.settle_seconds)


def _read_version(engine: Engine, store: ObjectStore, system: str, version: str, settle_seconds: float) -> tuple[int, Completion]:
    from sqlalchemy import text

    prefix = prefix_of(system, version)
    # The marker before the listing: a listing is not atomic, and `_READY` sorts among the keys. A marker first seen in a page would let a
    # version close without the objects that were written while the earlier pages were read. And `_LANDING` before `_READY`: a landing that
    # ends in between is ready, not silent.
    landing = store.exists(f"{prefix}/{LANDING}")
    ready = store.exists(f"{prefix}/{READY}")
    objects = {info.key: info for info in store.list(prefix)}
    parent = _read_parent(store, objects.pop(f"{prefix}/{PARENT}", None))
    objects.pop(f"{prefix}/{READY}", None)
    landing = objects.pop(f"{prefix}/{LANDING}", None) is not None or landing
    crash.reach("tick.after_listing")
    key = {"s": system, "v": version}
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO dataset_version (system, version) VALUES (:s, :v) ON CONFLICT DO NOTHING"), key)
        # Two ticks at once: the second waits here, and then finds the version closed.
        row = connection.execute(
            text(
                "SELECT state, extract(epoch FROM clock_timestamp() - changed_at)::float8 AS quiet FROM dataset_version "
                "WHERE system = :s AND version = :v FOR UPDATE"
            ),
            key,
        ).one()
        if row.state != "open":
            return 0, Completion(False, f"already {row.state}")
        recorded = _record(connection, system, version, objects.values())
        crash.reach("tick.after_record")
        if recorded:
            connection.execute(text("UPDATE dataset_version SET changed_at = clock_timestamp() WHERE system = :s AND version = :v"), key)
        verdict = completion(
            ready=ready,
            landing=landing,
            objects=len(objects),
            quiet_seconds=0.0 if recorded else float(row.quiet),
            settle_seconds=settle_seconds,
            parent=parent,
            parent_state=_state(connection, system, parent) if parent else None,
        )
        if verdict.close:
            connection.execute(
                text(
                    "UPDATE dataset_version SET state = 'closed', closed_at = clock_timestamp(), parent = :p, reason = NULL "
                    "WHERE system = :s AND version = :v"
                ),
                {**key, "p": parent},
            )
            request_run(connection, system, version, f"complete: {verdict.why}")
        else:
            connection.execute(
                text("UPDATE dataset_version SET reason = :r WHERE system = :s AND version = :v AND reason IS DISTINCT FROM :r"),
                {**key, "r": verdict.why if parent or landing else None},
            )
        crash.reach("tick.before_commit")
    crash.reach("tick.after_commit")
    return recorded, verdict


def _read_parent(store: ObjectStore, marker: ObjectInfo | None) -> str | None:
    if marker is None:
        return None
    if marker.size > MAX_PARENT_BYTES:
        return "?" * MAX_PARENT_BYTES
    return store.get(marker.key).decode("utf-8", "replace").strip()


def _state(connection: Connection, system: str, version: str) -> str | None:
    from sqlalchemy import text

    found = connection.execute(text("SELECT state FROM dataset_version WHERE system = :s AND version = :v"), {"s": system, "v": version})
    value = found.scalar()
    return None if value is None else str(value)


def _record(connection: Connection, system: str, version: str, objects: Iterable[ObjectInfo]) -> int:
    """Every (key, etag) of the listing is in the ledger afterwards; returns how many are new or were written again."""
    from sqlalchemy import text

    _stage(connection, ((info.key, info.etag, info.size, info.last_modified) for info in objects))
    # The same bytes written again (A, B, A) have an etag that is known: their time moves, and the version is not quiet.
    result = connection.execute(
        text(
            "INSERT INTO landing_object (system, version, key, etag, size, last_modified) "
            "SELECT :s, :v, key, etag, size, last_modified FROM seen "
            "ON CONFLICT (system, version, key, etag) DO UPDATE SET last_modified = EXCLUDED.last_modified "
            "WHERE landing_object.state = 'pending' AND landing_object.last_modified <> EXCLUDED.last_modified"
        ),
        {"s": system, "v": version},
    )
    return int(result.rowcount)


def _stage(connection: Connection, rows: Iterable[tuple[str, str, int, datetime]]) -> int:
    from sqlalchemy import text

    connection.execute(text("CREATE TEMPORARY TABLE seen (key text, etag text, size bigint, last_modified timestamptz) ON COMMIT DROP"))
    return copy_rows(connection, "seen", ["key", "etag", "size", "last_modified"], rows)


def _refuse_name(engine: Engine, store: ObjectStore, system: str, name: str) -> None:
    """A folder that cannot be a version: its objects are accounted for, and nothing more happens."""
    from sqlalchemy import text

    why = f"the folder {prefix_of(system, name)} cannot name a dataset version: copy its files into one that can, with `mlops land`"
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO dataset_version (system, version, state, reason) VALUES (:s, :v, 'refused', :r) "
                "ON CONFLICT (system, version) DO NOTHING"
            ),
            {"s": system, "v": name, "r": why},
        )
        _stage(connection, _landed_objects(store, prefix_of(system, name)))
        connection.execute(
            text(
                "INSERT INTO landing_object (system, version, key, etag, size, last_modified, state, reason_code, reason) "
                "SELECT :s, :v, key, etag, size, last_modified, 'quarantined', 'bad_version_name', :r FROM seen ON CONFLICT DO NOTHING"
            ),
            {"s": system, "v": name, "r": why},
        )


def _landed_objects(store: ObjectStore, prefix: str) -> Iterator[tuple[str, str, int, datetime]]:
    for info in store.list(prefix):
        if not is_marker(info.key):
            yield info.key, info.etag, info.size, info.last_modified


# --- the trigger ledger ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunAsked:
    """One row of the trigger ledger."""

    system: str
    version: str
    attempt: int
    reason: str
    requested_at: datetime

    @property
    def run_key(self) -> str:
        """With the attempt's number: Dagster never starts a second run for a key, even when the first one failed."""
        return f"{self.system}:{self.version}:{self.attempt}"


def request_run(connection: Connection, system: str, version: str, reason: str) -> int:
    """Ask for a run of the version, as the next attempt; the sensor starts it. Returns the attempt's number."""
    from sqlalchemy import text

    return int(
        connection.execute(
            text(
                "INSERT INTO run_request (system, version, attempt, reason) "
                "SELECT :s, :v, coalesce(max(attempt), 0) + 1, :r FROM run_request WHERE system = :s AND version = :v RETURNING attempt"
            ),
            {"s": system, "v": version, "r": reason},
        ).scalar_one()
    )


def runs_asked(connection: Connection, system: str, since: datetime | None = None) -> list[RunAsked]:
    """Requests whose run may not exist yet, oldest first: those of versions not frozen so far, and all since `since` (None: ever).

    `since` is only a hint that keeps the answer short; Dagster tells which of these runs exist.
    """
    from sqlalchemy import text

    rows = connection.execute(
        text(
            "SELECT r.system, r.version, r.attempt, r.reason, r.requested_at FROM run_request r "
            "JOIN dataset_version d USING (system, version) WHERE r.system = :s "
            "AND (d.state = 'closed' OR CAST(:since AS timestamptz) IS NULL OR r.requested_at >= CAST(:since AS timestamptz)) "
            "ORDER BY r.requested_at, r.version, r.attempt"
        ),
        {"s": system, "since": since},
    )
    return [RunAsked(*row) for row in rows]


# --- reconciliation -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reconciled:
    """What the nightly look at everything found. `deleted`: accepted objects that are gone from the landing zone (their bytes are not)."""

    objects: int
    late: int
    strays: int
    deleted: int


def reconcile(engine: Engine, store: ObjectStore, system: str) -> Reconciled:
    """Read the whole landing folder again: what came after its version was closed is quarantined as `late`, what lies outside any version
    as `no_version`. What is deleted is only counted: frozen bytes are copies."""
    from sqlalchemy import text

    prefix = prefix_of(system)
    with engine.begin() as connection:
        objects = _stage(connection, _landed_objects(store, prefix))
        connection.execute(text("ALTER TABLE seen ADD COLUMN version text"))
        connection.execute(
            text("UPDATE seen SET version = CASE WHEN substr(key, :n) LIKE '%/%' THEN split_part(substr(key, :n), '/', 1) ELSE '' END"),
            {"n": len(prefix) + 2},
        )
        late = connection.execute(
            text(
                "INSERT INTO landing_object (system, version, key, etag, size, last_modified, state, reason_code, reason) "
                "SELECT :s, version, key, etag, size, last_modified, 'quarantined', 'late', "
                "'it came after ' || version || ' was closed: land it as a new version that extends it' "
                "FROM seen JOIN dataset_version d USING (version) WHERE d.system = :s AND d.state <> 'open' "
                # An overwritten object of a closed version that is still to be frozen is the freezing's to judge.
                "AND NOT EXISTS (SELECT FROM landing_object l WHERE l.system = :s AND l.version = seen.version AND l.key = seen.key "
                "                AND l.state = 'pending') ON CONFLICT DO NOTHING"
            ),
            {"s": system},
        ).rowcount
        strays = connection.execute(
            text(
                "INSERT INTO landing_object (system, version, key, etag, size, last_modified, state, reason_code, reason) "
                "SELECT :s, '', key, etag, size, last_modified, 'quarantined', 'no_version', "
                "'it lies in no version''s folder: land it with `mlops land`' FROM seen WHERE version = '' ON CONFLICT DO NOTHING"
            ),
            {"s": system},
        ).rowcount
        deleted = connection.execute(
            text(
                "SELECT count(*) FROM landing_object l WHERE l.system = :s AND l.state = 'accepted' "
                "AND NOT EXISTS (SELECT FROM seen WHERE seen.key = l.key)"
            ),
            {"s": system},
        ).scalar_one()
    return Reconciled(objects, int(late), int(strays), int(deleted))
