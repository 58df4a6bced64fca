"""No password, token or secret is told to anybody: planted ones are searched for in all that Dagster's GraphQL tells, in logs, error
messages, the list of processes, metrics, pages, MLflow and `mlops doctor`."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from dagster import DagsterInstance

from mlops_assets.jobs import run_job
from mlops_assets.lifecycle import signing
from mlops_assets.monitoring.alerts import notifier
from mlops_assets.settings import Settings, SettingsError, load_settings, process_environment, shown
from mlops_assets.tracking import Tracking
from mlops_assets_tests.faults.graphql_search import Schema
from mlops_assets_tests.faults.services import MLOPS, Service, started

LEAKY = Path(__file__).with_name("leaky.py")
#: In what no password may ever stand: each secret is another, so that a leak names its setting.
PLANTED = {
    name: f"PLANTED-{name}-0123456789abcdef0123456789abcdef".replace("_", "-")
    for name in ("database", "dagster", "mlflow", "comments", "tracking", "slack", "webhook", "token", "otp", "former", "s3", "spark")
}


def with_password(url: str, secret: str) -> str:
    """The embedded server of the tests takes any password."""
    return url.replace("postgres:@", f"postgres:{secret}@", 1)


@pytest.fixture
def planted(dagster_settings: Settings, make_database: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Every setting that can hold a secret holds one; what is not there listens on a port of nobody."""
    settings = dagster_settings.model_copy(
        update={
            "database_url": with_password(dagster_settings.require("database_url"), PLANTED["database"]),
            "dagster_database_url": with_password(dagster_settings.require("dagster_database_url"), PLANTED["dagster"]),
            "mlflow_database_url": with_password(make_database("template1"), PLANTED["mlflow"]),
            "comments_url": f"mysql+pymysql://reader:{PLANTED['comments']}@127.0.0.1:9/app",
            "mlflow_tracking_uri": f"http://reader:{PLANTED['tracking']}@127.0.0.1:9",
            "slack_webhook_url": f"http://127.0.0.1:9/services/{PLANTED['webhook']}",
            "serve_url": "http://127.0.0.1:9",
            "api_token": PLANTED["token"],
            "otp_secret": PLANTED["otp"],
            "otp_former_secrets": PLANTED["former"],
            "s3_endpoint_url": f"http://key:{PLANTED['s3']}@127.0.0.1:9",
            "spark_remote": f"sc://127.0.0.1:9/;token={PLANTED['spark']}",
        }
    )
    assert PLANTED["database"] in str(settings.database_url), "the tests' server has another address now"
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    signing.ensure_key(settings)
    return settings


def leaks(text: str) -> list[str]:
    return [name for name, secret in PLANTED.items() if secret in text]


@pytest.fixture
def running(planted: Settings) -> Iterator[Callable[[str], Service]]:
    with ExitStack() as stack:
        yield lambda name: stack.enter_context(started(name, planted))


def samples(instance: DagsterInstance) -> dict[str, list[str]]:
    """Arguments of GraphQL fields: our location, then the control's."""
    ours, control = (f'repositoryName: "__repository__", repositoryLocationName: "{name}"' for name in ("mlops_assets", "leaky"))
    run = instance.get_runs(limit=1)[0].run_id
    jobs = [("sentiment_rollback", ours), ("sentiment_pipeline", ours), ("hate_speech_cut", ours), ("__ASSET_JOB", control)]
    return {
        "repositorySelector": [f"{{ {ours} }}", f"{{ {control} }}"],
        "resourceSelector": [f'{{ {ours}, resourceName: "{name}" }}' for name in ("postgres", "store", "spark")]
        + [f'{{ {control}, resourceName: "database" }}'],
        "params": [f'{{ {where}, pipelineName: "{name}" }}' for name, where in jobs],
        "selector": [f'{{ {where}, pipelineName: "{name}" }}' for name, where in jobs],
        "pipeline": [f'{{ {where}, pipelineName: "{name}" }}' for name, where in jobs],
        "mode": ['"default"'],
        "runId": [f'"{run}"'],
        "afterCursor": ["null"],
        "name": ['"mlops_assets"', '"leaky"'],
        "locationName": ['"mlops_assets"', '"leaky"'],
        "assetKey": ['{ path: ["sentiment", "champion"] }'],
        "assetKeys": ['[{ path: ["sentiment", "champion"] }]'],
        "limit": ["10"],
    }


def test_graphql_tells_no_secret(planted: Settings, running: Callable[[str], Service]) -> None:
    done = run_job(planted, "sentiment_rollback", config={"ops": {"sentiment_rollback_op": {"config": {"reason": "a test"}}}})
    assert not done.success and not leaks(str(done.reason))
    locations: list[dict[str, Any]] = [
        {"python_module": {"module_name": "mlops_assets.definitions", "location_name": "mlops_assets"}},
        {"python_file": {"relative_path": str(LEAKY), "location_name": "leaky"}},
    ]
    (planted.dagster_home / "workspace.yaml").write_text(yaml.safe_dump({"load_from": locations}))
    with DagsterInstance.get() as instance:
        given = samples(instance)
    dagster = running("dagster")
    schema = Schema(dagster.url, given)
    told: dict[str, str] = {}
    for depth in (1, 3):
        for field, answer in schema.everything(depth):
            told[field] = told.get(field, "") + answer
    found = {field: leaks(answer) for field, answer in told.items() if leaks(answer)}
    assert not found, found
    assert len(told) > 30 and done.run_id in "".join(told.values()), "the search looked at next to nothing"
    assert "PLANTED-control" in told["topLevelResourceDetailsOrError"], "the control: a resource with config is found"
    assert '"postgres"' in told["allTopLevelResourceDetailsOrError"]
    assert not leaks(dagster.said)


