"""Whoever may land data chooses the exam, too: holdouts that would make anything champion, through the real runs, gate and registrar."""

from __future__ import annotations

from dataclasses import replace

import dagster as dg
import pytest
from sqlalchemy import text

from mlops_assets.lifecycle import ledger, pipeline, promotion
from mlops_assets.tracking import Tracking
from mlops_assets_tests.factories import World, config_of
from mlops_assets_tests.toy import Holdout, toy_definitions, toy_system

#: The champion is good in the world that its users live in; the attacker's model knows another one only.
QUALITIES = {"honest": {"ours": 0.86, "theirs": 0.3}, "attack": {"ours": 0.0, "theirs": 1.0}}
#: The rules as they were: any number of rows, one exam, and a p-value that is only shown.
BEFORE = {"min_rows": 1, "min_class_rows": 1, "max_earlier_fall": 1.0, "alpha": 1.0}


@pytest.fixture
def world(engine, settings, store):
    return World(engine, settings, store)


def champion_after(world, attack: Holdout, *, forgotten: bool = False, **promoting) -> tuple[str, str]:
    """The champion's data after the honest version and then the attacker's were landed, and the last verdict's sentence.

    Args:
        forgotten: the honest version's table is gone when the attacker's model is measured.
    """
    platform = pipeline.Platform(world.settings, world.engine, world.store, Tracking(None))
    holdouts: dict[str, Holdout | None] = {"honest": Holdout("ours", 500), "attack": attack}
    definitions = toy_definitions(platform, config_of(threshold=0.8, **promoting), QUALITIES, holdouts=holdouts)
    with dg.DagsterInstance.ephemeral() as instance:
        for version in QUALITIES:
            world.dataset(version)
            instance.add_dynamic_partitions("toy_dataset_version", [version])
            job = definitions.resolve_job_def("toy_pipeline")
            run = job.execute_in_process(instance=instance, partition_key=version, raise_on_error=False)
            seen = run.asset_materializations_for_node("toy__evaluation_report")[0].metadata
            if version == "attack":  # people see the second exam beside the first
                assert seen["earlier_holdout"].value == (
                    "not measured: toy honest is not cleaned yet: materialize `toy/cleaned` for it first"
                    if forgotten
                    else "honest, 500 rows"
                )
            if forgotten:
                holdouts["honest"] = None
    with world.engine.connect() as connection:
        found, _ = promotion.latest_verified(connection, "toy", "champion", world.settings.public_keys_path)
        said = connection.execute(text("SELECT outcome || ': ' || sentence FROM verdict ORDER BY id DESC LIMIT 1")).scalar_one()
    assert found is not None
    return found.dataset_version, said


def test_two_holdout_rows_of_another_world_replace_no_champion(world):
    found, said = champion_after(world, Holdout("theirs", 2))
    assert (found, said) == ("honest", "refused: the holdout has 2 rows, at least 100 are needed: land more labelled data")


def test_control_by_the_old_rules_two_rows_make_a_model_champion_that_knows_nothing(world):
    found, said = champion_after(world, Holdout("theirs", 2), **BEFORE)
    assert found == "attack" and "(champion 0.300, p 0.5)" in said, "accuracy 0.000 where the champion had 0.86"


def test_a_large_holdout_of_another_world_replaces_no_champion(world):
    """Enough rows, and significant on them: the champion's own holdout is the second exam."""
    found, said = champion_after(world, Holdout("theirs", 5000))
    assert found == "honest" and said.startswith("refused: F1 0.0000, -0.8600 against the champion's 0.8600")
    assert "on the champion's own holdout (honest, 500 rows)" in said


def test_control_by_the_old_rules_a_large_holdout_of_another_world_does(world):
    assert champion_after(world, Holdout("theirs", 5000), **BEFORE)[0] == "attack"


def test_where_the_champions_table_is_gone_nothing_is_promoted_by_itself(world):
    """Deleted, or forgotten on request and not cleaned again: the attack that first takes the exam away wins nothing either."""
    found, said = champion_after(world, Holdout("theirs", 5000), forgotten=True)
    assert found == "honest" and said.startswith("registered: F1 1.000 >= 0.800, better than the champion (champion 0.300, p 0)")
    assert "not measured on the champion's own holdout: toy honest is not cleaned yet: materialize `toy/cleaned` for it first" in said
    promoted = world.registrar(config_of(threshold=0.8)).produce(version=2, reason="a person decides")
    assert promoted.dataset_version == "attack", "a control: it is registered"


def test_the_second_exam_is_signed_with_the_report_and_nothing_is_measured_twice(world):
    """On the same rows the first exam is the second; on others each model is measured once, the champion by its receipt."""
    measured: list[str] = []

    def system_of(holdouts):
        system = toy_system("toy", QUALITIES, holdouts=holdouts)

        def evaluate(folder, table, threads):
            measured.append(f"{folder.name[:6]} on {table.dataset_version}")
            return system.evaluate(folder, table, threads)

        return replace(system, evaluate=evaluate)

    platform = pipeline.Platform(world.settings, world.engine, world.store, Tracking(None))
    config = config_of(threshold=0.8)
    for version in ("honest", "attack", "same"):
        world.dataset(version)
    for version, attack, times in (("honest", Holdout("theirs", 5000), 1), ("attack", Holdout("theirs", 5000), 3), ("same", Holdout(), 2)):
        holdouts = {"honest": Holdout("ours", 500), "attack": attack, "same": Holdout("ours", 500)}
        system = system_of(holdouts)
        quality = 0.9 if version == "same" else QUALITIES[version]
        given = {"variant": "", "dataset_version": version, "run_id": version, "overrides": {"quality": quality}}
        made = pipeline.train(platform, system, config, **given)
        measured.clear()
        done = pipeline.evaluate(platform, system, made.attempt.id, run_id=version)
        assert len(measured) == times == len(set(measured)), measured
        with world.engine.connect() as connection:
            report = ledger.report(connection, done.report_id, world.settings.public_keys_path)
        if version == "honest":
            world.registrar(config).register(made.attempt.id, done.report_id)
            assert report.champion is None
            continue
        earlier = report.champion.earlier
        assert (earlier.dataset_version, earlier.rows, earlier.champion["f1"]) == ("honest", 500, 0.86)
        assert earlier.metrics["f1"] == (0.9 if version == "same" else 0.0)
