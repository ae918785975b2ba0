"""Layers: MatMul and Gemm with a constant weight, brought to one form, ``y = x @ w`` or ``w @ x`` and what is added."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ._slices import constant, constant_tensor, integer

Skip = Callable[[ir.Node, str], None]

#: A sum of this many products of a byte and a signed byte still fits into 32 bits.
LONGEST_SUM = (2**31 - 1) // (255 * 127)


@dataclass(frozen=True)
class Layer:
    """A product of an activation and a constant weight, in float32.

    left: whether the weight is the left operand. It reads what ``node`` reads by now: another layer before it may have
    been rewritten meanwhile.
    """

    node: ir.Node
    left: bool

    @property
    def x(self) -> ir.Value:
        """The activation, [..., rows, K], or [..., K, columns] where the weight is on the left."""
        return self._operand(1 if self.left else 0)

    @property
    def weight(self) -> ir.Value:
        """The constant."""
        return self._operand(0 if self.left else 1)

    @property
    def transposed(self) -> bool:
        """Whether a Gemm reads ``x`` transposed."""
        return self._flag("transB" if self.left else "transA")

    @property
    def alpha(self) -> float:
        """What a Gemm multiplies its product with."""
        return self._factor("alpha")

    @property
    def beta(self) -> float:
        """What a Gemm multiplies its bias with."""
        return self._factor("beta")

    @property
    def bias(self) -> ir.Value | None:
        """What is added, times beta."""
        return self.node.inputs[2] if len(self.node.inputs) > 2 and self.beta else None

    @property
    def axis(self) -> int:
        """The axis of ``x`` that is summed over."""
        return -1 if self.left == self.transposed else -2

    @property
    def w(self) -> np.ndarray:
        """The weight, [..., K, N], or [..., M, K] on the left, turned and multiplied by alpha as a Gemm does."""
        array = constant(self.weight)
        assert array is not None
        if self._flag("transA" if self.left else "transB"):
            array = array.T
        return array if self.alpha == 1 else array * np.float32(self.alpha)

    @property
    def columns(self) -> np.ndarray:
        """The weight as [K, outputs], batch axes among the outputs."""
        w = self.w if self.left else self.w.swapaxes(-1, -2)
        return w.reshape(-1, w.shape[-1]).T

    @property
    def depth(self) -> int:
        """How many products are summed."""
        return int(self.w.shape[-1 if self.left else -2])

    def _operand(self, index: int) -> ir.Value:
        value = self.node.inputs[index]
        assert value is not None
        return value

    def _flag(self, name: str) -> bool:
        return bool(integer(self.node, name, 0))

    def _factor(self, name: str) -> float:
        return self.node.attributes[name].as_float() if name in self.node.attributes else 1.0


def layers(nodes: Iterable[ir.Node], skip: Skip) -> Iterator[Layer]:
    """Yield each of ``nodes``, MatMul or Gemm, that has one constant operand which int8 can hold; skip the others.

    A product of two activations has no weight and is passed over in silence.
    """
    for node in nodes:
        layer = _layer(node)
        if layer is None:
            continue
        if reason := _why_not(layer):
            skip(node, reason)
        else:
            yield layer


def _layer(node: ir.Node) -> Layer | None:
    a, b = node.inputs[:2]
    if a is None or b is None:
        return None
    left = ir.convenience.get_const_tensor(b) is None
    if left and ir.convenience.get_const_tensor(a) is None:
        return None
    return Layer(node, left)


def _why_not(layer: Layer) -> str:
    node, weight = layer.node, layer.weight
    tensor = constant_tensor(weight)
    if tensor is None:
        return f"its weight {weight.name} is an input of the model"
    if not isinstance(node.graph, ir.Graph):
        return "it lies in a function"
    if constant_tensor(layer.x) is not None:
        return "both of its operands are constant"
    if len(tensor.shape) < 2 or (layer.x.shape is not None and len(layer.x.shape) < 2):
        return "it multiplies a vector"
    if reason := weight_problem(tensor):
        return reason
    if layer.alpha != 1 and not np.isfinite(layer.w).all():
        return "its weight times alpha does not fit into FLOAT"
    return sum_problem(layer.depth)


def weight_problem(tensor: ir.TensorProtocol) -> str:
    """Say why int8 cannot hold ``tensor``; "" where it can."""
    if tensor.dtype != ir.DataType.FLOAT:
        return f"its weight is {tensor.dtype}, not FLOAT"
    if not tensor.size:
        return "its weight is empty"
    if not np.isfinite(tensor.numpy()).all():
        return "its weight holds NaN or infinity"
    return ""


def sum_problem(depth: int) -> str:
    """Say why a sum of ``depth`` products cannot be done in 32 bits; "" where it can."""
    return "" if depth <= LONGEST_SUM else f"a sum of {depth} products of 8-bit numbers may not fit into 32 bits"
