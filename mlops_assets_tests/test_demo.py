"""The lines that `mlops up --demo` shows come from the ledgers alone, and its end says whether all went as it should."""

from __future__ import annotations

import os

import pytest
from sqlalchemy import text

from mlops_assets.demo import Demo, Landing, facts
from mlops_assets.settings import SettingsError
from mlops_assets.systems import SYSTEMS
from mlops_assets_tests.factories import BAD, GOOD, World, config_of


@pytest.fixture
def world(engine, settings, store) -> World:
    return World(engine, settings, store, "sentiment", config_of("sentiment"))


def lines(world: World, version: str) -> list[tuple[str, str, str | None]]:
    with world.engine.connect() as connection:
        return [(fact.kind, fact.text, fact.outcome) for fact in facts(connection, "sentiment", version)]


def test_a_version_that_nobody_has_landed_has_no_lines(world):
    assert lines(world, "demo-1") == []


def test_a_good_version_is_told_from_training_to_champion(world):
    world.registered("demo-1", GOOD)
    told = lines(world, "demo-1")
    said = "\n".join(text for _, text, _ in told)
    assert said.index("trained and exported") < said.index("f1 0.860") < said.index("promoted: ") < said.index("version 1 is champion")
    assert [outcome for _, _, outcome in told if outcome] == ["promoted"]


def test_a_bad_version_ends_refused_with_the_gates_sentence(world):
    world.registered("demo-bad", BAD)
    kind, said, outcome = lines(world, "demo-bad")[-1]
    assert (kind, outcome) == ("warn", "refused")
    assert "0.5" in said and "0.8" in said


def test_a_data_set_that_is_refused_before_training_is_an_end_too(world):
    world.dataset("broken")
    with world.engine.begin() as connection:
        connection.execute(
            text("UPDATE dataset_version SET state = 'refused', reason = 'no columns', manifest_sha256 = NULL WHERE version = 'broken'")
        )
    assert lines(world, "broken")[-1] == ("warn", "refused before training: no columns", "refused")


@pytest.mark.parametrize(
    ("good", "bad", "failed"),
    [
        ("promoted", "refused", False),
        ("registered", "refused", False),  # not better than the champion of an earlier demo
        ("refused", "refused", True),
        ("promoted", "promoted", True),  # the gate would be broken
        ("failed", "refused", True),
        ("promoted", "failed", True),
    ],
)
def test_the_demo_has_failed_unless_the_good_one_passed_and_the_bad_one_did_not(settings, good, bad, failed):
    demo = Demo.of(settings, sample=True, data=None)
    bad_ones = [(landing.system, landing.version) for landing in demo.landings if landing.bad]
    assert bad_ones == [("sentiment", "demo-bad")] and {landing.system for landing in demo.landings} == set(SYSTEMS)
    others = ("promoted",) * (len(demo.landings) - 2)
    for landing, outcome in zip(demo.landings, (good, bad, *others), strict=True):
        landing.outcome = outcome
    assert demo.done and demo.failed is failed


def test_real_data_is_taken_by_the_names_of_its_folders(settings, tmp_path):
    (tmp_path / "nsmc").mkdir()
    (tmp_path / "unknown").mkdir()
    demo = Demo.of(settings, sample=False, data=tmp_path)
    assert demo.landings == [Landing("sentiment", "nsmc-1", (tmp_path / "nsmc").resolve())]


def test_mnist_lands_with_the_drawings_beside_it(settings, tmp_path):
    """A version of digits is measured on real drawings too; without them beside it MNIST lands alone."""
    for name in ("mnist/train.gz", "hwd1000/img/1.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"x")
    demo = Demo.of(settings, sample=False, data=tmp_path)
    (landing,) = demo.landings
    folder = demo._together(landing.source)
    assert {file.relative_to(folder).as_posix() for file in folder.rglob("*.*")} == {"mnist/train.gz", "hwd1000/img/1.png"}
    assert demo._together(folder) == folder
    assert demo._together(tmp_path / "hwd1000") == tmp_path / "hwd1000"


def test_a_folder_that_is_missing_is_refused(settings, tmp_path):
    with pytest.raises(SettingsError, match="is not a folder"):
        Demo.of(settings, sample=False, data=tmp_path / "none")


def test_while_a_model_trains_people_hear_how_far_it_is(settings, tmp_path):
    from types import SimpleNamespace

    from mlops_assets.training import attempt
    from mlops_assets.training.trainer import Beat

    said: list[tuple[str, str]] = []
    landing = Landing("tires", "demo-1", None)
    demo = Demo(settings, [landing])
    demo._say = lambda kind, text: said.append((kind, text))
    demo._heartbeat(landing)
    assert said == [], "nothing trains"
    for version, folder in (("demo-1", "a"), ("other", "b")):
        workdir = settings.home / "training" / folder
        workdir.mkdir(parents=True)
        told: list[str] = []
        table = SimpleNamespace(dataset_version=version)
        heart = attempt._heart(SimpleNamespace(system="tires", variant="cnn", table=table, workdir=workdir, say=told.append))
        heart(Beat(40, 400, 0.5123, 240.0))
        heart(Beat(41, 400, 0.5, 239.0))
        assert told == ["step 40 of 400, loss 0.512, at most about 4 min left"], "the run's log hears of it more seldom"
    demo._heartbeat(landing)
    assert said == [("step", "tires demo-1: training cnn: step 41 of 400, loss 0.500, at most about 4 min left")]
    landing.next_beat = 0
    demo._heartbeat(landing)
    assert len(said) == 1, "no step was made"
    heart(Beat(42, 400, None, 30.0))  # of the other version
    os.utime(settings.home / "training" / "a" / attempt.NOW, (0, 0))
    landing.beat, landing.next_beat = ("", 0), 0
    demo._heartbeat(landing)
    assert len(said) == 1, "a training that was killed long ago says nothing"
