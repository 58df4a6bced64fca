"""A caller's back-end in small, so that one-time codes can be tried on one machine: it makes up a code, sends its user to `/otp` with a
signed session, verifies what comes back, and tells the model server by a mac that the code was right.

`mlops up --demo` starts it. Belongs here: what a real back-end would have to do, and nothing else. Does not belong here: what is signed
(`otp.py`), the page on which digits are drawn (`serving/otp_page.py`), anything of models. Codes live in memory only and are never logged.
"""

from __future__ import annotations

import hmac
import html
import json
import logging
import re
import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import httpx
from fastapi import BackgroundTasks, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.middleware.cors import CORSMiddleware

from mlops_assets import otp
from mlops_assets.settings import Settings, load_settings

log = logging.getLogger("mlops.otp_demo")

LENGTH = 6
#: A code may be tried so often, and lives so long.
TRIES, SECONDS = 3, 600
MAX_SESSIONS = 1000
MAX_BODY_BYTES = 4096
USER_COOKIE = "demo_user"

_SESSION, _CODE = re.compile("[0-9a-f]{32}"), re.compile("[0-9]{4,8}")

WORDS = {
    "ko": {
        "title": "일회용 인증번호 체험",
        "intro": "실제 서비스라면 이 번호를 문자나 앱으로 받습니다. 여기서는 이 페이지가 알려 줍니다.",
        "code": "인증번호",
        "copy": "복사",
        "hear": "번호 듣기",
        "draw": "이 번호를 그리거나 입력하러 가기",
        "new": "새 번호 받기",
        "done": "인증되었습니다",
        "done_text": "로그인한 것과 같습니다. 그린 숫자를 저장하도록 허용했다면 이제 학습에 쓸 수 있습니다.",
        "forget": "내가 그린 숫자를 모두 삭제",
        "forgotten": "삭제했습니다: 그림 {drawings}개. 그 그림으로 만든 데이터 버전: {dataset_versions}. 그것으로 학습한 모델: {models}.",
        "none": "없음",
        "away": "모델 서버에 연결할 수 없어 삭제하지 못했습니다. 잠시 뒤 다시 하세요.",
        "other": "English",
    },
    "en": {
        "title": "Try a one-time code",
        "intro": "A real service would send you this code by message or app. Here, this page tells you.",
        "code": "One-time code",
        "copy": "Copy",
        "hear": "Hear the code",
        "draw": "Go and draw or type this code",
        "new": "Get a new code",
        "done": "The code is verified",
        "done_text": "You would be signed in now. If you allowed it, what you drew can be learned from.",
        "forget": "Delete all digits that I drew",
        "forgotten": "Deleted: {drawings} drawings. Dataset versions made of them: {dataset_versions}. Models trained on those: {models}.",
        "none": "none",
        "away": "The model server cannot be reached: nothing was deleted. Try again shortly.",
        "other": "한국어",
    },
}

PAGE = """<!doctype html>
<html lang="{lang}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style nonce="{nonce}">
  :root {{ color-scheme: light dark; --ground: #fff; --ink: #111; --press: #0b3d91; --on-press: #fff; }}
  @media (prefers-color-scheme: dark) {{ :root {{ --ground: #121212; --ink: #f4f4f4; --press: #a8c7fa; --on-press: #04152f; }} }}
  body {{ background: var(--ground); color: var(--ink); font: 1.125rem/1.5 system-ui, "Noto Sans KR", sans-serif; margin: 0; }}
  main {{ max-width: 36rem; margin: 0 auto; padding: 1rem; }}
  input {{ font: inherit; font-size: 2rem; letter-spacing: .2em; width: 9em; max-width: 100%; min-height: 3rem; box-sizing: border-box;
    background: var(--ground); color: var(--ink); border: 2px solid currentColor; }}
  button, a {{ font: inherit; font-weight: 600; min-height: 3rem; display: inline-flex; align-items: center; box-sizing: border-box; }}
  button, a.main {{ padding: .4rem 1rem; border: 2px solid var(--press); border-radius: .4rem; background: var(--press);
    color: var(--on-press); text-decoration: none; cursor: pointer; }}
  a {{ color: var(--press); }}
  p {{ display: flex; flex-wrap: wrap; gap: .6rem; align-items: center; }}
  :focus-visible {{ outline: 4px solid var(--press); outline-offset: 3px; }}
</style>
</head>
<body><main>
<h1>{title}</h1>
{content}
<p><a href="?lang={other_lang}" lang="{other_lang}">{other}</a></p>
</main>
{script}
</body>
</html>
"""

