"""A sweep: many trainings of a system's models on one dataset version, compared on validation. It registers nothing.

Belongs here: what is searched, what one trial is (a training with the fingerprint that `mlops train` would give it, a nested MLflow run),
what is left of it on disk, and the result as plain values. Does not belong here: Optuna (`training/tuning.py`), Dagster (`jobs.py`).
"""

from __future__ import annotations

import hashlib
import logging
import math
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mlops_assets.lifecycle import pipeline
from mlops_assets.lifecycle.report import UnknownMetric, better, label, metric_name
from mlops_assets.lifecycle.system import CleanedTable, ModelSystem, Picture, TrainContext
from mlops_assets.settings import SettingsError, SystemConfig, canonical, git_commit
from mlops_assets.tracking import TrackedRun
from mlops_assets.training import tuning

if TYPE_CHECKING:
    from optuna import Study

logger = logging.getLogger(__name__)

#: Without a range: from so many times less than the configured learning rates to so many times more.
AROUND = 10.0


@dataclass(frozen=True)
class Plan:
    """What to search, validated. `overrides` hold for every trial."""

    dataset_version: str
    metric: str
    trials: int
    space: tuning.Space
    seed: int
    minutes: float | None = None
    prune: bool = True
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Swept:
    """`rows`: every trial that has ended; `best`: the one of them; `command`: what trains it through the gate."""

    study: str
    rows: Sequence[Mapping[str, Any]]
    best: Mapping[str, Any]
    command: str
    pictures: Sequence[Picture]
    link: str | None


