"""The gate through Dagster's own doors: every way around the blocking check still ends at the registrar."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import dagster as dg
import pytest
from sqlalchemy import text

from mlops_assets.lifecycle import history, ledger, pipeline, promotion
from mlops_assets.lifecycle.report import Report, UnknownMetric
from mlops_assets.lifecycle.signing import KeyProblem, load_signer, rotate_key
from mlops_assets.settings import SettingsError, canonical
from mlops_assets_tests.factories import config_of
from mlops_assets_tests.toy import toy_definitions, toy_system


class Runs:
    """The toy's graph on one instance; each call is one run."""

    def __init__(self, world, platform, instance, qualities, config=None, variants=None, **more):
        self.world, self.instance = world, instance
        self.definitions = toy_definitions(platform, config, qualities, variants, **more)
        for version in qualities:
            world.dataset(version)
            instance.add_dynamic_partitions("toy_dataset_version", [version])

    def job(self, version, job="toy_pipeline", **arguments):
        return self.definitions.resolve_job_def(job).execute_in_process(
            instance=self.instance, partition_key=version, raise_on_error=False, **arguments
        )

    def assets(self, version, *layers):
        job = self.definitions.resolve_implicit_global_asset_job_def()
        return job.execute_in_process(
            instance=self.instance,
            partition_key=version,
            raise_on_error=False,
            asset_selection=[dg.AssetKey(["toy", layer]) for layer in layers],
        )

    def champion(self):
        with self.world.engine.connect() as connection:
            found, _ = promotion.latest_verified(connection, "toy", "champion", self.world.settings.public_keys_path)
            return (found.version, found.dataset_version) if found else None

    def materialized(self, layer):
        return sorted(self.instance.get_materialized_partitions(dg.AssetKey(["toy", layer])))

    def outcome(self, result):
        return self.instance.get_run_by_id(result.run_id).tags.get("mlops/outcome")


def test_a_good_version_becomes_champion_in_a_green_run(world, platform, instance):
    runs = Runs(world, platform, instance, {"v1": 0.86})
    result = runs.job("v1")
    assert result.success and runs.outcome(result) == "promoted" and runs.champion() == (1, "v1")
    assert runs.materialized("champion") == ["v1"]
    metadata = result.asset_materializations_for_node("toy__evaluation_report")[0].metadata
    assert metadata["metric/f1"].value == 0.86 and metadata["bundle_sha256"].value and "data:image/png" in metadata["dot"].value
    assert metadata["worst"].records[0].data["text"] == "나쁨"
    metadata = result.asset_materializations_for_node("toy__registered_model")[0].metadata
    assert metadata["why"].value == "F1 0.860 >= 0.800 (no champion yet)"


def test_registered_but_not_better_leaves_champion_unmaterialized_in_a_green_run(world, platform, instance):
    runs = Runs(world, platform, instance, {"v1": 0.9, "v2": 0.86})
    assert runs.job("v1").success
    result = runs.job("v2")
    assert result.success and runs.outcome(result) == "registered"
    assert runs.champion() == (1, "v1") and runs.materialized("champion") == ["v1"]
    assert runs.materialized("registered_model") == ["v1", "v2"]


def test_a_refused_model_ends_its_run_red_keeps_what_was_built_and_says_why(world, platform, instance):
    runs = Runs(world, platform, instance, {"bad": 0.5})
    result = runs.job("bad")
    assert not result.success and runs.outcome(result) == "refused"
    assert runs.materialized("evaluation_report") == ["bad"] and runs.materialized("registered_model") == []
    check = result.get_asset_check_evaluations()[0]
    assert not check.passed and check.blocking and check.metadata["why"].value == "F1 0.500 < 0.800"
    assert runs.champion() is None


def test_the_downstream_asset_alone_is_refused(world, platform, instance):
    runs = Runs(world, platform, instance, {"bad": 0.5, "good": 0.9})
    runs.job("bad"), runs.assets("good", "dataset", "cleaned", "trained_model", "evaluation_report")
    alone = runs.assets("bad", "registered_model")
    assert not alone.success and "F1 0.500 < 0.800" in alone.get_step_failure_events()[0].step_failure_data.user_failure_data.description
    assert not runs.assets("bad", "champion").success and runs.champion() is None
    # Control: the same two assets alone, on good evidence.
    assert runs.assets("good", "registered_model").success and runs.champion() == (1, "good")


