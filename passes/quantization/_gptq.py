"""GPTQ: round a weight so that what its layer gives changes least, each error made up for by what is not yet rounded.

The loss of rounding a row ``w`` to ``v`` is ``(w - v) gram (w - v)ᵀ``: the squared error of that output channel over
all rows ``x`` of ``gram = Σ xᵀ x``. Weights are transposed inside: [K, N], one input channel after the other.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ._grid import Grid, Quantized, Scales
from ._refine import refine
from ._search import search

#: Output channels that are rounded at a time.
SLAB = 512

#: What is tried around the scale and the zero that the diagonal finds: scales times 2**(i/16), and zeros further on.
SCALE_STEPS = (0, -1, 1, -2, 2)
ZERO_STEPS = (0, -1, 1)

#: Blocks up to this width are rounded with each scale and zero that is tried; wider ones with what was found first.
TRIED_WIDTH = 128

#: What is added to the power of each input channel, in parts of the mean power, where nothing says how much.
DAMPING = 0.05

#: Dampings that are tried, and how many output channels try them.
DAMPINGS = (0.01, 0.05, 0.2)
TRYING = 32

#: Rows that are rounded one by one; below a longer run, halves.
_RUN = 8


def gptq(w: np.ndarray, gram: np.ndarray, grid: Grid, scales: Scales, damping: float = DAMPING) -> Quantized:
    """Round ``w: [N, K] float32`` to ``grid`` with scales that ``scales`` can store.

    gram: [K, K] float64, finite; input channels without power may have any weight, and get the nearest to theirs.
    damping: what is added to the power of each input channel, in parts of the mean power.
    Blocks are rounded in the order of their power and, inside, channels in the order of theirs; a block's scale and
    zero are searched when its turn has come, by the loss itself. Then codes, scales and zeros are improved in turns.
    Source: Frantar et al. 2023, arXiv:2210.17323, section 3.3; the order (act-order) and blocks that stay together
    follow the authors' code; coordinate descent: Behdin et al. 2023, arXiv:2309.01885.
    """
    n, k = w.shape
    hessian = damped(gram, damping)
    order = _order(np.diag(hessian), grid)
    upper = inverse_factor(hessian[np.ix_(order, order)])
    codes = np.empty((n, k), np.uint8)
    scale, zero = np.empty((n, grid.blocks(k)), np.float32), np.empty((n, grid.blocks(k)), np.uint8)
    for start in range(0, n, SLAB):
        rows = slice(start, start + SLAB)
        weights = np.ascontiguousarray(w[rows].T, np.float64)
        found = refine(weights, hessian, grid, scales, *_by_block(weights, upper, order, grid, scales))
        codes[rows], scale[rows], zero[rows] = (each.T for each in found)
    return Quantized(grid, scales, codes, scale, zero)


def best_damping(w: np.ndarray, gram: np.ndarray, judge: np.ndarray, grid: Grid, scales: Scales) -> float:
    """Give the damping with which ``w``, rounded for ``gram``, loses least by ``judge``: the gram of other samples."""
    some = w[:: -(-len(w) // TRYING)]

    def loss(damping: float) -> float:
        error = some - gptq(some, gram, grid, scales, damping).values().astype(np.float64)
        return float(np.vdot(error, error @ judge))

    return min(DAMPINGS, key=loss)


def scales_for(w: np.ndarray, grid: Grid, stored: str, dtype: type[np.floating] = np.float32) -> Scales:
    """Give scales that suit ``w: [N, K]``."""
    starts = range(0, w.shape[1], grid.width(w.shape[1]))
    low = np.minimum(np.minimum.reduceat(w, starts, axis=1), 0)
    high = np.maximum(np.maximum.reduceat(w, starts, axis=1), 0)
    return Scales.up_to(float(grid.reach(low, high).max()), stored, dtype)


def damped(gram: np.ndarray, damping: float) -> np.ndarray:
    """Give ``gram`` with ``damping`` times the mean of its diagonal added to that; the identity for no power at all."""
    mean = np.diag(gram).mean()
    return gram + damping * mean * np.eye(len(gram)) if mean > 0 else np.eye(len(gram))


def inverse_factor(hessian: np.ndarray) -> np.ndarray:
    """Give the upper triangular U with ``UᵀU`` the inverse of ``hessian``."""
    from scipy.linalg import cholesky
    from scipy.linalg.lapack import dtrtri

    # With J reversing the order, hessian = J L Lᵀ J gives U = J L⁻¹ J: the inverse itself is never formed.
    lower = cholesky(hessian[::-1, ::-1], lower=True)
    inverse, _ = dtrtri(lower, lower=1)
    return np.ascontiguousarray(inverse[::-1, ::-1])


def _order(power: np.ndarray, grid: Grid) -> np.ndarray:
    """Give the order in which input channels are rounded: the most powerful block first, and inside it likewise."""
    k = len(power)
    blocks = [np.arange(start, min(start + grid.width(k), k)) for start in range(0, k, grid.width(k))]
    blocks.sort(key=lambda block: -power[block].sum())
    return np.concatenate([block[np.argsort(-power[block], kind="stable")] for block in blocks])


def _by_block(
    w: np.ndarray, upper: np.ndarray, order: np.ndarray, grid: Grid, scales: Scales
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Round ``w: [K, n]``; give codes [K, n], scale and zero [blocks, n], float64 all."""
    k, n = w.shape
    left = w[order]
    codes = np.empty_like(w)
    scale, zero = np.empty((grid.blocks(k), n)), np.empty((grid.blocks(k), n))
    start = 0
    while start < k:
        block = order[start] // grid.width(k)
        stop = start + min(grid.width(k), k - block * grid.width(k))
        inside = upper[start:stop, start:stop]
        codes[order[start:stop]], errors, scale[block], zero[block] = _best(left[start:stop], inside, grid, scales)
        left[stop:] -= upper[start:stop, stop:].T @ errors
        start = stop
    return codes, scale, zero


