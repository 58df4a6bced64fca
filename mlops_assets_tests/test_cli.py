"""`mlops` as a user types it: exit codes, the last line, --json, and what it does to the ledgers. Real PostgreSQL, real Dagster jobs."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from mlops_assets.cli import main
from mlops_assets.lifecycle.dataset import object_key
from mlops_assets_tests.factories import GOOD, World, config_of
from mlops_assets_tests.ingest import arrivals


@pytest.fixture
def run(dagster_settings, capsys):
    """`run("stage", "sentiment")` -> (exit code, stdout, last line of stderr), against this test's own platform."""

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        lines = [line for line in captured.err.splitlines() if line.strip()]
        return int(ended.value.code or 0), captured.out, lines[-1] if lines else ""

    return call


@pytest.fixture
def world(engine, settings, store):
    return World(engine, settings, store, system="sentiment", config=config_of("sentiment", mode="manual"))


def test_wrong_use_is_exit_2_with_the_fix(run, tmp_path):
    code, _, last = run("stage", "sentimant")
    assert code == 2 and "choose one of sentiment" in last
    code, _, last = run("stage", "sentiment", "--metric", "BLEU")
    assert code == 2 and "choose one of accuracy, f1, loss, precision, recall" in last
    code, _, last = run("produce", "sentiment")
    assert code == 2 and "reason" in last.lower()
    code, _, last = run("train", "sentiment", "--dataset-version", "nope")
    assert code == 2 and "mlops land sentiment PATH --dataset-version nope" in last
    code, _, last = run("nonsense")
    assert code == 2
    code, _, last = run("trace", "no-such-request")
    assert code == 2 and "no answer with the request id" in last
    code, _, last = run("land", "sentiment", tmp_path / "missing", "--dataset-version", "v1")
    assert code == 2 and "missing" in last
    code, _, last = run("land", "sentiment", tmp_path, "--dataset-version", "../v1")
    assert code == 2


def test_a_long_text_is_no_file(run, monkeypatch):
    monkeypatch.setenv("MLOPS_SERVE_URL", "http://127.0.0.1:9")
    code, _, last = run("predict", "sentiment", "가" * 86)  # longer than a file's name may be
    assert code == 2 and "does not answer" in last


