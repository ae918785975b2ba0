"""Packing: a weight's codes, scales and zeros in as few bytes as they need, row after row.

Codes of 8 and 4 bits lie as the kernel reads them, the first of two in the low bits. Those of 3 and 2 bits lie so that
a few operations on whole bytes spread them to 4 bits (``_nbits.py``): four of 2 bits in bits 0-1, 4-5, 2-3 and 6-7 of
a byte; eight of 3 bits in bits 0-2 and 4-6 of three bytes, and the last two in their bits 3 and in their bits 7.
Zeros take 8 bits where codes do, and else 4.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from ._grid import Grid, Quantized, Scales

#: Codes that fill a whole number of bytes together, and how many bytes.
UNIT = {8: (1, 1), 4: (2, 1), 3: (8, 3), 2: (4, 1)}


@dataclass(frozen=True)
class Packed:
    """A weight of N rows of ``k`` as it is stored.

    codes: [N, bytes] uint8. scale: [N, blocks], as ``scales`` stores it. zero: [N, bytes] uint8; None where symmetric.
    """

    grid: Grid
    scales: Scales
    k: int
    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray | None

    @classmethod
    def of(cls, parts: Iterable[Quantized]) -> Packed:
        """Pack a weight that comes in ``parts``, some rows each, in order."""
        packed = [cls._of(part) for part in parts]
        first = packed[0]
        codes, scale = (np.concatenate(each) for each in zip(*((p.codes, p.scale) for p in packed), strict=True))
        zeros = [part.zero for part in packed if part.zero is not None]
        return replace(first, codes=codes, scale=scale, zero=np.concatenate(zeros) if zeros else None)

    @classmethod
    def _of(cls, part: Quantized) -> Packed:
        grid, scales = part.grid, part.scales
        zero = None if grid.symmetric else pack_zeros(part.zero, grid)
        return cls(grid, scales, part.codes.shape[1], pack(part.codes, grid.bits), scales.encode(part.scale), zero)

    @property
    def nbytes(self) -> int:
        """Bytes of everything that depends on the weight."""
        return self.codes.nbytes + self.scale.nbytes + (self.zero.nbytes if self.zero is not None else 0)


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack ``codes: [N, K] uint8`` into [N, bytes] uint8, each row filled up with zeros to whole bytes."""
    count, _ = UNIT[bits]
    codes = np.ascontiguousarray(codes, np.uint8)
    if short := -codes.shape[1] % count:
        codes = np.pad(codes, ((0, 0), (0, short)))
    fields = codes.reshape(len(codes), -1, count)
    if bits == 8:
        return codes
    if bits == 4:
        return _nibbles(fields)[..., 0]
    if bits == 2:
        rows: np.ndarray = _nibbles(fields[..., :2])[..., 0] | _nibbles(fields[..., 2:])[..., 0] << 2
        return rows
    pairs = _nibbles(fields)  # 0LLL0HHH four times; the last one's bits go into the gaps of the first three
    last = pairs[..., 3:]
    gaps = np.concatenate([last & 0x11, last >> 1 & 0x11, last >> 2 & 0x11], axis=-1) << 3
    three: np.ndarray = (pairs[..., :3] | gaps).reshape(len(codes), -1)
    return three


def pack_zeros(zero: np.ndarray, grid: Grid) -> np.ndarray:
    """Pack ``zero: [N, blocks] uint8`` as the kernel reads it; that of a whole row twice, as ``_nbits`` repeats it."""
    if grid.bits == 8:
        return zero
    return zero * np.uint8(0x11) if not grid.block else pack(zero, 4)


def _nibbles(pairs: np.ndarray) -> np.ndarray:
    """Put each two codes into a byte, the first one low."""
    bytes_: np.ndarray = pairs[..., ::2] | pairs[..., 1::2] << 4
    return bytes_
