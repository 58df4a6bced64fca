"""Digits that users drew: which drawings are kept, dataset versions cut from them, and deleting a user's.

Whoever draws may be an attacker with accounts of their own. The label is not theirs to choose (it is the digit of a code that the caller
verified), but the picture is. So: few drawings per user, none like an earlier one, and none whose digit the champion finds absurd, unless
users who have nothing to do with each other draw it alike; a bounded share of the training data; never an exam (the gate's frozen sets hold
no drawing from here). Belongs here: these rules, the rows, landing, deletion. Does not belong here: sessions and codes
(`serving/otp.py`), what a model learns, Dagster (`jobs.py`).
"""

from __future__ import annotations

import hashlib
import io
import random
import secrets
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mlops_assets import crash
from mlops_assets.database import lock
from mlops_assets.ingest.cuts import Done, Due
from mlops_assets.ingest.objects import PARENT, READY, prefix_of
from mlops_assets.lifecycle import bundle, dataset, forget, promotion
from mlops_assets.settings import DrawingsSection, canonical

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from sqlalchemy import Connection, Engine

    from mlops_assets.lifecycle.pipeline import Platform
    from mlops_assets.lifecycle.system import ModelSystem
    from mlops_assets.store import ObjectStore

#: The longer side of a kept picture, in pixels: four times what a model sees, and nothing of the screen that it was drawn on.
KEPT_SIDE: Final = 112
INDEX: Final = "labels.jsonl"
BATCH: Final = 32

#: Why a drawing is not kept, or waits, -> what that means. `nothing_drawn` and `too_little_drawn` are those of `strokes.py`.
REASONS: Final = {
    "nothing_drawn": "nothing is drawn",
    "too_little_drawn": "a touch, not a digit",
    "user_cap": "the user has given as many drawings as one may",
    "near_duplicate": "like an earlier drawing",
    "unlikely_digit": "the champion finds the digit absurd, and too few other users draw it alike",
}


# --- keeping ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawing:
    """One digit as it is kept.

    Attributes:
        picture: a grey PNG of the strokes, white on black, at most KEPT_SIDE pixels a side, made here: no byte of the sender's file.
        shape: 784 characters, 1 where the prepared picture has ink.
    """

    label: str
    picture: bytes
    shape: str


def drawing(picture: Image, label: str) -> Drawing:
    """What is kept of a picture.

    Raises:
        BadImage: `nothing_drawn`, `too_little_drawn`.
    """
    import numpy as np
    from PIL import Image as pillow

    from mlops_assets import strokes

    strokes.prepared(picture)  # refuses what is no digit before anything is kept of it
    kept = pillow.fromarray(strokes.ink_of(picture))
    kept.thumbnail((KEPT_SIDE, KEPT_SIDE), pillow.Resampling.BOX)
    file = io.BytesIO()
    kept.save(file, "PNG", optimize=True)
    seen = strokes.prepared(kept)
    return Drawing(label, file.getvalue(), "".join(np.where(seen.ravel() > 127, "1", "0")))


@dataclass(frozen=True)
class Kept:
    """`dropped`: reason code -> drawings."""

    stored: int
    dropped: Mapping[str, int]


