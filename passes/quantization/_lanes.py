"""Lanes: values that have to have the same number of channels, as what lies between them keeps channels apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

#: What keeps the channels of its only data input apart, and gives as many.
_APART = {
    "AveragePool", "Clip", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "HardSwish", "LeakyRelu", "MaxPool",
    "Relu", "Sigmoid",
}  # fmt: skip


@dataclass
class Lane:
    """Values [batch, channels, …] of one number of channels, and the nodes that keep these apart.

    makers: dense convolutions that give one of the values. readers: dense convolutions that read one. depthwise:
    convolutions, and others: nodes, that lead from one to another.
    entries: values that something else makes. exits: values that something else reads, or that leave the graph.
    """

    channels: int
    values: list[ir.Value] = field(default_factory=list)
    makers: list[ir.Node] = field(default_factory=list)
    readers: list[ir.Node] = field(default_factory=list)
    depthwise: list[ir.Node] = field(default_factory=list)
    entries: list[ir.Value] = field(default_factory=list)
    exits: list[ir.Value] = field(default_factory=list)


def lanes(graph: ir.Graph) -> Iterator[Lane]:
    """Yield every lane of ``graph`` that a convolution takes part in, in the order of the graph."""
    done: set[ir.Value] = set()
    for node in graph:
        for value in (node.inputs[0], node.outputs[0]) if is_dense(node) or is_depthwise(node) else ():
            if value is not None and value not in done and (channels := _channels(value)):
                lane = _grow(graph, value, channels)
                done.update(lane.values)
                yield lane


def is_dense(node: ir.Node) -> bool:
    """Whether ``node`` is a convolution in one group, with a weight that can be exchanged."""
    return node.op_type == "Conv" and node.domain == "" and _groups(node) == 1 and _weight_shape(node) is not None


def is_depthwise(node: ir.Node) -> bool:
    """Whether ``node`` is a convolution that gives each channel from the one of the same number."""
    shape = _weight_shape(node) if node.op_type == "Conv" and node.domain == "" else None
    return shape is not None and shape[0] == _groups(node) > 1 and shape[1] == 1


def window(node: ir.Node) -> int:
    """Give how many positions a convolution looks at for one output."""
    shape = _weight_shape(node)
    assert shape is not None
    size = 1
    for length in shape[2:]:
        size *= length
    return size


def _grow(graph: ir.Graph, start: ir.Value, channels: int) -> Lane:
    lane, pending = Lane(channels), [start]
    inside: set[ir.Value] = {start}

    def join(value: ir.Value | None) -> None:
        if value is not None and value not in inside:
            inside.add(value)
            pending.append(value)

    while pending:
        value = pending.pop()
        lane.values.append(value)
        maker = value.producer()
        if maker is not None and is_dense(maker):
            lane.makers.append(maker)
        elif maker is not None and _keeps_apart(maker):
            if is_depthwise(maker):
                lane.depthwise.append(maker)
            join(maker.inputs[0])
        else:
            lane.entries.append(value)
        leaves = value.is_graph_output()
        for reader, index in value.uses():
            if index == 0 and reader.graph is graph and is_dense(reader):
                lane.readers.append(reader)
            elif index == 0 and reader.graph is graph and _keeps_apart(reader):
                join(reader.outputs[0])
            else:
                leaves = True
        if leaves:
            lane.exits.append(value)
    return lane


def _keeps_apart(node: ir.Node) -> bool:
    if len(node.outputs) != 1 or node.domain != "":
        return False
    return is_depthwise(node) or node.op_type in _APART


def _channels(value: ir.Value) -> int:
    """Give the number of channels of ``value``, 0 where it is not known."""
    size = value.shape[1] if value.shape is not None and len(value.shape) > 2 else None
    return size if isinstance(size, int) and value.dtype in (ir.DataType.FLOAT, None) else 0


def _weight_shape(node: ir.Node) -> tuple[int, ...] | None:
    """Give the shape of the weight; None where it, or the bias, is not a constant of this graph."""
    for value in node.inputs[1:]:
        if value is None or value.is_graph_input() or ir.convenience.get_const_tensor(value) is None:
            return None
    tensor = ir.convenience.get_const_tensor(node.inputs[1]) if node.inputs[1] is not None else None
    return None if tensor is None or tensor.dtype != ir.DataType.FLOAT else tuple(tensor.shape.numpy())


def _groups(node: ir.Node) -> int:
    return node.attributes["group"].as_int() if "group" in node.attributes else 1