CODE = """<p>{intro}</p>
<p><label for="code">{code}</label> <input id="code" readonly inputmode="none" value="{digits}">
<button type="button" id="copy">{copy}</button> <button type="button" id="hear" hidden>{hear}</button></p>
<p><a class="main" id="draw" href="{page}">{draw}</a></p>
<p><a href="/?lang={lang}">{new}</a></p>
"""

#: Only a voice of this device may say the code; where there is none the button stays away.
SCRIPT = """<script nonce="{nonce}">
const code = document.getElementById("code"), hear = document.getElementById("hear"), lang = document.documentElement.lang;
const voice = () => speechSynthesis.getVoices().find(one => one.localService === true && one.lang.toLowerCase().startsWith(lang));
const offer = () => { hear.hidden = !voice(); };
if ("speechSynthesis" in window) { offer(); speechSynthesis.addEventListener("voiceschanged", offer); }
hear.addEventListener("click", () => {
  const said = new SpeechSynthesisUtterance([...code.value].join(", "));
  said.voice = voice();
  said.lang = said.voice.lang;
  speechSynthesis.cancel();
  speechSynthesis.speak(said);
});
document.getElementById("copy").addEventListener("click", () => { code.select(); navigator.clipboard?.writeText(code.value); });
</script>"""


@dataclass(repr=False)
class Login:
    """One code that somebody was told. It has no repr."""

    code: str
    tries: int
    until: float


class Desk:
    """The codes that are open, in memory. Safe to call from several threads."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, Login] = OrderedDict()
        self._lock = threading.Lock()

    def new(self) -> tuple[str, str]:
        """(session id, code)."""
        session, code = secrets.token_hex(16), "".join(secrets.choice("0123456789") for _ in range(LENGTH))
        with self._lock:
            self._sweep()
            self._open[session] = Login(code, TRIES, time.monotonic() + SECONDS)
            while len(self._open) > MAX_SESSIONS:
                self._open.popitem(last=False)
        return session, code

    def verify(self, session: str, code: str) -> bool | None:
        """Whether the code is right, which ends the session; None: there is no such session, its time or its tries are over."""
        with self._lock:
            self._sweep()
            login = self._open.get(session)
            if login is None:
                return None
            right = hmac.compare_digest(login.code.encode(), code.encode())
            login.tries -= 1
            if right or login.tries == 0:
                del self._open[session]
            return right

    def _sweep(self) -> None:
        now = time.monotonic()
        for session in [session for session, login in self._open.items() if login.until <= now]:
            del self._open[session]


def create_app(secret: str, server_url: str, own_url: str) -> FastAPI:
    """The demo's own server.

    Args:
        secret: shared with the model server (`MLOPS_OTP_SECRET`).
        server_url: the model server, whose page `/otp` may ask this one.
        own_url: of this server, as the user's browser reaches it.
    """
    app, desk = FastAPI(title="one-time-code demo", docs_url=None, redoc_url=None, openapi_url=None), Desk()
    app.add_middleware(CORSMiddleware, allow_origins=[server_url], allow_methods=["POST"], allow_headers=["content-type"])

    @app.get("/livez")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/")
    async def code(request: Request) -> Response:
        lang, user = _language(request), request.cookies.get(USER_COOKIE) or secrets.token_hex(8)
        session, digits = desk.new()
        token = otp.make_token(secret, user[: otp.MAX_USER_CHARACTERS], LENGTH, f"{own_url}/verify?lang={lang}", session_id=session)
        page = f"{server_url}/otp?{urlencode({'session': token, 'lang': lang})}"
        answer = _page(lang, "title", CODE, digits=digits, page=page, script=SCRIPT)
        answer.set_cookie(USER_COOKIE, user, httponly=True, samesite="lax", max_age=365 * 24 * 3600)
        return answer

    @app.post("/verify")
    async def verify(request: Request, later: BackgroundTasks) -> Response:
        given = await _given(request)
        if given is None:
            return JSONResponse({"code": "bad_request"}, 400)
        session, digits = given
        right = desk.verify(session, digits)
        if right is None:
            return JSONResponse({"verified": False}, 410)
        if not right:
            return JSONResponse({"verified": False})
        later.add_task(tell, server_url, session, otp.verified_mac(secret, session, digits))
        return JSONResponse({"verified": True, "next": f"{own_url}/done?lang={_language(request)}"}, background=later)

    @app.get("/done")
    async def done(request: Request) -> Response:
        return _page(_language(request), "done", DONE)

    @app.post("/forget")
    def forget(request: Request) -> Response:
        lang, user, now = _language(request), request.cookies.get(USER_COOKIE) or "", int(time.time())
        signed = {"X-OTP-Time": str(now), "X-OTP-MAC": otp.forget_mac(secret, user, now)}
        try:
            answer = httpx.delete(f"{server_url}/otp/users/{quote(user, safe='')}", headers=signed, timeout=30, trust_env=False)
            answer.raise_for_status()
        except httpx.HTTPError:
            return _page(lang, "forget", SAID, said=WORDS[lang]["away"])
        return _page(lang, "forget", SAID, said=_deleted(lang, answer.json()))

    @app.get("/forget")
    async def not_again() -> Response:
        """Where a reload after a deletion, or a change of language there, leads."""
        return RedirectResponse("/done")

    return app


DONE = """<p>{done_text}</p>
<form method="post" action="/forget?lang={lang}"><p><button>{forget}</button></p></form>
<p><a href="/?lang={lang}">{new}</a></p>
"""

SAID = """<p role="status">{said}</p>
<p><a href="/?lang={lang}">{new}</a></p>
"""


def tell(server_url: str, session: str, mac: str) -> None:
    """Tell the model server that the session's code was right. 404 is no mistake: most people keep no drawings."""
    for wait in (0.0, 1.0, 3.0):
        time.sleep(wait)
        try:
            body = {"session": session, "mac": mac}
            if httpx.post(f"{server_url}/otp/verified", json=body, timeout=10, trust_env=False).status_code < 500:
                return
        except httpx.HTTPError:
            continue
    log.warning("the model server could not be told of a verified code: its drawings are dropped after their time")


