"""The sixteen attacks on what reaches production, each against the whole running platform and from outside: a web page, psql, the store's
files, MLflow's API, the landing zone, signals. What held is asked at public doors. Each docstring names the control, where the reader or
server of before is shown to lose. Rows that were forged stay: what does not verify counts nowhere, in no later test either."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from mlops_assets import database, sample_data
from mlops_assets.dagster_api import LOCATION, graphql, launch, wait
from mlops_assets.lifecycle import bundle
from mlops_assets.settings import Settings, load_settings
from mlops_assets.store import ObjectStore
from mlops_assets.tracking import Tracking
from mlops_assets_tests.conftest import wait_for
from mlops_assets_tests.factories import GOOD, World, config_of
from mlops_assets_tests.faults import web_attacks as attack
from mlops_assets_tests.faults.graphql_search import Schema
from mlops_assets_tests.faults.services import PATHS
from mlops_assets_tests.running_platform import Running

pytestmark = pytest.mark.platform
SYSTEM, BIGGEST = "sentiment", 2**63 - 1
#: The system's dataset versions: what the demo landed, and what `ours` lands.
FIRST, SECOND, TINY = "demo-1", "attacked-2", "attacked-tiny"


# --- doors ----------------------------------------------------------------------------------------------------------------------------


def psql(demo: Running, sql: str, **values: Any) -> list[Any]:
    """As whoever has the database's password."""
    engine = database.connect(demo.known["database_url"], pool_size=0)
    with engine.begin() as connection:
        result = connection.execute(text(sql), values)
        return list(result.all()) if result.returns_rows else []


def ask(demo: Running) -> dict[str, Any]:
    """An answer of the model server: with its request's id and the version and bundle that gave it."""
    body = {"inputs": ["배우들 연기 정말 재미있었어요"]}
    answer = httpx.post(f"{demo.known['serve_url']}/predict/{SYSTEM}", json=body, timeout=60, trust_env=False)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def command(demo: Running, *arguments: str, code: int = 0, **settings: str) -> str:
    """What a command says; without a traceback, whatever its end."""
    environment = demo.environment | {f"MLOPS_{name}": value for name, value in settings.items()}
    program = [str(Path(sys.executable).with_name("mlops")), *arguments]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=580)
    assert done.returncode == code and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done.stdout + done.stderr


