"""The page `/otp`, on which people draw or type a one-time code: which session and language it is made for, and what it may load.

Belongs here: the page's data and headers. Does not belong here: what is done with a confirmed code (`serving/otp.py`), reading digits.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from mlops_assets.otp import LENGTHS, BadToken, Session, read_token

PAGE = Path(__file__).parent / "pages" / "otp.html"
#: Scripts, styles and clips of the page, served under `/otp/files`.
FILES = Path(__file__).parent / "pages" / "otp"
LANGUAGES = ("ko", "en")
VOICES = ("own", "reader", "tones")
PRACTICE_LENGTH = 6


class OtpPage(NamedTuple):
    html: str
    status: int
    headers: dict[str, str]


def otp_page(secret: str | None, query: Mapping[str, str], accept_language: str) -> OtpPage:
    """The page for `?session=TOKEN`, or for practice without one; `lang` is ko or en, `voice` how it guides at first, `length` of practice.

    A token that is not valid gives a page that says what to do, with status 403 (`bad_session`), 410 (`session_expired`) or 503
    (`no_session_secret`: this server has no secret to check it with).
    """
    session: Session | None = None
    problem: str | None = None
    if token := query.get("session"):
        if secret:
            try:
                session = read_token(secret, token)
            except BadToken as error:
                problem = error.code
        else:
            problem = "no_session_secret"
    language = _language(query.get("lang"), accept_language)
    data = {
        "lang": language,
        "voice": query.get("voice") if query.get("voice") in VOICES else None,
        "length": session.length if session else _length(query.get("length")),
        "session": token if session else None,
        "id": session.id if session else None,
        "verify_url": session.verify_url if session else None,
        "problem": problem,
        "words": _words(),
    }
    status = {None: 200, "bad_session": 403, "session_expired": 410}.get(problem, 503)
    return OtpPage(_filled(language, data), status, _headers(session))


def _filled(language: str, data: dict[str, Any]) -> str:
    """The page in its language; the data as JSON that cannot end the element it stands in."""
    shown = _words()[language]["shown"] | {"lang": language}
    page = re.sub(r"\{\{(\w+)\}\}", lambda found: html.escape(shown[found[1]]), PAGE.read_text(encoding="utf-8"))
    return page.replace("__DATA__", json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"))


def _headers(session: Session | None) -> dict[str, str]:
    """Nothing is loaded from elsewhere, and besides this server only the caller's back-end is told anything. The address holds the token:
    no other site gets to see it, and no cache keeps the page."""
    caller = ""
    if session:
        parts = urlsplit(session.verify_url)
        caller = f" {parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    return {
        "Content-Security-Policy": (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
            f"connect-src 'self'{caller}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }


def _language(asked: str | None, accepted: str) -> str:
    """What was asked for, else the first of the browser's languages that we have, else Korean."""
    wanted = [asked or "", *(part.partition(";")[0].strip().lower() for part in accepted.split(","))]
    return next((language.partition("-")[0] for language in wanted if language.partition("-")[0] in LANGUAGES), LANGUAGES[0])


def _length(asked: str | None) -> int:
    return int(asked) if asked in {str(length) for length in LENGTHS} else PRACTICE_LENGTH


@cache
def _words() -> dict[str, Any]:
    """Everything that the page shows and says, by language."""
    return dict(json.loads((FILES / "words.json").read_text(encoding="utf-8")))
