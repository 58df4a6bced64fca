"""What production is started with: Dagster's instance against a real PostgreSQL and an S3, and files that only Docker, make and CI read."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
COMPOSE = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that speaks S3, with the bucket `logs`."""
    import boto3
    from moto.server import ThreadedMotoServer

    for name, value in {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="logs")
    yield endpoint
    server.stop()


def test_dagsters_production_instance_loads_and_its_logs_reach_s3(s3, make_database, tmp_path, monkeypatch):
    import boto3
    from dagster import DagsterInstance
    from dagster._core.storage.compute_log_manager import ComputeIOType

    from mlops_assets.resources.launcher import PidRunLauncher

    shutil.copy(ROOT / "deploy" / "dagster" / "dagster.yaml", tmp_path)
    monkeypatch.setenv("MLOPS_DAGSTER_DATABASE_URL", make_database("template1"))
    monkeypatch.setenv("MLOPS_S3_ENDPOINT_URL", s3)
    monkeypatch.setenv("DAGSTER_LOGS_BUCKET", "logs")
    with DagsterInstance.from_config(str(tmp_path)) as instance:
        assert isinstance(instance.run_launcher, PidRunLauncher)
        assert type(instance.run_storage).__name__ == "PostgresRunStorage"
        assert instance.run_monitoring_enabled and instance.run_monitoring_max_runtime_seconds
        assert instance.run_retries_enabled and not instance.run_retries_retry_on_asset_or_op_failure
        key = ["run-1", "compute_logs", "step"]
        with instance.compute_log_manager.open_log_stream(key, ComputeIOType.STDERR) as log:
            log.write("학습 완료\n")
        objects = boto3.client("s3", endpoint_url=s3).list_objects_v2(Bucket="logs")["Contents"]
        assert [o["Key"] for o in objects] == ["dagster-compute-logs/storage/run-1/compute_logs/step.err"]
        assert "학습 완료" in instance.compute_log_manager.get_log_data(key).stderr.decode()


def test_without_its_secrets_the_production_instance_says_which_one_is_missing(tmp_path, monkeypatch):
    from dagster import DagsterInstance

    shutil.copy(ROOT / "deploy" / "dagster" / "dagster.yaml", tmp_path)
    monkeypatch.delenv("MLOPS_DAGSTER_DATABASE_URL", raising=False)
    with pytest.raises(Exception, match="MLOPS_DAGSTER_DATABASE_URL"):
        DagsterInstance.from_config(str(tmp_path))


@pytest.mark.parametrize("path", ["dagster.yaml", "deploy/dagster/dagster.yaml"])
def test_both_instances_keep_the_promises_of_a_run(path):
    config = yaml.safe_load((ROOT / path).read_text())
    assert config["run_launcher"]["class"] == "PidRunLauncher"
    monitoring = config["run_monitoring"]
    assert monitoring["enabled"] and monitoring["max_runtime_seconds"] > 0 and monitoring["free_slots_after_run_end_seconds"] > 0
    # Whatever was killed, the run is over within two minutes; one that finds no code server goes back into the queue.
    assert max(monitoring["start_timeout_seconds"], monitoring["cancel_timeout_seconds"]) + 2 * monitoring["poll_interval_seconds"] < 120
    assert config["run_queue"]["max_user_code_failure_retries"] * config["run_queue"]["user_code_failure_retry_delay"] >= 100
    assert config["run_retries"]["retry_on_asset_or_op_failure"] is False
    assert config["concurrency"]["pools"] == {"granularity": "run", "default_limit": 1}
    assert config["telemetry"] == {"enabled": False}


# --- compose.yaml and Dockerfile --------------------------------------------------------------------------------------------------


def ours() -> dict[str, dict]:
    return {name: service for name, service in COMPOSE["services"].items() if service.get("image") == "mlops-assets"}