def accept(engine: Engine, system: str, writer: str, drawings: Sequence[Drawing], section: DrawingsSection, *, waited: float = 0.0) -> Kept:
    """Keep a user's labelled drawings, in no order, within the limits. One transaction.

    Args:
        writer: the user's pseudonym.
        waited: seconds since the user confirmed them. Who was forgotten in that time gives nothing.
    """
    from sqlalchemy import text

    shuffled = list(drawings)
    random.SystemRandom().shuffle(shuffled)
    dropped: Counter[str] = Counter()
    values: dict[str, Any] = {"s": system, "w": writer, "days": section.window_days, "near": section.near_duplicate}
    count = text("SELECT count(*) FROM drawn WHERE system = :s AND writer = :w AND on_day > current_date - CAST(:days AS integer)")
    # Whoever drew it: the same picture from many accounts is one picture.
    like = text(
        "SELECT EXISTS (SELECT FROM drawn WHERE system = :s AND on_day > current_date - CAST(:days AS integer) "
        "AND bit_count(shape # CAST(:shape AS bit(784))) <= CAST(:near AS float8) * bit_count(shape | CAST(:shape AS bit(784))))"
    )
    insert = text(
        "INSERT INTO drawn (id, system, writer, label, picture, sha256, shape) VALUES (:id, :s, :w, :l, :p, :d, CAST(:shape AS bit(784)))"
    )
    with engine.begin() as connection, lock(connection, f"drawn/{system}"):
        connection.execute(text("DELETE FROM forgotten_writer WHERE at < now() - CAST('1 day' AS interval)"))
        gone = text(
            "SELECT EXISTS (SELECT FROM forgotten_writer WHERE (system, writer) = (:s, :w) "
            "AND at >= now() - make_interval(secs => :waited))"
        )
        if connection.execute(gone, {**values, "waited": waited}).scalar_one():
            return Kept(0, {"forgotten": len(shuffled)})
        room = section.per_writer - int(connection.execute(count, values).scalar_one())
        for one in shuffled:
            if room <= 0:
                dropped["user_cap"] += 1
            elif connection.execute(like, {**values, "shape": one.shape}).scalar_one():
                dropped["near_duplicate"] += 1
            else:
                digest = hashlib.sha256(one.picture).hexdigest()
                row = {"id": secrets.token_hex(16), "l": one.label, "p": one.picture, "d": digest, "shape": one.shape}
                connection.execute(insert, {**values, **row})
                room -= 1
    return Kept(len(shuffled) - sum(dropped.values()), dict(dropped))


# --- which of them are learned ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """A kept drawing that a cut may hold. `probability`: the champion's, of `label`. `shape`: bool [784]."""

    id: str
    writer: str
    label: str
    probability: float
    shape: np.ndarray


@dataclass(frozen=True)
class Chosen:
    """`ids` are cut; `aside` (id -> reason code) wait; what is in neither had no room and stays as it was."""

    ids: Sequence[str]
    aside: Mapping[str, str]


def choose(candidates: Sequence[Candidate], section: DrawingsSection, room: int) -> Chosen:
    """What of the candidates a cut holds, at most `room` of them."""
    doubted = [one for one in candidates if one.probability < section.min_probability]
    aside = {one.id: "unlikely_digit" for one in doubted if not _agreed(one, candidates, section)}
    good = [one for one in candidates if one.id not in aside]
    good.sort(key=lambda one: one.id)  # random names: who came first is nobody's business
    per_digit = max(1, int(section.max_digit_share * min(room, len(good))))
    chosen: list[str] = []
    digits: Counter[str] = Counter()
    for one in good:
        if len(chosen) < room and digits[one.label] < per_digit:
            chosen.append(one.id)
            digits[one.label] += 1
    return Chosen(chosen, aside)


def _agreed(one: Candidate, others: Sequence[Candidate], section: DrawingsSection) -> bool:
    """Whether enough other users draw this digit alike, and more than draw another digit so."""
    import numpy as np

    writers: dict[str, set[str]] = defaultdict(set)
    for other in others:
        apart = np.count_nonzero(other.shape != one.shape)
        if other.writer != one.writer and apart <= section.alike * np.count_nonzero(other.shape | one.shape):
            writers[other.label].add(other.writer)
    same = len(writers.pop(one.label, set()))
    return same >= section.agreeing_writers and same > max(map(len, writers.values()), default=0)


# --- cutting ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ledger:
    """How things stand: plain values that `due` decides on. `new`: drawings that no cut has looked at, `writers`: their users."""

    parent: str | None
    busy: str | None
    new: int
    writers: int


#: A cut on which nothing was trained for so long was abandoned: the next one no longer waits for a verdict.
WAIT_FOR_VERDICT: Final = "1 day"


def look(connection: Connection, system: str) -> Ledger:
    from sqlalchemy import text

    busy = connection.execute(
        text(
            "SELECT c.version || ' is on its way: ' || coalesce(d.state, c.state) || ', no verdict yet' FROM drawn_cut c "
            "LEFT JOIN dataset_version d USING (system, version) WHERE c.system = :s AND (d.state IS NULL OR d.state IN ('open', 'closed') "
            "OR (d.state = 'frozen' AND d.frozen_at > now() - CAST(:wait AS interval) "
            "AND NOT EXISTS (SELECT FROM verdict v WHERE (v.system, v.dataset_version) = (c.system, c.version)))) LIMIT 1"
        ),
        {"s": system, "wait": WAIT_FOR_VERDICT},
    ).scalar()
    counted = text(
        "SELECT count(*) AS new, count(DISTINCT writer) AS writers FROM drawn WHERE system = :s AND version IS NULL AND aside IS NULL"
    )
    row = connection.execute(counted, {"s": system}).one()
    return Ledger(parent_of(connection, system), busy, row.new, row.writers)


