"""Channels: who reads the channels of a value linearly, and what can divide them so that the outputs stay the same.

``groups(model)`` finds every value that linear operators read. ``group.absorb(scale)`` multiplies input channel c of
each of them by ``scale[c]`` and lets something upstream divide channel c by it: the weight of the layer before, the
scale of a normalisation, a constant factor, or, where ``explicit`` allows it, a new Mul.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from polycast.model import graphs, name_of
from polycast.passbase import PassContext

from ._layout import MOVES, dims_of, moved_from
from ._slices import LINEAR, Slices, constant, exchange, input_slices, new_constant
from ._upstream import Refusal, Taker, is_shared, takers


@dataclass(frozen=True)
class Group:
    """Linear operators that read the channels of one value.

    value, axis, channels: what they read, and where and how many its channels are.
    consumers: the slices of their weights by input channel. readers: the nodes that read ``value`` on their behalf.
    takers: the constants upstream that can divide the channels; empty where there is a ``reason``.
    closed: whether nothing but the consumers reads what the readers give, so that a new Mul could divide.
    ties: [channels] int; channels with the same number have to get the same scale.
    """

    value: ir.Value
    axis: int
    channels: int
    consumers: tuple[Slices, ...]
    readers: frozenset[ir.Node]
    takers: tuple[Taker, ...]
    reason: str
    closed: bool
    ties: np.ndarray

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The linear operators."""
        return tuple(slices.node for slices in self.consumers)

    @property
    def makers(self) -> tuple[Taker, ...]:
        """The weights upstream, of linear operators, that make the channels."""
        return tuple(t for t in self.takers if t.slices.position == 1 and t.slices.node.op_type in LINEAR)

    def tied(self, numbers: np.ndarray) -> np.ndarray:
        """Give each channel the largest of ``numbers`` ([channels]) among those that it is tied to."""
        largest = np.full(self.channels, -np.inf)
        np.maximum.at(largest, self.ties, numbers)
        tied: np.ndarray = largest[self.ties]
        return tied

    def absorb(self, scale: np.ndarray, *, explicit: bool = False) -> str:
        """Multiply input channel c of every consumer by ``scale[c]`` and divide channel c of the value by it.

        scale: [channels], positive, the same for tied channels unless a new Mul divides.
        explicit: whether a Mul may be put before the consumers where no constant upstream takes the division.
        Returns: "" where that was done, the reason where it was not and nothing changed. A group absorbs once; to go
        on, find the groups again.
        """
        if self.reason and not (explicit and self.closed):
            return self.reason
        assert scale.shape == (self.channels,) and (scale > 0).all()
        edits = [(slices, slices.times(scale)) for slices in self.consumers]
        edits += [(taker.slices, taker.slices.times(taker.factor(scale))) for taker in self.takers]
        for slices, array in edits:
            if not _as_finite(constant(slices.value), array):
                return f"a scaled weight of {name_of(slices.node)} does not fit {array.dtype}"
        for slices, array in edits:
            exchange(slices.node, slices.position, array)
        for clip in {taker.slices.node for taker in self.takers if taker.slices.node.op_type == "Clip"}:
            _clip_by_channel(clip)
        if self.reason:
            self._divide(scale)
        return ""

    def _divide(self, scale: np.ndarray) -> None:
        """Put a Mul by ``1 / scale`` between the value and the consumers."""
        dims = dims_of(self.value)
        rank = len(dims) if dims is not None else self.axis + 1
        factor = (1 / scale).reshape(-1, *(1,) * (rank - 1 - self.axis))
        dtype = self.consumers[0].viewed().dtype
        producer, graph = self.value.producer(), self.value.graph
        assert isinstance(graph, ir.Graph)
        divisor = new_constant(graph, factor.astype(dtype), f"{self.value.name}/divisor")
        node = ir.node("Mul", [self.value, divisor], name=f"{self.value.name}/divide")
        node.outputs[0].name = f"{self.value.name}/divided"
        node.outputs[0].type, node.outputs[0].shape = self.value.type, self.value.shape
        if producer is not None:
            graph.insert_after(producer, node)
        else:
            graph.insert_before(graph[0], node)
        for user, position in tuple(self.value.uses()):
            if user in self.readers:
                user.replace_input_with(position, node.outputs[0])


def groups(model: ir.Model, *, clips: bool = False) -> list[Group]:
    """Find every value of ``model`` that linear operators with constant weights of their own read, in order.

    clips: whether a Clip may become a Max and a Min with bounds per channel.
    """
    _infer_shapes(model)
    found: dict[tuple[ir.Value, int], list[_Path]] = {}
    for graph in graphs(model):
        for node in graph if isinstance(graph, ir.Graph) else ():
            slices = input_slices(node)
            path = _climb(slices) if slices is not None and not is_shared(slices.value) else None
            if path is not None:
                found.setdefault((path.value, path.axis), []).append(path)
    return [_group(paths, clips) for paths in found.values()]


