"""Every command and every curl of both READMEs, in their order, on the demo that they speak of."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from mlops_assets import sample_data
from mlops_assets.settings import REPOSITORY
from mlops_assets_tests.running_platform import Running

pytestmark = pytest.mark.platform

#: What the reader puts in: a word of a README -> what the test lands, samples as the demo's.
PLACES = {
    "README.md": {
        "REQUEST_ID": "{request}",
        "path/to/folder --dataset-version reviews-2": "reviews --dataset-version reviews-2",
        "path/to/photos": "photos",
        "path/to/unsmile": "unsmile",
        "path/to/folder --dataset-version mnist-1": "digits --dataset-version mnist-1",
        "--trials 20": "--trials 1",
    },
    "README.ko.md": {
        "요청번호": "{request}",
        "폴더 --dataset-version reviews-2": "reviews --dataset-version reviews-2",
        "--dataset-version V": "--dataset-version split_1 --model-type resnet18 --model-type cnn",
        "--trials 20": "--trials 1",
        "사진폴더": "photos",
        "폴더 --dataset-version unsmile-1": "unsmile --dataset-version unsmile-1",
        "정책.csv": "policies.csv",
        "폴더 --dataset-version mnist-1": "digits --dataset-version mnist-1",
        "--reason 사유": "--reason 'tried on line 2'",
        "사용자": "somebody",
    },
}
#: Commands of this machine's start and of this very suite: `make run` is the fixture's `mlops up --demo`.
NOT_HERE = ("make ", "source ")
#: What may end otherwise than with 0 on the demo's small samples, and how its output says why.
OTHERWISE = {
    "mlops cut hate_speech": "label",
    "mlops cut digits": "draw",
    "mlops train": "^refused: ",
    "mlops produce tires": "champion|register",
    "?length=6": "cannot_segment",
}


def commands(name: str) -> list[str]:
    """The lines of the README's blocks without their comments, with what the reader puts in."""
    blocks = re.findall(r"```bash\n(.*?)```", (REPOSITORY / name).read_text(encoding="utf-8"), re.DOTALL)
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    for word, instead in PLACES[name].items():
        lines = [line.replace(word, instead) for line in lines]
    return [line for line in lines if line and not line.startswith(NOT_HERE)]


def of_readmes() -> list[Any]:
    """What both have is run once."""
    found = {line: name for name in reversed(PLACES) for line in commands(name)}
    order = [line for name in PLACES for line in commands(name)]
    return [pytest.param(line, id=f"{found[line]}: {line[:60]}") for line in dict.fromkeys(order)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader's own folder: what the READMEs' words stand for."""
    folder = tmp_path_factory.mktemp("reader")
    sample_data.write_reviews(folder / "reviews", train=300, test=100, seed=21)
    sample_data.write_tires(folder / "photos", count=80, seed=21)
    sample_data.write_comments(folder / "unsmile", train=300, valid=100, seed=21)
    sample_data.write_digits(folder / "digits", train=300, test=100, drawn=50, seed=21)
    sample_data.write_policies(folder / "policies", seed=21)
    next((folder / "policies").glob("*.csv")).rename(folder / "policies.csv")
    next((folder / "photos").rglob("*.jpg")).rename(folder / "photo.jpg")
    drawn = [Image.open(path).convert("L") for path in sorted((folder / "digits").rglob("*.png"))[:6]]
    drawn[0].save(folder / "digit.png")
    code = Image.new("L", (sum(digit.width for digit in drawn), max(digit.height for digit in drawn)), drawn[0].getpixel((0, 0)))
    for number, digit in enumerate(drawn):
        code.paste(digit, (sum(before.width for before in drawn[:number]), 0))
    code.save(folder / "code.png")
    (folder / "params.yaml").write_text(yaml.safe_dump({"system": "hate_speech", "parameters": {"epochs": 1}}))
    return folder


@pytest.fixture(scope="module")
def said() -> dict[str, str]:
    """What commands told that later ones need."""
    return {}


@pytest.mark.parametrize("line", of_readmes())
def test_a_line_of_a_readme_does_what_it_says(demo: Running, folder: Path, said: dict[str, str], line: str) -> None:
    line = line.format(**said) if "{request}" in line else line
    line = line.replace("localhost:8000", f"localhost:{demo.known['serve_url'].rsplit(':', 1)[1]}")
    bin_folder = Path(sys.executable).parent
    environment = demo.environment | {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    shell = line.replace("curl ", "curl --silent --show-error --fail-with-body ", 1)

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(["bash", "-c", shell], cwd=folder, env=environment, capture_output=True, text=True, timeout=580)

    done, landed = run(), time.monotonic()
    while "no_policies" in done.stdout and time.monotonic() < landed + 180:
        done = run()  # the line before has landed them: the sensor does the rest
    output = done.stdout + done.stderr
    assert "Traceback" not in output, output
    expected = next((words for command, words in OTHERWISE.items() if command in line), None)
    if expected is None:
        assert done.returncode == 0, f"{shlex.join(['bash', '-c', shell])}: {output[-3000:]}"
    else:
        assert done.returncode == 0 or re.search(expected, output, re.MULTILINE), output[-3000:]
    if line.startswith("mlops predict sentiment"):
        said["request"] = re.findall(r"[0-9a-f]{32}", done.stdout)[-1]
