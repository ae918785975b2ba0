"""Writing a plan: grids on activations, integers in the place of weights and biases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ._int8_plan import Plan, activation, is_scalar
from ._int8_roles import Role, data, role
from ._int8_weights import Operands, codes, least_scale, weight_scale
from ._qdq import Grid, Names, dequantize, grid_of, quantize


@dataclass
class Writer:
    """Puts QuantizeLinear and DequantizeLinear into a model; what several nodes read is written once.

    top: the largest code of a weight.
    """

    names: Names
    top: int
    per_channel: bool
    written: dict[tuple[object, ...], ir.Value] = field(default_factory=dict)

    def write(self, plan: Plan, operands: Mapping[ir.Node, Operands], grids: Mapping[ir.Value, Grid]) -> None:
        """Make the nodes of ``plan`` read codes."""
        for value in plan.readers:
            self._put_on_grid(plan, value, grids[value])
        for node in plan.between:
            for index, operand in enumerate(node.inputs):
                if role(node) is Role.COMBINE and operand in data(node) and is_scalar(operand):
                    node.replace_input_with(index, self._scalar(plan.graph, node, operand, _is_signed(node)))
        for node in plan.multiply:
            self._store(plan.graph, node, operands[node])

    def _put_on_grid(self, plan: Plan, value: ir.Value, grid: Grid) -> None:
        """Round ``value`` to ``grid``: for whoever reads it if an integer kernel gives it, else for its readers."""
        graph, maker = plan.graph, value.producer()
        parameters = self._parameters(graph, value.name or "", grid)
        rounded = quantize(self.names, value, parameters)
        back = dequantize(self.names, rounded.outputs[0], parameters)
        result = back.outputs[0]
        if value in plan.made:
            uses = [(node, index) for node, index in value.uses() if node is not rounded]
        else:
            uses = plan.readers[value]
        for node, index in uses:
            node.replace_input_with(index, result)
        if maker is not None and maker.graph is graph:
            graph.insert_after(maker, [rounded, back])
        else:
            graph.insert_before(graph[0], [rounded, back])
        if value in plan.made and value.is_graph_output():
            self._give(graph, value, result)

    def _give(self, graph: ir.Graph, value: ir.Value, result: ir.Value) -> None:
        """Make ``result`` the output of ``graph`` in the place of ``value``, under its name."""
        for at, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[at] = result
        value.name, result.name = self.names.unused(f"{value.name}.float"), value.name

    def _parameters(self, graph: ir.Graph, name: str, grid: Grid) -> list[ir.Value | None]:
        scale = self.names.small(graph, f"{name}.scale", np.array(grid.scale, np.float32))
        zero = self.names.small(graph, f"{name}.zero", np.array(grid.zero, grid.dtype))
        return [scale, zero]

    def _scalar(self, graph: ir.Graph, node: ir.Node, value: ir.Value, signed: bool) -> ir.Value:
        """Store one number exactly: one step of a grid that has its size."""
        tensor = ir.convenience.get_const_tensor(value)
        assert tensor is not None
        number = tensor.numpy()
        size = float(abs(number.reshape(()))) or 1.0
        negative = bool((number < 0).any())
        grid = Grid(size, 1 if negative and not signed else 0, signed)
        code = np.where(number == 0, grid.zero, grid.zero + np.where(negative, -1, 1)).astype(grid.dtype)
        held = self.names.small(graph, f"{value.name}.codes", code)
        back = dequantize(self.names, held, self._parameters(graph, value.name or "", grid))
        graph.insert_before(node, back)
        return back.outputs[0]

    def _store(self, graph: ir.Graph, node: ir.Node, operands: Operands) -> None:
        """Store the weight and the bias of ``node`` as integers."""
        reads = activation(node)
        grid = grid_of(node.inputs[reads])
        source = node.inputs[1 - reads]
        assert grid is not None and source is not None
        axis = operands.axis if self.per_channel else None
        least = least_scale(operands.bias, grid.scale)
        scale = weight_scale(operands.weight, axis, self.top, least if axis is not None else np.max(least))
        weight = self._weight(graph, node, source, operands.weight, scale, axis)
        node.replace_input_with(1 - reads, weight)
        if operands.bias is not None:
            bias = self._bias(graph, node, operands.bias, scale * np.float32(grid.scale))
            node.replace_input_with(2, bias)
        for name in ("alpha", "beta"):
            node.attributes.pop(name, None)

    def _weight(
        self, graph: ir.Graph, node: ir.Node, source: ir.Value, weight: np.ndarray, scale: np.ndarray, axis: int | None
    ) -> ir.Value:
        alpha = node.attributes["alpha"].as_float() if "alpha" in node.attributes else 1.0
        key = (graph, source, axis, alpha, scale.tobytes())
        if key not in self.written:
            base = f"{source.name}"
            held = self.names.constant(graph, f"{base}.codes", codes(weight, scale, axis, self.top, np.int8))
            parameters = [
                self.names.constant(graph, f"{base}.scale", scale),
                self.names.constant(graph, f"{base}.zero", np.zeros(scale.shape, np.int8)),
            ]
            back = dequantize(self.names, held, parameters, axis)
            graph.insert_before(graph[0], back)
            self.written[key] = back.outputs[0]
        return self.written[key]

    def _bias(self, graph: ir.Graph, node: ir.Node, bias: np.ndarray, scale: np.ndarray) -> ir.Value:
        source = node.inputs[2]
        assert source is not None
        axis = 0 if scale.ndim else None
        limit = np.iinfo(np.int32).max
        held = self.names.constant(graph, f"{source.name}.codes", codes(bias, scale, axis, limit, np.int32))
        back = dequantize(self.names, held, [self.names.constant(graph, f"{source.name}.scale", scale)], axis)
        graph.insert_before(node, back)
        return back.outputs[0]


def _is_signed(node: ir.Node) -> bool:
    """Whether the codes that ``node`` reads already are int8."""
    grids = [grid_of(value) for value in node.inputs]
    return any(grid is not None and grid.signed for grid in grids)


def drop_unread(values: Mapping[ir.Value, None]) -> None:
    """Remove the constants among ``values`` that nothing reads any more."""
    for value in values:
        if value.uses() or value.is_graph_output() or value.is_graph_input():
            continue
        maker, graph = value.producer(), value.graph
        if maker is not None and maker.graph is not None:
            maker.graph.remove(maker, safe=True)
        elif isinstance(graph, ir.Graph) and value.name is not None:
            graph.initializers.pop(value.name)
