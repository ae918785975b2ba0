"""Histogram: how often which magnitude occurs, in one pass and constant memory, with no range known beforehand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

#: Bins on each side of zero. The larger side of the data always reaches past half of them, so that 2048 bins or more
#: lie between zero and the largest magnitude.
HALF = 4096

#: Of the finest bins: 2 ** -161 puts the smallest float32, 2 ** -149, inside.
_FINEST = -161

#: Of the finest bins whose width has a float32 as its inverse.
_FINEST_FLOAT32 = -126


@dataclass
class Histogram:
    """Counts of signed values in ``2 * HALF`` bins of width ``2 ** exponent``; zero is the left edge of bin ``HALF``.

    counts: [2 * HALF] int64; bin ``i`` holds the values in ``[i - HALF, i - HALF + 1) * width``. A value that lies
    outside doubles the width as often as it takes, which merges pairs of bins and so loses and invents nothing: the
    result depends on the values alone, neither on their order nor on how they were cut into arrays.
    """

    exponent: int = _FINEST
    counts: np.ndarray = field(default_factory=lambda: np.zeros(2 * HALF, np.int64), repr=False)

    @property
    def width(self) -> float:
        """Width of a bin."""
        return float(np.ldexp(1.0, self.exponent))

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    @property
    def edges(self) -> np.ndarray:
        """Edges of the bins: [2 * HALF + 1] float64, ascending."""
        return np.ldexp(np.arange(-HALF, HALF + 1, dtype=np.float64), self.exponent)

    def add(self, array: np.ndarray) -> None:
        """Count the finite values of ``array``, of any shape and float dtype."""
        flat = array.ravel()
        if not flat.size:
            return
        largest = max(float(flat.max()), -float(flat.min()))
        if not np.isfinite(largest):
            self.add(flat[np.isfinite(flat)])
            return
        self.coarsen(_exponent_for(largest))
        # In float32 scaling up by a power of two is exact; scaling down would round the smallest numbers to zero.
        exact = flat.dtype == np.float32 and _FINEST_FLOAT32 <= self.exponent <= 0
        dtype = np.float32 if exact else np.float64
        scaled = np.multiply(flat, np.ldexp(1.0, -self.exponent), dtype=dtype)
        np.floor(scaled, out=scaled)
        scaled += HALF
        self.counts += np.bincount(scaled.astype(np.intp), minlength=2 * HALF)

    def coarsen(self, exponent: int) -> None:
        """Double the width until it is at least ``2 ** exponent``: pairs of bins become one, exactly."""
        doublings = exponent - self.exponent
        if doublings <= 0:
            return
        at = np.flatnonzero(self.counts)
        merged = ((at - HALF) >> min(doublings, 62)) + HALF
        counts = np.zeros_like(self.counts)
        np.add.at(counts, merged, self.counts[at])
        self.counts, self.exponent = counts, exponent

    def merge(self, other: Histogram) -> None:
        """Count what ``other`` counted as well; ``other`` stays as it is."""
        theirs = Histogram(other.exponent, other.counts)
        theirs.coarsen(self.exponent)
        self.coarsen(theirs.exponent)
        self.counts += theirs.counts

    def percentile(self, percent: float) -> float:
        """Give the value that ``percent`` of the values are at most, to within one bin: the right edge of its bin.

        Raises: ValueError when nothing was counted.
        """
        total = self.total
        if not total:
            raise ValueError("an empty histogram has no percentile")
        below = max(1, math.ceil(total * percent / 100 - 1e-9))
        return float(self.edges[int(np.searchsorted(self.counts.cumsum(), below)) + 1])

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Spell the histogram as arrays: the exponent, the first bin that is not empty, the counts from there on."""
        at = np.flatnonzero(self.counts)
        first, last = (int(at[0]), int(at[-1]) + 1) if at.size else (0, 0)
        return {"place": np.array([self.exponent, first], np.int64), "counts": self.counts[first:last]}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Histogram:
        """Read what ``to_arrays`` gave."""
        exponent, first = map(int, arrays["place"])
        histogram = cls(exponent)
        counts = arrays["counts"]
        histogram.counts[first : first + len(counts)] = counts
        return histogram


def _exponent_for(largest: float) -> int:
    """Give the smallest exponent for which ``±largest`` lies inside the bins."""
    if largest == 0:
        return _FINEST
    # largest = mantissa * 2 ** exponent with 0.5 <= mantissa < 1
    return max(_FINEST, int(np.frexp(largest)[1]) - (HALF.bit_length() - 1))
