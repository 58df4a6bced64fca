"""What identifies a person is masked, however it is written and whatever follows it; what only looks like a number stays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_assets.ingest.masking import mask

KEPT = [
    "2024-05-01 12:30에 봤는데 9.5점, 1,234,567원",
    "2013.01.01 2014.02.03",
    "0.5 1.5 2.5 3.5",
    "10 16까지 IQ 떨어지고 위험은 400%",
    "１등 👨\u200d👩\u200d👧",
    "3:1로 이김 ㅋㅋ @@",
]


@pytest.mark.parametrize("text", KEPT)
def test_what_names_nobody_stays_as_it_is(text: str) -> None:
    assert mask(text) == text


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("a.b+c@naver.com으로 보내", "[EMAIL]으로 보내"),
        ("번호는010-1234-5678입니다", "번호는[PHONE]입니다"),
        ("01012345678요", "[PHONE]요"),
        ("010 1234 5678", "[PHONE]"),
        ("+82 10-1234-5678", "[PHONE]"),
        ("02-123-4567 (031)123-4567", "[PHONE] [PHONE]"),
        ("+82-2-123-4567", "[PHONE]"),
        ("900101-1234567", "[ID]"),
        ("1234-5678-9012-3456", "[CARD]"),
        ("국민 123456-01-123456", "국민 [ACCOUNT]"),
        ("신한 110-123-456789로", "신한 [ACCOUNT]로"),
        ("카카오 3333-01-1234567", "카카오 [ACCOUNT]"),
        ("번호 ０１０－１２３４－５６７８", "번호 [PHONE]"),
        ("010\u200b1234\u200b5678", "[PHONE]"),
    ],
)
def test_what_names_somebody_is_masked(text: str, masked: str) -> None:
    assert mask(text) == masked


@pytest.mark.parametrize("text", ["우리 1002-123-456789", "02-123-45678901", "20101012345678"])
def test_no_end_of_a_longer_number_is_left(text: str) -> None:
    assert not any(character.isdigit() for character in mask(text))


@given(st.text(alphabet="가나@.-() 0123456789０１\u200bab+", max_size=60))
def test_masking_again_changes_nothing(text: str) -> None:
    assert mask(mask(text)) == mask(text)