def refuses_late(model: ir.Model, ctx: PassContext) -> bool:
    """Whether channels may no longer be scaled, which is then a skip: repairs compare them with what they were."""
    if ctx.original is None:
        return False
    for group in groups(model)[:1]:
        ctx.skip(group.nodes[0], "a lossy pass came before, and repairs compare its channels with the original's")
    return True


@dataclass(frozen=True)
class _Path:
    """The way from a linear node up to the value whose channels it reads, through nodes that only move elements."""

    consumer: Slices
    value: ir.Value
    axis: int
    nodes: tuple[ir.Node, ...]


def _climb(consumer: Slices) -> _Path | None:
    node = consumer.node
    value, dims = node.inputs[0], dims_of(node.inputs[0])
    if value is None or value.const_value is not None or (node.op_type == "MatMul" and dims is None):
        return None
    path = _Path(consumer, value, len(dims) - 1 if node.op_type == "MatMul" and dims is not None else 1, (node,))
    while (above := path.value.producer()) is not None and _feeds_linear_only(path.value):
        moved = moved_from(above, path.axis)
        if moved is None or moved[1] != 1 or above.inputs[0] is None:
            break
        path = _Path(consumer, above.inputs[0], moved[0], (*path.nodes, above))
    return path


def _feeds_linear_only(value: ir.Value) -> bool:
    return all(user.op_type in (*LINEAR, *MOVES, *_SHAPE_ONLY) for user, _ in value.uses())


_SHAPE_ONLY = ("Shape", "Size")


def _group(paths: Sequence[_Path], clips: bool) -> Group:
    consumers, value, axis = tuple(path.consumer for path in paths), paths[0].value, paths[0].axis
    inside = {node for path in paths for node in path.nodes}
    readers = frozenset(path.nodes[-1] for path in paths)
    channels = int(np.prod(consumers[0].along))
    stray = next(_strays(inside - {slices.node for slices in consumers}, inside), "")
    found: tuple[Taker, ...] = ()
    reason = stray
    try:
        found = () if stray else takers(value, axis, channels, readers, clips=clips)
    except Refusal as refusal:
        reason = str(refusal)
    return Group(value, axis, channels, consumers, readers, found, reason, not stray, _ties(found, channels))


def _strays(moves: Iterable[ir.Node], inside: Collection[ir.Node]) -> Iterator[str]:
    """Yield a reason for each reader of what ``moves`` give that is not ``inside``."""
    for value in (node.outputs[0] for node in moves):
        if value.is_graph_output():
            yield f"{value.name} is an output of the model"
        for user, _ in value.uses():
            if user not in inside and user.op_type not in _SHAPE_ONLY:
                yield f"{name_of(user)} ({user.op_type}) reads {value.name} too"


def _clip_by_channel(clip: ir.Node) -> None:
    """Put a Max (a Relu where that is enough) and a Min, which take bounds per channel, in the place of a Clip."""
    graph, result = clip.graph, clip.outputs[0]
    assert isinstance(graph, ir.Graph)
    value = clip.inputs[0]
    made: list[ir.Node] = []
    for op, bound in zip(("Max", "Min"), clip.inputs[1:], strict=False):
        if bound is not None:
            numbers = constant(bound)
            rectifies = op == "Max" and numbers is not None and not numbers.any()
            made.append(ir.node("Relu", [value]) if rectifies else ir.node(op, [value, bound]))
            value = made[-1].outputs[0]
            value.name, value.type, value.shape = f"{result.name}/{op.lower()}", result.type, result.shape
    last = made[-1]
    last.name, last.outputs[0].name = clip.name, result.name
    graph.insert_before(clip, made)
    result.name = None
    result.replace_all_uses_with(last.outputs[0])
    graph.remove(clip, safe=True)


def _ties(found: Sequence[Taker], channels: int) -> np.ndarray:
    """Number the channels so that those which one slice of a taker makes have the same number."""
    ties = np.arange(channels)
    while True:
        before = ties.copy()
        for taker in found:
            held = taker.index >= 0
            lowest = np.full(int(np.prod(taker.slices.along)), channels)
            np.minimum.at(lowest, taker.index[held], ties[held])
            ties[held] = lowest[taker.index[held]]
        if (ties == before).all():
            return ties


def _as_finite(before: np.ndarray | None, after: np.ndarray) -> bool:
    return before is not None and bool(np.isfinite(after).all() or not np.isfinite(before).all())


def _infer_shapes(model: ir.Model) -> None:
    """Fill in the shapes that values lack, as far as ONNX's own inference knows; the signature stays."""
    if all(v.shape is not None and v.dtype is not None for node in model.graph for v in node.outputs):
        return
    ports = [(v, v.type, v.shape) for v in (*model.graph.inputs, *model.graph.outputs)]
    ShapeInferencePass(check_type=False, strict_mode=False)(model)
    for value, kind, shape in ports:
        value.type, value.shape = kind, shape
