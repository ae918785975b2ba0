"""Read MessagePack, in which code objects for AMD GPUs describe their kernels."""

from __future__ import annotations

import struct
from typing import Any

#: Numbers of a fixed size, by the byte that announces them.
_NUMBERS = {
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q",
    0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
}  # fmt: skip

_PLAIN = {0xC0: None, 0xC2: False, 0xC3: True}

#: What has a length of its own: the byte that announces it, what it is, and how the length is spelled.
_LONG = {
    0xC4: ("bytes", ">B"), 0xC5: ("bytes", ">H"), 0xC6: ("bytes", ">I"),
    0xD9: ("text", ">B"), 0xDA: ("text", ">H"), 0xDB: ("text", ">I"),
    0xDC: ("list", ">H"), 0xDD: ("list", ">I"), 0xDE: ("map", ">H"), 0xDF: ("map", ">I"),
}  # fmt: skip


def loads(data: bytes) -> Any:
    """Read the one value that ``data`` holds.

    Raises: ValueError where it is no MessagePack, or cut short.
    Source: the MessagePack specification; its extension types, which no code object uses, are left out.
    """
    try:
        value, end = _value(data, 0)
    except (IndexError, struct.error) as error:
        raise ValueError("MessagePack ends too soon") from error
    if end != len(data):
        raise ValueError(f"{len(data) - end} bytes follow the end of MessagePack")
    return value


def _value(data: bytes, at: int) -> tuple[Any, int]:
    """Give the value that starts at ``at``, and where it ends."""
    first, at = data[at], at + 1
    if first < 0x80 or first >= 0xE0:
        return first - (first >= 0xE0) * 256, at
    if first < 0x90:
        return _filled("map", first & 15, data, at)
    if first < 0xA0:
        return _filled("list", first & 15, data, at)
    if first < 0xC0:
        return _filled("text", first & 31, data, at)
    if first in _PLAIN:
        return _PLAIN[first], at
    if first in _NUMBERS:
        return _number(_NUMBERS[first], data, at)
    if first not in _LONG:
        raise ValueError(f"MessagePack holds a value of kind {first:#x}")
    kind, spelling = _LONG[first]
    count, at = _number(spelling, data, at)
    return _filled(kind, int(count), data, at)


def _number(spelling: str, data: bytes, at: int) -> tuple[Any, int]:
    [number] = struct.unpack_from(spelling, data, at)
    return number, at + struct.calcsize(spelling)


def _filled(kind: str, count: int, data: bytes, at: int) -> tuple[Any, int]:
    """Give what has ``count`` bytes or entries."""
    if kind in ("text", "bytes"):
        raw = data[at : at + count]
        if len(raw) < count:
            raise IndexError
        return raw.decode() if kind == "text" else raw, at + count
    entries = []
    for _ in range(count * (2 if kind == "map" else 1)):
        entry, at = _value(data, at)
        entries.append(entry)
    return (dict(zip(entries[::2], entries[1::2], strict=True)) if kind == "map" else entries), at
