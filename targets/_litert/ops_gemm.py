"""Gemm: FULLY_CONNECTED."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ._attributes import integer, number, operand
from .biases import read_bias
from .flat import in_place
from .program import Program
from .registry import converts


@converts("Gemm", fuses=True, codes="product")
def gemm(node: ir.Node, to: Program) -> None:
    """Write ``alpha * x @ w + beta * bias``, x: [M, K], w: [K, N] or [N, K] constant."""
    x, w, bias = node.inputs[0], node.inputs[1], operand(node, 2)
    assert x is not None and w is not None
    alpha, beta = number(node, "alpha", 1.0), number(node, "beta", 1.0)
    if to.array(w) is None and to.stored(w) is None:
        to.refuse("its weight is not constant")
    tensor = to.read(x, (1, 0) if integer(node, "transA", 0) else (0, 1))
    order = (0, 1) if integer(node, "transB", 0) else (1, 0)
    array = to.array(w)
    if array is not None:
        weight = to.constant((array * np.float32(alpha)).transpose(order), name=w.name)
    elif alpha == 1.0:
        weight = to.read_weight(w, x, order)
    else:
        to.refuse("its alpha is not in its codes")
    tensor, weight = in_place(to, tensor, weight)
    channels = weight.shape[0]
    shape = (tensor.shape[0], channels)
    added = to.array(bias)
    if added is not None and bias is not None and (added.size == 1 or added.size == added.shape[-1] == channels):
        b = to.constant(np.broadcast_to(added.reshape(-1) * np.float32(beta), channels), name=bias.name)
    elif bias is None or beta == 1.0:
        b = read_bias(to, bias, channels, tensor, weight)
    else:
        to.refuse("its beta is not in its bias")
    y = to.emit("FULLY_CONNECTED", [tensor, weight, b], shape, fusedActivationFunction=to.activation)
    to.give(node.outputs[0], y)
