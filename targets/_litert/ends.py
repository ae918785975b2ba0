"""Where the result of a node ends: behind the activation that only it has, and on the grid that it is rounded to."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from . import registry
from ._attributes import integer, operand
from .tensors import Grid

#: The activations that LiteRT's operators apply to their own results, by the interval that they leave.
FUSED = {(0.0, np.inf): "RELU", (0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1"}


@dataclass(frozen=True)
class End:
    """What becomes of the result of a node.

    activation: the clamp that alone reads it, with its bounds; value: what that gives, or the result itself.
    grid: what all that reads ``value`` rounds it to; quantize: the QuantizeLinear nodes that do so at once.
    """

    value: ir.Value
    activation: ir.Node | None = None
    bounds: tuple[float, float] = (-np.inf, np.inf)
    quantize: tuple[ir.Node, ...] = ()
    grid: Grid | None = None


def end_of(value: ir.Value) -> End:
    """Look at what reads ``value``."""
    found = _quantized(End(value))
    reader = _only_reader(value)
    if found.grid is not None or reader is None:
        return found
    limits = bounds(reader)
    return found if limits is None else _quantized(End(reader.outputs[0], reader, limits))


def _only_reader(value: ir.Value) -> ir.Node | None:
    """Give the one node that reads ``value``, as its first operand; None where anything else does."""
    if len(value.uses()) != 1 or value.is_graph_output():
        return None
    ((reader, index),) = value.uses()
    return reader if index == 0 else None


def bounds(node: ir.Node) -> tuple[float, float] | None:
    """Give the interval that a Relu or Clip leaves; None for any other node, and for bounds that are not constant."""
    if node.domain:
        return None
    if node.op_type == "Relu":
        return 0.0, np.inf
    if node.op_type != "Clip":
        return None
    low, high = (_number(node, 1, -np.inf), _number(node, 2, np.inf))
    return None if low is None or high is None else (low, high)


def _number(node: ir.Node, index: int, default: float) -> float | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return default
    tensor = None if value.is_graph_input() else ir.convenience.get_const_tensor(value)
    return None if tensor is None else float(tensor.numpy().reshape(()))


def _quantized(end: End) -> End:
    """Add the grid that the value is rounded to, by all that reads it, at once or behind what only moves elements."""
    uses = end.value.uses()
    nodes = tuple(node for node, index in uses if index == 0 and node.op_type == "QuantizeLinear")
    if not nodes and (grid := _grid_behind(end.value)) is not None:
        return replace(end, grid=grid)
    if not nodes or len(nodes) < len(uses) or end.value.is_graph_output():
        return end
    grids = {grid_of(node) for node in nodes}
    grid = grids.pop() if len(grids) == 1 else None
    return replace(end, quantize=nodes, grid=grid) if grid is not None else end


def _grid_behind(value: ir.Value) -> Grid | None:
    """Give the grid that ``value`` is rounded to behind a node that moves elements: it may as well be before."""
    reader = _only_reader(value)
    converter = registry.find(reader) if reader is not None else None
    if reader is None or converter is None or len(reader.outputs) != 1:
        return None
    codes = converter.codes(reader) if callable(converter.codes) else converter.codes
    return _quantized(End(reader.outputs[0])).grid if codes == "moves" else None


def implied(end: End, grid: Grid) -> bool:
    """Whether rounding to ``grid`` cuts off what the activation of ``end`` would."""
    low, high = grid.limits
    return end.bounds[0] <= low and high <= end.bounds[1]


def grid_of(node: ir.Node) -> Grid | None:
    """Give the int8 grid of a QuantizeLinear or DequantizeLinear of one scale, bit for bit; None for any other grid.

    The code ``q`` of uint8 is ``q - 128`` of int8: the same number.
    """
    scale, zero = constant(node.inputs[1]), constant(operand(node, 2))
    if scale is None or scale.size != 1 or scale.dtype != np.float32 or (operand(node, 2) is not None and zero is None):
        return None
    codes, at = _codes_of(node, zero), 0 if zero is None else int(zero.reshape(()))
    if codes not in (ir.DataType.UINT8, ir.DataType.INT8):
        return None
    return Grid((float(scale.reshape(())),), at - (128 if codes == ir.DataType.UINT8 else 0))


def _codes_of(node: ir.Node, zero: np.ndarray | None) -> ir.DataType | None:
    """Give the type of the codes that a node gives or reads."""
    if zero is not None:
        return ir.DataType.from_numpy(zero.dtype)
    if node.op_type == "QuantizeLinear":
        return ir.DataType(integer(node, "output_dtype", 0) or ir.DataType.UINT8)
    return node.inputs[0].dtype if node.inputs[0] is not None else None


def constant(value: ir.Value | None) -> np.ndarray | None:
    """Give what a constant holds; None for what is none."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None or tensor.dtype == ir.DataType.STRING else tensor.numpy()
