"""Refining: change codes, scales and zeros one at a time, each to what loses least while the others stay."""

from __future__ import annotations

import numpy as np

from ._grid import Grid, Scales

#: Turns of codes, then scales and zeros; more gain little.
ROUNDS = 2

#: Input channels whose changes are told to all others at once.
_CHUNK = 32


def refine(
    w: np.ndarray,
    hessian: np.ndarray,
    grid: Grid,
    scales: Scales,
    codes: np.ndarray,
    scale: np.ndarray,
    zero: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower the loss ``(w - v)ᵀ hessian (w - v)`` of each column of ``w: [K, n]``; no step ever raises it.

    codes: [K, n]; scale, zero: [blocks, n]; float64, changed in place. Returns: all three.
    """
    k = len(w)
    width = grid.width(k)
    blocks = [slice(start, min(start + width, k)) for start in range(0, k, width)]
    of = np.arange(k) // width
    slope = hessian @ (w - (codes - zero[of]) * scale[of])
    for _ in range(ROUNDS):
        moved = _codes(hessian, grid, codes, scale[of], zero[of], slope)
        for number, rows in enumerate(blocks):
            _scales(hessian[:, rows], rows, grid, scales, codes[rows], scale[number], zero[number], slope)
        if not moved:
            break
    _codes(hessian, grid, codes, scale[of], zero[of], slope)
    return codes, scale, zero


def _codes(
    hessian: np.ndarray, grid: Grid, codes: np.ndarray, scale: np.ndarray, zero: np.ndarray, slope: np.ndarray
) -> bool:
    """Move each code to where its parabola is lowest; give whether any moved. slope: hessian (w - v), kept up."""
    any_moved = False
    for start in range(0, len(codes), _CHUNK):
        rows = slice(start, min(start + _CHUNK, len(codes)))
        inside, before = hessian[rows, rows], codes[rows].copy()
        near = slope[rows]
        for i, row in enumerate(range(start, rows.stop)):
            wanted = codes[row] + near[i] / (inside[i, i] * scale[row])
            new = np.clip(np.rint(wanted), 0, grid.top)
            near -= np.outer(inside[:, i], (new - codes[row]) * scale[row])
            codes[row] = new
        change = (codes[rows] - before) * scale[rows]
        if change.any():
            any_moved = True
            outside = np.ones(len(codes), bool)
            outside[rows] = False
            slope[outside] -= hessian[outside, rows] @ change
    return any_moved


def _scales(
    hessian: np.ndarray,
    rows: slice,
    grid: Grid,
    scales: Scales,
    codes: np.ndarray,
    scale: np.ndarray,
    zero: np.ndarray,
    slope: np.ndarray,
) -> None:
    """Move the scale and the zero of one block to the best pair with the zero at most one further, its codes fixed."""
    inside = hessian[rows]
    values = (codes - zero) * scale
    pull = slope[rows] + inside @ values
    gain = np.zeros_like(scale)
    best_scale, best_zero = scale.copy(), zero.copy()
    for step in (0,) if grid.symmetric else (0, -1, 1):
        other = zero + step
        centred = codes - other
        stiff = np.einsum("in,in->n", centred, inside @ centred)
        ideal = np.einsum("in,in->n", centred, pull) / np.maximum(stiff, np.finfo(np.float64).tiny)
        stored = scales.nearest(np.maximum(ideal, 0).astype(np.float32)).astype(np.float64)
        change = centred * stored - values
        lower = np.einsum("in,in->n", change, 2 * slope[rows] - inside @ change)
        better = (lower > gain) & (other >= 0) & (other <= grid.top) & (ideal > 0)
        gain[better], best_scale[better], best_zero[better] = lower[better], stored[better], other[better]
    slope -= hessian @ ((codes - best_zero) * best_scale - values)
    scale[:], zero[:] = best_scale, best_zero
