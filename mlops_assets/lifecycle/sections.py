"""The sections of `configs/` that a run was asked for with. Editing a file changes no run that waits, or that is tried again.

A request for a run keeps their digest (table `run_sections`), the run carries it as a tag, which a retry inherits, and their text is kept
under it (`sections`). Belongs here: keeping, finding and comparing them. Does not belong here: what a section means (`settings.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import ValidationError

from mlops_assets.lifecycle.report import Direction, better, directions_of
from mlops_assets.settings import Strict, SystemConfig, canonical

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

#: The tag of a run.
SECTIONS = "mlops/sections"
#: Differences that a sentence names.
NAMED = 5

C = TypeVar("C", bound=Strict)


@dataclass(frozen=True)
class Asked(Generic[C]):
    """What a run goes by. `changed`: what is otherwise now, in a sentence; empty when nothing is."""

    config: C
    sha256: str
    changed: str = ""


def system_of(config: Strict) -> str:
    """Every configuration of a system, with a model or without, has its name."""
    return str(config.model_dump(include={"project"})["project"]["name"])


def text_of(config: Strict) -> str:
    return canonical(config.model_dump(mode="json"))


def digest_of(config: Strict) -> str:
    return hashlib.sha256(text_of(config).encode()).hexdigest()


def keep(connection: Connection, config: Strict) -> str:
    """Keeps the sections and returns their digest; the same ones again are kept once."""
    from sqlalchemy import text

    digest = digest_of(config)
    connection.execute(
        text("INSERT INTO sections (sha256, system, body) VALUES (:d, :s, :b) ON CONFLICT DO NOTHING"),
        {"d": digest, "s": system_of(config), "b": text_of(config)},
    )
    return digest


def ask_with(connection: Connection, requests: Iterable[tuple[str, int]], config: Strict) -> None:
    """Requests for runs, by (version, attempt), that have no sections yet have those of `config` from now on."""
    from sqlalchemy import text

    digest = keep(connection, config)
    sql = text("INSERT INTO run_sections (system, version, attempt, sha256) VALUES (:s, :v, :a, :d) ON CONFLICT DO NOTHING")
    for version, attempt in requests:
        connection.execute(sql, {"s": system_of(config), "v": version, "a": attempt, "d": digest})


def asked_with(connection: Connection, system: str) -> dict[tuple[str, int], str]:
    """(version, attempt) of each request that has its sections -> their digest."""
    from sqlalchemy import text

    rows = connection.execute(text("SELECT version, attempt, sha256 FROM run_sections WHERE system = :s"), {"s": system})
    return {(row.version, row.attempt): row.sha256 for row in rows}


def of_run(engine: Engine, now: C, digest: str | None) -> Asked[C]:
    """The sections of a run whose tag says `digest`; without a tag those of `now`, which are kept from here on.

    Sections that are gone, were changed, or are no sections of today's code are not used: those of `now` are, and `changed` says so.
    """
    from sqlalchemy import text

    current, system = digest_of(now), system_of(now)
    if digest is None or digest == current:
        with engine.begin() as connection:
            return Asked(now, keep(connection, now))
    with engine.connect() as connection:
        body = connection.execute(text("SELECT body FROM sections WHERE sha256 = :d"), {"d": digest}).scalar()
    if body is None or hashlib.sha256(body.encode()).hexdigest() != digest:
        return Asked(now, current, f"the sections that this run was asked for with ({digest[:12]}) are not kept: it goes by those of now")
    before = json.loads(body)
    changed = "; ".join(differences(before, json.loads(text_of(now))))
    try:
        config = type(now).model_validate(before)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        why = f"this run was asked for with sections that are not valid any more ({where}): it goes by those of now, in which {changed}"
        return Asked(now, current, why)
    if text_of(config) == text_of(now):  # the code has more fields than it had, and the file says nothing of them
        return Asked(config, digest)
    why = (
        f"configs/{system}.yaml was changed since this run was asked for ({changed}): the run goes by what it was asked for with; only the "
        "gate goes by today's `promotion`, and by the stricter one of each threshold"
    )
    return Asked(config, digest, why)


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """`promotion.metric is 'accuracy', was 'f1'` of each value that differs; of many the first ones and how many more there are."""
    old, new = dict(_flat(before)), dict(_flat(after))
    names = sorted(name for name in old.keys() | new.keys() if old.get(name, _ABSENT) != new.get(name, _ABSENT))
    found = [f"{name} is {new.get(name, _ABSENT)!r}, was {old.get(name, _ABSENT)!r}" for name in names]
    return found[:NAMED] + ([f"and {len(found) - NAMED} more"] if len(found) > NAMED else [])


class _Absent:
    def __repr__(self) -> str:
        return "not there"


_ABSENT = _Absent()


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def judged_by(now: SystemConfig, asked: SystemConfig, directions: Mapping[str, Direction]) -> SystemConfig:
    """What the gate goes by: today's policy, and of each threshold the stricter one. An older file must not let through what today's would
    not, and a newer one must not loosen what a run was asked for with."""
    ways = directions_of(directions, [*now.register_threshold, *asked.register_threshold])
    both: dict[str, float] = dict(asked.register_threshold)
    for metric, threshold in now.register_threshold.items():
        known, way = both.get(metric), ways.get(metric)
        both[metric] = threshold if known is None or way is None or better(way, threshold, known) > 0 else known
    return now.model_copy(update={"register_threshold": both})
