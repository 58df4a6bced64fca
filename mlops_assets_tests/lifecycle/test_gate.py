"""The gate on every kind of bad evidence, each beside the good evidence that differs only in that."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError

from mlops_assets.lifecycle.gate import Policy, Subject, decide
from mlops_assets.lifecycle.report import CLASSIFIER, ChampionScore, Earlier, Report, UnknownMetric, directions_of, metric_name
from mlops_assets.settings import canonical
from mlops_assets_tests.factories import config_of

NOW = datetime(2026, 1, 2, tzinfo=UTC)
POLICY = Policy(thresholds={"f1": 0.85}, metric="f1")
SUBJECT = Subject(7, "b" * 64, "m" * 64, NOW)
EARLIER = Earlier("old", "h0", 500, {"f1": 0.85}, {"f1": 0.85})
CHAMPION = ChampionScore(3, "c" * 64, "old", {"f1": 0.847}, p_value=0.012, earlier=EARLIER)
REPORT = Report(
    system="toy",
    variant="",
    dataset_version="v1",
    attempt_id=7,
    bundle_sha256="b" * 64,
    manifest_sha256="m" * 64,
    holdout_sha256="h",
    rows=100,
    metrics={"f1": 0.861, "accuracy": 0.86, "loss": 0.4},
    created_at=NOW,
    directions=CLASSIFIER,
)


def test_control_the_good_report_is_promoted():
    assert decide(REPORT, None, POLICY, SUBJECT).outcome == "promoted"


@pytest.mark.parametrize(
    ("code", "report"),
    [
        ("missing_report", None),
        ("below_threshold", replace(REPORT, metrics={"f1": 0.8499999})),
        ("missing_metric", replace(REPORT, metrics={"accuracy": 0.99})),
        ("not_a_number", replace(REPORT, metrics={"f1": math.nan})),
        ("not_a_number", replace(REPORT, metrics={"f1": math.inf})),
        ("stale_report", replace(REPORT, created_at=NOW - timedelta(days=8))),
        ("stale_report", replace(REPORT, created_at=NOW + timedelta(days=1))),
        ("other_attempt", replace(REPORT, attempt_id=6)),
        ("other_attempt", replace(REPORT, bundle_sha256="x" * 64)),
        ("other_data", replace(REPORT, manifest_sha256="x" * 64)),
        ("empty_holdout", replace(REPORT, rows=0)),
    ],
)
def test_bad_evidence_is_refused(code, report):
    verdict = decide(report, None, POLICY, SUBJECT)
    assert (verdict.outcome, verdict.code) == ("refused", code)


@pytest.mark.parametrize(
    ("age", "outcome"),
    [
        (timedelta(days=7), "promoted"),
        (timedelta(days=7, microseconds=1), "refused"),
        (timedelta(minutes=-5), "promoted"),
        (timedelta(minutes=-5, microseconds=-1), "refused"),
    ],
)
def test_a_report_is_as_old_as_is_allowed_and_a_clock_that_goes_wrong_by_five_minutes_is_none(age, outcome):
    assert decide(replace(REPORT, created_at=NOW - age), None, POLICY, SUBJECT).outcome == outcome


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"attempt_id": 6}, f"the report is of attempt 6 (bundle {'b' * 12}), not of 7 (bundle {'b' * 12})"),
        ({"manifest_sha256": "x" * 64}, f"the report is of the manifest {'x' * 12}, not {'m' * 12}"),
        ({"created_at": NOW - timedelta(days=8)}, "the report is 192 h old, the limit is 168 h"),
        ({"metrics": {"accuracy": 0.9, "loss": 0.1}}, "F1 is missing from the report, which has accuracy, loss"),
        ({"metrics": {"f1": math.nan}}, "F1 is nan, not a number"),
        ({"directions": {}}, "nobody says whether more or less F1 is better: toy must declare it; known are none"),
    ],
)
def test_a_refusal_says_what_was_found_and_what_is_wanted(changes, sentence):
    assert decide(replace(REPORT, **changes), None, POLICY, SUBJECT).sentence == sentence


def test_the_sentence_of_what_passes_has_its_threshold_and_the_champion():
    less = Policy({"loss": 0.4}, "loss")
    assert decide(REPORT, None, less, SUBJECT).sentence == "Loss 0.400 <= 0.400 (no champion yet)"
    assert decide(REPORT, None, Policy({"accuracy": 0.5}, "f1"), SUBJECT).sentence == "F1 0.861 (no champion yet)", (
        "no threshold of its own"
    )
    better = decide(replace(REPORT, champion=CHAMPION), CHAMPION, POLICY, SUBJECT)
    assert better.sentence == "F1 0.861 >= 0.850, better than the champion (champion 0.847, p 0.012)"


def test_the_champions_figure_stands_beside_the_metric_that_decides_and_no_other():
    report = replace(REPORT, metrics={"f1": 0.9, "accuracy": 0.5}, champion=replace(CHAMPION, metrics={"f1": 0.847, "accuracy": 0.9}))
    policy = Policy({"f1": 0.85, "accuracy": 0.8}, "f1")
    assert decide(report, CHAMPION, policy, SUBJECT).sentence == "Accuracy 0.500 < 0.800"


def test_an_improvement_of_exactly_what_is_asked_for_is_none():
    theirs = replace(CHAMPION, metrics={"f1": 0.5})
    report = replace(REPORT, metrics={"f1": 1.0}, champion=theirs)
    assert decide(report, theirs, replace(POLICY, min_improvement=0.5), SUBJECT).code == "not_better"
    assert decide(report, theirs, replace(POLICY, min_improvement=0.499), SUBJECT).outcome == "promoted"


def test_of_two_falls_the_one_that_goes_further_beyond_what_is_allowed_is_told():
    verdict = against(accuracy=0.8, loss=0.46)
    assert verdict.sentence.startswith("Accuracy 0.8000, -0.0600")


def test_no_threshold_refuses_rather_than_lets_everything_through():
    assert decide(REPORT, None, Policy({}, "f1"), SUBJECT).code == "no_threshold"


def test_every_threshold_counts_in_its_own_direction():
    policy = Policy({"f1": 0.85, "loss": 0.3}, "f1")
    verdict = decide(REPORT, None, policy, SUBJECT)
    assert (verdict.outcome, verdict.sentence) == ("refused", "Loss 0.400 > 0.300")
    assert decide(REPORT, None, Policy({"f1": 0.85, "loss": 0.4}, "f1"), SUBJECT).outcome == "promoted"


def test_the_sentence_has_the_numbers():
    report = replace(REPORT, metrics={"f1": 0.812}, champion=CHAMPION)
    assert decide(report, CHAMPION, POLICY, SUBJECT).sentence == "F1 0.812 < 0.850 (champion 0.847)"
    assert "최소값을 넘지 못해 모델 등록에 실패하였습니다." in decide(report, CHAMPION, POLICY, SUBJECT).sentence_ko


def test_better_than_the_champion_on_the_same_rows_is_promoted():
    assert decide(replace(REPORT, champion=CHAMPION), CHAMPION, POLICY, SUBJECT).outcome == "promoted"


@pytest.mark.parametrize(
    ("code", "report", "champion", "policy", "subject"),
    [
        ("not_better", replace(REPORT, champion=replace(CHAMPION, metrics={"f1": 0.861})), CHAMPION, POLICY, SUBJECT),
        ("not_better", replace(REPORT, champion=CHAMPION), CHAMPION, replace(POLICY, min_improvement=0.02), SUBJECT),
        ("champion_changed", replace(REPORT, champion=replace(CHAMPION, bundle_sha256="z")), CHAMPION, POLICY, SUBJECT),
        ("champion_changed", REPORT, CHAMPION, POLICY, SUBJECT),
        ("champion_unmeasured", replace(REPORT, champion=replace(CHAMPION, metrics={"f1": math.nan})), CHAMPION, POLICY, SUBJECT),
        ("older_data", replace(REPORT, champion=CHAMPION), CHAMPION, POLICY, replace(SUBJECT, newest_data=False)),
        ("manual", replace(REPORT, champion=CHAMPION), CHAMPION, replace(POLICY, auto_promote=False), SUBJECT),
        ("already_champion", REPORT, replace(CHAMPION, bundle_sha256="b" * 64), POLICY, SUBJECT),
    ],
)
def test_good_enough_but_not_to_be_promoted_is_registered(code, report, champion, policy, subject):
    verdict = decide(report, champion, policy, subject)
    assert (verdict.outcome, verdict.code) == ("registered", code)


def test_a_report_survives_its_way_through_json_with_nan():
    report = replace(REPORT, metrics={"f1": math.nan, "loss": math.inf}, champion=CHAMPION)
    back = Report.from_body(report.body())
    assert math.isnan(back.metrics["f1"]) and back.metrics["loss"] == math.inf
    assert back.sha256 == report.sha256 and back.champion == CHAMPION


def test_metric_names_as_people_write_them():
    known = ["accuracy", "f1", "loss"]
    assert [metric_name(name, known) for name in ("F1", "F1_Score", "Loss", "accuracy")] == ["f1", "f1", "loss", "accuracy"]
    with pytest.raises(UnknownMetric, match="choose one of accuracy, f1, loss"):
        metric_name("AUC", known)


def test_a_metric_whose_direction_nobody_declared_is_refused():
    """`mape 5.0 >= 0.2` is no good forecast: unknown, more of it was taken to be better."""
    report = replace(REPORT, metrics=REPORT.metrics | {"mape": 5.0})
    for policy in (Policy({"mape": 0.2}, "mape"), Policy({"f1": 0.85, "mape": 0.2}, "f1"), Policy({"f1": 0.85}, "mape")):
        verdict = decide(report, None, policy, SUBJECT)
        assert (verdict.outcome, verdict.code) == ("refused", "unknown_direction") and "Mape" in verdict.sentence
    falls = decide(replace(report, champion=CHAMPION), CHAMPION, replace(POLICY, max_fall={"mape": 0.1}), SUBJECT)
    assert (falls.outcome, falls.code) == ("refused", "unknown_direction")
    declared = replace(report, directions={**CLASSIFIER, "mape": "less"})
    assert decide(declared, None, Policy({"mape": 0.2}, "mape"), SUBJECT).sentence == "Mape 5.000 > 0.200"
    assert decide(declared, None, Policy({"mape": 5.0}, "mape"), SUBJECT).outcome == "promoted", "a control"


def test_directions_are_those_of_the_system_that_reports_not_of_a_name():
    """What one system counts as good another may count as bad: here more of `loss` is better, as of a shop that reports its margin."""
    odd = replace(REPORT, metrics={"loss": 5.0}, directions={"loss": "more"})
    assert decide(odd, None, Policy({"loss": 0.2}, "loss"), SUBJECT).outcome == "promoted"
    assert decide(replace(odd, directions={"loss": "less"}), None, Policy({"loss": 0.2}, "loss"), SUBJECT).outcome == "refused"


def test_a_family_of_metrics_is_declared_once():
    declared = {"recall_*": "more", "recall_of_spam": "less"}
    assert directions_of(declared, ["recall_1", "recall_of_spam", "precision"]) == {"recall_1": "more", "recall_of_spam": "less"}


# --- what may not fall against the champion ---------------------------------------------------------------------------------------

FALLS = replace(POLICY, max_fall={"accuracy": 0.01, "loss": 0.05})
THEIRS = {"f1": 0.847, "accuracy": 0.86, "loss": 0.4}


def against(theirs=THEIRS, policy=FALLS, bundle="c", **ours):
    """The verdict on a report with those figures beside the champion's on the same rows."""
    champion = replace(CHAMPION, metrics=theirs)
    report = replace(REPORT, metrics=REPORT.metrics | ours, champion=replace(champion, bundle_sha256=bundle * 64))
    return decide(report, champion, policy, SUBJECT)


