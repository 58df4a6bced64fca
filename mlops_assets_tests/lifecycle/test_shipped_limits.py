"""The limits of configs/, as the gate applies them: of every classifier each class and the calibration are watched."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib import import_module

import pytest

from mlops_assets.lifecycle.gate import Policy, Subject, decide
from mlops_assets.lifecycle.registrar import policy_of
from mlops_assets.lifecycle.report import ChampionScore, Earlier, Report, directions_of
from mlops_assets.settings import REPOSITORY, load_config
from mlops_assets.systems import SYSTEMS

NOW = datetime(2026, 1, 2, tzinfo=UTC)
CLASSES = {"recall_one": 0.95, "recall_other": 0.95}


def of(name: str) -> tuple[Policy, dict[str, str]]:
    """The shipped policy of a system and the directions that it declares."""
    system = import_module(f"mlops_assets.systems.{name}.training").SYSTEM
    policy = policy_of(load_config(system.config_type, name, REPOSITORY / "configs"))
    named = {*policy.thresholds, policy.metric, *policy.max_fall, "ece", *CLASSES}
    return policy, directions_of(system.directions, named)


def figures(policy: Policy, **changed: float) -> dict[str, float]:
    """Such as pass every threshold, with good classes and a good calibration."""
    return {
        policy.metric: 0.95,
        **dict.fromkeys(policy.max_fall.keys() - {"recall_*"}, 0.99),
        **policy.thresholds,
        **CLASSES,
        "ece": 0.01,
        **changed,
    }


def verdict(
    name: str, champion: dict[str, float] | None = None, earlier: dict[str, float] | None = None, **changed: float
) -> tuple[str, str]:
    policy, directions = of(name)
    ours = figures(policy, **changed)
    compared = None
    if champion is not None:
        second = Earlier("v0", "h0", 1000, figures(policy, **(earlier or {})), figures(policy))
        compared = ChampionScore(1, "c" * 64, "v0", figures(policy, **champion), 0.001, second)
    report = Report(
        name,
        "",
        "v1",
        1,
        "b" * 64,
        "m",
        "h",
        1000,
        ours,
        NOW,
        champion=compared,
        directions=directions,
        support=dict.fromkeys(CLASSES, 500),
    )
    found = decide(report, compared, policy, Subject(1, "b" * 64, "m", NOW))
    return found.outcome, found.sentence


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_classifier_watches_each_class_and_calibration(name):
    policy, _ = of(name)
    assert {"recall_*", "ece"} <= set(policy.max_fall) and "ece" in policy.thresholds
    better = {policy.metric: 0.999}
    assert verdict(name)[0] == verdict(name, {}, **better)[0] == "promoted", "a control"
    assert verdict(name, ece=0.2) == ("refused", f"ECE 0.200 > {policy.thresholds['ece']:.3f}")
    for metric, allowed in (("recall_one", policy.max_fall["recall_*"]), ("recall_other", policy.max_fall["recall_*"])):
        outcome, sentence = verdict(name, {}, **better, **{metric: 0.95 - allowed - 0.001})
        assert outcome == "refused" and f"{metric.capitalize()} " in sentence
        outcome, sentence = verdict(name, {}, {metric: 0.95 - allowed - 0.001}, **better)
        assert outcome == "refused" and "on the champion's own holdout" in sentence
        assert verdict(name, {}, **better, **{metric: 0.95 - allowed})[0] == "promoted", "a control: as much as is allowed"


def test_reviews_whose_negative_ones_are_read_worse_replace_no_champion():
    """F1 is that of 긍정 alone: it rose while the recall of 부정 fell from 0.854 to 0.809."""
    outcome, sentence = verdict("sentiment", {"recall_other": 0.854, "f1": 0.84}, recall_other=0.809, f1=0.86)
    assert outcome == "refused" and "Recall_other 0.8090, -0.0450 against the champion's 0.8540" in sentence


def test_labels_of_which_15_percent_are_wrong_register_no_model_of_reviews():
    """Measured on NSMC: the calibration error was 0.014 with right labels and 0.092 with wrong ones, accuracy above its threshold."""
    assert verdict("sentiment", accuracy=0.805, f1=0.80, ece=0.092) == ("refused", "ECE 0.092 > 0.050")
    assert verdict("sentiment", accuracy=0.84, f1=0.84, ece=0.0143)[0] == "promoted"