def _point_at(connection, report_id, signer):
    """The row that the downstream asset finds its report by: signed, as if that hurdle had been taken."""
    ledger.put_value(connection, "toy/evaluation_report", "bad", "psql", {"attempt_id": 1, "report_id": report_id}, signer)


@pytest.mark.parametrize("signed", ["not", "as another report was", "with a key of one's own"])
def test_evidence_inserted_with_psql_is_refused_on_every_path(world, platform, instance, signed, tmp_path):
    runs = Runs(world, platform, instance, {"bad": 0.5})
    assert not runs.job("bad").success
    with world.engine.begin() as connection:
        written, signature, key_id = connection.execute(text("SELECT body::text, signature, key_id FROM report")).one()
        better = json.loads(written) | {"metrics": {"f1": 0.99, "accuracy": 0.99, "loss": 0.01}}
        body = canonical(better)
        if signed == "not":
            signature = key_id = None
        elif signed == "with a key of one's own":
            own = world.settings.model_copy(update={"home": tmp_path / "own", "signing_key": None})
            rotate_key(own)
            signer = load_signer(own)
            signature, key_id = signer.sign(f"report of attempt 1\n{body}"), signer.key_id
        forged = connection.execute(
            text(
                "INSERT INTO report (attempt_id, system, bundle_sha256, manifest_sha256, holdout_sha256, body, body_sha256, "
                "signature, key_id) "
                "SELECT attempt_id, system, bundle_sha256, manifest_sha256, holdout_sha256, :body, :sha, :signature, :key_id FROM report "
                "RETURNING id"
            ),
            {"body": body, "sha": hashlib.sha256(body.encode()).hexdigest(), "signature": signature, "key_id": key_id},
        ).scalar_one()
        _point_at(connection, forged, load_signer(world.settings))
    # The check and the asset in one run, the asset alone, the registrar alone.
    selection = dg.AssetSelection.checks_for_assets(["toy", "evaluation_report"]) | dg.AssetSelection.assets(["toy", "registered_model"])
    joint = dg.Definitions.merge(runs.definitions, dg.Definitions(jobs=[dg.define_asset_job("joint", selection=selection)]))
    together = joint.resolve_job_def("joint").execute_in_process(instance=instance, partition_key="bad", raise_on_error=False)
    check = together.get_asset_check_evaluations()[0]
    assert not together.success and not check.passed and check.metadata["code"].value == "unverified_report"
    alone = runs.assets("bad", "registered_model")
    failure = alone.get_step_failure_events()[0].step_failure_data.user_failure_data
    assert not alone.success and "materialize evaluation_report again" in failure.description
    assert failure.metadata["code"].value == "unverified_report" and runs.outcome(alone) == "refused"
    assert world.registrar().register(1, forged).verdict.code == "unverified_report"
    assert not runs.assets("bad", "champion").success and runs.champion() is None
    with world.engine.begin() as connection:
        assert connection.execute(text("SELECT (SELECT count(*) FROM receipt) + (SELECT count(*) FROM promotion)")).scalar_one() == 0
        # Control: the same figures, recorded through the door.
        _point_at(
            connection,
            ledger.record_report(connection, Report.from_body(better), None, load_signer(world.settings)),
            load_signer(world.settings),
        )
    assert runs.assets("bad", "registered_model").success and runs.champion() == (1, "bad")


def test_an_evaluation_that_could_not_be_signed_says_so_and_measures_nothing(world, platform, instance):
    runs = Runs(world, platform, instance, {"v1": 0.9})
    assert runs.assets("v1", "dataset", "cleaned", "trained_model").success
    world.settings.signing_key_path.unlink()

    def never(*_):
        raise AssertionError("measured what cannot be recorded")

    with pytest.raises(KeyProblem, match="mlops up"):
        pipeline.evaluate(platform, replace(toy_system(), evaluate=never), 1, run_id="r")