def test_control_a_better_model_that_falls_nowhere_is_promoted():
    assert against().outcome == "promoted"
    assert against(accuracy=0.85, loss=0.45).outcome == "promoted", "exactly as much as is allowed"


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        ({"accuracy": 0.8499}, "Accuracy 0.8499, -0.0101 against the champion's 0.8600; it may change by 0.01 at most"),
        ({"loss": 0.46}, "Loss 0.4600, +0.0600 against the champion's 0.4000; it may change by 0.05 at most"),
        ({"loss": 0.46, "accuracy": 0.7}, "Accuracy 0.7000, -0.1600"),
    ],
)
def test_what_is_better_on_the_whole_and_falls_where_it_may_not_is_refused(ours, said):
    verdict = against(**ours)
    assert (verdict.outcome, verdict.code) == ("refused", "worse_than_champion") and said in verdict.sentence
    assert against(policy=POLICY, **ours).outcome == "promoted", "a control: without the rule it passes"


def test_a_figure_that_may_not_fall_must_be_measured_on_both_sides():
    assert against(policy=replace(FALLS, max_fall={"recall": 0.1})).code == "missing_metric"
    assert against(accuracy=math.nan).code == "not_a_number"
    unknown = against(theirs={"f1": 0.847, "loss": 0.4})
    assert (unknown.outcome, unknown.code) == ("registered", "champion_unmeasured")


