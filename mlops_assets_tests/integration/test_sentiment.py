"""sentiment from landed files to a traced answer, through the real sensor, Spark, training, gate, server and Python classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import dagster as dg
import pytest
import yaml
from sqlalchemy import text

from mlops_assets.cli import main
from mlops_assets.definitions import build_defs
from mlops_assets.ingest.objects import land
from mlops_assets.sample_data import write_reviews
from mlops_assets.settings import REPOSITORY
from mlops_assets.store import ObjectStore
from mlops_assets_tests.conftest import wait_for


@pytest.fixture
def small(dagster_settings, tmp_path, monkeypatch):
    """The platform with a model that trains in seconds."""
    configs = tmp_path / "configs"
    shutil.copytree(REPOSITORY / "configs", configs)
    values = yaml.safe_load((REPOSITORY / "configs" / "sentiment.yaml").read_text(encoding="utf-8"))
    model = values["models"]["kcbert"]
    model |= {"layers": 1, "hidden_size": 64, "attention_heads": 2, "intermediate_size": 128, "vocabulary_size": 2000, "guess_weight": 0.0}
    model["training"] |= {"epochs": 4, "batch_size": 32, "learning_rate": 0.003, "evaluations_per_epoch": 1, "checkpoints_per_epoch": 1}
    (configs / "sentiment.yaml").write_text(yaml.safe_dump(values, allow_unicode=True))
    monkeypatch.setenv("MLOPS_CONFIGS", str(configs))
    return dagster_settings.model_copy(update={"configs": configs})


def landed(settings, tmp_path: Path, version: str, *, bad: bool = False) -> None:
    folder = tmp_path / version
    folder.mkdir()
    write_reviews(folder, train=1200, test=300, bad=bad)
    land(settings, ObjectStore.of(settings), "sentiment", folder, version)


def tick(definitions: dg.Definitions, instance: dg.DagsterInstance, system: str = "sentiment") -> list[dg.RunRequest]:
    """One tick of the landing sensor, its partitions added as the daemon would."""
    sensor = definitions.resolve_sensor_def(f"{system}_landing")
    resources = {name: definitions.resources[name] for name in ("store", "postgres")}
    with dg.build_sensor_context(instance=instance, resources=resources) as context:
        done = sensor(context)
    for request in done.dynamic_partitions_requests or []:
        instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
    return list(done.run_requests or [])


def test_reviews_in_a_gated_registered_served_and_traceable_model_out(small, engine, tmp_path, capsys):
    from fastapi.testclient import TestClient

    from mlops_assets.lifecycle.signing import ensure_key
    from mlops_assets.serving.app import create_app
    from mlops_assets.systems.sentiment import ModelTrainer, SentimentPredictor

    ensure_key(small)
    definitions = build_defs(small)
    landed(small, tmp_path, "good")
    landed(small, tmp_path, "shuffled", bad=True)
    with dg.DagsterInstance.get() as instance:
        requests = tick(definitions, instance)
        assert sorted(request.partition_key for request in requests) == ["good", "shuffled"]
        results = {}
        for request in sorted(requests, key=lambda request: request.partition_key):
            results[request.partition_key] = definitions.resolve_job_def("sentiment_pipeline").execute_in_process(
                instance=instance, partition_key=request.partition_key, raise_on_error=False, tags={"dagster/run_key": request.run_key}
            )
        assert tick(definitions, instance) == [], "the same versions are asked for once"
    good, bad = results["good"], results["shuffled"]
    assert good.success, [event.step_failure_data.error_display_string for event in good.get_step_failure_events()]
    assert not bad.success
    refusal = next(e for e in bad.get_asset_check_evaluations() if e.check_name == "register_threshold")
    assert not refusal.passed and "<" in refusal.metadata["why"].value
    metadata = good.asset_materializations_for_node("sentiment__evaluation_report")[0].metadata
    assert metadata["metric/accuracy"].value > 0.8 and any("data:image/png" in str(entry.value) for entry in metadata.values())
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT count(*) FROM review WHERE version = 'good'")).scalar_one()
        turned_away = connection.execute(text("SELECT count(*) FROM quarantined_row WHERE version = 'good'")).scalar_one()
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) - 1 for path in (tmp_path / "good").iterdir())
    assert rows + turned_away == lines

    # Served, and every answer can be traced.
    with TestClient(create_app(small, "champion")) as client:
        wait_for(lambda: client.get("/readyz").is_success, "the champion is served")
        reply = client.post("/predict/sentiment", json={"inputs": ["연기가 훌륭했다", "결말이 지루했다"]})
        assert reply.status_code == 200, reply.text
        answer = reply.json()
        assert answer["version"] == 1 and {p["label"] for p in answer["predictions"]} <= {"긍정", "부정"}
    with pytest.raises(SystemExit) as ended:
        main(["trace", answer["request_id"], "--json"])
    chain = json.loads(capsys.readouterr().out)
    assert ended.value.code == 0 and chain["verified"] and len(chain["dataset"]["objects"]) == 2

    # The seed's two classes.
    one = SentimentPredictor(settings=small).predict("다시 보고 싶은 영화")
    assert set(one) == {"text", "label", "confidence", "probs"} and set(one["probs"]) == {"긍정", "부정"}
    many = SentimentPredictor(settings=small).predict(["다시 보고 싶은 영화", "별로에요"], return_probs=False)
    assert [set(answer) for answer in many] == [{"text", "label", "confidence"}] * 2
    served = answer["predictions"][0]
    assert SentimentPredictor(settings=small).predict(served["text"])["confidence"] == pytest.approx(served["confidence"], abs=1e-4)

    asked: list[str] = []

    def ask(question: str) -> str:
        asked.append(question)
        return "y" if "(y/n)" in question else "1"

    trainer = ModelTrainer(sampling_rate=0.9, interactive=True, settings=small, ask=ask)
    result = trainer.train_model("good")
    assert {"run_id", "metrics", "run_name", "model", "tokenizer", "data_module"} == set(result)
    assert result["model"].num_labels == 2 and len(result["data_module"].frame("holdout")) > 200
    ids = result["tokenizer"](served["text"], return_tensors="pt")
    probability = result["model"](**ids).logits.softmax(-1).max().item()
    assert probability > 0.5 and result["tokenizer"].unk_token_id not in ids["input_ids"], "the tokenizer is that of the model"
    output = capsys.readouterr().out
    assert "모델 등록에" in output and "등록하시겠습니까" in asked[0]
