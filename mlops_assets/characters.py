"""Which characters a reader sees: one answer for landing, cleaning, groups, comments, review and the server.

Pure functions on text. Belongs here: classes of characters, written out, because Python, Java and Rust know different versions of Unicode.
Does not belong here: what a system makes of a text, masks (`ingest/masking.py`).
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

#: Joins emoji into one, and is nothing by itself.
JOINER: Final = "\u200d"
#: Inside [] of a regular expression of Python, Java or Rust. All that Unicode calls default-ignorable (zero widths, direction marks, soft
#: hyphen, byte-order mark, variation selectors, tags, Hangul fillers, combining grapheme joiner), but not U+200D; controls, the marks of
#: annotations, the place of an object that is not there, an empty note head, a filler of Khitan.
INVISIBLE: Final = (
    "\u0000-\u0008\u000e-\u001f\u007f-\u0084\u0086-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200c\u200e\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffc\U00016fe4\U0001bca0-\U0001bca3\U0001d159"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
#: The same for what is seen as a space: the blank of Braille too.
SPACE: Final = "\u0009-\u000d \u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u2800\u3000"

_HIDDEN: Final = re.compile(f"[{INVISIBLE}{JOINER}]+")
_SEEN: Final = re.compile(f"[^{INVISIBLE}{JOINER}{SPACE}]")


def is_blank(text: str) -> bool:
    """Whether a reader sees nothing of `text`."""
    return _SEEN.search(text) is None


def visible(text: str) -> str:
    """`text` as far as a reader sees it: no invisible characters, one space for each run of them, none at the ends."""
    return " ".join(_HIDDEN.sub("", text).replace("\u2800", " ").split())


def same_name(name: str) -> str:
    """The same for names that a reader takes for one, whatever their form, case and spaces."""
    return visible(unicodedata.normalize("NFKC", visible(name))).casefold()