def _best(
    w: np.ndarray, upper: np.ndarray, grid: Grid, scales: Scales
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Round a block ``w: [width, n]`` with the scale and the zero, of those tried, that lose least."""
    importance = (1 / np.square(np.diag(upper))).astype(np.float32)
    around = search(grid, np.ascontiguousarray(w.T, np.float32), scales, importance / importance.max())
    tried = list(_around(*around, grid, scales)) if len(w) <= TRIED_WIDTH else [around]
    n, count = w.shape[1], len(tried)
    scale, zero = (np.concatenate(each).astype(np.float64) for each in zip(*tried, strict=True))
    codes, errors = round_in_order(np.tile(w, count), upper, scale, zero, grid.top)
    best = np.square(errors).sum(axis=0).reshape(count, n).argmin(axis=0) * n + np.arange(n)
    return codes[:, best], errors[:, best], scale[best], zero[best]


def _around(scale: np.ndarray, zero: np.ndarray, grid: Grid, scales: Scales) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for step in SCALE_STEPS:
        other = scales.nearest(scale * np.float32(2 ** (step / 16)))
        for further in (0,) if grid.symmetric else ZERO_STEPS:
            yield other, np.clip(zero + further, 0, grid.top)


def round_in_order(
    w: np.ndarray, upper: np.ndarray, scale: np.ndarray, zero: np.ndarray, top: int
) -> tuple[np.ndarray, np.ndarray]:
    """Round the rows of ``w: [width, n]``, changed in place, one after the other; the rest makes up for each error.

    scale, zero: [n]. Returns: codes [width, n]; errors [width, n], whose squares sum up to the loss.
    """
    codes, errors = np.empty_like(w), np.empty_like(w)
    _round_part(w, upper, scale, zero, top, codes, errors)
    return codes, errors


def _round_part(
    w: np.ndarray,
    upper: np.ndarray,
    scale: np.ndarray,
    zero: np.ndarray,
    top: int,
    codes: np.ndarray,
    errors: np.ndarray,
) -> None:
    if len(w) > _RUN:
        half = len(w) // 2
        first, second = slice(None, half), slice(half, None)
        _round_part(w[first], upper[first, first], scale, zero, top, codes[first], errors[first])
        w[second] -= upper[first, second].T @ errors[first]
        _round_part(w[second], upper[second, second], scale, zero, top, codes[second], errors[second])
        return
    for i in range(len(w)):
        q = codes[i]
        np.divide(w[i], scale, out=q)
        np.rint(q, out=q)
        q += zero
        np.clip(q, 0, top, out=q)
        errors[i] = (w[i] - (q - zero) * scale) / upper[i, i]
        w[i + 1 :] -= np.outer(upper[i, i + 1 :], errors[i])
