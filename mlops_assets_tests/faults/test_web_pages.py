"""Any web page: an image, a form, a fetch, a websocket, a name that is pointed at this machine. Each is tried on the real servers behind
the guard, and on the same servers without it, where it must get through."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest
import websocket
import yaml
from dagster import DagsterInstance

from mlops_assets.settings import Settings, load_settings
from mlops_assets_tests.conftest import databases
from mlops_assets_tests.faults import web_attacks as attack
from mlops_assets_tests.faults.services import PATHS, Service, started

JOBS = Path(__file__).with_name("innocent.py")
SERVICES = ("dagster", "serve", "staging", "dashboard", "tensorboard", "mlflow")
SOCKETS = {"dagster": ("/graphql", "graphql-ws"), "dashboard": ("/_stcore/stream", "streamlit")}
MUTATION = attack.launching("sentiment_produce", location="innocent")


@pytest.fixture(scope="module")
def module_settings(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Databases and a Dagster home of its own, with a workspace in which the attacked job is."""
    folder = tmp_path_factory.mktemp("pages")
    with databases(postgres) as make:
        settings = load_settings(
            home=folder / "home", database_url=make(), object_store_url=(folder / "store").as_uri(), api_token="secret"
        )
        settings = settings.model_copy(
            update={"dagster_database_url": make("template1"), "mlflow_database_url": make("template1"), "otp_secret": "s" * 32}
        )
        home = settings.dagster_home
        home.mkdir(parents=True)
        storage = {"postgres": {"postgres_url": settings.dagster_database_url}}
        (home / "dagster.yaml").write_text(yaml.safe_dump({"storage": storage, "telemetry": {"enabled": False}}))
        load = [{"python_file": {"relative_path": str(JOBS), "location_name": "innocent"}}]
        (home / "workspace.yaml").write_text(yaml.safe_dump({"load_from": load}))
        yield settings


def service(settings: Settings, name: str, *, bare: bool = False, **more: str) -> AbstractContextManager[Service]:
    return started(name, settings.model_copy(update=more), bare=bare)


@pytest.fixture(scope="module")
def running(module_settings: Settings) -> Iterator[Callable[..., Service]]:
    """A function (name, bare) -> the service, started when it is first asked for."""
    with ExitStack() as stack:
        found: dict[tuple[str, bool], Service] = {}

        def get(name: str, bare: bool = False) -> Service:
            if (name, bare) not in found:
                found[name, bare] = stack.enter_context(service(module_settings, name, bare=bare))
            return found[name, bare]

        yield get


def launched(settings: Settings) -> int:
    with DagsterInstance.from_config(str(settings.dagster_home)) as instance:
        return instance.get_runs_count()


ON_DAGSTER: dict[str, Callable[[str], attack.Answer]] = {
    "an image, of which the browser says nothing": lambda url: attack.image(url, MUTATION),
    "an image": lambda url: attack.image(url, MUTATION, attack.CROSS_SITE["img"]),
    "a mutation behind a query": lambda url: attack.image(url, "query A { version } " + MUTATION.replace("mutation", "mutation B", 1)),
    "a form": lambda url: attack.form(url, MUTATION),
    "a form of another port": lambda url: attack.form(url, MUTATION, "http://localhost:9"),
    "a fetch without preflight": lambda url: attack.simple_fetch(url, MUTATION),
    "a fetch of a sandboxed frame": lambda url: attack.simple_fetch(url, MUTATION, "null"),
    "a name pointed at this machine": lambda url: attack.rebound(url, f"/graphql?query={attack.quote(MUTATION)}", method="POST"),
}


@pytest.mark.parametrize("how", ON_DAGSTER)
def test_no_page_launches_a_run(running, module_settings, how):
    before = launched(module_settings)
    answer = ON_DAGSTER[how](running("dagster").url)
    assert answer.refused, answer
    assert launched(module_settings) == before


@pytest.mark.parametrize("how", [how for how in ON_DAGSTER if "behind" not in how])
def test_control_dagsters_own_webserver_launches_what_any_page_asks_for(running, module_settings, how):
    before = launched(module_settings)
    answer = ON_DAGSTER[how](running("dagster", bare=True).url)
    assert json.loads(answer.body)["data"]["launchRun"]["__typename"] == "LaunchRunSuccess"
    assert launched(module_settings) == before + 1


