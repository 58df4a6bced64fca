"""Dataset versions: freezing landed bytes into an immutable manifest, the split ledger, and cleaned tables in the store.

Belongs here: what every system's data half shares. Does not belong here: arrival (`ingest/`), what a row means (the systems), Dagster.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mlops_assets import crash, names
from mlops_assets.database import copy_rows, lock
from mlops_assets.ingest.objects import is_marker, late_reason, prefix_of
from mlops_assets.lifecycle import outbox
from mlops_assets.lifecycle.system import CleanedTable
from mlops_assets.settings import canonical
from mlops_assets.store import NotAFile, ObjectInfo, odd, sha256_file

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from mlops_assets.store import ObjectStore

logger = logging.getLogger(__name__)

#: Bytes of this many objects are copied at once: object stores answer slowly and in parallel.
COPIES_AT_ONCE: Final = 8
#: How often an object may change under our hands before freezing gives up.
COPY_TRIES: Final = 5

SPLITS: Final = ("train", "validation", "holdout")


class DatasetError(RuntimeError):
    """A dataset version is not there, not complete, or not what its manifest says. The message names the next command."""


class NothingLeft(DatasetError):
    """Everything in the version was turned away: it is refused."""


# --- manifests ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One frozen object. `key` is where it landed, `sha256` where its bytes are."""

    key: str
    size: int
    sha256: str
    etag: str
    last_modified: datetime
    from_version: str

    @property
    def path(self) -> str:
        """Its name within its version's folder."""
        return self.key.split("/", 3)[3]

    @property
    def folders_and_name(self) -> tuple[str, str]:
        """The folders within its version's and the file's own name. Archives of Windows that are unpacked elsewhere have both in one name,
        with backslashes."""
        folders, _, name = self.path.replace("\\", "/").rpartition("/")
        return folders, name


@dataclass(frozen=True)
class Manifest:
    """The content of a frozen version: its own entries and its parent's, by key.

    Attributes:
        sha256: over all entries as they were frozen, those that were deleted since included.
        forgotten: entries whose bytes were deleted on request; they are not among `entries`.
    """

    system: str
    version: str
    parent: str | None
    sha256: str
    key: str
    entries: Sequence[Entry]
    forgotten: Sequence[Entry] = ()

    @property
    def size(self) -> int:
        return sum(entry.size for entry in self.entries)


def object_key(sha256: str) -> str:
    return f"objects/sha256/{sha256[:2]}/{sha256}"


def manifest_key(system: str, version: str, sha256: str) -> str:
    return f"manifests/{system}/{version}/{sha256}.parquet"


def manifest_digest(entries: Iterable[Entry]) -> str:
    """SHA-256 over key, size and digest of every entry in the order of keys: the same content has the same digest in any store."""
    digest = hashlib.sha256()
    for entry in sorted(entries, key=lambda entry: entry.key):
        digest.update(canonical([entry.key, entry.size, entry.sha256]).encode() + b"\n")
    return digest.hexdigest()


_MANIFEST_COLUMNS: Final = ("key", "size", "sha256", "etag", "last_modified", "from_version")


