"""What users confirmed of a one-time code: held in memory until the caller's back-end says that the code was right, then kept as single
digits, or dropped.

The back-end says so by a mac over the code, so that neither it nor we ever send or store one: the confirmed digits are right exactly when
our mac is the same. A session counts once, a wrong mac ends it, and a wrong mac, an unknown session and one of which nothing is held are
answered alike. Belongs here: the two calls and the deletion as plain values, the holding. Does not belong here: HTTP (`routes.py`), which
drawings are kept (`ingest/drawn.py`), what is signed (`mlops_assets/otp.py`).
"""

from __future__ import annotations

import base64
import binascii
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from mlops_assets import otp
from mlops_assets.images import BadImage, Limits, load
from mlops_assets.ingest import drawn
from mlops_assets.serving.errors import ApiError
from mlops_assets.settings import DrawingsSection, load_section

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from mlops_assets.serving.metrics import ServerMetrics
    from mlops_assets.settings import Settings
    from mlops_assets.store import ObjectStore

SYSTEM: Final = "digits"
#: Of one drawing: a page sends strokes, not photos.
PICTURE: Final = Limits(max_bytes=256 * 1024, max_pixels=1024 * 1024)
MAX_BODY_BYTES: Final = 3 * 1024**2
MAX_CALL_BYTES: Final = 4096
MAX_ASKED_AGAIN: Final = 100
#: Sessions that are remembered as used; each for as long as its token would be valid.
MAX_USED: Final = 100_000

CONFIRM_FIX: Final = (
    'Send UTF-8 JSON like {"session": "TOKEN", "save": true, "digits": "123456", "entries": [{"drawn": "<base64 of a PNG>", "first": "1", '
    '"asked_again": 0, "version": "3"}, ...]}, an entry per digit; without `save` neither `digits` nor `drawn`.'
)
VERIFIED_FIX: Final = 'Send UTF-8 JSON like {"session": "<id>", "mac": "<hex>"}, once per session, after its code was right.'
FORGET_FIX: Final = "Sign the user and the time as `forget_mac` of mlops_assets/otp.py does; send X-OTP-Time (unix seconds) and X-OTP-MAC."


@dataclass(frozen=True)
class Entry:
    """One digit as it was entered.

    Attributes:
        picture: of what was drawn, decoded; None when it was typed or is not to be kept.
        first: what the model said first.
        corrected: whether the confirmed digit is another one; None when that is not known.
        version: of the model that was asked; None when none was.
    """

    picture: Any
    first: str | None
    asked_again: int
    corrected: bool | None
    version: str | None


@dataclass(frozen=True, repr=False)
class Held:
    """What is kept of a session until it is verified. It has no repr."""

    user: str
    digits: str
    drawings: Sequence[drawn.Drawing]
    since: float