def told(demo: Running, *arguments: str) -> Any:
    """The JSON of a command."""
    done = demo.mlops(*arguments, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def champion(demo: Running) -> int:
    (found,) = told(demo, "production-info", SYSTEM)
    return int(found["version"])


def serves(demo: Running, version: int) -> None:
    """The ledger and the server agree on it, the server after a moment."""
    assert champion(demo) == version
    wait_for(lambda: ask(demo)["version"] == version, f"version {version} is served", 120)


def champions(demo: Running) -> list[dict[str, Any]]:
    """What `mlops history` tells of the champion's channel, newest first."""
    return [event for event in told(demo, "history", SYSTEM)["events"] if event["channel"] == "champion"]


def settings_of(demo: Running) -> Settings:
    """As a command on this machine has them."""
    return load_settings(home=demo.home)


def store_of(demo: Running) -> Path:
    return demo.home / "store"


def runs(demo: Running) -> set[str]:
    """Of the jobs that change what is in production."""
    found = graphql(demo.known["dagster_url"], "{ runsOrError { ... on Runs { results { runId jobName } } } }", timeout=60)
    return {run["runId"] for run in found["runsOrError"]["results"] if run["jobName"].endswith(("produce", "rollback", "stage"))}


_AGAIN = """mutation Again($params: ReexecutionParams!) { launchRunReexecution(reexecutionParams: $params) { __typename
    ... on LaunchRunSuccess { run { runId rootRunId } } ... on PythonError { message } } }"""
_ERRORS = """query Errors($run: ID!) { logsForRun(runId: $run) { ... on EventConnection { events { ... on ExecutionStepFailureEvent {
    error { message errorChain { error { message } } } } } } } }"""
_PART = """mutation Part($params: ExecutionParams!) { launchRun(executionParams: $params) { __typename
    ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } ... on Error { message } } }"""


def registered_again(demo: Running, version: str) -> Any:
    """The evaluation and the gate once more, on the trained model that is there, as a button of Dagster's page asks for it."""
    selector = {"repositoryLocationName": LOCATION, "repositoryName": "__repository__", "jobName": f"{SYSTEM}_pipeline"}
    selector["assetSelection"] = [{"path": [SYSTEM, layer]} for layer in ("evaluation_report", "registered_model")]  # type: ignore[assignment]
    tags = [{"key": "dagster/partition", "value": version}]
    params = {"selector": selector, "runConfigData": {}, "executionMetadata": {"tags": tags}}
    answer = graphql(demo.known["dagster_url"], _PART, {"params": params}, timeout=60)["launchRun"]
    assert answer["__typename"] == "LaunchRunSuccess", answer
    return wait(demo.known["dagster_url"], answer["run"]["runId"], 400)


def graphql_text(demo: Running, query: str, **variables: Any) -> str:
    return json.dumps(graphql(demo.known["dagster_url"], query, variables, timeout=60), ensure_ascii=False)


@contextmanager
def other_bytes(path: Path) -> Iterator[None]:
    """The file with one bit of its last byte changed, for a while."""
    before = path.read_bytes()
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    try:
        yield
    finally:
        path.write_bytes(before)


@contextmanager
def sections(demo: Running, folder: Path, **changes: Mapping[str, Any]) -> Iterator[str]:
    """A copy of the platform's configs, with these values of sentiment's sections."""
    from mlops_assets.settings import REPOSITORY

    content = yaml.safe_load((REPOSITORY / "configs" / f"{SYSTEM}.yaml").read_text(encoding="utf-8"))
    for section, values in changes.items():
        content[section] |= values
    folder.mkdir(exist_ok=True)
    for path in (REPOSITORY / "configs").glob("*.yaml"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / f"{SYSTEM}.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    yield str(folder)


def verdicts(demo: Running) -> dict[str, dict[str, Any]]:
    return {row["dataset_version"]: row for row in told(demo, "history", SYSTEM)["versions"]}


@pytest.fixture(scope="module")
def ours(demo: Running, tmp_path_factory: pytest.TempPathFactory) -> Running:
    """The demo with a second good version, and with one of two holdout rows; the second is champion, the first the one before it."""
    folder = tmp_path_factory.mktemp("landed")
    for version, seed, rows in ((SECOND, 22, 500), (TINY, 23, 2)):
        sample_data.write_reviews(folder / version, test=rows, seed=seed)
        command(demo, "land", SYSTEM, str(folder / version), "--dataset-version", version)

    def judged() -> bool:
        found = verdicts(demo)
        return all(found.get(version, {}).get("at") for version in (SECOND, TINY))

    wait_for(judged, "the verdicts of what was landed", 580)
    second = int(verdicts(demo)[SECOND]["model"].removeprefix("v"))
    if champion(demo) != second:
        command(demo, "produce", SYSTEM, "--version", str(second), "--override", "--reason", "the attacks begin")
    serves(demo, second)
    return demo


# --- the attacks ----------------------------------------------------------------------------------------------------------------------


def test_b01_no_web_page_promotes(demo: Running) -> None:
    """Control: test_web_pages.py::test_control_dagsters_own_webserver_launches_what_any_page_asks_for."""
    before, version = runs(demo), champion(demo)
    dagster = demo.known["dagster_url"]
    config = {"ops": {f"{SYSTEM}_rollback_op": {"config": {"reason": "a page"}}}}
    for job, given in ((f"{SYSTEM}_rollback", config), (f"{SYSTEM}_produce", {})):
        mutation = attack.launching(job, given)
        for answer in (
            attack.image(dagster, mutation),
            attack.image(dagster, mutation, attack.CROSS_SITE["img"]),
            attack.form(dagster, mutation),
            attack.form(dagster, mutation, "http://localhost:9"),
            attack.simple_fetch(dagster, mutation),
            attack.simple_fetch(dagster, mutation, "null"),
            attack.rebound(dagster, f"/graphql?query={attack.quote(mutation)}", method="POST"),
        ):
            assert answer.refused, answer
    for name in ("dagster", "serve", "staging", "dashboard", "tensorboard", "mlflow"):
        url = f"http://127.0.0.1:{demo.known[f'{name}_port']}"
        assert attack.rebound(url, PATHS[name]).refused, name
        for headers in attack.CROSS_SITE.values():
            assert attack.ask(url, "POST", PATHS[name], headers, b"{}").refused, (name, headers)
    for name, (path, protocol) in {"dagster": ("/graphql", "graphql-ws"), "dashboard": ("/_stcore/stream", "streamlit")}.items():
        url = f"http://127.0.0.1:{demo.known[f'{name}_port']}"
        assert attack.handshake(url, path, protocol, {"Origin": attack.EVIL}) == 403, name
    assert runs(demo) == before
    serves(demo, version)


def test_b02_two_holdout_rows_promote_nothing(ours: Running) -> None:
    """Control: test_holdouts.py::test_control_by_the_old_rules_two_rows_make_a_model_champion_that_knows_nothing."""
    found = verdicts(ours)[TINY]
    assert found["verdict"] == "refused" and "the holdout has 2 rows, at least 200 are needed" in found["why"], found
    assert TINY not in {event["dataset_version"] for event in champions(ours)}


def test_b03_who_writes_into_the_store_alone_makes_no_champion(ours: Running) -> None:
    """Control: test_forged_bytes.py::test_a_table_that_only_the_store_names_is_no_table (the reader of table.json), and
    ::test_a_changed_byte_of_any_link_breaks_the_chain (by sizes nothing is seen)."""
    version, answer, before = champion(ours), ask(ours), verdicts(ours)
    recorded = "SELECT FROM answer WHERE request_id = :id"  # the server records its answers behind them
    wait_for(lambda: psql(ours, recorded, id=answer["request_id"]), "the answer is recorded", 120)
    (folder,) = {path.parent for path in (store_of(ours) / "cleaned" / SYSTEM / SECOND).rglob("*.parquet")}
    (folder / "table.json").write_text(json.dumps({"rows": 1, "sha256": "0" * 64, "rules": "x", "parts": [], "body": {}}))
    assert "every byte read" in command(ours, "trace", answer["request_id"]), "what nothing names is read by nobody"
    part = next(folder.glob("*.parquet"))
    with other_bytes(part):
        assert "were changed" in command(ours, "trace", answer["request_id"], code=1)
        done = registered_again(ours, SECOND)
        assert done.status == "FAILURE" and "was changed" in graphql_text(ours, _ERRORS, run=done.run_id), done
    weights = next(path for path in (store_of(ours) / "weights" / answer["bundle_sha256"]).iterdir())
    with other_bytes(weights):
        assert "changed" in command(ours, "trace", answer["request_id"], code=1)
    assert "every byte read" in command(ours, "trace", answer["request_id"])
    assert verdicts(ours) == before
    serves(ours, version)


def test_b04_a_row_that_says_deleted_deletes_no_bytes(ours: Running) -> None:
    """Control: test_forged_rows.py::test_a_row_that_says_deleted_deletes_nothing (what the query of before would have deleted)."""
    version, before = champion(ours), told(ours, "retention", "--dry-run")[SYSTEM]
    psql(ours, "INSERT INTO bundle_deleted SELECT DISTINCT system, bundle_sha256, 1, 'psql' FROM receipt ON CONFLICT DO NOTHING")
    plan = told(ours, "retention")[SYSTEM]
    kept = {one["version"] for one in plan["keep"]}
    assert version in kept and plan["delete"] == before["delete"] and plan["keep"] == before["keep"], "what it gives up anyway"
    for digest in psql(ours, "SELECT bundle_sha256 FROM receipt WHERE system = :s AND version = ANY(:v)", s=SYSTEM, v=[*kept - {None}]):
        assert list((store_of(ours) / "bundles" / digest[0]).iterdir())
    serves(ours, version)


def test_b05_other_bytes_are_registered_under_no_genuine_provenance(ours: Running, tmp_path: Path) -> None:
    """Control: test_forged_rows.py::test_a_value_belongs_to_the_run_that_wrote_it (the last row is the forged one)."""
    version, before = champion(ours), psql(ours, "SELECT count(*) FROM receipt")
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "bundle.json").write_text(json.dumps({"system": SYSTEM, "evil": True}))
    digest, files = bundle.publish(ObjectStore.of(settings_of(ours)), evil)
    columns = (
        "system, variant, dataset_version, manifest_sha256, config, config_sha256, code_version, git_commit, seed, fingerprint, metrics, "
        "payload, signature, key_id"
    )
    ((forged,),) = psql(
        ours,
        f"INSERT INTO attempt ({columns}, bundle_sha256, bundle_files) SELECT {columns}, :b, CAST(:f AS jsonb) FROM attempt "
        "WHERE system = :s AND dataset_version = :v ORDER BY id LIMIT 1 RETURNING id",
        b=digest,
        f=json.dumps({name: list(file) for name, file in files.items()}),
        s=SYSTEM,
        v=SECOND,
    )
    psql(
        ours,
        "INSERT INTO asset_value (asset, partition, run_id, value, payload, signature, key_id) SELECT asset, partition, 'psql', "
        "jsonb_set(value, '{attempt_id}', to_jsonb(CAST(:id AS bigint))), payload, signature, key_id FROM asset_value "
        "WHERE asset = :a AND partition = :v ORDER BY id DESC LIMIT 1",
        id=forged,
        a=f"{SYSTEM}/trained_model",
        v=SECOND,
    )
    done = registered_again(ours, SECOND)
    assert done.status == "SUCCESS" or done.refused, done
    assert psql(ours, "SELECT count(*) FROM receipt") == before and champion(ours) == version
    assert psql(ours, "SELECT count(*) FROM report WHERE attempt_id = :id", id=forged) == [(0,)]
    assert ask(ours)["bundle_sha256"] != digest


def forge_promotions(demo: Running, first: int, last: int, version: int) -> None:
    """Copies of a genuine promotion under other numbers, of a version of the attacker's choice."""
    psql(
        demo,
        "INSERT INTO promotion (system, sequence, channel, kind, version, bundle_sha256, payload, signature, key_id, actor, reason) "
        "SELECT p.system, n, 'champion', 'promote', r.version, r.bundle_sha256, p.payload, p.signature, p.key_id, 'psql', 'psql' "
        "FROM promotion p, receipt r, generate_series(CAST(:a AS bigint), CAST(:b AS bigint)) n "
        "WHERE p.system = :s AND r.system = :s AND p.sequence = 1 AND r.version = :v",
        a=first,
        b=last,
        s=SYSTEM,
        v=version,
    )


def test_b06_a_thousand_unsigned_promotions_and_the_highest_number_end_nothing(ours: Running) -> None:
    """Control: test_forged_rows.py::test_a_thousand_unsigned_promotions_hide_no_champion_from_the_gate and
    ::test_taken_numbers_are_stepped_over_and_the_highest_ends_nothing."""
    version, history = champion(ours), champions(ours)
    first = int(history[-1]["model"].removeprefix("v"))
    ((newest,),) = psql(ours, "SELECT max(sequence) FROM promotion WHERE system = :s", s=SYSTEM)
    forge_promotions(ours, newest + 1, newest + 1000, first)
    forge_promotions(ours, BIGGEST, BIGGEST, first)
    serves(ours, version)
    assert champions(ours) == history
    command(ours, "rollback", SYSTEM, "--to", str(first), "--reason", "a genuine one")
    serves(ours, first)
    command(ours, "rollback", SYSTEM, "--to", str(version), "--reason", "and back")
    serves(ours, version)
    assert len(champions(ours)) == len(history) + 2


def test_b07_a_system_called_like_a_path_deletes_no_folder(ours: Running, tmp_path: Path) -> None:
    """Control: test_forged_rows.py::test_a_system_called_like_a_path_is_refused_by_the_database_and_by_the_server (where the name led)."""
    version, victim = champion(ours), tmp_path / "victim"
    (victim / "bundles" / ".git").mkdir(parents=True)
    copied = "channel, kind, version, bundle_sha256, payload, signature, key_id, actor, reason"
    forged = f"INSERT INTO promotion (system, sequence, {copied}) SELECT :name, 1, {copied} FROM promotion WHERE system = :s LIMIT 1"
    with pytest.raises(IntegrityError, match="system_name"):
        psql(ours, forged, name=str(victim), s=SYSTEM)
    rule = "ALTER TABLE promotion ADD CONSTRAINT system_name CHECK (system ~ '^[a-z][a-z0-9_-]{0,62}$') NOT VALID"
    assert ("system_name",) in psql(ours, "SELECT conname FROM pg_constraint WHERE conrelid = CAST('promotion' AS regclass)")
    # Whoever owns the tables takes the rule away, and the foreign key for this one transaction.
    psql(ours, "ALTER TABLE promotion DROP CONSTRAINT system_name")
    try:
        for name in (str(victim), "../../../victim", "Toy"):
            sql = f"SET LOCAL session_replication_role = replica; {forged.replace(':name', repr(name)).replace(':s', repr(SYSTEM))}"
            psql(ours, sql)
    finally:
        psql(ours, rule)
    assert (str(victim),) in psql(ours, "SELECT system FROM promotion")
    command(ours, "rollback", SYSTEM, "--reason", "so that the server looks again")
    wait_for(lambda: ask(ours)["version"] != version, "the server has looked again", 120)
    command(ours, "rollback", SYSTEM, "--to", str(version), "--reason", "back")
    serves(ours, version)
    assert (victim / "bundles" / ".git").is_dir()


def test_b08_a_rollback_that_is_run_again_goes_back_once(ours: Running) -> None:
    """Control: test_retried_run.py::test_the_retry_of_a_rollback_run_finds_what_its_root_did (a run of its own goes further back)."""
    version, dagster = champion(ours), ours.known["dagster_url"]
    config = {"ops": {f"{SYSTEM}_rollback_op": {"config": {"reason": "its worker will die"}}}}
    first = launch(dagster, f"{SYSTEM}_rollback", config)
    assert wait(dagster, first, 300).status == "SUCCESS"
    back, length = champion(ours), len(champions(ours))
    assert back != version
    again = graphql(dagster, _AGAIN, {"params": {"parentRunId": first, "strategy": "ALL_STEPS"}}, timeout=60)["launchRunReexecution"]
    assert again["__typename"] == "LaunchRunSuccess" and again["run"]["rootRunId"] == first, again
    assert wait(dagster, again["run"]["runId"], 300).status == "SUCCESS"
    assert (champion(ours), len(champions(ours))) == (back, length)
    command(ours, "produce", SYSTEM, "--version", str(version), "--override", "--reason", "forward again")
    serves(ours, version)


def test_b09_a_rollback_under_todays_thresholds_says_so(ours: Running, tmp_path: Path) -> None:
    """Control: test_forged_rows.py::test_a_rollback_below_todays_thresholds_is_done_and_says_so_everywhere (above, nothing)."""
    version = champion(ours)
    ((newest,),) = psql(ours, "SELECT max(id) FROM outbox")
    with sections(ours, tmp_path / "strict", register_threshold={"ece": 1e-9}) as strict:
        command(ours, "rollback", SYSTEM, "--reason", "complaints", CONFIGS=strict)
    newest_event = champions(ours)[0]
    assert newest_event["model"] != f"v{version}" and newest_event["why"].startswith("complaints (an emergency exit: it is under today's")
    alerts = psql(ours, "SELECT payload ->> 'text' FROM outbox WHERE topic = 'slack' AND id > :id", id=newest)
    assert any("an emergency exit" in str(alert) for (alert,) in alerts), alerts
    command(ours, "rollback", SYSTEM, "--to", str(version), "--reason", "back")
    assert champions(ours)[0]["why"] == "back"
    serves(ours, version)


def test_b10_mlflows_champion_is_no_foreign_version(ours: Running) -> None:
    """Control: test_stray_version.py (the look-up by the tag alone finds the foreign one)."""
    client = Tracking(ours.known["mlflow_tracking_uri"]).client

    def aliased() -> Any:
        return client.get_model_version_by_alias(SYSTEM, "champion")

    ((digest, number),) = psql(
        ours, "SELECT bundle_sha256, version FROM receipt WHERE system = :s AND version = :v", s=SYSTEM, v=champion(ours)
    )
    wait_for(lambda: aliased().source == f"bundle:///{digest}", "MLflow follows", 180)
    genuine = aliased()
    tags = dict(genuine.tags)
    evil = client.create_model_version(SYSTEM, "s3://evil/model", await_creation_for=0, tags=tags)
    assert tags["bundle_sha256"] == digest and tags["receipt_version"] == str(number)
    client.set_registered_model_alias(SYSTEM, "champion", evil.version)
    wait_for(lambda: aliased().version == genuine.version, "the alias is put back", 180)
    assert aliased().source == f"bundle:///{digest}"


def test_b11_a_metric_of_which_nobody_said_whether_more_is_better_passes_no_gate(ours: Running, tmp_path: Path) -> None:
    """Control: lifecycle/test_gate.py, where the same report with a declared direction is judged."""
    engine = database.connect(ours.known["database_url"], pool_size=0)
    settings = settings_of(ours)
    world = World(engine, settings, ObjectStore.of(settings), "forecast", config_of("forecast", limits={"mape": 0.2}))
    done = world.registered("v1", {**GOOD, "mape": 5.0})
    assert done.receipt is None and done.verdict.outcome == "refused" and "mape" in done.verdict.sentence.lower()
    with sections(ours, tmp_path / "forecast", register_threshold={"mape": 0.2}, promotion={"metric": "mape"}) as other:
        said = command(ours, "produce", SYSTEM, "--version", "1", "--reason", "a forecast", code=2, CONFIGS=other)
    assert "mape" in said


def test_b12_links_in_the_landing_zone_are_not_followed(ours: Running, tmp_path: Path) -> None:
    """Control: test_links.py::test_control_the_library_follows_links_and_lets_everybody_read."""
    secret = tmp_path / "shadow"
    secret.write_text("id\tdocument\tlabel\n1\troot:$6$PLANTED\t1\n")
    folder = store_of(ours) / "landing" / SYSTEM / "attacked-links"
    folder.mkdir(mode=0o700)
    for name in ("ratings_train.txt", "ratings_test.txt"):
        (folder / name).symlink_to(secret)
    (folder / "folder").symlink_to(tmp_path)
    (folder / "_READY").touch()
    question = "SELECT row_to_json(o)::text FROM landing_object o WHERE system = :s AND version = 'attacked-links'"
    wait_for(lambda: sum('"link"' in row for (row,) in psql(ours, question, s=SYSTEM)) == 3, "the links are in quarantine", 180)
    frozen = store_of(ours) / "objects"
    assert not any(b"PLANTED" in path.read_bytes() for path in frozen.rglob("*") if path.is_file())
    assert store_of(ours).stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in frozen.rglob("*") if path.is_file()} == {0o600}
    assert "attacked-links" not in {version for version, row in verdicts(ours).items() if row["at"]}


