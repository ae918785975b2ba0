"""Products of codes that are made as the model runs, and weights that are stored in integers, as LiteRT spells them."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
import onnx_ir as ir

from ._attributes import integer, operand
from .ends import constant
from .rewriting import (
    DOMAIN,
    constant_shape,
    has_channels,
    held,
    is_op,
    is_plain,
    only_reader,
    put_linear,
    put_product,
    substitute,
)


def widened_by_product(node: ir.Node) -> None:
    """Spell int8 that is cast and multiplied by a scale for each channel as the DequantizeLinear that it is."""
    if not is_op(node, "Mul"):
        return
    for at, value in enumerate(node.inputs):
        cast = value.producer() if value is not None else None
        codes = constant(cast.inputs[0]) if cast is not None and is_op(cast, "Cast") else None
        scale = constant(node.inputs[1 - at])
        if codes is None or scale is None or codes.dtype != np.int8 or scale.dtype != np.float32:
            continue
        axes = [axis for axis, size in enumerate(scale.shape) if size != 1]
        if scale.ndim != codes.ndim or len(axes) > 1 or cast is None:
            continue
        axis = axes[0] if axes else 0
        _dequantized(node.outputs[0], cast.inputs[0], scale.reshape(-1), axis)
        return


def _dequantized(old: ir.Value, codes: ir.Value | None, scale: np.ndarray, axis: int) -> None:
    vector = scale if scale.size > 1 else scale.reshape(())
    substitute(old, "DequantizeLinear", [codes, held(vector, f"{old.name}.scale")], axis=axis)


def _made_of(codes: ir.Value | None, zero: ir.Value | None, scale: ir.Value | None = None) -> ir.Value | None:
    """Give the floats that ``codes`` are made of as the model runs, and stand for; None where they do not.

    zero, scale: what a product takes for those of the codes, a scale of None for what is known to be theirs.
    """
    node = codes.producer() if codes is not None else None
    if node is None or codes is not node.outputs[0]:
        return None
    if is_op(node, "DynamicQuantizeLinear"):
        return node.inputs[0] if zero is node.outputs[2] and scale in (None, node.outputs[1]) else None
    if is_op(node, "QuantizeLinear") and "block_size" in node.attributes and constant(node.inputs[1]) is None:
        own = _filled_with(operand(node, 2))
        return node.inputs[0] if scale is node.inputs[1] and own is not None and own == _filled_with(zero) else None
    return None


def _filled_with(value: ir.Value | None) -> int | None:
    """Give the one number that every element of a constant is, or of a ConstantOfShape; None for any other value."""
    node = value.producer() if value is not None else None
    filled = node is not None and is_op(node, "ConstantOfShape") and "value" in node.attributes
    array = node.attributes["value"].as_tensor().numpy() if node is not None and filled else constant(value)
    return int(array.flat[0]) if array is not None and array.size and (array == array.flat[0]).all() else None


def _weight(codes: ir.Value | None, scale: np.ndarray | None, zero: ir.Value | None, axis: int) -> ir.Value | None:
    """Give int8 codes of a weight as the DequantizeLinear that they stand for; None where their zero is not 0."""
    array, zeros = constant(codes), constant(zero)
    if array is None or array.dtype != np.int8 or scale is None or codes is None:
        return None
    if zero is not None and (zeros is None or zeros.any()):
        return None
    vector = np.broadcast_to(scale.reshape(-1), array.shape[axis]).astype(np.float32)
    node = ir.node(
        "DequantizeLinear", [codes, held(np.ascontiguousarray(vector), f"{codes.name}.scale")], {"axis": axis}
    )
    node.outputs[0].name = f"{codes.name}.wide"
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(array.shape)
    return node.outputs[0]


def _before(node: ir.Node, weight: ir.Value) -> None:
    producer = weight.producer()
    assert producer is not None and node.graph is not None
    node.graph.insert_before(node, producer)


def fused_product(node: ir.Node) -> None:
    """Turn a MatMulIntegerToFloat of codes that are made as the model runs into a product by the weights alone."""
    if node.op_type != "MatMulIntegerToFloat":
        return
    w, scale = node.inputs[1], constant(node.inputs[3])
    x = _made_of(node.inputs[0], operand(node, 4), node.inputs[2])
    shape = constant_shape(w)
    if x is None or shape is None or len(shape) != 2:
        return
    weight = _weight(w, scale, operand(node, 5), 1)
    if weight is not None:
        _before(node, weight)
        bias = operand(node, 6)
        put_linear(node.outputs[0], [x, weight, *([bias] if bias is not None else [])], shape[1], hybrid=1)


def _scaled(node: ir.Node) -> tuple[ir.Value, np.ndarray] | None:
    """Give what int32 sums become once they are multiplied by the scales of x and w, and the scales of w."""
    cast = only_reader(node.outputs[0])
    product = only_reader(cast[0].outputs[0]) if cast is not None and is_op(cast[0], "Cast") else None
    if product is None or not is_op(product[0], "Mul"):
        return None
    both = product[0].inputs[1 - product[1]]
    scales = both.producer() if both is not None else None
    if scales is None or not is_op(scales, "Mul"):
        return None
    codes = node.inputs[0].producer() if node.inputs[0] is not None else None
    for at, value in enumerate(scales.inputs):
        array = constant(scales.inputs[1 - at])
        if codes is not None and len(codes.outputs) > 1 and value is codes.outputs[1] and array is not None:
            return product[0].outputs[0], array
    return None


def integer_product(node: ir.Node) -> None:
    """Turn a MatMulInteger, and the products by scales behind it, into a product by the weights alone."""
    found = _scaled(node) if is_op(node, "MatMulInteger") else None
    if found is None:
        return
    x, shape = _made_of(node.inputs[0], operand(node, 2)), constant_shape(node.inputs[1])
    y, scale = found
    if x is None or shape is None or len(shape) != 2 or not _lies_along(scale.shape, 1):
        return
    weight = _weight(node.inputs[1], scale, operand(node, 3), 1)
    if weight is not None:
        _before(node, weight)
        put_linear(y, [x, weight], shape[1], hybrid=1)


def integer_convolution(node: ir.Node) -> None:
    """Turn a ConvInteger, the products by scales behind it and the bias that is added into a Conv by its weights."""
    found = _scaled(node) if is_op(node, "ConvInteger") else None
    if found is None:
        return
    y, scale = found
    x, shape = _made_of(node.inputs[0], operand(node, 2)), constant_shape(node.inputs[1])
    if x is None or shape is None or not _lies_along(scale.shape, len(shape) - 1):
        return
    weight = _weight(node.inputs[1], scale, operand(node, 3), 0)
    if weight is None:
        return
    _before(node, weight)
    bias, last = _channel_bias(y, shape)
    inputs = [x, weight, *([bias] if bias is not None else [])]
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    substitute(last, "Conv", inputs, **attributes, hybrid=1)


def _lies_along(shape: tuple[int, ...], place: int) -> bool:
    """Whether no axis but that at ``place`` from the end has another size than 1."""
    return prod(shape) == 1 or (len(shape) >= place and shape[-place] == prod(shape))


def _channel_bias(y: ir.Value, kernel: tuple[int, ...]) -> tuple[ir.Value | None, ir.Value]:
    """Give the constant for each channel that is added to ``y``, [C, 1, …], and the sum; or nothing, and ``y``."""
    reader = only_reader(y)
    if reader is None or not is_op(reader[0], "Add"):
        return None, y
    value = reader[0].inputs[1 - reader[1]]
    turned = value.producer() if value is not None else None
    array = constant(turned.inputs[0] if turned is not None and is_op(turned, "Reshape") else value)
    shape = value.shape.numpy() if value is not None and value.shape is not None and value.shape.is_static() else ()
    if array is None or array.size != kernel[0] or shape != (kernel[0], *(1 for _ in kernel[2:])):
        return None, y
    return held(array.reshape(-1), f"{y.name}.bias"), reader[0].outputs[0]


def blocked(node: ir.Node) -> None:
    """Turn a product by int4 with several scales in a row into one that LiteRT rounds the other side of, too."""
    turned = is_op(node, "Gemm") and bool(integer(node, "transB", 0))
    if not is_op(node, "MatMul", "Gemm") or not (node.op_type == "MatMul" or is_plain(node)):
        return
    w, bias = node.inputs[1], operand(node, 2)
    producer = w.producer() if w is not None else None
    if producer is None or not is_op(producer, "DequantizeLinear") or "block_size" not in producer.attributes:
        return
    codes, scales = constant(producer.inputs[0]), constant(producer.inputs[1])
    if codes is None or scales is None or codes.ndim != 2 or len(producer.inputs) > 2 or codes.dtype.name != "int4":
        return
    if producer.attributes["axis"].as_int() % 2 != int(turned):
        return
    codes, scales = (codes.T, scales.T) if turned else (codes, scales)
    size, name = producer.attributes["block_size"].as_int(), producer.outputs[0].name
    operands = [node.inputs[0], held(codes.astype(np.int8), f"{name}.codes"), held(scales, f"{name}.scales")]
    if bias is None:
        put_product("LinearBlocks", node.outputs[0], operands, codes.shape[1], block=size)
    elif has_channels(bias, codes.shape[1]):
        substitute(node.outputs[0], "LinearBlocks", [*operands, bias], DOMAIN, block=size)


#: The rules, in the order in which they are applied.
HYBRID: tuple[Callable[[ir.Node], None], ...] = (fused_product, integer_product, integer_convolution, blocked)