def test_a_fall_counts_against_the_champion_in_place_only():
    assert decide(REPORT, None, FALLS, SUBJECT).outcome == "promoted", "the first model falls nowhere"
    other = against(bundle="d", accuracy=0.5)
    assert (other.outcome, other.code) == ("registered", "champion_changed")


# --- a holdout that says something ------------------------------------------------------------------------------------------------


def test_two_holdout_rows_decide_nothing_not_even_the_first_champion():
    """A perfect score on two rows; the control is the same score on as many as are asked for."""
    tiny = replace(REPORT, rows=2, metrics={"f1": 1.0})
    for champion in (None, CHAMPION):
        verdict = decide(replace(tiny, champion=champion), champion, POLICY, SUBJECT)
        assert (verdict.outcome, verdict.code) == ("refused", "small_holdout")
        assert verdict.sentence == "the holdout has 2 rows, at least 100 are needed: land more labelled data"
    assert decide(replace(tiny, rows=99), None, POLICY, SUBJECT).code == "small_holdout"
    assert decide(replace(tiny, rows=100), None, POLICY, SUBJECT).outcome == "promoted"
    assert decide(tiny, None, replace(POLICY, min_rows=2), SUBJECT).outcome == "promoted", "the setting, not a number in the gate"


def test_rows_of_every_class_are_needed():
    support = {"recall_yes": 980, "recall_no": 19}
    verdict = decide(replace(REPORT, rows=999, support=support), None, POLICY, SUBJECT)
    assert (verdict.outcome, verdict.code) == ("refused", "small_holdout") and "Recall_no was measured on 19 rows" in verdict.sentence
    assert decide(replace(REPORT, rows=999, support=support | {"recall_no": 20}), None, POLICY, SUBJECT).outcome == "promoted"
    assert decide(replace(REPORT, rows=999, support={"recall_no": 0}), None, POLICY, SUBJECT).code == "small_holdout", "absent"