def test_compose_names_only_what_it_declares():
    allowed = {"image", "build", "restart", "init", "environment", "command", "entrypoint", "ports", "volumes", "depends_on", "healthcheck"}
    allowed |= {"logging"}
    for name, service in COMPOSE["services"].items():
        assert set(service) <= allowed | {"profiles"}, name
        for other, condition in service.get("depends_on", {}).items():
            optional = "profiles" in COMPOSE["services"][other]
            assert condition.get("required", True) is not optional, f"{name} would need {other} where its profile is not chosen"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (ROOT / "deploy" / source).exists(), f"{name}: {volume}"
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} must not be open to the network by itself"


def test_every_image_is_pinned_or_built_here():
    bases = [s["image"] for s in COMPOSE["services"].values() if "build" not in s]
    for dockerfile in (ROOT / "deploy").rglob("Dockerfile"):
        bases += re.findall(r"^FROM (\S+)", dockerfile.read_text(), re.M)
    assert len(bases) >= 4
    for base in bases:
        assert re.search(r":[^:]*\d", base), f"{base} would be another program tomorrow"


def test_pgpool_is_asked_for_by_its_profile_and_fits_between_the_platform_and_postgresql():
    folder = ROOT / "deploy" / COMPOSE["services"]["pgpool"]["build"]["context"]
    assert COMPOSE["services"]["pgpool"]["profiles"] == ["pgpool"]
    for source in re.findall(r"^COPY (.*) /", (folder / "Dockerfile").read_text(), re.M)[0].split():
        assert (folder / source).exists()
    urls = [COMPOSE["x-settings"][f"MLOPS_{name}DATABASE_URL"] for name in ("", "DAGSTER_", "MLFLOW_")]
    assert all("@${DATABASE_HOST:-postgres}/" in url for url in urls)
    conf = dict(re.findall(r"^(\w+) = '?([^'#\n]*?)'?\s*(?:#.*)?$", (folder / "pgpool.conf").read_text(), re.M))
    postgres = COMPOSE["services"]["postgres"]
    assert (conf["backend_hostname0"], conf["port"]) == ("postgres", "5432")
    assert "command" not in postgres, "its max_connections is no longer the default 100, of which 3 are the administrator's"
    assert int(conf["num_init_children"]) * int(conf["max_pool"]) <= 97


def test_every_service_gets_settings_that_are_read(monkeypatch, tmp_path):
    from mlops_assets.settings import load_settings

    for name in list(os.environ):
        if name.startswith("MLOPS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MLOPS_HOME", str(tmp_path))
    for name, value in COMPOSE["x-settings"].items():
        if value is not None:
            default = re.sub(r"\$\{\w+(?::?[-?]((?:[^{}]|\{[^}]*\})*))?\}", lambda m: m.group(1) or "x", str(value))
            monkeypatch.setenv(name, default)
    settings = load_settings()  # a name that nothing reads, or a bad value, is an error
    for name in ("database_url", "dagster_database_url", "mlflow_database_url", "mlflow_tracking_uri", "serve_url", "dagster_url"):
        settings.require(name)
    assert settings.store_url == "s3://mlops/assets"


def test_mlflow_gets_its_databases_address_out_of_sight_and_the_same_store_as_everyone():
    service, settings = COMPOSE["services"]["mlflow"], COMPOSE["x-settings"]
    given = service["environment"]
    assert not [word for word in service["command"] if "://" in word or "$" in word]
    assert given["MLFLOW_BACKEND_STORE_URI"] == settings["MLOPS_MLFLOW_DATABASE_URL"]
    assert given["MLFLOW_ARTIFACTS_DESTINATION"] == settings["MLOPS_OBJECT_STORE_URL"] + "/mlflow"
    assert given["MLFLOW_S3_ENDPOINT_URL"] == settings["MLOPS_S3_ENDPOINT_URL"]


def test_every_web_server_of_compose_stands_behind_the_guard_and_under_the_limits():
    guarded = {"webserver": ["mlops", "web", "dagster"], "serve": ["mlops", "serve"], "staging": ["mlops", "serve"]}
    assert {name for name, one in ours().items() if "ports" in one} == {*guarded, "mlflow"}
    for name, command in guarded.items():
        assert ours()[name]["command"][: len(command)] == command
    from mlops_assets.settings import load_settings
    from mlops_assets.up import mlflow_environment

    own = mlflow_environment(load_settings(mlflow_database_url="postgresql://h/m"))["MLFLOW_UVICORN_OPTS"]
    assert ours()["mlflow"]["environment"]["MLFLOW_UVICORN_OPTS"] == own


