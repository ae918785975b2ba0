"""Products: a MatMul or Gemm of codes by codes, brought back to float32 afterwards."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ._dynamic_activations import Activations, Codes
from ._dynamic_edit import MICROSOFT, Dims, Place
from ._dynamic_layers import Layer
from ._dynamic_weights import Stored, Weights
from ._qdq import Names


@dataclass(frozen=True)
class Products:
    """Multiplies in 8 bits. fused: whether the target has a product that multiplies by scales as it stores."""

    names: Names
    weights: Weights
    activations: Activations
    fused: bool

    def rewrite(self, layer: Layer, zero: int | None) -> None:
        """Let ``layer`` multiply integers. zero: the zero point of every token; None for one grid for the tensor."""
        place = Place(layer.node, self.names)
        shape = layer.node.outputs[0].shape
        weight = self._weight(layer)
        x = self.activations.turned(layer.x, place) if layer.transposed else layer.x
        if zero is None:
            codes = self.activations.by_tensor(x, place)
        else:
            codes = self.activations.by_token(x, -2 if layer.left else -1, layer.depth, zero, place)
        if zero is not None and self.fused and not layer.left and layer.w.ndim == 2:
            operands = [codes.codes, weight.codes, codes.scale, weight.scale, codes.zero]
            product = place.op("MatMulIntegerToFloat", operands, what="product", shape=shape, domain=MICROSOFT)
            computing = product
        else:
            operands = [codes.codes, weight.codes, codes.zero]
            if weight.zero is not None:
                operands = [weight.codes, codes.codes, weight.zero, codes.zero]
            computing = place.op("MatMulInteger", operands, what="sums", dtype=ir.DataType.INT32, shape=shape)
            product = scaled(computing, codes, weight, zero is None, place, shape)
        place.put(_with_bias(product, layer, place, shape), computing)

    def _weight(self, layer: Layer) -> Stored:
        w = layer.w
        if layer.left:
            return self.weights.store(layer.weight, w, (-1,), (*w.shape[:-1], 1), unsigned=True)
        return self.weights.store(
            layer.weight, w, (-2,), w.shape[-1:] if w.ndim == 2 else (*w.shape[:-2], 1, w.shape[-1])
        )


def scaled(sums: ir.Value, codes: Codes, weight: Stored, by_tensor: bool, place: Place, shape: Dims) -> ir.Value:
    """Bring int32 ``sums`` back to float32. by_tensor: in the form that onnxruntime takes into the product itself."""
    value = place.op("Cast", [sums], {"to": ir.DataType.FLOAT}, what="float", shape=shape)
    if by_tensor:
        both = place.op("Mul", [codes.scale, weight.scale], what="scales", shape=weight.scale.shape)
        return place.op("Mul", [value, both], what="product", shape=shape)
    by_channel = place.op("Mul", [value, weight.scale], what="by_channel", shape=shape)
    return place.op("Mul", [by_channel, codes.scale], what="product", shape=shape)


def _with_bias(value: ir.Value, layer: Layer, place: Place, shape: Dims) -> ir.Value:
    bias = layer.bias
    if bias is None:
        return value
    if layer.beta != 1:
        bias = place.op("Mul", [bias, place.number(layer.beta)], what="bias", shape=bias.shape)
    return place.op("Add", [value, bias], what="with_bias", shape=shape)
