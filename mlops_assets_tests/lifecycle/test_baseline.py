"""What needs no model, and what needs a minute: no model is promoted that they beat."""

from __future__ import annotations

import math
from dataclasses import replace

import dagster as dg
import pytest
from sqlalchemy import text

from mlops_assets.lifecycle import ledger, pipeline, promotion
from mlops_assets.lifecycle.gate import decide, objection
from mlops_assets.lifecycle.registrar import Refused
from mlops_assets.lifecycle.report import BaselineScore, Report
from mlops_assets_tests.factories import config_of
from mlops_assets_tests.lifecycle.test_assets import Runs
from mlops_assets_tests.lifecycle.test_gate import CHAMPION, POLICY, REPORT, SUBJECT
from mlops_assets_tests.toy import toy_system

ALWAYS = {"always yes": {"f1": 0.857, "accuracy": 0.99}}
BASELINE = BaselineScore("linear", 6, "l" * 64, {"f1": 0.86})


# --- the gate ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("f1", "outcome"), [(0.8565, "refused"), (0.857, "refused"), (0.8575, "promoted")])
def test_what_is_no_better_than_a_trivial_answer_is_refused(f1, outcome):
    """Accuracy, in which it is worse, decides nothing here."""
    report = replace(REPORT, metrics=REPORT.metrics | {"f1": f1}, trivial=ALWAYS)
    verdict = decide(report, None, POLICY, SUBJECT)
    assert verdict.outcome == outcome
    if outcome == "refused":
        assert verdict.code == "worse_than_trivial"
        assert verdict.sentence == f"F1 {f1:.3f} is no better than that of answering 'always yes': 0.857"
    assert decide(replace(report, trivial={}), None, POLICY, SUBJECT).outcome == "promoted", "a control"


def test_a_metric_of_the_thresholds_decides_too_and_in_its_own_direction():
    policy = replace(POLICY, thresholds={"f1": 0.5, "loss": 0.9})
    for loss, code in ((0.3, "worse_than_trivial"), (0.4, "worse_than_trivial"), (0.5, "first")):
        assert decide(replace(REPORT, trivial={"the prior": {"loss": loss}}), None, policy, SUBJECT).code == code


@pytest.mark.parametrize("champion", [None, CHAMPION])
@pytest.mark.parametrize(("figure", "code"), [(0.862, "worse_than_baseline"), (0.861, "worse_than_baseline"), (0.86, None)])
def test_what_is_no_better_than_the_baseline_is_registered_and_never_promoted(champion, figure, code):
    report = replace(REPORT, champion=champion, baseline=replace(BASELINE, metrics={"f1": figure}))
    verdict = decide(report, champion, POLICY, SUBJECT)
    assert (verdict.outcome, verdict.code) == (("registered", code) if code else ("promoted", "better" if champion else "first"))
    if code:
        assert f"no better than the baseline linear on the same rows ({figure:.3f})" in verdict.sentence


def test_a_network_behind_its_baseline_is_registered_also_where_it_falls_behind_that_as_champion():
    """Refused it would make each run red in which the baseline is better; what beats the baseline may fall nowhere, as ever."""
    policy = replace(POLICY, max_fall={"accuracy": 0.01})
    champion = replace(CHAMPION, metrics={"f1": 0.9, "accuracy": 0.9})
    report = replace(REPORT, champion=champion, baseline=replace(BASELINE, metrics={"f1": 0.9}))
    assert decide(report, champion, policy, SUBJECT).code == "worse_than_baseline"
    assert decide(replace(report, baseline=BASELINE), champion, policy, SUBJECT).code == "worse_than_champion"
    assert objection(report, champion, policy).code == "worse_than_champion", "a person hears of it"


@pytest.mark.parametrize(
    "baseline", [BaselineScore("linear", missing="train it"), replace(BASELINE, metrics={}), replace(BASELINE, metrics={"f1": math.nan})]
)
def test_what_was_not_measured_beside_the_baseline_is_not_promoted(baseline):
    verdict = decide(replace(REPORT, baseline=baseline), None, POLICY, SUBJECT)
    assert (verdict.outcome, verdict.code) == (
        "registered",
        "no_baseline",
    ) and "not measured beside the baseline linear" in verdict.sentence


def test_a_report_of_before_keeps_its_digest_and_a_new_one_survives_json():
    assert not {"trivial", "baseline"} & set(REPORT.body())
    report = replace(REPORT, trivial={"always yes": {"f1": 1}}, baseline=replace(BASELINE, metrics={"f1": math.nan}))
    back = Report.from_body(report.body())
    assert back.sha256 == report.sha256 and back.trivial == report.trivial and math.isnan(back.baseline.metrics["f1"])


# --- through Dagster's doors ------------------------------------------------------------------------------------------------------


