"""Cutting the weights out of an ONNX file before protobuf sees it.

Protobuf copies every byte that it parses. Here the bytes of the weights stay in the file: each large ``raw_data`` of
an initializer is replaced by a reference to its place there, in the form that ONNX has for external data. Weights of
subgraphs are left alone: the ONNX checker refuses references in them, and they are small.
"""

from __future__ import annotations

from collections.abc import Callable
from mmap import mmap

import onnx

#: ``location`` of a weight that lies in the model file itself. No path can hold a NUL, so no file can have this name.
SAME_FILE = "\0"

#: Weights above this many bytes stay in the file.
LARGE = 1 << 10

_GRAPH, _INITIALIZER = 7, 5
_RAW_DATA, _EXTERNAL_DATA = 9, 13
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class MalformedError(ValueError):
    """The bytes are no protobuf message; ``needed`` is how long the file would have to be, if that is what is wrong."""

    def __init__(self, message: str, needed: int = 0) -> None:
        super().__init__(message)
        self.needed = needed


def without_weights(file: mmap) -> bytes:
    """Give the serialized ModelProto of ``file`` with a reference in place of each large weight.

    Raises: MalformedError.
    """
    return b"".join(_replace(file, 0, len(file), _GRAPH, _slim_graph))


def _replace(
    file: mmap, start: int, end: int, number: int, slim: Callable[[mmap, int, int], list[bytes]]
) -> list[bytes]:
    """Copy a message in pieces, with what ``slim`` makes of each large field ``number`` in place of the field."""
    pieces: list[bytes] = []
    kept = start  # what lies before it is in pieces
    at = start
    while at < end:
        found, kind, value, after = _field(file, at, end)
        if found == number and kind == _BYTES and after - value > LARGE:
            body = slim(file, value, after)
            pieces += [file[kept:at], _varint(number << 3 | _BYTES), _varint(sum(map(len, body))), *body]
            kept = after
        at = after
    return [*pieces, file[kept:end]]


def _slim_graph(file: mmap, start: int, end: int) -> list[bytes]:
    return _replace(file, start, end, _INITIALIZER, _slim_tensor)


def _slim_tensor(file: mmap, start: int, end: int) -> list[bytes]:
    fields = []
    at = start
    while at < end:
        number, _, value, after = _field(file, at, end)
        fields.append((number, at, value, after))
        at = after
    raw = [f for f in fields if f[0] == _RAW_DATA]
    if len(raw) != 1 or raw[0][3] - raw[0][2] <= LARGE or any(f[0] == _EXTERNAL_DATA for f in fields):
        return [file[start:end]]
    _, cut, offset, after = raw[0]
    place = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
    for key, text in (("location", SAME_FILE), ("offset", str(offset)), ("length", str(after - offset))):
        place.external_data.add(key=key, value=text)
    return [file[start:cut], file[after:end], place.SerializeToString()]


def _field(file: mmap, at: int, end: int) -> tuple[int, int, int, int]:
    """Read the field at ``at``: its number, its wire type, where its value begins, where it ends."""
    tag, value = _read_varint(file, at, end)
    number, kind = tag >> 3, tag & 7
    if kind == _VARINT:
        _, after = _read_varint(file, value, end)
    elif kind == _BYTES:
        length, value = _read_varint(file, value, end)
        after = value + length
    elif kind in (_FIXED64, _FIXED32):
        after = value + (8 if kind == _FIXED64 else 4)
    else:
        raise MalformedError(f"byte {at} has wire type {kind}, which ONNX does not use")
    if number == 0:
        raise MalformedError(f"byte {at} has field number 0")
    if after > end:
        raise MalformedError(f"field {number} at byte {at} runs to byte {after}, past {end}", needed=after)
    return number, kind, value, after


def _read_varint(file: mmap, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise MalformedError(f"a number runs past byte {end}", needed=end + 1)
        byte = file[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise MalformedError(f"the number before byte {at} is longer than 10 bytes")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
