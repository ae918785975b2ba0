"""Pad the channels of convolutions to what integer kernels take at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from polycast.model import graphs
from polycast.passbase import Numerics, Pass, PassContext

from ._int8_write import drop_unread
from ._lanes import Lane, lanes, window
from ._qdq import Names

#: Channels that a kernel reads and gives at a time.
_READ, _GIVEN = 4, 16

#: A convolution is given at most this many times the channels that it has.
_MOST = 4


@dataclass(frozen=True)
class PadChannels(Pass):
    """Give convolutions that look at a window channels of zeros, up to a multiple of 4 to read and of 16 to give.

    x: [batch, channels, …]; the new channels of a weight and a bias are zero, and so are those of what they give.
    They end in the next convolution that is no depthwise one, whose weight reads them with zeros; where something else
    reads the value, a Slice takes them off, and where the graph gives it, a Pad puts them on. A site is a convolution
    whose weight has grown. A convolution of one position needs no window, and is left.

    Source: onnxruntime's MLAS, convsym.cpp: the kernels that read codes in place take 4 input and 16 output channels
    at a time; for other numbers of channels the window of each output is copied first.
    """

    numerics = Numerics.ROUNDING
    needs = ("conv-blocks",)

    def rewrite(self, graph: ir.Model, ctx: PassContext) -> int:
        """Pad every lane of channels that gains from it."""
        names, grown, old = Names.of(graph), dict[ir.Node, None](), dict[ir.Value, None]()
        for part in (part for part in graphs(graph) if isinstance(part, ir.Graph)):
            for lane in list(lanes(part)):
                wanted = _wanted(lane)
                if wanted == lane.channels:
                    continue
                convolutions = dict.fromkeys((*lane.makers, *lane.depthwise, *lane.readers))
                reason = _missing(ctx) or _unworthy(lane)
                if reason:
                    for node in convolutions:
                        ctx.skip(node, f"{lane.channels} channels are not {wanted}: {reason}")
                else:
                    old |= dict.fromkeys(_widen(part, lane, wanted, names))
                    grown |= convolutions
        drop_unread(old)
        return len(grown)


def _missing(ctx: PassContext) -> str:
    return "" if "conv-blocks" in ctx.features else "the target has no kernels that take channels in blocks"


def _wanted(lane: Lane) -> int:
    """Give the number of channels that the windowed convolutions of ``lane`` would be fastest with."""
    gives = any(window(node) > 1 for node in (*lane.makers, *lane.depthwise))
    reads = any(window(node) > 1 for node in lane.readers)
    for needed, step in ((gives, _GIVEN), (reads, _READ)):
        wanted = -(-lane.channels // step) * step
        if needed and wanted <= _MOST * lane.channels:
            return wanted
    return lane.channels


def _unworthy(lane: Lane) -> str:
    """Say why ``lane`` costs more to pad than it gains; "" where it does not."""
    for value in lane.entries:
        maker = value.producer()
        if maker is not None:
            return f"{maker.op_type} gives them"
    widened = [value for value in lane.exits if value not in lane.entries]
    if len(widened) > 1 or (widened and lane.entries):
        return f"{len(widened)} values would have to be cut back"
    return ""


def _widen(graph: ir.Graph, lane: Lane, wanted: int, names: Names) -> list[ir.Value]:
    """Give every value of ``lane`` ``wanted`` channels; returns the constants that were exchanged."""
    extra, old = wanted - lane.channels, []
    for node in lane.makers + lane.depthwise:
        old += [_grow(graph, node, index, 0, extra, names) for index in range(1, len(node.inputs))]
    for node in lane.readers:
        old.append(_grow(graph, node, 1, 1, extra, names))
    for node in lane.depthwise:
        node.attributes["group"] = ir.AttrInt64("group", wanted)
    for value in lane.values:
        if value in lane.entries:
            _put_on(graph, value, lane, extra, names)
        else:
            assert value.shape is not None
            cut = ir.Shape(value.shape)
            value.shape = ir.Shape([wanted if axis == 1 else size for axis, size in enumerate(value.shape)])
            if value in lane.exits:
                _take_off(graph, value, cut, lane, names)
    return old


def _grow(graph: ir.Graph, node: ir.Node, index: int, axis: int, extra: int, names: Names) -> ir.Value:
    """Append zeros to operand ``index`` of ``node`` along ``axis``; returns what it was."""
    old = node.inputs[index]
    tensor = ir.convenience.get_const_tensor(old) if old is not None else None
    assert old is not None and tensor is not None
    array = tensor.numpy()
    padded = np.pad(array, [(0, extra if at == axis else 0) for at in range(array.ndim)])
    node.replace_input_with(index, names.constant(graph, f"{old.name}.padded", padded))
    return old


def _inside(lane: Lane, node: ir.Node, index: int) -> bool:
    """Whether operand ``index`` of ``node`` is read as wide as the lane is."""
    return index == 0 and (node in lane.readers or any(value in lane.values for value in node.outputs))


def _put_on(graph: ir.Graph, value: ir.Value, lane: Lane, extra: int, names: Names) -> None:
    """Let what reads ``value`` inside the lane read it with channels of zeros."""
    assert value.shape is not None
    rank = len(value.shape)
    pads = np.array([0] * (rank + 1) + [extra] + [0] * (rank - 2), np.int64)
    node = ir.node("Pad", [value, names.small(graph, "pads", pads)], name=names.unused(f"{value.name}.pad"))
    shape = [lane.channels + extra if axis == 1 else size for axis, size in enumerate(value.shape)]
    _declare(node, names.unused(f"{value.name}.padded"), ir.Shape(shape))
    for reader, index in value.uses():
        if reader is not node and _inside(lane, reader, index):
            reader.replace_input_with(index, node.outputs[0])
    graph.insert_before(graph[0], node)


def _take_off(graph: ir.Graph, value: ir.Value, shape: ir.Shape, lane: Lane, names: Names) -> None:
    """Let what reads ``value`` outside the lane read it without the new channels."""
    bounds = [names.small(graph, "cut", np.array([number], np.int64)) for number in (0, lane.channels, 1)]
    node = ir.node("Slice", [value, *bounds], name=names.unused(f"{value.name}.cut"))
    result = node.outputs[0]
    _declare(node, names.unused(f"{value.name}.cut"), shape)
    for reader, index in value.uses():
        if reader is not node and not _inside(lane, reader, index):
            reader.replace_input_with(index, result)
    if value.is_graph_output():
        for at, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[at] = result
        value.name, result.name = result.name, value.name
    maker = value.producer()
    assert maker is not None
    graph.insert_after(maker, node)


def _declare(node: ir.Node, name: str, shape: ir.Shape) -> None:
    result = node.outputs[0]
    result.name, result.type, result.shape = name, ir.TensorType(ir.DataType.FLOAT), shape
