"""A range holds zero, has a length, and loses as little as its method says."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from polycast.calibrating.histogram import HALF, Histogram
from polycast.calibrating.ranges import choose_range
from polycast.calibrating.taps import Seen

METHODS = ("minmax", "average", "percentile", "entropy", "mse")
RNG = np.random.default_rng(0)
DATA = {
    "normal": RNG.standard_normal(20_000),
    "laplace": RNG.laplace(size=20_000) + 0.5,
    "relu": np.maximum(RNG.standard_normal(20_000), 0),
    "outlier": np.append(RNG.standard_normal(20_000), 40.0),
    "negative": -np.abs(RNG.standard_normal(20_000)) - 1,
}


def seen(x: np.ndarray) -> Seen:
    x = x.astype(np.float32)
    histogram = Histogram()
    histogram.add(x)
    low, high = (float(x.min()), float(x.max())) if x.size else (0.0, 0.0)
    return Seen(1, x.size, low, high, low, high, histogram=histogram)


def loss(x: np.ndarray, ends: tuple[float, float], bits: int, symmetric: bool) -> float:
    """Quantize ``x`` as ONNX's QuantizeLinear does and give the mean squared error."""
    low, high = ends
    if symmetric:
        most = 2 ** (bits - 1) - 1
        least, step = -most, high / most
    else:
        step = (high - low) / (2**bits - 1)
        least = int(np.rint(low / step))
        most = least + 2**bits - 1
    return float(np.mean((x - np.clip(np.rint(x / step), least, most) * step) ** 2))


@given(
    arrays(np.float32, st.integers(0, 40), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    st.sampled_from(METHODS),
    st.sampled_from([2, 4, 8]),
    st.booleans(),
)
def test_a_range_holds_zero_and_has_a_step(x: np.ndarray, method: str, bits: int, symmetric: bool) -> None:
    low, high = choose_range(seen(x), method, bits, symmetric)
    assert low <= 0 <= high
    step = np.float32((high - low) / (2**bits - 1))
    assert step >= np.finfo(np.float32).tiny
    if symmetric:
        assert low == -high
    elif x.any():
        assert min(x.min(), 0) <= low or low == 0 or high - low <= 2**bits * np.finfo(np.float32).tiny
        assert high <= max(x.max(), 0) or high - low <= 2**bits * np.finfo(np.float32).tiny


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("x", "wanted"),
    [([0.0, 0.0], (0, 1)), ([3.0] * 5, (0, 3)), ([-2.0], (-2, 0)), ([7.0], (0, 7)), ([], (0, 1))],
    ids=["zeros", "constant", "negative", "one", "none"],
)
def test_degenerate_tensors(method: str, x: list[float], wanted: tuple[float, float]) -> None:
    low, high = choose_range(seen(np.array(x)), method)
    assert (low, high) == wanted
    size = max(-wanted[0], wanted[1])
    assert choose_range(seen(np.array(x)), method, symmetric=True) == (-size, size)


def test_minmax_and_average_are_what_was_seen() -> None:
    found = Seen(3, 30, low=-2.0, high=5.0, average_low=-1.0, average_high=4.0)
    assert choose_range(found, "minmax") == (-2, 5)
    assert choose_range(found, "average") == (-1, 4)
    assert choose_range(found, "average", symmetric=True) == (-4, 4)


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("percent", [99.0, 99.9])
def test_percentile_cuts_as_much_as_it_says(name: str, percent: float) -> None:
    x = DATA[name]
    found = seen(x)
    assert found.histogram is not None
    low, high = choose_range(found, "percentile", percent=percent)
    cut = int(len(x) * (100 - percent) / 200 + 0.01)  # values outside, at each end
    inside = np.sort(x)[cut : len(x) - cut]
    assert low == pytest.approx(min(inside[0], 0), abs=found.histogram.width)
    assert high == pytest.approx(max(inside[-1], 0), abs=found.histogram.width)


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_mse_is_near_the_best_clip(name: str, bits: int, symmetric: bool) -> None:
    """Brute force tries 400 clips of both ends together on the data itself; one step between two of them may be lost.

    Cutting each end alone can only be better than that, and the error is that of the data, not of its histogram.
    """
    x = DATA[name]
    found = loss(x, choose_range(seen(x), "mse", bits, symmetric), bits, symmetric)
    low, high = min(x.min(), 0), max(x.max(), 0)
    if symmetric:
        low, high = -max(-low, high), max(-low, high)
    best = min(loss(x, (low * f, high * f), bits, symmetric) for f in np.linspace(0.05, 1, 400))
    # Where a few values are clipped, what each of them loses is a matter of chance of the size of one value's share.
    chance = np.sort((x - x.mean()) ** 2)[-1] / len(x) / bits
    assert found <= best + chance


def divergence(sizes: np.ndarray, kept: int, levels: int) -> float:
    """Compute what Migacz 2017 does, in plain loops: what is cut goes to the last bin; Q spreads groups of bins."""
    p = sizes[:kept].astype(float)
    p[-1] += sizes[kept:].sum()
    q = np.zeros(kept)
    for level in range(levels):
        group = range(level * kept // levels, (level + 1) * kept // levels)
        filled = [i for i in group if sizes[i]]
        total = sum(sizes[i] for i in group)
        for i in filled:
            q[i] = total / len(filled)
    p, q = ((v / v.sum() + 1e-4 / kept) / (1 + 1e-4) for v in (p, q))
    return float(np.sum(p * np.log(p / q)))


@pytest.mark.parametrize("name", ["normal", "relu"])
def test_entropy_diverges_least(name: str) -> None:
    found = seen(DATA[name])
    assert found.histogram is not None
    sizes = found.histogram.counts[HALF:] + found.histogram.counts[:HALF][::-1]
    sizes[0] = sizes[1]
    levels = 16 if name == "relu" else 8
    _, high = choose_range(found, "entropy", bits=4)
    chosen = divergence(sizes, round(high / found.histogram.width), levels)
    used = int(np.flatnonzero(sizes)[-1]) + 1
    others = [divergence(sizes, int(kept), levels) for kept in np.linspace(levels, used, 12)]
    assert chosen <= min(others)
    assert high < found.high


def test_a_method_that_needs_a_histogram_says_so() -> None:
    with pytest.raises(ValueError, match=r"Want\.HISTOGRAM"):
        choose_range(Seen(1, 1, 0.0, 1.0), "mse")
    with pytest.raises(ValueError, match="unknown method 'kl'; there are minmax, average"):
        choose_range(Seen(1, 1, 0.0, 1.0), "kl")
