"""Sizes of tensors as far as a graph tells them, symbolic ones included.

ONNX's own inference loses a dimension at the first Reshape whose shape is computed, which is where exported models
split their heads. Here a shape that is computed from other shapes is followed: ``Reshape(x, [batch, -1, 4, 8])`` of an
``x: [batch, seq, 32]`` is known to be ``[batch, seq, 4, 8]``.
"""

from __future__ import annotations

import onnx_ir as ir

from ._attention_dims import Dims, Numbers, symbol
from ._attention_numbers import MOST, NUMBERS
from ._attention_rules import DIMS
from ._match import constant


class Sizes:
    """Dimensions of every value of a model, and the contents of its small shape-like tensors."""

    def __init__(self, model: ir.Model) -> None:
        self._dims: dict[ir.Value, Dims | None] = {}
        self._numbers: dict[ir.Value, Numbers | None] = {}
        for function in model.functions.values():
            self._walk(function)
        self._walk(model.graph)

    def of(self, value: ir.Value | None) -> Dims | None:
        """Give the dimensions of ``value``; None where not even the rank is known."""
        if value is None:
            return None
        if value not in self._dims:
            self._dims[value] = self._declared(value)
        return self._dims[value]

    def numbers(self, value: ir.Value | None) -> Numbers | None:
        """Give the elements of ``value`` where it is small and of rank 0 or 1."""
        if value is None:
            return None
        if value not in self._numbers:
            array = constant(value)
            small = array is not None and array.ndim <= 1 and array.size <= MOST and array.dtype.kind in "fiub"
            self._numbers[value] = tuple(array.reshape(-1).tolist()) if array is not None and small else None
        return self._numbers[value]

    def integers(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """Give the elements of ``value`` where all of them are known integers."""
        found = self.numbers(value)
        if found is None or not all(isinstance(n, int) for n in found):
            return None
        return tuple(int(n) for n in found)  # type: ignore[arg-type]

    def number(self, value: ir.Value | None) -> float | None:
        """Give the one element of ``value``, of any rank, where it is a known number."""
        array = constant(value)
        if array is not None and array.size == 1 and array.dtype.kind in "fiu":
            return float(array.reshape(()))
        found = self.numbers(value)
        return float(found[0]) if found and len(found) == 1 and isinstance(found[0], (int, float)) else None

    def set(self, value: ir.Value, dims: Dims) -> None:
        """Take in that ``value`` now has ``dims``."""
        self._dims[value] = dims

    def note(self, node: ir.Node) -> None:
        """Take in ``node``, which is new."""
        for body in node.attributes.values():
            if body.type == ir.AttributeType.GRAPH and not body.is_ref():
                self._walk(body.as_graph())
            elif body.type == ir.AttributeType.GRAPHS and not body.is_ref():
                for graph in body.as_graphs():
                    self._walk(graph)
        rule = DIMS.get(node.op_type) if node.domain == "" else None
        outputs = rule(self, node) if rule else None
        for i, value in enumerate(node.outputs):
            found = outputs[i] if outputs is not None and i < len(outputs) else None
            self._dims[value] = found if found is not None else self._declared(value)
        contents = NUMBERS.get(node.op_type) if node.domain == "" else None
        if contents is not None and len(node.outputs) == 1:
            numbers = contents(self, node)
            if numbers is not None and len(numbers) <= MOST:
                self._numbers[node.outputs[0]] = numbers

    def _walk(self, graph: ir.Graph | ir.Function) -> None:
        for node in graph:
            self.note(node)

    def _declared(self, value: ir.Value) -> Dims | None:
        shape = value.const_value.shape if value.const_value is not None else value.shape
        if shape is None:
            return None
        return tuple(d if isinstance(d, int) else symbol(value, i, d.value) for i, d in enumerate(shape))
