"""Grids: what is rounded lies at most half a step off, every scale can be stored, and searching loses nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from polycast.passes.quantization._grid import LOG_STEPS, STORED, Grid, Quantized, Scales
from polycast.passes.quantization._search import rounded, search

EPS = float(np.finfo(np.float32).eps)

weights = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, max_side=70),
    elements=st.floats(-1024, 1024, width=32) | st.floats(-(2.0**-10), 2.0**-10, width=32) | st.just(0.0),
)
grids = st.builds(Grid, st.sampled_from([2, 3, 4, 8]), st.sampled_from([0, 16, 32]), st.booleans())
stored = st.sampled_from(STORED)
dtypes = st.sampled_from([np.float32, np.float16])


def scales_for(grid: Grid, w: np.ndarray, how: str, dtype: type[np.floating] = np.float32) -> Scales:
    """Scales that reach what the widest block of ``w`` could need."""
    low, high = np.float32(min(w.min(), 0)), np.float32(max(w.max(), 0))
    return Scales.up_to(float(grid.reach(low, high)), how, dtype)


def by_hand(weight: Quantized) -> np.ndarray:
    """(q - zero) * scale, element by element."""
    n, k = weight.codes.shape
    values = np.empty((n, k))
    for row in range(n):
        for column in range(k):
            block = column // weight.grid.block if weight.grid.block else 0
            code, zero = int(weight.codes[row, column]), int(weight.zero[row, block])
            values[row, column] = (code - zero) * float(weight.scale[row, block])
    return values


@given(weights, grids, stored, dtypes)
def test_a_grid_that_reaches_the_extremes_is_at_most_half_a_step_off(
    w: np.ndarray, grid: Grid, how: str, dtype: type[np.floating]
) -> None:
    found = rounded(w, grid, scales_for(grid, w, how, dtype), "rtn")
    step = np.repeat(found.scale.astype(np.float64), grid.block or w.shape[1], axis=1)[:, : w.shape[1]]
    # Half a step; the quotient, of up to ``top`` steps, is rounded to float32, and so is the product.
    assert np.all(np.abs(found.values() - w.astype(np.float64)) <= step * (0.5 + 2 * EPS * grid.top))
    assert found.codes.max() <= grid.top


@given(weights, grids, stored)
def test_values_are_codes_less_zero_times_scale(w: np.ndarray, grid: Grid, how: str) -> None:
    found = rounded(w, grid, scales_for(grid, w, how), "mse")
    np.testing.assert_array_equal(found.values(), by_hand(found).astype(np.float32))


@given(arrays(np.float32, 20, elements=st.floats(2.0**-126, 1e4, width=32)), stored, dtypes)
def test_a_scale_that_is_stored_stays_as_it_is(scale: np.ndarray, how: str, dtype: type[np.floating]) -> None:
    scales = Scales.up_to(float(scale.max()), how, dtype)
    once = scales.nearest(scale)
    assert once.dtype == np.float32 and (once > 0).all()
    np.testing.assert_array_equal(scales.nearest(once), once)
    np.testing.assert_array_equal(once, once.astype(dtype))
    assert (scales.above(scale) >= scale).all()


@given(st.floats(2.0**-100, 2.0**100, width=32), st.floats(0, 15))
def test_log8_is_within_half_a_step(largest: float, octaves: float) -> None:
    scales = Scales.up_to(largest, "log8")
    scale = np.array([largest * 2.0**-octaves], np.float32)
    below = np.log2(scales.unit / float(scale[0]))
    per_octave = 48 if below < 4 else 8 if below < 8 else 4
    half = 2 ** (1 / (2 * per_octave)) * (1 + 16 * EPS)
    assert 1 / half <= float(scales.nearest(scale)[0]) / float(scale[0]) <= half
    assert float(scales.above(scale)[0]) / float(scale[0]) <= half**2


def test_log8_is_a_table_times_the_unit() -> None:
    scales = Scales.up_to(0.01, "log8")
    codes = np.arange(256, dtype=np.uint8)
    assert LOG_STEPS.shape == (256,) and LOG_STEPS[-1] == 1 and (np.diff(LOG_STEPS) > 0).all()
    assert LOG_STEPS[0] == np.float32(2**-15.75)
    np.testing.assert_array_equal(scales.decode(codes), LOG_STEPS * np.float32(scales.unit))
    np.testing.assert_array_equal(scales.encode(scales.decode(codes)), codes)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_searching_loses_next_to_nothing_against_trying_everything(bits: int, symmetric: bool) -> None:
    grid = Grid(bits, 32, symmetric)
    block = np.random.default_rng(0).standard_normal((40, 32)).astype(np.float32)
    scales = scales_for(grid, block, "log8")
    every = scales.decode(np.arange(120, 256, dtype=np.uint8)).astype(np.float64)[:, None]
    zeros = [grid.middle] if symmetric else range(grid.top + 1)

    def lost(scale: np.ndarray, zero: int | np.ndarray) -> np.ndarray:
        steps = np.rint(block[:, None] / scale)
        return np.square(np.clip(steps, -zero, grid.top - zero) * scale - block[:, None]).sum(-1)

    least = np.min([lost(every, zero).min(-1) for zero in zeros], axis=0).sum()
    scale, zero = (each[:, None, None] for each in search(grid, block, scales))
    assert lost(scale, zero).sum() <= 1.05 * least


def test_what_matters_more_is_rounded_better() -> None:
    grid, block = Grid(3, 32), np.random.default_rng(1).standard_normal((200, 32)).astype(np.float32)
    importance = np.where(np.arange(32) < 4, 100.0, 1.0).astype(np.float32)
    scales = scales_for(grid, block, "log8")

    def lost(found: tuple[np.ndarray, np.ndarray]) -> float:
        scale, zero = (each[:, None] for each in found)
        values = (np.clip(np.rint(block / scale) + zero, 0, 7) - zero) * scale
        return float((importance * np.square(values - block)).sum())

    assert lost(search(grid, block, scales, importance)) < lost(search(grid, block, scales))


@pytest.mark.parametrize("bits", [4, 3])
def test_half_quadratic_has_a_smaller_norm_than_least_squares(bits: int) -> None:
    w = np.random.default_rng(2).standard_t(4, (64, 128)).astype(np.float32)
    grid = Grid(bits, 32)
    scales = scales_for(grid, w, "log8")
    norm = {method: (np.abs(rounded(w, grid, scales, method).values() - w) ** 0.7).sum() for method in ("mse", "hqq")}
    assert norm["hqq"] < norm["mse"]


@pytest.mark.parametrize("block", [0, 16, 32])
def test_strides_and_stripes_change_nothing(block: int) -> None:
    w = np.random.default_rng(3).standard_normal((70, 50)).astype(np.float32)
    grid = Grid(4, block)
    scales = scales_for(grid, w, "log8")
    whole = rounded(w, grid, scales, "mse")
    turned = rounded(np.asfortranarray(w), grid, scales, "mse")
    parts = Quantized.joined(rounded(part, grid, scales, "mse") for part in (w[:33], w[33:]))
    for other in (turned, parts):
        np.testing.assert_array_equal(other.values(), whole.values())


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_all_zero_weights_stay_zero(dtype: type[np.floating]) -> None:
    w = np.zeros((3, 40), np.float32)
    for how in STORED:
        assert not rounded(w, Grid(), scales_for(Grid(), w, how, dtype), "mse").values().any()
