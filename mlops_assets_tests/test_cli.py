"""`mlops` as a user types it: exit codes, the last line, --json, and what it does to the ledgers. Real PostgreSQL, real Dagster jobs."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import text

from mlops_assets import cli, jobs
from mlops_assets.cli import main
from mlops_assets.lifecycle.dataset import object_key
from mlops_assets.lifecycle.pipeline import Platform
from mlops_assets.systems import DATA_SYSTEMS, SYSTEMS
from mlops_assets.tracking import Tracking
from mlops_assets_tests.conftest import free_port
from mlops_assets_tests.factories import BAD, GOOD, World, config_of
from mlops_assets_tests.ingest import arrivals
from mlops_assets_tests.toy import toy_definitions, toy_system


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


TIRES = ("train", "tires", "--dataset-version", "v1")
REVIEWS = ("train", "sentiment", "--dataset-version", "v1")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((*TIRES, "--optimizer-type", "nope"), "optimizer_type 'nope' is not known; choose one of adamw"),
        ((*TIRES, "--model-type", "resnet19"), "resnet19 (choose one of efficientnet_b0,"),
        ((*TIRES, "--batch-size", "0"), "batch_size: Input should be greater than 0"),
        ((*TIRES, "--epochs", "inf"), "epochs: Input should be a finite number"),
        ((*TIRES, "--learning-rate", "nan"), "learning_rate: Input should be a finite number"),
        ((*TIRES, "--image-size", "8"), "image_size: Input should be greater than or equal to 32"),
        ((*TIRES, "--monitor", "luck"), "monitor: Input should be 'accuracy', 'f1' or 'loss'"),
        ((*TIRES, "--seed", "-1"), "seed is -1: give 0 to 4294967295"),
        ((*TIRES, "--epoch", "1"), "tires has no parameter epoch"),
        ((*TIRES, "--params", "none.yaml"), "none.yaml does not exist"),
        ((*TIRES, "--dataset", "nope"), "nope (not in the configuration; choose one of"),
        ((*TIRES, "--early-stopping-min-loss", "0.1"), "min_loss and min_accuracy are one condition"),
        ((*REVIEWS, "--model-type", "nope"), "nope (not in the configuration; choose one of"),
        ((*REVIEWS, "--max-length", "0"), "max_length: Input should be greater than"),
        ((*REVIEWS, "--sampling-rate", "2"), "sampling_rate: Input should be less than or equal to 1"),
        ((*REVIEWS, "--unfrozen-layers", "-1"), "unfrozen_layers: Input should be greater than or equal to 0"),
        ((*REVIEWS, "--attention-heads", "7"), "is no multiple of attention_heads 7"),
        ((*REVIEWS, "--vocabulary", "none.txt"), "vocabulary 'none.txt' is no file here"),
        (("train", "hate_speech", "--dataset-version", "v1", "--dropout", "1"), "dropout: Input should be less than 1"),
        (("train", "digits", "--dataset-version", "v1", "--asking-rate", "7"), "asking_rate: Input should be less than"),
        (("train", "nope", "--dataset-version", "v1"), "unknown system 'nope': choose one of sentiment"),
        (("train", "disposal_policy", "--dataset-version", "v1"), "disposal_policy has data and no model: choose one of sentiment"),
        (("train", "tires", "--dataset-version", "../v1"), "'../v1' cannot name a dataset version"),
        (("sweep", "tires", "--dataset-version", "V 1"), "'V 1' cannot name a dataset version"),
        (("sweep", "tires", "--dataset-version", "v1", "--optimizer-type", "nope"), "optimizer_type 'nope' is not known"),
        (("sweep", "tires", "--dataset-version", "v1", "--metric", "BLEU"), "unknown metric 'BLEU': choose one of"),
        (("sweep", "tires", "--dataset-version", "v1", "--trials", "0"), "trials is 0: give at least 1"),
        (("sweep", "tires", "--dataset-version", "v1", "--seed", "-3"), "seed is -3"),
        (("scenario", "tires", "--dataset-version", "a..b"), "'a..b' cannot name a dataset version"),
        (("scenario", "tires", "--folder-path", "digits/v1"), "is not that of a version of tires"),
        (("scenario", "tires", "--model-type", "nope"), "nope (choose one of"),
        (("stage", "tires", "--metric", "BLEU"), "unknown metric 'BLEU': choose one of"),
        (("produce", "tires", "--metric", "BLEU", "--reason", "r"), "unknown metric 'BLEU': choose one of"),
        (("produce", "tires", "--version", "0", "--reason", "r"), '"0" for --version'),
        (("produce", "tires", "--reason", " "), "--reason is empty"),
        (("rollback", "tires", "--to", "-1", "--reason", "r"), '"-1" for --to'),
        (("rollback", "tires", "--reason", ""), "--reason is empty"),
        (("retention", "nope"), "unknown system 'nope': choose one of sentiment"),
        (("production-info", "nope"), "unknown system 'nope': choose one of sentiment"),
        (("history", "nope"), "unknown system 'nope': choose one of sentiment"),
        (("history", "tires", "--at", "yesterday"), 'unable to convert "yesterday" into datetime'),
        (("cut", "nope"), "unknown system 'nope': choose one of sentiment"),
        (("forget", "digits", "--user", ""), "--user is empty"),
        (("land", "nope", ".", "--dataset-version", "v1"), "choose one of sentiment, tires, hate_speech, digits, disposal_policy"),
        (("land", "tires", "none", "--dataset-version", "v1"), "none does not exist"),
        (("land", "tires", ".", "--dataset-version", "V1"), "'V1' cannot name a dataset version"),
        (("land", "tires", ".", "--dataset-version", "v2", "--parent", "V1"), "'V1' cannot name a dataset version"),
        (("predict", "nope", "x"), "unknown system 'nope': choose one of sentiment"),
        (("predict", "tires", "none.jpg"), "none.jpg is no file: tires reads pictures"),
        (("predict", "digits"), "nothing to predict: `mlops predict digits PHOTO.jpg`"),
        (("predict", "sentiment", "x", "--version", "0"), '"0" for --version'),
        (("ingest", "comments", "nope"), "unknown system 'nope': choose one of sentiment"),
        (("data", "pull", "nope"), "no official source is known for 'nope': choose from"),
        (("trace", ""), "'' is no request id"),
        (("trace", "정말 재미있었어요"), "is no request id"),
        (("up", "--data", "none"), "none is not a folder"),
    ],
)
def test_bad_arguments_are_told_before_any_service_is_looked_for(tmp_path, monkeypatch, capfd, arguments, said):
    """Nothing runs, and nothing is begun: no line speaks of the database or of `mlops up`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLOPS_HOME", str(tmp_path / "home"))
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    captured = capfd.readouterr()
    assert ended.value.code == 2 and said in captured.err + captured.out
    for word in ("database", "nothing runs", "serve_url", "Traceback"):
        assert word not in captured.err + captured.out


