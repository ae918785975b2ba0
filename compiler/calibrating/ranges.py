"""Ranges: from what was seen of a tensor to the interval that a quantizer spreads its levels over."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ._clipping import least_divergence, least_error
from .histogram import HALF, Histogram
from .taps import Seen

#: Percent of the values that the method ``percentile`` keeps inside, the rest cut evenly from both ends.
PERCENT = 99.99

Range = tuple[float, float]


def choose_range(seen: Seen, method: str, bits: int = 8, symmetric: bool = False, *, percent: float = PERCENT) -> Range:
    """Choose the range that a quantizer of ``bits`` bits gets for what was seen.

    method: ``minmax``, ``average`` (moving average of both ends), ``percentile``, ``entropy`` (least
    Kullback-Leibler divergence) or ``mse`` (least expected squared error); the last three need a histogram.
    symmetric: the two ends have the same magnitude. Else each end is where the data is.
    Returns: low <= 0 <= high with low < high, so that zero is a level and a step is a normal float32. A tensor that
    was only ever zero, or never seen, gets an end of 1.
    Raises: ValueError for an unknown method, or one whose histogram was not wanted.
    Source: Krishnamoorthi 2018, arXiv:1806.08342, section 2; Migacz 2017, "8-bit Inference with TensorRT" (entropy);
    Banner et al. 2019, arXiv:1810.05723 (squared error); the percentile is cut as onnxruntime's calibrater cuts it.
    """
    low, high = _METHODS[_known(method)](seen, bits, symmetric, percent)
    low, high = max(min(low, 0.0), min(seen.low, 0.0)), min(max(high, 0.0), max(seen.high, 0.0))
    low, high = _widened(low, high, bits)
    return (-max(-low, high), max(-low, high)) if symmetric else (low, high)


def _known(method: str) -> str:
    if method not in _METHODS:
        raise ValueError(f"unknown method {method!r}; there are {', '.join(_METHODS)}")
    return method


def _widened(low: float, high: float, bits: int) -> Range:
    """Give the range a length, where it has none that float32 could divide by."""
    least = float(np.finfo(np.float32).tiny) * 2**bits
    if high - low >= least:
        return low, high
    end = 1.0 if low == high else least
    return (-end if low < 0 else 0.0), (end if high > 0 or low == high else 0.0)


def _minmax(seen: Seen, bits: int, symmetric: bool, percent: float) -> Range:
    return seen.low, seen.high


def _average(seen: Seen, bits: int, symmetric: bool, percent: float) -> Range:
    return seen.average_low, seen.average_high


def _percentile(seen: Seen, bits: int, symmetric: bool, percent: float) -> Range:
    histogram = _histogram(seen)
    below = np.cumsum(histogram.counts)
    cut = math.floor(histogram.total * (100 - percent) / 200 + 1e-9)
    lowest = int(np.searchsorted(below, cut, side="right"))
    highest = int(np.searchsorted(below, histogram.total - cut))
    return float(histogram.edges[lowest]), float(histogram.edges[highest + 1])


def _entropy(seen: Seen, bits: int, symmetric: bool, percent: float) -> Range:
    """Clip |x|, as onnxruntime and TensorRT do; a tensor of one sign has all levels on its side."""
    counts = _histogram(seen).counts
    sizes = counts[HALF:] + counts[:HALF][::-1]
    one_sided = not symmetric and (seen.low >= 0 or seen.high <= 0)
    clip = least_divergence(sizes, 2**bits if one_sided else 2 ** (bits - 1)) * _histogram(seen).width
    return -clip, clip


def _mse(seen: Seen, bits: int, symmetric: bool, percent: float) -> Range:
    return least_error(_histogram(seen), min(seen.low, 0.0), max(seen.high, 0.0), bits, symmetric)


def _histogram(seen: Seen) -> Histogram:
    if seen.histogram is None:
        raise ValueError("this method needs a histogram: tap the value with Want.HISTOGRAM")
    return seen.histogram


def _of_histogram(method: Callable[[Seen, int, bool, float], Range]) -> Callable[[Seen, int, bool, float], Range]:
    """Fall back to the ends where nothing finite was counted."""

    def choose(seen: Seen, bits: int, symmetric: bool, percent: float) -> Range:
        counted = _histogram(seen).total > 0 and seen.low < seen.high
        return (method if counted else _minmax)(seen, bits, symmetric, percent)

    return choose


_METHODS: dict[str, Callable[[Seen, int, bool, float], Range]] = {
    "minmax": _minmax,
    "average": _average,
    "percentile": _of_histogram(_percentile),
    "entropy": _of_histogram(_entropy),
    "mse": _of_histogram(_mse),
}
