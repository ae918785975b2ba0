"""Planning: which nodes of a graph compute with integers, and which values therefore have a grid.

The chosen multiplications want their activations as codes. That wish goes up through what only moves codes, and
through what combines codes where those are at hand, so that a chain of such nodes never leaves the integers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import onnx_ir as ir

from ._int8_roles import Role, data, role, shrinks
from ._qdq import dequantizer, is_stored


@dataclass
class Plan:
    """What of one graph computes with integers.

    multiply: the chosen multiplications. between: what combines and moves codes between them.
    readers: for each value that gets a grid, the operands that read its codes.
    made: the values among these that an integer kernel gives; whatever else reads one of these reads it rounded too.
    tapped: for each value that gets a grid, the value whose range the grid has to cover.
    """

    graph: ir.Graph
    multiply: list[ir.Node]
    between: dict[ir.Node, None] = field(default_factory=dict)
    readers: dict[ir.Value, list[tuple[ir.Node, int]]] = field(default_factory=dict)
    made: set[ir.Value] = field(default_factory=set)
    tapped: dict[ir.Value, ir.Value] = field(default_factory=dict)


def plan(
    graph: ir.Graph, multiply: Collection[ir.Node], may: Callable[[ir.Node], bool], *, to_float: bool = False
) -> Plan:
    """Plan ``graph`` around the multiplications in ``multiply``.

    may: whether another node may compute with integers. to_float: whether a Conv that reads codes may give floats.
    """
    chosen = [node for node in graph if node in multiply]
    return _Planner(Plan(graph, chosen), set(chosen), may, to_float).run()


class _Planner:
    """Two walks: forward, where codes are at hand; backward, where they are wanted."""

    def __init__(self, plan: Plan, chosen: set[ir.Node], may: Callable[[ir.Node], bool], to_float: bool) -> None:
        self.plan, self.chosen, self.may, self.to_float = plan, chosen, may, to_float
        self.at_hand: set[ir.Value] = set()

    def run(self) -> Plan:
        for node in self.plan.graph:
            if self._gives_codes(node):
                self.at_hand.update(node.outputs)
        for node in reversed(list(self.plan.graph)):
            self._choose(node)
        self._order()
        for node in self.plan.graph:
            for value in node.outputs:
                if value in self.plan.readers:
                    self.plan.tapped[value] = self._tapped(value)
        return self.plan

    def _gives_codes(self, node: ir.Node) -> bool:
        """Whether codes of what ``node`` gives cost little, as it can compute with integers."""
        kind = role(node)
        if node in self.chosen:
            return node.op_type != "ConvTranspose"  # no integer kernel that we know of
        if kind is Role.NONE or kind is Role.MULTIPLY or not self.may(node):
            return False
        sources = data(node)
        if node.op_type == "Concat":
            return any(self._is_at_hand(v) for v in sources) and not any(map(is_constant, sources))
        return any(self._is_at_hand(v) for v in sources) and all(self._is_at_hand(v) or is_scalar(v) for v in sources)

    def _is_at_hand(self, value: ir.Value) -> bool:
        return value in self.at_hand or is_code(value)

    def _choose(self, node: ir.Node) -> None:
        """Decide on ``node``, everything that reads its outputs being decided."""
        kind = role(node)
        if node in self.chosen:
            self._want(node, activation(node))
            if self._ends_wanted(node) or (node.op_type == "Conv" and not self.to_float):
                self._make(self._end(node.outputs[0]))
        elif kind is Role.COMBINE and self._gives_codes(node) and self._ends_wanted(node):
            self.plan.between[node] = None
            self._make(self._end(node.outputs[0]))
            for index, value in enumerate(node.inputs):
                if value is not None and value in data(node) and not is_constant(value):
                    self._want(node, index)
        elif kind is Role.MOVE and self._moves(node):
            self.plan.between[node] = None
            for value in node.outputs:
                self._make(self._end(value))
            self._want(node, 0)

    def _moves(self, node: ir.Node) -> bool:
        """Whether ``node`` moves codes: something wants them, and nothing that would have floats is made to round."""
        source = data(node)[0]
        if not self.may(node) or is_constant(source) or source.dtype != ir.DataType.FLOAT:
            return False
        ends = [self._end(value) for value in node.outputs]
        if not any(end in self.plan.readers for end in ends):
            return False
        if self._is_at_hand(source):
            return True
        return not shrinks(node) and all(self._only_codes_read(end) for end in ends)

    def _only_codes_read(self, value: ir.Value) -> bool:
        return len(value.uses()) == len(self.plan.readers.get(value, ())) and not value.is_graph_output()

    def _ends_wanted(self, node: ir.Node) -> bool:
        return self._end(node.outputs[0]) in self.plan.readers

    def _want(self, node: ir.Node, index: int) -> None:
        value = node.inputs[index]
        assert value is not None
        if not is_code(value):
            self.plan.readers.setdefault(value, []).append((node, index))

    def _make(self, value: ir.Value) -> None:
        self.plan.made.add(value)
        self.plan.readers.setdefault(value, [])

    def _end(self, value: ir.Value) -> ir.Value:
        """Give what becomes codes of what a node gives: itself, or what the clamp that alone reads it gives."""
        if len(value.uses()) != 1 or value.is_graph_output() or not self._is_moved_alone(value):
            return value
        ((reader, index),) = value.uses()
        clamps = index == 0 and role(reader) is Role.CLAMP and self.may(reader) and reader.graph is self.plan.graph
        return reader.outputs[0] if clamps else value

    def _is_moved_alone(self, value: ir.Value) -> bool:
        """Whether all that ``value`` is moved from is read by nothing else: its grid may end where a clamp does."""
        maker = value.producer()
        while maker is not None and role(maker) is Role.MOVE:
            source = maker.inputs[0]
            if source is None or len(source.uses()) != 1 or source.is_graph_output() or is_code(source):
                return False
            maker = source.producer()
        return True

    def _order(self) -> None:
        """Sort what was found backward into the order of the graph."""
        order = [*self.plan.graph.inputs, *(v for node in self.plan.graph for v in node.outputs)]
        self.plan.between = {node: None for node in self.plan.graph if node in self.plan.between}
        outside = [v for v in self.plan.readers if v not in set(order)]
        readers = self.plan.readers
        self.plan.readers = {value: readers[value][::-1] for value in (*outside[::-1], *order) if value in readers}
        self.plan.tapped = {value: value for value in self.plan.readers}

    def _tapped(self, value: ir.Value) -> ir.Value:
        """Give the value whose range the grid of ``value`` covers: what it is moved from, or what a clamp leaves."""
        maker = value.producer()
        clamped = maker is not None and role(maker) is Role.CLAMP and value in self.plan.made
        if maker is None or clamped:
            self._end_above(maker, value)
            return value
        source = maker.inputs[0] if maker in self.plan.between and role(maker) is Role.MOVE else None
        if source is None:
            return value
        return source if is_code(source) else self.plan.tapped[source]

    def _end_above(self, maker: ir.Node | None, value: ir.Value) -> None:
        """Let the grid of what a clamped value is moved from end where the clamp cuts off."""
        while maker is not None and (source := maker.inputs[0]) is not None:
            if source in self.plan.tapped:
                self.plan.tapped[source] = value
            maker = source.producer()
            if maker not in self.plan.between or role(maker) is not Role.MOVE:
                return


def activation(node: ir.Node) -> int:
    """Give which operand of a multiplication is not its weight."""
    return 1 if node.op_type in ("MatMul", "Gemm") and not is_constant(node.inputs[1]) else 0


def is_constant(value: ir.Value | None) -> bool:
    """Whether ``value`` is the same in every run."""
    if value is None or value.is_graph_input():
        return False
    return ir.convenience.get_const_tensor(value) is not None or is_stored(value)


def is_scalar(value: ir.Value) -> bool:
    """Whether ``value`` is one constant number."""
    if value.is_graph_input():
        return False
    tensor = ir.convenience.get_const_tensor(value)
    return tensor is not None and tensor.size == 1


def is_code(value: ir.Value) -> bool:
    """Whether ``value`` is an activation that has a grid already."""
    return dequantizer(value) is not None and not is_stored(value)
