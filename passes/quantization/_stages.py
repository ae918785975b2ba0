"""Stages: which layers can be rounded together, what each reads, and which sum of the original it is to come near."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import onnx_ir as ir

from ._matrix import is_constant
from ._plan_weights import Layer

#: Neighbouring stages are joined until there are no more than these: the samples run twice for each.
STAGES = 64

#: What keeps the order of the elements of a tensor.
_KEEPS = ("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")

_SKIP_NORMS = ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")


@dataclass(frozen=True)
class Reading:
    """What one node of a layer reads: ``x`` of ``k`` channels.

    beside: whether anything before it may have been rounded. wanted: values of ``n`` channels whose sum is to come near
    that of the original; where there are none, it is what the node gives. gain: what the node multiplies ``x wᵀ`` by.
    """

    x: str
    k: int
    beside: bool
    wanted: tuple[str, ...] = ()
    n: int = 0
    gain: float = 1.0


@dataclass(frozen=True)
class Planned:
    """A layer and what its nodes read."""

    layer: Layer
    readings: tuple[Reading, ...]


def stages(graph: ir.Model, layers: Sequence[Layer]) -> list[list[Planned]]:
    """Cut ``layers``, which are in the order of the graph, into stages."""
    depths = _depths(graph, {node for layer in layers for node in layer.nodes})

    def deepest(layer: Layer) -> int:
        return max(depths[node] for node in layer.nodes)

    found = [
        [Planned(layer, tuple(_reading(node, layer, depth > 0) for node in layer.nodes)) for layer in group]
        for depth, group in groupby(layers, deepest)
    ]
    joined = -(-len(found) // STAGES)
    return [sum(found[start : start + joined], []) for start in range(0, len(found), joined or 1)]


def _reading(node: ir.Node, layer: Layer, beside: bool) -> Reading:
    x, matrix = node.inputs[0], layer.matrix
    assert x is not None and x.name is not None
    wanted = tuple(value.name for value in _sum_behind(node.outputs[0]) if value.name) if beside else ()
    if not wanted:
        return Reading(x.name, matrix.k, beside)
    alpha = node.attributes["alpha"].as_float() if "alpha" in node.attributes else 1.0
    return Reading(x.name, matrix.k, beside, wanted, matrix.n, alpha / matrix.factor)


def _sum_behind(value: ir.Value) -> tuple[ir.Value, ...]:
    """Give the sum that ``value`` goes into and nowhere else, or its terms; a bias on the way is no term."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return ()
    node, position = uses[0]
    result = node.outputs[0]
    if node.domain == "" and node.op_type in _KEEPS and position == 0:
        return _sum_behind(result)
    if node.domain == "" and node.op_type == "Add":
        other = node.inputs[1 - position]
        return _sum_behind(result) if other is None or is_constant(other) else (result,)
    if node.op_type in _SKIP_NORMS and position < 2:
        return tuple(term for term in node.inputs[:2] if term is not None)
    return ()


def _depths(graph: ir.Model, rounded: set[ir.Node]) -> dict[ir.Node, int]:
    """Count the rounded nodes before each of them, on the longest way; 0 for a node inside another's body."""
    depth: dict[ir.Value, int] = {}
    found = dict.fromkeys(rounded, 0)
    for node in graph.graph:
        before = max((depth.get(value, 0) for value in _read(node)), default=0)
        if node in rounded:
            found[node] = before
        after = before + (node in rounded)
        depth |= dict.fromkeys(node.outputs, after)
    return found


def _read(node: ir.Node) -> Iterator[ir.Value]:
    """Yield what ``node`` reads, and what its bodies read."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        for body in _bodies(attribute):
            for inner in body:
                yield from _read(inner)


def _bodies(attribute: ir.Attr) -> list[ir.Graph]:
    if attribute.type == ir.AttributeType.GRAPHS:
        return list(attribute.as_graphs())
    return [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else []
