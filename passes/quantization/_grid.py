"""Grids: the numbers that a quantized weight may take, block by block, and the scales that can be stored for them.

Everywhere here a weight is ``w: [N, K] float32, row = output channel``, and a block is a run of ``block`` elements
of a row, the last of which may be shorter. A code ``q`` in 0..2**bits-1 stands for ``(q - zero) * scale``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

#: log8: a scale is the unit of its tensor times 2**-x, and takes a byte. Down from the unit: so many octaves, each in
#: so many steps. Near the largest scales of a tensor, where most are, steps are 1.4 %; 15.75 octaves below it ends.
OCTAVES = ((4, 48), (4, 8), (8, 4))

#: How far the scales of a tensor reach beyond the largest that it needs: a weight that others make up for may grow.
HEADROOM = 1.25


def _log_steps() -> np.ndarray:
    """Give every scale of log8 in ascending order, float32, in units."""
    exponents, below = [0.0], 0
    for octaves, per_octave in OCTAVES:
        exponents += [below + (1 + step) / per_octave for step in range(octaves * per_octave)]
        below += octaves
    steps: np.ndarray = np.exp2(-np.array(exponents[255::-1])).astype(np.float32)
    return steps


LOG_STEPS = _log_steps()

#: Octaves below the unit where the size of a step changes, and the code there.
_BENDS = np.cumsum([(0, 255), *((octaves, -octaves * per_octave) for octaves, per_octave in OCTAVES)], axis=0).T

#: How scales are stored: as they are, in half, or as a byte that indexes LOG_STEPS.
STORED = ("float32", "float16", "log8")


@dataclass(frozen=True)
class Scales:
    """The scales that can be stored for one tensor. All arithmetic is what the runtime does when it widens them.

    stored: one of STORED. unit: what LOG_STEPS is multiplied with, a float32; 1 where ``stored`` is not log8.
    dtype: what the kernel reads, float32 or float16.
    """

    stored: str
    unit: float = 1.0
    dtype: type[np.floating] = np.float32

    @classmethod
    def up_to(cls, largest: float, stored: str, dtype: type[np.floating] = np.float32) -> Scales:
        """Give scales that reach HEADROOM times ``largest``, or as far as ``dtype`` does."""
        if stored != "log8":
            return cls(stored, 1.0, dtype)
        unit = min(max(HEADROOM * largest, _smallest(dtype)), float(np.finfo(dtype).max))
        return cls(stored, float(np.float32(unit)), dtype)

    @cached_property
    def _steps(self) -> np.ndarray:
        """Every scale of log8 in ascending order; what ``dtype`` does not hold is the smallest that it does."""
        steps: np.ndarray = (LOG_STEPS * np.float32(self.unit)).astype(self.dtype).astype(np.float32)
        held: np.ndarray = np.maximum(steps, steps[steps >= _smallest(self.dtype)].min())
        return held

    @cached_property
    def _lowest(self) -> int:
        """The largest code of the smallest scale of log8."""
        return int(np.searchsorted(self._steps, self._steps[0], side="right")) - 1

    def encode(self, scale: np.ndarray) -> np.ndarray:
        """Store ``scale``: the nearest, in proportion, that there is; dtype uint8, float16 or float32."""
        if self.stored != "log8":
            kind = np.float16 if self.stored == "float16" else self.dtype
            held: np.ndarray = np.clip(scale, _smallest(kind), np.finfo(kind).max).astype(kind)
            return held
        below = -np.log2(np.maximum(scale, np.finfo(np.float32).tiny) / np.float32(self.unit))
        codes: np.ndarray = np.clip(np.rint(np.interp(below, *_BENDS)), self._lowest, 255).astype(np.uint8)
        return codes

    def decode(self, stored: np.ndarray) -> np.ndarray:
        """Give what was stored as float32."""
        if self.stored == "log8":
            stored = self._steps[stored]
        return stored.astype(self.dtype).astype(np.float32)

    def nearest(self, scale: np.ndarray) -> np.ndarray:
        """Round ``scale`` to what can be stored; float32, above 0."""
        return self.decode(self.encode(scale))

    def above(self, scale: np.ndarray) -> np.ndarray:
        """Give the smallest that can be stored and is not below ``scale``, or else the largest; float32, above 0."""
        stored = self.encode(scale)
        low = self.decode(stored) < scale
        if self.stored == "log8":
            return self.decode(np.where(low & (stored < 255), stored + 1, stored).astype(np.uint8))
        return self.decode(np.where(low, np.nextafter(stored, np.finfo(stored.dtype).max), stored))


def _smallest(dtype: type[np.floating]) -> float:
    """Give the smallest scale of a dtype: above 0, and in float32, where runtimes flush subnormals, a normal number."""
    info = np.finfo(dtype)
    return float(info.smallest_subnormal if dtype is np.float16 else info.tiny)


@dataclass(frozen=True)
class Grid:
    """``bits`` per weight in blocks of ``block`` (0: a whole row); symmetric puts zero at the middle code."""

    bits: int = 4
    block: int = 32
    symmetric: bool = False

    @property
    def top(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """The code of zero where the grid is symmetric."""
        return 1 << (self.bits - 1)

    def width(self, k: int) -> int:
        """Elements of a full block of a row of ``k``."""
        return self.block or max(k, 1)

    def blocks(self, k: int) -> int:
        """Blocks of a row of ``k``."""
        return -(-k // self.width(k))

    def spread(self, per_block: np.ndarray, k: int) -> np.ndarray:
        """Repeat ``per_block: [N, blocks]`` over the elements of each block: [N, K]."""
        return np.repeat(per_block, self.width(k), axis=1)[:, :k]

    def reaching(self, low: np.ndarray, high: np.ndarray, scales: Scales) -> tuple[np.ndarray, np.ndarray]:
        """Give the scale and the zero of a grid that reaches from ``low``, 0 or less, to ``high``, 0 or more."""
        scale = scales.above(self.reach(low, high))
        return scale, self.zero_for(low, high, scale)

    def zero_for(self, low: np.ndarray, high: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """Give the code of zero that centres the grid on ``low..high``.

        It is 0 for a block of zeros: a kernel may multiply codes and zeros apart, and only 0 leaves nothing over then.
        """
        if self.symmetric:
            return np.full_like(scale, self.middle)
        centred = np.where(low < high, (self.top - (low + high) / scale) / 2, 0)
        zero: np.ndarray = np.clip(np.rint(centred), 0, self.top)
        return zero

    def codes(self, w: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
        """Round ``w`` to codes 0..top, float32. scale, zero: of the shape of ``w``, or broadcast to it."""
        codes: np.ndarray = np.clip(np.rint(w / scale) + zero, 0, self.top)
        return codes

    def nearest(self, w: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
        """Round ``w`` to the values of the grid, float32."""
        values: np.ndarray = (self.codes(w, scale, zero) - zero) * scale
        return values

    def reach(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Give the smallest scale whose grid reaches from ``low`` to ``high``."""
        if self.symmetric:
            return np.maximum(high / max(self.top - self.middle, 1), -low / self.middle)
        reach: np.ndarray = (high - low) / self.top
        return reach