def test_b13_no_secret_is_told_by_dagster_processes_or_logs(ours: Running) -> None:
    """Control: test_secrets.py::test_graphql_tells_no_secret, where a resource with its address as config is found by the same search."""
    known = ours.known
    secrets = {name: known[name] for name in ("database_url", "dagster_database_url", "mlflow_database_url", "otp_secret")}
    secrets |= {name: ours.environment[f"MLOPS_{name.upper()}"] for name in ("comments_url", "api_token")}

    def leaks(told: str) -> list[str]:
        return [name for name, secret in secrets.items() if secret in told]

    where = f'repositoryName: "__repository__", repositoryLocationName: "{LOCATION}"'
    jobs = [f'{{ {where}, pipelineName: "{job}" }}' for job in ("sentiment_rollback", "sentiment_pipeline", "hate_speech_cut")]
    run = sorted(runs(ours))[0]
    samples = {
        "repositorySelector": [f"{{ {where} }}"],
        "resourceSelector": [f'{{ {where}, resourceName: "{name}" }}' for name in ("postgres", "store", "spark")],
        **dict.fromkeys(("params", "selector", "pipeline"), jobs),
        "mode": ['"default"'],
        "runId": [f'"{run}"'],
        "afterCursor": ["null"],
        **dict.fromkeys(("name", "locationName"), [f'"{LOCATION}"']),
        "assetKey": [f'{{ path: ["{SYSTEM}", "champion"] }}'],
        "assetKeys": [f'[{{ path: ["{SYSTEM}", "champion"] }}]'],
        "limit": ["10"],
    }
    told: dict[str, str] = {}
    for depth in (1, 3):
        for field, answer in Schema(known["dagster_url"], samples).everything(depth):
            told[field] = told.get(field, "") + answer
    assert {field: leaks(answer) for field, answer in told.items() if leaks(answer)} == {}
    assert len(told) > 30 and run in "".join(told.values()) and '"postgres"' in told["allTopLevelResourceDetailsOrError"]
    lines = [" ".join(psutil.Process(pid).cmdline()) for pid in ours.everything() if psutil.pid_exists(pid)]
    assert len(lines) > 8 and not leaks("\n".join(lines))
    for log in (ours.home / "logs").iterdir():
        assert not leaks(log.read_text(errors="replace")), log


