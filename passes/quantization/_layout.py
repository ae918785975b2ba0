"""Layout: where the channels of a value lay before an operator that only moves elements."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import prod

import onnx_ir as ir

_RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
_IDENTITIES = ("Identity", "Dropout", "Cast")

#: The operators that may only move elements.
MOVES = (*_RESHAPES, *_IDENTITIES, "Transpose")

Dim = int | str | None


def moved_from(node: ir.Node, axis: int) -> tuple[int, int] | None:
    """Give the axis of input 0 that holds the channels of ``axis`` of output 0, and how many of these each one became.

    Channel c of the output was channel ``c // repeats`` of the input. None where ``node`` does not only move elements,
    or where shapes do not tell.
    """
    value = node.inputs[0] if node.inputs else None
    if node.domain != "" or value is None:
        return None
    if node.op_type in _IDENTITIES:
        return (axis, 1) if value.dtype in _FLOATS and node.outputs[0].dtype in _FLOATS else None
    if node.op_type == "Transpose" and "perm" in node.attributes:
        return node.attributes["perm"].as_ints()[axis], 1
    before, after = dims_of(value), dims_of(node.outputs[0])
    if node.op_type not in _RESHAPES or before is None or after is None:
        return None
    return _reshaped_from(before, after, axis)


_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


def dims_of(value: ir.Value | None) -> tuple[Dim, ...] | None:
    """Give the dimensions of ``value``: an int, a symbol, or None each; None where not even the rank is known."""
    if value is None or value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)


def _reshaped_from(before: Sequence[Dim], after: Sequence[Dim], axis: int) -> tuple[int, int] | None:
    wanted = after[axis]
    if not isinstance(wanted, int):
        return None
    for was, size in reversed(tuple(enumerate(before))):
        inner = before[was + 1 :]
        alike = _as_many(before[:was], after[:axis]) or _as_many(inner, after[axis + 1 :])
        if size == wanted and alike:
            return was, 1
        if size and isinstance(size, int) and axis == len(after) - 1 and _as_many((size, *inner), (wanted,)):
            return was, wanted // size
    return None


def _as_many(these: Sequence[Dim], those: Sequence[Dim]) -> bool:
    """Whether both have the same number of elements, as far as symbols tell."""
    return None not in (*these, *those) and _symbols(these) == _symbols(those) and _size(these) == _size(those)


def _symbols(dims: Sequence[Dim]) -> Counter[str]:
    return Counter(dim for dim in dims if isinstance(dim, str))


def _size(dims: Sequence[Dim]) -> int:
    return prod(dim for dim in dims if isinstance(dim, int))