def test_it_is_so_for_the_program_too(tmp_path):
    """A control beside it: with good arguments the same command does speak of what does not run."""
    command = [str(Path(sys.executable).with_name("mlops")), *TIRES]
    environment = {"PATH": os.environ["PATH"], "MLOPS_HOME": str(tmp_path / "home")}
    bad, good = (
        subprocess.run([*command, *more], env=environment, capture_output=True, text=True, timeout=60)
        for more in (["--optimizer-type", "nope"], [])
    )
    assert bad.returncode == good.returncode == 2
    assert "choose one of adamw" in bad.stderr and "database" not in bad.stderr and len(bad.stderr.splitlines()) == 1
    assert "database_url is not set" in good.stderr


def test_a_port_is_a_port(monkeypatch, capfd):
    monkeypatch.setenv("MLOPS_SERVE_PORT", "99999")
    with pytest.raises(SystemExit) as ended:
        main(["serve"])
    assert ended.value.code == 2 and "MLOPS_SERVE_PORT: Input should be less than or equal to 65535" in capfd.readouterr().err


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
    code, out, _ = run("stage", "sentiment")
    assert code == 0 and "candidate of sentiment is v2 (v2)" in out and "best F1" in out, "promotion.metric, not the loss"
    code, out, _ = run("stage", "sentiment", "--metric", "loss")
    assert code == 0 and "candidate of sentiment is v1 (v1)" in out, "a control: by another metric it is another one"
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


