"""What a killed process leaves on the disk is removed by the next one that works there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from mlops_assets.lifecycle.pipeline import ABANDONED_DAYS, Platform, scratch_folder, train
from mlops_assets.settings import Settings
from mlops_assets.tracking import Tracking
from mlops_assets_tests.toy import toy_system

HOLD = """
import sys
from mlops_assets.lifecycle.pipeline import scratch_folder
from mlops_assets.settings import load_settings
with scratch_folder(load_settings()) as folder:
    (folder / "table.parquet").write_bytes(b"rows")
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_the_scratch_of_a_killed_process_goes_and_that_of_a_living_one_stays(settings: Settings, monkeypatch):
    monkeypatch.setenv("MLOPS_HOME", str(settings.home))
    command = [sys.executable, "-c", HOLD]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as living,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as killed,
    ):
        assert living.stdout and killed.stdout
        stays, goes = living.stdout.readline().strip(), killed.stdout.readline().strip()
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        with scratch_folder(settings) as folder:
            assert {str(path) for path in folder.parent.iterdir() if path.is_dir()} == {stays, str(folder)}
        living.communicate("")
    assert goes != stays and list(folder.parent.iterdir()) == []


def test_checkpoints_that_nobody_resumes_for_a_month_go_and_younger_ones_stay(world):
    """The folders of `training` are named by fingerprint; the control is the one that was touched yesterday."""
    platform = Platform(world.settings, world.engine, world.store, Tracking(None))
    day, folders = 24 * 3600, {}
    for name, days in {"old": ABANDONED_DAYS + 1, "young": 1}.items():
        folders[name] = world.settings.home / "training" / name
        checkpoint = folders[name] / "checkpoints" / "step-1" / "model.safetensors"
        checkpoint.parent.mkdir(parents=True)
        checkpoint.write_bytes(b"weights")
        for path in (checkpoint, *checkpoint.parents[:3]):
            os.utime(path, times=(time.time() - days * day,) * 2)
    broken = world.settings.home / "training" / "broken"
    broken.symlink_to(broken)  # what cannot be read or removed fails no training
    said: list[str] = []
    train(platform, toy_system(), world.config, variant="", dataset_version="v1", run_id="r", say=said.append)
    assert not folders["old"].exists() and (folders["young"] / "checkpoints" / "step-1" / "model.safetensors").exists()
    assert any(str(folders["old"]) in line for line in said) and not any(str(folders["young"]) in line for line in said)