def test_b14_clients_that_never_end_keep_nobody_out(ours: Running) -> None:
    """Control: test_slow_clients.py::test_control_uvicorn_collects_headers_without_end and ::test_control_uvicorn_waits_for_ever."""
    version, serve = champion(ours), ours.known["serve_url"]
    for name in ("serve", "dagster", "mlflow", "dashboard", "tensorboard"):
        assert attack.endless_headers(f"http://127.0.0.1:{ours.known[f'{name}_port']}", 64) < 8 * 1024**2, name
    log = ours.home / "logs" / "serve.log"
    before = log.read_text(errors="replace").count("Traceback")
    for request in (attack.half_body(serve, f"/predict/{SYSTEM}"), b"GET / HTTP/1.1\r\n"):
        with attack.half_sent(serve, 800, request):
            assert ask(ours)["version"] == version

    def counted(status: str) -> float:
        lines = httpx.get(f"{serve}/metrics", timeout=30, trust_env=False).text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("mlops_requests_total") and f'"{status}"' in line)

    errors, left = counted("500"), counted("499")
    for _ in range(20):
        attack.leave(serve, f"/predict/{SYSTEM}")
    wait_for(lambda: counted("499") >= left + 20, "they are counted as clients that left")
    assert counted("500") == errors and log.read_text(errors="replace").count("Traceback") == before
    serves(ours, version)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can hand a file to another account")
