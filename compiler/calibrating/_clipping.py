"""Clipping: where to cut a histogram so that a quantizer loses least, by divergence or by squared error."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from .histogram import Histogram

#: Share that the divergence gives a bin that the quantized histogram leaves empty.
_EMPTY = 1e-4

#: Clips that the search for the least divergence tries, at most.
_TRIED = 256

#: How often the width of the bins is doubled for that search: an 8-bit step still spans two bins or more.
_DOUBLINGS = 2

#: Fractions of an end that the search for the least squared error tries, first wide and then around the best.
_FRACTIONS = np.linspace(0.05, 1.0, 40)
_FINER = (np.linspace(0.8, 1.2, 21), np.linspace(0.96, 1.04, 17))


def least_divergence(sizes: np.ndarray, levels: int) -> int:
    """Give the number of bins to keep of ``sizes``, counts of |x|, so that ``levels`` levels tell most of them.

    For each number of bins kept, what lies beyond goes to the last one (P); the kept ones are summed into ``levels``
    groups and spread again over those that were not empty (Q). The least KL(P || Q) wins.
    Source: Migacz 2017, "8-bit Inference with TensorRT"; the first bin, full of zeros after a Relu and always exact,
    counts as the second does, as in NVIDIA's pytorch-quantization.
    """
    sizes = sizes.astype(np.float64)
    sizes[0] = sizes[1]
    used = int(np.flatnonzero(sizes)[-1]) + 1 if sizes.any() else 1
    if used <= levels:
        return used
    candidates = np.unique(np.linspace(levels, used, min(_TRIED, used - levels + 1)).astype(int))
    divergences = [_divergence(sizes[:used], kept, levels) for kept in candidates.tolist()]
    return int(candidates[int(np.argmin(divergences))])


def _divergence(sizes: np.ndarray, kept: int, levels: int) -> float:
    p = sizes[:kept].copy()
    p[-1] += sizes[kept:].sum()
    starts = np.arange(levels) * kept // levels
    lengths = np.diff(starts, append=kept)
    filled = sizes[:kept] > 0
    mean = np.add.reduceat(sizes[:kept], starts) / np.maximum(np.add.reduceat(filled, starts, dtype=np.int64), 1)
    q = np.where(filled, np.repeat(mean, lengths), 0.0)
    p, q = _smooth(p), _smooth(q)
    return float(np.sum(p * np.log(p / q)))


def _smooth(counts: np.ndarray) -> np.ndarray:
    """Make shares of ``counts``, none of them zero."""
    total = counts.sum()
    share = (counts / total if total else counts) + _EMPTY / len(counts)
    shares: np.ndarray = share / share.sum()
    return shares


def least_error(histogram: Histogram, low: float, high: float, bits: int, symmetric: bool) -> tuple[float, float]:
    """Search the range inside ``low`` and ``high`` (low <= 0 <= high) with the least expected squared error.

    The error is exact for values that lie evenly inside their bins. Both ends are shrunk together first, then each
    alone where ``symmetric`` does not tie them.
    Source: Banner et al. 2019, arXiv:1810.05723, section 3 (the clip that trades rounding against clipping).
    """
    counts, edges = _filled(histogram)

    def error(ends: tuple[float, float]) -> float:
        step, least, most = _grid(*ends, bits, symmetric)
        return float(np.dot(counts, np.diff(_error_below(edges, step, least, most)))) if step else np.inf

    def best(candidates: Iterable[tuple[float, float]]) -> tuple[float, float]:
        return min(candidates, key=error)

    if symmetric:
        low, high = -max(-low, high), max(-low, high)
    ends = best((low * f, high * f) for f in _FRACTIONS[::-1].tolist())
    for fractions in _FINER:
        moves = _together if symmetric else _apart
        ends = moves(ends, fractions, best)
    return ends


Best = Callable[[Iterable[tuple[float, float]]], tuple[float, float]]


def _together(ends: tuple[float, float], fractions: np.ndarray, best: Best) -> tuple[float, float]:
    return best([ends, *((ends[0] * f, ends[1] * f) for f in fractions.tolist())])


def _apart(ends: tuple[float, float], fractions: np.ndarray, best: Best) -> tuple[float, float]:
    for _ in range(2):
        ends = best([ends, *((ends[0] * f, ends[1]) for f in fractions.tolist())])
        ends = best([ends, *((ends[0], ends[1] * f) for f in fractions.tolist())])
    return ends


def _filled(histogram: Histogram) -> tuple[np.ndarray, np.ndarray]:
    """Take what lies between the empty bins at both ends, four bins as one: counts [n] and edges [n + 1]."""
    coarse = Histogram(histogram.exponent, histogram.counts)
    coarse.coarsen(histogram.exponent + _DOUBLINGS)
    at = np.flatnonzero(coarse.counts)
    first, last = int(at[0]), int(at[-1]) + 1
    return coarse.counts[first:last].astype(np.float64), coarse.edges[first : last + 1]


def _grid(low: float, high: float, bits: int, symmetric: bool) -> tuple[float, int, int]:
    """Give the step of the grid, and its lowest and highest level as multiples of it."""
    if symmetric:
        most = 2 ** (bits - 1) - 1
        return high / most, -most, most
    steps = 2**bits - 1
    step = (high - low) / steps
    least = int(np.rint(low / step)) if step else 0
    return step, least, least + steps


def _error_below(x: np.ndarray, step: float, least: int, most: int) -> np.ndarray:
    """Integrate the squared error from 0 to each of ``x``: a cell of the grid holds ``step³ / 12``."""
    u = x / step
    cell = np.clip(np.rint(u), least, most)
    part = u - cell
    integral: np.ndarray = step**3 * (cell / 12 + part**3 / 3)
    return integral
