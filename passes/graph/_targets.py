"""Nodes whose new shape is computed, though a constant says the same: Reshape, Expand, Slice."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ._edit import constant_before, remove_unread
from ._facts import Facts
from ._read import given, integer, integers, tensor_of
from ._shapes import Dims
from ._symbols import Known, Memory, known_of

#: As an end, it means the end of the axis, whatever its size.
_END = np.iinfo(np.int64).max


def fix_target(node: ir.Node, facts: Facts, memory: Memory) -> bool:
    """Give ``node`` a constant in the place of a computed shape, where they provably mean the same.

    Returns: whether it did.
    """
    if node.domain != "" or node.op_type not in ("Reshape", "Expand", "Slice"):
        return False
    index = 2 if node.op_type == "Slice" else 1
    computed = given(node, index)
    if computed is None or given(node, 0) is None or tensor_of(computed) is not None:
        return False
    known, dims = known_of(computed, memory), facts.shapes.of(node.inputs[0])
    if node.op_type == "Reshape":
        target = _reshape(node, known or _unknown(computed, facts), dims, facts)
    elif known is None or dims is None:
        return False
    else:
        target = _expand(known, dims) if node.op_type == "Expand" else _slice(node, known, dims)
    if target is None:
        return False
    node.attributes.pop("allowzero", None)
    dtype = facts.shapes.dtype(computed) or ir.DataType.INT64
    tensor = ir.Tensor(np.array(target, dtype.numpy()))
    node.replace_input_with(index, constant_before(node, tensor, f"polycast/{node.outputs[0].name}/target", facts.body))
    remove_unread([computed])
    return True


def _unknown(value: ir.Value, facts: Facts) -> Known | None:
    """Of a shape that is computed from data, its length may be known."""
    dims = facts.shapes.fixed(value)
    return Known((None,) * dims[0]) if dims is not None and len(dims) == 1 and dims[0] <= 64 else None


def _reshape(node: ir.Node, known: Known | None, dims: Dims | None, facts: Facts) -> list[int] | None:
    """Write each size that is copied from x as 0, and one that is not known as -1.

    -1 stands for the same number only where no other size can be 0.
    """
    if known is None or known.scalar:
        return None
    zero_is_zero = integer(node, "allowzero", 0) != 0
    if zero_is_zero and 0 in known.elements:
        return None
    target: list[int] = []
    open_axes = 0
    for axis, size in enumerate(known.elements):
        if isinstance(size, int):
            target.append(size)
        elif size is not None and dims is not None and dims[axis : axis + 1] == (size,):
            target.append(0)
        else:
            target.append(-1)
            open_axes += 1
    if not open_axes or (open_axes == 1 and sum(size == -1 for size in target) == 1 and 0 not in target):
        return target
    if open_axes > 1:
        facts.ctx.skip(node, f"{open_axes} sizes of the new shape are computed and not those of the input in place")
    else:
        facts.ctx.skip(node, "a size of the new shape is computed, and cannot be -1 beside another that may be 0")
    return None


def _expand(known: Known, dims: Dims) -> list[int] | None:
    """Write each size that x has already as 1, which broadcasts to the same."""
    target: list[int] = []
    for axis, size in enumerate(known.elements, len(dims) - len(known.elements)):
        if isinstance(size, int):
            target.append(size)
        elif size is not None and axis >= 0 and dims[axis] == size:
            target.append(1)
        else:
            return None
    return target


def _slice(node: ir.Node, known: Known, dims: Dims) -> list[int] | None:
    """Write an end that is the size of its axis as the largest number."""
    axes = range(len(known.elements)) if given(node, 3) is None else integers(node, "axes", 3)
    if axes is None or len(axes) != len(known.elements) or not all(-len(dims) <= axis < len(dims) for axis in axes):
        return None
    target: list[int] = []
    for axis, end in zip(axes, known.elements, strict=True):
        if not isinstance(end, int) and (end is None or dims[axis] != end):
            return None
        target.append(end if isinstance(end, int) else _END)
    return target
