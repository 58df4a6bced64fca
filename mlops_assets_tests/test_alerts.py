"""Slack by token and by webhook, against a local server that speaks both; with neither, the whole message is in the log. Each of the
messages that people are promised arrives once, and none is lost while Slack is down."""

from __future__ import annotations

import html
import json
import logging
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs

import dagster as dg
import pytest
from sqlalchemy import text

from mlops_assets.lifecycle import outbox
from mlops_assets.monitoring import alerts
from mlops_assets.monitoring.alerts import notifier
from mlops_assets.settings import Settings, load_settings
from mlops_assets_tests.monitoring.watched import Watched, kinds, truths


class Slack(HTTPServer):
    """Takes `chat.postMessage` and webhooks; `refuse` makes it answer as Slack does when it will not."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.heard: list[tuple[str, str]] = []
        self.refuse = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Slack

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.headers["Content-Type"].startswith("application/json"):
            text = json.loads(body)["text"]
        else:
            text = parse_qs(body)["text"][0]
        if not self.server.refuse:
            assert not re.search("<[^>]*>", text), "Slack would read a link or a call for everybody"
            self.server.heard.append((self.path, html.unescape(text)))  # as people see it
        api = self.path.startswith("/api/")
        answer = (b'{"ok": false, "error": "not_in_channel"}' if self.server.refuse else b'{"ok": true, "ts": "1"}') if api else b"ok"
        self.send_response(403 if self.server.refuse and not api else 200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments: object) -> None: ...


@pytest.fixture
def slack() -> Iterator[Slack]:
    server = Slack()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


MESSAGE = "refused: sentiment nsmc-1: F1 0.812 < 0.850 (<!channel> & <object at 0x1>)\n최소값을 넘지 못해 모델 등록에 실패하였습니다."


@pytest.mark.parametrize("way", ["token", "webhook"])
def test_slack_is_told_and_a_refusal_by_slack_is_an_error(slack: Slack, tmp_path, way):
    given = {"slack_token": "xoxb-test"} if way == "token" else {"slack_webhook_url": f"{slack.url}/services/T/B/x"}
    tell = notifier(load_settings(home=tmp_path, **given), api=f"{slack.url}/api/")
    tell(MESSAGE)
    assert slack.heard == [("/api/chat.postMessage" if way == "token" else "/services/T/B/x", MESSAGE)]
    slack.refuse = True
    with pytest.raises(Exception, match="not_in_channel|403"):
        tell(MESSAGE)


def test_without_slack_the_message_is_logged_in_full(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        notifier(load_settings(home=tmp_path))(MESSAGE)
    assert MESSAGE in caplog.text


def test_a_process_whose_logging_nobody_set_up_shows_the_message_too():
    imports = "from mlops_assets.settings import load_settings; from mlops_assets.monitoring.alerts import notifier"
    code = f"{imports}; notifier(load_settings())({MESSAGE!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert MESSAGE in done.stderr


# --- what people are promised -----------------------------------------------------------------------------------------------------


@pytest.fixture
def through(slack: Slack, settings: Settings, monkeypatch: pytest.MonkeyPatch):
    """A function (way) -> settings with which messages go to the local Slack that way."""

    def set_up(way: str) -> Settings:
        monkeypatch.setattr(alerts, "SLACK_API", f"{slack.url}/api/")
        given = {"token": {"slack_token": "xoxb-test"}, "webhook": {"slack_webhook_url": f"{slack.url}/services/T/B/x"}, "none": {}}
        return settings.model_copy(update=given[way])

    return set_up


def live_a_day(world, instance: dg.DagsterInstance, settings: Settings) -> Watched:
    """All that people hear of, and every sensor twice: two trainings promoted, one refused, one broken, a bad champion, a rollback."""
    watched = Watched(world, instance, {"v1": 0.86, "v2": 0.9, "bad": 0.5, "torn": "broken"}, settings=settings)
    assert [watched.run("pipeline", version).success for version in ("v1", "v2", "bad", "torn")] == [True, True, False, False]
    truths(world, 2, right=1, wrong=3)
    for sensor in ("live", "failures", "live", "failures"):
        watched.tick(sensor)
    assert watched.run("rollback", reason="users say so").success
    for sensor in ("mirror", "mirror"):
        watched.tick(sensor)
    return watched


@pytest.mark.parametrize("way", ["token", "webhook", "none"])
def test_each_of_the_messages_arrives_once(slack: Slack, through, world, caplog, way):
    with dg.DagsterInstance.ephemeral() as instance, caplog.at_level(logging.WARNING):
        watched = live_a_day(world, instance, through(way))
    logged = [record.args[0] for record in caplog.records if record.name == "mlops_assets.alerts"]
    heard = [message for _, message in slack.heard]
    assert (heard, logged) == ((watched.outbox(), []) if way != "none" else ([], watched.outbox()))
    told = {m.split(":")[0]: m.splitlines() for m in watched.outbox()}
    counted = {"trained": 3, "promoted": 2, "refused": 1, "run failed": 1, "live accuracy below its limit": 1, "rolled back to": 1}
    assert kinds(watched.outbox()) == counted
    assert told["trained"] == ["trained: toy bad: F1 0.500 on validation (0.0 min, not resumed)", "모델 학습이 완료되었습니다."]
    assert told["refused"] == [
        "refused: toy bad: F1 0.500 < 0.800 (champion 0.900)",
        "최소값을 넘지 못해 모델 등록에 실패하였습니다. (F1 0.500 < 0.800 (champion 0.900))",
    ]
    assert "toy v2 (v2) by run:" in told["promoted"][0] and "better than the champion" in told["promoted"][0]
    assert told["promoted"][1].startswith("최소값을 넘겨 모델 등록에 성공하였고, 운영 모델로 승격되었습니다. (F1 0.900")
    assert told["rolled back to"][0].startswith("rolled back to: toy v1 (v1) by run:") and told["rolled back to"][0].endswith(
        ": users say so"
    )
    assert told["rolled back to"][1] == "이전 운영 모델로 되돌렸습니다."
    assert told["run failed"][0] == "run failed: toy_pipeline torn: ValueError: could not convert string to float: 'broken'"
    assert told["live accuracy below its limit"][0].endswith("toy v2: 0.250 < 0.500 (4 answers in 24 h)")


def test_a_training_that_was_resumed_says_so_and_the_same_bundle_again_says_nothing(world):
    import dataclasses

    from mlops_assets.lifecycle import pipeline
    from mlops_assets_tests.toy import toy_system

    with dg.DagsterInstance.ephemeral() as instance:
        watched = Watched(world, instance, {"v1": 0.86})
    system = toy_system()
    resumed = dataclasses.replace(system, train=lambda context: dataclasses.replace(system.train(context), resumed_from_step=120))
    for _ in range(2):
        pipeline.train(watched.platform, resumed, world.config, variant="", dataset_version="v1", run_id="r")
    (message,) = watched.outbox("trained")
    assert message.splitlines()[0] == "trained: toy v1: F1 0.860 on validation (0.0 min, resumed from step 120)"


def test_where_validation_has_not_what_decides_its_own_figures_are_told(world):
    from mlops_assets.lifecycle import pipeline
    from mlops_assets_tests.toy import toy_system

    with dg.DagsterInstance.ephemeral() as instance:
        watched = Watched(world, instance, {"v1": 0.86})
    promotion = world.config.promotion.model_copy(update={"metric": "code_success"})
    config = world.config.model_copy(update={"register_threshold": {"code_success": 0.5}, "promotion": promotion})
    pipeline.train(watched.platform, toy_system(), config, variant="", dataset_version="v1", run_id="r")
    (message,) = watched.outbox("trained")
    assert "F1 0.860" in message.splitlines()[0] and "no figure" not in message


def test_while_slack_is_down_nothing_is_lost_and_mlflow_still_hears(slack: Slack, through, world, engine):
    settings, mirrored = through("webhook"), []
    receivers = {"slack": lambda payload: notifier(settings)(payload["text"]), "mlflow.version": mirrored.append}
    with engine.begin() as connection:
        for number in range(150):  # more than are handed out at once
            outbox.tell(connection, f"message {number}")
        outbox.put(connection, "mlflow.version", {"system": "toy", "version": 1})
    slack.refuse = True
    assert outbox.deliver(engine, receivers) == 1 and mirrored == [{"system": "toy", "version": 1}] and slack.heard == []
    with engine.connect() as connection:
        waiting = connection.execute(text("SELECT tries, error FROM outbox WHERE delivered_at IS NULL ORDER BY id")).all()
    assert len(waiting) == 150 and waiting[0].tries == 1 and "403" in waiting[0].error and waiting[1].tries == 0
    slack.refuse = False
    assert [outbox.deliver(engine, receivers) for _ in range(3)] == [100, 50, 0]
    assert [message for _, message in slack.heard] == [f"message {number}" for number in range(150)]