def parent_of(connection: Connection, system: str) -> str | None:
    """The version that a cut would extend: the newest frozen one, but none of which the gate refused every model. What made models worse
    is not handed on to the next; it stays in that version, a dead end."""
    from sqlalchemy import text

    sql = text(
        "SELECT d.version FROM dataset_version d WHERE d.system = :s AND d.state = 'frozen' AND NOT ("
        "EXISTS (SELECT FROM verdict v WHERE (v.system, v.dataset_version) = (d.system, d.version)) "
        "AND NOT EXISTS (SELECT FROM verdict v WHERE (v.system, v.dataset_version) = (d.system, d.version) AND v.outcome <> 'refused')) "
        "ORDER BY d.frozen_at DESC NULLS LAST, d.version DESC LIMIT 1"
    )
    found = connection.execute(sql, {"s": system}).scalar()
    return None if found is None else str(found)


def due(ledger: Ledger, section: DrawingsSection, *, asked: bool = False) -> Due:
    """Whether a version is to be cut now, and why (not).

    Args:
        asked: by a person: few drawings, or those of few users, are enough then.
    """
    if ledger.busy is not None:
        return Due(False, ledger.busy)
    if ledger.parent is None:
        return Due(False, "no version is there that a cut could extend (frozen, not all of its models refused): land the data set first")
    new = f"{ledger.new} new drawings of {ledger.writers} users"
    if ledger.new == 0:
        return Due(False, "no new drawing")
    if asked:
        return Due(True, new)
    if ledger.new < section.min_new:
        return Due(False, f"{new}: {section.min_new} drawings are waited for")
    if ledger.writers < section.min_writers:
        return Due(False, f"{new}: {section.min_writers} users are waited for")
    return Due(True, new)


@dataclass(frozen=True)
class Cut:
    """One row of `drawn_cut`."""

    version: str
    parent: str


def run(platform: Platform, system: ModelSystem, section: DrawingsSection, scratch: Path, *, asked: bool = False) -> Done:
    """Complete what was cut before, cut what is due by the champion's judgement, and land it."""
    engine, store = platform.engine, platform.store
    with engine.connect() as connection:
        waiting = unfinished(connection, system.name)
    for one in waiting:
        land(engine, store, system.name, one)
    with engine.connect() as connection:
        decided = due(look(connection, system.name), section, asked=asked)
    why = decided.why
    if decided.cut:
        made, why = _judge_and_cut(platform, system, section, scratch, decided.why)
        if made is not None:
            land(engine, store, system.name, made)
            waiting = [*waiting, made]
    return Done([one.version for one in waiting], why)


def _judge_and_cut(platform: Platform, system: ModelSystem, section: DrawingsSection, scratch: Path, why: str) -> tuple[Cut | None, str]:
    candidates = _candidates(platform, system, scratch)
    if candidates is None:
        return None, f"{system.name} has no champion yet that could judge drawings"
    with platform.engine.connect() as connection:
        parent = parent_of(connection, system.name)
    assert parent is not None
    room = _room(platform, system.name, parent, section)
    return cut(platform.engine, system.name, parent, choose(candidates, section, room), why)


def _candidates(platform: Platform, system: ModelSystem, scratch: Path) -> list[Candidate] | None:
    """All waiting drawings with the probability that the champion's bundle gives their digit; None without a champion."""
    import numpy as np
    from sqlalchemy import text

    with platform.engine.connect() as connection:
        champion, _ = promotion.latest_verified(connection, system.name, "champion", platform.settings.public_keys_path)
        if champion is None:
            return None
        sql = text(
            "SELECT id, writer, label, picture, CAST(shape AS text) AS shape FROM drawn WHERE system = :s AND version IS NULL ORDER BY id"
        )
        rows = connection.execute(sql, {"s": system.name}).all()
    folder = bundle.fetch(platform.store, champion.bundle_sha256, champion.files, scratch / "bundles")
    predictor = system.load_predictor(folder, platform.settings.threads)
    found = []
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        for row, answer in zip(part, predictor.predict([bytes(row.picture) for row in part]), strict=True):
            shape = np.frombuffer(row.shape.encode(), np.uint8) == ord("1")
            found.append(Candidate(row.id, row.writer, row.label, float(answer["probs"][row.label]), shape))
    return found


