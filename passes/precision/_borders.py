"""Borders: rewiring the chosen nodes to float16, with a Cast wherever the type changes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from . import _ops
from ._choose import Choice, is_bias, is_heavy, weight
from ._numbers import LARGEST, MASKED, to_half
from ._typing import FLOAT, HALF


def cross(graph: ir.Graph, choice: Choice) -> None:
    """Make the nodes of ``choice`` float16. Everything else, the signature too, keeps reading and giving float32."""
    borders = _Borders(graph, {(node, index) for node, found in choice.nodes.items() for index, _, _ in found.inputs})
    for found in choice.nodes.values():
        for value in found.outputs:
            borders.widen(value)
    for node, found in choice.nodes.items():
        for index, value, slot in found.inputs:
            if value.dtype != HALF:
                node.replace_input_with(index, borders.narrow(value, clamp=is_bias(slot.name)))
        if node.op_type == "Attention" and node.domain == "" and "softmax_precision" not in node.attributes:
            node.attributes.add(ir.AttrInt64("softmax_precision", int(FLOAT)))
    borders.share_weights()


@dataclass
class _Borders:
    """The other form of each value that crosses, made once. ``inside``: each (node, input) that reads float16."""

    graph: ir.Graph
    inside: set[tuple[ir.Node, int]]
    narrowed: dict[tuple[ir.Value, bool], ir.Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        results = (value for node in self.graph.all_nodes() for value in node.outputs)
        self.names: set[str | None] = {*self.graph.initializers, *(v.name for v in (*self.graph.inputs, *results))}

    def widen(self, value: ir.Value) -> None:
        """Make ``value``, what a chosen node gives, float16; whoever needs float32 reads it through a Cast."""
        value.type = ir.TensorType(HALF)  # not value.dtype: drafts share their type objects
        outside = [(n, i) for n, i in value.uses() if (n, i) not in self.inside and not _ops.reads_either(n)]
        if not outside and not value.is_graph_output():
            return
        wide = self._cast(value, FLOAT, f"{value.name}.float32")
        for node, index in outside:
            node.replace_input_with(index, wide)
        for graph in (self.graph, *self.graph.subgraphs()):
            for at, output in enumerate(graph.outputs):
                if output is value:
                    graph.outputs[at] = wide
        if wide.is_graph_output():
            value.name, wide.name = self._unused(f"{value.name}.float16"), value.name

    def narrow(self, value: ir.Value, clamp: bool) -> ir.Value:
        """Give ``value`` in float16. clamp: it is a mask, whose -3.4e38 must not become -inf."""
        key = (value, clamp)
        if key not in self.narrowed:
            tensor = weight(value)
            if tensor is not None:
                self.narrowed[key] = self._weight(
                    f"{value.name}.float16", to_half(tensor.numpy(), MASKED if clamp else LARGEST)
                )
            elif (original := _widened(value)) is not None:
                self.narrowed[key] = original
            else:
                limited = self._clamp(value) if clamp else value
                self.narrowed[key] = self._cast(limited, HALF, f"{value.name}.float16")
        return self.narrowed[key]

    def share_weights(self) -> None:
        """Drop each weight that only float16 nodes read; a heavy one that others read too is stored once."""
        for (value, _), half in self.narrowed.items():
            tensor = weight(value)
            if tensor is None or value.is_graph_output():
                continue
            if value.uses() and is_heavy(tensor):
                value.replace_all_uses_with(self._cast(half, FLOAT, f"{value.name}.float32"))
            if not value.uses():
                self._remove(value)

    def _cast(self, value: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
        return self._after(value, ir.node("Cast", [value], {"to": dtype}), dtype, name)

    def _clamp(self, value: ir.Value) -> ir.Value:
        lowest, highest = (
            self._weight(f"{value.name}.{side}", np.array(limit, np.float32))
            for side, limit in (("lowest", -MASKED), ("highest", MASKED))
        )
        return self._after(value, ir.node("Clip", [value, lowest, highest]), FLOAT, f"{value.name}.clamped")

    def _after(self, value: ir.Value, node: ir.Node, dtype: ir.DataType, name: str) -> ir.Value:
        """Put ``node`` right behind what computes ``value``, or in front where that is an input or a weight."""
        result = node.outputs[0]
        result.name, result.type, result.shape = self._unused(name), ir.TensorType(dtype), value.shape
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], node)
        else:
            self.graph.insert_after(producer, node)
        return result

    def _weight(self, wish: str, array: np.ndarray) -> ir.Value:
        name = self._unused(wish)
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def _remove(self, value: ir.Value) -> None:
        producer = value.producer()
        if producer is not None:
            self.graph.remove(producer, safe=True)
        elif value.name is not None:
            self.graph.initializers.pop(value.name)

    def _unused(self, wish: str) -> str:
        name, count = wish, 0
        while name in self.names:
            count += 1
            name = f"{wish}_{count}"
        self.names.add(name)
        return name


def _widened(value: ir.Value) -> ir.Value | None:
    """Give the float16 value that ``value`` is a Cast of, or None."""
    producer = value.producer()
    source = producer.inputs[0] if producer is not None and producer.op_type == "Cast" else None
    return source if source is not None and source.dtype == HALF else None
