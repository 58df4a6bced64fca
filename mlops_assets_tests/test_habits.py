"""The repository's habits, where a tool does not keep them by itself; and, for the tools, that they would notice."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "transformers", "ultralytics", "mlflow", "pyspark", "pandas", "sklearn", "onnxruntime", "optuna")


def tracked(*patterns: str) -> list[Path]:
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return sorted({ROOT / name for name in found if (ROOT / name).is_file()})


def loaded_by(statement: str) -> set[str]:
    code = f"import sys, json; {statement}; print(json.dumps(sorted(m for m in sys.modules if '.' not in m)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_definitions_load_nothing_heavy():
    loaded = loaded_by("import mlops_assets.definitions; mlops_assets.definitions.build_defs()")
    assert "dagster" in loaded  # a control: the names are top-level modules
    assert loaded.isdisjoint(HEAVY)


def test_the_model_server_loads_neither_training_nor_orchestration():
    settings = (
        "from mlops_assets.settings import load_settings; settings = load_settings(home='/nonexistent', database_url='postgresql:///none')"
    )
    loaded = loaded_by(
        f"{settings}; import mlops_assets.kinds.text.predict; from mlops_assets.serving.app import create_app; create_app(settings)"
    )
    assert "fastapi" in loaded
    assert loaded.isdisjoint({"torch", "transformers", "ultralytics", "dagster", "mlflow", "pandas", "pyspark"})


def test_every_module_says_what_belongs_in_it():
    silent = [path for path in tracked("mlops_assets/*.py") if path.stat().st_size and not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []


def environment_readers(source: str) -> list[str]:
    """`os.environ` and its like: also in files in which ruff's ban is lifted for Dagster's sake."""
    names = {"environ", "getenv", "environb"}
    attributes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Attribute) and n.attr in names]
    found = [n for n in attributes if isinstance(n.value, ast.Name) and n.value.id == "os"]
    imports = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ImportFrom) and n.module == "os"]
    return [ast.unparse(n) for n in found] + [a.name for n in imports for a in n.names if a.name in names]


def test_the_environment_is_read_only_in_settings():
    readers = {p: environment_readers(p.read_text()) for p in tracked("mlops_assets/*.py") if p.name != "settings.py"}
    assert {path: found for path, found in readers.items() if found} == {}
    assert environment_readers("import os\nos.environ['X']") == ["os.environ"]  # a control


def test_no_work_is_left_and_no_machine_is_named():
    this = Path(__file__)
    machine = re.compile(r"(?<![\w.])/(?:work/(?:main|shared)|tmp/bash_jobs|root/|home/[a-z])")
    # Words of unfinished work, and addresses of package indexes, in what is ours to write.
    unfinished = re.compile(r"\b(?:TODO|FIXME|XXX|NotImplementedError)\b")
    index = re.compile(r"https?:/{2}[^\s\"']*(?:pypi|simple/|index)|--(?:extra-)?index[-]url")
    text = (".py", ".yaml", ".yml", ".toml", ".md", ".lock", ".sql", ".sh", "")
    wrong = []
    for path in tracked():
        if path == this or path.suffix not in text:
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if machine.search(line) or unfinished.search(line) or index.search(line):
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert wrong == []


@pytest.mark.parametrize(
    ("name", "line", "rule"),
    [
        ("mlops_assets/lifecycle/gate.py", "import dagster", "TID251"),
        ("mlops_assets/training/trainer.py", "from dagster import asset", "TID251"),
        ("mlops_assets/store.py", "import os\nx = os.environ", "TID251"),
        ("mlops_assets/store.py", "print('x')", "T201"),
        ("mlops_assets/serving/models.py", "import pickle", "TID251"),
        ("mlops_assets/resources/mlflow.py", "import dagster", None),
        ("mlops_assets/systems/sentiment/assets.py", "import dagster", None),
        ("mlops_assets/systems/sentiment/data.py", "import dagster", "TID251"),
        ("mlops_assets/cli.py", "print('x')", None),
    ],
)
def test_ruff_keeps_the_rules_of_the_layout(name, line, rule):
    command = [
        str(Path(sys.executable).with_name("ruff")),
        "check",
        "--stdin-filename",
        name,
        "--output-format",
        "json",
        "--select",
        "TID251,T201",
        "-",
    ]
    done = subprocess.run(command, input=line + "\n", capture_output=True, text=True, cwd=ROOT)
    codes = {finding["code"] for finding in json.loads(done.stdout)}
    assert codes == ({rule} if rule else set())


def test_the_lock_pins_every_dependency_and_has_no_address():
    import tomllib

    from packaging.requirements import Requirement

    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    pinned = {}
    for line in lock.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            requirement = Requirement(line.partition("#")[0])
            (only,) = requirement.specifier
            assert only.operator == "==", line
            pinned[requirement.name.lower().replace("_", "-")] = only.version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    loose = [
        d for d in map(Requirement, wanted) if not d.specifier.contains(pinned.get(d.name.lower().replace("_", "-"), "0"), prereleases=True)
    ]
    assert [str(d) for d in loose] == []