def _manifest_bytes(entries: Sequence[Entry]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = (pa.string(), pa.int64(), pa.string(), pa.string(), pa.timestamp("us", "UTC"), pa.string())
    ordered = sorted(entries, key=lambda entry: entry.key)
    columns = {
        name: pa.array([getattr(entry, name) for entry in ordered], kind) for name, kind in zip(_MANIFEST_COLUMNS, types, strict=True)
    }
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    return bytes(sink.getvalue())


def read_manifest(engine: Engine, store: ObjectStore, system: str, version: str) -> Manifest:
    """The manifest of a frozen version, its digest verified.

    Raises:
        DatasetError: unknown, not frozen yet, or the manifest in the store is not the one that was frozen.
    """
    row = _version_row(engine, system, version)
    if row.manifest_sha256 is None:
        raise DatasetError(
            f"{system} {version} is {row.state}, it has no manifest yet. " + ("" if row.state == "refused" else _NOT_FROZEN[row.state])
        )
    return _load_manifest(engine, store, system, version, row)


_NOT_FROZEN: Final = {
    "open": "It is still arriving: put the _READY marker into its folder (`mlops land` does), or wait for the quiet period.",
    "closed": "Its `dataset` asset freezes it: materialize that first.",
}


def _version_row(engine: Engine, system: str, version: str) -> Any:
    from sqlalchemy import text

    with engine.connect() as connection:
        row = connection.execute(
            text("SELECT state, parent, reason, manifest_sha256, manifest_key FROM dataset_version WHERE system = :s AND version = :v"),
            {"s": system, "v": version},
        ).one_or_none()
        if row is None:
            rows = connection.execute(
                text("SELECT version FROM dataset_version WHERE system = :s ORDER BY first_seen_at DESC LIMIT 10"), {"s": system}
            )
            known = ", ".join(str(found.version) for found in rows) or "none yet"
            raise DatasetError(
                f"{system} has no dataset version {version!r}; known are: {known}. "
                f"Land one: `mlops land {system} PATH --dataset-version {version}`; the sensor sees it within seconds."
            )
    return row


def _load_manifest(engine: Engine, store: ObjectStore, system: str, version: str, row: Any) -> Manifest:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(store.get(row.manifest_key)))
        entries = [Entry(*values) for values in zip(*(table[name].to_pylist() for name in _MANIFEST_COLUMNS), strict=True)]
        found = manifest_digest(entries)
    except FileNotFoundError:
        raise DatasetError(
            f"the manifest of {system} {version} is gone from {store.uri(row.manifest_key)}: restore it from a backup"
        ) from None
    except (pa.ArrowException, KeyError) as error:
        raise DatasetError(f"the manifest {store.uri(row.manifest_key)} cannot be read ({error}): restore it from a backup") from None
    # A key says which version it landed in; the column that repeats it is no part of the digest.
    if found != row.manifest_sha256 or any(entry.key.split("/")[2:3] != [entry.from_version] for entry in entries):
        raise DatasetError(
            f"the manifest of {system} {version} has the digest {found[:12]}, {str(row.manifest_sha256)[:12]} was frozen: "
            f"{store.uri(row.manifest_key)} was changed, restore it from a backup"
        )
    gone = _forgotten_keys(engine, system, entries)
    present = [entry for entry in entries if entry.key not in gone]
    forgotten = tuple(entry for entry in entries if entry.key in gone)
    return Manifest(system, version, row.parent, found, row.manifest_key, present, forgotten)


def _has_forgotten(engine: Engine, system: str) -> bool:
    from sqlalchemy import text

    with engine.connect() as connection:
        found = connection.execute(text("SELECT EXISTS (SELECT FROM forgotten_object WHERE system = :s)"), {"s": system})
        return bool(found.scalar_one())


def _forgotten_keys(engine: Engine, system: str, entries: Iterable[Entry]) -> set[str]:
    """Keys of files that were deleted on request, in the versions that the entries come from."""
    from sqlalchemy import text

    sql = text("SELECT key FROM forgotten_object WHERE system = :s AND version = ANY(:v)")
    with engine.connect() as connection:
        return set(connection.execute(sql, {"s": system, "v": list({entry.from_version for entry in entries})}).scalars())


def verify(store: ObjectStore, manifest: Manifest, *, deep: bool = True) -> None:
    """Every object of the manifest is there with its size; `deep`: and with its digest. What was deleted on request is not missed.

    Raises:
        DatasetError: naming the first that is not.
    """

    def check(entry: Entry) -> str | None:
        key = object_key(entry.sha256)
        try:
            if store.head(key).size != entry.size:
                return f"{store.uri(key)} ({entry.key}) no longer has {entry.size} bytes"
            if deep and store.digest(key) != entry.sha256:
                return f"the bytes of {store.uri(key)} ({entry.key}) were changed"
        except FileNotFoundError:
            return f"{store.uri(key)} ({entry.key}) is gone"
        return None

    distinct = list({entry.sha256: entry for entry in manifest.entries}.values())
    with ThreadPoolExecutor(COPIES_AT_ONCE) as pool:
        wrong = [found for found in pool.map(check, distinct) if found]
    if wrong:
        raise DatasetError(
            f"{manifest.system} {manifest.version} is damaged, {len(wrong)} of {len(distinct)} objects: {wrong[0]}. "
            "Restore them from a backup; frozen versions are never rebuilt from the landing zone."
        )


