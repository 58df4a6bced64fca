"""What people are shown of the past: as of the moment they ask for, from rows that verify."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from mlops_assets.lifecycle import history
from mlops_assets.lifecycle.signing import load_signer
from mlops_assets.settings import canonical
from mlops_assets_tests.factories import World, config_of, manifest_of

START = datetime(2026, 1, 1, tzinfo=UTC)
NUMBERS = itertools.count()

moments = st.integers(0, 10_000).map(lambda number: START + timedelta(milliseconds=137 * number))
events = st.lists(st.tuples(st.sampled_from(["version", "verdict", "promotion"]), st.integers(1, 3), moments), max_size=12)


def write(world: World, happened: list[tuple[str, int, datetime]]) -> None:
    """Rows that say that all this happened then, in any order: clocks of two machines differ, late transactions commit late."""
    world.registered("seed")
    with world.engine.begin() as connection:
        for number, (kind, version, at) in enumerate(happened):
            values: dict[str, Any] = {"s": world.system, "v": f"v{version}", "at": at, "m": manifest_of("x"), "n": number + 2}
            if kind == "version":
                sql = (
                    "INSERT INTO dataset_version (system, version, state, manifest_sha256, manifest_key, first_seen_at) "
                    "VALUES (:s, :v, 'frozen', :m, 'k', :at) ON CONFLICT DO NOTHING"
                )
            elif kind == "verdict":
                sql = (
                    "INSERT INTO verdict (system, variant, dataset_version, outcome, code, sentence, actor, at) "
                    "VALUES (:s, '', :v, 'refused', 'c', 'w', 'a', :at)"
                )
            else:
                sql = (
                    "INSERT INTO promotion SELECT system, :n, 'champion', 'promote', version, bundle_sha256, :payload, :signature, :key, "
                    "'a', 'w', :at FROM receipt WHERE system = :s"
                )
                digest = connection.execute(text("SELECT bundle_sha256 FROM receipt WHERE system = :s"), values).scalar_one()
                body = {"system": world.system, "sequence": number + 2, "channel": "champion", "kind": "promote", "version": 1}
                payload = canonical(body | {"bundle_sha256": digest, "actor": "a", "reason": "w", "at": at.isoformat()})
                signer = load_signer(world.settings)
                values |= {"payload": payload, "signature": signer.sign(payload), "key": signer.key_id}
            connection.execute(text(sql), values)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(happened=events, moment=moments)
def test_nothing_that_is_shown_is_newer_than_the_moment_asked_for(world, happened, moment):
    one = World(world.engine, world.settings, world.store, f"toy-{next(NUMBERS)}", config_of())
    one.config = config_of(one.system)
    write(one, happened)
    keys = world.settings.public_keys_path
    with world.engine.connect() as connection:
        versions = history.compare(connection, one.system, keys, at=moment)
        rows = history.events(connection, one.system, keys, at=moment)
        champion = history.champion_at(connection, one.system, keys, moment)
        everything = history.compare(connection, one.system, keys), history.events(connection, one.system, keys)
    shown = [datetime.fromisoformat(row["at"]) for row in (*versions, *rows) if row["at"]]
    shown += [datetime.fromisoformat(champion["since"])] if champion else []
    assert all(at <= moment for at in shown)
    first_seen = {}
    for kind, version, at in happened:
        if kind == "version":
            first_seen.setdefault(f"v{version}", at)
    assert {row["dataset_version"] for row in versions} == {name for name, at in first_seen.items() if at <= moment}
    assert not any(row["model"] for row in versions), "the receipt is of today"
    by_then = [kind for kind, _, at in happened if at <= moment and kind != "version"]
    assert len(rows) == len(by_then) and bool(champion) == ("promotion" in by_then)
    # The control: without the moment there are newer rows, of today's seed at least.
    assert any(row["at"] and datetime.fromisoformat(row["at"]) > moment for row in (*everything[0], *everything[1]))


def test_at_a_moment_verdicts_and_versions_of_later_are_not_there(world):
    """What `mlops history toy --at T` prints first was of today."""
    world.registered("v1", content="a")
    with world.engine.connect() as connection:
        moment = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    world.registered("v2", content="b")
    keys = world.settings.public_keys_path
    with world.engine.connect() as connection:
        then, now = history.compare(connection, "toy", keys, at=moment), history.compare(connection, "toy", keys)
    assert [row["dataset_version"] for row in then] == ["v1"] and [row["dataset_version"] for row in now] == ["v2", "v1"]
