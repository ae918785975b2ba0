"""Confidence intervals: of one share, of a paired difference of shares, and of anything by bootstrap."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Two-sided 95 % point of the normal distribution.
Z95 = 1.959963984540054
RESAMPLES = 2000
SEED = 20050521

_CHUNK = 2_000_000


@dataclass(frozen=True)
class Interval:
    """``low`` to ``high``, and ``what`` that is: ``95 % Wilson``, ``min to max``."""

    low: float
    high: float
    what: str

    @property
    def width(self) -> float:
        """``high - low``."""
        return self.high - self.low


def wilson(hits: int, n: int) -> Interval:
    """95 % interval of a share. It never has zero width, and never leaves 0 to 1.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    p, z2 = hits / n, Z95**2
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return Interval(max(0.0, middle - half), min(1.0, middle + half), "95 % Wilson")


def paired_shares(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> Interval:
    """95 % interval of ``mean(after) - mean(before)``, hit or miss on the same samples.

    Adjusted Wald: half a pair is added to each cell of the 2 x 2 table, so it has a width even where nothing changed.
    Source: Agresti and Min 2005, "Simple improved confidence intervals for comparing matched proportions".
    """
    n = len(before) + 2
    lost = int(np.count_nonzero(before & ~after)) + 0.5
    won = int(np.count_nonzero(~before & after)) + 0.5
    middle = (won - lost) / n
    half = Z95 * sqrt(won + lost - (won - lost) ** 2 / n) / n
    return Interval(max(-1.0, middle - half), min(1.0, middle + half), "95 % Agresti-Min, paired")


def resamplings(n: int, times: int = RESAMPLES) -> Iterator[Array]:
    """Yield bootstrap resamplings of ``n`` samples as counts: [chunk, n], each row sums to n. Seeded."""
    rng = np.random.default_rng(SEED)
    chunk = max(1, _CHUNK // n)
    for start in range(0, times, chunk):
        rows = min(chunk, times - start)
        drawn = rng.integers(0, n, (rows, n)) + np.arange(rows)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)


def bootstrap(statistic: Callable[[Array], Array], n: int, what: str = "95 % bootstrap") -> Interval:
    """95 % percentile interval of ``statistic``, which maps counts [r, n] to values [r].

    Source: Efron 1979, "Bootstrap methods: another look at the jackknife".
    """
    values = np.concatenate([statistic(counts) for counts in resamplings(n)])
    # "inverted_cdf" interpolates nothing, so that an infinite value stays what it is.
    low, high = np.quantile(values, (0.025, 0.975), method="inverted_cdf")
    return Interval(float(low), float(high), what)


def median_ratio(above: Array, below: Array) -> Interval:
    """95 % bootstrap interval of ``median(above) / median(below)``, two series [rounds] or [rounds, k] timed in turns.

    Rounds are resampled whole and in pairs: neighbours in time share what else the machine was doing.
    """
    n, rng = len(above), np.random.default_rng(SEED)
    chunk = max(1, _CHUNK // above.size)
    ratios = []
    for start in range(0, RESAMPLES // 2, chunk):
        drawn = rng.integers(0, n, (min(chunk, RESAMPLES // 2 - start), n))
        a, b = (np.median(series[drawn].reshape(len(drawn), -1), axis=1) for series in (above, below))
        ratios.append(a / b)
    low, high = np.quantile(np.concatenate(ratios), (0.025, 0.975), method="inverted_cdf")
    return Interval(float(low), float(high), "95 % bootstrap, paired")


def spearman(x: Array, y: Array, counts: Array) -> Array:
    """Rank correlation of ``x`` and ``y`` [n], for each row of ``counts`` [r, n]: how often each pair is there.

    Ties take the average rank. Returns: [r], nan where all of x or all of y are equal.
    """
    a, b = _ranks(x, counts), _ranks(y, counts)
    total = counts.sum(1, keepdims=True)
    a = a - (counts * a).sum(1, keepdims=True) / total
    b = b - (counts * b).sum(1, keepdims=True) / total
    scale = np.sqrt((counts * a * a).sum(1) * (counts * b * b).sum(1))
    # Ranks are multiples of one half: where they differ at all, the scale is nowhere near 1e-3.
    rho: Array = (counts * a * b).sum(1) / np.where(scale > 1e-3, scale, np.nan)
    return rho


def _ranks(x: Array, counts: Array) -> Array:
    """Average rank [r, n] of every sample among the ``counts`` [r, n] copies of all samples."""
    _, group = np.unique(x, return_inverse=True)
    groups = int(group.max()) + 1
    rows = np.arange(len(counts))[:, None] * groups
    in_group = np.bincount((rows + group).ravel(), counts.ravel(), len(counts) * groups).reshape(len(counts), groups)
    average = np.cumsum(in_group, 1) - (in_group - 1) / 2
    return average[:, group]


def median_interval(series: Array) -> Interval:
    """95 % interval of the median, from the order of the values alone: no assumption on how they are distributed.

    Source: Conover 1999, Practical Nonparametric Statistics, section 3.2.
    """
    n, ordered = len(series), np.sort(series)
    half = Z95 * sqrt(n) / 2
    low, high = max(0, int(n / 2 - half)), min(n - 1, int(np.ceil(n / 2 + half)))
    return Interval(float(ordered[low]), float(ordered[high]), "95 % order statistics")
