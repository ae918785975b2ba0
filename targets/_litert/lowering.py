"""What is said to LiteRT otherwise than ONNX says it: patterns of nodes become one node each, of a domain of our own.

``Linear(x, w, bias)`` is ``x @ w + bias``, x: [..., K], w: [K, N] constant, bias: [N] constant. Its attribute
``hybrid``, which a Conv may have too, says that the kernel rounds x to int8 as it runs, row by row, and multiplies
by the integers of w.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np
import onnx_ir as ir

from polycast.model import Model

from ._attributes import integer, number, operand
from .ends import constant

#: The domain of nodes that only the converters here know.
DOMAIN = "polycast.litert"


def lowered(model: Model) -> Model:
    """Give ``model`` with its linear layers as ``Linear``, and what is multiplied in int8 as LiteRT does."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

    from .lowering_hybrid import HYBRID, widened_by_product

    draft = model.draft()
    ShapeInferencePass()(draft)
    for rule in (widened_by_product, *HYBRID, _gemm, _linear, _unflattened, _scaled_first):
        for node in list(draft.graph):
            if node.graph is not None:
                rule(node)
    draft.opset_imports.setdefault(DOMAIN, 1)
    RemoveUnusedNodesPass()(draft)
    return replace(model, graph=draft)


def is_op(node: ir.Node | None, *ops: str) -> bool:
    """Whether ``node`` is one of ONNX's own ``ops``."""
    return node is not None and not node.domain and node.op_type in ops


def only_reader(value: ir.Value) -> tuple[ir.Node, int] | None:
    """Give the node that alone reads ``value``, and as which input; None where others do, or the user."""
    if len(value.uses()) != 1 or value.is_graph_output():
        return None
    ((node, at),) = value.uses()
    return node, at


def _linear(node: ir.Node) -> None:
    """Turn a product by a constant matrix, and the bias that alone reads it, into one node."""
    if not is_op(node, "MatMul"):
        return
    x, w = node.inputs
    shape = constant_shape(w)
    if shape is None or len(shape) != 2:
        return
    put_linear(node.outputs[0], [x, w], shape[1])


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


def constant_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """Give the shape of a constant, or of one that is stored in fewer bits and widened; None for any other value."""
    node = value.producer() if value is not None else None
    if node is not None and is_op(node, "Cast", "DequantizeLinear"):
        value = node.inputs[0]
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tuple(tensor.shape.numpy())


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


def _gemm(node: ir.Node) -> None:
    """Turn a Gemm that is a product and a bias for each channel into a Linear, which may have more axes."""
    if not is_op(node, "Gemm") or not is_plain(node) or integer(node, "transB", 0):
        return
    x, w, bias = node.inputs[0], node.inputs[1], operand(node, 2)
    shape = constant_shape(w)
    if shape is None or _has_codes(w) or not has_channels(bias, shape[1]):
        return
    put_linear(node.outputs[0], [x, w] if bias is None else [x, w, bias], shape[1])


def is_plain(node: ir.Node) -> bool:
    """Whether a Gemm scales nothing, and reads x as it is."""
    return not integer(node, "transA", 0) and all(number(node, name, 1.0) == 1.0 for name in ("alpha", "beta"))


def _has_codes(value: ir.Value | None) -> bool:
    """Whether ``value`` is on a grid: then its Gemm may be one of codes."""
    return value is not None and is_op(value.producer(), "DequantizeLinear")


def has_channels(bias: ir.Value | None, channels: int) -> bool:
    """Whether a bias is a constant for each channel, or there is none."""
    array = constant(bias)
    return bias is None or (array is not None and array.shape == (channels,))


def _unflattened(node: ir.Node) -> None:
    """Let a product between a Reshape to rows and one back be that of the axes that there were."""
    if node.domain != DOMAIN:
        return
    x, y = node.inputs[0], node.outputs[0]
    before, reader = x.producer() if x is not None else None, only_reader(y)
    if before is None or not is_op(before, "Reshape") or reader is None or not is_op(reader[0], "Reshape"):
        return
    source, result = before.inputs[0], reader[0].outputs[0]
    shapes = [value.shape for value in (source, x, y, result) if value is not None]
    if len(shapes) < 4 or source is None or any(shape is None or not shape.is_static() for shape in shapes):
        return
    whole, rows, products, back = (list(shape) for shape in shapes)  # type: ignore[arg-type]
    if len(rows) == 2 and whole[-1] == rows[-1] and back == [*whole[:-1], products[-1]]:
        attributes = {name: attribute.as_int() for name, attribute in node.attributes.items()}
        substitute(result, node.op_type, [source, *node.inputs[1:]], DOMAIN, **attributes)


def _scaled_first(node: ir.Node) -> None:
    """Scale the smaller operand of a product of two activations, where the product is scaled and is larger."""
    if not is_op(node, "Div", "Mul"):
        return
    for at, y in enumerate(node.inputs[: 1 if node.op_type == "Div" else 2]):
        product, number = y.producer() if y is not None else None, constant(node.inputs[1 - at])
        if product is None or not is_op(product, "MatMul") or number is None or number.size != 1 or number.ndim:
            continue
        sizes = [_size(value) for value in (*product.inputs, y)]
        if y is None or only_reader(y) is None or 0 in sizes or min(sizes[:2]) >= sizes[2]:
            continue
        operands = list(product.inputs)
        smaller = sizes.index(min(sizes[:2]))
        scaled = ir.node(node.op_type, [operands[smaller], held(number, f"{y.name}.scale")])
        value, like = scaled.outputs[0], operands[smaller]
        assert like is not None and node.graph is not None
        value.name, value.type, value.shape = f"{y.name}.scaled", like.type, like.shape
        node.graph.insert_before(node, scaled)
        operands[smaller] = value
        substitute(node.outputs[0], "MatMul", operands)
        return


def _size(value: ir.Value | None) -> int:
    """Count elements; 0 where that is not known."""
    return prod(value.shape.numpy()) if value is not None and value.shape is not None and value.shape.is_static() else 0


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
