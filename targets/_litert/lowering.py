"""What is said to LiteRT otherwise than ONNX says it: patterns of nodes become one node each, of a domain of our own.

``Linear(x, w, bias)`` is ``x @ w + bias``, x: [..., K], w: [K, N] constant, bias: [N] constant. Its attribute
``hybrid``, which a Conv may have too, says that the kernel rounds x to int8 as it runs, row by row, and multiplies
by the integers of w.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import onnx_ir as ir

from polycast.model import Model

from ._attributes import integer, operand
from .ends import constant
from .lowering_hybrid import HYBRID, widened_by_product
from .rewriting import DOMAIN, constant_shape, has_channels, held, is_op, is_plain, only_reader, put_linear, substitute


def lowered(model: Model) -> Model:
    """Give ``model`` with its linear layers as ``Linear``, and what is multiplied in int8 as LiteRT does."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

    draft = model.draft()
    ShapeInferencePass()(draft)
    for rule in (widened_by_product, *HYBRID, _gemm, _linear, _unflattened, _scaled_first):
        for node in list(draft.graph):
            if node.graph is not None:
                rule(node)
    draft.opset_imports.setdefault(DOMAIN, 1)
    RemoveUnusedNodesPass()(draft)
    return replace(model, graph=draft)


def _linear(node: ir.Node) -> None:
    """Turn a product by a constant matrix, and the bias that alone reads it, into one node."""
    if not is_op(node, "MatMul"):
        return
    x, w = node.inputs
    shape = constant_shape(w)
    if shape is None or len(shape) != 2:
        return
    put_linear(node.outputs[0], [x, w], shape[1])


def _gemm(node: ir.Node) -> None:
    """Turn a Gemm that is a product and a bias for each channel into a Linear, which may have more axes."""
    if not is_op(node, "Gemm") or not is_plain(node) or integer(node, "transB", 0):
        return
    x, w, bias = node.inputs[0], node.inputs[1], operand(node, 2)
    shape = constant_shape(w)
    if shape is None or _has_codes(w) or not has_channels(bias, shape[1]):
        return
    put_linear(node.outputs[0], [x, w] if bias is None else [x, w, bias], shape[1])


def _has_codes(value: ir.Value | None) -> bool:
    """Whether ``value`` is on a grid: then its Gemm may be one of codes."""
    return value is not None and is_op(value.producer(), "DequantizeLinear")


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
