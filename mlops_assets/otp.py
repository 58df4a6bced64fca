"""One-time-code sessions: the token that the caller's back-end makes, and the macs with which it says that a code was verified or that a
user is to be forgotten.

The model server and the demo back-end share this file, and a caller may copy it: it needs the standard library alone. Belongs here: what
is signed, and how. Does not belong here: HTTP, what is kept of a session (`serving/otp.py`), drawings (`ingest/drawn.py`).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
import time
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import urlsplit

LENGTHS: Final = range(4, 9)
#: A token lives at most this long: a used session is remembered as long as its token would be valid.
MAX_SECONDS: Final = 3600
MAX_TOKEN_CHARACTERS: Final = 4096
MAX_USER_CHARACTERS: Final = 200
MAX_URL_CHARACTERS: Final = 2048
#: A signed request to forget somebody holds this long: recorded, it deletes nothing that is drawn later.
FORGET_SECONDS: Final = 300

_ID = re.compile(r"[0-9a-f]{32}")
LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


class BadToken(ValueError):
    """The token is not one that our secret signed (`bad_session`), or its time is over (`session_expired`). The message quotes nothing."""

    def __init__(self, code: Literal["bad_session", "session_expired"], message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, repr=False)
class Session:
    """What a token says. It has no repr: neither the id nor the user may reach a log.

    Attributes:
        id: 128 random bits, hex; used once.
        user: the caller's own name of the user, opaque to us.
        length: digits of the code.
        expires: unix seconds.
        verify_url: where the page sends the code.
    """

    id: str
    user: str
    length: int
    expires: int
    verify_url: str


def make_token(
    secret: str,
    user: str,
    length: int,
    verify_url: str,
    *,
    lives_seconds: int = 600,
    now: float | None = None,
    session_id: str | None = None,
) -> str:
    """The token for one code: `base64url(payload).base64url(HMAC-SHA256(secret, "session:" + base64url(payload)))`, without padding.

    Raises:
        ValueError: a field that `read_token` would refuse; the message says which.
    """
    if not 0 < lives_seconds <= MAX_SECONDS:
        raise ValueError(f"a token lives 1 to {MAX_SECONDS} seconds, not {lives_seconds}")
    expires = int(time.time() if now is None else now) + lives_seconds
    payload = {"id": session_id or secrets.token_hex(16), "user": user, "length": length, "expires": expires, "verify_url": verify_url}
    _session(payload)
    body = _encode(json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode())
    return f"{body}.{_encode(_mac(secret, f'session:{body}'))}"


def read_token(secret: str, token: str, *, now: float | None = None) -> Session:
    """The session of a token that `secret` signed and that is still valid.

    Raises:
        BadToken
    """
    body, _, signature = token.partition(".") if len(token) <= MAX_TOKEN_CHARACTERS else ("", "", "")
    try:
        given = _decode(signature)
    except ValueError:
        given = b""
    if not hmac.compare_digest(given, _mac(secret, f"session:{body}")):
        raise BadToken("bad_session", "the session is not one that this server's secret signed")
    try:
        session = _session(json.loads(_decode(body)))
    except ValueError:  # signed, and yet not what a session is: a back-end of another version
        raise BadToken("bad_session", "the session was signed, but is not as it should be") from None
    at = time.time() if now is None else now
    if session.expires <= at:
        raise BadToken("session_expired", "the session is over")
    if session.expires > at + MAX_SECONDS + 60:  # clocks differ a little
        raise BadToken("bad_session", f"the session would last longer than {MAX_SECONDS} seconds")
    return session


def verified_mac(secret: str, session_id: str, code: str) -> str:
    """What the back-end sends, hex, when `code` was the right one for the session. The code itself never travels back."""
    return _mac(secret, f"verified:{session_id}:{code}").hex()


def forget_mac(secret: str, user: str, at: int) -> str:
    """What the back-end sends, hex, with a request of unix second `at` to forget `user`; it holds `FORGET_SECONDS`."""
    return _mac(secret, f"forget:{at}:{user}").hex()


def pseudonym(secret: str, user: str) -> str:
    """All that is ever stored of a user, 32 hex digits: who has the secret and the user's name finds their drawings again, nobody else."""
    return _mac(secret, f"user:{user}").hex()[:32]


def equal(given: str, wanted: str) -> bool:
    """Whether two macs are equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), wanted.encode())


def _session(payload: Any) -> Session:
    """ValueError: a field is missing, of the wrong type or out of its bounds."""
    if not isinstance(payload, dict):
        raise ValueError("the payload is not an object")
    session, user, length, expires, url = (payload.get(name) for name in ("id", "user", "length", "expires", "verify_url"))
    if not (isinstance(session, str) and _ID.fullmatch(session)):
        raise ValueError("id: 32 hexadecimal digits")
    if not (isinstance(user, str) and 0 < len(user) <= MAX_USER_CHARACTERS):
        raise ValueError(f"user: 1 to {MAX_USER_CHARACTERS} characters")
    if type(length) is not int or length not in LENGTHS:
        raise ValueError(f"length: {LENGTHS.start} to {LENGTHS.stop - 1}")
    if type(expires) is not int:
        raise ValueError("expires: unix seconds")
    if not (isinstance(url, str) and _is_url(url)):
        raise ValueError("verify_url: https://..., or http:// on this machine, the host in ASCII (punycode)")
    return Session(session, user, length, expires, url)


def _is_url(url: str) -> bool:
    """The code is sent there: nowhere without encryption but to this machine itself."""
    parts = urlsplit(url)  # ValueError for what is none
    local = parts.scheme == "http" and parts.hostname in LOOPBACK
    # The address goes into a header of the page: a host's own characters alone (of other scripts: punycode), and a port that is one.
    plain = bool(re.fullmatch(r"[0-9A-Za-z.\-]+|[0-9a-f:.]+", parts.hostname or "")) and (parts.port or 0) >= 0
    return plain and len(url) <= MAX_URL_CHARACTERS and (parts.scheme == "https" or local)


def _mac(secret: str, message: str) -> bytes:
    return hmac.new(secret.encode(), message.encode("utf-8", "surrogatepass"), hashlib.sha256).digest()


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    """ValueError: not base64url. Padding may be there or not."""
    bare = text.rstrip("=")
    return base64.b64decode(bare + "=" * (-len(bare) % 4), altchars=b"-_", validate=True)