def test_deselecting_the_checks_changes_nothing(world, platform, instance):
    runs = Runs(world, platform, instance, {"bad": 0.5, "good": 0.9})
    job = dg.define_asset_job("unchecked", selection=dg.AssetSelection.groups("toy") - dg.AssetSelection.all_asset_checks())
    unchecked = dg.Definitions.merge(runs.definitions, dg.Definitions(jobs=[job])).resolve_job_def("unchecked")
    result = unchecked.execute_in_process(instance=instance, partition_key="bad", raise_on_error=False)
    assert not result.success and not result.get_asset_check_evaluations() and runs.champion() is None
    assert unchecked.execute_in_process(instance=instance, partition_key="good", raise_on_error=False).success
    assert runs.champion() == (1, "good")


def test_a_check_weakened_to_a_warning_changes_nothing(world, platform, instance, monkeypatch):
    """As if somebody lowered the severity: the joint run no longer stops at the check, the registrar still refuses."""
    original = dg.AssetCheckResult
    monkeypatch.setattr(dg, "AssetCheckResult", lambda **values: original(**{**values, "severity": dg.AssetCheckSeverity.WARN}))
    runs = Runs(world, platform, instance, {"bad": 0.5})
    result = runs.job("bad")
    assert not result.success and runs.champion() is None
    failed = [event.step_key for event in result.get_step_failure_events()]
    assert failed == ["toy__registered_model"]


def test_control_a_downstream_that_trusts_the_check_lets_the_bad_model_through(world, platform, instance):
    """Why the registrar decides again: Dagster's blocking check stops only its own run."""
    served = []

    @dg.asset(key=["toy", "naive_champion"], deps=[["toy", "evaluation_report"]])
    def naive_champion() -> None:
        served.append("bad")

    runs = Runs(world, platform, instance, {"bad": 0.5})
    runs.definitions = dg.Definitions.merge(runs.definitions, dg.Definitions(assets=[naive_champion]))
    assert not runs.job("bad").success
    dg.materialize([naive_champion], instance=instance, selection=[naive_champion])
    assert served == ["bad"] and runs.champion() is None


@pytest.mark.parametrize("quality", ["nan"])
def test_nan_is_refused_through_the_graph(world, platform, instance, quality):
    runs = Runs(world, platform, instance, {"v1": quality})
    result = runs.job("v1")
    assert runs.outcome(result) == "refused" and "not a number" in result.get_asset_check_evaluations()[0].description


def test_a_report_of_the_attempt_before_is_refused(world, platform, instance):
    """Trained again, but registered with the old report: the bundle that was measured is not the one that would be served."""
    runs = Runs(world, platform, instance, {"v1": 0.9})
    runs.assets("v1", "dataset", "cleaned", "trained_model", "evaluation_report")
    again = {"ops": {"toy__trained_model": {"config": {"quality": 0.95}}}}
    job = runs.definitions.resolve_implicit_global_asset_job_def()
    assert job.execute_in_process(
        instance=instance, partition_key="v1", run_config=again, asset_selection=[dg.AssetKey(["toy", "trained_model"])]
    ).success
    stale = runs.assets("v1", "registered_model")
    assert not stale.success and runs.champion() is None
    assert "the report is of attempt 1" in stale.get_step_failure_events()[0].step_failure_data.user_failure_data.description
    assert runs.assets("v1", "evaluation_report", "registered_model").success and runs.champion() == (1, "v1")


def test_backfilling_versions_one_refusal_hides_nothing_and_a_table_compares_them(world, platform, instance):
    runs = Runs(world, platform, instance, {"v1": 0.85, "v2": 0.5, "v3": 0.9})
    assert [runs.job(version).success for version in ("v3", "v2", "v1")] == [True, False, True]
    assert runs.champion() == (1, "v3"), "the older v1 registers, it does not displace"
    with world.engine.connect() as connection:
        table = {row["dataset_version"]: row["verdict"] for row in history.compare(connection, "toy", world.settings.public_keys_path)}
    assert table == {"v1": "registered", "v2": "refused", "v3": "promoted"}


def test_manual_policy_then_the_champion_asset_by_hand(world, platform, instance):
    runs = Runs(world, platform, instance, {"v1": 0.9}, config_of(mode="manual"))
    assert runs.job("v1").success and runs.champion() is None and runs.materialized("champion") == []
    assert runs.assets("v1", "champion").success and runs.champion() == (1, "v1")


