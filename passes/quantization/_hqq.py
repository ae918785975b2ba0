"""Half-quadratic quantization: a scale and a zero for which most errors are small and a few may be large."""

from __future__ import annotations

import numpy as np

from ._grid import Grid, Scales

#: The norm of the errors that is minimized, and how fast the split into small and large errors hardens.
NORM, HARDENING, FIRST = 0.7, 1.01, 10.0

STEPS = 20


def half_quadratic(
    grid: Grid, x: np.ndarray, scale: np.ndarray, zero: np.ndarray, scales: Scales
) -> tuple[np.ndarray, np.ndarray]:
    """Improve the scale and zero, [...], of each block of ``x: [width, ...] float32`` under the norm |error|**0.7.

    Each step splits the errors into a sparse part, which a generalized soft threshold leaves out, and the rest, which
    the scale and the zero are fitted to by least squares. A pair is kept where the norm over its block falls. Unlike
    in the source, zeros are integers and scales storable, so the scale is fitted as well.
    Returns: scale [...] float32, each one storable; zero [...] float32 holding integers.
    Source: Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models", section 2.
    """
    best = [scale, zero]
    least = _norm(x - grid.nearest(x, scale, zero))
    centre, beta = zero, FIRST / np.maximum(np.abs(x).max(axis=0), _TINY)
    for _ in range(STEPS):
        codes = np.clip(np.rint(x / scale + centre), 0, grid.top)
        kept = x - _shrink(x - (codes - centre) * scale, beta)
        if not grid.symmetric:
            centre = np.clip((codes - kept / scale).mean(axis=0), 0, grid.top)
        centred = codes - centre
        energy = np.square(centred).sum(axis=0)
        fitted = (centred * kept).sum(axis=0) / np.where(energy > 0, energy, 1)
        scale = np.where(fitted > 0, fitted, scale)
        beta = beta * HARDENING
        stored = scales.nearest(scale), np.rint(centre)
        norm = _norm(x - grid.nearest(x, *stored))
        better = norm < least
        least = np.where(better, norm, least)
        best = [np.where(better, new, old) for new, old in zip(stored, best, strict=True)]
    return best[0], best[1]


_TINY = np.float32(1e-30)


def _shrink(error: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """Move each error towards 0 by |error|**(NORM - 1) / beta; what is smaller becomes 0."""
    size = np.abs(error)
    left: np.ndarray = np.sign(error) * np.maximum(size - np.maximum(size, _TINY) ** np.float32(NORM - 1) / beta, 0)
    return left


def _norm(error: np.ndarray) -> np.ndarray:
    norm: np.ndarray = (np.abs(error) ** np.float32(NORM)).sum(axis=0)
    return norm
