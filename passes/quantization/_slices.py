"""Slices: which part of a constant belongs to which channel, and what multiplying the channels makes of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir


@dataclass(frozen=True)
class Slices:
    """The slices of a constant input of ``node`` that belong to one channel each.

    position: which input. view: the shape to look at the constant in; it may be larger than the constant, which is
    then repeated. along: the shape in which one number per channel broadcasts against the view.
    """

    node: ir.Node
    position: int
    view: tuple[int, ...]
    along: tuple[int, ...]

    @property
    def value(self) -> ir.Value:
        """The constant."""
        value = self.node.inputs[self.position]
        assert value is not None
        return value

    def viewed(self) -> np.ndarray:
        """Give the constant in the shape ``view``."""
        array = constant(self.value)
        assert array is not None
        return array.reshape(self.view) if array.size == np.prod(self.view) else np.broadcast_to(array, self.view)

    def largest(self) -> np.ndarray:
        """Give the largest magnitude in the slice of each channel, infinity where one is NaN: [channels] float64."""
        axes = tuple(axis for axis, size in enumerate(self._padded()) if size == 1)
        sizes = np.nan_to_num(np.abs(self.viewed().astype(np.float64)), nan=np.inf, posinf=np.inf)
        largest: np.ndarray = sizes.max(axis=axes, initial=0.0)
        return largest.reshape(-1)

    def times(self, factor: np.ndarray) -> np.ndarray:
        """Give the constant with the slice of each channel multiplied by its ``factor``, rounded once to its dtype."""
        old = constant(self.value)
        assert old is not None
        with np.errstate(over="ignore"):
            new = (self.viewed() * factor.astype(np.float64).reshape(self.along)).astype(old.dtype)
        return new.reshape(old.shape) if new.size == old.size else new

    def _padded(self) -> tuple[int, ...]:
        return (1,) * (len(self.view) - len(self.along)) + self.along


def input_slices(node: ir.Node) -> Slices | None:
    """Give the slices of the weight of a linear ``node`` by input channel; None where it has no constant weight.

    Conv: [M, C / group, ...]; ConvTranspose: [C, M / group, ...]; Gemm: [K, N], or [N, K] (transB); MatMul: [.., K, N].
    """
    shape = _weight_shape(node)
    if shape is None:
        return None
    match node.op_type:
        case "Conv":
            groups, tail = integer(node, "group", 1), (1,) * (len(shape) - 2)
            return Slices(node, 1, (groups, shape[0] // groups, *shape[1:]), (groups, 1, shape[1], *tail))
        case "ConvTranspose":
            return Slices(node, 1, shape, (shape[0], *(1,) * (len(shape) - 1)))
        case "Gemm":
            if integer(node, "transA", 0):
                return None
            return Slices(node, 1, shape, (1, shape[1]) if integer(node, "transB", 0) else (shape[0], 1))
        case _:
            return Slices(node, 1, shape, (shape[-2], 1))


def output_slices(node: ir.Node) -> Slices | None:
    """Give the slices of the weight of a linear ``node`` by output channel; None where it has no constant weight."""
    shape = _weight_shape(node)
    if shape is None:
        return None
    tail = (1,) * (len(shape) - 2)
    match node.op_type:
        case "Conv":
            return Slices(node, 1, shape, (shape[0], 1, *tail))
        case "ConvTranspose":
            groups = integer(node, "group", 1)
            return Slices(node, 1, (groups, shape[0] // groups, *shape[1:]), (groups, 1, shape[1], *tail))
        case "Gemm":
            return Slices(node, 1, shape, (shape[0], 1) if integer(node, "transB", 0) else (shape[1],))
        case _:
            return Slices(node, 1, shape, (shape[-1],))


def operand_slices(node: ir.Node, position: int, rank: int, axis: int, channels: int) -> Slices | None:
    """Give the slices of a constant that broadcasts against ``rank`` axes, by the channels of ``axis``."""
    array = constant(node.inputs[position]) if position < len(node.inputs) else None
    if (
        array is None
        or array.ndim > rank
        or (array.ndim >= rank - axis and array.shape[axis - rank] not in (1, channels))
    ):
        return None
    along = (channels, *(1,) * (rank - 1 - axis))
    return Slices(node, position, np.broadcast_shapes(array.shape, along), along)


LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def _weight_shape(node: ir.Node) -> tuple[int, ...] | None:
    if node.domain != "" or node.op_type not in LINEAR:
        return None
    tensor = constant_tensor(node.inputs[1])
    if tensor is None or tensor.dtype not in _FLOATS or len(tensor.shape) < 2 or tensor.size == 0:
        return None
    return tuple(tensor.shape.numpy())


_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Give the tensor of an initializer that no caller overrides, or of a Constant node; else None."""
    if value is None or value.is_graph_input():
        return None
    return ir.convenience.get_const_tensor(value)


def constant(value: ir.Value | None) -> np.ndarray | None:
    """Read what ``constant_tensor`` gives."""
    tensor = constant_tensor(value)
    return tensor.numpy() if tensor is not None else None


def integer(node: ir.Node, name: str, default: int) -> int:
    """Read an attribute."""
    return node.attributes[name].as_int() if name in node.attributes else default


def exchange(node: ir.Node, position: int, array: np.ndarray, name: str = "constant") -> None:
    """Give ``node`` the constant ``array`` as input ``position``; other readers of the old one keep theirs.

    name: of the new constant where it cannot take over the old one's.
    """
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    node.resize_inputs(max(len(node.inputs), position + 1))
    old = node.inputs[position]
    node.replace_input_with(position, None)
    if old is not None and old.name:
        name = old.name
        _let_go(old)
    node.replace_input_with(position, new_constant(graph, array, name))


def _let_go(value: ir.Value) -> None:
    """Remove a constant that nothing reads any more."""
    maker, graph = value.producer(), value.graph
    if value.uses() or value.is_graph_output() or value.is_graph_input():
        return
    if maker is not None and maker.op_type == "Constant" and graph is not None:
        graph.remove(maker, safe=True)
    elif isinstance(graph, ir.Graph) and value.is_initializer() and value.name is not None:
        graph.initializers.pop(value.name)


def new_constant(graph: ir.Graph, array: np.ndarray, name: str) -> ir.Value:
    """Make an initializer of ``graph`` under ``name``, or under the first of name_1, name_2, … that is free."""
    wish, count = name, 0
    while name in graph.initializers:
        count += 1
        name = f"{wish}_{count}"
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
    graph.register_initializer(value)
    return value
