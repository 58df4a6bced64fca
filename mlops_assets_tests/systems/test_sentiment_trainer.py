"""`ModelTrainer` before it trains: which version it takes."""

from __future__ import annotations

import pytest
import yaml
from sqlalchemy import text

from mlops_assets.ingest import official
from mlops_assets.lifecycle import pipeline
from mlops_assets.settings import Settings, merge, read_yaml
from mlops_assets.systems.sentiment import ModelTrainer


def landed(engine, version: str, name: str) -> None:
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO dataset_version (system, version, state, manifest_sha256, manifest_key) "
                "VALUES ('sentiment', :v, 'frozen', 'm', 'k')"
            ),
            {"v": version},
        )
        connection.execute(
            text(
                "INSERT INTO landing_object (system, version, key, etag, size, last_modified, state) "
                "VALUES ('sentiment', :v, :key, 'e', 1, now(), 'accepted')"
            ),
            {"v": version, "key": f"landing/sentiment/{version}/{name}"},
        )


def test_a_version_of_another_data_set_is_not_taken_nor_touched(settings: Settings, engine, tmp_path, monkeypatch):
    second = {"datasets": {"second": {"train_files": ["second_*.txt"], "holdout_files": []}}}
    path = tmp_path / "sentiment.yaml"
    path.write_text(yaml.safe_dump(merge(read_yaml(settings.configs / "sentiment.yaml"), second), allow_unicode=True))
    landed(engine, "two", "second_1.txt")
    landed(engine, "one", "ratings_train.txt")
    platform = pipeline.connect(settings)
    assert ModelTrainer(path, settings=settings)._version(platform) == "one"
    assert ModelTrainer(path, dataset_name="second", settings=settings)._version(platform) == "two"
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM landing_object WHERE version = 'two'"))
    monkeypatch.setattr(official, "pull", lambda *given, **named: pytest.fail(f"fetched {given[1]}"))
    with pytest.raises(pytest.fail.Exception, match="fetched second"):
        ModelTrainer(path, dataset_name="second", settings=settings)._version(platform)