class Holding:
    """Sessions in memory: those that are used up, and what is held of some. Safe to call from several threads.

    Args:
        on_expired: called with how many drawings were dropped because nobody verified their code in time.
    """

    def __init__(self, seconds: float, most: int, on_expired: Callable[[int], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._most, self._on_expired, self._clock = seconds, most, on_expired, clock
        self._held: dict[str, Held] = {}
        self._used: dict[str, float] = {}
        self._lock = threading.Lock()

    def use(self, session: str, lives_seconds: float) -> str | None:
        """Use a session up. Returns why not: `session_used`, `too_busy`."""
        with self._lock:
            self._sweep()
            if session in self._used:
                return "session_used"
            if len(self._used) >= MAX_USED:
                return "too_busy"
            self._used[session] = self._clock() + lives_seconds
            return None

    def hold(self, session: str, user: str, digits: str, drawings: Sequence[drawn.Drawing]) -> bool:
        """False: too many sessions are held."""
        with self._lock:
            self._sweep()
            if len(self._held) >= self._most:
                return False
            self._held[session] = Held(user, digits, drawings, self._clock())
            return True

    def take(self, session: str) -> Held | None:
        """What is held of the session, which is held no more."""
        with self._lock:
            self._sweep()
            return self._held.pop(session, None)

    def waited(self, held: Held) -> float:
        """Seconds since it was held."""
        return self._clock() - held.since

    def put_back(self, session: str, held: Held) -> None:
        with self._lock:
            self._held[session] = held

    def drop(self, user: str) -> int:
        """Drop what is held of a user; returns how many drawings."""
        with self._lock:
            gone = [session for session, held in self._held.items() if held.user == user]
            return sum(len(self._held.pop(session).drawings) for session in gone)

    @property
    def drawings(self) -> int:
        """How many are held now."""
        with self._lock:
            self._sweep()
            return sum(len(held.drawings) for held in self._held.values())

    def _sweep(self) -> None:
        now = self._clock()
        for session in [session for session, until in self._used.items() if until <= now]:
            del self._used[session]
        late = [session for session, held in self._held.items() if held.since + self._seconds <= now]
        if late:
            self._on_expired(sum(len(self._held.pop(session).drawings) for session in late))


class Otp:
    """The calls. Every method blocks: call them on a thread. Nothing of what they are given reaches a log or an error's text."""

    def __init__(
        self, settings: Settings, connect: Callable[[], Engine], open_store: Callable[[], ObjectStore], metrics: ServerMetrics
    ) -> None:
        self._secret = settings.otp_secret
        self._secrets = settings.otp_secrets()
        self._connect, self._open_store, self._metrics = connect, open_store, metrics
        self.holding = Holding(
            settings.otp_hold_seconds, settings.otp_held_sessions, lambda count: metrics.drawings_dropped("expired", count)
        )
        self._configs = settings.configs
        self._public_keys = settings.public_keys_path

    @cached_property
    def _section(self) -> DrawingsSection:
        """Read when it is first needed: a mistake in one system's file must not keep a server of all systems from starting."""
        return load_section(DrawingsSection, SYSTEM, "drawings", self._configs)

    def confirm(self, content: Mapping[str, Any], is_loaded: Callable[[str], bool]) -> dict[str, Any]:
        """A user has confirmed a code. Counts, and holds the drawings if the user asked for it.

        Args:
            is_loaded: whether a model's version is; figures of others are counted together.

        Raises:
            ApiError: nothing is held or counted then, and the session is not used up.
        """
        secret = self._require_secret()
        session = _session(secret, content.get("session"))
        save = content.get("save")
        if not isinstance(save, bool):
            raise _bad("bad_save", "`save` is not true or false", "`save`는 true 또는 false여야 합니다.", "save")
        digits = _digits(content.get("digits"), session.length, save)
        entries = _entries(content.get("entries"), session.length, digits)
        drawings, dropped = _drawings(entries, digits)
        why = self.holding.use(session.id, session.expires - time.time() + 1)
        if why == "session_used" and not save and (withdrawn := self.holding.take(session.id)) is not None:
            # The page could not send the code, and its user has thought better of it: sent again, nothing is to be kept.
            self._metrics.drawings_dropped("withdrawn", len(withdrawn.drawings))
            return {"held": 0}
        if why == "session_used":
            fix = "A session counts once: ask the back-end for another."
            raise ApiError(409, "session_used", "this session was confirmed before", "이미 사용한 세션입니다.", fix, field="session")
        if why is not None:
            fix, headers = "Nothing was kept. Go on without keeping drawings.", {"Retry-After": "60"}
            raise ApiError(503, "too_busy", "too many sessions at this time", "지금은 처리할 수 없습니다.", fix, headers=headers)
        self._count(entries, is_loaded)
        if drawings and not self.holding.hold(session.id, session.user, digits or "", drawings):
            dropped["too_many_held"] += len(drawings)
            drawings = []
        for reason, count in dropped.items():
            self._metrics.drawings_dropped(reason, count)
        return {"held": len(drawings)}

    def verified(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """The back-end says that a session's code was right: its drawings become labelled data.

        Raises:
            ApiError: `nothing_held` for a wrong mac, an unknown session, one whose user keeps nothing, one whose time is over, one that was
                verified before. What was held under a wrong mac is dropped.
        """
        secret = self._require_secret()
        session, mac = content.get("session"), content.get("mac")
        if not isinstance(session, str) or not isinstance(mac, str):
            raise _bad("bad_call", "`session` and `mac` are not texts", "`session`과 `mac`이 필요합니다.", "session", VERIFIED_FIX)
        section = self._section
        held = self.holding.take(session)
        # The same work whether something is held or not.
        right = otp.equal(mac, otp.verified_mac(secret, session, held.digits if held is not None else "-"))
        if held is None or not right:
            if held is not None:
                self._metrics.drawings_dropped("wrong_mac", len(held.drawings))
            fix = "Nothing to do: the user may not want drawings kept, their time may be over, or the mac is wrong."
            raise ApiError(404, "nothing_held", "nothing that this mac verifies is held", "확인할 수 있는 항목이 없습니다.", fix)
        try:
            writer, waited = otp.pseudonym(secret, held.user), self.holding.waited(held)
            kept = drawn.accept(self._connect(), SYSTEM, writer, held.drawings, section, waited=waited)
        except Exception:
            self.holding.put_back(session, held)  # the back-end may call again
            raise
        self._metrics.drawings_stored(kept.stored)
        for reason, count in kept.dropped.items():
            self._metrics.drawings_dropped(reason, count)
        return {"stored": kept.stored, "dropped": sum(kept.dropped.values())}

    def forget(self, user: str, at: str, mac: str) -> dict[str, Any]:
        """Delete everything of a user; names what was trained on it. Raises ApiError."""
        secret = self._require_secret()
        in_time = at.isascii() and at.isdigit() and len(at) <= 12 and abs(time.time() - int(at)) <= otp.FORGET_SECONDS
        right = otp.equal(mac, otp.forget_mac(secret, user, int(at) if in_time else 0))
        if not (in_time and right):
            raise ApiError(403, "bad_signature", "the request is not signed, or too old", "서명이 올바르지 않습니다.", FORGET_FIX)
        held = self.holding.drop(user)
        self._metrics.drawings_dropped("forgotten", held)
        writers = [otp.pseudonym(one, user) for one in self._secrets]
        found = drawn.forget_writers(self._connect(), self._open_store(), SYSTEM, writers, self._public_keys)
        return {"drawings": found.drawings + held, "dataset_versions": list(found.dataset_versions), "models": list(found.models)}

    def _require_secret(self) -> str:
        if self._secret is None:
            fix = "Set MLOPS_OTP_SECRET, here and on the back-end that makes sessions."
            korean = "연습용 서버입니다. 아무것도 저장하지 않습니다."
            raise ApiError(409, "no_session_secret", "this server only practises: it knows no sessions", korean, fix)
        return self._secret

    def _count(self, entries: Sequence[Entry], is_loaded: Callable[[str], bool]) -> None:
        for entry in entries:
            if entry.version is not None:
                version = entry.version if is_loaded(entry.version) else "other"
                self._metrics.digit(version, entry.asked_again, entry.corrected)


def _session(secret: str, token: object) -> otp.Session:
    try:
        return otp.read_token(secret, token if isinstance(token, str) else "")
    except otp.BadToken as error:
        korean = "세션이 만료되었습니다." if error.code == "session_expired" else "올바르지 않은 세션입니다."
        raise ApiError(403, error.code, str(error), korean, "Ask the back-end for a new session.", field="session") from None


def _digits(digits: object, length: int, save: bool) -> str | None:
    """The confirmed code, which is sent only when drawings are to be kept."""
    if not save:
        if digits is not None:
            raise _bad(
                "not_to_be_sent", "`digits` is sent although nothing is to be kept", "저장하지 않을 때는 숫자를 보내지 않습니다.", "digits"
            )
        return None
    if not (isinstance(digits, str) and len(digits) == length and digits.isascii() and digits.isdigit()):
        raise _bad("wrong_digits", f"`digits` is not {length} digits", f"숫자 {length}자리가 필요합니다.", "digits", limit=length)
    return digits


def _entries(given: object, length: int, digits: str | None) -> list[Entry]:
    if not isinstance(given, list) or len(given) != length or not all(isinstance(one, dict) for one in given):
        raise _bad("wrong_entries", f"`entries` is not a list of {length}", f"항목이 {length}개 필요합니다.", "entries", limit=length)
    return [_entry(one, f"entries[{number}]", digits[number] if digits else None) for number, one in enumerate(given)]


def _entry(given: Mapping[str, Any], field: str, digit: str | None) -> Entry:
    picture, first, asked, corrected, version = (given.get(name) for name in ("drawn", "first", "asked_again", "corrected", "version"))
    asked = 0 if asked is None else asked
    sound = (
        (first is None or (isinstance(first, str) and len(first) == 1 and first in "0123456789"))
        and type(asked) is int
        and 0 <= asked <= MAX_ASKED_AGAIN
        and (corrected is None or isinstance(corrected, bool))
        and (version is None or (isinstance(version, str) and len(version) <= 20))
    )
    if not sound:
        raise _bad("wrong_entries", f"{field} is not as it should be", f"{field}: 형식이 올바르지 않습니다.", field)
    if picture is not None and digit is None:
        raise _bad(
            "not_to_be_sent", f"{field} has a drawing although nothing is to be kept", "저장하지 않을 때는 그림을 보내지 않습니다.", field
        )
    if digit is not None and first is not None:
        corrected = first != digit
    return Entry(None if picture is None else _picture(picture, f"{field}.drawn"), first, asked, corrected, version)


def _picture(given: object, field: str) -> Any:
    """A decoded PNG within its limits."""
    if not isinstance(given, str):
        raise _bad("not_base64", f"{field} is not a text", f"{field}: base64가 아닙니다.", field)
    if len(given) > PICTURE.max_bytes * 4 // 3 + 4:
        message, korean = f"{field} has more than {PICTURE.max_bytes} bytes", f"{field}: 그림이 너무 큽니다."
        raise ApiError(413, "too_large_file", message, korean, "Send the strokes alone.", field=field, limit=PICTURE.max_bytes)
    try:
        data = base64.b64decode(given, validate=True)
    except (binascii.Error, ValueError):
        raise _bad("not_base64", f"{field} is not base64", f"{field}: base64가 아닙니다.", field) from None
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise _bad("not_png", f"{field} is not a PNG", f"{field}: PNG가 아닙니다.", field)
    try:
        return load(data, limits=PICTURE)
    except BadImage as error:
        raise ApiError(422, error.code, f"{field}: {error.message}", f"{field}: {error.message_ko}", error.fix, field=field) from None


def _drawings(entries: Sequence[Entry], digits: str | None) -> tuple[list[drawn.Drawing], Counter[str]]:
    """What may be kept, and reason code -> how many may not. A drawing without ink spoils none of the others."""
    found: list[drawn.Drawing] = []
    dropped: Counter[str] = Counter()
    for entry, digit in zip(entries, digits or "", strict=False):
        if entry.picture is None:
            continue
        try:
            found.append(drawn.drawing(entry.picture, digit))
        except BadImage as error:
            dropped[error.code] += 1
    return found, dropped


def _bad(code: str, message: str, korean: str, field: str, fix: str = CONFIRM_FIX, limit: int | None = None) -> ApiError:
    return ApiError(422, code, message, korean, fix, field=field, limit=limit)
