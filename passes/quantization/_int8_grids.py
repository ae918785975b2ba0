"""Grids of activations: from what the calibration samples showed to a scale and a zero, and what a grid loses."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from polycast.calibrating.histogram import Histogram
from polycast.calibrating.taps import Seen

from ._int8_weights import SMALLEST
from ._qdq import Grid


def grid_over(low: float, high: float, symmetric: bool, within: bool = False) -> Grid:
    """Give the grid from ``low`` to ``high``, which zero lies between or is put between; zero is always a code.

    symmetric: int8 with zero at 0, instead of uint8.
    within: whether the grid may not reach past ``low`` and ``high``, not even by half a step.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        return Grid(_scale(max(-low, high) / 127), 0, signed=True)
    scale = _scale((high - low) / 255)
    zero = min(max(round(-low / scale), 0), 255)
    if within and high > low:
        limits = [limit / codes for limit, codes in ((high, 255 - zero), (-low, zero)) if codes and limit]
        scale = _scale(min(limits))
        while scale > SMALLEST and (np.float32(scale) * np.float32(255 - zero) > np.float32(high)):
            scale = float(np.nextafter(np.float32(scale), np.float32(0)))
    return Grid(scale, zero)


def covering(grids: Iterable[Grid | None]) -> Grid | None:
    """Give the grid of these that reaches as far as each other one, to half a step; None where there is none."""
    known = [grid for grid in grids if grid is not None]
    low = min((grid.limits[0] for grid in known), default=0.0)
    high = max((grid.limits[1] for grid in known), default=0.0)
    for grid in known:
        if grid.limits[0] <= low + grid.scale / 2 and grid.limits[1] >= high - grid.scale / 2:
            return grid
    return None


def kept_of_product(seen: Seen, grid: Grid, weight: np.ndarray, axis: int | None) -> float:
    """Give the signal-to-noise ratio, in dB, of a product with ``weight`` whose other operand is put on ``grid``.

    seen: of that operand, with its histogram, and with its channels where they differ in size: the step is the same for
    all of them, so that a few large ones, if their weights are small, leave little of the others.
    axis: the output channels of ``weight``, which is [K, N] or [N, K]; None where it is neither.
    """
    assert seen.histogram is not None
    signal, noise = power_and_noise(seen.histogram, grid)
    if seen.channels is not None and axis is not None and weight.ndim == 2:
        gain = np.square(weight, dtype=np.float64).sum(axis=axis)
        if gain.sum() > 0:
            signal = float(gain @ seen.channels.mean_square / gain.sum())
    return math.inf if noise == 0 else 10 * math.log10(max(signal, 1e-300) / noise)


def power_and_noise(histogram: Histogram, grid: Grid) -> tuple[float, float]:
    """Give the mean square of what was counted, and that of what ``grid`` takes away from it."""
    at = np.flatnonzero(histogram.counts)
    centres = (histogram.edges[at] + histogram.edges[at + 1]) / 2
    centres[(centres > 0) & (centres < histogram.width)] = 0  # exact zeros are the left edge of their bin
    info = np.iinfo(grid.dtype)
    codes = np.clip(np.rint(centres / grid.scale) + grid.zero, info.min, info.max)
    shares = histogram.counts[at] / max(histogram.total, 1)
    return float(shares @ np.square(centres)), float(shares @ np.square((codes - grid.zero) * grid.scale - centres))


def _scale(number: float) -> float:
    """Round to a float32 that is not too small to multiply with."""
    return float(np.float32(max(number, SMALLEST)))