def test_history_has_one_line_a_decision_at_80_columns(run, world, monkeypatch):
    """With its time, as the wall has it, and with names that are told apart."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TZ", "Asia/Seoul")
    time.tzset()
    try:
        long = "nsmc-reviews-of-films-cut-from-the-ledger-of-comments-2026-11"
        names = [f"{long}-a", f"{long}-b", "x" * 40 + "a" + "y" * 10, "v1"]
        for place, name in enumerate(names):
            world.registered(name, {**GOOD, "f1": 0.80 + place / 100}, content=name)
        world.registered("bad", {**GOOD, "f1": 0.5}, content="bad")
        assert run("produce", "sentiment", "--version", "1", "--reason", "the first one, which everybody has waited for")[0] == 0
        before = datetime.now(UTC).astimezone(ZoneInfo("Asia/Seoul"))
        code, out, _ = run("history", "sentiment")
    finally:
        monkeypatch.undo()
        time.tzset()
    assert code == 0 and "UTC+09:00" in out
    lines = [line for line in out.splitlines() if line.startswith("  ")]
    assert len(lines) == 5 + 6, "five versions; five verdicts and a promotion"
    assert all(re.match(rf"  {before:%Y-%m-%d} \d\d:\d\d  (promote|registered|refused) ", line) for line in lines)
    names = {line[36:].split()[0] for line in lines[:5]}
    assert len(names) == 5 and {"v1", "bad"} < names and all("…" in name for name in names - {"v1", "bad"}), "all told apart"
    assert all(len(line) <= 80 for line in lines)
    assert "F1 0.500 <" in next(line for line in lines[5:] if "refused" in line)


def test_names_are_shortened_only_while_they_are_told_apart():
    from mlops_assets.lifecycle.history import told_apart

    names = ["short", "a" * 30 + "1" * 8, "a" * 31 + "1" * 8, "b" * 30]
    shown = told_apart(names, 20)
    assert len(set(shown.values())) == len(names) and shown["short"] == "short"
    assert shown["b" * 30] == "b" * 11 + "…" + "b" * 8 and shown[names[1]] == names[1]
    assert len({name[:11] + name[-8:] for name in names[1:3]}) == 1  # control: cut alike, both would be one


def test_a_system_without_a_champion_says_why(run, world, settings):
    assert run("history", "sentiment")[1] == "champion: none\n"
    world.dataset("v1")
    assert "v1 has arrived, and no model of it was judged yet" in run("production-info", "sentiment")[1]
    world.registered("v1", BAD, content="a")
    assert "one model was refused: F1 0.500 < 0.800" in run("history", "sentiment")[1]
    world.registered("v2", BAD, content="b")
    world.registered("v2", {**BAD, "f1": 0.6}, content="c")  # the same model, trained again: its newest verdict counts
    code, out, _ = run("production-info", "sentiment")
    assert code == 0 and "two models were refused: F1 0.600 < 0.800; F1 0.500 < 0.800. `mlops history sentiment`" in out
    world.registered("v3", GOOD, content="d")
    assert "one model was registered and none was promoted. Promote one: `mlops produce sentiment" in run("production-info", "sentiment")[1]


def test_what_land_tells_to_watch_can_be_watched(run):
    code, out, _ = run("history", "disposal_policy")
    assert code == 0 and out.startswith("champion: none")


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
    assert code == 1 and "are gone" in last and json.loads(out)["verified"] is False


def test_land_then_the_files_lie_ready(run, store, tmp_path):
    folder = tmp_path / "reviews"
    folder.mkdir()
    (folder / "ratings_train.txt").write_text("id\tdocument\tlabel\n1\t좋다\t1\n", encoding="utf-8")
    code, out, _ = run("land", "sentiment", folder, "--dataset-version", "v1", "--json")
    assert code == 0 and json.loads(out)["objects"] == 1
    assert {Path(o.key).name for o in store.list("landing/sentiment/v1")} >= {"ratings_train.txt", "_READY"}


def test_the_demo_lands_a_sample_of_every_system(run, engine, store):
    code, out, _ = run("demo", "--json")
    landed = json.loads(out)["landed"]
    assert code == 0 and set(landed) == {*SYSTEMS, *DATA_SYSTEMS} and all(len(versions) == 2 for versions in landed.values())
    for system, versions in landed.items():
        for version in versions:
            names = {Path(o.key).name for o in store.list(f"landing/{system}/{version}")}
            assert "_READY" in names and len(names) > 1
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO dataset_version (system, version, state) VALUES ('disposal_policy', 'real', 'open')"))
    code, out, _ = run("demo", "--json")
    assert json.loads(out)["left_alone"] == ["disposal_policy"] and "disposal_policy" not in json.loads(out)["landed"]


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


def test_a_params_yaml_that_a_training_wrote_is_read(run, tmp_path):
    (tmp_path / "params.yaml").write_text("variant: cnn\nparameters: {model_name: cnn, epochs: 2}\n", encoding="utf-8")
    code, _, last = run("train", "tires", "--dataset-version", "v9", "--params", tmp_path / "params.yaml")
    assert code == 2 and "mlops land tires PATH --dataset-version v9" in last


@pytest.mark.parametrize(("options", "min_steps"), [(("--epochs", "1"), 0), ((), 400)])
def test_epochs_beside_a_params_yaml_mean_so_many_epochs(run, tmp_path, monkeypatch, options, min_steps):
    from mlops_assets.lifecycle import pipeline

    resolved, real = [], pipeline.parameters_of
    monkeypatch.setattr(pipeline, "parameters_of", lambda *given: resolved.append(real(*given)) or resolved[-1])
    (tmp_path / "params.yaml").write_text("parameters: {epochs: 5, min_steps: 400}\n", encoding="utf-8")
    run("train", "sentiment", "--dataset-version", "v9", "--params", tmp_path / "params.yaml", *options)
    assert [parameters["min_steps"] for parameters in resolved] == [min_steps]


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


@pytest.fixture
def toy(dagster_settings, engine, store, monkeypatch):
    """`toy(variants, qualities)`: the commands find the toy system, with a dataset version v1."""
    world = World(engine, dagster_settings, store)

    def make(variants: dict[str, Any] | None = None, qualities: dict[str, Any] | None = None, **changes: Any) -> World:
        system = dataclasses.replace(toy_system("toy", qualities, variants), **changes)
        definitions = toy_definitions(Platform(dagster_settings, engine, store, Tracking(None)), config_of(), qualities, variants)
        monkeypatch.setattr(cli, "_system", lambda name, choices=(): (system, config_of(), dagster_settings))
        monkeypatch.setattr(jobs, "build_defs", lambda settings: definitions)
        world.dataset("v1")
        return world

    return make


@pytest.mark.parametrize(
    ("variants", "code", "last_line"),
    [
        ({"weak": 0.5, "strong": 0.9}, 0, ""),
        ({"torn": "broken", "weak": 0.5}, 2, "could not convert string to float: 'broken'"),
        ({"torn": "broken", "strong": 0.9, "weak": 0.5}, 2, "could not convert string to float: 'broken'"),
        ({"weak": 0.5, "weaker": 0.4}, 1, "every model was refused"),
    ],
)
def test_a_scenario_tells_what_broke_from_what_was_refused(run, toy, variants, code, last_line):
    toy(variants)
    ended, out, last = run("scenario", "toy", "--json")
    assert ended == code and last_line in last
    if code != 2:
        assert json.loads(out)["outcomes"] == {name: "promoted" if f1 == 0.9 else "refused" for name, f1 in variants.items()}


REFUSALS = {
    "train": ("train", "toy", "--dataset-version", "v1", "--model-type", "weak"),
    "scenario": ("scenario", "toy"),
    "stage": ("stage", "toy"),
    "produce": ("produce", "toy", "--reason", "r"),
    "rollback": ("rollback", "toy", "--reason", "r"),
}


@pytest.mark.parametrize("command", REFUSALS)
def test_a_refusal_is_told_in_words_and_nothing_looks_broken(toy, capfd, command):
    """Every command that ends with 1: today's 70 lines of a stack trace are none."""
    toy({"weak": 0.5, "weaker": 0.4})
    with pytest.raises(SystemExit) as ended:
        main(list(REFUSALS[command]))
    shown = capfd.readouterr().err
    assert ended.value.code == 1
    for word in ("Stack Trace", "Traceback", 'File "', "ERROR", "Error", "STEP_FAILURE"):
        assert word not in shown
    if command in ("train", "scenario"):
        assert "register_threshold: F1 0.500 < 0.800" in shown and "F1 0.500 < 0.800" in shown.splitlines()[-1]
    else:
        assert "toy has no" in shown.splitlines()[-1]