def open_entry(store: ObjectStore, entry: Entry) -> Iterator[bytes]:
    """The entry's frozen bytes in chunks; DatasetError after the last one when they are not the frozen ones."""
    digest = hashlib.sha256()
    for chunk in store.stream(object_key(entry.sha256)):
        digest.update(chunk)
        yield chunk
    if digest.hexdigest() != entry.sha256:
        raise DatasetError(f"the bytes of {store.uri(object_key(entry.sha256))} ({entry.key}) were changed: restore them from a backup")


def read_object(store: ObjectStore, sha256: str) -> bytes:
    """Frozen bytes by their digest, verified. Raises DatasetError."""
    data = store.get(object_key(sha256))
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DatasetError(f"the bytes of {store.uri(object_key(sha256))} were changed: restore them from a backup")
    return data


# --- freezing -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Judged:
    """What becomes of one (key, etag): accepted with its digest, or quarantined with a code and a reason."""

    info: ObjectInfo
    sha256: str | None = None
    code: str | None = None
    reason: str | None = None


def freeze(
    engine: Engine, store: ObjectStore, system: str, version: str, *, max_object_bytes: int, scratch: Path, deep: bool = True
) -> Manifest:
    """Copy the version's bytes to `objects/sha256/` and write its manifest; a version frozen before is only verified.

    Its content is what its keys hold now: an object that was overwritten since it was seen counts as it is now (the former bytes are
    `superseded`), one that was deleted is `vanished`, a key that first appeared after the version was closed is `late`.

    Args:
        scratch: folder for one object per copy at a time.
        deep: when verifying, read every byte again.

    Raises:
        NothingLeft: no object was accepted; the version is refused.
        DatasetError: unknown, still open, its parent not frozen, or damaged.
    """
    row = _version_row(engine, system, version)
    if row.manifest_sha256 is not None:
        manifest = _load_manifest(engine, store, system, version, row)
        verify(store, manifest, deep=deep)
        return manifest
    if row.state == "refused":
        raise NothingLeft(f"{system} {version} was refused: {row.reason}. Land the corrected data under a new name.")
    if row.state == "open":
        raise DatasetError(f"{system} {version} cannot be frozen yet. {_NOT_FROZEN['open']}")
    inherited = read_manifest(engine, store, system, row.parent).entries if row.parent else ()
    judged = _judge(engine, store, system, version, max_object_bytes, scratch)
    crash.reach("freeze.after_copy")
    own = [Entry(j.info.key, j.info.size, j.sha256, j.info.etag, j.info.last_modified, version) for j in judged if j.sha256 is not None]
    if not own:
        if all(j.code == "unreadable" for j in judged) and judged:
            raise DatasetError(f"no object of {system} {version} may be read: give the platform's user the right, and materialize again")
        codes = sorted({str(j.code) for j in judged})
        why = f"no object was accepted ({', '.join(codes)})" if codes else "it holds no object"
        _commit(engine, system, version, judged, None, why)
        raise NothingLeft(f"{system} {version} is refused: {why}. Land the corrected data under a new name.")
    entries = sorted([*inherited, *own], key=lambda entry: entry.key)
    digest = manifest_digest(entries)
    manifest = Manifest(system, version, row.parent, digest, manifest_key(system, version, digest), entries)
    store.put(manifest.key, _manifest_bytes(entries))
    crash.reach("freeze.after_manifest")
    first = _commit(engine, system, version, judged, manifest, None)
    crash.reach("freeze.after_commit")
    return manifest if first else read_manifest(engine, store, system, version)


def _judge(engine: Engine, store: ObjectStore, system: str, version: str, limit: int, scratch: Path) -> list[_Judged]:
    from sqlalchemy import text

    with engine.connect() as connection:
        rows = connection.execute(
            text("SELECT key, etag, size, last_modified, state FROM landing_object WHERE system = :s AND version = :v"),
            {"s": system, "v": version},
        ).all()
    pending = {row.key for row in rows if row.state == "pending"}
    found = list(store.list(prefix_of(system, version)))
    now = {info.key: info for info in found if info.odd is None and not is_marker(info)}
    judged = [_Judged(info, code="late", reason=late_reason(system, version)) for key, info in now.items() if key not in pending]
    judged += [_Judged(info, code=info.odd.code, reason=info.odd.reason) for info in found if info.odd and not is_marker(info)]
    if hidden := next((info for info in found if info.odd and info.odd.code == "unreadable"), None):
        raise DatasetError(f"{store.uri(hidden.key)} may not be read: give the platform's user the right, then materialize `dataset` again")
    scratch.mkdir(parents=True, exist_ok=True)
    there = sorted(pending & now.keys())
    with ThreadPoolExecutor(COPIES_AT_ONCE) as pool:
        copied = dict(zip(there, pool.map(lambda key: _copy(store, now[key], limit, scratch), there), strict=True))
    for row in rows:
        if row.state != "pending":
            continue
        current = copied.get(row.key)
        info = ObjectInfo(row.key, row.size, row.etag, row.last_modified)
        if current is None:
            judged.append(_Judged(info, code="vanished", reason="it was deleted before it was frozen"))
        elif current.info.etag != row.etag:
            judged.append(_Judged(info, code="superseded", reason="it was overwritten before it was frozen; the newer bytes count"))
    return judged + [current for current in copied.values() if current is not None]


