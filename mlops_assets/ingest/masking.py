"""What identifies a person in a text, and what stands there instead: before anything leaves the region in which the source is trusted.

Belongs here: the patterns, in the part of the regular-expression language that Python, Java and Rust share (no look-around, no `\\b`: a
Korean particle follows a number without a space), so that Spark masks as Python does. Does not belong here: reading or storing.
"""

from __future__ import annotations

import re
from typing import Final

from mlops_assets.characters import INVISIBLE, JOINER

#: Full-width digits and dashes are typed to slip past filters.
_D: Final = "[0-9０-９]"
#: Every dash of Unicode's block, the minus sign, and what a Korean or Japanese keyboard gives for a dash.
_DASHES: Final = "-－﹣\u2010-\u2015\u2212ㅡー"
_DASH: Final = f"[{_DASHES}]"
_SPACES: Final = "[ \u00a0\u3000]"
_MARK: Final = f"[{_DASHES}.．·・･ㆍ/／_＿]"
#: Not a comma and not a colon: prices and times stay.
_SEPARATOR: Final = f"{_SPACES}{{0,2}}({_MARK}{_SPACES}{{0,2}})?"
_SEPARATED: Final = f"({_SPACES}{{1,2}}|{_SPACES}{{0,2}}{_MARK}{_SPACES}{{0,2}})"
#: Between the parts of an account number: other marks stand between years and scores.
_DASHED: Final = f"{_SPACES}{{0,2}}{_DASH}{_SPACES}{{0,2}}"
#: A day of birth. Where any mark may follow, six digits alone are a price as well: 100000/2000000.
_BORN: Final = f"{_D}{{2}}([0０][1-9１-９]|[1１][0-2０-２])([0０][1-9１-９]|[12１２]{_D}|[3３][01０１])"
#: What looks like a phone number in the middle of an account number goes as a whole. Bounded, as every pattern is that can fail late:
#: a text of a million letters must not take a million times a million steps.
_BEFORE: Final = rf"{_D}{{0,6}}"
_AFTER: Final = rf"{_D}*({_DASH}{_D}{{1,6}}){{0,2}}"
_COUNTRY: Final = rf"[+＋]?(82|８２){_SEPARATOR}"

#: (name, pattern, replacement) in the order in which they are applied. Rather too much is masked than too little. Companies' numbers
#: (1588-...) are no person's and look like years: they stay.
MASKS: Final = (
    ("email", r"[A-Za-z0-9._%+-]{1,64}[@＠][A-Za-z0-9-]{1,63}([.．][A-Za-z0-9-]{1,63})+", "[EMAIL]"),
    (
        "resident_number",
        rf"({_D}{{6}}[{_DASHES} ]?|{_BORN}{_SEPARATOR})[1-8１-８]({_D}{{6}}{_D}*|[*＊xX●○]{{6}})",
        "[ID]",
    ),
    ("card", rf"{_D}{{4}}{_SEPARATED}{_D}{{4}}{_SEPARATED}{_D}{{4}}{_SEPARATED}{_D}{{4}}", "[CARD]"),
    (
        "mobile",
        rf"{_BEFORE}({_COUNTRY}[(]?[0０]?|[(]?[0０])[1１][016789０１６７８９][)]?{_SEPARATOR}{_D}{{3,4}}{_SEPARATOR}{_D}{{4}}{_AFTER}",
        "[PHONE]",
    ),
    (
        "phone",
        rf"{_BEFORE}({_COUNTRY})?[(]?([0０][2２]|[0０][3-6３-６][1-5１-５]|[0０][7７][0０]|[0０][5５][0０]{_D}?)[)]?{_SEPARATOR}"
        rf"{_D}{{3,4}}{_SEPARATOR}{_D}{{4}}{_AFTER}",
        "[PHONE]",
    ),
    ("abroad", rf"[+＋](82|８２){_SEPARATOR}{_D}{{1,3}}{_SEPARATED}{_D}{{3,4}}{_SEPARATED}{_D}{{4}}", "[PHONE]"),
    (
        "account",
        rf"{_D}{{3,6}}{_DASHED}{_D}{{2,6}}{_DASHED}{_D}{{4,8}}({_DASH}{_D}{{1,3}})?"
        rf"|{_D}{{3}}{_DASHED}{_D}{{4,6}}{_DASHED}{_D}{{2,4}}{_DASHED}{_D}{{2,3}}|{_D}{{10}}{_D}*",
        "[ACCOUNT]",
    ),
)

_COMPILED: Final = tuple((re.compile(pattern), replacement) for _, pattern, replacement in MASKS)
#: A text without these needs no pattern (each needs three digits in a row): nine of ten comments.
_SUSPICIOUS: Final = re.compile(rf"[@＠]|{_D}{{3}}")
_SUSPICIOUS_PLAIN: Final = re.compile("@|[0-9]{3}")


#: What people hide numbers behind: mathematical, raised and lowered digits count as plain, invisible characters as nothing.
_DIGITS: Final = {
    **{start + digit: str(digit) for start in (0x2080, *range(0x1D7CE, 0x1D800, 10)) for digit in range(10)},
    **{ord(raised): str(digit) for digit, raised in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
}
_HIDDEN: Final = re.compile(f"[{INVISIBLE}{JOINER}]+")
_DISGUISED: Final = re.compile(f"[{INVISIBLE}{JOINER}{''.join(map(chr, _DIGITS))}]")


def mask(text: str) -> str:
    """`text` with e-mail addresses, resident, card, phone and account numbers replaced. Masking again changes nothing.

    A text that hides one behind other characters loses those; any other text keeps every character that is not masked.
    """
    if _DISGUISED.search(text):
        plain = _HIDDEN.sub("", text.translate(_DIGITS))
        found = _masked(plain)
        return text if found == plain else found
    return _masked(text)


def mask_plain(text: str) -> str:
    """`mask` of a text in which nothing hides: in NFKC, without invisible characters."""
    return _masked(text) if _SUSPICIOUS_PLAIN.search(text) else text


def _masked(text: str) -> str:
    if not _SUSPICIOUS.search(text):
        return text
    for pattern, replacement in _COMPILED:
        text = pattern.sub(replacement, text)
    return text