def _page(lang: str, title: str, content: str, *, script: str = "", **values: str) -> HTMLResponse:
    """A page in a language; values are escaped, templates are ours."""
    nonce, other_lang = secrets.token_urlsafe(12), "en" if lang == "ko" else "ko"
    words = WORDS[lang] | {"lang": lang}
    filled = content.format_map({name: html.escape(text) for name, text in (words | values).items()})
    shown = {"title": words[title], "other": words["other"], "other_lang": other_lang, "lang": lang, "nonce": nonce}
    script = script.replace("{nonce}", nonce)
    return HTMLResponse(
        PAGE.format_map(shown | {"content": filled, "script": script}),
        headers={
            "Content-Security-Policy": (
                f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; base-uri 'none'; "
                "form-action 'self'; frame-ancestors 'none'"
            ),
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
        },
    )


def _deleted(lang: str, answer: dict[str, Any]) -> str:
    names = {key: ", ".join(map(str, answer[key])) or WORDS[lang]["none"] for key in ("dataset_versions", "models")}
    return WORDS[lang]["forgotten"].format(drawings=answer["drawings"], **names)


def _language(request: Request) -> str:
    asked = request.query_params.get("lang") or request.headers.get("accept-language", "")
    return "en" if asked.strip().lower().startswith("en") else "ko"


async def _given(request: Request) -> tuple[str, str] | None:
    """(session id, code) of the page's JSON; None: it is not that."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            return None
    try:
        content = json.loads(body)
        session, code = content["session"], content["code"]
    except (ValueError, TypeError, KeyError):
        return None
    sound = isinstance(session, str) and isinstance(code, str) and _SESSION.fullmatch(session) and _CODE.fullmatch(code)
    return (session, code) if sound else None


def main(settings: Settings | None = None) -> None:
    """Run until a signal."""
    from mlops_assets import limits
    from mlops_assets.guard import Guard
    from mlops_assets.supervise import listen

    settings = settings or load_settings()
    own_url, page = f"http://{settings.reached_at}:{settings.otp_demo_port}", settings.require("serve_url")
    app = Guard(create_app(settings.require("otp_secret"), page, own_url), settings, origins=[page])
    listener = listen(settings.host, settings.otp_demo_port, "MLOPS_OTP_DEMO_PORT")
    limits.run(app, listener, limits.Limits.of(settings, MAX_BODY_BYTES), ws="none")


if __name__ == "__main__":
    main()