def limits(blocks: np.ndarray, axis: int = -1) -> tuple[np.ndarray, np.ndarray]:
    """Give the smallest and the largest element of each block, which lies along ``axis``; 0 is always between them."""
    return np.minimum(blocks.min(axis, initial=0), 0), np.maximum(blocks.max(axis, initial=0), 0)


@dataclass(frozen=True)
class Quantized:
    """A weight on a grid. codes: [N, K] uint8. scale: [N, blocks] float32, each one storable. zero: [N, blocks] uint8.

    ``zero`` holds ``grid.middle`` everywhere where the grid is symmetric.
    """

    grid: Grid
    scales: Scales
    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray

    @classmethod
    def joined(cls, parts: Iterable[Quantized]) -> Quantized:
        """Join a weight that comes in ``parts``, some rows each, in order."""
        found = list(parts)
        codes, scale, zero = (
            np.concatenate(each) for each in zip(*((p.codes, p.scale, p.zero) for p in found), strict=True)
        )
        return cls(found[0].grid, found[0].scales, codes, scale, zero)

    @property
    def nbytes(self) -> int:
        """Bytes that the codes, the scales and the zeros take at least."""
        zeros = 0 if self.grid.symmetric else self.zero.size
        scales = self.scales.encode(self.scale).nbytes
        return (self.codes.size + zeros) * self.grid.bits // 8 + scales

    def values(self) -> np.ndarray:
        """Give the weight that the codes stand for: [N, K] float32."""
        k = self.codes.shape[1]
        centred = self.codes.astype(np.float32) - self.grid.spread(self.zero, k)
        values: np.ndarray = centred * self.grid.spread(self.scale, k)
        return values