def _copy(store: ObjectStore, listed: ObjectInfo, limit: int, scratch: Path) -> _Judged | None:
    """Freeze the bytes that the key holds; None when it holds none any more. Bytes and etag belong together: an object that changes under
    our hands is copied again."""
    info = listed
    for _ in range(COPY_TRIES):
        handle, name = tempfile.mkstemp(dir=scratch)
        os.close(handle)
        copy = Path(name)
        try:
            if info.size > limit:
                return _Judged(info, code="too_large", reason=f"it has {info.size} bytes, the limit is {limit} (MLOPS_MAX_OBJECT_BYTES)")
            sha256 = _download(store, info, copy)
            if sha256 is not None:
                target = object_key(sha256)
                if not store.holds(target, sha256):
                    store.put(target, copy)
                return _Judged(info, sha256)
            info = store.head(info.key)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (NotAFile, PermissionError) as error:
            why = odd("link" if isinstance(error, NotAFile) else "unreadable")
            if store.local_root is None:  # credentials that expired are nobody's object
                raise
            return _Judged(info, code=why.code, reason=why.reason)
        finally:
            copy.unlink(missing_ok=True)
    raise DatasetError(
        f"{store.uri(listed.key)} changed {COPY_TRIES} times while it was copied: stop writing to it, then materialize `dataset` again"
    )


def _download(store: ObjectStore, info: ObjectInfo, target: Path) -> str | None:
    """The digest of exactly the bytes that `info` describes, now in `target`; None when the key holds others by now."""
    from obstore.exceptions import PreconditionError

    digest = hashlib.sha256()
    size = 0
    try:
        with target.open("wb") as file:
            for chunk in store.stream(info.key, etag=info.etag or None):
                digest.update(chunk)
                file.write(chunk)
                size += len(chunk)
                if size > info.size:
                    return None
    except PreconditionError:
        return None
    # S3 itself refuses to send bytes of another etag; a file system does not.
    unchanged = store.local_root is None or store.head(info.key).etag == info.etag
    return digest.hexdigest() if size == info.size and unchanged else None


def _commit(engine: Engine, system: str, version: str, judged: Sequence[_Judged], manifest: Manifest | None, refusal: str | None) -> bool:
    """Objects and version change state in one transaction. False: another run has frozen it first, nothing is changed."""
    from sqlalchemy import text

    key = {"s": system, "v": version}
    with engine.begin() as connection:
        state = connection.execute(
            text("SELECT state FROM dataset_version WHERE system = :s AND version = :v FOR UPDATE"), key
        ).scalar_one()
        if state != "closed":
            return False
        connection.execute(
            text(
                "CREATE TEMPORARY TABLE judged (key text, etag text, size bigint, last_modified timestamptz, state text, "
                "reason_code text, reason text, sha256 text) ON COMMIT DROP"
            )
        )
        copy_rows(
            connection,
            "judged",
            ["key", "etag", "size", "last_modified", "state", "reason_code", "reason", "sha256"],
            (
                (
                    j.info.key,
                    j.info.etag,
                    j.info.size,
                    j.info.last_modified,
                    "quarantined" if j.code else "accepted",
                    j.code,
                    j.reason,
                    j.sha256,
                )
                for j in judged
            ),
        )
        connection.execute(
            text(
                "INSERT INTO landing_object AS l (system, version, key, etag, size, last_modified, state, reason_code, reason, sha256) "
                "SELECT :s, :v, key, etag, size, last_modified, state, reason_code, reason, sha256 FROM judged "
                "ON CONFLICT (system, version, key, etag) DO UPDATE SET state = EXCLUDED.state, reason_code = EXCLUDED.reason_code, "
                "reason = EXCLUDED.reason, sha256 = EXCLUDED.sha256 WHERE l.state = 'pending'"
            ),
            key,
        )
        crash.reach("freeze.before_commit")
        if manifest is None:
            _tell_of_refusal(connection, system, version, str(refusal))
            connection.execute(
                text("UPDATE dataset_version SET state = 'refused', reason = :r WHERE system = :s AND version = :v"), {**key, "r": refusal}
            )
        else:
            connection.execute(
                text(
                    "UPDATE dataset_version SET state = 'frozen', reason = NULL, frozen_at = clock_timestamp(), manifest_sha256 = :m, "
                    "manifest_key = :k, object_count = :n, byte_count = :b WHERE system = :s AND version = :v"
                ),
                {**key, "m": manifest.sha256, "k": manifest.key, "n": len(manifest.entries), "b": manifest.size},
            )
    return True


