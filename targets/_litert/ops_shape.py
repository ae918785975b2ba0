"""Operators that give what they read in another shape or order."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from ._attributes import integer, integers, operand
from .layout import physical, reshaped
from .program import Program
from .registry import converts
from .tensors import Tensor


@converts("Transpose", codes="moves")
def transpose(node: ir.Node, to: Program) -> None:
    """Write nothing: the axes of the tensor have other numbers."""
    x = node.inputs[0]
    assert x is not None
    rank = len(to.shape(x))
    permutation = integers(node, "perm", range(rank)[::-1])
    order = to.common_order([x], rank)
    tensor = to.read(x, order)
    to.give(node.outputs[0], tensor, tuple(permutation.index(axis) for axis in order))


@converts("Reshape", "Flatten", "Squeeze", "Unsqueeze", codes="moves")
def reshape(node: ir.Node, to: Program) -> None:
    """Write RESHAPE, in the layout at hand where the axes that it merges or splits lie side by side there."""
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    shape, result = to.shape(x), _result(node, to)
    if to.array(x) is None:
        for order in to.orders(x):
            kept = reshaped(shape, order, result)
            if kept is not None:
                tensor = to.reshaped(to.read(x, order), physical(result, kept))
                to.give(y, tensor, kept)
                return
    to.give(y, to.reshaped(to.read(x), result))


def _result(node: ir.Node, to: Program) -> tuple[int, ...]:
    """Give the shape of the result, from the node where it says, for it is surer than what was inferred."""
    x = node.inputs[0]
    assert x is not None
    shape = to.shape(x)
    wanted = to.array(operand(node, 1))
    if node.op_type == "Flatten":
        axis = integer(node, "axis", 1)
        axis += len(shape) if axis < 0 else 0
        return prod(shape[:axis]), prod(shape[axis:])
    if node.op_type != "Reshape" or wanted is None:
        return to.shape(node.outputs[0])
    keeps_zero = bool(integer(node, "allowzero", 0))
    dims = [shape[at] if d == 0 and not keeps_zero else int(d) for at, d in enumerate(wanted)]
    if -1 in dims:
        dims[dims.index(-1)] = prod(shape) // -prod(dims) if prod(dims) else 0
    return tuple(dims)


@converts("Concat", codes="any")
def concat(node: ir.Node, to: Program) -> None:
    """Write CONCATENATION, whose operands have one grid, that of the result."""
    values = [v for v in node.inputs if v is not None and 0 not in to.shape(v)]
    rank = len(to.shape(node.outputs[0]))
    axis = integer(node, "axis", 0) % rank
    order = to.common_order(values, rank)
    tensors = [to.read(v, order) for v in values]
    if to.grid is not None:
        tensors = [to.requantized(t, to.grid) for t in tensors]
    shape = list(tensors[0].shape)
    at = order.index(axis)
    shape[at] = sum(tensor.shape[at] for tensor in tensors)
    y = to.emit("CONCATENATION", tensors, shape, axis=at)
    if all(tensor.least is not None for tensor in tensors):
        y.least = min(tensor.least for tensor in tensors if tensor.least is not None)
    to.give(node.outputs[0], y, order)


@converts("Split", codes="moves")
def split(node: ir.Node, to: Program) -> None:
    """Write SPLIT_V, or SPLIT where the parts are equal."""
    x = node.inputs[0]
    assert x is not None
    rank = len(to.shape(x))
    axis = integer(node, "axis", 0) % rank
    order = to.common_order([x], rank)
    tensor, at = to.read(x, order), order.index(axis)
    sizes = _sizes(node, to, to.shape(x)[axis])
    shapes = [(*tensor.shape[:at], size, *tensor.shape[at + 1 :]) for size in sizes]
    where = to.constant(np.array(at, np.int32), "axis")
    if len(set(sizes)) == 1:
        parts = to.emit_many("SPLIT", [where, tensor], shapes, tensor.dtype, numSplits=len(sizes))
    else:
        parts = to.emit_many("SPLIT_V", [tensor, to.ints(sizes), where], shapes, tensor.dtype, numSplits=len(sizes))
    for value, part in zip(node.outputs, parts, strict=True):
        part.least = tensor.least
        to.give(value, part, order)


def _sizes(node: ir.Node, to: Program, whole: int) -> list[int]:
    given = operand(node, 1)
    if given is not None:
        array = to.array(given)
        if array is None:
            to.refuse("the sizes of its parts are not constant")
        return [int(size) for size in array]
    count = len(node.outputs)
    each = -(-whole // count)
    return [min(each, whole - each * at) for at in range(count)]


#: Exporters cut there where they mean the end of an axis.
_ENDLESS = 2**31 - 2


@converts("Slice", codes="moves")
def cut(node: ir.Node, to: Program) -> None:
    """Write SLICE, or STRIDED_SLICE where steps are other than 1."""
    x = node.inputs[0]
    assert x is not None
    shape = to.shape(x)
    rank = len(shape)
    given = [to.array(operand(node, at)) for at in (1, 2, 3, 4)]
    if (
        given[0] is None
        or given[1] is None
        or any(array is None and operand(node, at) is not None for at, array in enumerate(given, 1))
    ):
        to.refuse("its bounds are not constant")
    starts, ends = (array.tolist() for array in given[:2] if array is not None)
    axes = given[2].tolist() if given[2] is not None else list(range(len(starts)))
    steps = given[3].tolist() if given[3] is not None else [1] * len(starts)
    slices = [slice(None)] * rank
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if any(shape[axis % rank] < abs(bound) < _ENDLESS for bound in (start, end)):
            to.subgraph.short[f"{node.outputs[0].name}.{axis % rank}"] = shape[axis % rank]
        if step < 0:  # ONNX begins at the first element then, where Python finds none
            start, end = max(start, -shape[axis % rank]), end if end >= -shape[axis % rank] else None
        slices[axis % rank] = slice(start, end, step)
    order = to.common_order([x], rank)
    tensor = to.read(x, order)
    ranges = [range(shape[axis])[slices[axis]] for axis in order]
    sizes = tuple(len(each) for each in ranges)
    if sizes == tensor.shape and all(each.step > 0 for each in ranges):
        to.give(node.outputs[0], tensor, order)
        return
    begin = to.ints([each.start for each in ranges])
    if all(each.step == 1 or len(each) <= 1 for each in ranges):
        y = to.emit("SLICE", [tensor, begin, to.ints(sizes)], sizes)
    else:
        y = _strided(to, tensor, ranges, sizes)
    y.least = tensor.least
    to.give(node.outputs[0], y, order)


def _strided(to: Program, tensor: Tensor, ranges: list[range], sizes: tuple[int, ...]) -> Tensor:
    """Cut with steps: as a column of an axis cut in two where that can be, which more kernels take than steps.

    An end before the first element is one that only the mask can say.
    """
    if all(each.step > 0 and size % each.step == 0 for each, size in zip(ranges, tensor.shape, strict=True)):
        return _columns(to, tensor, ranges, sizes)
    mask = sum(1 << at for at, each in enumerate(ranges) if each.stop < 0)
    operands = [[each.start for each in ranges], [max(each.stop, 0) for each in ranges], [each.step for each in ranges]]
    return to.emit("STRIDED_SLICE", [tensor, *map(to.ints, operands)], sizes, endMask=mask)


def _columns(to: Program, tensor: Tensor, ranges: list[range], sizes: tuple[int, ...]) -> Tensor:
    """Cut every k-th entry as one column of rows of k."""
    whole, begin, kept = [], [], []
    for each, size in zip(ranges, tensor.shape, strict=True):
        whole += [size // each.step, each.step] if each.step > 1 else [size]
        begin += [each.start // each.step, each.start % each.step] if each.step > 1 else [each.start]
        kept += [len(each), 1] if each.step > 1 else [len(each)]
    cut = to.emit("SLICE", [to.reshaped(tensor, whole), to.ints(begin), to.ints(kept)], kept)
    return to.reshaped(cut, sizes)