@pytest.mark.parametrize(
    ("arguments", "last_line"),
    [
        (("--model-type", "resnet19"), "resnet19 (choose one of efficientnet_b0,"),
        (("--learning-rate", "0.1:0.01"), "give 0 < LOW < HIGH"),
        (("--learning-rate", "0.1"), "give LOW:HIGH"),
        (("--trials", "0"), "trials is 0: give at least 1"),
        (("--metric", "BLEU"), "choose one of accuracy, f1, loss, precision, recall"),
        (("--epoch", "1"), "tires has no parameter epoch: choose from batch_size"),
        (("--epochs", "many"), "epochs is 'many': give a value of type float"),
        (("--bf16", "perhaps"), "true or false"),
        ((), "mlops land tires PATH --dataset-version v9"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_exit_2_with_the_choices(run, arguments, last_line):
    code, out, last = run("sweep", "tires", "--dataset-version", "v9", *arguments)
    assert code == 2 and last_line in last and out == ""


def test_bad_yaml_names_the_line(run, tmp_path, monkeypatch):
    (tmp_path / "sentiment.yaml").write_text("project:\n  name: [unclosed\n")
    monkeypatch.setenv("MLOPS_CONFIGS", str(tmp_path))
    code, _, last = run("stage", "sentiment")
    assert code == 2 and "sentiment.yaml line" in last and "not valid YAML" in last


def test_a_misspelled_setting_is_named(run, monkeypatch):
    monkeypatch.setenv("MLOPS_SERVE_PROT", "1")
    code, _, last = run("production-info")
    assert code == 2 and "MLOPS_SERVE_PROT" in last and "MLOPS_SERVE_PORT" in last


def test_without_a_platform_it_says_how_to_start_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLOPS_HOME", str(tmp_path / "nothing"))
    with pytest.raises(SystemExit) as ended:
        main(["production-info"])
    assert ended.value.code == 2 and "mlops up" in capsys.readouterr().err


def test_candidate_champion_archive_from_the_command_line(run, world, settings):
    code, _, last = run("stage", "sentiment")
    assert code == 1 and "no registered version" in last, "refused: exit code 1, the reason on the last line"
    world.registered("v1", {**GOOD, "loss": 0.3, "f1": 0.82}, content="a")
    world.registered("v2", {**GOOD, "loss": 0.4, "f1": 0.92}, content="b")
    code, out, _ = run("stage", "sentiment", "--metric", "F1")
    assert code == 0 and "candidate of sentiment is v2 (v2)" in out
    code, out, _ = run("produce", "sentiment", "--metric", "Loss", "--reason", "checked by hand", "--json")
    assert code == 0 and json.loads(out)["version"] == 1 and "checked by hand" in json.loads(out)["reason"]
    code, _, last = run("rollback", "sentiment", "--reason", "x", "--json")
    assert code == 1 and "only champion there ever was" in last
    between = datetime.now(UTC)
    assert run("produce", "sentiment", "--version", "2", "--reason", "better")[0] == 0
    code, out, _ = run("production-info", "sentiment", "--json")
    info = json.loads(out)[0]
    assert code == 0 and info["version"] == 2 and info["metrics"]["f1"] == 0.92 and info["uri"] == "models:/sentiment@champion"
    code, out, _ = run("history", "sentiment", "--at", between.isoformat(), "--json")
    assert json.loads(out)["champion"]["version"] == 1
    assert run("rollback", "sentiment", "--reason", "complaints")[0] == 0
    code, out, _ = run("production-info", "sentiment")
    assert "sentiment v1 on v1" in out and "complaints" in out
    code, out, _ = run("retention", "--dry-run", "--json")
    assert code == 0 and json.loads(out)["sentiment"]["delete"] == []
    code, out, _ = run("history", "sentiment")
    assert code == 0 and "rollback" in out


def test_trace_follows_an_answer_to_its_bytes_and_notices_a_broken_link(run, world, store, tmp_path):
    arrivals.put(store, "v1", "a.txt", "rows")
    arrivals.ready(store, "v1")
    arrivals.tick(world.engine, store)
    (entry,) = arrivals.freeze(world.engine, store, "v1", tmp_path).entries
    done = world.registered("v1")
    world.registrar().produce(version=1, reason="x")
    with world.engine.begin() as connection:
        connection.execute(text("INSERT INTO answer VALUES ('req-1', 'sentiment', 1, :b, 1, now())"), {"b": done.receipt.bundle_sha256})
    code, out, _ = run("trace", "req-1")
    assert code == 0 and "verified  every link holds" in out and entry.sha256 in out and done.receipt.bundle_sha256 in out
    store.delete(object_key(entry.sha256))
    code, out, last = run("trace", "req-1", "--json")
    assert code == 1 and "are gone" in last and json.loads(out.splitlines()[0])["verified"] is False


def test_land_then_the_files_lie_ready(run, store, tmp_path):
    folder = tmp_path / "reviews"
    folder.mkdir()
    (folder / "ratings_train.txt").write_text("id\tdocument\tlabel\n1\t좋다\t1\n", encoding="utf-8")
    code, out, _ = run("land", "sentiment", folder, "--dataset-version", "v1", "--json")
    assert code == 0 and json.loads(out)["objects"] == 1
    assert {Path(o.key).name for o in store.list("landing/sentiment/v1")} >= {"ratings_train.txt", "_READY"}


def test_old_times_are_utc(run, world):
    world.registered("v1")
    world.registrar().produce(version=1, reason="x")
    naive = (datetime.now(UTC) - timedelta(hours=1)).replace(tzinfo=None).isoformat()
    assert json.loads(run("history", "sentiment", "--at", naive, "--json")[1])["champion"] is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("parameters: {epoch: 3}\n", "hate_speech has no parameter epoch: choose from"),
        ("parameters: {epochs: three}\n", "epochs is 'three' in the file: give a value of type float"),
        ("epochs: 3\n", "epochs is unknown"),
        ("variant: resnet\nparameters: {}\n", "지원되지 않는 모델 타입입니다.: resnet"),
        ("variant: anew\nseed: 7\nparameters: {epochs: 2, pretrained: null}\n", "mlops land hate_speech PATH --dataset-version v9"),
    ],
)
def test_a_params_yaml_is_checked_before_anything_runs(run, tmp_path, content, message):
    (tmp_path / "params.yaml").write_text(content, encoding="utf-8")
    code, _, last = run("train", "hate_speech", "--dataset-version", "v9", "--params", tmp_path / "params.yaml")
    assert code == 2 and message in last


def test_a_user_is_forgotten_by_name_and_wrong_use_says_what_is_missing(run, engine, monkeypatch):
    from mlops_assets import otp
    from mlops_assets.ingest import drawn
    from mlops_assets.settings import DrawingsSection
    from mlops_assets_tests.drawings import SECRET, drawing

    code, _, last = run("forget", "digits", "--user", "u")
    assert code == 2 and "set MLOPS_OTP_SECRET" in last
    monkeypatch.setenv("MLOPS_OTP_SECRET", "too short")
    code, _, last = run("forget", "digits", "--user", "u")
    assert code == 2 and "MLOPS_OTP_SECRET" in last and "32" in last and "too short" not in last.replace("too_short", "")
    monkeypatch.setenv("MLOPS_OTP_SECRET", SECRET)
    code, _, last = run("forget", "tires", "--user", "u")
    assert code == 2 and "keeps nothing of users" in last
    drawings = [drawn.drawing(drawing(digit, place), digit) for place, digit in enumerate("0123")]
    drawn.accept(engine, "digits", otp.pseudonym(SECRET, "u"), drawings, DrawingsSection())
    code, out, _ = run("forget", "digits", "--user", "u", "--json")
    assert code == 0 and json.loads(out) == {"system": "digits", "drawings": 4, "dataset_versions": [], "models": []}
    code, out, _ = run("forget", "digits", "--user", "u")
    assert code == 0 and out.splitlines() == ["0 drawings deleted"]
    code, _, last = run("cut", "tires")
    assert code == 2 and "neither a section `cuts` nor `drawings`" in last
    code, out, _ = run("cut", "digits")
    assert code == 0 and "land the data set first" in out
