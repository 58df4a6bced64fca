"""Telling people: Slack by bot token or by webhook; with neither, the message is logged in full.

Belongs here: the one way out for messages. Does not belong here: what is worth a message (the outbox is filled where things happen).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from mlops_assets.settings import Settings

logger = logging.getLogger("mlops_assets.alerts")

#: The Slack Web API; a test points it at a server that speaks it.
SLACK_API = "https://slack.com/api/"


def notifier(settings: Settings, *, api: str | None = None) -> Callable[[str], None]:
    """A function that sends one message and raises when it was not accepted (the outbox then keeps it)."""
    if settings.slack_token:
        return lambda message: _by_token(settings, api or SLACK_API, _escaped(message))
    if settings.slack_webhook_url:
        return lambda message: _by_webhook(str(settings.slack_webhook_url), _escaped(message))
    # A warning, for it must be seen: processes whose logging nobody set up show nothing below that.
    return lambda message: logger.warning("Slack is not set, the message in full: %s", message)


def _escaped(message: str) -> str:
    """Slack reads <...> as a link or a call for everybody: a reason that somebody typed, or an error, is neither."""
    return message.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _by_token(settings: Settings, api: str, message: str) -> None:
    from slack_sdk import WebClient

    WebClient(settings.slack_token, base_url=api, timeout=10).chat_postMessage(channel=settings.slack_channel, text=message)


def _by_webhook(url: str, message: str) -> None:
    import httpx

    status = httpx.post(url, json={"text": message}, timeout=10).status_code
    if status >= 400:
        raise OSError(f"the Slack webhook answered {status}")  # httpx's own error quotes the address, which is the secret