def test_what_broke_shows_where_and_nothing_of_dagsters_own(toy, capfd):
    toy({"torn": "broken", "strong": 0.9})
    with pytest.raises(SystemExit) as ended:
        main(["scenario", "toy", "--model-type", "torn"])
    shown = capfd.readouterr().err
    assert ended.value.code == 2 and shown.count("Stack Trace") == 1 and "ValueError: could not convert string to float" in shown
    assert "toy/cleaned: done in" in shown


def test_a_scenario_says_of_each_model_why(run, toy):
    toy({"weak": 0.5, "strong": 0.9, "weaker": 0.4})
    code, out, _ = run("scenario", "toy", "--json")
    found = json.loads(out)
    assert code == 0 and found["outcomes"] == {"weak": "refused", "strong": "promoted", "weaker": "refused"}
    assert found["why"]["weak"] == "F1 0.500 < 0.800" and found["why"]["weaker"] == "F1 0.400 < 0.800"
    code, out, _ = run("scenario", "toy")
    assert "weak on v1: refused: F1 0.500 < 0.800" in out


def test_a_scenario_wants_a_verdict_of_every_model(run, toy, monkeypatch):
    world = toy({"weak": 0.5, "strong": 0.9})
    monkeypatch.setattr(jobs, "run_job", lambda *_, **__: jobs.Outcome("r", True, False, None))
    code, _, last = run("scenario", "toy")
    assert code == 2 and "no verdict on v1 of weak, strong" in last
    world.registered("v1", variant="weak")
    code, _, last = run("scenario", "toy")
    assert code == 2 and "no verdict on v1 of strong:" in last


