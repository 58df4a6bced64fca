"""The code version of what a system does follows its imports. The oracle is import-linter's own graph."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import grimp
import pytest

from mlops_assets import definitions
from mlops_assets.lifecycle.pipeline import code_version
from mlops_assets.sources import ROOT, imported
from mlops_assets.sources import code_version as version_of
from mlops_assets.systems import DATA_SYSTEMS, SYSTEMS

RULES = [f"mlops_assets.systems.{name}.data" for name in (*SYSTEMS, *DATA_SYSTEMS)]
TRAININGS = [f"mlops_assets.systems.{name}.training" for name in SYSTEMS]


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph("mlops_assets", exclude_type_checking_imports=True, cache_dir=None)


def file_of(module: str, root: Path = ROOT) -> Path:
    path = root.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@pytest.mark.parametrize("module", [*RULES, *TRAININGS])
def test_it_is_what_is_imported_and_nothing_else(graph, module):
    assert imported(module) == sorted(file_of(name) for name in {module, *graph.find_upstream_modules(module)})


@pytest.mark.parametrize("module", ["mlops_assets.systems.tires.data", "mlops_assets.systems.digits.training"])
def test_each_imported_module_changes_it_and_no_other_does(tmp_path, module):
    shutil.copytree(ROOT / "mlops_assets", tmp_path / "mlops_assets", ignore=shutil.ignore_patterns("__pycache__"))
    counted, before = imported(module, root=tmp_path), version_of(module, root=tmp_path)
    assert before == version_of(module)  # of the text, not of where it stands
    assert {"likeness.py", "data.py"} <= {path.name for path in counted}  # both were forgotten in lists kept by hand
    for path in sorted((tmp_path / "mlops_assets").rglob("*.py")):
        text = path.read_bytes()
        path.write_bytes(text + b"# another word\n")
        assert (version_of(module, root=tmp_path) != before) == (path in counted), path
        path.write_bytes(text)
    assert version_of(module, root=tmp_path) == before


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("import pack.b", True),
        ("from pack import b", True),
        ("from . import b", True),
        ("from .b import x", True),
        ("def f():\n    if 1:\n        try:\n            pass\n        except OSError:\n            from pack import b", True),
        ("match 1:\n    case 1:\n        from pack import b", True),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pack import b", False),
        ("import typing\nif typing.TYPE_CHECKING:\n    pass\nelse:\n    import pack.b", True),
        ("import other.b", False),
        ("'import pack.b'", False),
    ],
)
def test_every_way_to_import_counts(tmp_path, text, counts):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("")
    (tmp_path / "pack" / "a.py").write_text(text)
    (tmp_path / "pack" / "b.py").write_text("x = 1")
    assert [path.name for path in imported("pack.a", root=tmp_path)] == ["a.py", "b.py"][: 1 + counts]


def test_modules_that_import_each_other_end(tmp_path):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("x = 1")
    (tmp_path / "pack" / "a.py").write_text("from pack.b import y\nfrom pack import x")
    (tmp_path / "pack" / "b.py").write_text("def f():\n    import pack.a")
    assert [path.name for path in imported("pack.a", root=tmp_path)] == ["__init__.py", "a.py", "b.py"]
    with pytest.raises(ModuleNotFoundError):
        imported("pack.c", root=tmp_path)


def test_the_assets_have_it():
    assets = definitions.build_defs().get_repository_def().assets_defs_by_key
    versions = {key.to_user_string(): spec.code_version for key, asset in assets.items() for spec in asset.specs if spec.key == key}
    for system in SYSTEMS:
        training = importlib.import_module(f"mlops_assets.systems.{system}.training").SYSTEM
        assert versions[f"{system}/cleaned"] == version_of(f"mlops_assets.systems.{system}.data")
        for variant in training.variants:
            name = "/".join(part for part in (system, variant if len(training.variants) > 1 else "", "trained_model") if part)
            assert versions[name] == code_version(training, variant)
    assert versions["disposal_policy/cleaned"] == version_of("mlops_assets.systems.disposal_policy.data")
