"""What `/otp` is made for: session, language, length; what it may load; and that its words and clips belong together."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mlops_assets.otp import make_token
from mlops_assets.serving.otp_page import FILES, PAGE, OtpPage, otp_page

SECRET = "a secret of tests, long enough to be one"
VERIFY = "https://bank.example:8443/codes/verify?a=1"


def token(**more: Any) -> str:
    return make_token(SECRET, "user </script><b>", 5, VERIFY, **more)


def data(page: OtpPage) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.html, re.DOTALL)
    assert found
    return dict(json.loads(found[1]))


def test_a_session_says_how_long_the_code_is_and_who_may_be_asked():
    page = otp_page(SECRET, {"session": token(), "lang": "en"}, "")
    assert page.status == 200
    shown = data(page)
    assert (shown["length"], shown["verify_url"], shown["problem"]) == (5, VERIFY, None)
    assert "connect-src 'self' https://bank.example:8443;" in page.headers["Content-Security-Policy"]
    assert "unsafe" not in page.headers["Content-Security-Policy"]
    assert (page.headers["Referrer-Policy"], page.headers["Cache-Control"]) == ("no-referrer", "no-store")
    assert '<html lang="en">' in page.html and "{{" not in page.html


@pytest.mark.parametrize(
    ("secret", "session", "status", "problem"),
    [
        (SECRET, "x.y", 403, "bad_session"),
        (SECRET, token()[:-2], 403, "bad_session"),
        (SECRET, token(now=1_000_000), 410, "session_expired"),
        ("another secret that is long enough too", token(), 403, "bad_session"),
        (None, token(), 503, "no_session_secret"),
    ],
)
def test_a_session_that_is_none_is_told_and_nobody_is_asked(secret: str | None, session: str, status: int, problem: str):
    page = otp_page(secret, {"session": session}, "")
    assert (page.status, data(page)["problem"]) == (status, problem)
    assert [data(page)[name] for name in ("session", "id", "verify_url")] == [None] * 3
    assert "connect-src 'self';" in page.headers["Content-Security-Policy"]
    assert all(problem in words["shown"] for words in data(page)["words"].values())


@pytest.mark.parametrize(
    ("query", "accepted", "language"),
    [
        ({}, "", "ko"),
        ({}, "fr;q=0.9, en-GB;q=0.8, ko;q=0.7", "en"),
        ({"lang": "en"}, "ko", "en"),
        ({"lang": "ko-KR"}, "en", "ko"),
        ({"lang": "<b>"}, "en", "en"),
        ({}, "*", "ko"),
    ],
)
def test_the_language_is_the_one_asked_for_else_the_browsers(query: dict[str, str], accepted: str, language: str):
    assert data(otp_page(None, query, accepted))["lang"] == language


@pytest.mark.parametrize(("asked", "length"), [("4", 4), ("8", 8), ("3", 6), ("9", 6), ("٤", 6), ("", 6), ("4.0", 6)])
def test_practice_may_choose_its_length(asked: str, length: int):
    shown = data(otp_page(SECRET, {"length": asked, "voice": "shout"}, ""))
    assert (shown["length"], shown["session"], shown["voice"]) == (length, None, None)


def test_both_languages_say_the_same_things():
    words = json.loads((FILES / "words.json").read_text(encoding="utf-8"))
    assert words.keys() == {"ko", "en"}
    for part in ("shown", "spoken"):
        assert words["ko"][part].keys() == words["en"][part].keys()
        for key in words["ko"][part]:
            placeholders = [set(re.findall(r"\{\w+\}", words[lang][part][key])) for lang in words]
            assert placeholders[0] == placeholders[1], key
    used = set(re.findall(r"\{\{(\w+)\}\}", PAGE.read_text(encoding="utf-8"))) - {"lang"}
    assert used <= words["ko"]["shown"].keys()


@pytest.mark.parametrize("lang", ["ko", "en"])
def test_the_clips_are_of_what_is_said_now(lang: str):
    """After a change of words.json: python deploy/make_clips.py."""
    spoken = json.loads((FILES / "words.json").read_text(encoding="utf-8"))[lang]["spoken"]
    clips = json.loads((FILES / "clips" / f"{lang}.json").read_text(encoding="utf-8"))
    assert {key: text for key, (_, _, text) in clips.items()} == spoken
    ends = [start + seconds for start, seconds, _ in clips.values()]
    assert all(end <= later[0] for end, later in zip(ends, list(clips.values())[1:], strict=False)), "clips do not overlap"
    assert (FILES / "clips" / f"{lang}.mp3").stat().st_size < 512 * 1024


def test_the_scripts_name_only_words_that_there_are():
    words = json.loads((FILES / "words.json").read_text(encoding="utf-8"))["ko"]
    scripts = "".join(Path(path).read_text(encoding="utf-8") for path in FILES.glob("*.js"))
    shown = set(re.findall(r'shown\("(\w+)"', scripts))
    assert shown and shown <= words["shown"].keys()
    said = {key for given in re.findall(r"(?:voice\.say|finish)\(\[(.*?)\]", scripts) for key in re.findall(r'"([a-z_]+)"', given)}
    assert {"removed", "code_is", "verified"} <= said <= words["spoken"].keys()
