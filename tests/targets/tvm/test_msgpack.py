"""MessagePack as its specification spells it, byte by byte."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polycast.targets._tvm.msgpack import loads

SPELLED: dict[str, tuple[bytes, Any]] = {
    "nil": (b"\xc0", None),
    "false": (b"\xc2", False),
    "true": (b"\xc3", True),
    "positive fixint": (b"\x7f", 127),
    "negative fixint": (b"\xe0", -32),
    "uint 8": (b"\xcc\xff", 255),
    "uint 16": (b"\xcd\x01\x00", 256),
    "uint 32": (b"\xce\x00\x01\x00\x00", 65536),
    "uint 64": (b"\xcf" + b"\xff" * 8, 2**64 - 1),
    "int 8": (b"\xd0\x80", -128),
    "int 16": (b"\xd1\x80\x00", -32768),
    "int 32": (b"\xd2\x80\x00\x00\x00", -(2**31)),
    "int 64": (b"\xd3\x80" + b"\x00" * 7, -(2**63)),
    "float 64": (b"\xcb\x3f\xf8" + b"\x00" * 6, 1.5),
    "fixstr": (b"\xa5.name", ".name"),
    "str 8": (b"\xd9\x20" + b"x" * 32, "x" * 32),
    "bin 8": (b"\xc4\x02\x00\xff", b"\x00\xff"),
    "fixarray": (b"\x92\x01\xc0", [1, None]),
    "array 16": (b"\xdc\x00\x10" + b"\x07" * 16, [7] * 16),
    "fixmap": (b"\x81\xa1a\x90", {"a": []}),
    "map 16": (b"\xde\x00\x01\xa1a\x80", {"a": {}}),
}


@pytest.mark.parametrize(("data", "value"), SPELLED.values(), ids=SPELLED.keys())
def test_value_is_read_as_the_specification_spells_it(data: bytes, value: object) -> None:
    assert loads(data) == value and type(loads(data)) is type(value)


@pytest.mark.parametrize("data", [data for data, _ in SPELLED.values() if len(data) > 1], ids=lambda data: data.hex())
def test_what_is_cut_short_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="ends too soon"):
        loads(data[:-1])


def test_what_follows_the_end_is_refused() -> None:
    with pytest.raises(ValueError, match="2 bytes follow"):
        loads(b"\xc0\x00\x00")


@given(st.lists(st.integers(0, 2**32 - 1), max_size=15), st.integers(0, 4))
def test_cut_anywhere_raises_no_other_error(numbers: list[int], cut: int) -> None:
    data = bytes([0x90 | len(numbers)]) + b"".join(b"\xce" + struct.pack(">I", number) for number in numbers)
    assert loads(data) == numbers
    if 0 < cut < len(data):
        with pytest.raises(ValueError, match="ends too soon"):
            loads(data[:-cut])
