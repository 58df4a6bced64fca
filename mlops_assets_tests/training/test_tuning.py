"""A sweep's trials and a database that goes away under them."""

from __future__ import annotations

import pytest
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from sqlalchemy import create_engine, text

from mlops_assets import database
from mlops_assets.training import tuning

SPACE = tuning.Space(model_types=(), learning_rate=(1e-4, 1e-2))


def cut(url: str) -> None:
    """End every other session, as a restart of the server does."""
    engine = create_engine(database.with_driver(url))
    with engine.connect() as connection:
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        connection.execute(text(others))
    engine.dispose()


def test_a_trial_whose_database_went_away_is_taken_up_again_and_one_that_fails_is_not(database_url):
    begun: list[int] = []

    def objective(trial: tuning.Trial) -> float:
        begun.append(trial.number)
        if begun == [0, 1]:
            raise StorageInternalError("the connection is gone")
        if trial.number == 2:
            raise RuntimeError("a trial's own fault")
        return 1.0

    with pytest.raises(StorageInternalError), tuning.open_study(database_url, "s", direction="maximize", prune=False) as study:
        tuning.search(study, SPACE, objective, trials=3, seed=1)
    with tuning.open_study(database_url, "s", direction="maximize", prune=False) as study:
        tuning.search(study, SPACE, objective, trials=3, seed=1)
        assert [trial.state for trial in study.get_trials()] == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.FAIL]
    assert begun == [0, 1, 1, 2]


def test_a_sweep_that_is_done_keeps_its_result_when_the_server_was_restarted_under_its_lock(database_url):
    with tuning.open_study(database_url, "s", direction="maximize", prune=False) as study:
        tuning.search(study, SPACE, lambda trial: 1.0, trials=1, seed=1)
        result = study.best_value
        cut(database_url)
    assert result == 1.0
