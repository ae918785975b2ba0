"""The larger or smaller of two, where a NaN is never lost: ``max(a, b)`` is b on a CPU where either is NaN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .scope import Scope


def extreme(scope: Scope) -> Sequence[Any]:
    """Convert Max and Min: numbers that are known stand first, so that only what could be NaN is looked at."""
    from tvm import relax

    if not scope.dtype(0).startswith("float"):
        return scope.by_tvm()
    choose = {"Max": relax.op.maximum, "Min": relax.op.minimum}[scope.node.op_type]
    order = sorted(range(len(scope.node.inputs)), key=lambda index: not _is_number(scope.constant(index)))
    result = scope.bb.normalize(scope.tensor(order[0]))
    for at, index in enumerate(order[1:]):
        chosen = choose(result, scope.tensor(index))
        known = not at and _is_number(scope.constant(order[0]))
        result = scope.bb.emit(chosen if known else relax.op.where(relax.op.isnan(result), result, chosen))
    return [result]


def _is_number(constant: np.ndarray | None) -> bool:
    return constant is not None and not np.isnan(constant).any()


def relu(scope: Scope) -> Sequence[Any]:
    """Convert Relu."""
    return [_positive(scope, scope.tensor(0))]


def elu(scope: Scope) -> Sequence[Any]:
    """Convert Elu, as ``relu(x) - alpha * relu(1 - exp(x))``."""
    from tvm import relax

    x, dtype = scope.bb.normalize(scope.tensor(0)), scope.dtype(0)
    below = _positive(scope, relax.op.subtract(relax.const(1, dtype), relax.op.exp(x)))
    scaled = relax.op.multiply(relax.const(scope.attribute("alpha", 1.0), dtype), below)
    return [scope.bb.emit(relax.op.subtract(_positive(scope, x), scaled))]


def hard_sigmoid(scope: Scope) -> Sequence[Any]:
    """Convert HardSigmoid."""
    from tvm import relax

    dtype = scope.dtype(0)
    slope, offset = (
        relax.const(scope.attribute(name, default), dtype) for name, default in (("alpha", 0.2), ("beta", 0.5))
    )
    line = relax.op.add(relax.op.multiply(scope.tensor(0), slope), offset)
    return [scope.bb.emit(relax.op.minimum(relax.const(1, dtype), _positive(scope, line)))]


def _positive(scope: Scope, x: Any) -> Any:
    from tvm import relax

    x = scope.bb.normalize(x)
    return scope.bb.emit(relax.op.maximum(relax.const(0, str(x.ty.dtype.dtype)), x))


CONVERTERS = {
    ("", "Elu"): elu,
    ("", "HardSigmoid"): hard_sigmoid,
    ("", "Max"): extreme,
    ("", "Min"): extreme,
    ("", "Relu"): relu,
}
