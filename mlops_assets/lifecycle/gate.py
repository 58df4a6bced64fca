"""The gate: from evidence to one of three verdicts. A pure function, so that it can be shown to fail; it runs in the blocking check
(where people see it) and again in the registrar (where it counts).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import Literal

from mlops_assets.lifecycle.report import ChampionScore, Direction, Report, better, label

Outcome = Literal["refused", "registered", "promoted"]

SENTENCE_KO = {
    "refused": "최소값을 넘지 못해 모델 등록에 실패하였습니다.",
    "registered": "최소값을 넘겨 모델 등록에 성공하였습니다.",
    "promoted": "최소값을 넘겨 모델 등록에 성공하였고, 운영 모델로 승격되었습니다.",
}


#: A fall of exactly what is allowed is allowed, whatever floats make of the difference.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Policy:
    """The rules, from configs/.

    Attributes:
        thresholds: metric -> the least (for a loss: the most) that may be registered.
        max_fall: metric, or family of metrics such as `recall_*`, -> how much worse than the champion on the same rows it may be.
        min_rows: on fewer holdout rows nothing is decided; `min_class_rows`: nor where fewer are of a class or a part that is looked at.
        alpha: a challenger is promoted over a champion when a paired test finds it better with at most this chance of error.
        max_earlier_fall: how much worse than the champion on the champion's own holdout `metric` may be, where `max_fall` does not say.
    """

    thresholds: Mapping[str, float]
    metric: str
    min_improvement: float = 0.0
    max_report_age: timedelta = timedelta(days=7)
    auto_promote: bool = True
    max_fall: Mapping[str, float] = field(default_factory=dict)
    min_rows: int = 100
    min_class_rows: int = 20
    alpha: float = 0.05
    max_earlier_fall: float = 0.02


@dataclass(frozen=True)
class Subject:
    """What is decided about, as the attempt's own row says. `newest_data`: no champion was trained on a later dataset version."""

    attempt_id: int
    bundle_sha256: str
    manifest_sha256: str
    now: datetime
    newest_data: bool = True


@dataclass(frozen=True)
class Verdict:
    """`code` is stable for machines, `sentence` says why with numbers, the same in check, Slack, CLI and dashboard."""

    outcome: Outcome
    code: str
    sentence: str

    @property
    def sentence_ko(self) -> str:
        return f"{SENTENCE_KO[self.outcome]} ({self.sentence})"


def decide(report: Report | None, champion: ChampionScore | None, policy: Policy, subject: Subject) -> Verdict:
    """Judge one report against the thresholds and the champion *that is in place now*.

    Args:
        report: the evidence; None when there is none.
        champion: the current champion's ledger entry; its metrics are used only if the report compared with the same bundle.
    """
    refusal = _not_evidence(report, policy, subject)
    if refusal is not None:
        return refusal
    assert report is not None
    insufficient = _insufficient(report, policy)
    if insufficient is not None:
        return insufficient
    # What is no better than the baseline displaces nothing: where it falls behind the champion, which mostly is the baseline, is no news.
    fallen = None if behind_baseline(report, policy) else _fallen(report, champion, policy)
    return fallen or _against_champion(report, champion, policy, subject)


def objection(report: Report, champion: ChampionScore | None, policy: Policy) -> Verdict | None:
    """Why what was measured is not good enough, whenever it was: too few rows, under a threshold, no better than what needs no model,
    worse than the champion where it may not be. The registrar asks it again when a person promotes a version."""
    return _insufficient(report, policy) or _fallen(report, champion, policy)


def _insufficient(report: Report, policy: Policy) -> Verdict | None:
    """The refusal of what the model alone is."""
    return _unmeasured(report, policy) or _below(report, policy) or _trivial(report, policy)


def _not_evidence(report: Report | None, policy: Policy, subject: Subject) -> Verdict | None:
    if report is None:
        return Verdict("refused", "missing_report", f"attempt {subject.attempt_id} has no evaluation report")
    if report.attempt_id != subject.attempt_id or report.bundle_sha256 != subject.bundle_sha256:
        return Verdict(
            "refused",
            "other_attempt",
            f"the report is of attempt {report.attempt_id} (bundle {report.bundle_sha256[:12]}), "
            f"not of {subject.attempt_id} (bundle {subject.bundle_sha256[:12]})",
        )
    if report.manifest_sha256 != subject.manifest_sha256:
        return Verdict(
            "refused", "other_data", f"the report is of the manifest {report.manifest_sha256[:12]}, not {subject.manifest_sha256[:12]}"
        )
    age = subject.now - report.created_at
    if age > policy.max_report_age or age < timedelta(minutes=-5):
        return Verdict(
            "refused",
            "stale_report",
            f"the report is {age.total_seconds() / 3600:.0f} h old, the limit is {policy.max_report_age.total_seconds() / 3600:.0f} h",
        )
    return None


