"""The model of a commit: a name of the list or nothing at all, whatever the message holds."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mlops_assets.systems.tires.commits import model_of
from mlops_assets.systems.tires.training import SYSTEM

HOSTILE = [
    "model: $(touch pwned)",
    "model: `touch pwned`",
    "model: cnn; touch pwned",
    "model: cnn && touch pwned",
    "model: cnn\x00",
    "model: ../../etc/passwd",
    "model: --help",
    "model: CNN",
    "model: resnet",
    "model: 한글",
    "model:",
    "model: cnn\nmodel: resnet18",
    "",
    "fix the loader",
    "model: " + "a" * 100_000,
]


def run(message: str, folder: os.PathLike[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mlops_assets.systems.tires.commits"]
    environment = os.environ | {"COMMIT_MESSAGE": message}
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", SYSTEM.variants)
def test_every_model_is_found_by_its_name(name):
    assert model_of(f"Wider last layer\n\nmodel: {name}\r\nSigned-off-by: someone") == name


def test_efficientnet_means_b0_as_in_the_seed():
    assert model_of("model: efficientnet") == "efficientnet_b0"


@pytest.mark.parametrize("message", HOSTILE)
def test_anything_else_is_refused_with_the_choices(message):
    with pytest.raises(ValueError, match="efficientnet_b0, .*cnn") as refused:
        model_of(message)
    assert "touch" not in str(refused.value) and "passwd" not in str(refused.value)


def test_a_hostile_message_runs_nothing(tmp_path):
    done = run("model: $(touch pwned); touch pwned", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert list(tmp_path.iterdir()) == []
    good = run("model: tinyvgg", tmp_path)  # the control: it answers at all
    assert (good.returncode, good.stdout) == (0, "tinyvgg\n")