# --- the second exam --------------------------------------------------------------------------------------------------------------


def examined(ours, theirs, policy=POLICY, **changes):
    """The verdict on a challenger that is better on its own holdout, with those figures on the champion's."""
    champion = replace(CHAMPION, earlier=replace(EARLIER, metrics=ours, champion=theirs, **changes))
    return decide(replace(REPORT, champion=champion), champion, policy, SUBJECT)


def test_what_is_worse_on_the_champions_own_holdout_is_refused():
    verdict = examined({"f1": 0.0}, {"f1": 0.85})
    assert (verdict.outcome, verdict.code) == ("refused", "worse_on_earlier")
    assert verdict.sentence == (
        "F1 0.0000, -0.8500 against the champion's 0.8500; it may change by 0.02 at most on the champion's own holdout (old, 500 rows)"
    )
    assert examined({"f1": 0.83}, {"f1": 0.85}).outcome == "promoted", "as much as is allowed"
    assert examined({"f1": 0.829}, {"f1": 0.85}).code == "worse_on_earlier"
    assert examined({"f1": 0.8}, {"f1": 0.85}, replace(POLICY, max_fall={"f1": 0.05})).outcome == "promoted", "max_fall goes first"
    assert examined({"f1": 0.8}, {"f1": 0.85}, replace(POLICY, max_earlier_fall=0.05)).outcome == "promoted"


def test_the_same_holdout_is_one_exam():
    """What is merely worse on it is registered, as ever."""
    assert examined({"f1": 0.0}, {"f1": 0.85}, holdout_sha256="h").outcome == "promoted"


def test_every_class_is_examined_on_the_champions_holdout_too():
    policy = replace(POLICY, max_fall={"recall_*": 0.03})
    report = replace(
        REPORT,
        metrics=REPORT.metrics | {"recall_no": 0.9, "recall_yes": 0.9},
        directions={**CLASSIFIER, "recall_no": "more", "recall_yes": "more"},
    )
    for no, outcome in ((0.809, "refused"), (0.83, "promoted")):
        earlier = replace(
            EARLIER,
            metrics={"f1": 0.9, "recall_no": no, "recall_yes": 0.95},
            champion={"f1": 0.85, "recall_no": 0.854, "recall_yes": 0.85},
        )
        champion = replace(CHAMPION, metrics={"f1": 0.847, "recall_no": 0.89, "recall_yes": 0.89}, earlier=earlier)
        verdict = decide(replace(report, champion=champion), champion, policy, SUBJECT)
        assert verdict.outcome == outcome
        if outcome == "refused":
            assert "Recall_no 0.8090, -0.0450 against the champion's 0.8540" in verdict.sentence