def _unmeasured(report: Report, policy: Policy) -> Verdict | None:
    """The refusal of figures that are none: of too few rows, missing, no number, or of which nobody says which way they are better."""
    if report.rows <= 0:
        return Verdict("refused", "empty_holdout", "the report was measured on 0 rows")
    if report.rows < policy.min_rows:
        return Verdict(
            "refused",
            "small_holdout",
            f"the holdout has {report.rows} rows, at least {policy.min_rows} are needed: land more labelled data",
        )
    if not policy.thresholds:
        return Verdict("refused", "no_threshold", "register_threshold names no metric")
    for metric in sorted({*policy.thresholds, policy.metric, *(name for name, _ in _watched(policy.max_fall, report.metrics))}):
        value = report.metrics.get(metric)
        if value is None:
            return Verdict(
                "refused", "missing_metric", f"{label(metric)} is missing from the report, which has {', '.join(sorted(report.metrics))}"
            )
        if not math.isfinite(value):
            return Verdict("refused", "not_a_number", f"{label(metric)} is {value}, not a number")
        if metric not in report.directions:
            known = ", ".join(f"{name} ({way})" for name, way in sorted(report.directions.items()))
            return Verdict(
                "refused",
                "unknown_direction",
                f"nobody says whether more or less {label(metric)} is better: {report.system} must declare it; known are {known or 'none'}",
            )
    for metric, rows in sorted(report.support.items()):
        if rows < policy.min_class_rows:
            return Verdict(
                "refused",
                "small_holdout",
                f"{label(metric)} was measured on {rows} rows of the holdout, at least {policy.min_class_rows} are needed: "
                "land more labelled data of that kind",
            )
    return None


