"""What only the whole platform can show: killed in mid-training, and a backfill of several versions, as the Dagster UI asks for it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import text

from mlops_assets import database, sample_data
from mlops_assets.dagster_api import LOCATION, graphql
from mlops_assets.settings import REPOSITORY
from mlops_assets_tests.running_platform import Running, running_platform, until

pytestmark = pytest.mark.slow  # last run 2026-11-21, see the docstrings


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Trains long enough to be killed in the middle."""
    configs = tmp_path_factory.mktemp("configs")
    shutil.copytree(REPOSITORY / "configs", configs, dirs_exist_ok=True)
    content = yaml.safe_load((configs / "sentiment.yaml").read_text(encoding="utf-8"))
    content["models"]["kcbert"]["training"]["min_steps"] = 1500
    content["models"]["kcbert"]["training"]["checkpoints_per_epoch"] = 1
    (configs / "sentiment.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    with running_platform(MLOPS_CONFIGS=str(configs)) as running:
        running.start()
        yield running


def mlops(platform: Running, *arguments: str, code: int = 0) -> str:
    command = [str(Path(sys.executable).with_name("mlops")), *arguments]
    done = subprocess.run(command, env=platform.environment, capture_output=True, text=True, timeout=580)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def rows(platform: Running, sql: str) -> list[Any]:
    engine = database.connect(platform.known["database_url"], pool_size=0)
    with engine.connect() as connection:
        return list(connection.execute(text(sql)).all())


def land(platform: Running, folder: Path, version: str, **sample: Any) -> None:
    sample_data.write_reviews(folder, **sample)
    mlops(platform, "land", "sentiment", str(folder), "--dataset-version", version)


def verdicts(platform: Running) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for version, outcome in rows(platform, "SELECT dataset_version, outcome FROM verdict ORDER BY id"):
        found.setdefault(version, []).append(outcome)
    return found


def materializations(platform: Running, layer: str) -> list[dict[str, Any]]:
    """Newest first: partition, and the metadata's whole numbers."""
    query = """query M($key: AssetKeyInput!) { assetOrError(assetKey: $key) { ... on Asset { assetMaterializations(limit: 20) {
        partition metadataEntries { label ... on IntMetadataEntry { intValue } } } } } }"""
    found = graphql(platform.known["dagster_url"], query, {"key": {"path": ["sentiment", layer]}}, timeout=30)
    return [
        {"partition": one["partition"]} | {entry["label"]: entry.get("intValue") for entry in one["metadataEntries"]}
        for one in found["assetOrError"]["assetMaterializations"]
    ]


def test_the_whole_platform_killed_in_mid_training_resumes_and_ends_as_an_unbroken_run(platform: Running, tmp_path: Path) -> None:
    """SIGKILL to every process, PostgreSQL too; the next start resumes by itself, and only seeds make a difference.

    2026-11-21: passed. The sample can be learned to the last row, so the figures are equal and the spread is 0; that weights are equal is
    shown in training/test_trainer.py.
    """
    land(platform, tmp_path / "v1", "v1")

    def step() -> int:
        return max((int(path.name.split("-")[1]) for path in platform.home.glob("training/*/checkpoints/step-*")), default=0)

    until(lambda: step() >= 300, 180, "a checkpoint")
    platform.kill()
    until(lambda: not platform.everything(), 30, "the end of every process")
    assert 300 <= step() < 1500, "killed in the middle"
    platform.start()
    until(lambda: verdicts(platform).get("v1"), 400, "the verdict")
    assert verdicts(platform)["v1"] == ["promoted"]
    resumed = materializations(platform, "trained_model")[0]
    assert resumed["resumed_from_step"] > 0, "it began anew: this would show nothing"

    broken = json.loads(rows(platform, "SELECT body::text FROM report ORDER BY id DESC LIMIT 1")[0][0])["metrics"]
    unbroken = json.loads(mlops(platform, "train", "sentiment", "--dataset-version", "v1", "--json"))["report"]["metrics"]
    other_seed = json.loads(mlops(platform, "train", "sentiment", "--dataset-version", "v1", "--seed", "43", "--json"))["report"]["metrics"]
    for name in ("accuracy", "f1", "loss"):
        spread = abs(unbroken[name] - other_seed[name])
        print(f"{name}: killed {broken[name]:.6f}, unbroken {unbroken[name]:.6f}, seed to seed {spread:.6f}")
        assert abs(broken[name] - unbroken[name]) <= max(spread, 1e-6)


_BACKFILL = """mutation Backfill($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) { __typename
    ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
_STATUS = """query Status($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status
    assetBackfillData { assetBackfillStatuses { ... on AssetPartitionsStatusCounts { assetKey { path } numPartitionsTargeted
        numPartitionsMaterialized numPartitionsFailed } } } } } }"""


def test_a_backfill_of_three_versions_is_not_stopped_by_the_refused_one(platform: Running, tmp_path: Path) -> None:
    """Launched as the UI's button does. Last result, 2026-11-21: passed, in 8 minutes beside a training."""
    versions = ["b1", "b2-bad", "b3"]
    for seed, version in enumerate(versions, start=10):
        land(platform, tmp_path / version, version, bad=version == "b2-bad", seed=seed)
    until(lambda: set(versions) <= set(verdicts(platform)), 580, "the verdicts of all")
    before = verdicts(platform)
    assert before["b2-bad"] == ["refused"]

    layers = ("trained_model", "evaluation_report", "registered_model")
    keys = [{"path": ["sentiment", layer]} for layer in layers]
    params = {"assetSelection": keys, "partitionNames": versions, "tags": [{"key": "location", "value": LOCATION}]}
    launched = graphql(platform.known["dagster_url"], _BACKFILL, {"params": params}, timeout=30)["launchPartitionBackfill"]
    assert launched["__typename"] == "LaunchBackfillSuccess", launched

    def status() -> dict[str, Any]:
        return dict(graphql(platform.known["dagster_url"], _STATUS, {"id": launched["backfillId"]})["partitionBackfillOrError"])

    until(lambda: status()["status"].startswith("COMPLETED"), 580, "the backfill's end")
    counts = {s["assetKey"]["path"][-1]: s for s in status()["assetBackfillData"]["assetBackfillStatuses"]}
    assert counts["evaluation_report"]["numPartitionsMaterialized"] == 3
    assert counts["registered_model"]["numPartitionsMaterialized"] == 2 and counts["registered_model"]["numPartitionsFailed"] == 1
    after = verdicts(platform)
    assert all(len(after[version]) == len(before[version]) + 1 for version in versions)
    assert after["b2-bad"][-1] == "refused"
