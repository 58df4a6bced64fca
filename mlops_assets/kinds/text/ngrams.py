"""Character n-grams of texts as hashed numbers, the same in training and serving: numpy alone, a batch at a time.

A text is read twice: by its words, with a space before and after each (scikit-learn's `char_wb`), and without any space, as Korean is
spaced by taste. Belongs here: from texts to counts. Does not belong here: weights (`predict.py`), learning them (`linear.py`).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

#: An n-gram's number is below 2**BITS: of a million n-grams one in two thousand shares its number with another.
BITS: Final = 31
#: Of the polynomial that numbers n-grams, modulo 2**64; and what spreads its result over the numbers.
_BASE: Final = np.uint64(0x9E3779B97F4A7C15)
_SPREAD: Final = np.uint64(0xD6E8FEB86659FD93)
#: Letters of a text that are read. What is longer is cut off: a text of any length takes bounded memory.
READ_CHARACTERS: Final = 2_000
_SPACE: Final = ord(" ")


class Counts(NamedTuple):
    """The n-grams of some texts: those of text i are `numbers[ends[i]:ends[i + 1]]`.

    Attributes:
        ends: int64 [texts + 1].
        numbers: int32, of n-grams, each once a text, rising.
        counts: float32, how often the text has it.
    """

    ends: np.ndarray
    numbers: np.ndarray
    counts: np.ndarray


def count(texts: Sequence[str], longest: int) -> Counts:
    """Count the n-grams of 1 to `longest` letters of each text."""
    words = [unicodedata.normalize("NFKC", text[:READ_CHARACTERS]).casefold().split() for text in texts]
    readings = ([f" {' '.join(of_text)} " for of_text in words], [f" {''.join(of_text)} " for of_text in words])
    found = np.concatenate([_numbered(reading, longest, salt) for salt, reading in enumerate(readings)])
    keys, counts = np.unique(found, return_counts=True)
    ends = np.searchsorted(keys, np.arange(len(texts) + 1) << BITS)
    return Counts(ends, (keys & ((1 << BITS) - 1)).astype(np.int32), counts.astype(np.float32))


def _numbered(texts: Sequence[str], longest: int, salt: int) -> np.ndarray:
    """int64: (text << BITS) + number of each n-gram, in no order. Within an n-gram spaces stand at its ends alone."""
    of_text = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    letters = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    codes, space = letters.astype(np.uint64) + np.uint64(1), letters == _SPACE
    spaces = np.concatenate([[0], np.cumsum(space)])  # before each place
    rolling, parts = np.full(len(letters), salt, np.uint64), [np.empty(0, np.int64)]
    for size in range(1, longest + 1):
        last = len(letters) - size + 1
        if last <= 0:
            break
        rolling = rolling[:last] * _BASE + codes[size - 1 :]
        # Spaces stand at an n-gram's ends only; a space by itself says nothing.
        inside = spaces[size - 1 : size - 1 + last] - spaces[1 : 1 + last] if size > 1 else space.astype(np.int64)
        kept = (inside <= 0) & (of_text[:last] == of_text[size - 1 :])
        spread = ((rolling[kept] ^ (rolling[kept] >> np.uint64(29))) * _SPREAD) >> np.uint64(64 - BITS)
        parts.append((of_text[:last][kept] << BITS) + spread.astype(np.int64))
    return np.concatenate(parts)
