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
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mlops_assets import crash, names
from mlops_assets.database import copy_rows
from mlops_assets.store import ObjectInfo, files_below, printable, sha256_file

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
#: How people and their tools spell markers, too: `_ready`, `_READY.txt`, and `_READY\\r` of a script with the line ends of Windows.
_MARKER: Final = re.compile(r"(_ready|_parent)(\\[rnt]|\s)*(\.txt)?(\\[rnt]|\s)*", re.IGNORECASE)
MAX_PARENT_BYTES: Final = 256


class LandingError(ValueError):
    """Something cannot land. The message says what, why and the next command."""


def prefix_of(system: str, version: str | None = None) -> str:
    """The folder of a version in the landing zone (of a system without one), no slash at the end."""
    return f"landing/{system}" if version is None else f"landing/{system}/{version}"


def marker_of(key: str) -> str | None:
    """Which of a version's own markers the key is, None: none; deeper down, a file of that name is an object like any other."""
    parts = key.split("/")
    if len(parts) != 4:
        return None
    found = _MARKER.fullmatch(parts[3])
    return found.group(1).upper() if found else LANDING if parts[3] == LANDING else None


def is_marker(info: ObjectInfo) -> bool:
    """Whether it is a marker and no data. A name with a line's end in it still says what is meant; a link says nothing."""
    return marker_of(info.key) is not None and (info.odd is None or info.odd.code == "odd_name")


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
    """What `land` did. `unchanged`: all of it had landed before, nothing was written. `quarantined`: name -> why it did not land."""

    system: str
    version: str
    objects: int
    bytes: int
    unchanged: bool
    quarantined: Mapping[str, str] = field(default_factory=dict)


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
    prefix = prefix_of(system, version)
    files, unusable, parent = _files_to_land(settings, path, parent, prefix)
    there = {info.key: info for info in store.list(prefix) if info.odd is None}
    with _reachable(settings, engine) as reachable:
        if parent is not None:
            _check_parent(reachable, system, version, parent)
        frozen, closed = _closed(reachable, system, version, there)
        if unusable and not closed and reachable is not None:
            with reachable.begin() as connection:
                _quarantine(connection, system, version, unusable)
    skipped = {info.key.removeprefix(prefix + "/"): info.odd.reason for info in unusable if info.odd is not None}
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
        return Landed(system, version, len(files), size, unchanged=True, quarantined=skipped)
    markers = {f"{prefix}/{LANDING}": b""} | ({f"{prefix}/{PARENT}": parent.encode()} if parent is not None else {})
    _write(store, prefix, {**markers, **missing}, there, size, progress)
    crash.reach("land.before_ready")
    store.put(f"{prefix}/{READY}", b"")
    try:
        store.delete(f"{prefix}/{LANDING}")
    except Exception as error:  # _READY outweighs it: whoever may write and not delete has landed all the same
        logger.warning("%s/%s could not be removed (%s); it does no harm", prefix, LANDING, error)
    return Landed(system, version, len(files), size, unchanged=False, quarantined=skipped)


def _files_to_land(settings: Settings, path: Path, parent: str | None, prefix: str) -> tuple[dict[str, Path], list[ObjectInfo], str | None]:
    """Name in the landing zone -> file; what cannot land; and the parent, which a folder may name in a `_PARENT` file."""
    if not path.exists():
        raise LandingError(f"{path} does not exist. Give a file or a folder: `mlops land SYSTEM PATH --dataset-version V`.")
    files: dict[str, Path] = {}
    unusable: list[ObjectInfo] = []
    name_of_one = None if path.is_dir() else path.name
    path = path.resolve()  # who names a link means what it leads to; a link within the folder is not followed
    for info in files_below(path, prefix, name_of_one):
        name = info.key.removeprefix(prefix + "/")
        if any(part.startswith(".") for part in name.split("/")):
            continue
        if marker := marker_of(info.key):
            if marker == PARENT and parent is None and info.odd is None:
                parent = _parent_named((path if name_of_one else path / name).read_bytes())
        elif info.odd is not None:
            unusable.append(info)
        elif info.size > settings.max_object_bytes:
            raise LandingError(
                f"{name} has {info.size} bytes, the limit is {settings.max_object_bytes}. Split it, or raise MLOPS_MAX_OBJECT_BYTES."
            )
        else:
            files[name] = path if name_of_one else path / name
    if not files:
        why = "; ".join(f"{info.key.removeprefix(prefix + '/')}: {info.odd.reason}" for info in unusable[:3] if info.odd is not None)
        raise LandingError(f"{path} holds no file {f'that can land ({why})' if why else '(hidden ones do not count)'}: nothing was landed.")
    return dict(sorted(files.items())), unusable, parent