def test_a_network_that_is_worse_than_the_baseline_is_registered_not_promoted(world, platform, instance):
    """The baseline is served before the network trains; a better network displaces it."""
    runs = Runs(world, platform, instance, {"v1": None}, variants={"deep": 0.85, "linear": 0.86}, baseline="linear")
    result = runs.job("v1")
    assert result.success and runs.champion() == (1, "v1") and runs.outcome(result) == "promoted"
    tags = instance.get_run_by_id(result.run_id).tags
    assert tags["mlops/outcome.deep"] == "registered" and "no better than the baseline linear" in tags["mlops/why.deep"]
    steps = [event.step_key for event in result.all_events if event.is_step_start]
    assert steps.index("toy__linear__registered_model") < steps.index("toy__deep__trained_model")
    shown = result.asset_materializations_for_node("toy__deep__evaluation_report")[0].metadata["beside"].records
    assert [row.data["answered by"] for row in shown] == ["the baseline linear", "this model"]

    better = Runs(world, platform, instance, {"v2": None}, variants={"deep": 0.95, "linear": 0.86}, baseline="linear")
    assert better.job("v2").success
    with world.engine.connect() as connection:
        champion, _ = promotion.latest_verified(connection, "toy", "champion", world.settings.public_keys_path)
    assert champion.receipt.variant == "deep" and champion.receipt.evidence.baseline.metrics["f1"] == 0.86


def test_a_model_that_is_worse_than_flagging_everything_is_refused(world, platform, instance):
    runs = Runs(world, platform, instance, {"v1": 0.847}, trivial={"flag everything": 0.857})
    result = runs.job("v1")
    assert not result.success and runs.outcome(result) == "refused" and runs.champion() is None
    why = result.get_asset_check_evaluations()[0].metadata["why"].value
    assert why == "F1 0.847 is no better than that of answering 'flag everything': 0.857"
    control = Runs(world, platform, instance, {"v2": 0.87}, trivial={"flag everything": 0.857})
    assert control.job("v2").success and control.champion() == (1, "v2")


def test_a_scenario_begins_with_the_baseline_also_where_it_does_not_name_it(world, platform, instance):
    config = config_of()
    config = config.model_copy(update={"project": config.project.model_copy(update={"scenario": ("deep",)})})
    runs = Runs(world, platform, instance, {"v1": None}, config=config, variants={"deep": 0.95, "linear": 0.86}, baseline="linear")
    assert runs.job("v1").success
    with world.engine.connect() as connection:
        trained = [found.variant for found in ledger.attempts(connection, "toy", world.settings.public_keys_path)]
    assert trained == ["deep", "linear"], "the newest first"


def test_without_its_baseline_a_network_waits_for_it_and_a_person_needs_the_override(world, platform, instance):
    runs = Runs(world, platform, instance, {"v1": None}, variants={"deep": 0.95, "linear": 0.86}, baseline="linear")
    layers = ("trained_model", "evaluation_report", "registered_model")
    keys = [dg.AssetKey(["toy", "dataset"]), dg.AssetKey(["toy", "cleaned"]), *(dg.AssetKey(["toy", "deep", layer]) for layer in layers)]
    result = runs.job("v1", "toy_models", asset_selection=keys)
    why = instance.get_run_by_id(result.run_id).tags["mlops/why.deep"]
    assert result.success and runs.champion() is None
    assert "not trained on v1: `mlops train toy --dataset-version v1 --model-type linear`" in why
    registrar = world.registrar()
    with pytest.raises(Refused, match="not measured beside the baseline linear"):
        registrar.produce(reason="it is better", version=1)
    assert registrar.produce(reason="it is better", version=1, override=True).version == 1


def test_a_forged_baseline_counts_for_nothing(world, platform, instance):
    """Whoever can insert attempts could name a weaker one the baseline."""
    runs = Runs(world, platform, instance, {"v1": None}, variants={"deep": 0.85, "linear": 0.86}, baseline="linear")
    runs.job("v1")
    with world.engine.begin() as connection:
        columns = "system, dataset_version, manifest_sha256, config, config_sha256, code_version, git_commit, seed, fingerprint"
        columns += ", bundle_sha256, bundle_files, metrics"
        weak = f"SELECT 'linear', {columns} FROM attempt WHERE variant = 'deep' RETURNING id"
        forged = connection.execute(text(f"INSERT INTO attempt (variant, {columns}) {weak}")).scalar_one()
    system = toy_system("toy", {"v1": None}, {"deep": 0.85, "linear": 0.86}, baseline="linear")
    report = pipeline.evaluate(platform, system, 2, run_id="again").report
    assert report.baseline.attempt_id == 1 < forged and report.baseline.metrics["f1"] == 0.86
