"""Ops that pick: rows of a table, the position of the largest; their indices stay in 32 bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from .codes import rows_of
from .scope import Scope, narrow
from .stored import Stored


def _arg(scope: Scope, *, largest: bool) -> Sequence[Any]:
    """Give where the largest or the smallest number along an axis is, the first or the last of equal ones."""
    from tvm import relax

    axis, last = scope.attribute("axis", 0), bool(scope.attribute("select_last_index", 0))
    index, _ = _position(scope, axis, largest=largest, last=last)
    return [index if scope.attribute("keepdims", 1) else relax.op.squeeze(index, [axis])]


def _hardmax(scope: Scope) -> Sequence[Any]:
    """Give 1 where the first of the largest numbers along an axis is, and 0 elsewhere. Source: ONNX Hardmax 13."""
    from tvm import relax

    index, every = _position(scope, scope.attribute("axis", -1), largest=True, last=False)
    return [relax.op.astype(relax.op.equal(index, every), scope.dtype(0))]


def _one_hot(scope: Scope) -> Sequence[Any]:
    """Give one value where an index is, and another elsewhere; an index below 0 counts from the end."""
    from tvm import relax

    depth, values = scope.constant(1), scope.constant(2)
    if depth is None or values is None:
        return scope.by_tvm()
    index, size = scope.bb.emit(relax.op.astype(scope.tensor(0), "int32")), int(depth.reshape(()))
    rank = len(index.ty.shape) + 1
    axis = scope.attribute("axis", -1) % rank
    index = relax.op.where(relax.op.less(index, _whole(0)), relax.op.add(index, _whole(size)), index)
    off, on = (relax.const(each) for each in narrow(values))
    return [relax.op.where(relax.op.equal(relax.op.expand_dims(index, axis), _along(axis, rank, size)), on, off)]


def _position(scope: Scope, axis: int, *, largest: bool, last: bool) -> tuple[Any, Any]:
    """Find a position along ``axis`` by two reductions of one number each.

    A reduction of pairs, as TVM's own is, has 64-bit indices and no schedule for a GPU.
    Returns: it, int32 with a size of 1 on ``axis``; every position, along that axis.
    """
    from tvm import relax

    x = scope.bb.emit(scope.tensor(0))
    size, rank = int(x.ty.shape[axis]), len(x.ty.shape)
    every = _along(axis % rank, rank, size)
    extreme = (relax.op.max if largest else relax.op.min)(x, [axis], keepdims=True)
    # Where nothing equals the extreme, a NaN among them, it is the last position or the first: never one beyond.
    found = relax.op.where(relax.op.equal(x, extreme), every, _whole(0 if last else size - 1))
    return (relax.op.max if last else relax.op.min)(found, [axis], keepdims=True), every


def _along(axis: int, rank: int, size: int) -> Any:
    """Give 0, 1, 2 … along ``axis`` of a tensor of so many dimensions."""
    from tvm import relax

    return relax.const(np.arange(size, dtype=np.int32).reshape([-1] + [1] * (rank - 1 - axis)))


def _whole(number: int) -> Any:
    from tvm import relax

    return relax.const(number, "int32")


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


CONVERTERS: dict[tuple[str, str], Callable[[Scope], Sequence[Any]]] = {
    ("", "ArgMax"): partial(_arg, largest=True),
    ("", "ArgMin"): partial(_arg, largest=False),
    ("", "Gather"): _gather,
    ("", "Hardmax"): _hardmax,
    ("", "OneHot"): _one_hot,
}