def test_people_and_programs_launch_runs_as_before(running, module_settings):
    url = running("dagster").url
    body = json.dumps({"query": MUTATION}).encode()
    before = launched(module_settings)
    own_page = {"origin": url, "sec-fetch-site": "same-origin", "sec-fetch-mode": "cors", "sec-fetch-dest": "empty"}
    for headers in ({}, own_page):
        answer = attack.ask(url, "POST", "/graphql", {"content-type": "application/json"} | headers, body)
        assert "LaunchRunSuccess" in answer.body
    assert launched(module_settings) == before + 2
    assert json.loads(attack.ask(url, "GET", "/graphql?query=%7Bversion%7D").body)["data"]["version"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_foreign_name_or_page_gets_nothing(running, name):
    url, path = running(name).url, PATHS[name]
    for host in attack.FOREIGN_HOSTS:
        answer = attack.rebound(url, path, host) if host and "," not in host else attack.ask(url, "GET", path, {"host": host})
        # What is no host at all the server itself may turn away before the guard sees it.
        assert answer.refused or answer.status == 400, (host, answer)
        assert "MLOPS_ALLOWED_HOSTS" in answer.body or answer.status == 400
    for how, headers in attack.CROSS_SITE.items():
        for method in ("GET", "POST"):
            answer = attack.ask(url, method, path, headers, b"{}" if method == "POST" else None)
            assert answer.refused and "MLOPS_ALLOWED_ORIGINS" in answer.body, (how, method, answer)
    assert "refused: " in running(name).said


@pytest.mark.parametrize("name", SERVICES)
def test_control_without_the_guard_a_foreign_page_is_answered(running, name):
    url, path = running(name, bare=True).url, PATHS[name]
    assert attack.rebound(url, path, "10.evil.example").status == 200  # MLflow too: it takes that for an address of a private network
    assert attack.ask(url, "GET", path, attack.CROSS_SITE["img"]).status == 200


@pytest.mark.parametrize("name", SERVICES)
def test_links_own_pages_and_programs_get_an_answer(running, name):
    url, path = running(name).url, PATHS[name]
    port = url.rpartition(":")[2]
    for headers in (
        {},
        attack.LINK,
        {"host": f"localhost:{port}"},
        {"host": f"localhost:{port}", "origin": f"http://localhost:{port}", "sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "none", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"},
    ):
        assert attack.ask(url, "GET", path, headers).status == 200, headers


@pytest.mark.parametrize("name", SOCKETS)
def test_no_foreign_page_opens_a_websocket(running, name):
    url, (path, protocol) = running(name).url, SOCKETS[name]
    assert attack.handshake(url, path, protocol, {"Origin": url}) == 101
    assert attack.handshake(url, path, protocol, {}) == 101
    for headers in ({"Origin": attack.EVIL}, {"Origin": "null"}, {"Host": "evil.example", "Origin": "http://evil.example"}):
        assert attack.handshake(url, path, protocol, headers) == 403, headers


@pytest.mark.parametrize("name", SOCKETS)
def test_control_without_the_guard_a_rebound_page_opens_a_websocket(running, name):
    url, (path, protocol) = running(name, bare=True).url, SOCKETS[name]
    assert attack.handshake(url, path, protocol, {"Host": "evil.example", "Origin": "http://evil.example"}) == 101


def test_subscriptions_of_dagsters_own_page_still_work(running):
    url = running("dagster").url
    there = websocket.create_connection(url.replace("http", "ws") + "/graphql", subprotocols=["graphql-ws"], origin=url, timeout=30)
    there.send(json.dumps({"type": "connection_init"}))
    assert json.loads(there.recv())["type"] == "connection_ack"
    query = 'subscription { capturedLogs(logKey: ["none"]) { cursor } }'
    there.send(json.dumps({"id": "1", "type": "start", "payload": {"query": query, "variables": {}}}))
    assert json.loads(there.recv())["id"] == "1"
    there.close()


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_proxy_is_let_in_by_its_name_and_origin(module_settings, name):
    allowed = {"allowed_hosts": "mlops.example.com, *.intern.example:8443", "allowed_origins": "https://front.example.com"}
    with service(module_settings, name, **allowed) as found:
        for host, status in {
            "mlops.example.com": 200,
            "MLOPS.example.com.:443": 200,
            "a.b.intern.example:8443": 200,
            "a.intern.example": 403,
            "intern.example:8443": 403,
            "evil-mlops.example.com": 403,
        }.items():
            assert attack.ask(found.url, "GET", "/", {"host": host}).status == status, host
        proxied = {"host": "mlops.example.com", "origin": "https://mlops.example.com", "sec-fetch-site": "same-origin"}
        assert attack.ask(found.url, "GET", "/", proxied).status == 200
        front = attack.CROSS_SITE["fetch"] | {"origin": "https://front.example.com"}
        assert attack.ask(found.url, "GET", "/", front).status == 200
        assert attack.ask(found.url, "GET", "/", front | {"origin": "http://front.example.com"}).refused