# --- the split ledger -----------------------------------------------------------------------------------------------------------


def known_splits(connection: Connection, system: str, keys: Iterable[bytes]) -> dict[bytes, str]:
    """Key (SHA-256) -> split of those groups that have one already."""
    from sqlalchemy import text

    rows = connection.execute(
        text("SELECT group_sha256, split FROM split_ledger WHERE system = :s AND group_sha256 = ANY(:k)"), {"s": system, "k": list(keys)}
    )
    return {bytes(key): str(split) for key, split in rows}


def assign_splits(
    connection: Connection, system: str, version: str, groups: Iterable[tuple[bytes, str]], *, scheme: int = 1
) -> dict[bytes, str]:
    """Claim a split for each group and return the split each one has: its first claim's, whatever version made it.

    Args:
        groups: (SHA-256 of the group, wanted split); of a group given twice one claim counts, the holdout's first.
        scheme: by which function the groups were made.
    """
    from sqlalchemy import text

    # One writer at a time per system: two that insert the same groups in different orders would deadlock.
    with lock(connection, f"mlops_assets.split.{system}"):
        connection.execute(text("CREATE TEMPORARY TABLE wanted (group_sha256 bytea, split text)"))
        copy_rows(connection, "wanted", ["group_sha256", "split"], groups)
        connection.execute(
            text(
                "INSERT INTO split_ledger (system, group_sha256, split, first_version, scheme) "
                "SELECT DISTINCT ON (group_sha256) :s, group_sha256, split, :v, :scheme FROM wanted "
                "ORDER BY group_sha256, array_position(ARRAY['holdout', 'validation', 'train'], split) ON CONFLICT DO NOTHING"
            ),
            {"s": system, "v": version, "scheme": scheme},
        )
        connection.execute(text("ANALYZE wanted"))
        rows = connection.execute(
            text(
                "SELECT l.group_sha256, l.split FROM split_ledger l JOIN (SELECT DISTINCT group_sha256 FROM wanted) w USING (group_sha256) "
                "WHERE l.system = :s"
            ),
            {"s": system},
        )
        splits = {bytes(group): str(split) for group, split in rows}
        connection.execute(text("DROP TABLE wanted"))
    return splits


def versions_of_scheme(connection: Connection, system: str, *, before: int) -> tuple[list[str], list[str]]:
    """Versions that claimed groups of a scheme before `before`, and those of them whose splits `carry_splits` has not carried over."""
    from sqlalchemy import text

    query = (
        "SELECT l.version, c.version IS NULL AS waiting FROM (SELECT DISTINCT first_version AS version FROM split_ledger "
        "WHERE system = :s AND scheme < :b) l LEFT JOIN split_carried c ON (c.system, c.version) = (:s, l.version) ORDER BY l.version"
    )
    found = connection.execute(text(query), {"s": system, "b": before}).all()
    return [row.version for row in found], [row.version for row in found if row.waiting]


