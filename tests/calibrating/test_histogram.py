"""The histogram counts every value once, in a bin that holds it, whatever comes in which order."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from polycast.calibrating.histogram import HALF, Histogram

FLOATS = arrays(np.float32, st.integers(0, 40), elements=st.floats(width=32, allow_nan=False, allow_infinity=False))


def counted(*parts: np.ndarray) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    return histogram


def same(one: Histogram, other: Histogram) -> bool:
    return one.exponent == other.exponent and np.array_equal(one.counts, other.counts)


@settings(max_examples=50)
@given(FLOATS)
def test_every_value_is_in_the_bin_that_holds_it(x: np.ndarray) -> None:
    histogram = counted(x)
    exact = np.floor(x.astype(np.float64) / histogram.width).astype(int) + HALF
    assert np.array_equal(histogram.counts, np.bincount(exact, minlength=2 * HALF))


@settings(max_examples=50)
@given(FLOATS)
def test_the_larger_side_reaches_past_half_of_its_bins(x: np.ndarray) -> None:
    histogram = counted(x)
    largest = max(map(abs, x.tolist()), default=0.0)
    assert math.frexp(histogram.width)[0] == 0.5  # a power of two
    assert largest <= HALF * histogram.width
    if largest > 2.0**-149 * HALF:
        assert largest >= HALF / 2 * histogram.width


@settings(max_examples=50)
@given(FLOATS, st.integers(0, 40), st.integers(0, 1 << 30))
def test_neither_the_cut_nor_the_order_counts(x: np.ndarray, cut: int, seed: int) -> None:
    shuffled = x[np.random.default_rng(seed).permutation(len(x))]
    assert same(counted(x), counted(shuffled[:cut], shuffled[cut:]))


@settings(max_examples=50)
@given(FLOATS, FLOATS)
def test_merging_is_counting_both(x: np.ndarray, y: np.ndarray) -> None:
    one, other = counted(x), counted(y)
    before = other.counts.copy()
    one.merge(other)
    assert same(one, counted(x, y))
    assert np.array_equal(other.counts, before)


@settings(max_examples=50)
@given(FLOATS, st.floats(0, 100))
def test_a_percentile_is_off_by_less_than_a_bin(x: np.ndarray, percent: float) -> None:
    histogram = counted(x)
    if not len(x):
        with pytest.raises(ValueError, match="empty histogram"):
            histogram.percentile(percent)
        return
    exact = np.sort(x.astype(np.float64))[max(0, math.ceil(len(x) * percent / 100 - 1e-9) - 1)]
    assert 0 <= histogram.percentile(percent) - exact <= histogram.width


@settings(max_examples=50)
@given(FLOATS)
def test_arrays_bring_it_back(x: np.ndarray) -> None:
    histogram = counted(x)
    assert same(histogram, Histogram.from_arrays(histogram.to_arrays()))


def test_zero_is_an_edge() -> None:
    histogram = counted(np.array([-1e-30, 0, 1e-30, 1], np.float32))
    assert histogram.edges[HALF] == 0
    assert histogram.counts[HALF - 1 : HALF + 1].tolist() == [1, 2]


def test_what_is_not_finite_does_not_count() -> None:
    assert counted(np.array([np.nan, np.inf, 2, -np.inf], np.float32)).total == 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_any_float_dtype_counts_alike(dtype: type) -> None:
    x = np.array([-3.5, 0.25, 1, 8], dtype)
    assert same(counted(x), counted(x.astype(np.float64)))


def test_memory_does_not_grow() -> None:
    histogram, rng = Histogram(), np.random.default_rng(0)
    size = histogram.counts.nbytes
    for scale in 2.0 ** np.arange(-100, 100, 10):
        histogram.add(scale * rng.standard_normal(1000))
    assert histogram.counts.nbytes == size
    assert histogram.total == 20_000
