"""What clients see: answers, headers, errors with a code and a fix in two languages, records, and a process without heavy libraries."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from sqlalchemy import Engine, text

from mlops_assets.kinds.text.predict import MAX_BODY_BYTES
from mlops_assets.serving import app as serving
from mlops_assets.serving.answers import Answer, AnswerLog
from mlops_assets.settings import Settings, process_environment
from mlops_assets.store import ObjectStore
from mlops_assets_tests.factories import GOOD, World, config_of
from mlops_assets_tests.serving.bundles import probabilities
from mlops_assets_tests.serving.running import Running, database_away, promote, register, running, until


@pytest.fixture
def world(engine: Engine, settings: Settings, store: ObjectStore) -> World:
    return World(engine, settings, store, "sentiment", config_of("sentiment"))


@pytest.fixture
def server(world: World, settings: Settings, tmp_path: Path) -> Iterator[Running]:
    promote(world, register(world, tmp_path / "bundle"))
    with running(settings) as found:
        yield found


def test_every_error_has_a_code_and_a_fix(server: Running) -> None:
    def post(content: bytes, system: str = "sentiment") -> httpx.Response:
        return server.client.post(f"/predict/{system}", content=content)

    cases = [
        (post(b'{"inputs": ["x"]}', "nothing"), 404, "unknown_system", "system"),
        (post(b'{"inputs": ["x"'), 400, "bad_json", None),
        (post(b"[" * 100_000), 400, "bad_json", None),
        (post(b'{"inputs": ["x"], "inputs": ["y"]}'), 400, "bad_json", None),
        (post('{"inputs": ["한글"]}'.encode("cp949")), 400, "not_utf8", None),
        (post(b'["x"]'), 400, "no_inputs", "inputs"),
        (post(b'{"input": ["x"]}'), 400, "no_inputs", "inputs"),
        (post(b'{"inputs": "x"}'), 400, "not_a_list", "inputs"),
        (post(b'{"inputs": []}'), 400, "empty_inputs", "inputs"),
        (post(b'{"inputs": [1]}'), 422, "not_text", "inputs[0]"),
        (post(b'{"inputs": ["ok", " "]}'), 422, "empty_text", "inputs[1]"),
        (post('{"inputs": ["ok", "\u200b\u3164\\u200b"]}'.encode()), 422, "empty_text", "inputs[1]"),
        (post(b'{"inputs": ["\\ud800"]}'), 422, "not_text", "inputs[0]"),
        (post(json.dumps({"inputs": ["x"] * 1001}).encode()), 422, "too_many", "inputs"),
        (post(json.dumps({"inputs": ["x" * 10_001]}).encode()), 422, "too_long", "inputs[0]"),
        (post(b" " * (MAX_BODY_BYTES + 1)), 413, "too_large", None),
        (server.client.get("/predict/sentiment"), 405, "bad_method", None),
        (server.client.get("/nothing"), 404, "not_found", None),
        (server.client.get("/models/nothing"), 404, "unknown_system", "system"),
        (server.client.post("/models/sentiment/reload"), 403, "writes_disabled", None),
    ]
    for answer, status, code, field in cases:
        body = answer.json()
        assert (answer.status_code, body["code"], body["field"]) == (status, code, field)
        assert set(body) == {"code", "message", "message_ko", "field", "limit", "fix", "request_id"}
        assert body["message"]
        assert body["fix"]
        assert any("가" <= letter <= "힣" for letter in body["message_ko"])
        assert body["request_id"] == answer.headers["X-Request-ID"]
        assert "X-Model-Version" in answer.headers
        assert "Traceback" not in answer.text
    assert server.predict("좋은 영화").status_code == 200


def test_a_failure_inside_is_no_stack_trace(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    host = server.server.follower.host("sentiment")
    assert host is not None and host.current is not None

    def broken(texts: list[str]) -> list[dict[str, object]]:
        raise RuntimeError("secret detail")

    host.current.predictor.predict = broken  # type: ignore[method-assign]
    answer = server.predict("좋은 영화")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "secret" not in answer.text
    assert "secret detail" in caplog.text
    assert answer.json()["request_id"] in caplog.text


def test_no_champion_yet(settings: Settings) -> None:
    with running(settings) as server:
        answer = server.predict("좋은 영화")
        assert (answer.status_code, answer.json()["code"]) == (503, "no_champion")
        assert "mlops produce sentiment" in answer.json()["fix"]
        assert server.client.get("/readyz").status_code == 200
        assert server.client.get("/livez").status_code == 200


def test_no_champion_says_why(world: World, settings: Settings) -> None:
    world.registered("v1", {**GOOD, "accuracy": 0.605, "f1": 0.61}, content="a")
    world.registered("v2", {**GOOD, "f1": 0.5}, content="b")
    with running(settings) as server:
        answers = [server.predict("좋은 영화"), server.client.get("/models/sentiment")]
        for answer in answers:
            body = answer.json()
            assert (answer.status_code, body["code"]) == (503, "no_champion")
            assert body["message"] == "sentiment has no champion yet: two models were refused: F1 0.500 < 0.800; F1 0.610 < 0.800"
            assert "모델 2개가 기준을 넘지 못해 거절되었습니다." in body["message_ko"]
            assert "mlops history sentiment" in body["fix"] and "mlops land" not in body["fix"]
        world.registered("v3", {**GOOD, "f1": 0.55}, content="c")
        until(lambda: "three models were refused" in server.predict("좋은 영화").json()["message"])
        assert "mlops land tires" in server.predict("x", system="tires").json()["fix"], "of another system nothing is known"


@pytest.mark.parametrize(("given", "kept"), [("abc-1.2_3", True), ("a" * 64, True), ("a" * 65, False), ("a b", False), ("../x", False)])
def test_request_ids(server: Running, given: str, kept: bool) -> None:
    answer = server.client.post("/predict/sentiment", json={"inputs": ["좋은"]}, headers={"X-Request-ID": given})
    found = answer.headers["X-Request-ID"]
    assert (found == given) is kept
    assert answer.json()["request_id"] == found


def test_concurrent_requests_get_their_own_answers(server: Running) -> None:
    texts = ["좋은 영화", "별로", "최고", "나쁜 영화", "최고 좋은 영화"]

    def ask(number: int) -> None:
        mine = [texts[(number + i) % len(texts)] for i in range(number % 4 + 1)]
        answers = server.predict(*mine).json()["predictions"]
        assert [a["text"] for a in answers] == mine
        for one, answer in zip(mine, answers, strict=True):
            assert answer["probs"]["긍정"] == pytest.approx(probabilities(one, 1.0)[1], abs=1e-5)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(200)))


def test_every_answer_is_recorded(server: Running, engine: Engine) -> None:
    ids = {server.predict("좋은 영화", "별로").headers["X-Request-ID"] for _ in range(20)}
    twice = [server.client.post("/predict/sentiment", json={"inputs": ["별로"]}, headers={"X-Request-ID": "mine"}) for _ in range(2)]
    served = twice[0].json()

    def rows() -> list[tuple[object, ...]]:
        with engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text("SELECT request_id, version, bundle_sha256, inputs FROM answer"))]

    until(lambda: len(rows()) == 22)
    assert {row[0] for row in rows()} == ids | {"mine"}
    assert {row[1:3] for row in rows()} == {(served["version"], served["bundle_sha256"])}
    assert sorted(row[3] for row in rows()) == [1, 1] + [2] * 20


def test_answers_wait_on_the_disk_for_the_database(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    spool = tmp_path / "answers.jsonl"
    lost: list[int] = []
    recorder = AnswerLog(lambda: engine, spool, on_lost=lost.append)
    with database_away(str(settings.database_url)):
        for number in range(2500):
            recorder.record(Answer(f"r{number}", "sentiment", 1, "b", 1, "2026-01-01T00:00:00+00:00"))
        recorder.flush()
        assert recorder.spooled_bytes > 0
    # Another process after a kill: the file's last line was cut off, and half of it had been written to the database before.
    with spool.open("a") as file:
        file.write('["cut of')
    again = AnswerLog(lambda: engine, spool)
    again._insert([Answer(f"r{n}", "sentiment", 1, "b", 1, "2026-01-01T00:00:00+00:00") for n in range(1000)])
    again.flush()
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*), count(DISTINCT request_id) FROM answer")).one() == (2500, 2500)
    assert not spool.exists()
    assert lost == []


def test_metrics_and_page(server: Running) -> None:
    for _ in range(3):
        server.predict("좋은 영화", "별로")
    server.client.get("/nothing/at/all")
    metrics = server.client.get("/metrics").text
    assert 'mlops_inputs_total{system="sentiment",version="1"} 6.0' in metrics
    assert 'mlops_requests_total{route="/predict/{system}",status="200"} 3.0' in metrics
    assert 'mlops_served_version{channel="champion",system="sentiment"} 1.0' in metrics
    assert "/nothing/at/all" not in metrics
    page = server.client.get("/").text
    assert "영화 리뷰 감성 분석" in page
    assert "Sentiment of film reviews" in page
    assert "__DATA__" not in page
    assert "http" not in page.replace("http-equiv", ""), "the page loads nothing from elsewhere"


SERVE = "import sys; from mlops_assets.settings import load_settings; from mlops_assets.serving.app import serve; serve(load_settings())"
HEAVY = ("torch", "transformers", "dagster", "mlflow", "pandas", "ultralytics", "pyspark")


def test_a_serving_process_has_no_heavy_library_and_stops_cleanly(world: World, settings: Settings, tmp_path: Path) -> None:
    promote(world, register(world, tmp_path / "bundle"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = settings.model_copy(update={"serve_port": port, "threads": 1})
    code = f"import atexit, sys\natexit.register(lambda: print([m for m in {HEAVY!r} if m in sys.modules], flush=True))\n{SERVE}"
    environment = process_environment() | settings.environment()
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:

        def answered() -> bool:
            assert process.poll() is None, process.communicate()[1]
            try:
                answer = httpx.post(f"http://127.0.0.1:{port}/predict/sentiment", json={"inputs": ["좋은 영화"]}, timeout=10)
            except httpx.TransportError:
                return False
            return answer.status_code == 200

        until(answered, 60)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out.strip()) == (0, "[]")
    assert "Traceback" not in err
    with world.engine.connect() as connection:  # what waited in memory was written on the way out
        assert connection.execute(text("SELECT count(*) FROM answer")).scalar_one() >= 1


def test_the_other_internet_protocol_is_listened_on(settings: Settings) -> None:
    with socket.socket(socket.AF_INET6) as holder:
        holder.bind(("::1", 0))
        holder.listen()
        taken = settings.model_copy(update={"host": "::1", "serve_port": holder.getsockname()[1]})
        with pytest.raises(serving.PortTaken, match="Address already in use"):
            serving.serve(taken)


def test_a_taken_port_names_the_setting(settings: Settings) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = settings.model_copy(update={"serve_port": holder.getsockname()[1]})
        with pytest.raises(serving.PortTaken, match="MLOPS_SERVE_PORT"):
            serving.serve(taken)
