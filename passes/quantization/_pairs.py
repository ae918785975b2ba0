"""Pairs: a layer as it was before it was quantized, and what computes it now."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from polycast.model import graphs, name_of

from ._qdq import dequantizer
from ._slices import input_slices


@dataclass(frozen=True)
class Pair:
    """A linear layer with a float weight in the original, and the value that stands for its result now.

    original: the Conv, ConvTranspose, Gemm or MatMul as it was. value: its result in the quantized graph, before it is
    rounded to a grid. maker: the node that gives that.
    """

    original: ir.Node
    value: ir.Value
    maker: ir.Node

    @property
    def name(self) -> str:
        """The name that the layer had."""
        return name_of(self.original)

    @property
    def channels(self) -> int:
        """The axis of the result's channels: 1, or the last one of a MatMul."""
        return -1 if self.original.op_type == "MatMul" else 1

    @property
    def reads(self) -> str:
        """Name of what the layer reads in the original; the quantized graph may have a value of that name too."""
        value = self.original.inputs[0]
        return value.name or "" if value is not None else ""

    @property
    def before(self) -> str:
        """Name of the layer's result in the original."""
        return self.original.outputs[0].name or ""

    @property
    def after(self) -> str:
        """Name of the layer's result in the quantized graph."""
        return self.value.name or ""


def pairs(model: ir.Model, original: ir.Model) -> Iterator[Pair]:
    """Yield each layer of ``original`` that ``model`` computes from a quantized weight, in order."""
    made = {v.name: v for graph in graphs(model) for node in graph for v in node.outputs if v.name}
    for graph in graphs(original):
        for node in graph:
            value = made.get(node.outputs[0].name or "") if node.outputs else None
            if value is None or input_slices(node) is None:
                continue
            value = _before_rounding(value)
            maker = value.producer()
            if maker is not None and input_slices(maker) is None:
                yield Pair(node, value, maker)


def _before_rounding(value: ir.Value) -> ir.Value:
    """Go from what a DequantizeLinear gives to what its QuantizeLinear read."""
    back = dequantizer(value)
    rounded = back.inputs[0].producer() if back is not None and back.inputs[0] is not None else None
    if rounded is None or rounded.op_type != "QuantizeLinear" or rounded.inputs[0] is None:
        return value
    return rounded.inputs[0]