def test_only_the_registrar_has_the_private_key():
    holders = {name for name, s in ours().items() if any("signing" in v for v in s.get("volumes", []))}
    assert holders == {"migrate", "code"}


def test_what_the_code_server_makes_once_outlives_its_container(tmp_path):
    from mlops_assets.ingest.comment_source import hash_key
    from mlops_assets.settings import load_settings

    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    home = re.findall(r"MLOPS_HOME=(\S+)", dockerfile)[0]
    hash_key(load_settings(home=tmp_path))
    (made,) = (path.parent.relative_to(tmp_path) for path in tmp_path.rglob("comments.key"))
    assert any(volume.split(":")[1:] == [f"{home}/{made}"] for volume in ours()["code"]["volumes"])
    folders = " ".join(re.findall(r"mkdir -p ((?:[^&]|\n)*)", dockerfile)).split()
    for service in ours().values():
        for volume in service.get("volumes", []):
            assert volume.split(":")[1] in folders, f"{volume}: Docker would make it root's"


def test_optional_settings_reach_the_services_and_the_commit_the_image():
    assert {"MLOPS_COMMENTS_URL", "MLOPS_SHEETS_CREDENTIALS"} <= {k for k, v in COMPOSE["x-settings"].items() if v is None}
    assert "ARG GIT_COMMIT" in (ROOT / "deploy" / "Dockerfile").read_text()
    for name, service in ours().items():
        assert service["build"]["args"]["GIT_COMMIT"].startswith("${GIT_COMMIT"), name


@pytest.mark.parametrize("name", sorted(ours()))
def test_the_command_of_each_service_is_understood(name):
    """Without Docker: the program is asked for its help, and every option of the command must stand in it."""
    command = ours()[name]["command"]
    if command[:2] == ["sh", "-c"]:
        command = shlex.split(command[2].replace("$$", "$"))
        command = command[1:] if command[0] == "exec" else command
    if command[0] == "python":
        compile(command[2], name, "exec")
        from mlops_assets.up import migrate, upgrade_mlflow

        assert callable(migrate) and callable(upgrade_mlflow)
        return
    words = [word for word in command[1:] if not word.startswith("-")]
    depth = {"dagster": 2, "mlops": 1, "mlflow": 1, "dagster-daemon": 1}[command[0]]
    help_text = subprocess.run(
        [str(Path(sys.executable).with_name(command[0])), *words[:depth], "--help"], capture_output=True, text=True, check=True
    ).stdout
    for option in (word for word in command if word.startswith("-")):
        assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", help_text), f"{option} is unknown to {command[0]}"


def test_what_the_image_copies_is_there_and_not_ignored():
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    copied = [source for line in re.findall(r"^COPY (.*)$", dockerfile, re.M) for source in line.split()[:-1]]
    assert len(copied) > 5
    for source in copied:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignore, f"{source} is kept out by .dockerignore"
    assert re.search(r"^USER (?!root)", dockerfile, re.M)


# --- make, CI ---------------------------------------------------------------------------------------------------------------------


def test_make_run_takes_a_folder_of_real_data():
    def recipe(*arguments: str) -> str:
        return subprocess.run(["make", "-n", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True).stdout

    assert "mlops up --demo" in recipe("run")
    assert "mlops up --data some/folder" in recipe("run", "DATA=some/folder")
    assert "python -m pytest" in recipe("test")


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def steps_of(workflow):
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_pins_every_action_to_a_commit_and_pastes_nothing_into_a_shell(path):
    workflow = yaml.safe_load(path.read_text())
    steps = steps_of(workflow)
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", step["uses"]) for step in steps if "uses" in step)
    assert not [step["run"] for step in steps if "${{" in step.get("run", "")], "what was sent must reach a command as a variable"
    assert workflow["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("path", [p for p in WORKFLOWS if p.stem.startswith("tires-")], ids=lambda path: path.stem)
def test_no_training_is_dropped_for_a_later_one(path):
    """Of a concurrency group GitHub keeps one pending run and cancels the older ones."""
    assert "concurrency" not in path.read_text()


def test_ci_runs_what_developers_run():
    steps = steps_of(yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text()))
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]