def plan(
    system: ModelSystem,
    config: SystemConfig,
    *,
    dataset_version: str,
    metric: str = "",
    trials: int = 10,
    model_types: Sequence[str] = (),
    learning_rate: tuple[float | None, float | None] = (None, None),
    minutes: float | None = None,
    prune: bool = True,
    seed: int | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Plan:
    """A sweep of `model_types` (default: all) over a range of learning rates (default: around the configured ones).

    Args:
        trials: how many the study has in the end, those of a sweep before included.
        minutes: when they are over, no further trial begins.

    Raises:
        SettingsError, UnknownMetric, UnknownParameter: with the choices.
    """
    if trials < 1:
        raise SettingsError(f"trials is {trials}: give at least 1")
    if minutes is not None and not minutes > 0:
        raise SettingsError(f"minutes is {minutes:g}: give more than 0, or leave it out")
    if "learning_rate" not in system.parameter_names:
        raise SettingsError(f"{system.name} has no learning_rate to sweep")
    if "" not in system.searched:
        model_types = list(dict.fromkeys(system.variant_of(name) for name in model_types)) or list(system.searched)
        if going_on := sorted(set(model_types) & set(system.from_champion)):
            raise SettingsError(f"{', '.join(going_on)} goes on from the champion: sweep the models that are trained anew")
        if system.baseline in model_types:
            raise SettingsError(f"{system.baseline} has no learning rate to search: sweep {', '.join(system.searched)}")
    elif model_types and "model_type" not in system.parameter_names:
        raise SettingsError(f"{system.name} has one model: leave the model types out")
    overrides = {name: value for name, value in (overrides or {}).items() if value is not None}
    known = [pipeline.parameters_of(system, config, *candidate) for candidate in _candidates(system, model_types, overrides)]
    return Plan(
        dataset_version=dataset_version,
        metric=metric_name(metric or config.promotion.metric, list(system.choices(config.promotion.metric))),
        trials=trials,
        space=tuning.Space(tuple(model_types), _range(learning_rate, [float(values["learning_rate"]) for values in known])),
        seed=pipeline.check_seed(config.project.seed if seed is None else seed),
        minutes=minutes,
        prune=prune,
        overrides=overrides,
    )


def _candidates(system: ModelSystem, model_types: Sequence[str], overrides: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(variant, overrides) of each model that is searched."""
    if "" not in system.searched:
        return [(variant, dict(overrides)) for variant in model_types]
    return [("", {**overrides, "model_type": name}) for name in model_types] or [("", dict(overrides))]


def _range(given: tuple[float | None, float | None], configured: Sequence[float]) -> tuple[float, float]:
    low = min(configured) / AROUND if given[0] is None else given[0]
    high = max(configured) * AROUND if given[1] is None else given[1]
    if not 0 < low < high < math.inf:
        raise SettingsError(f"learning rates from {low:g} to {high:g}: give 0 < LOW < HIGH, such as 0.0001:0.01")
    return low, high


def run(
    platform: pipeline.Platform,
    system: ModelSystem,
    config: SystemConfig,
    planned: Plan,
    *,
    run_id: str,
    say: Callable[[str], None] = logger.info,
) -> Swept:
    """Go on with the plan's study until it has its trials. The same call after a kill goes on where that one stopped.

    Raises:
        StudyBusy: another process works on it.
        SettingsError: no trial ran to its end.
    """
    database_url = platform.settings.require("database_url")
    direction: Any = "minimize" if system.direction_of(planned.metric) == "less" else "maximize"
    with pipeline.scratch_folder(platform.settings) as scratch:
        table = system.open_table(platform.store, platform.engine, planned.dataset_version, scratch / "table")
        name = study_name(system, config, planned, table)
        with tuning.open_study(database_url, name, direction=direction, prune=planned.prune) as study:
            parent = _parent_run(platform, system, planned, name, run_id)
            try:
                sweep = _Sweep(platform, system, config, planned, study, table, parent, run_id, say)
                space, trials = planned.space, planned.trials
                tuning.search(study, space, sweep.trial, trials=trials, seed=planned.seed, minutes=planned.minutes, ended=sweep.ended)
                swept = sweep.result()
            except BaseException:
                parent.finish("FAILED")
                raise
            parent.log_metrics({f"best/{planned.metric}": swept.best[planned.metric]}, 0)
            parent.tag("best_trial", str(swept.best["trial"]))
            for picture in swept.pictures:
                parent.log_bytes(f"sweep/{picture.title}.png", picture.png)
            parent.finish()
    return swept


def study_name(system: ModelSystem, config: SystemConfig, planned: Plan, table: CleanedTable) -> str:
    """Trials are comparable when all but what is searched is equal: other rows, parameters, seed or code make another study."""
    candidates = _candidates(system, planned.space.model_types, planned.overrides)
    identity = {
        "table": table.sha256,
        "model_types": list(planned.space.model_types),
        "learning_rate": list(planned.space.learning_rate),
        "metric": planned.metric,
        "prune": planned.prune,
        "seed": planned.seed,
        "overrides": dict(planned.overrides),
        "models": [[pipeline.code_version(system, v), pipeline.parameters_of(system, config, v, given)] for v, given in candidates],
    }
    return f"{system.name}-{planned.dataset_version}-{hashlib.sha256(canonical(identity).encode()).hexdigest()[:12]}"


def _parent_run(platform: pipeline.Platform, system: ModelSystem, planned: Plan, name: str, run_id: str) -> TrackedRun:
    tags = {"sweep": name, "dataset_version": planned.dataset_version, "git_commit": git_commit()}
    found = platform.tracking.start(
        system.name, f"{planned.dataset_version}/sweep/{name[-12:]}", dagster_run_id=run_id, tags=tags, known_by=("sweep",)
    )
    low, high = planned.space.learning_rate
    space = {"model_types": ", ".join(planned.space.model_types), "learning_rate": f"{low:g}:{high:g}"}
    found.log_params({**space, "metric": planned.metric, "seed": planned.seed, **planned.overrides})
    return found


@dataclass(frozen=True)
class _Sweep:
    """One run of a sweep; the fields are what its trials share."""

    platform: pipeline.Platform
    system: ModelSystem
    config: SystemConfig
    plan: Plan
    study: Study
    table: CleanedTable
    parent: TrackedRun
    run_id: str
    say: Callable[[str], None]

    def trial(self, trial: tuning.Trial) -> float:
        """Train as the trial says; its figure on validation."""
        context = self._context(trial)
        run = self._trial_run(trial, context)
        figure = f"validation_{self.plan.metric}"

        def log_metrics(metrics: Mapping[str, float], step: int) -> None:
            run.log_metrics(metrics, step)
            if figure in metrics:
                trial.report(metrics[figure], step)

        try:
            with pipeline.one_training_at_a_time(self.platform.settings, self.say):
                trained = self.system.train(replace(context, log_metrics=log_metrics))
            if figure not in trained.metrics:
                known = sorted(name.removeprefix("validation_") for name in trained.metrics if name.startswith("validation_"))
                raise UnknownMetric(
                    f"{self.system.name} does not measure {self.plan.metric} on validation: choose one of {', '.join(known)}"
                )
            if not math.isfinite(trained.metrics[figure]):
                raise tuning.Pruned(f"its {self.plan.metric} is no number")
        except BaseException as error:
            pruned = isinstance(error, tuning.Pruned)
            run.tag("state", "pruned" if pruned else "failed")
            run.finish("KILLED" if pruned else "FAILED")
            raise
        run.log_metrics({f"train/{name}": value for name, value in trained.metrics.items()}, 0)
        run.tag("state", "complete")
        run.finish()
        return float(trained.metrics[figure])

    def _context(self, trial: tuning.Trial) -> TrainContext:
        """The very training that `mlops train` would make of these parameters: it takes up what the trial left."""
        variant, overrides = self._choice(trial.parameters)
        parameters = pipeline.parameters_of(self.system, self.config, variant, overrides)
        settings, seed = self.platform.settings, self.plan.seed
        context = pipeline.context_of(
            settings, self.system, self.config, variant=variant, table=self.table, parameters=parameters, seed=seed
        )
        trial.note("fingerprint", context.fingerprint)
        sweep = f"sweep-{self.study.study_name[-12:]}"
        return replace(
            context, log_dir=settings.home / "tensorboard" / self.system.name / self.plan.dataset_version / sweep / str(trial.number)
        )

    def _choice(self, tried: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """(variant, overrides)"""
        given = {**self.plan.overrides, **tried}
        return (given.pop("model_type") if "" not in self.system.searched else ""), given

    def _trial_run(self, trial: tuning.Trial, context: TrainContext) -> TrackedRun:
        """Nested in the sweep's MLflow run; the same one again when the trial is taken up."""
        run = self.platform.tracking.start(
            self.system.name,
            "/".join(str(part) for part in (self.plan.dataset_version, "trial", trial.number, context.variant) if part != ""),
            dagster_run_id=self.run_id,
            tags={
                "sweep_trial": f"{self.study.study_name}/{trial.number}",
                "variant": context.variant,
                "dataset_version": self.plan.dataset_version,
                "fingerprint": context.fingerprint,
                "git_commit": git_commit(),
            },
            parent=self.parent,
            known_by=("sweep_trial",),
        )
        run.tag("state", "running")
        run.log_params({**context.parameters, **trial.parameters, "seed": context.seed, "dataset_version": self.plan.dataset_version})
        return run

    def ended(self, number: int) -> None:
        """Say what became of a trial, and leave only the best one's weights on the disk."""
        rows = self.rows()
        row = next(row for row in rows if row["trial"] == number)
        self.say(f"{sentence(row, self.plan)}; {len(rows)} of {self.plan.trials}")
        self._clean()

    def _clean(self) -> None:
        best = self._best()
        for trial in self.study.get_trials(deepcopy=False):
            fingerprint = trial.user_attrs.get("fingerprint")
            if trial.state.is_finished() and fingerprint and trial.number != best:
                shutil.rmtree(pipeline.workdir_of(self.platform.settings, fingerprint), ignore_errors=True)

    def _best(self) -> int | None:
        from optuna.trial import TrialState

        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        # `max` keeps the first of equals: the weights on the disk do not change for nothing.
        direction = self.system.direction_of(self.plan.metric)
        best = max(complete, key=lambda trial: better(direction, float(trial.value or 0.0), 0.0), default=None)
        return best.number if best else None

    def rows(self) -> list[dict[str, Any]]:
        """The trials that have ended, in order, as plain values. A pruned one has the figure of its last evaluation."""
        return [
            {
                "trial": trial.number,
                "state": trial.state.name.lower(),
                **trial.params,
                self.plan.metric: trial.value if trial.value is not None and math.isfinite(trial.value) else None,
                "minutes": round(trial.duration.total_seconds() / 60, 2) if trial.duration else None,
                "why": trial.user_attrs.get("why", ""),
            }
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state.is_finished()
        ]

    def result(self) -> Swept:
        self._clean()  # a process killed between telling a trial and cleaning after it
        rows, best = self.rows(), self._best()
        if best is None:
            raise SettingsError(f"none of {len(rows)} trials ran to its end: give it more minutes, or lower learning rates")
        row = next(row for row in rows if row["trial"] == best)
        variant, overrides = self._choice({name: row[name] for name in ("model_type", "learning_rate") if name in row})
        given = {"model_type": variant, **overrides} if "" not in self.system.searched else overrides
        if self.plan.seed != self.config.project.seed:
            given["seed"] = self.plan.seed
        return Swept(
            study=self.study.study_name,
            rows=rows,
            best=row,
            command=train_command(self.system.name, self.plan.dataset_version, given),
            pictures=_pictures(rows, self.plan, less_is_better=self.system.direction_of(self.plan.metric) == "less"),
            link=self.parent.link,
        )


def train_command(system: str, dataset_version: str, parameters: Mapping[str, Any]) -> str:
    """`mlops train` with these parameters, each to its last digit: its training is the trial's own."""
    options = [part for name, value in parameters.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    return shlex.join(["mlops", "train", system, "--dataset-version", dataset_version, *options])


def sentence(row: Mapping[str, Any], planned: Plan) -> str:
    """A trial in a line."""
    value = "" if row[planned.metric] is None else f" {label(planned.metric)} {row[planned.metric]:.4f}"
    tried = [str(row["model_type"])] if "model_type" in row else []
    tried += [f"learning rate {row['learning_rate']:.2g}"] if "learning_rate" in row else []
    return f"trial {row['trial']}: {', '.join(tried)}: {row['state']}{value}" + (f" ({row['why']})" if row["why"] else "")


def _pictures(rows: Sequence[Mapping[str, Any]], planned: Plan, *, less_is_better: bool) -> list[Picture]:
    from mlops_assets.training import plots

    axes = [name for name in ("model_type", "learning_rate") if name == "learning_rate" or planned.space.model_types]
    shown = planned.metric, label(planned.metric)
    return [
        Picture("parallel_coordinates", plots.parallel_coordinates(rows, axes, *shown, less_is_better=less_is_better)),
        Picture("optimisation_history", plots.optimisation_history(rows, *shown, less_is_better=less_is_better)),
    ]
