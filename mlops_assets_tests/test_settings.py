"""Settings: who wins, and that every mistake is one clear message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlops_assets.settings import (
    SERVICES_FILE,
    Settings,
    SettingsError,
    SystemConfig,
    canonical,
    load_config,
    load_settings,
    merge,
    read_yaml,
)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("MLOPS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MLOPS_HOME", str(tmp_path / "home"))


def services(tmp_path: Path, **values: object) -> None:
    (tmp_path / "home").mkdir(exist_ok=True)
    (tmp_path / "home" / SERVICES_FILE).write_text(json.dumps(values))


def test_arguments_win_over_the_environment_and_it_over_the_running_platform(tmp_path, monkeypatch):
    services(tmp_path, dagster_url="http://running", serve_url="http://running", mlflow_tracking_uri="http://running", pid=1, links={})
    monkeypatch.setenv("MLOPS_SERVE_URL", "http://environment")
    monkeypatch.setenv("MLOPS_MLFLOW_TRACKING_URI", "http://environment")
    settings = load_settings(mlflow_tracking_uri="http://argument")
    assert settings.dagster_url == "http://running"
    assert settings.serve_url == "http://environment"
    assert settings.mlflow_tracking_uri == "http://argument"


def test_a_child_with_the_exported_environment_sees_the_same_settings(tmp_path, monkeypatch):
    settings = load_settings(serve_port=8123, database_url="postgresql+psycopg://u:p@h/d?host=%2Ftmp", settle_seconds=2.5)
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    assert load_settings() == settings
    assert settings.environment()["DAGSTER_HOME"] == str(tmp_path / "home" / "dagster")


def test_a_misspelled_variable_is_an_error_that_names_the_right_one(monkeypatch):
    monkeypatch.setenv("MLOPS_DATABASE_ULR", "x")
    with pytest.raises(SettingsError, match=r"unknown setting MLOPS_DATABASE_ULR.*did you mean MLOPS_DATABASE_URL"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MLOPS_SERVE_PORT", "http"),
        ("MLOPS_THREADS", "0"),
        ("MLOPS_OBJECT_STORE_URL", "gs://bucket"),
        ("MLOPS_SENSOR_INTERVAL_SECONDS", "1"),
    ],
)
def test_a_bad_value_names_the_variable_and_where_the_table_is(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=rf"{name}: .*README"):
        load_settings()


def test_what_only_the_running_platform_knows_says_how_to_start_it():
    with pytest.raises(SettingsError, match=r"`mlops up`, or set MLOPS_DATABASE_URL"):
        load_settings().require("database_url")


def test_settings_are_frozen_and_paths_are_absolute(monkeypatch):
    monkeypatch.setenv("MLOPS_HOME", "relative")
    settings = load_settings()
    assert settings.home == Path.cwd() / "relative"
    with pytest.raises(ValueError, match="frozen"):
        settings.home = Path("/")  # type: ignore[misc]


def test_every_setting_stands_in_the_readme():
    table = (Path(__file__).parent.parent / "README.md").read_text()
    missing = [name for name in Settings.model_fields if f"`MLOPS_{name.upper()}`" not in table]
    assert missing == []


# --- configs/ ---------------------------------------------------------------------------------------------------------------------

GOOD = "project: {name: s, dataset: d, model: m}\nregister_threshold: {f1: 0.8}\n"


def test_the_systems_file_goes_over_the_base_section_by_section(tmp_path):
    (tmp_path / "base.yaml").write_text("promotion: {mode: manual, metric: accuracy}\n")
    (tmp_path / "s.yaml").write_text(GOOD + "promotion: {metric: f1}\n")
    config = load_config(SystemConfig, "s", tmp_path)
    assert (config.promotion.mode, config.promotion.metric) == ("manual", "f1")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed: 1\nat: 2026-13-45", r"line 2, column 5 is not valid YAML: the value cannot be read \(month"),
        (b"at: !!timestamp x", r"line 1, column 5 .* cannot be read"),
        (b"seed: !!int x", r"line 1, column 7 .* cannot be read"),
        (b"seed: " + b"1" * 5_000, r"line 1, column 7 .* cannot be read"),
        (b"rate: !!float x", r"line 1, column 7 .* cannot be read"),
        (b"a: " + b"[" * 5_000, "nested too deeply"),
        (b"a: &a [*a]", "aliases"),
        (b"x0: &x0 [1]\n" + b"".join(b"x%d: &x%d [%s]\n" % (n, n, b",".join([b"*x%d" % (n - 1)] * 9)) for n in range(1, 10)), "aliases"),
        (b'name: "a\\ud800"', "no text has"),
        (b'name: "a\\x00"', "no text has"),
        (b"project: [", r"line 1, column .* is not valid YAML"),
        ("이름: 값".encode("euc-kr"), "is not UTF-8"),
        (b"- a\n- b\n", "must hold a mapping"),
        (GOOD.encode() + b"promotoin: {}\n", "promotoin"),
        (GOOD.replace("{f1: 0.8}", "{}").encode(), "names no metric"),
        (GOOD.replace("0.8", "high").encode(), r"register_threshold\.f1"),
        (GOOD.encode() + b"monitoring: {min_live_accuracy: 80}\n", r"monitoring\.min_live_accuracy: .*less than or equal to 1"),
        (GOOD.encode() + b"monitoring: {min_answers: 0}\n", r"monitoring\.min_answers"),
        (GOOD.encode() + b"monitoring: {window_hours: 0}\n", r"monitoring\.window_hours"),
    ],
)
def test_a_bad_file_is_one_message_with_file_and_field(tmp_path, content, message):
    (tmp_path / "s.yaml").write_bytes(content)
    with pytest.raises(SettingsError, match=message) as error:
        load_config(SystemConfig, "s", tmp_path)
    assert "s.yaml" in str(error.value)


def test_a_missing_file_says_where_to_get_it(tmp_path):
    with pytest.raises(SettingsError, match=r"Copy it from the repository's configs/"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(SettingsError, match="cannot be read"):
        read_yaml(tmp_path)


def test_merge_keeps_both_inputs(tmp_path):
    base, top = {"a": {"x": 1, "y": 2}}, {"a": {"y": 3}}
    assert merge(base, top) == {"a": {"x": 1, "y": 3}}
    assert (base, top) == ({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}})


def test_canonical_json_is_one_text_for_one_value():
    assert canonical({"b": 1, "a": "한글"}) == canonical({"a": "한글", "b": 1}) == '{"a":"한글","b":1}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical(float("nan"))
