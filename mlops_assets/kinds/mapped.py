"""An ONNX file whose int8 weights ORT maps from the disk instead of copying them: a third less memory, half the time to load.

ONNX knows tensors "in another file at an offset". The graph is rewritten in memory so that its large int8 weights are at their own offsets
in the very file that it was read from; nothing is written, and the bytes that are used stay those whose digest was verified.

Belongs here: the few fields of ONNX's protobuf that this needs (ModelProto.graph 7, GraphProto.initializer 5, TensorProto.data_type 2,
raw_data 9, external_data 13, data_location 14). Does not belong here: sessions (`text/predict.py`).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

#: Smaller tensors are not worth a mapping of their own.
MIN_BYTES = 64 * 1024
#: TensorProto.DataType UINT8 and INT8: of one byte each, so that any offset is well aligned.
_BYTES = frozenset({2, 3})
_VARINT, _LENGTH = 0, 2
_FIXED = {1: 8, 5: 4}


class _Field(NamedTuple):
    """`start` to `end` is the whole field, `body` where its content begins; `value` is a varint's value, else the content's length."""

    number: int
    wire: int
    start: int
    body: int
    end: int
    value: int


def graph_with_mapped_weights(path: Path) -> bytes:
    """The model's graph, its large int8 weights replaced by references into `path` (by file name: the session is told the folder).

    Raises:
        ValueError: the file is no protobuf.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        parts = []
        for field in _fields(data, 0, len(data)):
            is_graph = field.number == 7 and field.wire == _LENGTH
            parts.append(_delimited(7, _graph(data, field, path.name)) if is_graph else data[field.start : field.end])
        return b"".join(parts)


def _graph(data: mmap.mmap, graph: _Field, name: str) -> bytes:
    parts = []
    for field in _fields(data, graph.body, graph.end):
        tensor = _outside(data, field, name) if field.number == 5 and field.wire == _LENGTH else None
        parts.append(data[field.start : field.end] if tensor is None else _delimited(5, tensor))
    return b"".join(parts)


def _outside(data: mmap.mmap, tensor: _Field, name: str) -> bytes | None:
    """The tensor with a reference in place of its bytes; None when it is small or not of single bytes."""
    fields = list(_fields(data, tensor.body, tensor.end))
    raw = next((f for f in fields if f.number == 9), None)
    if raw is None or raw.value < MIN_BYTES or not any(f.number == 2 and f.value in _BYTES for f in fields):
        return None
    reference = b"".join(
        _delimited(13, _delimited(1, key.encode()) + _delimited(2, value.encode()))
        for key, value in (("location", name), ("offset", str(raw.body)), ("length", str(raw.value)))
    )
    kept = b"".join(data[f.start : f.end] for f in fields if f.number != 9)
    return kept + reference + _varint(14 << 3 | _VARINT) + _varint(1)


def _fields(data: mmap.mmap, position: int, end: int) -> Iterator[_Field]:
    while position < end:
        start = position
        key, position = _read_varint(data, position)
        wire, body, value = key & 7, position, 0
        if wire == _VARINT:
            value, position = _read_varint(data, position)
        elif wire == _LENGTH:
            value, body = _read_varint(data, position)
            position = body + value
        elif wire in _FIXED:
            position += _FIXED[wire]
        else:
            raise ValueError(f"byte {start}: not an ONNX file")
        if position > end:
            raise ValueError(f"byte {start}: the ONNX file ends too early")
        yield _Field(key >> 3, wire, start, body, position, value)


def _read_varint(data: mmap.mmap, position: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        if position >= len(data):
            raise ValueError("the ONNX file ends too early")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError(f"byte {position}: not an ONNX file")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _delimited(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | _LENGTH) + _varint(len(content)) + content
