"""Which pictures are alike: hashes that differ in few bits for pictures that differ little, the pairs, and the sets that pairs chain into.

Belongs here: what every system of pictures shares. Does not belong here: what follows from being alike (the systems' `data.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

#: Cells per side of the perceptual hash: 256 bits.
HASH_SIDE: Final = 16
#: Hashes compared with all others at once: of 100,000 pictures, 100 MB.
NEAR_BLOCK: Final = 128


def difference_hash(picture: Image.Image) -> np.ndarray:
    """256 bits (uint64 [4]): which of 16 x 16 cells are brighter than the one to their left. Size, quality and exposure barely matter."""
    import numpy as np
    from PIL import Image

    cells = np.asarray(picture.convert("L").resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BILINEAR), dtype=np.int16)
    return np.packbits(cells[:, 1:] > cells[:, :-1]).view(np.uint64)


def near_pairs(bits: np.ndarray, at_most: int) -> Iterator[tuple[int, int]]:
    """Pairs (i < j) of rows of `bits` (uint64 [n, words]) that differ in no more bits than `at_most`. Quadratic: a minute for 100,000."""
    import numpy as np

    for start in range(0, len(bits), NEAR_BLOCK):
        block = bits[start : start + NEAR_BLOCK]
        apart = np.zeros((len(block), len(bits) - start), dtype=np.uint16)
        for word in range(bits.shape[1]):
            apart += np.bitwise_count(block[:, word, None] ^ bits[None, start:, word])
        for i, j in zip(*np.nonzero(apart <= at_most), strict=True):
            if i < j:
                yield start + int(i), start + int(j)


class Union:
    """Disjoint sets of the numbers 0..n-1."""

    def __init__(self, size: int) -> None:
        self.parent = list(range(size))

    def find(self, item: int) -> int:
        while self.parent[item] != item:
            self.parent[item] = self.parent[self.parent[item]]
            item = self.parent[item]
        return item

    def join(self, one: int, other: int) -> None:
        low, high = sorted((self.find(one), self.find(other)))
        self.parent[high] = low
