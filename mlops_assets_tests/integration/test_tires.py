"""tires from landed photos to a served champion: the sensor, cleaning, two of the seven models, the gate, the server, the command line."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import dagster as dg
import pytest
import yaml
from sqlalchemy import text

from mlops_assets.cli import main
from mlops_assets.definitions import build_defs
from mlops_assets.ingest.objects import land
from mlops_assets.sample_data import write_tires
from mlops_assets.settings import REPOSITORY
from mlops_assets.store import ObjectStore
from mlops_assets_tests.conftest import wait_for


@pytest.fixture
def small(dagster_settings, tmp_path, monkeypatch):
    """The platform with photos of 48 pixels, and models that train in seconds."""
    configs = tmp_path / "configs"
    shutil.copytree(REPOSITORY / "configs", configs)
    values = yaml.safe_load((configs / "tires.yaml").read_text(encoding="utf-8"))
    values["project"] |= {"scenario": ["tinyvgg", "cnn"], "model": "cnn"}
    values["register_threshold"] = {"accuracy": 0.7, "f1": 0.6, "early_stopping_reached": 1}
    values["datasets"]["magnetic_tile"]["image_size"] = 48
    for name, rate in (("cnn", 0.002), ("tinyvgg", 1e-9)):  # the second learns nothing: it must be refused
        training = values["models"][name]["training"]
        values["models"][name] = values["models"][name] | {"training": training | {"epochs": 12, "batch_size": 16, "learning_rate": rate}}
    (configs / "tires.yaml").write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    monkeypatch.setenv("MLOPS_CONFIGS", str(configs))
    return dagster_settings.model_copy(update={"configs": configs})


def command(capsys, *arguments: str) -> tuple[int, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0), capsys.readouterr().out


def test_photos_in_one_served_model_out_and_the_other_refused(small, engine, tmp_path: Path, capsys):
    from fastapi.testclient import TestClient

    from mlops_assets.lifecycle.signing import ensure_key
    from mlops_assets.serving.app import create_app

    ensure_key(small)
    definitions = build_defs(small)
    write_tires(tmp_path / "photos")
    land(small, ObjectStore.of(small), "tires", tmp_path / "photos", "split_1")
    with dg.DagsterInstance.get() as instance:
        sensor = definitions.resolve_sensor_def("tires_landing")
        with dg.build_sensor_context(instance=instance, resources={n: definitions.resources[n] for n in ("store", "postgres")}) as context:
            done = sensor(context)
        assert [request.partition_key for request in done.run_requests] == ["split_1"]
        instance.add_dynamic_partitions("tires_dataset_version", ["split_1"])
        result = definitions.resolve_job_def("tires_pipeline").execute_in_process(
            instance=instance, partition_key="split_1", raise_on_error=False, tags={"dagster/run_key": done.run_requests[0].run_key}
        )
    assert not result.success, "a refusal is red"
    verdicts = {e.asset_key.path[1]: e.passed for e in result.get_asset_check_evaluations() if e.check_name == "register_threshold"}
    assert verdicts == {"tinyvgg": False, "cnn": True}
    cleaned = result.asset_materializations_for_node("tires__cleaned")[0].metadata
    assert cleaned["rows_in"].value == cleaned["rows_accepted"].value + cleaned["rows_quarantined"].value
    with engine.connect() as connection:
        reasons = set(connection.execute(text("SELECT DISTINCT reason_code FROM quarantined_row WHERE system = 'tires'")).scalars())
    assert {"truncated", "empty_file", "not_an_image"} <= reasons

    photo = min((tmp_path / "photos" / "defective").glob("*.jpg"))
    with TestClient(create_app(small, "champion")) as client:
        wait_for(lambda: client.get("/readyz").is_success, "the champion is served")
        reply = client.post("/predict/tires", files=[("files", (photo.name, photo.read_bytes()))])
        assert reply.status_code == 200, reply.text
        assert set(reply.json()["predictions"][0]["probs"]) == {"good", "defective"}
        bad = client.post("/predict/tires", files=[("files", ("x.jpg", b"no picture"))])
        assert (bad.status_code, bad.json()["code"]) == (415, "not_an_image")

    code, out = command(capsys, "scenario", "tires", "--folder-path", "tires/split_1", "--json")
    assert code == 0 and json.loads(out)["outcomes"] == {"tinyvgg": "refused", "cnn": "promoted"}
    code, _ = command(capsys, "scenario", "tires", "--folder-path", "../etc/split_1")
    assert code == 2
    arguments = ("--model-type", "cnn", "--optimizer-type", "adam", "--epochs", "2", "--learning-rate", "0.01", "--batch-size", "32")
    code, out = command(capsys, "train", "tires", "--dataset-version", "split_1", *arguments, "--json")
    assert code in (0, 1) and "accuracy" in json.loads(out.splitlines()[0])["report"]["metrics"]
    code, _ = command(capsys, "train", "tires", "--dataset-version", "split_1", "--model-type", "resnet19")
    assert code == 2
    arguments = ("--trials", "2", "--model-type", "cnn", "--model-type", "tinyvgg", "--learning-rate", "0.001:0.01", "--epochs", "2")
    code, out = command(capsys, "sweep", "tires", "--dataset-version", "split_1", *arguments, "--json")
    swept = json.loads(out)
    assert code == 0 and [row["trial"] for row in swept["trials"]] == [0, 1] and swept["best"]["state"] == "complete"
    code, out = command(capsys, "sweep", "tires", "--dataset-version", "split_1", *arguments)
    assert code == 0 and out.splitlines()[-1] == swept["command"], "the same sweep again has its trials already"
    code, out = command(capsys, *shlex.split(swept["command"])[1:], "--json")
    with engine.connect() as connection:
        trained = connection.execute(text("SELECT metrics FROM attempt ORDER BY id DESC LIMIT 1")).scalar_one()
    assert code in (0, 1) and trained["validation_f1"] == swept["best"]["f1"], "the command trains what the sweep measured"
    code, out = command(capsys, "stage", "tires", "--metric", "F1", "--json")
    assert code == 0 and json.loads(out)["version"] == 1
    with TestClient(create_app(small, "candidate")) as staging:
        wait_for(lambda: staging.get("/readyz").is_success, "the staged model is served")
        reply = staging.post("/predict/tires", files=[("files", (photo.name, photo.read_bytes()))])
        assert (reply.status_code, reply.headers["X-Model-Version"]) == (200, "1")
    code, out = command(capsys, "production-info", "tires", "--json")
    assert code == 0 and json.loads(out)[0]["version"] == 1