def test_stage_produce_and_rollback_are_jobs(world, platform, instance):
    runs = Runs(world, platform, instance, {"v1": 0.85, "v2": 0.9}, config_of(mode="manual"))
    runs.job("v1"), runs.job("v2")

    def ledger_job(name, **config):
        return runs.definitions.resolve_job_def(f"toy_{name}").execute_in_process(
            instance=instance, run_config={"ops": {f"toy_{name}_op": {"config": config}}}, raise_on_error=False
        )

    assert ledger_job("stage").success
    assert ledger_job("produce", metric="Loss", reason="best").success and runs.champion() == (2, "v2")
    refused = ledger_job("rollback", reason="none before")
    assert not refused.success and runs.outcome(refused) == "refused"
    assert ledger_job("produce", metric="F1", version=1, reason="try").success and runs.champion() == (1, "v1")
    assert ledger_job("rollback", reason="worse").success and runs.champion() == (2, "v2")
    assert runs.materialized("champion") == ["v1", "v2"]
    with world.engine.connect() as connection:
        staged = connection.execute(text("SELECT reason FROM promotion WHERE channel = 'candidate'")).scalar_one()
    assert staged == "best F1 0.900", "empty: promotion.metric"


def test_forms_offer_the_systems_metrics_with_their_directions():
    from mlops_assets.lifecycle.jobs import metric_field
    from mlops_assets.systems.digits.training import SYSTEM

    metrics, described = metric_field(SYSTEM, "code_success", "Choose it by this metric.")
    assert described.default == metrics("Code_success")
    assert "Code_success: more is better, Loss: less is better" in described.description
    with pytest.raises(UnknownMetric, match="mape"):
        metric_field(SYSTEM, "mape", "")


def test_training_again_with_other_parameters_is_a_new_attempt(world, platform, instance):
    runs = Runs(world, platform, instance, {"v1": 0.85})
    runs.job("v1"), runs.job("v1")
    config = {"ops": {"toy__trained_model": {"config": {"quality": 0.9}}}}
    assert runs.job("v1", run_config=config).success and runs.champion() == (2, "v1")
    with world.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM attempt")).scalar_one() == 2


# --- several models -------------------------------------------------------------------------------------------------------------

VARIANTS = {"weak": 0.5, "strong": 0.86, "idle": 0.9}


def with_scenario(*names):
    config = config_of()
    return config.model_copy(update={"project": config.project.model_copy(update={"scenario": names})})


def test_a_refused_model_does_not_hide_the_others_of_its_run(world, platform, instance):
    runs = Runs(world, platform, instance, {"v1": None}, with_scenario("weak", "strong"), VARIANTS)
    result = runs.job("v1")
    assert not result.success, "a refusal is red"
    assert runs.champion() == (1, "v1")
    assert runs.materialized("champion") == ["v1"]
    trained = {variant: instance.get_materialized_partitions(dg.AssetKey(["toy", variant, "trained_model"])) for variant in VARIANTS}
    assert trained == {"weak": {"v1"}, "strong": {"v1"}, "idle": set()}, "only the scenario's models are trained"
    assert not instance.get_materialized_partitions(dg.AssetKey(["toy", "weak", "registered_model"]))


def test_a_run_of_several_models_keeps_what_came_of_each_and_why(world, platform, instance):
    runs = Runs(world, platform, instance, {"v1": None}, with_scenario(), {"weak": 0.5, "best": 0.9, "good": 0.85, "weaker": 0.4})
    tags = instance.get_run_by_id(runs.job("v1").run_id).tags
    outcomes = {name.removeprefix("mlops/outcome."): value for name, value in tags.items() if name.startswith("mlops/outcome.")}
    assert outcomes == {"weak": "refused", "best": "promoted", "good": "registered", "weaker": "refused"}
    assert tags["mlops/why.weak"] == "F1 0.500 < 0.800" and "0.850 " in tags["mlops/why.good"] and "0.900" in tags["mlops/why.best"]
    assert tags["mlops/outcome"] == "refused", "what made the run red, whichever model came last"
    assert tags["mlops/why"] == "weak: F1 0.500 < 0.800; weaker: F1 0.400 < 0.800"


