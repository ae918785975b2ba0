"""Beside: a model and a copy of it in one graph, fed alike, so that what differs between them can be looked at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from polycast.model import graphs, values

from ._matrix import Matrix, drop_unread
from ._slices import new_constant

#: Begins the names of the original's values. The copy's have the names of the model.
ORIGINAL = "original/"


@dataclass(frozen=True)
class Beside:
    """The original, and a copy that is changed layer by layer. What both have in common is stored once.

    copies: the node of the copy for each node of the model that will be changed.
    """

    both: ir.Model
    copies: Mapping[ir.Node, ir.Node]

    @classmethod
    def of(cls, model: ir.Model, nodes: Iterable[ir.Node]) -> Beside:
        """Put ``model``, which stays as it is, beside a copy of which ``nodes`` will be changed."""
        both = model.clone()
        copies = dict(zip(model.graph.all_nodes(), both.graph.all_nodes(), strict=True))
        _take_in(both, model.clone())
        return cls(both, {node: copies[node] for node in nodes})

    def exchange(self, node: ir.Node, matrix: Matrix, rows: np.ndarray) -> None:
        """Give the copy of ``node``, a MatMul or Gemm, ``rows: [N, K] float32`` in the place of ``matrix``."""
        copy = self.copies[node]
        old = copy.inputs[1]
        assert old is not None and isinstance(copy.graph, ir.Graph)
        name = f"{copy.outputs[0].name}/weight"
        copy.replace_input_with(1, new_constant(copy.graph, np.ascontiguousarray(rows.T, matrix.dtype), name))
        drop_unread(old)
        if copy.op_type == "Gemm":
            alpha = copy.attributes["alpha"].as_float() if "alpha" in copy.attributes else 1.0
            copy.attributes["transB"] = ir.AttrInt64("transB", 0)
            copy.attributes["alpha"] = ir.AttrFloat32("alpha", alpha / matrix.factor)


class Sight:
    """A copy of both graphs in which what is to be looked at is put together."""

    def __init__(self, beside: Beside) -> None:
        self.model = beside.both.clone()
        self._values = {value.name: value for graph in graphs(self.model) for value in values(graph)}
        self._joined: list[ir.Value] = []

    def rows(self, name: str, channels: int) -> ir.Value:
        """Give a value of the copy as rows: [rows, channels] float32."""
        return self._rows(self._values[name], channels)

    def difference(self, name: str, channels: int) -> ir.Value:
        """Give by how much a value of the original is more than that of the copy: [rows, channels] float32."""
        original = self._values.get(ORIGINAL + name, self._values[name])  # both read the inputs of the model
        return self._add("Sub", [self._rows(original, channels), self.rows(name, channels)])

    def total(self, values: Sequence[ir.Value]) -> ir.Value:
        """Add ``values`` up."""
        return self._add("Sum", values)

    def joined(self, values: Sequence[ir.Value]) -> str:
        """Put the columns of ``values`` beside each other, to be looked at. Returns: the name of the result."""
        self._joined.append(self._add("Concat", values, axis=1))
        return str(self._joined[-1].name)

    def only_joined(self) -> ir.Model:
        """Give the graph without what nothing that was joined needs."""
        self.model.graph.outputs[:] = self._joined
        RemoveUnusedNodesPass()(self.model)
        return self.model

    def _rows(self, value: ir.Value, channels: int) -> ir.Value:
        shape = new_constant(self.model.graph, np.array([-1, channels]), "sight/shape")
        return self._add("Reshape", [self._add("Cast", [value], to=ir.DataType.FLOAT.value), shape])

    def _add(self, op: str, inputs: Sequence[ir.Value], **attributes: int) -> ir.Value:
        node = ir.node(op, inputs, attributes)
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        self.model.graph.append(node)
        return node.outputs[0]


def _take_in(both: ir.Model, original: ir.Model) -> None:
    """Move the nodes of ``original``, a copy of ``both`` that is used up, into it, to read the same inputs."""
    for graph in graphs(original):
        for value in list(values(graph)):
            value.name = f"{ORIGINAL}{value.name}"
        for node in graph:
            node.name = f"{ORIGINAL}{node.name}"
    pairs = [*zip(original.graph.inputs, both.graph.inputs, strict=True)]
    pairs += zip(original.graph.initializers.values(), both.graph.initializers.values(), strict=True)
    for old, new in pairs:
        old.replace_all_uses_with(new)
    original.graph.outputs.clear()
    nodes = list(original.graph)
    original.graph.remove(nodes)
    both.graph.extend(nodes)
