"""Searching the scale and the zero of each block: of those that can be stored, the ones that lose least.

Inside, blocks are columns: [width, …], so that numpy goes along the blocks, of which there are many, and not along the
few elements of each.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ._grid import Grid, Quantized, Scales, limits
from ._hqq import half_quadratic

#: A searched scale is the one that reaches the extremes of its block times 2**(-i/16), i from GROW up to this.
SHRINK = {2: 20, 3: 13, 4: 8, 8: 2}
GROW = -3

#: Elements that are searched at a time, so that what is computed on the way stays in the processor's cache.
SLAB = 1 << 18


def search(
    grid: Grid, blocks: np.ndarray, scales: Scales, importance: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Find the scale and the zero of each of ``blocks: [..., width] float32`` with the least squared error.

    importance: what the squared error of each element is weighted with, broadcast to ``blocks``; None for 1.
    Returns: scale [...] float32, each one storable; zero [...] float32 holding integers.
    Source: Banner et al. 2019, arXiv:1810.05723, section 3 (clipping); the zero is centred on what is clipped.
    """
    if importance is not None:
        importance = _columns(np.broadcast_to(importance, blocks.shape))
    return _search(grid, _columns(blocks), scales, importance)


def rounded(w: np.ndarray, grid: Grid, scales: Scales, method: str) -> Quantized:
    """Round ``w: [N, K]``, a float array of any strides, with scales and zeros found by "rtn", "mse" or "hqq"."""
    n, k = w.shape
    codes = np.empty((n, k), np.uint8)
    scale, zero = np.empty((n, grid.blocks(k)), np.float32), np.empty((n, grid.blocks(k)), np.uint8)
    step = max(1, SLAB // k)

    def round_from(start: int) -> None:
        rows = slice(start, min(start + step, n))
        x = _blocks(w[rows], grid)
        found = grid.reaching(*limits(x, axis=0), scales) if method == "rtn" else _search(grid, x, scales)
        if method == "hqq":
            found = half_quadratic(grid, x, *found, scales)
        scale[rows], zero[rows] = (each.T for each in found)
        codes[rows] = grid.codes(x, *found).astype(np.uint8).transpose(2, 1, 0).reshape(x.shape[2], -1)[:, :k]

    with ThreadPoolExecutor(_threads()) as pool:  # numpy lets go of the interpreter while it computes
        for _ in pool.map(round_from, range(0, n, step)):
            pass
    return Quantized(grid, scales, codes, scale, zero)


def _threads() -> int:
    return int(os.environ.get("POLYCAST_THREADS", "0")) or os.cpu_count() or 1


def _columns(blocks: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(blocks, -1, 0))


def _blocks(w: np.ndarray, grid: Grid) -> np.ndarray:
    """Cut ``w: [n, K]`` into blocks: [width, blocks, n] float32, the last block filled with zeros."""
    n, k = w.shape
    width, blocks = grid.width(k), grid.blocks(k)
    x = np.empty((width, blocks, n), np.float32)
    whole = k // width
    x[:, :whole] = w[:, : whole * width].T.reshape(whole, width, n).transpose(1, 0, 2)
    if whole < blocks:
        x[: k - whole * width, -1] = w[:, whole * width :].T
        x[k - whole * width :, -1] = 0
    return x


def _search(
    grid: Grid, x: np.ndarray, scales: Scales, importance: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Search for ``x: [width, …]``; importance is of its shape."""
    low, high = limits(x, axis=0)
    reach = grid.reach(low, high)
    best_scale, best_zero = grid.reaching(low, high, scales)
    least = np.full(low.shape, np.inf, np.float32)
    room = np.empty_like(x), np.empty_like(x)
    for i in range(GROW, SHRINK[grid.bits]):
        scale = scales.nearest(reach * np.float32(2 ** (-i / 16)))
        zero = grid.zero_for(low, high, scale)
        error = _error(grid, x, scale, zero, importance, room)
        better = error < least
        for best, found in ((least, error), (best_scale, scale), (best_zero, zero)):
            np.copyto(best, found, where=better)
    return best_scale, best_zero


def _error(
    grid: Grid,
    x: np.ndarray,
    scale: np.ndarray,
    zero: np.ndarray,
    importance: np.ndarray | None,
    room: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """Give the weighted squared error of rounding each block of ``x``; room: two arrays of its shape to compute in."""
    in_steps, off = room
    np.multiply(x, 1 / scale, out=in_steps)
    np.rint(in_steps, out=off)
    np.maximum(off, -zero, out=off)
    np.minimum(off, grid.top - zero, out=off)
    off -= in_steps
    operands = (off, off) if importance is None else (off, off, importance)
    squares = np.einsum("i...,i...->..." if importance is None else "i...,i...,i...->...", *operands)
    error: np.ndarray = squares * np.square(scale)
    return error