def carry_splits(connection: Connection, system: str, version: str, pairs: Iterable[tuple[bytes, bytes]], scheme: int) -> None:
    """Give groups of `scheme` the split that their former ones have: of several the holdout first. One that has a split keeps it.

    Args:
        pairs: (former group, group), SHA-256 each, of every text of the version.
    """
    from sqlalchemy import text

    with lock(connection, f"mlops_assets.split.{system}"):
        connection.execute(text("CREATE TEMPORARY TABLE carried (former bytea, group_sha256 bytea)"))
        copy_rows(connection, "carried", ["former", "group_sha256"], pairs)
        connection.execute(text("ANALYZE carried"))
        connection.execute(
            text(
                "INSERT INTO split_ledger (system, group_sha256, split, first_version, scheme) "
                "SELECT DISTINCT ON (c.group_sha256) :s, c.group_sha256, l.split, l.first_version, :scheme "
                "FROM (SELECT DISTINCT * FROM carried) c JOIN split_ledger l ON (l.system, l.group_sha256) = (:s, c.former) "
                "WHERE l.scheme < :scheme "
                "ORDER BY c.group_sha256, array_position(ARRAY['holdout', 'validation', 'train'], l.split) ON CONFLICT DO NOTHING"
            ),
            {"s": system, "scheme": scheme},
        )
        connection.execute(text("DROP TABLE carried"))
        done = "INSERT INTO split_carried (system, version) VALUES (:s, :v) ON CONFLICT DO NOTHING"
        connection.execute(text(done), {"s": system, "v": version})


# --- cleaned tables -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class PublishedTable:
    """A cleaned table: Parquet files in the store, and the row of `cleaned_table` that names them by digest. The row is written last: until
    then there is no table, whatever lies in the store.

    Attributes:
        sha256: over the parts' digests: the table's data version.
        rules: digest of the code and configuration that made it.
        body: what else is worth keeping of its making (counts).
        forgotten: how many of the manifest's files had been deleted on request when it was made.
    """

    system: str
    version: str
    manifest_sha256: str
    rows: int
    rules: str
    parts: Sequence[Part]
    body: Mapping[str, Any]
    forgotten: int = 0

    @property
    def sha256(self) -> str:
        return hashlib.sha256(canonical([self.rows, *(part.sha256 for part in self.parts)]).encode()).hexdigest()

    @property
    def prefix(self) -> str:
        return table_prefix(self.system, self.version, self.manifest_sha256)


def table_prefix(system: str, version: str, manifest_sha256: str) -> str:
    """Raises BadName."""
    names.system(system), names.version(version)
    return f"cleaned/{system}/{version}/{manifest_sha256}"


def upload_parts(store: ObjectStore, manifest: Manifest, files: Sequence[Path]) -> list[Part]:
    """Copy Parquet files into the table's folder; they are no table yet."""
    prefix = table_prefix(manifest.system, manifest.version, manifest.sha256)
    parts = []
    for number, file in enumerate(files):
        digest = sha256_file(file)
        part = Part(f"part-{number:05d}-{digest[:12]}.parquet", file.stat().st_size, digest)
        store.put(f"{prefix}/{part.name}", file)
        parts.append(part)
    return parts


def publish_table(engine: Engine, store: ObjectStore, table: PublishedTable) -> None:
    """Make `table` the version's cleaned table: one row. What an earlier making left in the store is removed afterwards."""
    from sqlalchemy import text

    body = {
        "rows": table.rows,
        "rules": table.rules,
        "parts": [[part.name, part.size, part.sha256] for part in table.parts],
        "body": dict(table.body),
        "forgotten": table.forgotten,
    }
    sql = text("INSERT INTO cleaned_table (system, version, manifest_sha256, sha256, body) VALUES (:s, :v, :m, :sha256, :body)")
    values = {"s": table.system, "v": table.version, "m": table.manifest_sha256}
    with engine.begin() as connection:
        connection.execute(sql, {**values, "sha256": table.sha256, "body": canonical(body)})
    named = {f"{table.prefix}/{part.name}" for part in table.parts}
    for info in list(store.list(table.prefix)):
        if info.key not in named:
            store.delete(info.key)


def find_table(engine: Engine, system: str, version: str, manifest_sha256: str) -> PublishedTable | None:
    """The version's cleaned table as it was recorded when it was made, or None when there is none."""
    from sqlalchemy import text

    sql = text("SELECT body, sha256 FROM cleaned_table WHERE system = :s AND version = :v AND manifest_sha256 = :m ORDER BY id DESC")
    with engine.connect() as connection:
        for row in connection.execute(sql, {"s": system, "v": version, "m": manifest_sha256}):
            content = row.body
            parts = [Part(*part) for part in content["parts"]]
            rows, rules, body = content["rows"], content["rules"], content["body"]
            found = PublishedTable(system, version, manifest_sha256, rows, rules, parts, body, content["forgotten"])
            if found.sha256 == row.sha256 and all(_PART_NAME.fullmatch(part.name) for part in parts):
                return found
    return None