def test_a_figure_that_the_challenger_lost_on_the_champions_holdout_is_a_fall():
    for lost in ({}, {"f1": math.nan}):
        assert examined(lost, {"f1": 0.85}).code == "worse_on_earlier"
    assert examined({"f1": 0.9}, {"f1": math.nan}).outcome == "promoted", "what the champion never had cannot fall"


def test_without_a_second_exam_nothing_is_promoted_by_itself():
    verdict = examined({}, {}, missing="old is not cleaned yet: materialize `toy/cleaned` for it first")
    assert (verdict.outcome, verdict.code) == ("registered", "not_examined") and "old is not cleaned yet" in verdict.sentence
    none = replace(CHAMPION, earlier=None)
    assert decide(replace(REPORT, champion=none), none, POLICY, SUBJECT).code == "not_examined"


# --- the paired test decides ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("p_value", "outcome"), [(0.05, "promoted"), (0.051, "registered"), (1.0, "registered"), (math.nan, "registered")])
def test_the_paired_test_decides(p_value, outcome):
    champion = replace(CHAMPION, p_value=p_value)
    verdict = decide(replace(REPORT, champion=champion), champion, POLICY, SUBJECT)
    assert verdict.outcome == outcome
    if outcome == "registered":
        assert verdict.code == "not_significant" and f"p {p_value:.2g} > 0.05" in verdict.sentence and "mlops produce" in verdict.sentence
    assert decide(replace(REPORT, champion=champion), champion, replace(POLICY, alpha=1.0), SUBJECT).outcome == (
        "registered" if math.isnan(p_value) else "promoted"
    ), "a control: the setting"


def test_without_a_paired_test_nothing_displaces_a_champion_and_a_first_one_needs_none():
    champion = replace(CHAMPION, p_value=None)
    assert decide(replace(REPORT, champion=champion), champion, POLICY, SUBJECT).code == "not_significant"
    assert decide(REPORT, None, POLICY, SUBJECT).code == "first"


def test_a_report_with_a_second_exam_survives_its_way_through_json():
    champion = replace(CHAMPION, p_value=math.nan, earlier=replace(EARLIER, metrics={"f1": math.nan}, champion={"f1": 1}))
    report = replace(REPORT, champion=champion, support={"recall_no": 3})
    back = Report.from_body(json.loads(canonical(report.body())))
    assert math.isnan(back.champion.p_value) and math.isnan(back.champion.earlier.metrics["f1"]) and back.support == {"recall_no": 3}
    assert back.sha256 == report.sha256


def test_a_family_in_max_fall_watches_its_members_and_a_name_goes_before_it():
    metrics = REPORT.metrics | {"recall_0": 0.9, "recall_7": 0.9}
    directions = {**CLASSIFIER, "recall_0": "more", "recall_7": "more"}
    champion = replace(CHAMPION, metrics={"f1": 0.847, "recall_0": 0.92, "recall_7": 0.92})
    report = replace(REPORT, metrics=metrics, directions=directions, champion=champion)
    falls = {"recall_*": 0.01, "recall_7": 0.5}
    assert "Recall_0 0.9000, -0.0200" in decide(report, champion, replace(POLICY, max_fall=falls), SUBJECT).sentence
    assert decide(report, champion, replace(POLICY, max_fall=falls | {"recall_0": 0.5}), SUBJECT).outcome == "promoted"
    assert decide(REPORT, None, replace(POLICY, max_fall=falls), SUBJECT).code == "missing_metric", "a family that nobody measured"


@pytest.mark.parametrize("threshold", [math.nan, math.inf, -math.inf])
def test_a_threshold_that_is_no_number_is_refused_before_it_could_let_everything_pass(threshold):

    with pytest.raises(ValidationError, match="finite number"):
        config_of(threshold=threshold)
    if math.isnan(threshold):  # nor does the gate rely on that
        assert decide(REPORT, None, replace(POLICY, thresholds={"f1": threshold}), SUBJECT).code == "below_threshold"
