"""What only the whole platform can show of comments: from a committed, labelled one to a model that was trained on it, with no command."""

from __future__ import annotations

import json
import shutil
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from sqlalchemy import text

from mlops_assets import database, sample_data
from mlops_assets.settings import REPOSITORY
from mlops_assets_tests import mariadb
from mlops_assets_tests.running_platform import Running, running_platform, until
from mlops_assets_tests.test_platform import mlops, rows

pytestmark = [
    pytest.mark.slow,  # last run: see the docstrings
    pytest.mark.skipif(mariadb.MISSING is not None, reason=mariadb.MISSING or ""),
]

TABLE = """CREATE TABLE app.comment (id BIGINT AUTO_INCREMENT PRIMARY KEY, text TEXT, created_at DATETIME(6) DEFAULT CURRENT_TIMESTAMP(6),
    updated_at DATETIME(6) DEFAULT CURRENT_TIMESTAMP(6) ON UPDATE CURRENT_TIMESTAMP(6), moderation VARCHAR(20), labels VARCHAR(200),
    KEY (updated_at)) CHARACTER SET utf8mb4"""


@pytest.fixture(scope="module")
def source() -> Iterator[mariadb.MariaDB]:
    with mariadb.running() as server:
        server.run("CREATE DATABASE app", TABLE)
        yield server


@pytest.fixture(scope="module")
def platform(source: mariadb.MariaDB, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """As shipped, but that a cut waits for 500 labels and no quiet, and that the few rows of the first version are enough to begin with."""
    configs = tmp_path_factory.mktemp("configs")
    shutil.copytree(REPOSITORY / "configs", configs, dirs_exist_ok=True)
    content = yaml.safe_load((configs / "hate_speech.yaml").read_text(encoding="utf-8"))
    content["cuts"] |= {"when": "labels", "min_new_labels": 500}
    content["register_threshold"] |= {"lrap": 0.3, "f1": 0.1}
    (configs / "hate_speech.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    with running_platform(MLOPS_CONFIGS=str(configs), MLOPS_COMMENTS_URL=source.url("app"), MLOPS_SENSOR_INTERVAL_SECONDS="5") as running:
        running.start()
        yield running


def labelled(folder: Path, count: int) -> list[tuple[str, str]]:
    """(text, labels with commas) of `count` invented comments."""
    sample_data.write_comments(folder, train=count, valid=1, seed=99)
    header, *lines = (folder / "unsmile_train_v1.0.tsv").read_text(encoding="utf-8").splitlines()
    names = header.split("\t")[1:-1]
    found = []
    for line in lines[:count]:
        said, *flags = line.split("\t")
        found.append((said, ",".join(name for name, flag in zip(names, flags, strict=False) if flag == "1")))
    return found


def test_a_labelled_comment_is_learned_and_served_without_a_command(platform: Running, source: mariadb.MariaDB, tmp_path: Path) -> None:
    """2026-11-21: 76 s from the commit of 1,500 comments to production, on two processors (the sensor looks every 5 s)."""
    sample_data.write_comments(tmp_path / "first", train=700, valid=400)
    mlops(platform, "land", "hate_speech", str(tmp_path / "first"), "--dataset-version", "unsmile-1")
    until(lambda: rows(platform, "SELECT 1 FROM verdict WHERE dataset_version = 'unsmile-1'"), 400, "the first version's verdict")
    wait = rows(platform, "SELECT outcome FROM verdict WHERE dataset_version = 'unsmile-1' ORDER BY id")
    assert ("promoted",) in [tuple(row) for row in wait], wait

    comments = labelled(tmp_path / "more", 1_500)
    connection = source.connect("app", autocommit=False)
    with connection.cursor() as cursor:
        sql = "INSERT INTO comment (text, moderation, labels) VALUES (%s, 'decided', %s)"
        cursor.executemany(sql, comments)
    connection.commit()
    committed = time.monotonic()

    def served() -> int | None:
        found = rows(
            platform,
            "SELECT r.version FROM receipt r JOIN promotion p USING (system, version) WHERE r.system = 'hate_speech' "
            "AND r.dataset_version LIKE 'comments-%'",
        )
        if not found:
            return None
        with urllib.request.urlopen(f"{platform.known['serve_url']}/models/hate_speech", timeout=10) as answer:
            said = json.load(answer)
        return found[0][0] if f'"version": {found[0][0]}' in json.dumps(said) else None

    until(served, 900, "a model of the comments in production")
    print(f"from the commit to production: {time.monotonic() - committed:.0f} s")
    counts = rows(platform, "SELECT (SELECT count(*) FROM comment WHERE source = 'app'), (SELECT count(*) FROM comment_cut_row)")
    assert tuple(counts[0]) == (1_500, 1_500), "each once"
    assert database and text
