"""Reading the nodes of a graph, and putting others in their place: what every rule of the lowering does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ._attributes import integer, number
from .ends import constant

#: The domain of nodes that only the converters here know.
DOMAIN = "polycast.litert"


def is_op(node: ir.Node | None, *ops: str) -> bool:
    """Whether ``node`` is one of ONNX's own ``ops``."""
    return node is not None and not node.domain and node.op_type in ops


def only_reader(value: ir.Value) -> tuple[ir.Node, int] | None:
    """Give the node that alone reads ``value``, and as which input; None where others do, or the user."""
    if len(value.uses()) != 1 or value.is_graph_output():
        return None
    ((node, at),) = value.uses()
    return node, at


def constant_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """Give the shape of a constant, or of one that is stored in fewer bits and widened; None for any other value."""
    node = value.producer() if value is not None else None
    if node is not None and is_op(node, "Cast", "DequantizeLinear"):
        value = node.inputs[0]
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tuple(tensor.shape.numpy())


def is_plain(node: ir.Node) -> bool:
    """Whether a Gemm scales nothing, and reads x as it is."""
    return not integer(node, "transA", 0) and all(number(node, name, 1.0) == 1.0 for name in ("alpha", "beta"))


def has_channels(bias: ir.Value | None, channels: int) -> bool:
    """Whether a bias is a constant for each channel, or there is none."""
    array = constant(bias)
    return bias is None or (array is not None and array.shape == (channels,))


def put_linear(y: ir.Value, inputs: Sequence[ir.Value | None], channels: int, **attributes: int) -> None:
    """Put one Linear where ``y`` was made; one without a bias takes what is added to ``y``, as ``put_product`` does."""
    if len(inputs) > 2:
        substitute(y, "Linear", inputs, DOMAIN, **attributes)
    else:
        put_product("Linear", y, inputs, channels, **attributes)


def put_product(op: str, y: ir.Value, inputs: Sequence[ir.Value | None], channels: int, **attributes: int) -> None:
    """Put one node where ``y`` was made; its bias is the constant that what alone reads ``y`` adds to it, if any."""
    bias = _bias_after(y, channels)
    if bias is None:
        substitute(y, op, inputs, DOMAIN, **attributes)
    else:
        add, value = bias
        substitute(add.outputs[0], op, [*inputs, value], DOMAIN, **attributes)


def _bias_after(y: ir.Value, channels: int) -> tuple[ir.Node, ir.Value] | None:
    """Give the Add that alone reads ``y``, and its other operand as a vector of ``channels``."""
    reader = only_reader(y)
    if reader is None or not is_op(reader[0], "Add"):
        return None
    add, at = reader
    value = add.inputs[1 - at]
    array = constant(value)
    if value is None or array is None or array.dtype != np.float32 or array.shape[-1:] != (channels,):
        return None
    rank = len(y.shape) if y.shape is not None else 1
    if array.size != channels or array.ndim > max(rank, 1):
        return None
    return add, value if array.ndim == 1 else held(array.reshape(-1), f"{value.name}.flat")


def substitute(
    old: ir.Value, op: str, inputs: Sequence[ir.Value | None], domain: str = "", **attributes: object
) -> ir.Node:
    """Put one node where ``old`` was made: the name, type and shape of the value stay."""
    producer = old.producer()
    assert producer is not None and producer.graph is not None
    new = ir.node(op, inputs, attributes, domain=domain, name=producer.name)  # type: ignore[arg-type]
    producer.graph.insert_before(producer, new)
    now = new.outputs[0]
    now.name, now.type, now.shape = old.name, old.type, old.shape
    old.name = f"{old.name}.was"
    ir.convenience.replace_all_uses_with(old, now, replace_graph_outputs=True)
    return new


def held(array: np.ndarray, name: str) -> ir.Value:
    """Give a constant of no graph: the converters read what it holds."""
    tensor = ir.tensor(array)
    return ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
