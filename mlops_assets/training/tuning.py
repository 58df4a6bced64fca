"""Searching model types and learning rates with Optuna: the space, the study that outlives its process, and the loop over its trials.

Belongs here: Optuna. Does not belong here: what a trial does and where it is shown (`lifecycle/sweep.py`), drawing (`plots.py`), Dagster,
MLflow.

A study stands in PostgreSQL, in a schema of its own. One process at a time works on it and holds a lock that dies with the process, so a
trial that is found running belongs to a dead one: it goes back to the queue under its own number, with the parameters it had.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mlops_assets import crash, database

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import RDBStorage

log = logging.getLogger(__name__)

SCHEMA = "optuna"
#: Trials that run to their end before any is pruned: a median of fewer says little.
UNPRUNED_TRIALS = 4
#: A trial that was begun so often and never ended kills its process (out of memory): it is given up.
MAX_STARTS = 3


class Pruned(Exception):
    """A trial that is not worth going on with. Not an error."""


class StudyBusy(ValueError):
    """Another process works on the study."""


@dataclass(frozen=True)
class Space:
    """What is searched. `model_types` is empty where there is nothing to choose; learning rates are tried evenly by their logarithm."""

    model_types: Sequence[str]
    learning_rate: tuple[float, float]


class Trial:
    """One trial under way, as the objective sees it."""

    def __init__(self, study: Study, trial: Any, space: Space) -> None:
        self._trial = trial
        self._reported = set(study.get_trials(deepcopy=False)[trial.number].intermediate_values)
        self.number: int = trial.number
        self.parameters: dict[str, Any] = {}
        if space.model_types:
            self.parameters["model_type"] = trial.suggest_categorical("model_type", list(space.model_types))
        self.parameters["learning_rate"] = trial.suggest_float("learning_rate", *space.learning_rate, log=True)

    def report(self, value: float, step: int) -> None:
        """One evaluation.

        Raises:
            Pruned: at this step the trial is worse than the median of those before it, or its figure is no number.
        """
        if not math.isfinite(value):
            raise Pruned(f"diverged at step {step}")
        if step in self._reported:  # by the process that was killed after its last checkpoint
            return
        self._reported.add(step)
        self._trial.report(value, step)
        if self._trial.should_prune():
            raise Pruned(f"worse than the median at step {step}")

    def note(self, name: str, value: Any) -> None:
        """Keep a JSON value with the trial."""
        self._trial.set_user_attr(name, value)


@contextmanager
def open_study(url: str, name: str, *, direction: Literal["minimize", "maximize"], prune: bool) -> Iterator[Study]:
    """The study of that name, made when there is none, for this process alone. Trials of a dead process wait in its queue again.

    Raises:
        StudyBusy: another process works on it.
    """
    import optuna
    from optuna.pruners import MedianPruner, NopPruner
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with _alone(url, name):
        storage = _storage(url)
        try:
            pruner = MedianPruner(n_startup_trials=UNPRUNED_TRIALS) if prune else NopPruner()
            study = optuna.create_study(storage=storage, study_name=name, direction=direction, pruner=pruner, load_if_exists=True)
            study_id = storage.get_study_id_from_name(name)
            for trial in storage.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,)):
                trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
                storage.set_trial_state_values(trial_id, TrialState.WAITING)
            yield study
        finally:
            storage.remove_session()
            storage.engine.dispose()


def _storage(url: str) -> RDBStorage:
    """Optuna's tables in their own schema of our database: neither its migrations nor ours see the other's."""
    from optuna.storages import RDBStorage
    from sqlalchemy import text

    engine = database.connect(url, pool_size=0)
    with engine.begin() as connection, database.lock(connection, "mlops_assets.optuna"):  # two first sweeps at once make them once
        connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
    inside = database.connect(url, pool_size=2, schema=SCHEMA)
    with engine.connect() as connection, database.lock(connection, "mlops_assets.optuna"):
        return RDBStorage(inside.url.render_as_string(hide_password=False), engine_kwargs={"pool": inside.pool})


@contextmanager
def _alone(url: str, name: str) -> Iterator[None]:
    """Hold the study's lock. It lasts as long as its connection: a killed process frees it, once the server has seen that it is gone."""
    from sqlalchemy import text
    from sqlalchemy.exc import DBAPIError, OperationalError

    key = {"name": f"study:{name}"}
    engine = database.connect(url, pool_size=0)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET lock_timeout = '2s'"))
        try:
            connection.execute(text("SELECT pg_advisory_lock(hashtextextended(:name, 0))"), key)
        except OperationalError:
            raise StudyBusy(f"another process works on the sweep {name}: wait for its end, or stop it and go on here") from None
        try:
            yield
        finally:
            with suppress(DBAPIError):  # a server that was restarted meanwhile has let it go
                connection.execute(text("SELECT pg_advisory_unlock(hashtextextended(:name, 0))"), key)


def search(
    study: Study,
    space: Space,
    objective: Callable[[Trial], float],
    *,
    trials: int,
    seed: int,
    minutes: float | None = None,
    ended: Callable[[int], None] = lambda number: None,
) -> None:
    """Go on until the study has `trials` trials that have ended, or no minute is left to begin another.

    What a trial tries depends on the seed, its number and the trials before it, not on when its process began: a sweep that was killed
    tries the same as one that was not. A trial that raises is failed; only when none before it went well the sweep stops with it.

    Args:
        ended: called with each trial's number.

    Raises:
        StorageInternalError: Optuna's, when the study's database is away. No trial is failed by it.
    """
    from optuna.exceptions import StorageInternalError
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    began = time.monotonic()
    while True:
        known = study.get_trials(deepcopy=False)
        if sum(trial.state.is_finished() for trial in known) >= trials or (minutes is not None and time.monotonic() - began > 60 * minutes):
            return
        number = min((trial.number for trial in known if trial.state == TrialState.WAITING), default=len(known))
        study.sampler = TPESampler(seed=seed + number)
        trial = study.ask()
        starts = trial.user_attrs.get("starts", 0) + 1
        trial.set_user_attr("starts", starts)
        try:
            if starts > MAX_STARTS:
                raise MemoryError(f"its process died {MAX_STARTS} times")
            under_way = Trial(study, trial, space)
            crash.reach(f"sweep.begun_{number}")
            value = objective(under_way)
            crash.reach(f"sweep.trained_{number}")
            study.tell(trial, value)
        except Pruned as pruned:
            trial.set_user_attr("why", str(pruned))
            study.tell(trial, state=TrialState.PRUNED)
        except StorageInternalError:  # the study's database is away: the trial stays under way, and the next sweep takes it up
            raise
        except Exception as error:
            log.warning("trial %d failed", number, exc_info=error)
            trial.set_user_attr("why", f"{type(error).__name__}: {error}"[:2000])
            study.tell(trial, state=TrialState.FAIL)
            if not any(t.state in (TrialState.COMPLETE, TrialState.PRUNED) for t in known):
                raise
        except BaseException:  # stopped in good order: the next sweep takes the trial up, and this start was none
            trial.set_user_attr("starts", starts - 1)
            raise
        crash.reach(f"sweep.told_{number}")
        ended(number)