def _room(platform: Platform, system: str, parent: str, section: DrawingsSection) -> int:
    """How many drawings a version that extends `parent` may still hold: a share of the rows of `parent`, or, while it is not cleaned (it
    is cleaned anew after a deletion), of the nearest version before it that is.

    Raises:
        DatasetError: none is cleaned.
    """
    from sqlalchemy import text

    line = (
        "WITH RECURSIVE line AS (SELECT version, parent, manifest_sha256, 0 AS distance FROM dataset_version "
        "WHERE system = :s AND version = :p UNION ALL SELECT d.version, d.parent, d.manifest_sha256, distance + 1 "
        "FROM dataset_version d JOIN line ON d.version = line.parent WHERE d.system = :s) "
    )
    with platform.engine.connect() as connection:
        values = {"s": system, "p": parent}
        held = int(
            connection.execute(text(line + "SELECT count(*) FROM drawn JOIN line USING (version) WHERE system = :s"), values).scalar_one()
        )
        versions = connection.execute(text(line + "SELECT version, manifest_sha256 FROM line ORDER BY distance"), values).all()
    tables = (dataset.find_table(platform.engine, system, row.version, row.manifest_sha256) for row in versions)
    table = next((table for table in tables if table is not None), None)
    if table is None:
        raise dataset.DatasetError(f"{system} {parent} is not cleaned yet: materialize `{system}/cleaned` for it first")
    return max(0, int(section.max_share * table.rows) - held)


def cut(engine: Engine, system: str, parent: str, chosen: Chosen, why: str) -> tuple[Cut | None, str]:
    """Settle what the next version holds, in one transaction. Returns the cut, or None, and why (not)."""
    from sqlalchemy import text

    with engine.begin() as connection, lock(connection, f"drawn_cut/{system}"):
        now = look(connection, system)
        if now.busy is not None or now.parent != parent:
            return None, now.busy or f"{now.parent} was frozen meanwhile"
        marked = text("UPDATE drawn SET aside = :a WHERE system = :s AND version IS NULL AND id = ANY(:ids)")
        for reason in sorted(set(chosen.aside.values())):
            ids = [one for one, code in chosen.aside.items() if code == reason]
            connection.execute(marked, {"s": system, "a": reason, "ids": ids})
        version = _name(connection, system)
        sql = text("SELECT id, writer FROM drawn WHERE system = :s AND version IS NULL AND id = ANY(:ids) ORDER BY id FOR UPDATE")
        rows = connection.execute(sql, {"s": system, "ids": list(chosen.ids)}).all()
        aside = f"; {len(chosen.aside)} wait, their digit is unlikely" if chosen.aside else ""
        if not rows:
            return None, f"{why}: none of them may be learned{aside}"
        folders: dict[str, str] = defaultdict(lambda: f"w{secrets.token_hex(8)}")
        update = text("UPDATE drawn SET version = :v, folder = :f, aside = NULL WHERE id = :id")
        for row in rows:
            connection.execute(update, {"v": version, "f": folders[row.writer], "id": row.id})
        why += f": {len(rows)} are cut{aside}"
        connection.execute(
            text("INSERT INTO drawn_cut (system, version, parent, rows, writers, reason) VALUES (:s, :v, :p, :n, :w, :r)"),
            {"s": system, "v": version, "p": parent, "n": len(rows), "w": len(folders), "r": why},
        )
        crash.reach("drawn_cut.before_commit")
    crash.reach("drawn_cut.after_commit")
    return Cut(version, parent), why


def _name(connection: Connection, system: str) -> str:
    from sqlalchemy import text

    sql = text("SELECT to_char(current_date, 'YYYYMMDD') AS day, count(*) + 1 AS number FROM drawn_cut WHERE system = :s")
    row = connection.execute(sql, {"s": system}).one()
    return f"drawn-{row.day}-{row.number:04d}"


# --- landing ------------------------------------------------------------------------------------------------------------------------


def unfinished(connection: Connection, system: str) -> list[Cut]:
    """Cuts whose objects are not all in the landing zone, oldest first."""
    from sqlalchemy import text

    sql = text("SELECT version, parent FROM drawn_cut WHERE system = :s AND state = 'cut' ORDER BY at")
    return [Cut(*row) for row in connection.execute(sql, {"s": system})]


