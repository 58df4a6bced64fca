"""digits from landed pictures to a served champion, and the next one that goes on from it when users have drawn: sensor, cleaning, gate,
server. The graph is the one that the seed lists: picture seen, preprocessed, retrained, compared, stored."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import dagster as dg
import pytest
import yaml
from PIL import Image
from sqlalchemy import text

from mlops_assets.definitions import build_defs
from mlops_assets.ingest.objects import land
from mlops_assets.sample_data import write_digits
from mlops_assets.settings import REPOSITORY
from mlops_assets.store import ObjectStore
from mlops_assets.systems.digits import simulate
from mlops_assets_tests.conftest import wait_for

WRITER = simulate.writer(77, 0.0)


@pytest.fixture
def small(dagster_settings, tmp_path, monkeypatch):
    """The platform with a network that trains in seconds, and a gate for what it can reach."""
    configs = tmp_path / "configs"
    shutil.copytree(REPOSITORY / "configs", configs)
    values = yaml.safe_load((configs / "digits.yaml").read_text(encoding="utf-8"))
    values["register_threshold"] = {"code_success": 0.3, "asked": 0.3, "mnist_accuracy": 0.8, "drawn_accuracy": 0.8, "canary_changed": 0.6}
    values["promotion"] = {"metric": "code_success", "max_fall": {"drawn_accuracy": 0.2, "recall_7": 0.5}}
    for model in values["models"].values():
        model |= {"width": 12, "augment": 0.3}
        model["training"] |= {"epochs": 5, "min_steps": 0, "batch_size": 32, "learning_rate": 0.008}
    (configs / "digits.yaml").write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    monkeypatch.setenv("MLOPS_CONFIGS", str(configs))
    return dagster_settings.model_copy(update={"configs": configs})


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

    # What users drew since, by two new writers: a version that extends the first.
    drawn = tmp_path / "drawn"
    (drawn / "img").mkdir(parents=True)
    lines = []
    for number in (800, 801):
        for digit in range(10):
            by = simulate.writer(number, 0.3)
            simulate.picture(simulate.drawing(by, digit), by.width).save(drawn / "img" / f"{number}-{digit}.png")
            lines.append(json.dumps({"file": f"img/{number}-{digit}.png", "label": digit, "writer": f"user-{number}"}))
    (drawn / "labels.jsonl").write_text("\n".join(lines), encoding="utf-8")
    land(small, store, "digits", drawn, "drawn-1", engine=engine, parent="good")
    with dg.DagsterInstance.get() as instance:
        assert "drawn-1" in arrived(definitions, instance)
        second = run(definitions, instance, "drawn-1")
    gone_on = second.asset_materializations_for_node("digits__from_champion__trained_model")
    assert len(gone_on) == 1, [event.step_failure_data.error_display_string for event in second.get_step_failure_events()]
    compared = second.asset_materializations_for_node("digits__from_champion__evaluation_report")[0].metadata
    assert compared["champion"].value.startswith("v") and "champion_comparison" in compared
    with engine.connect() as connection:
        parent = connection.execute(text("SELECT parent_bundle_sha256 FROM attempt WHERE variant = 'from_champion'")).scalar_one()
        first = connection.execute(text("SELECT bundle_sha256 FROM receipt WHERE version = 1")).scalar_one()
    assert parent == first

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
    answers = DigitsPredictor(settings=small).predict([digit, digit])
    assert [one["label"] for one in answers] == ["4", "4"]
