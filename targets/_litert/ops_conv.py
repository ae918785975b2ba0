"""Convolutions: CONV_2D and DEPTHWISE_CONV_2D."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from ._attributes import operand
from .biases import read_bias
from .layout import NHWC, Order
from .program import Program
from .registry import converts
from .tensors import Tensor
from .windows import VALID, Window, groups, window

#: One more spatial axis, of size 1, makes a convolution over a sequence one over an image.
_NWC: Order = (0, 2, 1)


@converts("Conv", fuses=True, codes="product")
def conv(node: ir.Node, to: Program) -> None:
    """Write x: [N, C, *spatial], w: [M, C / groups, *kernel], with its bias and its activation."""
    x, w = node.inputs[0], node.inputs[1]
    assert x is not None and w is not None
    y = node.outputs[0]
    shape, result, kernel = to.shape(x), to.shape(y), to.shape(w)[2:]
    if len(shape) not in (3, 4):
        to.refuse(f"a convolution over {len(shape) - 2} axes")
    if to.array(w) is None and to.stored(w) is None:
        to.refuse("its weight is not constant")
    slides = window(node, kernel, shape[2:], result[2:], not to.open_dims)
    flat = len(shape) == 3
    tensor = to.read(x, _NWC if flat else NHWC)
    if flat:
        tensor = to.reshaped(tensor, (tensor.shape[0], 1, *tensor.shape[1:]))
        slides = slides.lifted
    size, out = tensor.shape[1:3], (1,) * flat + result[2:]
    padding = slides.padding(size, out)
    if padding is None:
        tensor, padding = pad(to, tensor, slides), VALID
    is_depthwise = groups(node) == shape[1] and groups(node) > 1
    if not is_depthwise and result[1] % groups(node):
        to.refuse("its groups differ in size")
    weight = _weight(to, w, is_depthwise, flat)
    bias = read_bias(to, operand(node, 2), result[1], tensor, weight)
    options: dict[str, Any] = {
        "padding": padding,
        "strideH": slides.stride[0],
        "strideW": slides.stride[1],
        "dilationHFactor": slides.dilation[0],
        "dilationWFactor": slides.dilation[1],
        "fusedActivationFunction": to.activation,
    }
    if is_depthwise:
        kind = "DEPTHWISE_CONV_2D"
        options["depthMultiplier"] = result[1] // shape[1]
    else:
        kind = "CONV_2D"
    given = to.emit(kind, [tensor, weight, bias], (shape[0], *out, result[1]), **options)
    if flat:
        given = to.reshaped(given, (shape[0], *result[2:], result[1]))
    to.give(y, given, _NWC if flat else NHWC)


def pad(to: Program, tensor: Tensor, slides: Window) -> Tensor:
    """Put zeros around the spatial axes of ``tensor``: [N, H, W, C]."""
    amounts = [(0, 0), *zip(slides.before, slides.after, strict=True), (0, 0)]
    shape = [size + sum(amount) for size, amount in zip(tensor.shape, amounts, strict=True)]
    padding = to.constant(np.array(amounts, np.int32), "padding")
    return to.emit("PAD", [tensor, padding], shape, grid=tensor.grid)


def _weight(to: Program, value: ir.Value, is_depthwise: bool, flat: bool) -> Tensor:
    """Give the weight as [M, kH, kW, C], or as [1, kH, kW, M] where each output has an input channel of its own."""
    rank = len(to.shape(value))
    order = (1, *range(2, rank), 0) if is_depthwise else (0, *range(2, rank), 1)
    return to.read(value, order, 1 if flat else None)
