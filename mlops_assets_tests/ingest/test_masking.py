"""What identifies a person is masked, in every way that people write it; dates, prices and scores stay."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_assets.ingest.masking import MASKS, mask


@pytest.mark.parametrize(
    ("raw", "masked"),
    [
        ("메일은 hong.gil-dong+a@mail.example.co.kr로", "메일은 [EMAIL]로"),
        ("a@b.com,c@d.kr", "[EMAIL],[EMAIL]"),
        ("010-1234-5678로 연락", "[PHONE]로 연락"),
        ("01012345678임", "[PHONE]임"),
        ("010 1234 5678", "[PHONE]"),
        ("010.1234.5678", "[PHONE]"),
        ("+82 10-1234-5678", "[PHONE]"),
        ("+821012345678", "[PHONE]"),
        ("(010)1234-5678", "[PHONE]"),
        ("011-234-5678", "[PHONE]"),
        ("02-123-4567에", "[PHONE]에"),
        ("02)1234-5678", "[PHONE]"),
        ("031-123-4567", "[PHONE]"),
        ("+82-2-123-4567", "[PHONE]"),
        ("070-1234-5678", "[PHONE]"),
        ("0505-123-4567", "[PHONE]"),
        ("０１０-１２３４-５６７８", "[PHONE]"),
        ("010\u200b1234\u200b5678", "[PHONE]"),
        ("𝟘𝟙𝟘-𝟙𝟚𝟛𝟜-𝟝𝟞𝟟𝟠", "[PHONE]"),
        ("900101-1234567", "[ID]"),
        ("9001011234567", "[ID]"),
        ("900101-3******", "[ID]"),
        ("1234-5678-9012-3456", "[CARD]"),
        ("1234 5678 9012 3456", "[CARD]"),
        ("국민 123456-04-123456 홍길동", "국민 [ACCOUNT] 홍길동"),
        ("신한 110-123-456789", "신한 [ACCOUNT]"),
        ("우리 1002-123-456789", "우리 [PHONE]"),
        ("농협 302-1234-5678-91", "농협 [PHONE]"),
        ("카카오 3333-01-1234567", "카카오 [ACCOUNT]"),
        ("계좌 11012345678901", "계좌 [ID]"),
        ("010 - 1234 - 5678", "[PHONE]"),
        ("010\u20141234\u20145678", "[PHONE]"),
        ("010\u22121234\u22125678", "[PHONE]"),
        ("010\u20111234\u20115678", "[PHONE]"),
        ("010ㅡ1234ㅡ5678", "[PHONE]"),
        ("010·1234·5678", "[PHONE]"),
        ("010/1234/5678", "[PHONE]"),
        ("010_1234_5678", "[PHONE]"),
        ("010  1234  5678", "[PHONE]"),
        ("010\u00a01234\u00a05678", "[PHONE]"),
        ("010. 1234. 5678", "[PHONE]"),
        ("02) 1234 - 5678", "[PHONE]"),
        ("02-1234567", "[PHONE]"),
        ("021234567", "[PHONE]"),
        ("+82 2 / 123 / 4567", "[PHONE]"),
        ("900101 - 1234567", "[ID]"),
        ("900101.1234567", "[ID]"),
        ("900101\u20143******", "[ID]"),
        ("1234 / 5678 / 9012 / 3456", "[CARD]"),
        ("신한 110 \u2013 123 \u2013 456789", "신한 [ACCOUNT]"),
        ("hong＠naver.com", "[EMAIL]"),
        ("hong＠naver．com", "[EMAIL]"),
    ],
)
def test_what_is_masked(raw: str, masked: str) -> None:
    assert mask(raw) == masked


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-21에 봄",
        "2026.11.21",
        "20261121",
        "2026-11-21 13:05:59",
        "1,234,567원",
        "12345원",
        "별점 10/10",
        "9.5점",
        "3-1로 이김",
        "1985년생 80-90년대",
        "1234-5678",
        "ㅋㅋㅋ 100%",
        "@닉네임",
        "a @ b",
        "007 시리즈 1-2-3편",
        "010",
        "5-6-7 8-9-10",
        "전화 119, 112",
        "0.1234",
        "1588-1234로 전화",
        "1592-1598년의 전쟁",
        "2021-11-20",
        "2021/11/20",
        "2021. 11. 20.",
        "2021 - 11 - 20 02:30",
        "2010-11-20 - 2021-11-25",
        "21.11.20 / 21.11.25",
        "보증금 100000/2000000",
        "1,200,000 / 3,400,000원",
        "100000.1234567",
        "021,234,567",
        "123456789",
        "02:30:10 - 03:40:20",
        "v1.10.2021 · 10.0.19041.1234",
        "192.168.100.200",
        "2002/2006",
        "2021·2022·2023",
        "ＫＢＳ＠",
    ],
)
def test_what_stays(text: str) -> None:
    assert mask(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "a" * 10**6 + " 123",
        "1" * 10**6 + "a",
        "a." * 500_000 + "@",
        "1-" * 500_000,
        "0 / " * 250_000,
        "010 - 1234 - 567 " * 60_000,
        "900101. " * 125_000,
    ],
)
def test_a_long_text_ends(text: str) -> None:
    assert len(mask(text)) <= len(text)


@given(st.text(alphabet="0123456789-. +()@a.가각/·_\u2014＠[]", max_size=40))
def test_masking_again_changes_nothing(text: str) -> None:
    assert mask(mask(text)) == mask(text)


@given(st.text(max_size=10), st.sampled_from(["010-1234-5678", "a@b.com", "900101-1234567"]), st.text(alphabet="가나다 !?", max_size=5))
def test_no_neighbour_hides_it(before: str, secret: str, after: str) -> None:
    assert secret not in mask(before + secret + after)


def test_the_patterns_are_in_the_language_that_python_java_and_rust_share() -> None:
    for _, pattern, replacement in MASKS:
        assert not re.search(r"\(\?[^:]|\\[bBdDwWsSAZGpP1-9]|[*+?}]\+", pattern), pattern
        assert "$" not in replacement and "\\" not in replacement