def _parent_named(content: bytes) -> str:
    """The version that a `_PARENT` file names; an editor may have put a mark before it."""
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    return content[:MAX_PARENT_BYTES].decode(encoding, "replace").strip()


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

    marked = any(marker_of(key) == READY for key in there) and any(marker_of(key) is None for key in there)
    closed = "complete (its _READY marker is there)" if marked else None
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
            _remove(store, written)
            raise LandingError(
                f"no space left in {store.url} while landing {name} ({size} bytes, {total} in all). "
                "What this call had written is removed. Free space or set MLOPS_OBJECT_STORE_URL to a larger store, then land again."
            ) from error
        done += size
        if progress is not None and marker_of(key) is None:
            progress(name, done, total)


def is_disk_full(error: BaseException) -> bool:
    """No space, quota or file size limit, however deep the store has wrapped it."""
    codes = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    if isinstance(error, OSError) and error.errno in codes:
        return True
    found = re.search(r"code: (\d+)", str(error))
    return found is not None and int(found.group(1)) in codes


def _remove(store: ObjectStore, keys: Iterable[str]) -> None:
    for key in keys:
        store.delete(key)


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
    *,
    ready: bool,
    landing: bool,
    objects: int,
    quiet_seconds: float,
    settle_seconds: float,
    parent: str | None,
    parent_state: str | None,
    early: bool = False,
) -> Completion:
    """When a version is complete: it has data, and was marked ready after it or is unchanged for the quiet period and not being landed;
    and its parent, if any, is frozen.

    Args:
        early: the mark is older than some of the data: it says nothing of what may still come.
    """
    if landing and (early or not ready):
        return Completion(
            False, f"`mlops land` has begun and not ended ({LANDING} is there): if it was killed, the same command completes it"
        )
    if objects == 0:
        return Completion(False, f"its {READY} is there and no data yet: it stays open until some comes" if ready else "no data yet")
    if (early or not ready) and quiet_seconds < settle_seconds:
        why = f"unchanged for {quiet_seconds:.0f} s of {settle_seconds:.0f} s"
        return Completion(False, f"{why} ({READY} came before the data: write it last)" if early else why)
    if parent is not None and not is_version_name(parent):
        return Completion(False, f"its {PARENT} marker names {parent[:80]!r}, which cannot be a version: correct the marker")
    if parent is not None and parent_state != "frozen":
        state = f"is {parent_state}" if parent_state else "is unknown"
        return Completion(False, f"it extends {parent}, which {state}, not frozen")
    return Completion(True, "ready marker" if ready and not early else f"unchanged for {quiet_seconds:.0f} s")


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
        shown = printable(name)
        try:
            refused = _refuse_name(engine, store, system, name)
        except Exception as error:  # one bad version must not stop the others
            logger.exception("%s %s could not be refused", system, shown)
            done.problems[shown] = f"{type(error).__name__}: {_first_line(error)}"
        else:
            if refused.count:
                done.problems[shown] = f"refused: {shown!r} cannot name a dataset version. {refused.sentence}"
    for version in todo.read:
        try:
            read = _read_version(engine, store, system, version, settle_seconds)
        except Exception as error:
            logger.exception("%s %s could not be read", system, version)
            done.problems[version] = f"{type(error).__name__}: {_first_line(error)}"
            continue
        done.recorded += read.recorded
        if read.quarantined.count:
            done.problems[version] = read.quarantined.sentence
        if read.verdict.close:
            done.closed.append(version)
        elif read.verdict.why:
            done.waiting[version] = read.verdict.why
    return done


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else ""


def discover(engine: Engine, store: ObjectStore, settings: Settings, system: str) -> Tick:
    """One tick now, for commands that do not wait for the sensor."""
    return tick(engine, store, system, settle_seconds=settings.settle_seconds)