def test_a_run_of_which_no_model_was_refused_says_that_one_was_promoted(world, platform, instance):
    runs = Runs(world, platform, instance, {"v1": None}, with_scenario(), {"best": 0.9, "good": 0.85})
    tags = instance.get_run_by_id(runs.job("v1").run_id).tags
    assert (tags["mlops/outcome"], tags["mlops/outcome.good"]) == ("promoted", "registered") and tags["mlops/why"].startswith("best: ")


def test_a_run_says_why_in_its_tags(world, platform, instance):
    runs = Runs(world, platform, instance, {"good": 0.9, "worse": 0.86, "bad": 0.5})
    why = {version: instance.get_run_by_id(runs.job(version).run_id).tags["mlops/why"] for version in ("good", "worse", "bad")}
    assert why["bad"].startswith("F1 0.500 < 0.800") and "no champion yet" in why["good"] and "champion 0.900" in why["worse"]
    rollback = runs.definitions.resolve_job_def("toy_rollback").execute_in_process(
        instance=instance, run_config={"ops": {"toy_rollback_op": {"config": {"reason": "r"}}}}, raise_on_error=False
    )
    assert "only champion there ever was" in instance.get_run_by_id(rollback.run_id).tags["mlops/why"]


@pytest.mark.parametrize("job", ["toy_pipeline", "toy_register"])
def test_the_champion_that_serves_is_not_red_because_another_was_refused(world, platform, instance, job):
    """Dagster shows an asset red whose materialization was planned by a run that failed."""
    runs = Runs(world, platform, instance, {"good": 0.9, "bad": 0.5})
    assert runs.job("good").success
    if job == "toy_register":
        runs.assets("bad", "dataset", "cleaned", "trained_model", "evaluation_report")
    assert not runs.job("bad", job).success

    def planned(*key):
        return instance.get_latest_planned_materialization_info(dg.AssetKey(["toy", *key]), partition="bad")

    assert planned("champion") is None and planned("registered_model") is not None  # the latter is a control
    (event,) = instance.fetch_materializations(dg.AssetKey(["toy", "champion"]), limit=9).records
    found = event.asset_materialization
    assert found.partition == "good" and found.metadata["metric/f1"].value == 0.9 and found.metadata["sequence"].value == 1
    assert found.tags["dagster/data_version"].startswith("1-")


def test_materialized_together_the_champion_is_reported_once(world, platform, instance):
    runs = Runs(world, platform, instance, {"good": 0.9})
    assert runs.assets("good", "dataset", "cleaned", "trained_model", "evaluation_report", "registered_model", "champion").success
    assert len(instance.fetch_materializations(dg.AssetKey(["toy", "champion"]), limit=9).records) == 1


def test_without_a_scenario_every_model_is_trained_and_the_best_is_champion(world, platform, instance):
    runs = Runs(world, platform, instance, {"v1": None}, with_scenario(), VARIANTS)
    runs.job("v1")
    assert instance.get_materialized_partitions(dg.AssetKey(["toy", "idle", "trained_model"])) == {"v1"}
    with world.engine.connect() as connection:
        found, _ = promotion.latest_verified(connection, "toy", "champion", world.settings.public_keys_path)
    assert found.receipt.variant == "idle"


@pytest.mark.parametrize("variants", [{"a": 0.82, "b": 0.9, "c": 0.86}, {"a": 0.9, "b": 0.82, "c": 0.86}])
def test_the_best_model_of_a_run_is_champion_in_whatever_order_they_register(world, platform, instance, variants):
    runs = Runs(world, platform, instance, {"v1": None}, with_scenario(), variants)
    assert runs.job("v1").success
    with world.engine.connect() as connection:
        found, _ = promotion.latest_verified(connection, "toy", "champion", world.settings.public_keys_path)
        codes = set(connection.execute(text("SELECT code FROM verdict WHERE outcome = 'registered'")).scalars())
    assert variants[found.receipt.variant] == 0.9
    assert "not_better" in codes or found.sequence > 1, "the others were compared, not passed over"


def test_a_scenario_with_an_unknown_model_names_the_known_ones(world, platform, instance):
    with pytest.raises(SettingsError, match=r"strongest is no model of toy; choose from weak, strong, idle"):
        Runs(world, platform, instance, {"v1": None}, with_scenario("strongest"), VARIANTS)
