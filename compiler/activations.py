"""Activations: the memory that the values between the layers take in one run, planned and stated."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from .model import Model, graphs, name_of, weights
from .reference import start_session

if TYPE_CHECKING:
    import numpy as np

#: Every value begins at a multiple of this many bytes, as runtimes place them.
ALIGNED = 64

#: So many of the values that are alive at the peak are named.
NAMED = 5

#: A model with more bytes of weights is not run only to learn the shapes of its values.
_LARGE = 1 << 30

Feeds = Mapping[str, "np.ndarray"]


@dataclass(frozen=True)
class Span:
    """A value: from the node that writes it to the last one that reads it, both included, by their numbers."""

    name: str
    size: int
    first: int
    last: int

    def meets(self, other: Span) -> bool:
        """Whether both are needed during one node."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Activations:
    """What one run takes beside the weights, with inputs and outputs, when nodes run in the order of the file.

    A node writes beside what it reads, but for Relu and Clip; the place of what nobody reads any more is taken again.
    Inputs are the caller's, and stay as they are.

    arena: bytes of one block in which every value has its place. least: bytes that are alive at once at the worst node,
    with which no placing can do. node, op: that node. alive: the largest values there, with their bytes.
    shapes: of the inputs. reason: why nothing is planned.
    """

    arena: int = 0
    least: int = 0
    node: str = ""
    op: str = ""
    alive: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Spell for a manifest."""
        if self.reason:
            return {"not_planned": self.reason}
        return {
            "bytes": self.arena,
            "least": self.least,
            "at": self.node,
            "op": self.op,
            "alive": dict(self.alive),
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "evidence": "predicted",
        }


def plan(model: Model, feeds: Feeds | None) -> Activations:
    """Plan what one run of ``model`` on ``feeds`` takes, by what is in the graph alone: a runtime may fuse more."""
    if feeds is None:
        return Activations(reason="there are no inputs to plan for")
    shapes = {name: array.shape for name, array in feeds.items()}
    draft = model.draft()
    _number(draft)
    sizes = _inferred(draft, shapes)
    lacking = _lacking(draft, sizes)
    if lacking and sum(tensor.nbytes for tensor in weights(model.graph)) < _LARGE:
        sizes |= _observed(model, draft, feeds)
        lacking = _lacking(draft, sizes)
    if lacking:
        return Activations(reason=f"the size of {len(lacking)} values is not known before a run, {lacking[0]} among it")
    spans, nodes = _spans(draft.graph, sizes), list(model.graph.graph)
    alive = [[span for span in spans if span.first <= number <= span.last] for number in range(-1, len(nodes) + 1)]
    worst = max(range(len(alive)), key=lambda number: sum(span.size for span in alive[number]))
    node = nodes[min(max(worst - 1, 0), len(nodes) - 1)] if nodes else None
    largest = sorted(alive[worst], key=lambda span: (-span.size, span.name))
    return Activations(
        arena(spans),
        sum(span.size for span in alive[worst]),
        name_of(node) if node else "",
        node.op_type if node else "",
        {span.name: span.size for span in largest[:NAMED]},
        shapes,
    )


def places(spans: Sequence[Span]) -> list[tuple[int, Span]]:
    """Give every value its offset in one block, in the tightest gap among those it meets.

    The largest come first, or the earliest, whichever needs the smaller block.
    Source: Pisarchyk and Lee 2020, arXiv:2001.03288, section 5 (offsets, greedy by size, best fit).
    """
    by_size = _placed(sorted(spans, key=lambda span: (-span.size, span.first, span.name)))
    by_time = _placed(sorted(spans, key=lambda span: (span.first, -span.size, span.name)))
    return min(by_size, by_time, key=_end)


def _placed(spans: Sequence[Span]) -> list[tuple[int, Span]]:
    placed: list[tuple[int, Span]] = []
    for span in spans:
        near = sorted((offset, offset + each.size) for offset, each in placed if each.meets(span))
        placed.append((_gap(near, span.size), span))
    return placed


def _end(placed: Sequence[tuple[int, Span]]) -> int:
    return max((offset + span.size for offset, span in placed), default=0)


def arena(spans: Sequence[Span]) -> int:
    """Give the bytes of the block that ``places`` needs."""
    return _end(places(spans))


def _gap(taken: Sequence[tuple[int, int]], size: int) -> int:
    """Give the offset of the smallest gap between ``taken`` that is wide enough, else the end of all."""
    best, room, end = None, 0, 0
    for start, stop in taken:
        offset = _aligned(end)
        if start - offset >= size and (best is None or start - offset < room):
            best, room = offset, start - offset
        end = max(end, stop)
    return _aligned(end) if best is None else best


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNED) * ALIGNED


def _spans(graph: ir.Graph, sizes: Mapping[str, int]) -> list[Span]:
    """Give the span of every value of ``graph``. What a graph inside a node takes is one value, alive at that node."""
    nodes, shared = list(graph), _shared(graph)
    first = {value.name: -1 for value in graph.inputs if value.name and value.const_value is None}
    last = dict.fromkeys(first, len(nodes))

    def read(value: ir.Value, number: int) -> None:
        name = _name(value)
        while name in shared:
            name = shared[name]
        if name in last:
            last[name] = max(last[name], number)

    inside: list[Span] = []
    for number, node in enumerate(nodes):
        for value in _read(node):
            read(value, number)
        for value in node.outputs:
            if value.name and value.name not in shared:
                first[value.name] = last[value.name] = number
        own = max((arena(_spans(inner, sizes)) for inner in _inner(node)), default=0)
        if own:
            inside.append(Span(f"inside {node.op_type}", own, number, number))
    for value in graph.outputs:
        read(value, len(nodes))
    return [Span(name, sizes[name], first[name], last[name]) for name in first if sizes[name]] + inside


#: What gives the same bytes under another shape.
_VIEWS = {"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"}

#: What every runtime computes where its operand lies, as the last step of the node before.
_IN_PLACE = {"Clip", "Relu"}


def _shared(graph: ir.Graph) -> dict[str, str | None]:
    """Give the values that have no bytes of their own, each with the value whose bytes they are, or None.

    Those are other views of a value; what is computed from constants alone, which a runtime does once; and floats
    between integers: a layer that reads integers, and whose result is rounded to integers, computes with them.
    """
    nodes = list(graph)
    found: dict[str, str | None] = {}
    for node in reversed(nodes):
        outputs = [value for value in node.outputs if value.name]
        if node.op_type == "DequantizeLinear":
            readers = [reader for reader, _ in outputs[0].uses()]
            if readers and all(v.name in found for reader in readers for v in reader.outputs if v.name):
                found[str(outputs[0].name)] = _name(node.inputs[0])
        elif all(_only_rounded(value, found) for value in outputs) and (
            node.op_type in _IN_PLACE or any(_is_dequantized(value) for value in node.inputs)
        ):
            found |= {str(value.name): None for value in outputs}
    constant = set(graph.initializers)
    for node in nodes:
        names = {name for value in node.inputs if (name := _name(value))}
        results = [name for value in node.outputs if (name := _name(value))]
        if names <= constant and (names or node.op_type == "Constant"):
            constant |= set(results)
            found |= dict.fromkeys(results)
        elif results and results[0] not in found and _writes_nothing(node):
            found[results[0]] = _name(node.inputs[0])
    return found


def _writes_nothing(node: ir.Node) -> bool:
    source = node.inputs[0] if node.inputs else None
    if source is None or node.op_type in _VIEWS:
        return source is not None
    return node.op_type in _IN_PLACE and source.producer() is not None and len(source.uses()) == 1


def _name(value: ir.Value | None) -> str | None:
    return (value.name or None) if value is not None else None


def _only_rounded(value: ir.Value, found: Mapping[str, object]) -> bool:
    readers = [reader for reader, _ in value.uses()]
    return (
        not value.is_graph_output()
        and bool(readers)
        and all(
            reader.op_type == "QuantizeLinear" or (reader.op_type in _IN_PLACE and reader.outputs[0].name in found)
            for reader in readers
        )
    )


def _is_dequantized(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == "DequantizeLinear"


def _inner(node: ir.Node) -> list[ir.Graph]:
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            found += attribute.as_graphs()
    return found


def _read(node: ir.Node) -> Iterator[ir.Value]:
    """Yield what ``node`` reads, and what the graphs inside it read from outside."""
    yield from (value for value in node.inputs if value is not None)
    for inner in _inner(node):
        yield from inner.outputs
        for each in inner:
            yield from _read(each)


def _number(draft: ir.Model) -> None:
    """Give every node a name of its own, by which a profile tells of it."""
    for number, node in enumerate(node for graph in graphs(draft) for node in graph):
        node.name = f"node{number}"


def _lacking(draft: ir.Model, sizes: Mapping[str, int]) -> list[str]:
    """Name the values that have no size yet."""
    wanted = [value for graph in graphs(draft) for value in graph.inputs if value.const_value is None]
    wanted += [v for graph in graphs(draft) for node in graph for v in node.outputs if node.op_type != "Constant"]
    return [value.name for value in wanted if value.name and value.name not in sizes]


def _inferred(draft: ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Give the bytes of every value whose shape follows from ``shapes`` of the inputs."""
    for value in draft.graph.inputs:
        if value.name is not None and value.name in shapes:
            value.shape = ir.Shape(shapes[value.name])
    for value in (v for graph in graphs(draft) for node in graph for v in node.outputs):
        if value.shape is not None and not value.shape.is_static() and not value.is_graph_output():
            value.shape = None  # what was inferred for symbolic inputs would hide what the concrete ones give
    ShapeInferencePass()(draft)
    found = {}
    for graph in graphs(draft):
        for value in (*graph.inputs, *(v for node in graph for v in node.outputs)):
            if value.name and value.dtype is not None and value.shape is not None and value.shape.is_static():
                found[value.name] = ceil(prod(value.shape.numpy()) * value.dtype.bitwidth / 8)
    return found