def _watched(max_fall: Mapping[str, float], metrics: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    """(metric, how far it may fall). A family stands for its members that are measured, but for those that are named themselves; one
    without members stays as it is written, so that it is found missing."""
    for name, allowed in max_fall.items():
        members = [metric for metric in metrics if fnmatchcase(metric, name)] or [name]
        for metric in members:
            if metric == name or metric not in max_fall:
                yield metric, allowed


def _below(report: Report, policy: Policy) -> Verdict | None:
    compared = report.champion
    beside = f" (champion {compared.metrics[policy.metric]:.3f})" if compared and policy.metric in compared.metrics else ""
    for metric, threshold in policy.thresholds.items():
        if not better(report.directions[metric], report.metrics[metric], threshold) >= 0:  # a NaN is below everything
            sign = ">" if report.directions[metric] == "less" else "<"
            shown = beside if metric == policy.metric else ""
            return Verdict("refused", "below_threshold", f"{label(metric)} {report.metrics[metric]:.3f} {sign} {threshold:.3f}{shown}")
    return None


def _trivial(report: Report, policy: Policy) -> Verdict | None:
    """The refusal of what is no better than an answer that needs no model, in a metric that decides."""
    for name, figures in report.trivial.items():
        for metric in dict.fromkeys((policy.metric, *policy.thresholds)):
            if metric in figures and not better(report.directions[metric], report.metrics[metric], figures[metric]) > 0:
                sentence = (
                    f"{label(metric)} {report.metrics[metric]:.3f} is no better than that of answering {name!r}: {figures[metric]:.3f}"
                )
                return Verdict("refused", "worse_than_trivial", sentence)
    return None


def behind_baseline(report: Report, policy: Policy) -> tuple[str, str] | None:
    """(code, sentence) of what may not be promoted: no better than the minute's baseline on the same rows, or not measured beside it.

    None: it is better; or the system has no baseline; or the report is the baseline's own.
    """
    theirs = report.baseline
    if theirs is None:
        return None
    value, figure = report.metrics[policy.metric], theirs.metrics.get(policy.metric, math.nan)
    if theirs.missing or not math.isfinite(figure):
        return "no_baseline", f"not measured beside the baseline {theirs.variant}: {theirs.missing or f'it has no {label(policy.metric)}'}"
    if better(report.directions[policy.metric], value, figure) > 0:
        return None
    return "worse_than_baseline", f"no better than the baseline {theirs.variant} on the same rows ({figure:.3f})"


def _fallen(report: Report, champion: ChampionScore | None, policy: Policy) -> Verdict | None:
    """The refusal of what is better than the champion on the whole and worse where it may not be, on its own holdout or on the champion's;
    of several, the largest fall's.

    Only a comparison with the champion in place counts; without one nothing is promoted anyway (`champion_changed`).
    """
    theirs = report.champion
    if champion is None or theirs is None or theirs.bundle_sha256 != champion.bundle_sha256:
        return None
    falls = _falls(report.metrics, theirs.metrics, dict(_watched(policy.max_fall, report.metrics)), report.directions)
    if falls:
        return Verdict("refused", "worse_than_champion", max(falls)[1])
    earlier = theirs.earlier
    if earlier is None or earlier.missing or earlier.holdout_sha256 == report.holdout_sha256:  # the same rows were judged above
        return None
    watched = {policy.metric: policy.max_earlier_fall, **dict(_watched(policy.max_fall, earlier.champion))}
    falls = _falls(earlier.metrics, earlier.champion, watched, report.directions)
    where = f" on the champion's own holdout ({earlier.dataset_version}, {earlier.rows} rows)"
    return Verdict("refused", "worse_on_earlier", max(falls)[1] + where) if falls else None


def _falls(
    ours: Mapping[str, float], theirs: Mapping[str, float], watched: Mapping[str, float], directions: Mapping[str, Direction]
) -> list[tuple[float, str]]:
    """(by how much too far, the sentence) of each metric that fell further than it may. What the champion never had cannot fall."""
    falls = []
    for metric, allowed in watched.items():
        before, now = theirs.get(metric, math.nan), ours.get(metric, math.nan)
        fall = -better(directions[metric], now, before) if metric in directions else math.nan
        if not fall <= allowed + ROUNDING and math.isfinite(before):
            sign = "+" if directions.get(metric) == "less" else "-"
            changed = f", {sign}{fall:.4f}" if math.isfinite(fall) else ""
            sentence = f"{label(metric)} {now:.4f}{changed} against the champion's {before:.4f}; it may change by {allowed:g} at most"
            falls.append((math.inf if math.isnan(fall) else fall - allowed, sentence))
    return falls


def _against_champion(report: Report, champion: ChampionScore | None, policy: Policy, subject: Subject) -> Verdict:
    value = report.metrics[policy.metric]
    threshold = policy.thresholds.get(policy.metric)
    passed = f"{label(policy.metric)} {value:.3f}"
    if threshold is not None:
        passed += f" {'<=' if report.directions[policy.metric] == 'less' else '>='} {threshold:.3f}"

    def registered(code: str, why: str) -> Verdict:
        return Verdict("registered", code, f"{passed}, {why}")

    if champion is not None and champion.bundle_sha256 == report.bundle_sha256:
        return registered("already_champion", f"already the champion (v{champion.version})")
    if not policy.auto_promote:
        return registered("manual", "promotion is manual: `mlops produce`")
    if (behind := behind_baseline(report, policy)) is not None:
        return registered(*behind)
    if champion is None:
        return Verdict("promoted", "first", f"{passed} (no champion yet)")
    if not subject.newest_data:
        return registered("older_data", f"its data is older than the champion's ({champion.dataset_version}, v{champion.version})")
    compared = report.champion
    if compared is None or compared.bundle_sha256 != champion.bundle_sha256:
        return registered("champion_changed", f"not compared with the champion in place now (v{champion.version}): evaluate again")
    for metric in (policy.metric, *dict(_watched(policy.max_fall, report.metrics))):
        theirs = compared.metrics.get(metric, math.nan)
        if not math.isfinite(theirs):
            return registered("champion_unmeasured", f"the champion's {label(metric)} is {theirs}")
    theirs = compared.metrics[policy.metric]
    against = f"champion {theirs:.3f}" + (f", p {compared.p_value:.2g}" if compared.p_value is not None else "")
    if better(report.directions[policy.metric], value, theirs) <= policy.min_improvement:
        return registered("not_better", f"not better than the champion by more than {policy.min_improvement:g} ({against})")
    if not significant(compared.p_value, policy.alpha):
        return registered(
            "not_significant",
            f"better than the champion, but so few rows may say so by chance ({against} > {policy.alpha:g}): a person may "
            "`mlops produce` it"
            if compared.p_value is not None
            else f"not tested against the champion row by row ({against}): evaluate again",
        )
    earlier = compared.earlier
    if earlier is None or earlier.missing:
        why = earlier.missing if earlier is not None else "evaluate again"
        return registered("not_examined", f"better than the champion ({against}), but not measured on the champion's own holdout: {why}")
    return Verdict("promoted", "better", f"{passed}, better than the champion ({against})")


def significant(p_value: float | None, alpha: float) -> bool:
    """Whether the paired test decides for the challenger. NaN and no test decide nothing."""
    return p_value is not None and p_value <= alpha