@dataclass(frozen=True)
class TurnedAway:
    """How many objects are new in quarantine, and (key, reason) of the first."""

    count: int = 0
    first: Sequence[tuple[str, str]] = ()

    @property
    def sentence(self) -> str:
        more = " and so on" if self.count > len(self.first) else ""
        return f"{self.count} in quarantine: {'; '.join(f'{key}: {reason}' for key, reason in self.first)}{more}"


@dataclass(frozen=True)
class _Read:
    """What reading a version did. `quarantined`: what is new and cannot be used. A verdict without a `why` was said before."""

    recorded: int
    verdict: Completion
    quarantined: TurnedAway = TurnedAway()


@dataclass(frozen=True)
class _Listed:
    """What lies in a version's folder. `early`: data came after `_READY` did."""

    objects: Mapping[str, ObjectInfo]
    odd: Sequence[ObjectInfo]
    parent: ObjectInfo | None
    ready: bool
    landing: bool
    early: bool


def _list_version(store: ObjectStore, system: str, version: str) -> _Listed:
    prefix = prefix_of(system, version)
    # The marker before the listing: a listing is not atomic, and `_READY` sorts among the keys. A marker first seen in a page would let a
    # version close without the objects that were written while the earlier pages were read. And `_LANDING` before `_READY`: a landing that
    # ends in between is ready, not silent.
    landing = store.exists(f"{prefix}/{LANDING}")
    ready = _head(store, f"{prefix}/{READY}")
    found = list(store.list(prefix))
    markers = {marker_of(info.key): info for info in found if is_marker(info)}
    if ready is None and (other := markers.get(READY)) is not None and other.key != f"{prefix}/{READY}":
        ready, found = other, list(store.list(prefix))  # spelled in another way: seen in a page, so the pages are read again
    objects = {info.key: info for info in found if info.odd is None and not is_marker(info)}
    odd = [info for info in found if info.odd is not None and not (is_marker(info) and marker_of(info.key) == READY)]
    came = max((info.arrived or info.last_modified for info in objects.values()), default=None)
    early = ready is not None and came is not None and came > (ready.arrived or ready.last_modified)
    return _Listed(objects, odd, markers.get(PARENT), ready is not None, landing or LANDING in markers, early)


def _head(store: ObjectStore, key: str) -> ObjectInfo | None:
    return store.head(key) if store.exists(key) else None


