"""Reductions, and what is found along an axis: largest entries, their places, running sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from ._attributes import integer, integers, operand
from .layout import Order, plain, without
from .program import Program
from .registry import converts
from .tensors import Tensor

_PLAIN = {
    "ReduceSum": "SUM",
    "ReduceMean": "MEAN",
    "ReduceMax": "REDUCE_MAX",
    "ReduceMin": "REDUCE_MIN",
    "ReduceProd": "REDUCE_PROD",
}

Unary = Callable[[Program, Tensor], Tensor]


def _op(kind: str) -> Unary:
    return lambda to, x: to.emit(kind, [x], x.shape)


def _square(to: Program, x: Tensor) -> Tensor:
    return to.emit("MUL", [x, x], x.shape)


#: Reductions that are a sum of something, of which something is taken.
_SUMS: dict[str, tuple[Unary | None, Unary | None]] = {
    "ReduceL1": (_op("ABS"), None),
    "ReduceL2": (_square, _op("SQRT")),
    "ReduceSumSquare": (_square, None),
    "ReduceLogSum": (None, _op("LOG")),
}


@converts(*_PLAIN)
def reduce(node: ir.Node, to: Program) -> None:
    """Write the sum, mean, largest, smallest or product over some axes."""
    _reduced(node, to, lambda x, axes: _along(to, _PLAIN[node.op_type], x, axes))


@converts(*_SUMS)
def reduce_sums(node: ir.Node, to: Program) -> None:
    """Write a sum of absolutes or squares over some axes, or the root or logarithm of a sum."""
    before, after = _SUMS[node.op_type]

    def found(x: Tensor, axes: Sequence[int]) -> Tensor:
        total = _along(to, "SUM", before(to, x) if before else x, axes)
        return after(to, total) if after else total

    _reduced(node, to, found)


@converts("ReduceLogSumExp")
def reduce_log_sum_exp(node: ir.Node, to: Program) -> None:
    """Write ``log(sum(exp(x)))`` over some axes; the largest x is taken out of it first, so that nothing overflows."""

    def found(x: Tensor, axes: Sequence[int]) -> Tensor:
        if not axes:
            return x
        largest = _along(to, "REDUCE_MAX", x, axes)
        less = to.emit("EXP", [to.emit("SUB", [x, largest], x.shape)], x.shape)
        logarithm = to.emit("LOG", [_along(to, "SUM", less, axes)], largest.shape)
        return to.emit("ADD", [logarithm, largest], largest.shape)

    _reduced(node, to, found)


def _reduced(node: ir.Node, to: Program, reduce: Callable[[Tensor, Sequence[int]], Tensor]) -> None:
    """Give what ``reduce`` makes of x over the axes of ``node``, with or without axes of size 1 in their place."""
    x = node.inputs[0]
    assert x is not None
    rank = len(to.shape(x))
    order = to.common_order([x], rank)
    tensor = to.read(x, order)
    axes = _axes(node, to, rank)
    y = reduce(tensor, tuple(sorted(order.index(axis) for axis in axes)))
    if not integer(node, "keepdims", 1):
        y = to.reshaped(y, [tensor.shape[i] for i, axis in enumerate(order) if axis not in axes])
        order = without(order, axes)
    to.give(node.outputs[0], y, order)


def _axes(node: ir.Node, to: Program, rank: int) -> tuple[int, ...]:
    value = operand(node, 1)
    named: Sequence[int] = integers(node, "axes", ())
    if value is not None:
        array = to.array(value)
        if array is None:
            to.refuse("its axes are not constant")
        named = array.tolist()
    if not named:
        return () if integer(node, "noop_with_empty_axes", 0) else plain(rank)
    return tuple(axis % rank for axis in named)


def _along(to: Program, kind: str, x: Tensor, axes: Sequence[int]) -> Tensor:
    if not axes:
        return x
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))
    return to.emit(kind, [x, to.ints(axes)], kept, keepDims=True)


@converts("ArgMax", "ArgMin")
def arg_extreme(node: ir.Node, to: Program) -> None:
    """Write the place of the largest or smallest entry along ``axis``, the first of several."""
    if integer(node, "select_last_index", 0):
        to.refuse("the last of several equal entries")
    x = node.inputs[0]
    assert x is not None
    rank = len(to.shape(x))
    order = to.common_order([x], rank)
    tensor = to.read(x, order)
    axis = integer(node, "axis", 0) % rank
    place = order.index(axis)
    kept = tuple(1 if i == place else size for i, size in enumerate(tensor.shape))
    left = tuple(size for i, size in enumerate(tensor.shape) if i != place)
    kind = "ARG_MAX" if node.op_type == "ArgMax" else "ARG_MIN"
    y = to.emit(kind, [tensor, to.number(place, "int32")], left, "int64", outputType=_INT64)
    if integer(node, "keepdims", 1):
        to.give(node.outputs[0], to.reshaped(y, kept), order)
    else:
        to.give(node.outputs[0], y, without(order, [axis]))


#: How the schema numbers the type.
_INT64 = 4


@converts("TopK")
def top_k(node: ir.Node, to: Program) -> None:
    """Write the k largest or smallest entries along ``axis``, sorted, and their places."""
    x, k = node.inputs[0], to.array(operand(node, 1))
    assert x is not None
    if k is None:
        to.refuse("its k is not constant")
    rank = len(to.shape(x))
    order = last(integer(node, "axis", -1) % rank, rank)
    tensor, count = to.read(x, order), int(k.reshape(()))
    if not integer(node, "largest", 1):
        tensor = to.emit("NEG", [tensor], tensor.shape)
    shape = (*tensor.shape[:-1], count)
    found, places = to.emit_many("TOPK_V2", [tensor, to.number(count, "int32")], [shape, shape])
    places.dtype = "int32"
    if not integer(node, "largest", 1):
        found = to.emit("NEG", [found], shape)
    to.give(node.outputs[0], found, order)
    if node.outputs[1].uses() or node.outputs[1].is_graph_output():
        to.give(node.outputs[1], to.emit("CAST", [places], shape, "int64", inDataType=2, outDataType=_INT64), order)


def last(axis: int, rank: int) -> Order:
    """Give the order of ONNX but for ``axis``, which is the last."""
    return (*(each for each in range(rank) if each != axis), axis)


@converts("CumSum")
def cumulative_sum(node: ir.Node, to: Program) -> None:
    """Write the sums of all entries up to each, along one axis."""
    x, axis = node.inputs[0], to.array(operand(node, 1))
    assert x is not None
    if axis is None:
        to.refuse("its axis is not constant")
    order = to.common_order([x], len(to.shape(x)))
    tensor = to.read(x, order)
    place = to.number(order.index(int(axis.reshape(())) % len(order)), "int32")
    exclusive, reverse = (bool(integer(node, name, 0)) for name in ("exclusive", "reverse"))
    y = to.emit("CUMSUM", [tensor, place], tensor.shape, exclusive=exclusive, reverse=reverse)
    to.give(node.outputs[0], y, order)
