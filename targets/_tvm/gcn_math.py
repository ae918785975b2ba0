"""Functions for AMD GPUs in arithmetic alone, so that no library of ROCm's is linked into a kernel.

LLVM has exp, exp2, log, log2, log10 and sqrt in full precision. For the rest it has fast instructions, which are too
coarse (sin, cos), wrong (a power of a negative base), or calls of a library. All is computed in float32, and rounded to
float16 at the end where that was asked.
Source: Moshier, Cephes (sinf, atanf); Eigen's rational tanh and erf.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

#: Gives the TIR of a function of TIR expressions.
Function = Callable[..., Any]

#: Half a turn over two, in three parts of which the first ones have few bits: their multiples are exact up to 8192.
_QUARTER = (1.5703125, 4.837512969970703e-4, 7.549789948768648e-8)

_SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
_ATAN = (8.05374449538e-2, -1.38776856032e-1, 1.99777106478e-1, -3.33329491539e-1)

#: Beyond this tanh is 1 in float32.
_TANH_END = 7.90531110763549805
_TANH_ABOVE = (
    -2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08,
    1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03,
)  # fmt: skip
_TANH_BELOW = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)

#: Beyond this erf is 1 in float32.
_ERF_END = 4.0
_ERF_ABOVE = (
    -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
    -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02,
)  # fmt: skip
_ERF_BELOW = (
    -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03, -1.42647390514189e-02,
)  # fmt: skip

#: Rank of these among those who know how to compute a function; TVM's own have 10.
_OVER_TVM = 99

#: Powers up to this one are multiplied out.
_MULTIPLIED = 16


@cache
def register() -> None:
    """Tell TVM how to compute them in kernels for ROCm, in this process."""
    from tvm.tirx.op import register_intrin_lowering

    for name, function in FUNCTIONS.items():
        register_intrin_lowering(f"tirx.{name}", "rocm", f=_lowering(function), level=_OVER_TVM)


def _lowering(function: Function) -> Callable[[Any], Any]:
    def lowered(call: Any) -> Any:
        dtype = str(call.args[0].ty.dtype)
        wide = [argument.astype("float32") for argument in call.args]
        return function(*wide).astype(dtype)

    return lowered


def polynomial(x: Any, factors: Sequence[float]) -> Any:
    """Give the polynomial with ``factors``, of the highest power first."""
    result = _constant(factors[0])
    for factor in factors[1:]:
        result = result * x + _constant(factor)
    return result


def sin(x: Any) -> Any:
    """Sine, within 2 units in the last place of 1 up to 12,867 (8192 quarters of a turn)."""
    return _wave(x, 0)


def cos(x: Any) -> Any:
    """Cosine, as exact as ``sin``."""
    return _wave(x, 1)


def tan(x: Any) -> Any:
    """Tangent."""
    return sin(x) / cos(x)


def _wave(x: Any, ahead: int) -> Any:
    """Sine of ``x`` and ``ahead`` quarters of a turn."""
    from tvm import tirx

    turns = tirx.nearbyint(x * _constant(2 / math.pi))
    rest = x
    for part in _QUARTER:
        rest = rest - turns * _constant(part)
    square = rest * rest
    odd = rest + rest * square * polynomial(square, _SIN)
    even = _constant(1) - square * _constant(0.5) + square * square * polynomial(square, _COS)
    quarter = turns.astype("int32") + ahead
    value = tirx.Select(quarter & 1 == 0, odd, even)
    return tirx.Select(quarter & 2 == 0, value, -value)


def tanh(x: Any) -> Any:
    """Hyperbolic tangent, within 8 units in the last place."""
    near = _clamped(x, _TANH_END)
    square = near * near
    return near * polynomial(square, _TANH_ABOVE) / polynomial(square, _TANH_BELOW)


def erf(x: Any) -> Any:
    """Error function, within 8 units in the last place."""
    near = _clamped(x, _ERF_END)
    square = near * near
    return near * polynomial(square, _ERF_ABOVE) / polynomial(square, _ERF_BELOW)


def power(x: Any, y: Any) -> Any:
    """x to the power of y. Its relative error grows with the result: 2^-22 for each power of two in it."""
    from tvm import tirx

    if isinstance(y, tirx.FloatImm) and y.value.is_integer() and abs(y.value) <= _MULTIPLIED:
        return _multiplied(x, int(y.value))
    size = tirx.exp2(y * tirx.log2(tirx.abs(x)))
    half = y * _constant(0.5)
    odd = tirx.floor(half) != half
    whole = tirx.floor(y) == y
    negative = tirx.Select(whole, tirx.Select(odd, -size, size), _constant(math.nan))
    return tirx.Select(y == _constant(0), _constant(1), tirx.Select(x < _constant(0), negative, size))


def _multiplied(x: Any, exponent: int) -> Any:
    result, square, left = _constant(1), x, abs(exponent)
    while left:
        if left & 1:
            result = result * square
        square, left = square * square, left >> 1
    return result if exponent >= 0 else _constant(1) / result


def log1p(x: Any) -> Any:
    """Logarithm of 1 + x, as exact where x is small: there by the series of 2 atanh(x / (2 + x))."""
    from tvm import tirx

    part = x / (x + _constant(2))
    series = part * polynomial(part * part, [2 / odd for odd in (9, 7, 5, 3, 1)])
    return tirx.Select(tirx.abs(x) < _constant(0.25), series, tirx.log(x + _constant(1)))


def atan(x: Any) -> Any:
    """Arcus tangent, within 4 units in the last place."""
    from tvm import tirx

    size, one = tirx.abs(x), _constant(1)
    large, middle = size > _constant(math.tan(3 * math.pi / 8)), size > _constant(math.tan(math.pi / 8))
    rest = tirx.Select(large, -one / size, tirx.Select(middle, (size - one) / (size + one), size))
    start = tirx.Select(large, _constant(math.pi / 2), tirx.Select(middle, _constant(math.pi / 4), _constant(0)))
    square = rest * rest
    value = start + (rest + rest * square * polynomial(square, _ATAN))
    return tirx.Select(x < _constant(0), -value, value)


def asin(x: Any) -> Any:
    """Arcus sine."""
    from tvm import tirx

    one = _constant(1)
    return atan(x / tirx.sqrt((one - x) * (one + x)))


def acos(x: Any) -> Any:
    """Arcus cosine."""
    from tvm import tirx

    one = _constant(1)
    return _constant(2) * atan(tirx.sqrt((one - x) / (one + x)))


def sinh(x: Any) -> Any:
    """Hyperbolic sine."""
    from tvm import tirx

    square, half = x * x, tirx.exp(tirx.abs(x) * _constant(0.5))
    series = x * polynomial(square, [1 / math.factorial(odd) for odd in (9, 7, 5, 3, 1)])
    size = _constant(0.5) * half * half - _constant(0.5) / half / half
    return tirx.Select(square < _constant(1), series, tirx.Select(x < _constant(0), -size, size))


def cosh(x: Any) -> Any:
    """Hyperbolic cosine."""
    from tvm import tirx

    half = tirx.exp(tirx.abs(x) * _constant(0.5))
    return _constant(0.5) * half * half + _constant(0.5) / half / half


def asinh(x: Any) -> Any:
    """Inverse of ``sinh``."""
    from tvm import tirx

    size, one = tirx.abs(x), _constant(1)
    root = tirx.sqrt(size * size + one)
    value = log1p(size + size * (size / (one + root)))
    return tirx.Select(x < _constant(0), -value, value)


def acosh(x: Any) -> Any:
    """Inverse of ``cosh``."""
    from tvm import tirx

    more = x - _constant(1)
    return log1p(more + tirx.sqrt(more * (more + _constant(2))))


def atanh(x: Any) -> Any:
    """Inverse of ``tanh``."""
    from tvm import tirx

    size = tirx.abs(x)
    value = _constant(0.5) * log1p((size + size) / (_constant(1) - size))
    return tirx.Select(x < _constant(0), -value, value)


def _clamped(x: Any, end: float) -> Any:
    from tvm import tirx

    return tirx.max(tirx.min(x, _constant(end)), _constant(-end))


def _constant(value: float) -> Any:
    from tvm import tirx

    return tirx.const(value, "float32")


#: By the names of TVM's operators.
FUNCTIONS: dict[str, Function] = {
    "acos": acos,
    "acosh": acosh,
    "asin": asin,
    "asinh": asinh,
    "atan": atan,
    "atanh": atanh,
    "cos": cos,
    "cosh": cosh,
    "erf": erf,
    "log1p": log1p,
    "pow": power,
    "sin": sin,
    "sinh": sinh,
    "tan": tan,
    "tanh": tanh,
}