def test_a_model_without_a_champion_to_go_on_from_is_skipped(run, toy, monkeypatch):
    world = toy({"anew": 0.9, "going_on": 0.9}, from_champion=("going_on",))
    monkeypatch.setattr(jobs, "run_job", lambda *_, **__: jobs.Outcome("r", True, False, None))
    code, out, last = run("scenario", "toy", "--model-type", "going_on", "--json")
    assert code == 1 and json.loads(out)["outcomes"] == {"going_on": "skipped"} and "nothing to train" in last
    world.registered("v1", variant="anew")
    code, out, _ = run("scenario", "toy", "--json")
    assert code == 0 and json.loads(out)["outcomes"] == {"anew": "promoted", "going_on": "skipped"}


def test_a_refused_dataset_version_is_no_refused_model(run, toy, monkeypatch):
    toy({"weak": 0.5, "strong": 0.9})
    monkeypatch.setattr(jobs, "run_job", lambda *_, **__: jobs.Outcome("r", False, True, "v1 is refused: no train row"))
    monkeypatch.setattr("mlops_assets.lifecycle.jobs.breakdowns_of", lambda run_id: [])
    code, out, last = run("scenario", "toy", "--json")
    assert code == 1 and "no train row" in last and json.loads(out)["refused"] is True


def test_a_refused_training_prints_one_document(run, toy):
    toy(qualities={"v1": 0.5})
    code, out, last = run("train", "toy", "--dataset-version", "v1", "--json")
    assert code == 1 and "F1 0.500 < 0.800" in last
    document = json.loads(out)
    assert document["refused"] is True and document["report"]["metrics"]["f1"] == 0.5


