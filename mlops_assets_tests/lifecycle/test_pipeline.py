"""What a killed process leaves on the disk is removed by the next one that works there."""

from __future__ import annotations

import signal
import subprocess
import sys

from mlops_assets.lifecycle.pipeline import scratch_folder
from mlops_assets.settings import Settings

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