def test_processes_pages_metrics_and_logs_tell_no_secret(planted: Settings, running: Callable[[str], Service]) -> None:
    (planted.dagster_home / "workspace.yaml").write_text("load_from: []\n")
    for name in ("serve", "dashboard", "mlflow", "tensorboard", "otp_demo"):
        service = running(name)
        processes = [psutil.Process(service.process.pid), *psutil.Process(service.process.pid).children(recursive=True)]
        assert not leaks(" ".join(word for one in processes for word in one.cmdline()))
        for path in ("/", "/metrics", "/models", "/readyz", "/openapi.json", "/otp", "/_stcore/host-config", "/graphql", "/version"):
            assert not leaks(httpx.get(service.url + path, timeout=60, trust_env=False).text), (name, path)
        if name == "mlflow":
            made = httpx.post(f"{service.url}/api/2.0/mlflow/experiments/search", json={"max_results": 10}, timeout=60, trust_env=False)
            assert made.is_success and not leaks(made.text)
        assert not leaks(service.said), name


def test_doctor_and_commands_tell_no_secret(planted: Settings) -> None:
    environment = {k: v for k, v in process_environment().items() if not k.startswith("MLOPS_")} | planted.environment()
    told = {k: v for k, v in environment.items() if k != "MLOPS_SPARK_REMOTE"}  # Spark Connect asks for minutes before it says who is away
    doctor = subprocess.run([*MLOPS, "doctor", "--json"], env=told, capture_output=True, text=True, timeout=300)
    assert "mlflow" in doctor.stdout and not leaks(doctor.stdout + doctor.stderr), leaks(doctor.stdout + doctor.stderr)
    broken = environment | {"MLOPS_DATABASE_URL": f"postgresql+psycopg://u:{PLANTED['database']}@127.0.0.1:9/x"}
    for arguments in (
        ["production-info", "sentiment"],
        ["history", "sentiment"],
        ["ingest", "comments", "hate_speech"],
        ["web", "dagster"],
    ):
        given = broken | {"MLOPS_DAGSTER_DATABASE_URL": f"postgresql://u:{PLANTED['dagster']}@127.0.0.1:9/x"}
        done = subprocess.run([*MLOPS, *arguments], env=given, capture_output=True, text=True, timeout=300)
        assert done.returncode != 0 and not leaks(done.stdout + done.stderr), (arguments, done.stdout + done.stderr)
    typo = environment | {"MLOPS_OBJECT_STORE_URL": f"http://key:{PLANTED['s3']}@host/bucket"}
    done = subprocess.run([*MLOPS, "production-info"], env=typo, capture_output=True, text=True, timeout=300)
    assert "MLOPS_OBJECT_STORE_URL" in done.stderr and not leaks(done.stderr)


def test_what_is_away_is_told_without_its_secret(planted: Settings, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(httpx.HTTPError, match="refused") as refused:
        notifier(planted)("a message")
    assert not leaks(str(refused.value))
    run = Tracking(planted.mlflow_tracking_uri).start("sentiment", "a run", dagster_run_id="1", tags={})
    assert run.run_id is None and "not reachable" in caplog.text
    assert not leaks(caplog.text) and not leaks(repr(planted))


def test_a_webhook_that_refuses_is_told_without_its_address(planted: Settings) -> None:
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    class Refuses(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_error(404)

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refuses)
    Thread(target=server.serve_forever, daemon=True).start()
    hook = f"http://127.0.0.1:{server.server_address[1]}/services/{PLANTED['webhook']}"
    try:
        with pytest.raises(OSError, match="answered 404") as refused:
            notifier(planted.model_copy(update={"slack_webhook_url": hook}))("a message")
    finally:
        server.shutdown()
        server.server_close()
    assert not leaks(str(refused.value))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("postgresql+psycopg://u:p%40w@h:5/d?host=%2Ftmp", "postgresql+psycopg://u:***@h:5/d?host=%2Ftmp"),
        ("no route to https://u:p@w@h/x, nor mysql://a:b@c", "no route to https://u:***@h/x, nor mysql://a:***@c"),
        ("sc://h:1/;token=abc;user_id=7", "sc://h:1/;token=***;user_id=7"),
        ("https://s3/b?X-Amz-Signature=abc&x=1", "https://s3/b?X-Amz-Signature=***&x=1"),
        ("http://127.0.0.1:5000/#/experiments/1", "http://127.0.0.1:5000/#/experiments/1"),
        ("postgresql://postgres@/mlops?host=%2Ftmp", "postgresql://postgres@/mlops?host=%2Ftmp"),
        ("at 10:30 a@b", "at 10:30 a@b"),
    ],
)
def test_passwords_and_tokens_are_left_out(text: str, told: str) -> None:
    assert shown(text) == told


def test_a_bad_setting_is_told_without_its_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOPS_OBJECT_STORE_URL", f"http://key:{PLANTED['s3']}@host/bucket")
    with pytest.raises(SettingsError, match="MLOPS_OBJECT_STORE_URL") as refused:
        load_settings()
    assert not leaks(str(refused.value))
