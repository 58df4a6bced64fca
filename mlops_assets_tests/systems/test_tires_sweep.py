"""A sweep of real trainings: tires' smallest network, killed between two checkpoints, gone on with and pruned."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

from mlops_assets.lifecycle import sweep
from mlops_assets.lifecycle.system import CleanedTable
from mlops_assets.settings import Settings, load_settings, process_environment
from mlops_assets.systems.tires import training
from mlops_assets.training import tuning
from mlops_assets_tests.lifecycle.sweeps import platform_of
from mlops_assets_tests.systems.test_tires_training import TINY, make_table, strict_config

OVERRIDES = {name: value for name, value in TINY.items() if name != "learning_rate"}


def run(settings: Settings, folder: Path, trained: list[training.Trained]) -> sweep.Swept:
    """Five trials on the photos in `folder`; what the killed process does, too."""

    def train(context: training.TrainContext) -> training.Trained:
        trained.append(training.train(context))
        return trained[-1]

    table = CleanedTable("tires", "v1", "0" * 64, folder, 88)
    system = dataclasses.replace(training.SYSTEM, train=train, open_table=lambda *_: table)
    config = strict_config()
    planned = sweep.plan(
        system,
        config,
        dataset_version="v1",
        metric="loss",
        trials=5,
        model_types=["cnn"],
        learning_rate=(1e-7, 1e-2),
        overrides=OVERRIDES,
    )
    return sweep.run(platform_of(settings), system, config, planned, run_id="run")


def main(folder: str) -> None:
    run(load_settings(), Path(folder), [])


def test_a_killed_trial_resumes_from_its_checkpoint_and_hopeless_ones_are_pruned(settings, tmp_path, monkeypatch):
    settings = settings.model_copy(update={"threads": 1})
    folder = make_table(tmp_path / "rows").folder
    command = [sys.executable, "-c", "import sys; from mlops_assets_tests.systems.test_tires_sweep import main; main(sys.argv[1])"]
    environment = {**process_environment(), **settings.environment(), "MLOPS_CRASH_AT": "trainer.step_15"}
    done = subprocess.run([*command, str(folder)], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == -9, done.stderr
    monkeypatch.setattr(tuning, "UNPRUNED_TRIALS", 1)
    trained: list[training.Trained] = []
    swept = run(settings, folder, trained)
    assert [row["trial"] for row in swept.rows] == [0, 1, 2, 3, 4]
    assert [one.resumed_from_step for one in trained][:2] == [12, None], "the first trial was taken up where it was"
    states = [row["state"] for row in swept.rows]
    assert states.count("pruned") >= 1 and states.count("complete") == len(trained)
    left = {folder.name for folder in (settings.home / "training").iterdir()} - {"images"}
    assert len(left) == 1, "what the best one trained is kept, nothing else"