def test_b16_a_key_that_kubernetes_mounts_signs_and_one_that_others_read_does_not(ours: Running, tmp_path: Path) -> None:
    """Control: test_mounted_key.py::test_what_others_may_read_or_we_may_not_is_refused_with_the_fix."""
    group, version = 20002, champion(ours)
    mount = tmp_path / "secret"
    (mount / "..1").mkdir(parents=True)
    key = mount / "..1" / "key"
    key.write_bytes(settings_of(ours).signing_key_path.read_bytes())
    (mount / "..data").symlink_to("..1")
    (mount / "key").symlink_to("..data/key")
    os.chown(key, 0, group)
    key.chmod(0o440)
    environment = ours.environment | {"MLOPS_SIGNING_KEY": str(mount / "key")}

    def mlops(*arguments: str, groups: list[int]) -> subprocess.CompletedProcess[str]:
        program = [str(Path(sys.executable).with_name("mlops")), *arguments]
        return subprocess.run(program, env=environment, extra_groups=groups, capture_output=True, text=True, timeout=580)

    assert "readable by the group 20002" in mlops("doctor", groups=[group]).stdout.replace("\n", " ")
    refused = mlops("rollback", SYSTEM, "--reason", "no key", groups=[])
    assert refused.returncode and "can be read by others" in refused.stdout + refused.stderr and champion(ours) == version
    done = mlops("rollback", SYSTEM, "--reason", "by the mounted key", groups=[group])
    assert done.returncode == 0 and champion(ours) != version, done.stdout + done.stderr
    command(ours, "rollback", SYSTEM, "--to", str(version), "--reason", "back")
    serves(ours, version)