def test_a_doctor_with_a_failing_line_prints_one_document(run, settings, monkeypatch):
    from mlops_assets import doctor

    monkeypatch.setattr(doctor, "_CHECKS", [("disk", lambda settings: iter([doctor.Line("disk", "fail", "full", "mend")]))])
    code, out, last = run("doctor", "--json")
    assert code == 1 and json.loads(out)["ok"] is False and "marked fail" in last


def test_a_database_that_is_away_is_exit_2_with_one_line(run, monkeypatch, capsys):
    monkeypatch.setenv("MLOPS_DATABASE_URL", f"postgresql://postgres@127.0.0.1:{free_port()}/mlops")
    code, out, last = run("history", "sentiment", "--json")
    document = json.loads(out)
    assert code == 2 and document["refused"] is False and document["message"] == last
    assert "OperationalError" in last and "`mlops doctor`" in last and "\n" not in last


def test_no_parameter_of_a_failed_statement_is_shown(capsys, monkeypatch):
    from sqlalchemy.exc import IntegrityError

    def fail(settings):
        raise IntegrityError("INSERT INTO t VALUES (:v)", {"v": "personal text"}, Exception("duplicate key\nDETAIL: personal text"))

    monkeypatch.setattr(cli, "_platform", fail)
    with pytest.raises(SystemExit) as ended:
        main(["history", "sentiment", "--json"])
    captured = capsys.readouterr()
    assert ended.value.code == 2 and "duplicate key" in captured.err and "personal text" not in captured.err + captured.out


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied", "key"), ConnectionRefusedError(111, "Connection refused")])
def test_what_the_machine_refuses_is_one_line_of_exit_2(run, monkeypatch, error):
    def fail(settings):
        raise error

    monkeypatch.setattr(cli, "_platform", fail)
    code, out, last = run("history", "sentiment", "--json")
    assert code == 2 and last == str(error) == json.loads(out)["message"]


def test_a_defect_of_ours_is_a_traceback_and_exit_2_never_a_refusal(capsys, monkeypatch):
    def fail(settings):
        raise KeyError("forgotten")

    monkeypatch.setattr(cli, "_platform", fail)
    with pytest.raises(SystemExit) as ended:
        main(["history", "sentiment", "--json"])
    captured = capsys.readouterr()
    assert ended.value.code == 2 and "Traceback" in captured.err and captured.err.splitlines()[-1] == "KeyError: 'forgotten'"
    assert json.loads(captured.out) == {"ok": False, "refused": False, "message": "KeyError: 'forgotten'"}


def test_a_taken_port_is_named_with_its_setting(run, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("MLOPS_SERVE_PORT", str(taken.getsockname()[1]))
        code, _, last = run("serve")
    assert code == 2 and "cannot be listened on" in last and "set MLOPS_SERVE_PORT to a free port" in last


@pytest.fixture
def answering(monkeypatch) -> Iterator[dict[str, Any]]:
    """A server that answers every prediction with `body`; the environment names a proxy that does not answer."""
    answer: dict[str, Any] = {"status": 200, "body": b""}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(answer["status"])
            self.send_header("Content-Length", str(len(answer["body"])))
            self.end_headers()
            self.wfile.write(answer["body"])

        do_GET = do_POST

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLOPS_SERVE_URL", f"http://127.0.0.1:{server.server_port}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    yield answer
    server.shutdown()
    server.server_close()


def test_the_server_is_asked_past_the_environments_proxy(run, answering):
    body = {"request_id": "r", "predictions": [{"label": "긍정", "confidence": 0.9, "text": "좋다"}]}
    answering["body"] = json.dumps(body).encode()
    code, out, _ = run("predict", "sentiment", "좋다", "--json")
    assert code == 0 and json.loads(out) == body


@pytest.mark.parametrize(("status", "body"), [(200, b"<html>portal</html>"), (502, b"\xff\xfe")])
def test_an_answer_that_is_no_json_is_one_line(run, answering, tmp_path, status, body):
    answering.update(status=status, body=body)
    (tmp_path / "photo.jpg").write_bytes(b"")
    for given in ("좋다", tmp_path / "photo.jpg"):  # for a file the server is asked first what it serves
        code, _, last = run("predict", "sentiment", given)
        assert code == 2 and "did not answer in JSON" in last and "MLOPS_SERVE_URL" in last
