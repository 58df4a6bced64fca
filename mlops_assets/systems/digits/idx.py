"""IDX, the format of MNIST and EMNIST: a magic number, the dimensions, then bytes; plain or gzipped.

Files come from strangers: no more is unpacked than the header promises. Belongs here: reading and writing the format. Does not belong here:
which files there are, what labels mean (`data.py`).
"""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mlops_assets.files import LFS_POINTER, LFS_REASON, MAX_POINTER_BYTES, is_lfs_pointer

if TYPE_CHECKING:
    import numpy as np

#: Unpacked: MNIST has 47 MB, EMNIST's largest part 547 MB.
MAX_BYTES: Final = 1024**3
_UNSIGNED_BYTES: Final = 0x08
_TYPES: Final = {0x08: "bytes", 0x09: "signed bytes", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"}
_GZIP: Final = b"\x1f\x8b"


class BadIdx(ValueError):
    """A file that is refused. `code` is stable: not_idx, lfs_pointer, truncated_idx, too_large_idx or not_28."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def read(chunks: Iterable[bytes], dimensions: int, *, side: int | None = None, max_bytes: int = MAX_BYTES) -> np.ndarray:
    """uint8 array with as many `dimensions` as the header must promise. What it may not promise is never unpacked.

    Args:
        side: of pictures: of each.

    Raises:
        BadIdx
    """
    import numpy as np

    stream: io.BufferedIOBase = io.BytesIO(b"".join(chunks))
    if is_lfs_pointer(stream.getvalue()[:MAX_POINTER_BYTES]):  # type: ignore[attr-defined]
        raise BadIdx(LFS_POINTER, f"is {LFS_REASON}")
    if stream.getvalue()[:2] == _GZIP:  # type: ignore[attr-defined]
        stream = gzip.GzipFile(fileobj=stream)
    try:
        magic = stream.read(4)
        if len(magic) < 4 or magic[:3] != bytes((0, 0, _UNSIGNED_BYTES)) or magic[3] != dimensions:
            raise BadIdx("not_idx", f"{_begins(magic)}, not bytes in {dimensions} dimensions")
        header = stream.read(4 * dimensions)
        if len(header) < 4 * dimensions:
            raise BadIdx("truncated_idx", "ends within its header")
        shape = struct.unpack(f">{dimensions}I", header)
        size = int(np.prod(shape, dtype=np.float64))
        if side is not None and shape[1:] != (side,) * (dimensions - 1):
            raise BadIdx("not_28", " x ".join(map(str, shape[1:])))
        if size > max_bytes:
            raise BadIdx("too_large_idx", f"promises {size} bytes, the limit is {max_bytes}")
        content = stream.read(size + 1)  # one more: a bomb behind the promised bytes is seen, not unpacked
    except (OSError, EOFError, zlib.error) as error:
        raise BadIdx("truncated_idx", f"is cut off or damaged: {error}") from None
    if len(content) != size:
        found = "more" if len(content) > size else str(len(content))
        raise BadIdx("truncated_idx", f"promises {size} bytes and holds {found}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _begins(magic: bytes) -> str:
    if len(magic) == 4 and magic[:2] == b"\0\0" and magic[2] in _TYPES and magic[3] < 16:
        return f"holds {_TYPES[magic[2]]} in {magic[3]} dimensions"
    return f"begins with {magic.hex() or 'nothing'}"


def write(path: Path, array: np.ndarray) -> None:
    """`array` (uint8) as IDX, gzipped when the name ends in .gz; the same bytes every time."""
    content = bytes((0, 0, _UNSIGNED_BYTES, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
