"""Choosing which nodes become float16, and why the others do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import onnx_ir as ir

from . import _ops
from ._numbers import LARGEST, SMALLEST_NORMAL, loss
from ._ranges import Peak
from ._typing import FLOAT, Floats, declaration, floats

#: Node metadata under which a decision about numbers is kept, so that a second run decides the same.
KEPT = "polycast.fp16.kept"

#: A constant up to this many bytes is not worth a Cast of its own.
SMALL_BYTES = 4096

Skip = Callable[[ir.Node, str], None]


@dataclass
class Choice:
    """The nodes of a main graph that become float16, with what of each does; shrinks as reasons are found."""

    nodes: dict[ir.Node, Floats] = field(default_factory=dict)

    def drop(self, node: ir.Node) -> None:
        """Leave ``node`` in float32."""
        del self.nodes[node]

    def activations(self) -> list[ir.Value]:
        """Give each activation that would be float16, once."""
        touched = (v for f in self.nodes.values() for v in (*(v for _, v, _ in f.inputs), *f.outputs))
        return [v for v in dict.fromkeys(touched) if weight(v) is None]


def by_operator(model: ir.Model, keep: tuple[str, ...], skip: Skip) -> Choice:
    """Choose by what each node is: its operator, its types, and what the user wants kept."""
    choice = Choice()
    for node in model.graph:
        if node.op_type == "Constant" or _ops.reads_either(node) or not _touches_float(node):
            continue
        declared = declaration(node, model.graph.opset_imports)
        found = None if declared is None else floats(node, declared)
        reason = _why_not(node, found, keep)
        if reason:
            skip(node, reason)
        elif found is not None and (found.inputs or found.outputs):
            choice.nodes[node] = found
    return choice


def settle(graph: ir.Graph, choice: Choice, skip: Skip) -> None:
    """Leave in float32 what lies among float32: what angles and means are of, what reads it, what gains nothing."""
    _keep_angles(graph, choice, skip)
    _keep_summands(graph, choice, skip)
    _follow(choice, skip)
    _keep_idle(choice, skip)


def drop_by_weights(choice: Choice, skip: Skip) -> None:
    """Leave in float32 each node with a weight that float16 does not hold; the node remembers why."""
    known: dict[tuple[ir.Value, bool], str] = {}
    for node, found in list(choice.nodes.items()):
        for index, value, slot in found.inputs:
            tensor = weight(value)
            if tensor is None:
                continue
            clamps = (node.op_type == "Clip" and index > 0) or is_bias(slot.name)
            key = (value, clamps)
            if key not in known:
                known[key] = loss(tensor, clamps=clamps)
            if known[key]:
                _drop(choice, node, f"{value.name} {known[key]}", skip)
                break


def drop_by_ranges(choice: Choice, peaks: dict[ir.Value, Peak], headroom: float, skip: Skip) -> None:
    """Leave in float32 each node that reads or gives what float16 does not hold; the node remembers why."""
    for node, found in list(choice.nodes.items()):
        for value in (*(v for _, v, slot in found.inputs if not is_bias(slot.name)), *found.outputs):
            peak = peaks.get(value)
            reason = "" if peak is None else _out_of_range(value, peak, headroom)
            if reason:
                _drop(choice, node, reason, skip)
                break


def weight(value: ir.Value) -> ir.TensorProtocol | None:
    """Give the tensor of a constant: an initializer that is no input, or what a Constant gives."""
    return None if value.is_graph_input() else ir.convenience.get_const_tensor(value)


def is_heavy(tensor: ir.TensorProtocol) -> bool:
    """Whether a constant is worth a Cast of its own."""
    return tensor.nbytes > SMALL_BYTES


def is_bias(name: str) -> bool:
    """Whether the input called ``name`` is what an attention adds to its scores: a mask, clamped rather than kept."""
    return name in ("attn_mask", "attention_bias")


def _touches_float(node: ir.Node) -> bool:
    return any(v is not None and v.dtype == FLOAT for v in (*node.inputs, *node.outputs))


def _why_not(node: ir.Node, found: Floats | None, keep: tuple[str, ...]) -> str:
    for pattern in keep:
        if node.op_type == pattern or fnmatchcase(node.name or "", pattern):
            return f"kept in float32 by keep={pattern!r}"
    reason = _ops.why_unsafe(node) or node.metadata_props.get(KEPT, "")
    if reason:
        return reason
    if found is None:
        return f"no declaration of {node.domain or 'ai.onnx'}.{node.op_type} is known"
    if found.stuck:
        return f"{found.stuck} of {node.op_type} cannot be float16"
    return ""


def _sources(found: Floats) -> Iterator[ir.Node]:
    """Yield the nodes that compute the float32 inputs."""
    for _, value, _ in found.inputs:
        producer = value.producer()
        if producer is not None and weight(value) is None:
            yield producer


def _keep_angles(graph: ir.Graph, choice: Choice, skip: Skip) -> None:
    """Go up from each Sin and Cos to the nearest multiply-accumulate: float16 would turn large angles at random."""
    pending = [value for node in graph if _ops.is_angle(node) for value in node.inputs]
    while pending:
        value = pending.pop()
        node = value.producer() if value is not None else None
        if node is not None and node in choice.nodes and not _ops.is_worth_it(node):
            pending += node.inputs
            choice.drop(node)
            skip(node, "computes an angle")


def _keep_summands(graph: ir.Graph, choice: Choice, skip: Skip) -> None:
    """Let what a mean is taken of reach it unrounded. (onnxruntime's LayerNormFusion also breaks on a Cast there.)"""
    for mean in graph:
        node = mean.inputs[0].producer() if mean.op_type == "ReduceMean" and mean.inputs[0] is not None else None
        if node is not None and node in choice.nodes and not _ops.is_worth_it(node):
            choice.drop(node)
            skip(node, f"{mean.name or 'ReduceMean'} takes the mean of what it gives")


def _follow(choice: Choice, skip: Skip) -> None:
    """Let what only passes numbers on take the wider type of its inputs, as type promotion does."""
    for node, found in list(choice.nodes.items()):
        if _ops.is_worth_it(node):
            continue
        for source in _sources(found):
            if source not in choice.nodes:
                choice.drop(node)
                skip(node, f"follows {source.name or source.op_type}, which gives float32")
                break


def _keep_idle(choice: Choice, skip: Skip) -> None:
    """Drop what reads no float16, holds no weight of any size, and gives nothing that float16 reads."""
    idle = set[ir.Node]()
    for node, found in choice.nodes.items():
        heavy = any(tensor is not None and is_heavy(tensor) for tensor in (weight(v) for _, v, _ in found.inputs))
        if not heavy and not _ops.is_worth_it(node) and all(source in idle for source in _sources(found)):
            idle.add(node)
    for node in reversed(list(choice.nodes)):
        if node in idle and not any(user in choice.nodes for value in node.outputs for user in value.consumers()):
            choice.drop(node)
            skip(node, "nothing around it is float16")


def _out_of_range(value: ir.Value, peak: Peak, headroom: float) -> str:
    if peak.value > LARGEST / headroom:
        return f"|{value.name}| reaches {peak.value:.3g} on {peak.sample}, over {LARGEST:.0f} / {headroom:g}"
    if 0 < peak.value < SMALLEST_NORMAL:
        return f"|{value.name}| stays under {SMALLEST_NORMAL:.2g} ({peak.value:.3g} on {peak.sample}): subnormal"
    return ""


def _drop(choice: Choice, node: ir.Node, reason: str, skip: Skip) -> None:
    choice.drop(node)
    node.metadata_props[KEPT] = reason
    skip(node, reason)
