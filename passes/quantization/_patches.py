"""Patches: a linear layer seen as one matrix product for each group of its channels."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from ._pairs import Pair
from ._qdq import stored
from ._rerounding import Layer
from ._slices import constant, integer


@dataclass(frozen=True)
class Grouped:
    """The weight of a quantized layer as [groups, outputs, inputs], inputs of a Conv being channels by positions.

    weight: as it was, float64. codes: what is stored for it. scale: [groups, outputs, 1].
    """

    weight: np.ndarray
    codes: np.ndarray
    scale: np.ndarray
    stored: tuple[int, ...]
    transposed: bool

    @property
    def columns(self) -> int:
        """Numbers in one row of what the layer reads."""
        return int(self.weight.shape[0] * self.weight.shape[2])

    def layer(self, x: np.ndarray) -> Layer:
        """Take rows of what the layer reads: [rows, columns]."""
        groups, _, inputs = self.weight.shape
        reads = x.astype(np.float64).reshape(-1, groups, inputs).swapaxes(0, 1)
        return Layer(reads, self.weight, self.codes, self.scale)

    def restored(self, codes: np.ndarray) -> np.ndarray:
        """Give codes in the shape in which they are stored."""
        return codes[0].T if self.transposed else codes.reshape(self.stored)


def grouped(pair: Pair) -> Grouped | str:
    """Read the weights of a quantized layer, or give the reason why that is not possible."""
    node, held, float_weight = pair.maker, stored(pair.maker, 1), constant(pair.original.inputs[1])
    if node.domain != "" or node.op_type not in ("Conv", "Gemm", "MatMul"):
        return f"{node.op_type} has no int8 weight of its own"
    if held is None or float_weight is None or held.codes.dtype != np.int8:
        return "its weight is not stored as int8"
    if held.codes.shape != float_weight.shape or (node.op_type != "Conv" and held.codes.ndim != 2):
        return "its weight is stored in another shape than it had"
    if held.readers > 1:
        return "its weight is read elsewhere too"
    transposed = node.op_type != "Conv" and not integer(node, "transB", 0)
    groups = integer(node, "group", 1)

    def split(array: np.ndarray) -> np.ndarray:
        rows = array.T if transposed else array
        return rows.reshape(groups, rows.shape[0] // groups, -1).astype(np.float64)

    weight, codes = split(float_weight * _factor(pair)), split(held.codes)
    outputs = codes.shape[0] * codes.shape[1]
    if held.scale.size not in (1, outputs):
        return "its scales are not per output channel"
    scale = np.broadcast_to(held.scale.astype(np.float64), outputs).reshape(groups, -1, 1)
    return Grouped(weight, codes, scale, held.codes.shape, transposed)


def _factor(pair: Pair) -> float:
    """Give the alpha of a Gemm that went into its codes."""
    alphas = (n.attributes["alpha"].as_float() if "alpha" in n.attributes else 1.0 for n in (pair.original, pair.maker))
    was, now = alphas
    return was / now


def add_patches(node: ir.Node, name: str) -> None:
    """Make a value ``name`` of what ``node`` reads: for a Conv, the patch that each position of its result sees.

    A Conv with one 1 in each kernel picks the elements of the patches, strides and padding and all.
    """
    x = node.inputs[0]
    assert x is not None
    if node.op_type != "Conv":
        _append(ir.node("Identity", [x]), node, name)
        return
    shape = tuple(_weight_of(node).shape)
    channels, positions = shape[1] * integer(node, "group", 1), prod(shape[2:])
    pick = np.tile(np.eye(positions, dtype=np.float32), (channels, 1)).reshape(channels * positions, 1, *shape[2:])
    kernel = ir.tensor(pick, name=f"{name}.pick")
    value = ir.Value(
        name=f"{name}.pick", const_value=kernel, shape=ir.Shape(pick.shape), type=ir.TensorType(kernel.dtype)
    )
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    graph.register_initializer(value)
    picker = ir.node("Conv", [x, value])
    picker.attributes.update({key: each for key, each in node.attributes.items() if key != "group"})
    picker.attributes["group"] = ir.AttrInt64("group", channels)
    _append(picker, node, name)


def _append(new: ir.Node, node: ir.Node, name: str) -> None:
    assert node.graph is not None
    new.outputs[0].name, new.outputs[0].type = name, ir.TensorType(ir.DataType.FLOAT)
    node.graph.insert_after(node, new)


def _weight_of(node: ir.Node) -> np.ndarray:
    held = stored(node, 1)
    assert held is not None
    return held.codes
