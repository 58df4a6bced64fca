"""`mlops doctor`: each fault is found, is one line, and comes with what mends it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest
from sqlalchemy import text

from mlops_assets import doctor
from mlops_assets.doctor import Line
from mlops_assets.lifecycle import signing


def line(name: str, lines: Iterator[Line]) -> Line:
    return next(found for found in lines if found.name == name)


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_good_machine_has_no_failed_line(settings, database_url, capsys):
    settings = settings.model_copy(update={"dagster_database_url": database_url, "mlflow_database_url": database_url})
    signing.ensure_key(settings)
    assert doctor.run(settings, as_json=True) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    states = {found["name"]: found["state"] for found in answer["lines"]}
    assert answer["ok"] is True
    for name in ("python", "packages", "disk", "signing key", "database", "object store", "spark", "font"):
        assert states[name] == "ok", answer
    assert all(found["fix"] for found in answer["lines"] if found["state"] != "ok")


def test_a_failed_line_makes_the_exit_code_1_and_is_printed_with_its_fix(settings, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "_CHECKS", [("signing key", doctor._key)])
    signing.ensure_key(settings)
    settings.signing_key_path.chmod(0o644)
    assert doctor.run(settings) == 1
    printed = capsys.readouterr().out
    assert "fail" in printed and f"fix: chmod 600 {settings.signing_key_path}" in printed


def test_a_key_without_its_public_half(settings):
    key_id = signing.ensure_key(settings)
    (settings.public_keys_path / f"{key_id}.pub").unlink()
    found = line("signing key", doctor._key(settings))
    assert found.state == "fail" and "`mlops up`" in found.fix and "--rotate-key" not in found.fix
    assert signing.ensure_key(settings) == key_id
    assert line("signing key", doctor._key(settings)).state == "ok"


def test_a_database_that_is_away(settings, closed_port):
    away = settings.model_copy(update={"database_url": f"postgresql://postgres@127.0.0.1:{closed_port}/mlops"})
    found = line("database", doctor._database(away))
    assert found.state == "fail" and "does not answer" in found.found


@pytest.mark.parametrize(("revision", "state"), [("9999", "fail"), ("0000", "warn")])
def test_a_schema_of_another_version(settings, engine, revision, state):
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})
    found = line("database", doctor._database(settings))
    assert found.state == state and revision in found.found and found.fix


def test_a_store_that_cannot_be_written(settings, tmp_path):
    (tmp_path / "file").write_text("")
    found = line("object store", doctor._store(settings.model_copy(update={"object_store_url": f"file://{tmp_path}/file/below"})))
    assert found.state == "fail" and "MLOPS_OBJECT_STORE_URL" in found.fix


def test_a_store_that_is_away_does_not_hold_the_doctor_up(settings, closed_port, monkeypatch):
    monkeypatch.setattr(doctor, "_STORE_SECONDS", 0.5)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    away = settings.model_copy(update={"object_store_url": "s3://bucket", "s3_endpoint_url": f"http://127.0.0.1:{closed_port}"})
    assert line("object store", doctor._store(away)).state == "fail"


def test_a_taken_port_is_a_warning_that_needs_nothing(settings):
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        port = squatter.getsockname()[1]
        found = line("ports", doctor._ports(settings.model_copy(update={"serve_port": port})))
    assert found.state == "warn" and f"serve {port}" in found.found and "next free" in found.fix


def test_an_mlflow_that_is_away(settings, closed_port):
    found = line("mlflow", doctor._mlflow(settings.model_copy(update={"mlflow_tracking_uri": f"http://127.0.0.1:{closed_port}"})))
    assert found.state == "fail" and "mlflow.log" in found.fix


def test_a_check_that_breaks_is_a_line_and_the_others_still_run(settings, monkeypatch):
    def broken(_):
        raise RuntimeError("boom")
        yield

    monkeypatch.setattr(doctor, "_CHECKS", [("broken", broken), ("python", doctor._python)])
    found = list(doctor.examine(settings))
    assert [(f.name, f.state) for f in found] == [("broken", "fail"), ("python", "ok")]
    assert "boom" in found[0].found


def test_a_missing_package_is_named(settings, tmp_path, monkeypatch):
    (tmp_path / "requirements.lock").write_text("dagster==0.0.1\nno-such-package==1.0  # via x\n")
    monkeypatch.setattr(doctor, "REPOSITORY", tmp_path)
    found = line("packages", doctor._packages(settings))
    assert found.state == "warn" and "no-such-package 1.0 is missing" in found.found and "instead of 0.0.1" in found.found


def test_the_font_that_pictures_are_drawn_with_is_not_missing(settings, monkeypatch):
    """On a machine without Korean fonts the wheel's own is used: matplotlib does not list it by name until then."""
    from matplotlib import font_manager

    from mlops_assets.training import plots

    monkeypatch.setattr(font_manager, "get_font_names", list)
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [])
    plots.hangul_font.cache_clear()
    (line,) = doctor._font(settings)
    assert (line.state, line.fix) == ("ok", "") and "NanumGothic" in line.found
    # A control: with nothing at all it does warn, and says what to do.
    monkeypatch.setattr(plots.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [])
    plots.hangul_font.cache_clear()
    (line,) = doctor._font(settings)
    assert line.state == "warn" and "boxes" in line.found and "make install" in line.fix
    plots.hangul_font.cache_clear()
