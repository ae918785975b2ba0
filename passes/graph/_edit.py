"""Edits of a graph: put one value in another's place, take a node out, make a value constant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

SUBGRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


@dataclass(frozen=True)
class Body:
    """One list of nodes: the main graph, a subgraph, or the body of a function, with the opsets that hold there."""

    graph: ir.Graph | ir.Function
    opsets: Mapping[str, int]

    @property
    def holds_initializers(self) -> bool:
        """Whether a constant may be an initializer here; in a function it has to be a ``Constant`` node."""
        return isinstance(self.graph, ir.Graph)


def roots(model: ir.Model) -> list[ir.Graph | ir.Function]:
    """Give the main graph and the functions."""
    return [model.graph, *model.functions.values()]


def bodies(model: ir.Model) -> Iterator[Body]:
    """Yield the main graph and the functions, each followed by the subgraphs under it, outer ones first."""
    for root in roots(model):
        yield Body(root, root.opset_imports)
        for graph in list(root.subgraphs()):
            yield Body(graph, root.opset_imports)


def subgraphs(node: ir.Node) -> list[ir.Graph]:
    """Give the graphs that ``node`` holds directly."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type in SUBGRAPHS and not attribute.is_ref():
            found += [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else attribute.as_graphs()
    return found


def is_standard(node: ir.Node) -> bool:
    """Whether ``node`` is an operator of ONNX itself."""
    return node.domain in ("", "ai.onnx.ml")


def is_read(value: ir.Value) -> bool:
    """Whether a node reads ``value``, in its own graph or under it, or the graph gives it as an output."""
    return bool(value.uses()) or value.is_graph_output()


def remove(node: ir.Node) -> None:
    """Take ``node`` out of its graph; it and its subgraphs let go of what they read."""
    for graph in subgraphs(node):
        for inner in list(graph.all_nodes()):
            inner.resize_inputs(0)
    assert node.graph is not None
    node.graph.remove(node, safe=True)


def remove_unread(values: list[ir.Value | None]) -> None:
    """Take out what nothing reads any more: the initializers among ``values`` and the nodes behind the others."""
    while values:
        value = values.pop()
        if value is None or is_read(value):
            continue
        node = value.producer()
        if value.is_initializer() and not value.is_graph_input():
            assert value.graph is not None and value.name is not None
            value.graph.initializers.pop(value.name)
        elif node is not None and node.graph is not None and not any(map(is_read, node.outputs)):
            values += node.inputs
            values += (v for graph in subgraphs(node) for inner in graph.all_nodes() for v in inner.inputs)
            remove(node)


def can_replace(old: ir.Value, new: ir.Value) -> bool:
    """Whether ``new`` can stand in for ``old`` everywhere.

    An output of a graph keeps its name, so ``new`` has to come from a node of the same graph and be no output itself.
    """
    if not old.is_graph_output():
        return True
    node = new.producer()
    return node is not None and new.graph is old.graph and not new.is_graph_output()


def replace(old: ir.Value, new: ir.Value) -> bool:
    """Let everything that reads ``old`` read ``new``; as an output, ``new`` takes over name, type and shape.

    Returns: whether that was possible.
    """
    if not can_replace(old, new):
        return False
    if old.is_graph_output():
        name, old.name = old.name, None
        new.name = name
        new.type = old.type or new.type
        new.shape = old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    else:
        old.replace_all_uses_with(new)
    return True


def replace_or_copy(old: ir.Value, new: ir.Value, before: ir.Node) -> None:
    """Let everything that reads ``old`` read ``new``, through an ``Identity`` where an output has to keep its name."""
    if replace(old, new):
        return
    copy = ir.Node("", "Identity", [new], num_outputs=1)
    copy.outputs[0].type, copy.outputs[0].shape = new.type, new.shape
    assert before.graph is not None
    before.graph.insert_before(before, copy)
    replace(old, copy.outputs[0])


def constant_before(node: ir.Node, tensor: ir.TensorProtocol, name: str | None, body: Body) -> ir.Value:
    """Make a new constant that ``node`` and what comes after it can read."""
    if isinstance(body.graph, ir.Graph):
        graph = body.graph
        value = ir.Value(name=unused_name(graph, name or "constant"))
        value.const_value = tensor
        value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
        graph.register_initializer(value)
        return value
    return _constant_node(node, tensor)


def make_constant(old: ir.Value, tensor: ir.TensorProtocol, body: Body) -> None:
    """Put ``tensor`` in the place of ``old``, an output of a node. The node stays."""
    node = old.producer()
    assert node is not None
    if old.is_graph_output() or not body.holds_initializers:
        replace(old, _constant_node(node, tensor))
        return
    name, old.name = old.name, None
    replace(old, constant_before(node, tensor, name, body))


def _constant_node(before: ir.Node, tensor: ir.TensorProtocol) -> ir.Value:
    node = ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)])
    value = node.outputs[0]
    value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
    assert before.graph is not None
    before.graph.insert_before(before, node)
    return value


def unused_name(graph: ir.Graph, wish: str) -> str:
    """Give ``wish``, or the first of wish_1, wish_2, … that no initializer of ``graph`` has."""
    name, count = wish, 0
    while name in graph.initializers:
        count += 1
        name = f"{wish}_{count}"
    return name
