"""Tokens and macs of one-time-code sessions: what is signed is read back, everything else is refused alike."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json

import pytest

from mlops_assets import otp

SECRET = "a secret of at least thirty-two characters"
URL = "https://bank.example/verify"
NOW = 1_800_000_000.0


def signed(payload: object, secret: str = SECRET) -> str:
    """A token by the words of the contract, not by our code."""
    body = base64.urlsafe_b64encode(json.dumps(payload).encode()).decode().rstrip("=")
    mac = hmac.new(secret.encode(), f"session:{body}".encode(), hashlib.sha256).digest()
    return f"{body}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"


def payload(**other: object) -> dict[str, object]:
    return {"id": "ab" * 16, "user": "u-1", "length": 6, "expires": int(NOW) + 60, "verify_url": URL} | other


def refused(token: str, secret: str = SECRET) -> str:
    with pytest.raises(otp.BadToken) as caught:
        otp.read_token(secret, token, now=NOW)
    return caught.value.code


def test_a_token_says_what_was_put_in_and_every_token_has_its_own_id():
    made = [otp.make_token(SECRET, "사용자", 6, URL, now=NOW) for _ in range(2)]
    one, other = (otp.read_token(SECRET, token, now=NOW) for token in made)
    assert (one.user, one.length, one.expires, one.verify_url) == ("사용자", 6, int(NOW) + 600, URL)
    assert len(one.id) == 32 and one.id != other.id
    assert otp.read_token(SECRET, signed(payload()), now=NOW).id == "ab" * 16  # as any back-end may make it
    assert one.id not in repr(one) and "사용자" not in repr(one)


def test_a_forged_or_damaged_token_is_refused():
    token = otp.make_token(SECRET, "u-1", 6, URL, now=NOW)
    body, _, mac = token.partition(".")
    forged = [
        "",
        ".",
        body,
        f"{body}.",
        f".{mac}",
        f"{body}.{mac[:-4]}",
        f"{body}x.{mac}",
        f"{body}.{mac}.{mac}",
        "한글." + mac,
        "\udc80." + mac,
        token + "=" * 5000,
        signed(payload(), "another secret of at least 32 characters"),
    ]
    assert {refused(one) for one in forged} == {"bad_session"}
    otp.read_token(SECRET, token, now=NOW)  # a control: only the damage was refused


@pytest.mark.parametrize(
    "other",
    [
        {"id": "ab"},
        {"id": "AB" * 16},
        {"id": 7},
        {"user": ""},
        {"user": "u" * 201},
        {"length": 3},
        {"length": 9},
        {"length": True},
        {"length": "6"},
        {"expires": 1e10},
        {"expires": int(NOW) + 86_400},
        {"verify_url": "http://bank.example/verify"},
        {"verify_url": "javascript:alert(1)"},
        {"verify_url": "https://"},
        {"verify_url": "https://인증.kr/v"},
        {"verify_url": "https://bank.example;script-src */v"},
        {"verify_url": "https://bank.example:port/v"},
        {"verify_url": None},
    ],
)
def test_a_signed_token_that_is_not_as_it_should_be_is_refused(other):
    assert refused(signed(payload(**other))) == "bad_session"


def test_the_time_of_a_token_ends():
    token = otp.make_token(SECRET, "u-1", 4, "http://127.0.0.1:8010/verify", lives_seconds=60, now=NOW)
    otp.read_token(SECRET, token, now=NOW + 59)
    with pytest.raises(otp.BadToken) as caught:
        otp.read_token(SECRET, token, now=NOW + 60)
    assert caught.value.code == "session_expired"
    with pytest.raises(ValueError, match="1 to 3600 seconds"):
        otp.make_token(SECRET, "u-1", 4, URL, lives_seconds=3601)
    with pytest.raises(ValueError, match="length: 4 to 8"):
        otp.make_token(SECRET, "u-1", 9, URL)


def test_macs_differ_in_purpose_session_code_and_secret():
    def macs(secret: str) -> list[str]:
        return [
            otp.verified_mac(secret, "ab" * 16, "123456"),
            otp.verified_mac(secret, "ab" * 16, "654321"),
            otp.verified_mac(secret, "cd" * 16, "123456"),
            otp.forget_mac(secret, "u-1", 7),
            otp.forget_mac(secret, "u-1", 8),
            otp.pseudonym(secret, "u-1"),
            otp.pseudonym(secret, "u-2"),
        ]

    found = macs(SECRET) + macs(SECRET[::-1])
    assert len(set(found)) == len(found)
    by_hand = hmac.new(SECRET.encode(), b"verified:" + b"ab" * 16 + b":123456", hashlib.sha256).hexdigest()
    assert otp.equal(by_hand, otp.verified_mac(SECRET, "ab" * 16, "123456"))
    assert not otp.equal("한글", by_hand) and not otp.equal("", by_hand)