def land(engine: Engine, store: ObjectStore, system: str, found: Cut) -> None:
    """Write the cut's objects, `_READY` last; again, it only completes. A folder per writer, so that whole files go with one who wants to
    be forgotten. From then on these objects are the only copy of the pictures."""
    from sqlalchemy import text

    prefix = prefix_of(system, found.version)
    # Nobody is forgotten between the reading of rows and the writing of objects.
    with engine.begin() as connection, lock(connection, f"drawn_land/{system}"):
        there = {info.key for info in store.list(prefix)}

        def put(name: str, data: bytes) -> None:
            if f"{prefix}/{name}" not in there:
                store.put(f"{prefix}/{name}", data)

        put(PARENT, found.parent.encode())
        crash.reach("drawn_cut.after_parent")
        sql = text("SELECT id, writer, label, picture, folder FROM drawn WHERE system = :s AND version = :v ORDER BY folder, id")
        rows = connection.execute(sql, {"s": system, "v": found.version}).all()
        for row in rows:
            if row.picture is not None:
                put(f"{row.folder}/{row.id}.png", bytes(row.picture))
        for folder in sorted({row.folder for row in rows}):
            put(f"{folder}/{INDEX}", _index([row for row in rows if row.folder == folder]))
        crash.reach("drawn_cut.after_objects")
        put(READY, b"")
        crash.reach("drawn_cut.after_ready")
        values = {"s": system, "v": found.version}
        connection.execute(text("UPDATE drawn SET picture = NULL WHERE system = :s AND version = :v"), values)
        connection.execute(text("UPDATE drawn_cut SET state = 'landed', landed_at = now() WHERE system = :s AND version = :v"), values)


def _index(rows: Sequence[Any]) -> bytes:
    """One writer's lines, the same bytes however often. `origin`: what users draw is learned from and never measured on."""
    lines = [canonical({"file": f"{row.id}.png", "label": row.label, "writer": row.writer, "origin": "users"}) for row in rows]
    return "".join(line + "\n" for line in lines).encode()


# --- forgetting ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Forgotten:
    """`dataset_versions` held drawings of the user; `models` (see `lifecycle/forget.py`) learned from them."""

    drawings: int
    dataset_versions: Sequence[str]
    models: Sequence[Mapping[str, Any]]


def forget_writers(engine: Engine, store: ObjectStore, system: str, writers: Sequence[str], public_keys: Path) -> Forgotten:
    """Delete all that was kept of these pseudonyms: rows, landed objects, frozen bytes and tables made of them; what they have confirmed
    and nobody has verified yet will not be kept. Again, there is nothing left to delete, but what a killed call left is completed, and
    named."""
    from sqlalchemy import text

    with engine.begin() as connection, lock(connection, f"drawn_land/{system}"), lock(connection, f"drawn/{system}"):
        values = {"s": system, "w": list(writers)}
        sql = text(
            "SELECT id, writer, label, sha256, version, folder FROM drawn WHERE system = :s AND writer = ANY(:w) ORDER BY folder, id"
        )
        rows = connection.execute(sql, values).all()
        files = []
        for row in rows:
            if row.version is not None:
                files.append(forget.File(row.version, f"{prefix_of(system, row.version)}/{row.folder}/{row.id}.png", row.sha256))
        for folder, version in sorted({(row.folder, row.version) for row in rows if row.version is not None}):
            index = _index([row for row in rows if row.folder == folder])
            key = f"{prefix_of(system, version)}/{folder}/{INDEX}"
            files.append(forget.File(version, key, hashlib.sha256(index).hexdigest()))
        forget.record(connection, system, files)
        connection.execute(text("DELETE FROM drawn WHERE system = :s AND writer = ANY(:w)"), values)
        now = text(
            "INSERT INTO forgotten_writer (system, writer) SELECT :s, unnest(CAST(:w AS text[])) "
            "ON CONFLICT (system, writer) DO UPDATE SET at = now()"
        )
        connection.execute(now, values)
        crash.reach("forget.before_commit")
    crash.reach("forget.after_commit")
    finished = forget.finish(engine, store, system)
    with engine.connect() as connection:
        found = forget.trained_on(connection, system, sorted({*finished, *(file.version for file in files)}), public_keys)
    return Forgotten(len(rows), found["dataset_versions"], found["models"])
