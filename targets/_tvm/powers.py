"""Small whole powers as products: WGSL's ``pow`` is not defined below zero, and a product is faster everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .scope import Scope

#: Up to here a product rounds no more often than a library's ``pow`` errs by units in the last place.
_LARGEST = 4


def power(scope: Scope) -> Sequence[Any]:
    """Convert Pow."""
    from tvm import relax

    exponent = scope.constant(1)
    whole = exponent is not None and exponent.size == 1 and float(exponent.item()) in range(2, _LARGEST + 1)
    if exponent is None or not whole or exponent.ndim or not scope.dtype(0).startswith("float"):
        return scope.by_tvm()
    x = product = scope.tensor(0)
    for _ in range(1, int(exponent.item())):
        product = scope.bb.emit(relax.op.multiply(product, x))
    return [product]


CONVERTERS = {("", "Pow"): power}
