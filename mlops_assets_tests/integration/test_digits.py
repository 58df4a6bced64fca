"""digits from landed pictures to a served champion, and the next one that goes on from it when users have drawn: sensor, cleaning, gate,
server. The graph is the one that the seed lists: picture seen, preprocessed, retrained, compared, stored."""

from __future__ import annotations

import base64
import io
import shutil
import time
from pathlib import Path

import dagster as dg
import pytest
import yaml
from PIL import Image
from sqlalchemy import Engine, text

from mlops_assets import database, otp
from mlops_assets.definitions import build_defs
from mlops_assets.ingest.objects import land
from mlops_assets.sample_data import write_digits
from mlops_assets.settings import REPOSITORY, Settings
from mlops_assets.store import ObjectStore
from mlops_assets.systems.digits import simulate
from mlops_assets_tests.conftest import wait_for
from mlops_assets_tests.drawings import SECRET, callback, left_behind, places, session_of, token

WRITER = simulate.writer(77, 0.0)


@pytest.fixture
def small(dagster_settings, tmp_path, monkeypatch, mlflow_server):
    """The platform with a network that trains in seconds, and a gate for what it can reach."""
    configs = tmp_path / "configs"
    shutil.copytree(REPOSITORY / "configs", configs)
    values = yaml.safe_load((configs / "digits.yaml").read_text(encoding="utf-8"))
    values["register_threshold"] = {"code_success": 0.3, "asked": 0.3, "mnist_accuracy": 0.8, "drawn_accuracy": 0.8, "canary_changed": 0.6}
    values["drawings"] |= {"min_new": 40, "min_writers": 3}
    values["promotion"] = {"metric": "code_success", "max_fall": {"drawn_accuracy": 0.2, "recall_7": 0.5}}
    for model in values["models"].values():
        model |= {"width": 12, "augment": 0.3}
        model["training"] |= {"epochs": 5, "min_steps": 0, "batch_size": 32, "learning_rate": 0.008}
    (configs / "digits.yaml").write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    more = {"configs": configs, "otp_secret": SECRET, "mlflow_tracking_uri": mlflow_server}
    settings = dagster_settings.model_copy(update=more)
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    return settings


def arrived(definitions: dg.Definitions, instance: dg.DagsterInstance) -> list[str]:
    sensor = definitions.resolve_sensor_def("digits_landing")
    with dg.build_sensor_context(instance=instance, resources={n: definitions.resources[n] for n in ("store", "postgres")}) as context:
        found = [str(request.partition_key) for request in sensor(context).run_requests]
    instance.add_dynamic_partitions("digits_dataset_version", found)
    return found


def run(definitions: dg.Definitions, instance: dg.DagsterInstance, version: str) -> dg.ExecuteInProcessResult:
    job = definitions.resolve_job_def("digits_pipeline")
    return job.execute_in_process(instance=instance, partition_key=version, raise_on_error=False)


def png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def written(code: str) -> bytes:
    """A whole code on one sheet."""
    sheet = Image.new("L", (160 * len(code), 160), 255)
    for place, digit in enumerate(code):
        sheet.paste(simulate.picture(simulate.drawing(WRITER, int(digit)), 5), (160 * place, 0))
    return png(sheet)


def cuts(definitions: dg.Definitions, instance: dg.DagsterInstance) -> list[dg.RunRequest]:
    """What the sensor that watches for new drawings asks for."""
    with dg.build_sensor_context(instance=instance) as context:
        return list(definitions.resolve_sensor_def("digits_cuts")(context).run_requests or [])


def draw_codes(settings: Settings) -> list[tuple[str, str]]:
    """Three users each draw two codes of eight digits. (code, session id) of all."""
    from fastapi.testclient import TestClient

    from mlops_assets.serving.app import create_app

    found = []
    with TestClient(create_app(settings, "champion")) as client:
        wait_for(lambda: client.get("/readyz").json()["serving"].get("digits"), "the champion is served")
        for user in (800, 801, 802):
            by = simulate.writer(user, 0.3)
            for turn, code in enumerate(("30725146", "89725306")):
                given = token(f"user-{user}", len(code))
                entries = []
                for place, digit in enumerate(code):
                    drawing = png(simulate.picture(simulate.drawing(by, int(digit), turn), by.width))
                    reply = client.post("/predict/digits", files=[("files", ("digit.png", drawing))]).json()
                    entry = {"first": reply["predictions"][0]["label"], "asked_again": place % 2, "version": str(reply["version"])}
                    entries.append({"drawn": base64.b64encode(drawing).decode(), **entry})
                body = {"session": given, "entries": entries, "save": True, "digits": code}
                assert client.post("/otp/confirmation", json=body).json() == {"held": len(code)}
                assert client.post("/otp/verified", json=callback(given, code)).json() == {"stored": len(code), "dropped": 0}
                found.append((code, session_of(given)))
    return found


def traces(settings: Settings, engine: Engine, folder: Path) -> dict[str, str]:
    """All text of the platform: ours, Dagster's, MLflow's."""
    from mlflow import MlflowClient, artifacts

    client = MlflowClient(settings.mlflow_tracking_uri)
    experiments = [one.experiment_id for one in client.search_experiments()]
    runs = client.search_runs(experiments)
    assert any("from_champion" in str(one.to_dictionary()) for one in runs), "MLflow has what it is searched for"
    for one in runs:
        target = str(folder / "mlflow" / one.info.run_id)
        artifacts.download_artifacts(run_id=one.info.run_id, dst_path=target, tracking_uri=settings.mlflow_tracking_uri)
    of_mlflow = {f"run {one.info.run_id}": str(one.to_dictionary()) for one in runs}
    dagster = database.connect(settings.require("dagster_database_url"))
    found = left_behind([engine, dagster], [folder]) | of_mlflow
    dagster.dispose()
    return found