def test_the_forms_of_the_workflows_offer_what_the_platform_knows():
    from mlops_assets.lifecycle.jobs import metric_choices
    from mlops_assets.settings import load_config
    from mlops_assets.systems.tires.training import SYSTEM

    def inputs(name):
        return yaml.safe_load((ROOT / ".github" / "workflows" / f"tires-{name}.yml").read_text())[True]["workflow_dispatch"]["inputs"]

    metrics = [
        metric.value for metric in metric_choices(SYSTEM, load_config(SYSTEM.config_type, "tires", ROOT / "configs").promotion.metric)
    ]
    for name in ("stage", "produce"):
        assert set(inputs(name)["eval_metric"]["options"]) == set(metrics)
        assert inputs(name)["eval_metric"]["default"] == metrics[0] == "F1"
    assert inputs("new-model")["model"]["options"] == list(SYSTEM.variants)


def exported():
    """Names of the series that a server exports."""
    from mlops_assets.serving.metrics import ServerMetrics

    families = ServerMetrics("champion").registry.collect()
    kinds = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
    return {family.name + suffix for family in families for suffix in kinds[family.type]}


def expressions(value):
    """Every `expr` in a parsed document, wherever it stands."""
    if isinstance(value, dict):
        return [v for k, v in value.items() if k == "expr"] + [e for v in value.values() for e in expressions(v)]
    return [e for v in value for e in expressions(v)] if isinstance(value, list) else []


@pytest.mark.parametrize("name", ["prometheus/rules.yml", "grafana/mlops_assets.json"])
def test_rules_and_dashboard_ask_for_series_that_the_server_exports(name):
    asked = {
        series for expr in expressions(yaml.safe_load((ROOT / "deploy" / name).read_text())) for series in re.findall(r"mlops_\w+", expr)
    }
    asked -= {"mlops_serve"}  # the job's name, not a series
    assert len(asked) >= 6
    assert asked <= exported()


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (apt-get install prometheus)")
    return found


RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
ALERTS = [rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def test_every_alert_fires_when_it_should_and_is_silent_when_not(promtool):
    subprocess.run([promtool, "test", "rules", "rules_test.yml"], cwd=RULES.parent, check=True, capture_output=True)
    tests = [test for case in yaml.safe_load((RULES.parent / "rules_test.yml").read_text())["tests"] for test in case["alert_rule_test"]]
    assert {test["alertname"] for test in tests if test["exp_alerts"]} == set(ALERTS)


@pytest.mark.parametrize("never", [True, False], ids=["never", "always"])
@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_that_cannot_fire_or_cannot_be_silent_is_found(promtool, tmp_path, alert, never):
    rules = yaml.safe_load(RULES.read_text())
    rule = next(rule for group in rules["groups"] for rule in group["rules"] if rule["alert"] == alert)
    selector = re.search(r"(?:mlops_|up\b)\w*", rule["expr"]).group()
    rule["expr"] = f"{selector} < -1" if never else f"{selector} > -1"
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules))
    shutil.copy(RULES.parent / "rules_test.yml", tmp_path)
    done = subprocess.run([promtool, "test", "rules", "rules_test.yml"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert f"alertname: {alert}," in done.stdout + done.stderr


def test_counters_that_alerts_watch_begin_at_zero():
    """An increase that begins at 1 is none: Prometheus has not seen the 0."""
    from mlops_assets.serving.metrics import DROPPED, ServerMetrics

    metrics = ServerMetrics("champion")
    metrics.routes(["/predict/{system}"])
    text = metrics.text().decode()
    assert 'mlops_requests_total{route="/predict/{system}",status="500"} 0.0' in text
    assert all(f'mlops_otp_drawings_dropped_total{{reason="{reason}"}} 0.0' in text for reason in DROPPED)
    assert "mlops_answers_unrecorded_total 0.0" in text


def test_ci_is_a_program_that_a_shell_understands():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "set -euo pipefail" in script.read_text()
