"""The evaluation report: what one attempt's exported bundle did on the holdout, beside the champion on the same rows.

Belongs here: the record, the names and directions of metrics, the paired test's place. Does not belong here: computing metrics
(`training/metrics.py`), deciding (`gate.py`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any, Literal

from mlops_assets.settings import canonical

#: What every classifier reports, and people choose a model by.
METRICS = ("loss", "accuracy", "f1", "recall", "precision")

#: Whether more or less of a metric is better. The system that reports it says so: `ModelSystem.directions`.
Direction = Literal["more", "less"]
#: Those of what `training/metrics.py` finds of every classifier. A receipt from before directions were recorded is read with these.
CLASSIFIER: Mapping[str, Direction] = {
    "loss": "less",
    "accuracy": "more",
    "f1": "more",
    "recall": "more",
    "precision": "more",
    "ece": "less",
}


class UnknownMetric(ValueError):
    """A metric that the report does not have. The message lists the choices."""


def metric_name(name: str, known: Sequence[str]) -> str:
    """The report's own name of `name` as people write it (F1, Accuracy, F1_Score, loss).

    Raises:
        UnknownMetric: not one of `known`; lists them.
    """
    wanted = name.lower().removesuffix("_score")
    for candidate in known:
        if candidate.lower() == wanted:
            return candidate
    raise UnknownMetric(f"unknown metric {name!r}: choose one of {', '.join(sorted(known))}")


def better(direction: Direction, value: float, than: float) -> float:
    """How much better `value` is than `than` (negative: worse)."""
    return than - value if direction == "less" else value - than


def directions_of(declared: Mapping[str, Direction], metrics: Iterable[str]) -> dict[str, Direction]:
    """The directions of `metrics` as declared: by name, or by a family such as `recall_*`. What nobody declared is left out."""

    def found(metric: str) -> Direction | None:
        return declared.get(metric) or next((declared[family] for family in declared if fnmatchcase(metric, family)), None)

    return {metric: direction for metric in metrics if (direction := found(metric)) is not None}


def way(direction: Direction) -> str:
    """How people are told which way a metric is better."""
    return f"{direction} is better"


def label(metric: str) -> str:
    """How people write the metric: F1, Accuracy, Loss."""
    return metric.upper() if metric in ("f1", "ece", "mae", "rmse", "lrap") else metric.capitalize()


@dataclass(frozen=True)
class Earlier:
    """The second exam: challenger (`metrics`) and champion on the holdout of the champion's own data.

    Where the challenger's holdout is the same, the figures are those of the first exam. `missing`: why there was no second exam.
    """

    dataset_version: str
    holdout_sha256: str = ""
    rows: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    champion: Mapping[str, float] = field(default_factory=dict)
    missing: str = ""


@dataclass(frozen=True)
class ChampionScore:
    """The champion on the challenger's holdout rows.

    Attributes:
        p_value: the chance of as many answers that only the challenger has right, were both equally good (McNemar, one-sided).
        earlier: both on the champion's own holdout.
    """

    version: int
    bundle_sha256: str
    dataset_version: str
    metrics: Mapping[str, float]
    p_value: float | None = None
    earlier: Earlier | None = None

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> ChampionScore:
        earlier = body.get("earlier")
        if earlier:
            earlier = Earlier(**{**earlier, "metrics": _floats(earlier["metrics"]), "champion": _floats(earlier["champion"])})
        p_value = body.get("p_value")
        return cls(
            **{
                **body,
                "metrics": _floats(body["metrics"]),
                "p_value": None if p_value is None else float(p_value),
                "earlier": earlier or None,
            }
        )


@dataclass(frozen=True)
class BaselineScore:
    """The system's baseline, trained on the same version, on the challenger's holdout rows. `missing`: why there are no figures."""

    variant: str
    attempt_id: int = 0
    bundle_sha256: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    missing: str = ""

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> BaselineScore:
        return cls(**{**body, "metrics": _floats(body["metrics"])})


@dataclass(frozen=True)
class Report:
    """What was measured.

    Attributes:
        metrics: as measured, NaN included.
        created_at: aware UTC.
        directions: of every metric which way it is better, as the system says.
        support: metric -> rows that it was measured on, where these are not all: those of a class, of a part.
        trivial: what needs no model ("always 긍정") -> its metrics on the same rows.
        baseline: None: the system has none, or it is what was measured.
    """

    system: str
    variant: str
    dataset_version: str
    attempt_id: int
    bundle_sha256: str
    manifest_sha256: str
    holdout_sha256: str
    rows: int
    metrics: Mapping[str, float]
    created_at: datetime
    champion: ChampionScore | None = None
    slices: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    directions: Mapping[str, Direction] = field(default_factory=dict)
    support: Mapping[str, int] = field(default_factory=dict)
    trivial: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    baseline: BaselineScore | None = None

    def body(self) -> dict[str, Any]:
        """Plain JSON values; NaN and infinities, which JSON has not, as the strings `nan`, `inf`, `-inf`."""
        values = asdict(self) | {
            "created_at": self.created_at.isoformat(),
            # 1 and 1.0 are one figure but two JSON texts: the digest must not depend on which was measured.
            "metrics": _floats(self.metrics),
            "slices": {name: _floats(figures) for name, figures in self.slices.items()},
        }
        if self.champion is not None:
            values["champion"]["metrics"] = _floats(self.champion.metrics)
            if self.champion.earlier is not None:
                for name in ("metrics", "champion"):
                    values["champion"]["earlier"][name] = _floats(values["champion"]["earlier"][name])
        # A report of before these were has the digest that it had.
        values |= {"trivial": {name: _floats(figures) for name, figures in self.trivial.items()}}
        if self.baseline is not None:
            values["baseline"]["metrics"] = _floats(self.baseline.metrics)
        return dict(_jsonable({name: value for name, value in values.items() if value or name not in ("trivial", "baseline")}))

    @property
    def sha256(self) -> str:
        return hashlib.sha256(canonical(self.body()).encode()).hexdigest()

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> Report:
        champion = body.get("champion")
        return cls(
            **{
                **body,
                "metrics": _floats(body["metrics"]),
                "slices": {name: _floats(values) for name, values in body["slices"].items()},
                "created_at": datetime.fromisoformat(body["created_at"]),
                "champion": ChampionScore.from_body(champion) if champion else None,
                "trivial": {name: _floats(figures) for name, figures in body.get("trivial", {}).items()},
                "baseline": BaselineScore.from_body(body["baseline"]) if body.get("baseline") else None,
            }
        )


def _floats(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if hasattr(value, "item"):  # a numpy scalar
        return _jsonable(value.item())
    return value
