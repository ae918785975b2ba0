"""GPTQ: what a layer gives changes less than by rounding alone, whatever the samples leave open."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from weight_only import normal

from polycast.passes.quantization._gptq import DAMPINGS, best_damping, damped, gptq, inverse_factor, scales_for
from polycast.passes.quantization._grid import Grid, Quantized
from polycast.passes.quantization._refine import refine
from polycast.passes.quantization._search import rounded
from polycast.passes.quantization._shift import Fit, shift

GRIDS = [Grid(bits, block, symmetric) for bits in (4, 3, 2) for block in (16, 32, 0) for symmetric in (False, True)]


def correlated(rows: int, k: int, seed: int = 1) -> np.ndarray:
    """Draw rows of channels that depend on each other and differ in power."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, k)) @ (rng.standard_normal((k, k)) * np.logspace(0, -1.5, k)) / np.sqrt(k)


def lost(w: np.ndarray, x: np.ndarray, found: Quantized) -> float:
    """Give ``|x wᵀ - x vᵀ|²``, v being what was stored."""
    return float(np.square(x @ (w - found.values().astype(np.float64)).T).sum())


def both(w: np.ndarray, x: np.ndarray, grid: Grid, stored: str = "log8") -> tuple[Quantized, Quantized]:
    """Round by searched scales alone, and for ``x``."""
    scales = scales_for(w, grid, stored)
    return rounded(w, grid, scales, "mse"), gptq(w, x.T @ x, grid, scales)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_outputs_change_less_than_by_rounding(grid: Grid) -> None:
    w = normal(24, 80)
    x = correlated(400, 80)
    nearest, found = both(w, x, grid)
    assert lost(w, x, found) < 0.7 * lost(w, x, nearest)
    assert found.codes.max() <= grid.top and found.zero.max() <= grid.top
    np.testing.assert_array_equal(found.scales.nearest(found.scale), found.scale)
    assert not grid.symmetric or (found.zero == grid.middle).all()


@pytest.mark.parametrize("stored", ["log8", "float16", "float32"])
def test_other_samples_of_the_same_kind_gain_too(stored: str) -> None:
    w = normal(24, 64)
    x = correlated(1200, 64)
    nearest, found = both(w, x[:600], Grid(), stored)
    assert lost(w, x[600:], found) < 0.7 * lost(w, x[600:], nearest)


@pytest.mark.parametrize("k", [1, 5, 32, 33, 70])
@pytest.mark.parametrize("block", [16, 32, 256, 0])
def test_blocks_need_not_fit(k: int, block: int) -> None:
    w, x = normal(6, k), correlated(200, k)
    nearest, found = both(w, x, Grid(4, block))
    assert found.codes.shape == (6, k) and found.scale.shape == found.zero.shape == (6, Grid(4, block).blocks(k))
    assert lost(w, x, found) <= lost(w, x, nearest) * (1 + 1e-6)


@pytest.mark.parametrize("block", [16, 0])
def test_the_order_is_undone(block: int) -> None:
    """Where channels do not depend on each other, each weight is rounded on its own, whatever its turn."""
    w, grid = normal(8, 48), Grid(4, block)
    power = np.random.default_rng(3).permutation(np.logspace(-2, 2, 48))
    found = gptq(w, np.diag(power), grid, scales_for(w, grid, "float32"))
    step, zero = grid.spread(found.scale, 48), grid.spread(found.zero.astype(np.float32), 48)
    np.testing.assert_array_equal(found.codes, np.clip(np.rint(w / step + zero), 0, grid.top))


def test_channels_without_power_keep_their_weights_as_near_as_they_can_be() -> None:
    w, x = normal(8, 64), correlated(300, 64)
    dead = np.zeros(64, bool)
    dead[[0, 7, 31, 40]] = True
    dead[48:] = True
    x[:, dead] = 0
    nearest, found = both(w, x, Grid(4, 16))
    assert lost(w, x, found) < 0.7 * lost(w, x, nearest)
    step = Grid(4, 16).spread(found.scale, 64)
    whole = np.s_[:, 48:]  # a block that no sample reaches is rounded as if each channel had the same power
    assert np.abs(found.values() - w)[whole].max() <= 1.5 * step[whole].max()