def test_b15_a_database_that_is_killed_again_and_again_comes_back_each_time(ours: Running) -> None:
    """Control: test_database_away.py (five ends in a row were the last before). Here the model server answers all the while."""
    version, times = champion(ours), 7
    pid_file = ours.home / "postgres" / "postmaster.pid"

    def postmaster() -> int | None:
        with suppress(OSError, ValueError, IndexError, psutil.Error):
            pid = int(pid_file.read_text().split("\n")[0])
            return pid if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE else None
        return None

    def answers() -> bool:
        with suppress(SQLAlchemyError):
            return psql(ours, "SELECT 1") == [(1,)]
        return False

    killed: set[int] = set()
    for number in range(times):
        pid = postmaster()
        assert pid is not None and pid not in killed, number
        killed.add(pid)
        os.kill(pid, signal.SIGKILL)

        def back(gone: int = pid) -> bool:
            assert ask(ours)["version"] == version
            return postmaster() not in (gone, None) and answers()

        wait_for(back, f"PostgreSQL is back after its end number {number + 1}", 120)
    assert len(killed) == times

    def whole() -> bool:
        with suppress(OSError):
            return bool(runs(ours)) and champion(ours) == version
        return False

    wait_for(whole, "Dagster and the commands answer again", 180)
    serves(ours, version)
