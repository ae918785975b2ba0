"""Ops that pick: rows of a table, the position of the largest; their indices stay in 32 bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .codes import rows_of
from .scope import Scope
from .stored import Stored


def _arg(which: str) -> Callable[[Scope], Sequence[Any]]:
    def convert(scope: Scope) -> Sequence[Any]:
        from tvm import topi

        return [
            scope.bb.emit_te(
                getattr(topi, which),
                scope.tensor(0),
                scope.attribute("axis", 0),
                bool(scope.attribute("keepdims", 1)),
                bool(scope.attribute("select_last_index", 0)),
            )
        ]

    return convert


def _gather(scope: Scope) -> Sequence[Any]:
    """Take along an axis. An index out of range reads the nearest entry rather than memory that is not the table's."""
    from tvm import relax

    axis, table, indices = scope.attribute("axis", 0), scope.operand(0), scope.constant(1)
    if isinstance(table, relax.ShapeExpr) or isinstance(scope.operand(1), relax.ShapeExpr):
        return scope.by_tvm()
    if isinstance(table, Stored) and axis % len(table.shape) == 0 and indices is None:
        return [rows_of(scope, table, scope.tensor(1))]
    data = scope.tensor(0)
    size = int(data.ty.shape[axis])
    if indices is not None:
        index = relax.const(np.where(indices < 0, indices + size, indices).astype(np.int32))
    else:
        index = scope.bb.emit(scope.tensor(1))
        below = relax.op.less(index, relax.const(0, index.ty.dtype))
        index = relax.op.where(below, relax.op.add(index, relax.const(size, index.ty.dtype)), index)
    return [relax.op.take(data, index, axis, mode="clip")]


CONVERTERS = {("", "ArgMax"): _arg("argmax"), ("", "ArgMin"): _arg("argmin"), ("", "Gather"): _gather}