@pytest.mark.parametrize("rows", [0, 1, 9])
def test_fewer_rows_than_channels(rows: int) -> None:
    w, x = normal(8, 64), correlated(rows, 64)
    nearest, found = both(w, x, Grid(3))
    assert np.isfinite(found.values()).all()
    assert lost(w, x, found) <= 0.5 * lost(w, x, nearest)


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_the_size_of_the_gram_does_not_matter(factor: float) -> None:
    w, x = normal(8, 32), correlated(100, 32)
    scales = scales_for(w, Grid(), "log8")
    plain, other = (gptq(w, gram, Grid(), scales) for gram in (x.T @ x, x.T @ x * factor))
    np.testing.assert_allclose(lost(w, x, other), lost(w, x, plain), rtol=0.05)


def test_zero_weights_stay_zero() -> None:
    w = normal(6, 64)
    w[2], w[:, 32:] = 0, 0
    found = gptq(w, np.diag(np.linspace(1, 2, 64)), Grid(), scales_for(w, Grid(), "log8"))
    assert not found.values()[w == 0].any()


def test_the_same_again() -> None:
    w, x = normal(40, 96), correlated(300, 96)
    first, second = (both(w, x, Grid(3))[1] for _ in range(2))
    for one, other in ((first.codes, second.codes), (first.scale, second.scale), (first.zero, second.zero)):
        np.testing.assert_array_equal(one, other)


def test_the_factor_is_that_of_the_inverse() -> None:
    hessian = damped(correlated(50, 30).T @ correlated(50, 30), 0.05)
    upper = inverse_factor(hessian)
    assert not np.tril(upper, -1).any()
    np.testing.assert_allclose(upper.T @ upper @ hessian, np.eye(30), atol=30 * 2.0**-52 * np.linalg.cond(hessian))


@given(st.integers(0, 2**32 - 1), st.sampled_from(GRIDS), st.integers(1, 40))
def test_refining_never_loses(seed: int, grid: Grid, k: int) -> None:
    rng = np.random.default_rng(seed)
    w, x = rng.standard_normal((3, k)).astype(np.float32), rng.standard_normal((30, k))
    scales = scales_for(w, grid, "log8")
    before = rounded(w, grid, scales, "rtn")
    parts = (np.array(part.T, np.float64) for part in (before.codes, before.scale, before.zero))
    codes, scale, zero = refine(w.T.astype(np.float64), x.T @ x, grid, scales, *parts)
    after = Quantized(grid, scales, codes.T.astype(np.uint8), scale.T.astype(np.float32), zero.T.astype(np.uint8))
    assert lost(w, x, after) <= lost(w, x, before) * (1 + 1e-9)
    assert codes.min() >= 0 and codes.max() <= grid.top and zero.min() >= 0 and zero.max() <= grid.top


def test_damping_is_the_one_that_other_samples_like_best() -> None:
    w, x = normal(16, 64), correlated(160, 64)
    first, second = x[:80], x[80:]
    scales = scales_for(w, Grid(), "log8")
    losses = [lost(w, second, gptq(w, first.T @ first, Grid(), scales, damping)) for damping in DAMPINGS]
    found = best_damping(w, first.T @ first, second.T @ second, Grid(), scales)
    assert found == DAMPINGS[int(np.argmin(losses))]


# What came before is made up for.


def fit(x: np.ndarray, e: np.ndarray) -> Fit:
    return Fit(x.T @ x, x.T @ e)


def test_an_error_that_inputs_tell_is_taken_out() -> None:
    x = correlated(400, 20) + 0.3 * np.random.default_rng(5).standard_normal((400, 20))
    wanted = np.random.default_rng(4).standard_normal((20, 6))
    found = shift([fit(x[::2], x[::2] @ wanted), fit(x[1::2], x[1::2] @ wanted)])
    assert found is not None
    assert np.square(x @ (wanted - found)).sum() < 0.01 * np.square(x @ wanted).sum()


def test_an_error_that_inputs_do_not_tell_is_left() -> None:
    rng = np.random.default_rng(0)
    x, noise = rng.standard_normal((60, 50)), rng.standard_normal((60, 6))
    assert shift([fit(x[::2], noise[::2]), fit(x[1::2], noise[1::2])]) is None
    assert shift([fit(x, 0 * noise)]) is None


def test_one_half_alone_is_shifted_with_care() -> None:
    x = np.diag([3.0, 0.0])
    found = shift([fit(x, x)])
    assert found is not None
    np.testing.assert_allclose(found, np.diag([9 / 9.45, 0.0]))  # a penalty of a tenth of the mean of 9 and 0
