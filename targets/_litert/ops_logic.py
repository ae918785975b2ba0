"""Comparisons, logic, choices between two values, and other types."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ._attributes import integer
from .program import Program
from .registry import converts
from .tensors import Tensor

_TWO = {
    "Equal": "EQUAL",
    "Greater": "GREATER",
    "GreaterOrEqual": "GREATER_EQUAL",
    "Less": "LESS",
    "LessOrEqual": "LESS_EQUAL",
    "And": "LOGICAL_AND",
    "Or": "LOGICAL_OR",
    "Xor": "NOT_EQUAL",
}

#: How the schema numbers the types that are cast from and to.
_TYPES = {
    "float32": 0, "float16": 1, "int32": 2, "uint8": 3, "int64": 4, "bool": 6, "int16": 7, "int8": 9, "float64": 10,
    "uint32": 15, "uint16": 16,
}  # fmt: skip


@converts(*_TWO)
def compare(node: ir.Node, to: Program) -> None:
    """Write a comparison, or an operator of logic, of two operands, which broadcast."""
    a, b = node.inputs
    assert a is not None and b is not None
    shape = np.broadcast_shapes(to.shape(a), to.shape(b))
    order = to.common_order([a, b], len(shape))
    left, right = to.read_broadcast(a, order), to.read_broadcast(b, order)
    sizes = np.broadcast_shapes(left.shape, right.shape)
    to.give(node.outputs[0], to.emit(_TWO[node.op_type], [left, right], sizes, "bool"), order)


@converts("Not")
def negation(node: ir.Node, to: Program) -> None:
    """Write what is true where x is not."""
    tensor, order = _read(node, to)
    to.give(node.outputs[0], to.emit("LOGICAL_NOT", [tensor], tensor.shape), order)


@converts("IsNaN")
def is_nan(node: ir.Node, to: Program) -> None:
    """Write ``x != x``, which holds of NaN alone."""
    tensor, order = _read(node, to)
    to.give(node.outputs[0], to.emit("NOT_EQUAL", [tensor, tensor], tensor.shape, "bool"), order)


@converts("IsInf")
def is_infinite(node: ir.Node, to: Program) -> None:
    """Write ``|x| == inf``, or that of one sign."""
    tensor, order = _read(node, to)
    signs = [
        number for name, number in (("detect_positive", np.inf), ("detect_negative", -np.inf)) if integer(node, name, 1)
    ]
    if len(signs) == 2:
        tensor, signs = to.emit("ABS", [tensor], tensor.shape), [np.inf]
    bound = to.number(signs[0] if signs else np.nan)
    to.give(node.outputs[0], to.emit("EQUAL", [tensor, bound], tensor.shape, "bool"), order)


@converts("Where")
def where(node: ir.Node, to: Program) -> None:
    """Write x where the condition holds and y elsewhere; all three broadcast."""
    values = [v for v in node.inputs if v is not None]
    shape = np.broadcast_shapes(*(to.shape(v) for v in values))
    order = to.common_order(values, len(shape))
    tensors = [to.read_broadcast(v, order) for v in values]
    to.give(node.outputs[0], chosen(to, *tensors), order)


def chosen(to: Program, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Give x where ``condition`` holds, and y elsewhere."""
    shape = np.broadcast_shapes(condition.shape, x.shape, y.shape)
    return to.emit("SELECT_V2", [condition, x, y], shape, x.dtype)


@converts("Cast")
def cast(node: ir.Node, to: Program) -> None:
    """Write x as another type."""
    tensor, order = _read(node, to)
    wanted = ir.DataType(integer(node, "to", 1)).numpy().name
    y = cast_to(to, tensor, wanted)
    to.give(node.outputs[0], y, order)


def cast_to(to: Program, tensor: Tensor, dtype: str) -> Tensor:
    """Give ``tensor`` as another type."""
    if tensor.dtype == dtype:
        return tensor
    for each in (tensor.dtype, dtype):
        if each not in _TYPES:
            to.refuse(f"numbers of type {each}")
    if dtype == "bool":
        return to.emit("NOT_EQUAL", [tensor, to.number(0, tensor.dtype)], tensor.shape, "bool")
    before, after = _TYPES[tensor.dtype], _TYPES[dtype]
    return to.emit("CAST", [tensor], tensor.shape, dtype, inDataType=before, outDataType=after)


@converts("Trilu")
def triangle(node: ir.Node, to: Program) -> None:
    """Write the upper or lower triangle of the last two axes, with zeros beside it."""
    x, k = node.inputs[0], to.array(node.inputs[1]) if len(node.inputs) > 1 else np.zeros((), np.int64)
    assert x is not None
    if k is None:
        to.refuse("its diagonal is not constant")
    tensor = to.read(x)
    ones = np.ones(tensor.shape[-2:], bool)
    kept = np.triu(ones, int(k.reshape(()))) if integer(node, "upper", 1) else np.tril(ones, int(k.reshape(())))
    mask = to.constant(kept.reshape((1,) * (len(tensor.shape) - 2) + kept.shape), name="triangle")
    zero = to.constant(np.zeros((1,) * len(tensor.shape), tensor.dtype), name="zero")
    to.give(node.outputs[0], chosen(to, mask, tensor, zero))


def _read(node: ir.Node, to: Program) -> tuple[Tensor, tuple[int, ...]]:
    x = node.inputs[0]
    assert x is not None
    order = to.common_order([x], len(to.shape(x)))
    return to.read(x, order), order
