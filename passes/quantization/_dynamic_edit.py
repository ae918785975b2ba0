"""Putting several nodes in the place of one: what comes out keeps the name that it had, and so does the node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from polycast.model import name_of

from ._qdq import Names

MICROSOFT = "com.microsoft"

Dims = ir.Shape | None
Attributes = Mapping[str, int | float | str | Sequence[float] | Sequence[str] | ir.TensorProtocol]


@dataclass(frozen=True)
class Place:
    """Where new nodes go: before ``node``, in its graph, under names that begin with that of ``node``."""

    node: ir.Node
    names: Names

    @property
    def graph(self) -> ir.Graph:
        """The graph of the node."""
        assert isinstance(self.node.graph, ir.Graph)
        return self.node.graph

    def op(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        attributes: Attributes | None = None,
        *,
        what: str,
        dtype: ir.DataType = ir.DataType.FLOAT,
        shape: Dims = None,
        domain: str = "",
    ) -> ir.Value:
        """Put in a node with one output, of ``dtype`` and ``shape``. what: ends its name and its output's."""
        (value,) = self.add(ir.node(op, inputs, attributes or {}, domain=domain), what, (dtype, shape))
        return value

    def add(self, new: ir.Node, what: str, *ports: tuple[ir.DataType, Dims]) -> Sequence[ir.Value]:
        """Put in ``new``, whose outputs are of these types and shapes, and give them."""
        new.name = self.names.unused(f"{name_of(self.node)}/{what}")
        for number, (value, (dtype, shape)) in enumerate(zip(new.outputs, ports, strict=True)):
            name = self.names.unused(f"{new.name}.{number}") if number else new.name
            value.name, value.type, value.shape = (
                name,
                ir.TensorType(dtype),
                shape.copy() if shape is not None else None,
            )
        self.graph.insert_before(self.node, new)
        return new.outputs

    def number(self, number: float | int, dtype: type[np.generic] = np.float32) -> ir.Value:
        """Give a scalar constant, the same one for the same number."""
        return self.small(np.array(number, dtype))

    def small(self, array: np.ndarray) -> ir.Value:
        """Give a small constant, the same one for the same numbers."""
        return self.names.small(self.graph, f"polycast/{'x'.join(map(str, array.ravel().tolist()))}", array)

    def put(self, value: ir.Value, computing: ir.Value) -> None:
        """Let ``value`` stand where the only output of the node does, and remove the node.

        computing: what the node that multiplies gives; that node takes over the name of the one that goes.
        """
        self.put_all([value], computing)

    def put_all(self, values: Sequence[ir.Value], computing: ir.Value) -> None:
        """Let ``values`` stand where the outputs of the node do, and remove the node. computing: see ``put``."""
        node = self.node
        for old, new in zip(node.outputs, values, strict=True):
            _take_over(old, new)
        read = [value for value in node.inputs if value is not None]
        worker = computing.producer()
        assert worker is not None
        self.graph.remove(node, safe=True)
        worker.name = node.name
        for value in read:
            drop_unread(value)


def drop_unread(value: ir.Value) -> None:
    """Remove a constant that nothing reads any more."""
    if value.uses() or value.is_graph_output() or value.is_graph_input():
        return
    maker = value.producer()
    if maker is not None:
        if maker.op_type == "Constant" and maker.graph is not None:
            maker.graph.remove(maker, safe=True)
    elif value.is_initializer() and value.graph is not None and value.name is not None:
        value.graph.initializers.pop(value.name)


def _take_over(old: ir.Value, new: ir.Value) -> None:
    new.type, new.shape = old.type or new.type, old.shape if old.shape is not None else new.shape
    new.metadata_props.update(old.metadata_props)
    name, old.name = old.name, None
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.name = name
