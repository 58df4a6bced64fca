"""The demo back-end: a code has three tries, only the model server's page may ask, and what it tells that server holds no code."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from mlops_assets import otp, otp_demo, up
from mlops_assets_tests.conftest import free_port, wait_for

SECRET = "a secret of tests, long enough to be one"
OWN = "http://127.0.0.1:8010"


class ModelServer(ThreadingHTTPServer):
    """Stands where the model server would, and remembers what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, dict[str, str], Any]] = []
        self.status = 200
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: ModelServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.told.append((self.command, self.path, dict(self.headers), json.loads(body) if body else None))
        answer = json.dumps({"drawings": 4, "dataset_versions": ["drawn-1"], "models": []}).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_DELETE = do_POST

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer() as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture
def client(server: ModelServer) -> Iterator[TestClient]:
    with TestClient(otp_demo.create_app(SECRET, server.url, OWN), base_url=OWN) as made:
        yield made


def code_of(client: TestClient, lang: str = "en") -> tuple[otp.Session, str]:
    page = client.get("/", params={"lang": lang}).text
    code, token = re.search(r'value="([0-9]{6})"', page), re.search(r"/otp\?session=([^&\"]+)", page)
    assert code and token
    return otp.read_token(SECRET, token[1]), code[1]


def verify(client: TestClient, session: str, code: str) -> tuple[int, Any]:
    answer = client.post("/verify", json={"session": session, "code": code})
    return answer.status_code, answer.json().get("verified")


def test_the_right_code_is_verified_once_and_the_model_server_told_without_it(client: TestClient, server: ModelServer):
    session, code = code_of(client)
    assert (session.length, session.verify_url) == (6, f"{OWN}/verify?lang=en")
    assert session.expires <= time.time() + otp_demo.SECONDS
    assert verify(client, session.id, code) == (200, True)
    method, path, headers, body = wait_for(lambda: server.told and server.told[0], "the model server is told")
    assert (method, path) == ("POST", "/otp/verified")
    assert body == {"session": session.id, "mac": otp.verified_mac(SECRET, session.id, code)}
    assert code not in json.dumps([path, headers, {"session": body["session"]}])
    assert verify(client, session.id, code) == (410, False)


def test_a_code_has_three_tries(client: TestClient, server: ModelServer):
    session, code = code_of(client)
    wrong = f"{(int(code) + 1) % 10**6:06}"
    assert [verify(client, session.id, wrong) for _ in range(3)] == [(200, False)] * 3
    assert verify(client, session.id, code) == (410, False), "also the right one is too late"
    again, code = code_of(client)
    assert [verify(client, again.id, one) for one in (wrong, code)] == [(200, False), (200, True)]
    wait_for(lambda: len(server.told) == 1, "only the right one is told")


def test_only_the_page_of_the_model_server_may_ask(client: TestClient, server: ModelServer):
    def allowed(origin: str) -> str | None:
        asks = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
        return client.options("/verify", headers=asks).headers.get("access-control-allow-origin")

    assert allowed(server.url) == server.url
    assert allowed("https://evil.example") is None
    assert allowed("null") is None


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", b'{"session": "x", "code": "123456"}', b'{"session": "%s", "code": 123456}' % (b"0" * 32), b" " * 5000, b"\xff"],
)
def test_what_is_no_call_is_refused_without_quoting_it(client: TestClient, body: bytes):
    answer = client.post("/verify", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()) == (400, {"code": "bad_request"})


def test_a_user_may_have_everything_deleted(client: TestClient, server: ModelServer):
    session, _ = code_of(client, "ko")
    said = client.post("/forget?lang=ko").text
    assert "그림 4개" in said and "drawn-1" in said and "모델: 없음" in said
    method, path, headers, _ = server.told[0]
    assert (method, path) == ("DELETE", f"/otp/users/{session.user}")
    assert otp.equal(headers["X-OTP-MAC"], otp.forget_mac(SECRET, session.user, int(headers["X-OTP-Time"])))
    server.status = 503
    assert "nothing was deleted" in client.post("/forget?lang=en").text


def test_each_browser_is_a_user_of_its_own_and_codes_are_not_guessed_from_each_other(client: TestClient, server: ModelServer):
    (one, code), (two, other) = code_of(client), code_of(client)
    assert one.user == two.user and one.id != two.id
    client.cookies.clear()
    assert code_of(client)[0].user != one.user
    assert len({code, other, *(code_of(client)[1] for _ in range(5))}) > 5


def test_only_so_many_codes_are_open():
    desk = otp_demo.Desk()
    first, code = desk.new()
    for _ in range(otp_demo.MAX_SESSIONS):
        latest = desk.new()
    assert desk.verify(first, code) is None
    assert desk.verify(*latest) is True


def test_it_runs_as_mlops_up_starts_it(tmp_path: Path):
    port = free_port()
    own = {"MLOPS_HOME": str(tmp_path), "MLOPS_SERVE_URL": "http://127.0.0.1:1", "MLOPS_OTP_DEMO_PORT": str(port)}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLOPS_")} | own
    command = [sys.executable, "-m", "mlops_assets.otp_demo"]
    without = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert without.returncode != 0 and "MLOPS_OTP_SECRET" in without.stderr
    secret = up.kept_secret(tmp_path / "keys" / "otp_demo")
    assert len(secret) == 64 and up.kept_secret(tmp_path / "keys" / "otp_demo") == secret
    assert (tmp_path / "keys" / "otp_demo").stat().st_mode & 0o077 == 0
    with subprocess.Popen(command, env=environment | {"MLOPS_OTP_SECRET": secret}, stderr=subprocess.PIPE) as process:
        try:
            wait_for(lambda: up.answers(f"http://127.0.0.1:{port}/livez"), "the demo back-end answers")
        finally:
            process.terminate()
        assert process.wait(30) in (0, -signal.SIGTERM)
