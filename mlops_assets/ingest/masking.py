"""What identifies a person in a text, and what stands there instead: before anything leaves the region in which the source is trusted.

Belongs here: the patterns, in the part of the regular-expression language that Python, Java and Rust share (no look-around, no `\\b`: a
Korean particle follows a number without a space), so that Spark masks as Python does. Does not belong here: reading or storing.
"""

from __future__ import annotations

import re
from typing import Final

_SEPARATOR: Final = "[-. ]?"

#: (name, pattern, replacement) in the order in which they are applied. Rather too much is masked than too little.
MASKS: Final = (
    ("email", r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+", "[EMAIL]"),
    ("resident_number", r"[0-9]{6}[- ]?[1-8][0-9]{6}[0-9]*", "[ID]"),
    ("card", r"[0-9]{4}[- ][0-9]{4}[- ][0-9]{4}[- ][0-9]{4}", "[CARD]"),
    # Digits before and after go with it: without look-around a number within a longer one would leave its ends.
    (
        "mobile",
        rf"(\+?82[-. ]?\(?0?|[0-9]{{0,6}}\(?0)1[016789]\)?{_SEPARATOR}[0-9]{{3,4}}{_SEPARATOR}[0-9]{{4}}[0-9]*",
        "[PHONE]",
    ),
    ("phone", r"(\+?82[-. ]?\(?0?|[0-9]{0,6}\(?0)(2|[3-6][1-5]|70|50[0-9]?)\)?[-. ]?[0-9]{3,4}[-. ][0-9]{4}[0-9]*", "[PHONE]"),
    ("account", r"[0-9]{3,6}-[0-9]{2,6}-[0-9]{4,8}(-[0-9]{1,3})?|[0-9]{3}-[0-9]{4,6}-[0-9]{2,4}-[0-9]{2,3}|[0-9]{10,}", "[ACCOUNT]"),
)

_COMPILED: Final = tuple((re.compile(pattern), replacement) for _, pattern, replacement in MASKS)
#: A text without these needs no pattern: nine of ten comments.
_SUSPICIOUS: Final = re.compile(r"@|[0-9][-. ]?[0-9][-. )]?[0-9]")


#: What people hide numbers behind. Full width, mathematical, raised and lowered digits count as plain, invisible characters as nothing.
_DISGUISES: Final = {
    **{ord(wide): narrow for wide, narrow in zip("－．＠＋（）", "-.@+()", strict=True)},
    **{start + digit: str(digit) for start in (0xFF10, 0x2080, *range(0x1D7CE, 0x1D800, 10)) for digit in range(10)},
    **{ord(raised): str(digit) for digit, raised in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
    **dict.fromkeys((0xAD, 0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF, 0x180E, 0x3164), None),
}
_DISGUISED: Final = re.compile("[" + "".join(map(chr, _DISGUISES)) + "]")


def mask(text: str) -> str:
    """`text` with e-mail addresses, resident, card, phone and account numbers replaced. Masking again changes nothing.

    A text that hides one behind other characters loses those; any other text keeps every character that is not masked.
    """
    if _DISGUISED.search(text):
        plain = text.translate(_DISGUISES)
        found = _masked(plain)
        return text if found == plain else found
    return _masked(text)


def _masked(text: str) -> str:
    if not _SUSPICIOUS.search(text):
        return text
    for pattern, replacement in _COMPILED:
        text = pattern.sub(replacement, text)
    return text
