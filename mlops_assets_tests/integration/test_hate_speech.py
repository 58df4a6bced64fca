"""hate_speech from landed UnSmile files to an answer of the baseline; then a network in production, and a version that extends its data."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
import yaml
from sqlalchemy import text

from mlops_assets.definitions import build_defs
from mlops_assets.ingest.objects import land
from mlops_assets.lifecycle import clients, outbox, pipeline, promotion
from mlops_assets.lifecycle.registrar import Registrar
from mlops_assets.sample_data import write_comments
from mlops_assets.settings import REPOSITORY, load_config
from mlops_assets.store import ObjectStore
from mlops_assets.systems.hate_speech.config import HateSpeechConfig
from mlops_assets.systems.hate_speech.training import SYSTEM
from mlops_assets_tests.conftest import wait_for
from mlops_assets_tests.integration.test_sentiment import tick


@pytest.fixture
def small(dagster_settings, tmp_path, monkeypatch):
    """The platform with models that train in seconds."""
    configs = tmp_path / "configs"
    shutil.copytree(REPOSITORY / "configs", configs)
    values = yaml.safe_load((REPOSITORY / "configs" / "hate_speech.yaml").read_text(encoding="utf-8"))
    for name, model in values["models"].items():
        model |= {"layers": 1, "hidden_size": 64, "attention_heads": 2, "intermediate_size": 128, "vocabulary_size": 1000}
        model |= {"guess_weight": 0.0, "word_dropout": 0.0, "initializer_range": 0.12}
        epochs = 8 if name == "anew" else 1
        model["training"] |= {"epochs": epochs, "min_steps": 0, "learning_rate": 0.003 if name == "anew" else 0.001}
    values["promotion"]["max_fall"] = {"recall_*": 0.6, "ece": 0.1}  # of so small a model, on 20 comments a label
    (configs / "hate_speech.yaml").write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    monkeypatch.setenv("MLOPS_CONFIGS", str(configs))
    return dagster_settings.model_copy(update={"configs": configs, "api_token": "secret"})


def run(definitions: dg.Definitions, instance: dg.DagsterInstance, version: str) -> dg.ExecuteInProcessResult:
    job = definitions.resolve_job_def("hate_speech_pipeline")
    return job.execute_in_process(instance=instance, partition_key=version, raise_on_error=False)


def test_comments_in_a_model_per_label_out_and_the_next_goes_on_from_it(small, engine, tmp_path: Path) -> None:
    import torch
    from fastapi.testclient import TestClient

    from mlops_assets.lifecycle.signing import ensure_key
    from mlops_assets.serving.app import create_app
    from mlops_assets.systems.hate_speech import HateSpeechPredictor

    ensure_key(small)
    store, definitions = ObjectStore.of(small), build_defs(small)
    for version, bad in (("good", False), ("shuffled", True)):
        write_comments(tmp_path / version, train=1500, valid=300, bad=bad)
        land(small, store, "hate_speech", tmp_path / version, version)
    with dg.DagsterInstance.get() as instance:
        requests = tick(definitions, instance, "hate_speech")
        assert sorted(request.partition_key for request in requests) == ["good", "shuffled"]
        good, bad_one = run(definitions, instance, "good"), run(definitions, instance, "shuffled")
    assert good.success, [event.step_failure_data.error_display_string for event in good.get_step_failure_events()]
    assert not bad_one.success
    refusal = next(e for e in bad_one.get_asset_check_evaluations() if e.check_name == "register_threshold")
    assert not refusal.passed and "<" in str(refusal.metadata["why"].value)
    metadata = good.asset_materializations_for_node("hate_speech__anew__evaluation_report")[0].metadata
    assert metadata["metric/lrap"].value > 0.8 and {"labels", "false_flags", "worst_errors"} <= set(metadata)
    # There was no champion of a network to go on from: nothing failed, nothing was made, and the page says why.
    assert good.asset_materializations_for_node("hate_speech__from_champion__trained_model") == []
    observed = good.asset_observations_for_node("hate_speech__from_champion__trained_model")
    assert "no champion yet" in str(observed[0].metadata["skipped"].value)
    assert good.asset_materializations_for_node("hate_speech__from_champion__registered_model") == []

    # UnSmile stands among the comments with its labels.
    with engine.connect() as connection:
        held = connection.execute(text("SELECT count(*) FROM comment WHERE source = 'unsmile/valid'")).scalar_one()
        labelled = connection.execute(text("SELECT count(*) FROM comment_label WHERE origin = 'dataset' AND source = 'unsmile/valid'"))
        assert held == 300, "a source's line is one comment, whichever version said it last"
        assert labelled.scalar_one() > 300, "what was said of it before stays"

    # Served, under its own rule.
    with TestClient(create_app(small, "champion")) as client:
        wait_for(lambda: client.get("/readyz").is_success, "the champion is served")
        texts = ["어제 노인들 하는 짓이 역겹다 ㅋㅋ3번째", "근데 새 드라마를 봤다 ㅎㅎ1번째"]
        reply = client.post("/predict/hate_speech", json={"inputs": texts})
        assert reply.status_code == 200, reply.text
        said = reply.json()["predictions"]
        assert said[0]["labels"] == ["연령"] and said[1]["labels"] == ["clean"] and len(said[0]["probs"]) == 10
        headers = {"Authorization": "Bearer secret"}
        wrong = client.post(f"/feedback/{reply.json()['request_id']}", json={"labels": [["연령", "clean"], None]}, headers=headers)
        assert wrong.status_code == 400 and wrong.json()["code"] == "wrong_labels", wrong.text
        truth = {"labels": [["악플/욕설", "연령"], ["clean"]]}
        given = client.post(f"/feedback/{reply.json()['request_id']}", json=truth, headers=headers)
        assert given.status_code == 201 and (given.json()["right"], given.json()["wrong"]) == (1, 1)
    assert HateSpeechPredictor(settings=small).predict(texts[0])["labels"] == ["연령"]

    # The baseline is in production: a linear model has no state dict, and no version that goes on from it.
    with engine.connect() as connection:
        sql = text("SELECT variant, version FROM receipt WHERE system = 'hate_speech' AND dataset_version = 'good'")
        versions = {row.variant: row.version for row in connection.execute(sql)}
        champion, _ = promotion.latest_verified(connection, "hate_speech", "champion", small.public_keys_path)
    assert champion is not None and champion.version == versions["linear"]
    with pytest.raises(pipeline.NoParent, match="no champion yet but of the baseline"):
        pipeline.parent_of(pipeline.connect(small), SYSTEM, "from_champion", "good")
    assert not store.exists(f"clients/hate_speech/v{versions['linear']}/model.pt")

    # A person puts the network in its place, and the files of the clients that the team has follow.
    network = versions["anew"]
    config = load_config(HateSpeechConfig, "hate_speech", small.configs)
    Registrar(engine, small, config, actor="test").produce(version=network, reason="clients read state dicts", override=True)
    platform = pipeline.connect(small)
    outbox.deliver(engine, {clients.TOPIC: clients.receiver(platform)})
    state = torch.load(_local(store, f"clients/hate_speech/v{network}/model.pt", tmp_path), weights_only=True)
    assert state["classifier.weight"].shape[0] == 10
    assert yaml.safe_load(store.get(clients.latest_key("hate_speech")))["version"] == network
    params = clients.read_parameters(_local(store, f"clients/hate_speech/v{network}/params.yaml", tmp_path), "hate_speech")
    assert params.variant == "anew" and params.parameters["layers"] == 1

    # A version that extends the champion's: both ways of training, judged on the same rows.
    folder = tmp_path / "more"
    folder.mkdir()
    at = datetime.now(UTC).isoformat()
    lines = [
        {
            "source": "app",
            "id": n,
            "content_hash": n,
            "text": f"새로 온 청소년들 하는 짓이 역겹다 {n}",
            "labels": ["연령"],
            "created_at": at,
        }
        for n in range(40)
    ]
    content = "".join(json.dumps({**line, "deleted": False}, ensure_ascii=False) + "\n" for line in lines)
    (folder / "comments-0001.jsonl").write_text(content, encoding="utf-8")
    land(small, store, "hate_speech", folder, "good-2", parent="good")
    with dg.DagsterInstance.get() as instance:
        tick(definitions, instance, "hate_speech")
        second = run(definitions, instance, "good-2")
    assert second.success, [event.step_failure_data.error_display_string for event in second.get_step_failure_events()]
    with engine.connect() as connection:
        rows = connection.execute(
            text("SELECT variant, parent_bundle_sha256 FROM attempt WHERE dataset_version = 'good-2' ORDER BY variant")
        )
        attempts = {row.variant: row.parent_bundle_sha256 for row in rows}
        of_network = text("SELECT bundle_sha256 FROM receipt WHERE system = 'hate_speech' AND version = :v")
        first = connection.execute(of_network, {"v": network}).scalar_one()
        holdouts = connection.execute(text("SELECT DISTINCT holdout_sha256 FROM report WHERE manifest_sha256 <> ''")).all()
    assert attempts == {"anew": None, "linear": None, "from_champion": first}
    assert len(holdouts) == 2, "good and good-2 have one holdout, the shuffled version its own"


def _local(store: ObjectStore, key: str, folder: Path) -> Path:
    target = folder / key.rsplit("/", 1)[-1]
    store.download(key, target)
    return target
