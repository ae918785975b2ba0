"""Functions for AMD GPUs, run by LLVM on this CPU and judged by numpy and scipy in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.special

pytest.importorskip("tvm")

from polycast.targets._tvm import gcn_math

#: Function, numpy's, interval, and units in the last place that its docstring allows or that its parts add up to.
CASES: dict[str, tuple[Callable[..., Any], float, float, float]] = {
    "acos": (np.arccos, -1, 1, 8),
    "acosh": (np.arccosh, 1, 1e4, 8),
    "asin": (np.arcsin, -1, 1, 8),
    "asinh": (np.arcsinh, -1e4, 1e4, 8),
    "atan": (np.arctan, -1e3, 1e3, 4),
    "atanh": (np.arctanh, -0.999, 0.999, 8),
    "cosh": (np.cosh, -89, 89, 4),
    "erf": (scipy.special.erf, -6, 6, 8),
    "log1p": (np.log1p, -0.999, 1e3, 8),
    "sinh": (np.sinh, -89, 89, 4),
    "tan": (np.tan, -1.5, 1.5, 4),
    "tanh": (np.tanh, -20, 20, 8),
}


def run(function: Callable[..., Any], *arrays: np.ndarray) -> np.ndarray:
    """Compute ``function`` of every element on the CPU."""
    import tvm
    from tvm import te

    inputs = [te.placeholder(array.shape, "float32", f"x{number}") for number, array in enumerate(arrays)]
    output = te.compute(arrays[0].shape, lambda i: function(*(each[i] for each in inputs)))
    kernel = tvm.compile(te.create_prim_func([*inputs, output]), target=tvm.target.Target({"kind": "llvm"}))
    found = tvm.runtime.tensor(np.empty(arrays[0].shape, np.float32))
    kernel(*map(tvm.runtime.tensor, arrays), found)
    return found.numpy()


def spread(low: float, high: float) -> np.ndarray:
    """Numbers over all of an interval, and more of them near zero or near its lower end."""
    rng = np.random.default_rng(0)
    near = rng.uniform(max(low, -1), min(high, max(low, 0) + 1), 5000) * 10.0 ** rng.integers(-6, 1, 5000)
    near = np.where((near < low) | (near > high), low, near)
    return np.concatenate([rng.uniform(low, high, 5000), near]).astype(np.float32)


@pytest.mark.parametrize("name", CASES)
def test_function_is_exact_to_a_few_units_in_the_last_place(name: str) -> None:
    judge, low, high, units = CASES[name]
    x = spread(low, high)
    want = judge(x.astype(np.float64))
    found = run(gcn_math.FUNCTIONS[name], x)
    assert (np.abs(found - want) <= units * np.spacing(np.abs(want).astype(np.float32))).all()


@pytest.mark.parametrize("name", ("sin", "cos"))
def test_wave_is_exact_far_from_zero(name: str) -> None:
    """A position of 8191 in a rotary embedding is such a number."""
    x = spread(-12_867, 12_867)
    found = run(gcn_math.FUNCTIONS[name], x)
    assert np.abs(found - getattr(np, name)(x.astype(np.float64))).max() <= 2 * np.finfo(np.float32).eps / 2


def test_power_of_negative_and_whole_numbers() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.uniform(-8, 8, 5000).astype(np.float32), rng.uniform(-9, 9, 5000).astype(np.float32)
    x[:4], y[::2] = (0, 0, -1, 1), np.round(y[::2])
    with np.errstate(all="ignore"):
        want = np.power(x.astype(np.float64), y)
        allowed = (2 + np.abs(y * np.log2(np.abs(x)))) * 2.0**-22 * np.abs(want)
    found = run(gcn_math.power, x, y)
    known = np.isfinite(want) & (x != 0)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(want))
    assert (np.abs(found[known] - want[known]) <= allowed[known]).all()


@pytest.mark.parametrize("exponent", (-3, 0, 1, 2, 3, 7))
def test_known_power_is_multiplied_out(exponent: int) -> None:
    from tvm import tirx

    x = spread(-10, 10)
    x = x[np.abs(x) > 1e-4]  # so that no power of it is subnormal
    found = run(lambda each: gcn_math.power(each, tirx.const(float(exponent), "float32")), x)
    want = np.power(x.astype(np.float64), exponent)
    assert (np.abs(found - want) <= (1 + abs(exponent)) * np.finfo(np.float32).eps * np.abs(want)).all()


def test_end_of_a_range_is_the_limit() -> None:
    x = np.array([-1, 1], np.float32)
    np.testing.assert_allclose(run(gcn_math.asin, x), np.arcsin(x), rtol=np.finfo(np.float32).eps)
    np.testing.assert_allclose(run(gcn_math.acos, x), np.arccos(x), rtol=np.finfo(np.float32).eps)
    far = np.array([-1e30, 1e30], np.float32)
    for name in ("tanh", "erf"):
        np.testing.assert_allclose(run(gcn_math.FUNCTIONS[name], far), [-1, 1], rtol=np.finfo(np.float32).eps)
