"""Clients that never end: headers without end, half-sent requests by the hundred, one that hangs up. Real servers; the control is the same
application in uvicorn as it comes."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from mlops_assets.settings import Settings
from mlops_assets_tests.conftest import wait_for
from mlops_assets_tests.factories import World, config_of
from mlops_assets_tests.faults import web_attacks as attack
from mlops_assets_tests.faults.services import PATHS, Service, started
from mlops_assets_tests.serving.running import promote, register

MIB = 1024**2


@pytest.fixture
def server(engine, settings: Settings, store, tmp_path) -> Iterator[Callable[..., Service]]:
    """A function (bare, settings) -> a model server that serves sentiment."""
    world = World(engine, settings, store, "sentiment", config_of("sentiment"))
    promote(world, register(world, tmp_path / "bundle"))
    with ExitStack() as stack:

        def start(bare: bool = False, **more: object) -> Service:
            found = stack.enter_context(started("serve", settings.model_copy(update={"threads": 1, **more}), bare=bare))
            wait_for(lambda: predicts(found), "the model answers")
            return found

        yield start


def predicts(service: Service) -> bool:
    with suppress(httpx.HTTPError):
        asked = httpx.post(f"{service.url}/predict/sentiment", json={"inputs": ["좋은 영화"]}, timeout=10, trust_env=False)
        return asked.status_code == 200
    return False


def memory(service: Service) -> int:
    return psutil.Process(service.process.pid).memory_info().rss


def said_by(service: Service, request: bytes) -> bytes:
    """All that is answered to these bytes, until the server hangs up."""
    parts, answer = urlsplit(service.url), b""
    with socket.create_connection((parts.hostname or "", parts.port), timeout=60) as connection, suppress(ConnectionError):
        connection.sendall(request)
        while piece := connection.recv(65536):
            answer += piece
    return answer


def test_headers_without_end_are_not_collected(server):
    service = server()
    before = memory(service)
    for line in (b"X-%d: " + b"a" * 8000 + b"\r\n", b"a" * 8192, b"X-%d: y\r\n"):
        assert attack.endless_headers(service.url, 64, line) < 8 * MIB  # what the kernel's buffers take
    assert memory(service) - before < 32 * MIB
    for request in (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 70_000 + b"\r\n\r\n"):
        assert said_by(service, request).startswith(b"HTTP/1.1 431")
    trailers = b"".join(b"X-%d: y\r\n" % number for number in range(20_000))
    chunked = (
        attack.half_body(service.url, "/predict/sentiment")
        .split(b"\r\n\r\n")[0]
        .replace(b"Content-Length: 1000", b"Transfer-Encoding: chunked")
    )
    assert b" 431 " in said_by(service, chunked + b"\r\n\r\n2\r\n{}\r\n0\r\n" + trailers) or predicts(service)
    assert memory(service) - before < 48 * MIB
    assert predicts(service)


def test_control_uvicorn_collects_headers_without_end(server):
    service = server(bare=True)
    before = memory(service)
    assert attack.endless_headers(service.url, 64) >= 64 * MIB
    assert memory(service) - before > 48 * MIB


@pytest.mark.parametrize("name", ["dagster", "dashboard", "tensorboard", "mlflow"])
def test_the_other_servers_too(name, dagster_settings, make_database):
    load = "load_from: []\n"
    (dagster_settings.dagster_home / "workspace.yaml").write_text(load)
    settings = dagster_settings.model_copy(
        update={"mlflow_database_url": make_database("template1"), "header_seconds": 1.0, "body_seconds": 1.0}
    )
    with started(name, settings) as service:
        assert attack.endless_headers(service.url, 64) < 8 * MIB
        assert said_by(service, b"GET / HTTP/1.1\r\n").startswith(b"HTTP/1.1 408")
        with attack.half_sent(service.url, 50, attack.half_body(service.url, "/graphql")):
            assert httpx.get(service.url + PATHS[name], timeout=30, trust_env=False).is_success
        attack.leave(service.url, "/graphql")
        assert httpx.get(service.url + PATHS[name], timeout=30, trust_env=False).is_success
    assert "Traceback" not in service.said


def test_half_sent_requests_keep_no_whole_one_out(server):
    service = server()
    for request in (attack.half_body(service.url, "/predict/sentiment"), b"GET / HTTP/1.1\r\n", b""):
        with attack.half_sent(service.url, 800, request):
            for _ in range(5):
                assert predicts(service)
            assert len(psutil.Process(service.process.pid).net_connections()) < 550
    assert "Traceback" not in service.said


def test_a_request_that_is_not_there_in_time_is_over(server):
    service = server(header_seconds=1.0, body_seconds=1.0)
    for request in (b"GET / HTTP/1.1\r\n", b"", b"\r\n", attack.half_body(service.url, "/predict/sentiment")):
        assert said_by(service, request).startswith(b"HTTP/1.1 408"), request
    kept = b"GET /livez HTTP/1.1\r\nHost: %s\r\n\r\n" % urlsplit(service.url).netloc.encode()
    assert said_by(service, kept + b"GET /livez HTTP/1.1\r\n").count(b"HTTP/1.1") == 2  # an answer, and the end of what never came
    assert predicts(service)
    assert "Traceback" not in service.said


def test_control_uvicorn_waits_for_ever(server):
    service = server(bare=True)
    with attack.half_sent(service.url, 3, b"GET / HTTP/1.1\r\n") as held:
        held[0].settimeout(25)
        with pytest.raises(TimeoutError):
            held[0].recv(1)


def test_who_sends_slowly_but_goes_on_is_answered(server):
    service = server(body_seconds=1.0)
    body = b'{"inputs": ["' + b"a" * 9_000 + b'"]}' + b" " * 150_000
    parts = urlsplit(service.url)
    with socket.create_connection((parts.hostname or "", parts.port), timeout=60) as connection:
        connection.sendall(attack.half_body(service.url, "/predict/sentiment", len(body)).removesuffix(b'{"inputs": ["'))
        begun = time.monotonic()
        for start in range(0, len(body), 8192):
            connection.sendall(body[start : start + 8192])
            while time.monotonic() - begun < start / 65_536:
                time.sleep(0.01)
        assert time.monotonic() - begun > 2  # longer than a body that stood still may take
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_who_hangs_up_is_no_error(server):
    service = server()
    for path in ("/predict/sentiment", "/otp/confirmation"):
        for _ in range(20):
            attack.leave(service.url, path)

    def counted(status: int) -> float:
        lines = httpx.get(service.url + "/metrics", timeout=30, trust_env=False).text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("mlops_requests_total") and f'"{status}"' in line)

    wait_for(lambda: counted(499) == 40, "all are counted as clients that left")
    assert counted(500) == 0
    assert service.said == ""  # without the catch: 55 lines each
    assert predicts(service)
