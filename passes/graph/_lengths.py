"""Shapes that follow from symbolic arithmetic, where ONNX's inference leaves them open."""

from __future__ import annotations

import math

import onnx_ir as ir

from ._facts import Facts
from ._read import given, integer, integers, ints_of
from ._shapes import Dim, Dims
from ._symbols import Memory, known_of


def sizes(node: ir.Node, facts: Facts, memory: Memory) -> Dims | None:
    """Give the shape of output 0 of ``node``, as far as the elements of its inputs tell."""
    if node.domain != "":
        return None
    inputs = [known_of(value, memory) for value in node.inputs]
    elements = [known.elements if known is not None else None for known in inputs]
    dims = facts.shapes.of(node.inputs[0]) if node.inputs else None
    match node.op_type, elements:
        case "ConstantOfShape", [shape]:
            return shape
        case "Range", [(0,), (limit,), (1,)] if isinstance(limit, str):
            return (limit,)
        case "Expand", [_, shape] if shape is not None and dims is not None:
            return _broadcast(dims, shape)
        case "Reshape", [_, shape] if shape is not None and dims is not None and not integer(node, "allowzero", 0):
            return _reshape(dims, shape)
        case "Slice", [_, _, ends, *_] if dims is not None:
            return _slice(node, dims, ends)
    return None


def _broadcast(dims: Dims, target: Dims) -> Dims:
    rank = max(len(dims), len(target))
    ones: Dims = (1,) * rank
    pairs = zip((ones + dims)[-rank:] if rank else (), (ones + target)[-rank:] if rank else (), strict=True)
    return tuple(d if t in (1, d) else t if d == 1 or isinstance(t, int) else None for d, t in pairs)


def _reshape(dims: Dims, target: Dims) -> Dims:
    """Write out each 0, and a -1 as what is left of ``dims`` when all other sizes are divided out."""
    new = [dims[axis] if size == 0 and axis < len(dims) else size for axis, size in enumerate(target)]
    others = [size for size in new if size != -1]
    if len(new) - len(others) != 1:
        return tuple(new)
    left = _quotient(list(dims), others)
    return tuple(left if size == -1 else size for size in new)


def _quotient(above: list[Dim], below: list[Dim]) -> Dim:
    """Divide one product of sizes by another; None where a name is left over below, or more than one above."""
    for size in list(below):
        if isinstance(size, str) and size in above:
            above.remove(size)
            below.remove(size)
    names = [size for size in above if isinstance(size, str)]
    if None in above or not all(isinstance(size, int) and size > 0 for size in below) or len(names) > 1:
        return None
    high = math.prod(size for size in above if isinstance(size, int))
    low = math.prod(size for size in below if isinstance(size, int))
    if names:
        return names[0] if high == low else None
    return high // low if high % low == 0 else None


def _slice(node: ir.Node, dims: Dims, ends: Dims | None) -> Dims | None:
    """Keep the axes that are not cut, and those that are taken from 0 to their own size."""
    starts = integers(node, "starts", 1)
    axes = tuple(range(len(starts or ()))) if given(node, 3) is None else integers(node, "axes", 3)
    steps = ints_of(node.inputs[4]) if given(node, 4) is not None else (1,) * len(starts or ())
    if axes is None or any(not -len(dims) <= axis < len(dims) for axis in axes):
        return None
    cut: list[Dim] = list(dims)
    for at, axis in enumerate(axes):
        whole = starts and ends and steps and starts[at] == 0 and steps[at] == 1 and ends[at] == dims[axis]
        if not whole:
            cut[axis] = None
    return tuple(cut)
