"""Live performance: people hear when the champion falls below its limit and when it has recovered, not once a tick."""

from __future__ import annotations

import dagster as dg
import pytest

from mlops_assets.monitoring.live import Live, judge, measured
from mlops_assets.monitoring.sensors import live_sensors
from mlops_assets.settings import MonitoringPolicy
from mlops_assets_tests.factories import GOOD
from mlops_assets_tests.monitoring.watched import POLICY, Watched, old_truths, refuse_to_connect, truths


@pytest.fixture
def watched(world):
    """The toy with the champion v1."""
    with dg.DagsterInstance.ephemeral() as instance:
        watched = Watched(world, instance, {})
        assert watched.tick("live") == "toy has no champion"
        world.registered(content="a")
        yield watched


def told(watched):
    return [message.splitlines()[0] for message in watched.outbox("live accuracy")]


@pytest.mark.parametrize(
    ("live", "verdict"),
    [
        (None, None),
        (Live(0.0, 3), None),
        (Live(0.499, 4), "below"),
        (Live(0.5, 4), "fine"),
        (Live(1.0, 400), "fine"),
    ],
)
def test_the_decision(live, verdict):
    assert judge(live, POLICY) == verdict
    assert judge(live, MonitoringPolicy()) is None, "without a limit nothing is said"


def test_below_and_recovered_are_each_told_once_and_again_when_it_falls_again(world, watched):
    truths(world, 1, right=1, wrong=2)
    assert watched.tick("live") == "toy v1: 3 truths in 24 h, 4 are needed" and told(watched) == []
    truths(world, 1, right=0, wrong=2)
    for _ in range(3):
        assert watched.tick("live") == "toy v1: live accuracy 0.200 < 0.500 (5 answers in 24 h)"
    assert told(watched) == ["live accuracy below its limit: toy v1: 0.200 < 0.500 (5 answers in 24 h)"]
    assert "최소값보다 낮습니다" in watched.outbox("live accuracy")[0]
    truths(world, 1, right=3, wrong=0)
    watched.tick("live"), watched.tick("live")
    assert told(watched)[1:] == ["live accuracy recovered: toy v1: 0.500 >= 0.500 (8 answers in 24 h)"]
    truths(world, 1, right=0, wrong=2)
    watched.tick("live"), watched.tick("live")
    assert told(watched)[2:] == ["live accuracy below its limit: toy v1: 0.400 < 0.500 (10 answers in 24 h)"]


def test_a_champion_that_always_did_well_is_not_called_recovered(world, watched):
    truths(world, 1, right=9, wrong=0)
    assert watched.tick("live") == "toy v1: live accuracy 1.000 >= 0.500 (9 answers in 24 h)"
    assert told(watched) == []


def test_old_truths_and_those_of_other_versions_and_systems_do_not_count(world, watched):
    old_truths(world, 1, right=0, wrong=9, hours_ago=24.1)
    truths(world, 2, right=0, wrong=9)
    assert watched.tick("live") == "toy v1: 0 truths in 24 h, 4 are needed"
    old_truths(world, 1, right=4, wrong=0, hours_ago=23.9)
    with world.engine.connect() as connection:
        assert measured(connection, "toy", 24) == {1: Live(1.0, 4), 2: Live(0.0, 9)}
        assert measured(connection, "other", 24) == {}
    watched.tick("live")
    assert told(watched) == []


def test_a_version_that_is_promoted_again_is_judged_anew(world, watched):
    truths(world, 1, right=0, wrong=4)
    watched.tick("live")
    world.registered("v2", {**GOOD, "f1": 0.9}, content="b")
    assert watched.tick("live") == "toy v2: 0 truths in 24 h, 4 are needed"
    world.registrar().rollback(reason="a try")
    watched.tick("live"), watched.tick("live")
    assert [message.split(": ")[1] for message in told(watched)] == ["toy v1", "toy v1"]


def test_a_message_and_its_memory_are_one_transaction(world, watched, monkeypatch):
    from mlops_assets.lifecycle import outbox

    truths(world, 1, right=0, wrong=4)

    def fail(*arguments: str) -> None:
        raise ConnectionError("cut")

    with monkeypatch.context() as patch, pytest.raises(ConnectionError):
        patch.setattr(outbox, "tell", fail)
        watched.tick("live")
    watched.tick("live")
    assert len(told(watched)) == 1


def test_without_a_limit_there_is_no_sensor():
    assert live_sensors("toy", MonitoringPolicy(), refuse_to_connect()) == []
