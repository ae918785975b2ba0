"""Convolutions as ConvInteger: weights with one scale per output channel, the activation on one grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ._dynamic_activations import Activations
from ._dynamic_edit import Place
from ._dynamic_layers import sum_problem, weight_problem
from ._dynamic_products import scaled
from ._dynamic_weights import Weights
from ._qdq import Names
from ._slices import constant, constant_tensor


@dataclass(frozen=True)
class Convolutions:
    """Convolves in 8 bits."""

    names: Names
    weights: Weights
    activations: Activations

    def rewrite(self, node: ir.Node) -> str:
        """Let ``node`` multiply integers, and add its bias afterwards, in float32.

        Returns: "", or the reason why it was left as it is.
        """
        if reason := _why_not(node):
            return reason
        place = Place(node, self.names)
        x, weight = node.inputs[:2]
        assert x is not None and weight is not None
        w = constant(weight)
        assert w is not None
        codes = self.activations.by_tensor(x, place)
        by_channel = (len(w), *(1,) * (w.ndim - 2))
        stored = self.weights.store(weight, w, tuple(range(1, w.ndim)), by_channel)
        shape = node.outputs[0].shape
        new = ir.Node("", "ConvInteger", [codes.codes, stored.codes, codes.zero], node.attributes.values())
        (sums,) = place.add(new, "sums", (ir.DataType.INT32, shape))
        value = scaled(sums, codes, stored, True, place, shape)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None:
            along = place.small(np.array(by_channel, np.int64))
            turned = place.op("Reshape", [bias, along], what="bias", shape=ir.Shape(by_channel))
            value = place.op("Add", [value, turned], what="with_bias", shape=shape)
        place.put(value, sums)
        return ""


def _why_not(node: ir.Node) -> str:
    if node.op_type == "ConvTranspose":
        return "ONNX has no ConvTranspose of integers"
    if not isinstance(node.graph, ir.Graph):
        return "it lies in a function"
    tensor = constant_tensor(node.inputs[1])
    if tensor is None:
        return "its weight is not constant"
    return weight_problem(tensor) or sum_problem(int(np.prod(tensor.shape.numpy()[1:])))