def test_pictures_in_a_served_model_out_and_the_next_goes_on_from_it(small, engine, tmp_path: Path) -> None:
    from fastapi.testclient import TestClient

    from mlops_assets.lifecycle.signing import ensure_key
    from mlops_assets.serving.app import create_app
    from mlops_assets.systems.digits import DigitsPredictor

    ensure_key(small)
    store, definitions = ObjectStore.of(small), build_defs(small)
    graph = definitions.resolve_asset_graph()
    line = [dg.AssetKey(["digits", *layer.split("/")]) for layer in ("dataset", "cleaned", "anew/trained_model", "anew/evaluation_report")]
    for before, after in zip(line, line[1:], strict=False):
        assert before in graph.get(after).parent_keys
    for version, bad in (("good", False), ("shuffled", True)):
        write_digits(tmp_path / version, train=600, test=150, drawn=120, bad=bad)
        land(small, store, "digits", tmp_path / version, version)
    with dg.DagsterInstance.get() as instance:
        assert sorted(arrived(definitions, instance)) == ["good", "shuffled"]
        good, bad_one = run(definitions, instance, "good"), run(definitions, instance, "shuffled")
    assert good.success, [event.step_failure_data.error_display_string for event in good.get_step_failure_events()]
    assert not bad_one.success, "a refusal is red"
    refusal = next(e for e in bad_one.get_asset_check_evaluations() if e.check_name == "register_threshold")
    assert not refusal.passed
    cleaned = good.asset_materializations_for_node("digits__cleaned")[0].metadata
    assert cleaned["rows_in"].value == cleaned["rows_accepted"].value + cleaned["rows_quarantined"].value
    assert "data:image/png" in cleaned["contact_sheet"].value
    report = good.asset_materializations_for_node("digits__anew__evaluation_report")[0].metadata
    assert {"confusion_matrix", "metric/code_success", "metric/asked", "digits", "canary"} <= set(report)

    # What users draw since, on the page's addresses: read by the champion, confirmed, verified by the back-end, cut, landed.
    codes = draw_codes(small)
    with dg.DagsterInstance.get() as instance:
        assert "48 new drawings of 3 users" in str(cuts(definitions, instance)[0].tags["mlops/why"])
        assert definitions.resolve_job_def("digits_cut").execute_in_process(instance=instance).success
        assert cuts(definitions, instance) == [], "one cut at a time"
        (version,) = [one for one in arrived(definitions, instance) if one.startswith("drawn-")]
        second = run(definitions, instance, version)
    gone_on = second.asset_materializations_for_node("digits__from_champion__trained_model")
    assert len(gone_on) == 1, [event.step_failure_data.error_display_string for event in second.get_step_failure_events()]
    compared = second.asset_materializations_for_node("digits__from_champion__evaluation_report")[0].metadata
    assert compared["champion"].value.startswith("v") and "champion_comparison" in compared
    with engine.connect() as connection:
        parent = connection.execute(text("SELECT parent_bundle_sha256 FROM attempt WHERE variant = 'from_champion'")).scalar_one()
        first = connection.execute(text("SELECT bundle_sha256 FROM receipt WHERE version = 1")).scalar_one()
    assert parent == first
    found = traces(small, engine, tmp_path)
    for code, session in codes:
        assert places(found, code, session) == []
    found["a control"] = codes[0][0]
    assert places(found, *codes[0]) == ["a control"]

    with TestClient(create_app(small, "champion")) as client:
        wait_for(lambda: client.get("/readyz").is_success, "the champion is served")
        digit = png(simulate.picture(simulate.drawing(WRITER, 4), 5))
        reply = client.post("/predict/digits", files=[("files", ("digit.png", digit))])
        assert reply.status_code == 200, reply.text
        (said,) = reply.json()["predictions"]
        assert said["label"] == "4" and 0 < said["confidence"] <= 1 and isinstance(said["sure"], bool) and len(said["probs"]) == 10
        whole = client.post("/predict/digits", params={"length": 6}, files=[("files", ("code.png", written("470470")))])
        assert whole.status_code == 200, whole.text
        assert len(whole.json()["predictions"]) == 6 and [one["label"] for one in whole.json()["predictions"]][0] == "4"
        blank = png(Image.new("L", (100, 100), 255))
        refused = [
            ({"length": 4}, [written("470470")], 422, "cannot_segment"),
            ({"length": 6}, [blank], 422, "nothing_drawn"),
            ({"length": 6}, [digit, digit], 422, "one_picture"),
            ({"length": 99}, [digit], 422, "bad_length"),
            ({"length": "six"}, [digit], 422, "bad_length"),
            ({}, [digit, blank], 422, "nothing_drawn"),
            ({}, [b"no picture"], 415, "not_an_image"),
        ]
        for parameters, pictures, status, code in refused:
            files = [("files", (f"{n}.png", picture)) for n, picture in enumerate(pictures)]
            answer = client.post("/predict/digits", params=parameters, files=files)
            assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
            assert answer.json()["fix"] and any("가" <= letter <= "힣" for letter in answer.json()["message_ko"])
        at = int(time.time())
        signed = {"X-Otp-Time": str(at), "X-Otp-Mac": otp.forget_mac(SECRET, "user-801", at)}
        forgotten = client.delete("/otp/users/user-801", headers=signed).json()
        assert forgotten["drawings"] == 16 and forgotten["dataset_versions"] == [version] and forgotten["models"], forgotten
    answers = DigitsPredictor(settings=small).predict([digit, digit])
    assert [one["label"] for one in answers] == ["4", "4"]
