"""Slack by token and by webhook, against a local server that speaks both; with neither, the whole message is in the log."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs

import pytest

from mlops_assets.monitoring.alerts import notifier
from mlops_assets.settings import load_settings


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
            self.server.heard.append((self.path, text))
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


MESSAGE = "refused: sentiment nsmc-1: F1 0.812 < 0.850\n최소값을 넘지 못해 모델 등록에 실패하였습니다."


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
