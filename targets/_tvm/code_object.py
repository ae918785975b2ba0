"""What a code object for an AMD GPU holds: its architecture, and what each of its kernels takes of the chip.

Source: LLVM, User Guide for AMDGPU Backend: ELF Code Object, Code Object V5 Metadata, Kernel Descriptor.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from . import msgpack

_MACHINE = 224
_OS_ABI = 64
_NOTE = 7
_SYMBOLS = 11
_METADATA = 32

#: Bits of the ELF header's flags that name the chip.
_CHIP = 0xFF

#: Bit of a kernel descriptor's properties that stands for waves of 32.
_WAVE_32 = 1 << 10

_DESCRIPTOR_BYTES = 64


@dataclass(frozen=True)
class Kernel:
    """One kernel, as its metadata and its descriptor say.

    vgprs, sgprs: registers of a thread, and of a wave. lds: bytes that the threads of a block share. scratch: bytes of
    memory that a thread takes for what finds no register; spilled: registers of each kind that went there. wave:
    threads that run in step. threads: of a block at most. described: vgprs, lds, scratch and wave as the descriptor has
    them, which is what the chip goes by; None where there is none.
    """

    name: str
    vgprs: int
    sgprs: int
    lds: int
    scratch: int
    spilled: int
    wave: int
    threads: int
    described: Described | None


@dataclass(frozen=True)
class Described:
    """What the chip sets aside for a kernel, by its descriptor; granules: of vector registers."""

    granules: int
    lds: int
    scratch: int
    wave: int


@dataclass(frozen=True)
class CodeObject:
    """A code object. machine: the number of the architecture in the ELF header. kernels: by the order of metadata."""

    machine: int
    version: tuple[int, int]
    kernels: tuple[Kernel, ...]


@dataclass(frozen=True)
class _Section:
    kind: int
    address: int
    offset: int
    size: int
    link: int


def read(code: bytes) -> CodeObject:
    """Read a linked code object.

    Raises: ValueError saying why ``code`` is none.
    """
    try:
        return _read(code)
    except struct.error as error:
        raise ValueError(f"a code object that is cut short: {error}") from error


def _read(code: bytes) -> CodeObject:
    if code[:6] != b"\x7fELF\x02\x01" or code[7] != _OS_ABI or struct.unpack_from("<H", code, 18)[0] != _MACHINE:
        raise ValueError("not an ELF file for an AMD GPU")
    [flags] = struct.unpack_from("<I", code, 48)
    sections = _sections(code)
    described = dict(_described(code, sections))
    for section in sections:
        if section.kind == _NOTE:
            metadata = _metadata(code[section.offset : section.offset + section.size])
            kernels = tuple(_kernel(entry, described) for entry in metadata["amdhsa.kernels"])
            major, minor = metadata["amdhsa.version"]
            return CodeObject(flags & _CHIP, (major, minor), kernels)
    raise ValueError("a code object without metadata")


def _sections(code: bytes) -> list[_Section]:
    [start] = struct.unpack_from("<Q", code, 40)
    size, count = struct.unpack_from("<HH", code, 58)
    found = []
    for number in range(count):
        _, kind, _, address, offset, length, link = struct.unpack_from("<IIQQQQI", code, start + number * size)
        found.append(_Section(kind, address, offset, length, link))
    return found


def _metadata(notes: bytes) -> dict[str, Any]:
    """Find the description of the kernels among ``notes``."""
    at = 0
    while at < len(notes):
        name, size, kind = struct.unpack_from("<III", notes, at)
        start = at + 12 + -(-name // 4) * 4
        if kind == _METADATA and notes[at + 12 : at + 12 + name] == b"AMDGPU\0":
            found: dict[str, Any] = msgpack.loads(notes[start : start + size])
            return found
        at = start + -(-size // 4) * 4
    raise ValueError("a code object without metadata")


def _described(code: bytes, sections: list[_Section]) -> Iterator[tuple[str, Described]]:
    """Give the kernel descriptors by the names of their symbols."""
    for table in sections:
        if table.kind != _SYMBOLS:
            continue
        names = sections[table.link].offset
        for at in range(table.offset, table.offset + table.size, 24):
            name, _, _, section, address, size = struct.unpack_from("<IBBHQQ", code, at)
            if size == _DESCRIPTOR_BYTES and 0 < section < len(sections):
                begin = names + name
                symbol = code[begin : code.index(b"\0", begin)].decode()
                home = sections[section]
                yield symbol, _descriptor(code, address - home.address + home.offset)


def _descriptor(code: bytes, at: int) -> Described:
    lds, scratch = struct.unpack_from("<II", code, at)
    [resources] = struct.unpack_from("<I", code, at + 48)
    [properties] = struct.unpack_from("<H", code, at + 56)
    return Described((resources & 63) + 1, lds, scratch, 32 if properties & _WAVE_32 else 64)


def _kernel(entry: dict[str, Any], described: dict[str, Described]) -> Kernel:
    return Kernel(
        entry[".name"],
        entry[".vgpr_count"],
        entry[".sgpr_count"],
        entry[".group_segment_fixed_size"],
        entry[".private_segment_fixed_size"],
        entry.get(".vgpr_spill_count", 0) + entry.get(".sgpr_spill_count", 0),
        entry[".wavefront_size"],
        entry[".max_flat_workgroup_size"],
        described.get(entry[".symbol"]),
    )