#: Bits of an element, by the name of its type in a profile of onnxruntime.
_BITS = {
    "float": 32, "double": 64, "float16": 16, "bfloat16": 16, "bool": 8, "int8": 8, "uint8": 8, "int16": 16,
    "uint16": 16, "int32": 32, "uint32": 32, "int64": 64, "uint64": 64, "int4": 4, "uint4": 4,
}  # fmt: skip


def _observed(model: Model, draft: ir.Model, feeds: Feeds) -> dict[str, int]:
    """Give the bytes of every value that onnxruntime has seen in one run of ``draft``; none where it refuses it."""
    with tempfile.TemporaryDirectory(prefix="polycast-") as folder:
        replace(model, graph=draft).write(Path(folder) / "model.onnx")

        def profiled(options: Any) -> None:
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")

        try:
            session = start_session(Path(folder) / "model.onnx", optimized=False, adjust=profiled)
            session.run(None, dict(feeds))
        except Exception:  # onnxruntime raises what its checks raise
            return {}
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    shapes = {
        str(event["name"]).removesuffix("_kernel_time"): event["args"].get("output_type_shape", [])
        for event in events
        if event.get("cat") == "Node" and str(event["name"]).endswith("_kernel_time")
    }
    found: dict[str, int] = {}
    main = set(draft.graph)
    for node in (node for graph in graphs(draft) for node in graph):
        outputs = [value.name for value in node.outputs if value.name]
        if node.name not in shapes and node not in main:
            found |= dict.fromkeys(outputs, 0)  # a branch that was not taken
        for name, typed in zip(outputs, shapes.get(str(node.name), []), strict=False):
            for kind, dims in typed.items():
                if name and kind in _BITS:
                    found[name] = ceil(prod(dims) * _BITS[kind] / 8)
    return found
