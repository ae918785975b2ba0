"""Memory: what observing holds, estimated before it runs, and how many passes over the samples a limit asks for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from polycast.errors import InputError
from polycast.model import graphs, weights

from .histogram import HALF
from .instrument import MOST_ELEMENTS, ROWS_PER_SAMPLE
from .taps import ROWS_KEPT, Tap, Want

Shape = tuple[int, ...]

#: Bytes of a session that holds nothing.
_SESSION = 8 << 20

#: How much more than what lives the runtime's arena takes: it grows by doubling.
_ARENA = 2


@dataclass(frozen=True)
class Estimate:
    """Bytes that observing holds at most.

    weights: those of the model, and the runtime's own copies. activations: those that live at once in one run.
    taps: what each tap adds, by name of its value: what a run gives, and what is kept of it.
    """

    weights: int
    activations: int
    taps: Mapping[str, int]

    @property
    def total(self) -> int:
        """All taps at once."""
        return self.weights + self.activations + sum(self.taps.values())

    def of(self, taps: Sequence[Tap]) -> int:
        """Only ``taps``."""
        return self.weights + self.activations + sum(self.taps[tap.value] for tap in taps)

    @property
    def least(self) -> int:
        """One tap at a time."""
        return self.weights + self.activations + max(self.taps.values(), default=0)


def estimate(graph: ir.Model, taps: Sequence[Tap], shapes: Mapping[str, Shape]) -> Estimate:
    """Estimate what observing ``taps`` holds, where the values of ``graph`` have ``shapes``."""
    copied = max((4 * math.prod(shapes[tap.value]) for tap in taps), default=0)
    multiplied = max((_multiplying(tap, shapes[tap.value]) for tap in taps), default=0)
    sample = sum(_bytes(value, shapes) for value in graph.graph.inputs)
    return Estimate(
        _weights(graph),
        # A tap may copy its tensor: as float32, or with channels last. A sample is read while the one before is there.
        _ARENA * (_live(graph.graph, shapes) + copied) + multiplied + 2 * sample,
        {tap.value: _held(tap, shapes[tap.value]) for tap in taps},
    )


def passes(taps: Sequence[Tap], needed: Estimate, limit: int | None) -> list[list[Tap]]:
    """Split ``taps`` into passes over the samples, so that each stays under ``limit`` bytes.

    Raises: InputError saying the estimate and the least that works, where one tap alone is over it.
    """
    if limit is None or needed.total <= limit:
        return [list(taps)]
    if needed.least > limit:
        raise InputError(
            f"looking at the calibration samples needs about {mebibytes(needed.least)} even in "
            f"{len(taps)} passes, and may hold {mebibytes(limit)}",
            f"Allow at least --max-memory {math.ceil(needed.least / 2**20)}MiB; "
            f"with {mebibytes(needed.total)} one pass is enough",
        )
    room = limit - needed.weights - needed.activations
    groups: list[list[Tap]] = [[]]
    held = 0
    for tap in taps:
        if groups[-1] and held + needed.taps[tap.value] > room:
            groups.append([])
            held = 0
        groups[-1].append(tap)
        held += needed.taps[tap.value]
    return groups


def mebibytes(size: int) -> str:
    """Spell ``size`` bytes for a message."""
    return f"{math.ceil(size / 2**20):,} MiB"


def _weights(model: ir.Model) -> int:
    """Give the bytes that a session holds of the weights while it starts: it lays out those of a Conv anew, twice."""
    sizes = {id(tensor): tensor.nbytes for tensor in weights(model)}
    laid_out = {
        id(value.const_value): 2 * value.const_value.nbytes
        for graph in graphs(model)
        for node in graph
        if node.op_type == "Conv"
        for value in node.inputs
        if value is not None and value.const_value is not None
    }
    return _SESSION + sum(sizes.values()) + sum(laid_out.values())


def _live(graph: ir.Graph, shapes: Mapping[str, Shape]) -> int:
    """Give the most bytes of activations that are needed at once when the nodes run in order."""
    uses = Counter(value for node in graph for value in _read(node))
    live = most = 0
    for node in graph:
        made = sum(_bytes(value, shapes) for value in node.outputs)
        inside = sum(_bytes(v, shapes) for body in _bodies(node) for inner in body for v in inner.outputs)
        inside += _scores(node, shapes)
        live += made
        most = max(most, live + inside)
        for value in _read(node):
            uses[value] -= 1
            if not uses[value] and value.producer() is not None:
                live -= _bytes(value, shapes)
        live -= sum(_bytes(value, shapes) for value in node.outputs if not value.uses())
    return most


def _scores(node: ir.Node, shapes: Mapping[str, Shape]) -> int:
    """Give the bytes of the scores that a fused attention holds inside: float32, [batch, heads, length, length]."""
    shape = shapes.get(node.inputs[0].name or "", ()) if node.inputs and node.inputs[0] is not None else ()
    if not node.op_type.endswith("Attention") or len(shape) < 3:
        return 0
    heads = max(node.attributes.get_int(name, 1) for name in ("num_heads", "q_num_heads"))
    return 4 * math.prod(shape[:-2]) * heads * shape[-2] ** 2


def _read(node: ir.Node) -> list[ir.Value]:
    """Give what ``node`` reads of its own graph, itself or inside its bodies, weights aside, each once."""
    inner = (value for body in _bodies(node) for each in body for value in each.inputs)
    values = dict.fromkeys(v for v in (*node.inputs, *inner) if v is not None and v.const_value is None)
    return [value for value in values if value.graph is node.graph]


def _bodies(node: ir.Node) -> list[ir.Graph]:
    return [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]


def _bytes(value: ir.Value, shapes: Mapping[str, Shape]) -> int:
    if value.const_value is not None or not value.name:
        return 0
    itemsize = value.dtype.itemsize if value.dtype is not None else 4
    return math.ceil(math.prod(shapes.get(value.name, (0,))) * itemsize)


def _multiplying(tap: Tap, shape: Shape) -> int:
    """Give the bytes of multiplying the rows that wait for a gram: they in one piece, and their product."""
    if Want.GRAM not in tap.want or not shape:
        return 0
    channels = shape[tap.axis]
    rows = math.prod(shape) // max(channels, 1)
    return 4 * channels * (rows + channels + channels) if rows < channels else 0


def _held(tap: Tap, shape: Shape) -> int:
    """Give the bytes of what a run gives for ``tap``, and of what is kept of it."""
    size = math.prod(shape)
    held = 0
    if Want.HISTOGRAM in tap.want:
        held += 4 * min(size, 2 * MOST_ELEMENTS) + 8 * 2 * HALF
    if not shape:
        return held
    channels = shape[tap.axis]
    rows = size // max(channels, 1)
    if Want.CHANNELS in tap.want:
        held += (4 * 4 + 4 * 8) * channels
    if Want.GRAM in tap.want:
        # What a run gives is the gram in float32, or rows that wait until there are as many as channels.
        given = rows + channels if rows < channels else channels
        held += 4 * given * channels + 8 * channels**2
    if Want.ROWS in tap.want:
        held += 4 * channels * (min(rows, 2 * ROWS_PER_SAMPLE) + ROWS_KEPT)
    return held