def _read_version(engine: Engine, store: ObjectStore, system: str, version: str, settle_seconds: float) -> _Read:
    from sqlalchemy import text

    listed = _list_version(store, system, version)
    parent = _read_parent(store, listed.parent)
    crash.reach("tick.after_listing")
    key = {"s": system, "v": version}
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO dataset_version (system, version) VALUES (:s, :v) ON CONFLICT DO NOTHING"), key)
        # Two ticks at once: the second waits here, and then finds the version closed.
        row = connection.execute(
            text(
                "SELECT state, reason, extract(epoch FROM clock_timestamp() - changed_at)::float8 AS quiet FROM dataset_version "
                "WHERE system = :s AND version = :v FOR UPDATE"
            ),
            key,
        ).one()
        if row.state != "open":
            return _Read(0, Completion(False, f"already {row.state}"))
        recorded = _record(connection, system, version, listed.objects.values())
        quarantined = _quarantine(connection, system, version, listed.odd)
        crash.reach("tick.after_record")
        if recorded:
            connection.execute(text("UPDATE dataset_version SET changed_at = clock_timestamp() WHERE system = :s AND version = :v"), key)
        blocked = _blocked(listed)
        verdict = blocked or completion(
            ready=listed.ready,
            landing=listed.landing,
            objects=len(listed.objects) if listed.ready else sum(info.size > 0 for info in listed.objects.values()),
            quiet_seconds=0.0 if recorded else float(row.quiet),
            settle_seconds=settle_seconds,
            parent=parent,
            parent_state=_state(connection, system, parent) if parent else None,
            early=listed.early,
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
            kept = verdict.why if parent is not None or listed.landing or blocked or not listed.objects else None
            connection.execute(
                text("UPDATE dataset_version SET reason = :r WHERE system = :s AND version = :v AND reason IS DISTINCT FROM :r"),
                {**key, "r": kept},
            )
            if not listed.objects and row.reason == verdict.why:  # it may stay so for days: said once
                verdict = Completion(False, "")
        crash.reach("tick.before_commit")
    crash.reach("tick.after_commit")
    return _Read(recorded, verdict, quarantined)


def _blocked(listed: _Listed) -> Completion | None:
    """What nobody could know without: a folder that may not be read, and a marker that names a parent under a name that cannot be read."""
    for info in listed.odd:
        if info.odd is not None and info.odd.code == "unreadable":
            return Completion(False, f"{info.key}: {info.odd.reason}")
        if info.odd is not None and marker_of(info.key) == PARENT:
            return Completion(False, f"the parent that {info.key} names cannot be read, {info.odd.reason}")
    return None


def _read_parent(store: ObjectStore, marker: ObjectInfo | None) -> str | None:
    if marker is None or marker.odd is not None:
        return None
    if marker.size > MAX_PARENT_BYTES:
        return "?" * MAX_PARENT_BYTES
    return _parent_named(store.get(marker.key))


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


def _quarantine(connection: Connection, system: str, version: str, odd: Iterable[ObjectInfo]) -> TurnedAway:
    """What cannot be used is in the ledger afterwards."""
    rows = ((info.key, info.etag, info.size, info.last_modified, version, info.odd.code, info.odd.reason) for info in odd if info.odd)
    return _turn_away(connection, system, rows)


_LYING: Final = ("key", "etag", "size", "last_modified", "version", "code", "reason")
_Lying = tuple[str, str, int, "datetime", str, "str | None", "str | None"]


def _stage_lying(connection: Connection, table: str, rows: Iterable[_Lying]) -> int:
    from sqlalchemy import text

    columns = "key text, etag text, size bigint, last_modified timestamptz, version text, code text, reason text"
    connection.execute(text(f"CREATE TEMPORARY TABLE {table} ({columns}) ON COMMIT DROP"))
    return copy_rows(connection, table, list(_LYING), rows)


def _turn_away(connection: Connection, system: str, rows: Iterable[_Lying]) -> TurnedAway:
    """Into quarantine with those that have a code."""
    from sqlalchemy import text

    _stage_lying(connection, "odd", rows)
    found = connection.execute(
        text(
            "WITH added AS (INSERT INTO landing_object (system, version, key, etag, size, last_modified, state, reason_code, reason) "
            "SELECT :s, version, key, etag, size, last_modified, 'quarantined', code, reason FROM odd WHERE code IS NOT NULL "
            "ON CONFLICT DO NOTHING RETURNING key, reason) "
            "SELECT key, reason, count(*) OVER () AS n FROM added ORDER BY key LIMIT 3"
        ),
        {"s": system},
    ).all()
    return TurnedAway(int(found[0].n), [(str(row.key), str(row.reason)) for row in found]) if found else TurnedAway()


def _refuse_name(engine: Engine, store: ObjectStore, system: str, name: str) -> TurnedAway:
    """A folder that cannot be a version: what lies there is accounted for, and nothing more happens. Told once; what comes there later is
    the nightly reconciliation's to find."""
    from sqlalchemy import text

    known = text("SELECT EXISTS (SELECT FROM landing_object WHERE system = :s AND version = :v AND starts_with(key, :p))")
    with engine.begin() as connection:
        # Without a name (two slashes) it shares its place in the ledger with what lies beside the folders.
        key = {"s": system, "v": printable(name) if name else "", "p": f"{prefix_of(system)}/{'' if name else '/'}"}
        if connection.execute(known, key).scalar_one():
            return TurnedAway()
        return _turn_away(connection, system, _lying(store, system, prefix_of(system, name)))


def _lying(store: ObjectStore, system: str, prefix: str) -> Iterator[_Lying]:
    """Everything under a prefix but markers, as _LYING; of no version "" is the version. Without a code it lies where it should."""
    home = prefix_of(system)
    for info in store.list(prefix):
        if is_marker(info):
            continue
        version, slash, _ = info.key.removeprefix(f"{home}/").partition("/")
        version = version if slash else ""
        code, reason = (info.odd.code, info.odd.reason) if info.odd is not None else (None, None)
        if code is None and not version:
            code, reason = "no_version", "it lies in no version's folder: land it with `mlops land`"
        elif code is None and not is_version_name(version):
            code = "bad_version_name"
            reason = f"the folder {home}/{version} cannot name a dataset version: copy its files into one that can, with `mlops land`"
        yield info.key, info.etag, info.size, info.last_modified, version, code, reason


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
                # The first free number, not the one after the highest: anybody may have inserted the highest there is.
                "INSERT INTO run_request (system, version, attempt, reason) "
                "SELECT :s, :v, 1 + count(*), :r FROM (SELECT attempt, row_number() OVER (ORDER BY attempt) AS place FROM run_request "
                "WHERE system = :s AND version = :v AND attempt > 0) taken WHERE attempt = place RETURNING attempt"
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
    """What the nightly look at everything found. `deleted`: accepted objects that are gone from the landing zone (their bytes are not);
    `odd`: what is new and cannot be used, whatever the reason."""

    objects: int
    late: int
    strays: int
    deleted: int
    odd: int = 0


def late_reason(system: str, version: str, *, refused: bool = False) -> str:
    """Why an object of a closed version is not taken, with the next command."""
    extends = "" if refused else f" --parent {version}"
    return f"it came after {version} was closed: land it as a new version, `mlops land {system} PATH --dataset-version NEW{extends}`"


def reconcile(engine: Engine, store: ObjectStore, system: str, *, systems: Collection[str] = ()) -> Reconciled:
    """Read the whole landing folder again: what came after its version was closed is quarantined as `late`, what lies outside any version
    as `no_version`, what cannot be used as what it is. What is deleted is only counted: frozen bytes are copies.

    Args:
        systems: all that exist: the first of them also looks at what lies in no system's folder.
    """
    from sqlalchemy import text

    with engine.begin() as connection:
        objects = _stage_lying(connection, "seen", _lying(store, system, prefix_of(system)))
        turned_away = connection.execute(
            text(
                "WITH added AS (INSERT INTO landing_object (system, version, key, etag, size, last_modified, state, reason_code, reason) "
                "SELECT :s, version, key, etag, size, last_modified, 'quarantined', coalesce(code, 'late'), "
                "coalesce(seen.reason, replace(CASE d.state WHEN 'refused' THEN :alone ELSE :extending END, '{}', version)) "
                "FROM seen LEFT JOIN (SELECT version, state FROM dataset_version WHERE system = :s) d USING (version) "
                # An overwritten object of a closed version that is still to be frozen is the freezing's to judge.
                "WHERE code IS NOT NULL OR (d.state <> 'open' AND NOT EXISTS (SELECT FROM landing_object l WHERE l.system = :s "
                "AND l.version = seen.version AND l.key = seen.key AND l.state = 'pending')) ON CONFLICT DO NOTHING RETURNING reason_code) "
                "SELECT reason_code, count(*) AS n FROM added GROUP BY reason_code"
            ),
            {"s": system, "alone": late_reason(system, "{}", refused=True), "extending": late_reason(system, "{}")},
        )
        new = {str(row.reason_code): int(row.n) for row in turned_away}
        deleted = connection.execute(
            text(
                "SELECT count(*) FROM landing_object l WHERE l.system = :s AND l.state = 'accepted' "
                "AND NOT EXISTS (SELECT FROM seen WHERE seen.key = l.key)"
            ),
            {"s": system},
        ).scalar_one()
        if systems and system == min(systems):
            new["unknown_system"] = _turn_away(connection, system, _of_no_system(store, systems)).count
    late, strays = new.pop("late", 0), new.pop("no_version", 0)
    return Reconciled(objects, late, strays, int(deleted), sum(new.values()))


def _of_no_system(store: ObjectStore, systems: Collection[str]) -> Iterator[_Lying]:
    """Everything in the landing zone that is in no system's folder, to be turned away."""
    folders, loose = store.level("landing")
    others = (info for name in folders if name not in systems for info in store.list(f"landing/{name}"))
    for info in chain(loose, others):
        reason = f"it lies in no system's folder (these are {', '.join(sorted(systems))}): land it with `mlops land`, or remove it"
        yield info.key, info.etag, info.size, info.last_modified, "", "unknown_system", info.odd.reason if info.odd else reason