def is_whole(store: ObjectStore, table: PublishedTable) -> bool:
    """Whether the store still has every byte of the table: one that was changed is cleaned again."""

    with ThreadPoolExecutor(COPIES_AT_ONCE) as pool:
        return all(pool.map(lambda part: store.holds(f"{table.prefix}/{part.name}", part.sha256), table.parts))


_PART_NAME: Final = re.compile(r"part-\d{5}-[0-9a-f]{12}\.parquet")


def not_cleaned(store: ObjectStore, system: str, version: str, manifest_sha256: str) -> DatasetError:
    """What to say where `find_table` found none."""
    there = next(iter(store.list(table_prefix(system, version, manifest_sha256))), None)
    why = " (what lies in the store is named by no record: it is older than schema 0016, or somebody put it there)" if there else ""
    return DatasetError(f"{system} {version} is not cleaned yet{why}: materialize `{system}/cleaned` for it first")


def load_table(store: ObjectStore, engine: Engine, system: str, version: str, folder: Path) -> CleanedTable:
    """The version's cleaned rows as Parquet files in `folder`, every part verified; the folder appears whole or not at all.

    Raises:
        DatasetError: not frozen, not cleaned yet, or damaged.
    """
    row = _version_row(engine, system, version)
    if row.state == "refused":
        raise DatasetError(f"{system} {version} was refused: {row.reason}. Land the corrected data under a new name.")
    if row.manifest_sha256 is None:
        raise DatasetError(f"{system} {version} is {row.state}. {_NOT_FROZEN[row.state]}")
    table = find_table(engine, system, version, row.manifest_sha256)
    if table is None:
        raise not_cleaned(store, system, version, row.manifest_sha256)
    forgotten = len(read_manifest(engine, store, system, version).forgotten) if _has_forgotten(engine, system) else 0
    if table.forgotten != forgotten:
        raise DatasetError(
            f"files of {system} {version} were deleted on request since its cleaning began: materialize `{system}/cleaned` again"
        )
    found = CleanedTable(system, version, table.manifest_sha256, folder, table.rows, forgotten, table.sha256)
    if folder.is_dir() and all((folder / p.name).is_file() and sha256_file(folder / p.name) == p.sha256 for p in table.parts):
        return found
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with ThreadPoolExecutor(COPIES_AT_ONCE) as pool:
            list(pool.map(lambda part: fetch_part(store, table, part, aside), table.parts))
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return replace(found, folder=folder)


def fetch_part(store: ObjectStore, table: PublishedTable, part: Part, folder: Path) -> None:
    """Download one file of the table, verified. Raises DatasetError."""
    key = f"{table.prefix}/{part.name}"
    again = f"materialize `{table.system}/cleaned` for {table.version} again"
    try:
        digest = store.download(key, folder / part.name)
    except FileNotFoundError:
        raise DatasetError(f"{store.uri(key)} is gone: {again}") from None
    if digest != part.sha256:
        raise DatasetError(f"{store.uri(key)} was changed: {again}")


def refuse(connection: Connection, system: str, version: str, reason: str | None) -> None:
    """A frozen version of which nothing is left is refused; `reason` None: cleaning it again has left something."""
    from sqlalchemy import text

    connection.execute(
        text(
            "UPDATE dataset_version SET state = CASE WHEN CAST(:r AS text) IS NULL THEN 'frozen' ELSE 'refused' END, reason = :r "
            "WHERE system = :s AND version = :v AND manifest_sha256 IS NOT NULL"
        ),
        {"s": system, "v": version, "r": reason},
    )
    if reason is not None:
        _tell_of_refusal(connection, system, version, reason)


def _tell_of_refusal(connection: Connection, system: str, version: str, reason: str) -> None:
    if outbox.became(connection, "refused", f"{system}/{version}", reason):
        outbox.tell(connection, f"refused: {system} {version}: {reason}", "사용할 수 있는 데이터가 없어 데이터셋 버전이 거절되었습니다.")
