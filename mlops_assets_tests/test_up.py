"""`mlops up`, the whole platform, as a user runs it. Starting it is dear: one home and two starts serve every check here, in order."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from sqlalchemy import create_engine, inspect

from mlops_assets import dagster_api, up
from mlops_assets.dagster_api import graphql
from mlops_assets.settings import SERVICES_FILE, SettingsError, load_settings, process_environment
from mlops_assets_tests.running_platform import Running, running_platform, until

SERVICES = ("code", "mlflow", "dagster", "daemon", "serve", "staging", "dashboard", "tensorboard")


@pytest.fixture(scope="module")
def platform() -> Iterator[Running]:
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        taken = str(squatter.getsockname()[1])
        with running_platform(MLOPS_TENSORBOARD_PORT=taken) as running:
            running.environment["TAKEN"] = taken
            left = running.home / "store" / "objects" / "left by an earlier release"
            left.parent.mkdir(parents=True)
            left.write_bytes(b"1")
            left.chmod(0o644)
            running.start()
            yield running


def get(url: str, **headers: str) -> int:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            urllib.request.Request(url, headers=headers), timeout=20
        ) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def mlflow_experiments(platform: Running) -> list[str]:
    url = platform.known["mlflow_tracking_uri"] + "/api/2.0/mlflow/experiments/search?max_results=100"
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=20) as reply:
        return [e["name"] for e in json.load(reply).get("experiments", [])]


def test_every_service_answers(platform):
    known = platform.known
    assert get(known["dagster_url"] + "/server_info") == 200
    assert get(known["mlflow_tracking_uri"] + "/health") == 200
    assert get(known["serve_url"] + "/livez") == 200
    assert get(known["staging_url"] + "/livez") == 200
    assert get(known["links"]["Dashboard"] + "/_stcore/health") == 200
    assert get(known["links"]["TensorBoard"] + "/") == 200
    assert up.daemon_beats(known["dagster_url"])
    assert "failed:" not in platform.text


def test_dagster_has_the_definitions(platform):
    entries = graphql(platform.known["dagster_url"], up._LOCATIONS)["workspaceOrError"]["locationEntries"]
    assert [entry["locationOrLoadError"]["__typename"] for entry in entries] == ["RepositoryLocation"]
    launcher = graphql(platform.known["dagster_url"], "{ instance { runLauncher { name } runQueuingSupported } }")["instance"]
    assert launcher == {"runLauncher": {"name": "PidRunLauncher"}, "runQueuingSupported": True}


def test_the_addresses_are_in_the_settings_of_every_other_command(platform):
    settings = load_settings(home=platform.home)
    for name in ("database_url", "dagster_database_url", "mlflow_database_url", "mlflow_tracking_uri", "serve_url", "dagster_url"):
        assert settings.require(name) == platform.known[name]
    assert (platform.home / SERVICES_FILE).stat().st_mode & 0o077 == 0


def test_what_the_store_held_before_is_its_owners_alone(platform):
    store = platform.home / "store"
    assert [path for path in (store, *store.rglob("*")) if path.stat().st_mode & 0o077] == []
    assert "of the object store can be read by their owner alone from now on" in platform.text


def test_a_taken_port_is_replaced_and_said(platform):
    taken = int(platform.environment["TAKEN"])
    assert platform.known["tensorboard_port"] > taken
    assert f"port {taken} is taken by another program: tensorboard uses {platform.known['tensorboard_port']}" in platform.text


def test_mlflow_is_open_to_this_machine_and_closed_to_a_foreign_host_name(platform):
    url = platform.known["mlflow_tracking_uri"] + "/api/2.0/mlflow/experiments/search?max_results=1"
    assert get(url) == 200
    assert get(url, Host="evil.example") == 403


def test_a_second_start_on_the_same_home_is_refused_with_the_address(platform):
    command = [str(Path(sys.executable).with_name("mlops")), "up"]
    second = subprocess.run(command, env=platform.environment, capture_output=True, text=True, timeout=60)
    assert second.returncode == 2
    assert platform.known["dagster_url"] in second.stdout and str(platform.known["pid"]) in second.stdout
    assert get(platform.known["dagster_url"] + "/server_info") == 200  # and the first one is unharmed


def test_doctor_finds_the_running_platform_well(platform, monkeypatch):
    from mlops_assets import doctor

    monkeypatch.setattr(doctor, "_CHECKS", [check for check in doctor._CHECKS if check[0] not in ("spark", "packages", "font")])
    lines = {line.name: line for line in doctor.examine(load_settings(home=platform.home))}
    for name in ("database", "object store", "mlflow", "dagster", "serve", "staging", "signing key", "postgresql", "home", "ports"):
        assert lines[name].state == "ok", lines[name]


def test_a_button_of_the_dashboard_is_a_run_in_dagster_and_its_refusal_a_sentence(platform):
    address = platform.known["dagster_url"]
    config = {"ops": {"sentiment_stage_op": {"config": {"metric": "F1", "reason": "test"}}}}
    done = dagster_api.wait(address, dagster_api.launch(address, "sentiment_stage", config))
    assert (done.status, done.refused) == ("FAILURE", True)  # nothing is registered yet
    assert "sentiment" in done.sentence
    with pytest.raises(OSError, match=r"was not launched: .*metrik"):
        dagster_api.launch(address, "sentiment_stage", {"ops": {"sentiment_stage_op": {"config": {"metrik": "F1"}}}})


def test_a_killed_service_is_back(platform):
    before = platform.pid_of("tensorboard")
    os.kill(before, signal.SIGKILL)
    until(lambda: "TensorBoard is ready again" in platform.text, 60, "TensorBoard's restart")
    assert platform.pid_of("tensorboard") != before
    assert get(platform.known["links"]["TensorBoard"] + "/") == 200
    assert "tensorboard was killed by SIGKILL" in platform.text


def test_kill_9_of_the_supervisor_leaves_no_process(platform):
    body = json.dumps({"name": "kept"}).encode()
    request = urllib.request.Request(
        platform.known["mlflow_tracking_uri"] + "/api/2.0/mlflow/experiments/create", body, {"Content-Type": "application/json"}
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as reply:
        assert reply.status == 200
    assert len(platform.everything()) >= len(SERVICES) + 2  # a control: they can be seen
    os.kill(platform.known["pid"], signal.SIGKILL)
    assert platform.process is not None
    platform.process.wait()
    until(lambda: not platform.everything(), 30, "the end of every process")
    until(lambda: not (platform.home / SERVICES_FILE).exists(), 10, "the end of services.json")


def test_the_next_start_finds_all_that_was_there(platform):
    key = (platform.home / "keys" / "signing" / "current.pem").read_bytes()
    # What a power cut leaves: addresses of nobody, and a pid that is now somebody else's.
    (platform.home / SERVICES_FILE).write_text(json.dumps({"database_url": "postgresql://nobody@127.0.0.1:1/x", "dagster_url": "http://x"}))
    (platform.home / "postgres" / "postmaster.pid").write_text(
        f"{os.getpid()}\n{platform.home / 'postgres'}\n1\n5432\n/tmp\n\n1 1\nready\n"
    )
    platform.start()
    assert "kept" in mlflow_experiments(platform)
    assert (platform.home / "keys" / "signing" / "current.pem").read_bytes() == key
    assert "nobody" not in platform.known["database_url"]


def test_sigterm_stops_everything_in_order_and_leaves_no_process(platform):
    assert platform.process is not None
    postgres_log = platform.home / "logs" / "postgres.log"
    platform.process.send_signal(signal.SIGTERM)
    assert platform.process.wait(60) == 0
    assert platform.everything() == []
    assert not (platform.home / SERVICES_FILE).exists()
    assert "everything is stopped" in platform.text and "is given up" not in platform.text
    assert "database system is shut down" in postgres_log.read_text().splitlines()[-1]  # PostgreSQL ended by itself, last


# --- without starting anything ----------------------------------------------------------------------------------------------------


def test_a_data_folder_without_a_known_data_set_is_refused_before_anything_starts(tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    assert up.run(load_settings(home=tmp_path / "home"), data=tmp_path) == 2
    assert "holds no data set that is known (nsmc, magnetic_tile, unsmile, mnist)" in capsys.readouterr().out
    assert not (tmp_path / "home" / "postgres").exists()


def test_tables_of_a_newer_mlflow_are_refused(tmp_path):
    (tmp_path / "versions.json").write_text('{"mlflow": "99.0"}')
    with pytest.raises(up.Refused, match=r"last used by mlflow 99\.0"):
        up._upgrade_stores(tmp_path, {})
    assert "99.0" in (tmp_path / "versions.json").read_text()


def test_mlflows_tables_follow_its_version_and_no_command_holds_their_address(tmp_path, make_database, monkeypatch):
    settings = load_settings(home=tmp_path, mlflow_database_url=make_database("template1"))
    (tmp_path / "versions.json").write_text('{"mlflow": "2.0"}')
    run, commands = subprocess.run, []
    monkeypatch.setattr(up.subprocess, "run", lambda command, **options: commands.append(command) or run(command, **options))
    up._upgrade_stores(tmp_path, process_environment() | settings.environment())
    with create_engine(settings.require("mlflow_database_url")).connect() as connection:
        assert inspect(connection).has_table("registered_models")
    assert commands and settings.require("mlflow_database_url") not in repr(commands)
    assert '"2.0"' not in (tmp_path / "versions.json").read_text()


def test_a_home_that_cannot_be_written_is_one_clear_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert up.run(load_settings(home=tmp_path / "file" / "home")) == 2
    assert "set MLOPS_HOME to a folder of yours" in capsys.readouterr().out


def test_an_artifact_store_on_s3_and_no_password_on_the_command_line(tmp_path):
    settings = load_settings(
        home=tmp_path,
        object_store_url="s3://bucket/prefix",
        s3_endpoint_url="http://127.0.0.1:1",
        mlflow_database_url="postgresql://u:pw@h/m",
    )
    environment = up.mlflow_environment(settings)
    assert environment["MLFLOW_ARTIFACTS_DESTINATION"] == "s3://bucket/prefix/mlflow"
    assert environment["MLFLOW_S3_ENDPOINT_URL"] == "http://127.0.0.1:1"
    assert "pw" in environment["MLFLOW_BACKEND_STORE_URI"]


def test_services_of_an_installation_with_its_own_databases_need_the_address(tmp_path):
    with pytest.raises(SettingsError, match="MLOPS_DATABASE_URL"):
        up.migrate(load_settings(home=tmp_path))


@pytest.mark.parametrize("given", ["http://mlflow.example:5000", None])
def test_only_the_mlflow_that_this_installation_started_is_emptied(tmp_path, given):
    from mlops_assets.systems.sentiment.trainer import reset_tracking

    started = up.Platform(load_settings(home=tmp_path, mlflow_tracking_uri=given), lambda kind, what: None)
    started._choose_addresses(None)
    started._publish()
    platform = MagicMock(settings=load_settings(home=tmp_path))
    platform.tracking.client.search_runs.return_value = [MagicMock()]
    assert given in (None, platform.settings.mlflow_tracking_uri), "a given address is published like one of ours"
    if given is None:
        assert reset_tracking(platform) == 1
        platform.settings = load_settings(home=tmp_path, mlflow_tracking_uri="http://mlflow.example:5000")
    with pytest.raises(ValueError, match="yours is elsewhere"):
        reset_tracking(platform)
    assert platform.tracking.client.delete_run.call_count == (given is None)
