"""Confidence intervals, held against scipy, against coverage and against counting by hand."""

from __future__ import annotations

from itertools import product
from math import comb, sqrt

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from polycast.statistics import (
    RESAMPLES,
    bootstrap,
    median_interval,
    median_ratio,
    paired_shares,
    resamplings,
    spearman,
    wilson,
)


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (5, 5), (1, 1), (83, 100), (4718, 4800)])
def test_wilson_is_scipys(hits: int, n: int) -> None:
    ours, theirs = wilson(hits, n), scipy.stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert (ours.low, ours.high) == pytest.approx((max(0, theirs.low), min(1, theirs.high)), abs=1e-12)


def test_a_paired_difference_of_shares_by_hand() -> None:
    # Approval ratings of Agresti 1990, table 10.1: 794 and 570 agree, 150 are lost, 86 are won.
    before = np.repeat([True, True, False, False], [794, 150, 86, 570])
    after = np.repeat([True, False, True, False], [794, 150, 86, 570])
    middle = (86 - 150) / 1602
    half = 1.959964 * sqrt((87 - 0.5 + 151 - 0.5) - 64**2 / 1602) / 1602
    found = paired_shares(before, after)
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half), abs=1e-7)
    assert found.high < 0


def test_no_change_at_small_n_is_no_certainty() -> None:
    few, many = (paired_shares(np.ones(n, bool), np.ones(n, bool)) for n in (10, 1000))
    assert few.low < -0.1 < 0.1 < few.high
    assert 0 < many.width < few.width / 50


@pytest.mark.parametrize("n", [10, 25])
@pytest.mark.parametrize(("lost", "won"), [(0.02, 0.01), (0.1, 0.05), (0.3, 0.1)])
def test_the_paired_interval_covers(n: int, lost: float, won: float) -> None:
    # Exact: every outcome with its multinomial probability.
    covered = 0.0
    for b, c in product(range(n + 1), repeat=2):
        if b + c > n:
            continue
        likely = comb(n, b) * comb(n - b, c) * lost**b * won**c * (1 - lost - won) ** (n - b - c)
        before = np.arange(n) < b
        after = (np.arange(n) >= b) & (np.arange(n) < b + c)
        found = paired_shares(before, after)
        covered += likely * (found.low <= won - lost <= found.high)
    assert covered >= 0.93


def test_resamplings_draw_n_of_n() -> None:
    counts = np.concatenate(list(resamplings(7)))
    assert counts.shape == (RESAMPLES, 7)
    assert (counts.sum(1) == 7).all()
    # Each of 2,000 x 7 draws hits a given sample with 1/7: five standard errors.
    assert np.abs(counts.sum(0) / counts.sum() - 1 / 7).max() < 5 * sqrt(1 / 7 * 6 / 7 / counts.sum())


def test_bootstrap_of_a_mean_is_scipys() -> None:
    x = np.random.default_rng(3).exponential(size=80)
    ours = bootstrap(lambda counts: counts @ x / len(x), len(x))
    theirs = scipy.stats.bootstrap((x,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    # Standard error of a 2.5 % quantile of 2,000 draws from a normal distribution.
    sigma = x.std() / sqrt(len(x))
    error = sqrt(0.025 * 0.975 / RESAMPLES) / scipy.stats.norm.pdf(1.96) * sigma
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=5 * error)


def test_bootstrap_is_seeded_and_bears_infinity() -> None:
    x = np.array([1.0, 2.0, 5.0])
    assert bootstrap(lambda c: c @ x, 3) == bootstrap(lambda c: c @ x, 3)
    assert bootstrap(lambda c: np.where(c[:, 0] > 0, np.inf, 0.0), 3).high == np.inf


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 4), st.integers(1, 3)), min_size=2, max_size=30),
)
def test_spearman_is_scipys_with_ties_and_repeats(rows: list[tuple[int, int, int]]) -> None:
    x, y, times = (np.array(column, float) for column in zip(*rows, strict=True))
    found = spearman(x, y, times[None])[0]
    repeats = times.astype(int)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert np.isnan(found)
    else:
        theirs = scipy.stats.spearmanr(np.repeat(x, repeats), np.repeat(y, repeats)).statistic
        assert found == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("n", [5, 8, 20, 101, 1000])
def test_the_median_interval_covers(n: int) -> None:
    found = median_interval(np.arange(n, dtype=float))
    # The median lies between the order statistics of ranks low and high iff so many values lie below it.
    covered = scipy.stats.binom.cdf(found.high, n, 0.5) - scipy.stats.binom.cdf(found.low, n, 0.5)
    assert covered >= 0.9375  # what 5 values can give at most


def test_the_ratio_of_medians_is_paired() -> None:
    rng = np.random.default_rng(5)
    machine = rng.uniform(1, 10, 500)  # what else the machine does weighs on both alike
    found = median_ratio(machine * 2, machine)
    assert (found.low, found.high) == (2, 2)
    noisy = median_ratio(rng.normal(3, 0.1, 500), rng.normal(2, 0.1, 500))
    assert noisy.low < 1.5 < noisy.high and noisy.width < 0.05
