"""QuantizeLinear and DequantizeLinear: putting them in, finding what is stored behind them, exchanging it.

A node whose operand comes from a DequantizeLinear of constants has a stored operand: ``stored`` gives it with its
scales, and ``Stored.exchange`` puts other integers in its place. The float node and its outputs keep their names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from polycast.model import graphs, values

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True)
class Grid:
    """The 8-bit numbers of an activation: code ``q`` stands for ``(q - zero) * scale``; scale is a float32 above 0."""

    scale: float
    zero: int
    signed: bool = False

    @property
    def dtype(self) -> type[np.integer]:
        """What holds a code."""
        return np.int8 if self.signed else np.uint8

    @property
    def limits(self) -> tuple[float, float]:
        """The smallest and the largest number."""
        info = np.iinfo(self.dtype)
        return (int(info.min) - self.zero) * self.scale, (int(info.max) - self.zero) * self.scale


@dataclass(frozen=True)
class Stored:
    """An operand that is stored as integers: ``value = codes * scale``, a scale for each index of ``axis``.

    node, index: whose operand it is. codes: an int8 weight, or the int32 bias of a convolution or Gemm.
    scale: [1] or [channels] float32. axis: None where one scale holds for all.
    """

    node: ir.Node
    index: int
    dequantize: ir.Node
    codes: np.ndarray
    scale: np.ndarray
    axis: int | None

    @property
    def spread(self) -> np.ndarray:
        """The scale, shaped so that it broadcasts to the codes."""
        return spread(self.scale, self.axis, self.codes.ndim)

    def values(self) -> np.ndarray:
        """What the codes stand for, float32."""
        numbers: np.ndarray = (self.codes.astype(np.float64) * self.spread).astype(np.float32)
        return numbers

    @property
    def readers(self) -> int:
        """How many operands read these codes."""
        source = self.dequantize.inputs[0]
        assert source is not None
        nodes = [node for node, index in source.uses() if index == 0]
        return sum(len(output.uses()) for node in nodes for output in node.outputs)

    def exchange(self, codes: np.ndarray, names: Names) -> None:
        """Put other codes of the same dtype and shape in their place; who else reads the old ones keeps them."""
        assert codes.dtype == self.codes.dtype and codes.shape == self.codes.shape
        old, graph = self.dequantize.inputs[0], self.node.graph
        assert old is not None and isinstance(graph, ir.Graph)
        if self.readers == 1 and not old.is_graph_output():
            old.const_value = ir.tensor(codes, name=old.name)
        else:
            new = names.constant(graph, f"{old.name}.own", codes)
            own = dequantize(names, new, self.dequantize.inputs[1:], self.axis)
            graph.insert_before(self.node, own)
            self.node.replace_input_with(self.index, own.outputs[0])


def stored(node: ir.Node, index: int) -> Stored | None:
    """Give operand ``index`` of ``node`` where it is stored as integers, with zero at 0; None where it is not."""
    value = node.inputs[index] if index < len(node.inputs) else None
    source = dequantizer(value)
    if source is None or "block_size" in source.attributes:
        return None
    codes, scale = (_constant(operand) for operand in source.inputs[:2])
    zero = _constant(source.inputs[2]) if len(source.inputs) > 2 else None
    if codes is None or scale is None or (zero is not None and zero.any()):
        return None
    axis = source.attributes["axis"].as_int() if "axis" in source.attributes else 1
    return Stored(node, index, source, codes, scale.reshape(-1), axis % codes.ndim if scale.ndim else None)


def dequantizer(value: ir.Value | None) -> ir.Node | None:
    """Give the DequantizeLinear that made ``value``, or None."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == DEQUANTIZE and node.domain == "" else None


def is_stored(value: ir.Value | None) -> bool:
    """Whether ``value`` is a constant that is stored as integers."""
    source = dequantizer(value)
    return source is not None and _constant(source.inputs[0]) is not None


def grid_of(value: ir.Value | None) -> Grid | None:
    """Give the grid of an activation that a DequantizeLinear gives; None where it is float, or a stored constant."""
    source = dequantizer(value)
    if source is None or is_stored(value):
        return None
    scale = _constant(source.inputs[1])
    zero = _constant(source.inputs[2]) if len(source.inputs) > 2 else np.zeros((), np.uint8)
    if scale is None or zero is None or scale.size != 1 or zero.dtype not in (np.uint8, np.int8):
        return None
    return Grid(float(scale.reshape(())), int(zero.reshape(())), zero.dtype == np.int8)


def spread(scale: np.ndarray, axis: int | None, rank: int) -> np.ndarray:
    """Shape ``scale: [channels]`` so that it broadcasts along ``axis`` of an array of ``rank`` axes."""
    return scale if axis is None else scale.reshape([-1 if at == axis else 1 for at in range(rank)])


def _constant(value: ir.Value | None) -> np.ndarray | None:
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


@dataclass
class Names:
    """The names that a model's values have, and the constants that have been put into it."""

    taken: set[str | None]
    shared: dict[tuple[ir.Graph, str, tuple[int, ...], bytes], ir.Value] = field(default_factory=dict)

    @classmethod
    def of(cls, model: ir.Model) -> Names:
        """Read every name in ``model``."""
        return cls({value.name for graph in graphs(model) for value in values(graph)})

    def unused(self, wish: str) -> str:
        """Give ``wish``, or the first of wish_1, wish_2, … that nothing has."""
        name, count = wish, 0
        while name in self.taken:
            count += 1
            name = f"{wish}_{count}"
        self.taken.add(name)
        return name

    def constant(self, graph: ir.Graph, wish: str, array: np.ndarray) -> ir.Value:
        """Make ``array`` an initializer of ``graph``."""
        name = self.unused(wish)
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
        graph.register_initializer(value)
        return value

    def small(self, graph: ir.Graph, wish: str, array: np.ndarray) -> ir.Value:
        """Make ``array`` an initializer of ``graph``, the same one for the same numbers."""
        key = (graph, array.dtype.name, array.shape, array.tobytes())
        if key not in self.shared:
            self.shared[key] = self.constant(graph, wish, array)
        return self.shared[key]


def quantize(names: Names, value: ir.Value, parameters: Sequence[ir.Value | None]) -> ir.Node:
    """Make the QuantizeLinear of ``value``; parameters: its scale and its zero point."""
    node = ir.node(QUANTIZE, [value, *parameters], name=names.unused(f"{value.name}.quantize"))
    zero = parameters[1]
    assert zero is not None and zero.dtype is not None
    _declare(node, names.unused(f"{value.name}.codes"), zero.dtype, value.shape)
    return node


def dequantize(
    names: Names, codes: ir.Value, parameters: Sequence[ir.Value | None], axis: int | None = None
) -> ir.Node:
    """Make the DequantizeLinear of ``codes``; parameters: its scale, and its zero point where it has one."""
    attributes = {} if axis is None else {"axis": axis}
    base = (codes.name or "").removesuffix(".codes")
    node = ir.node(DEQUANTIZE, [codes, *parameters], attributes, name=names.unused(f"{base}.dequantize"))
    _declare(node, names.unused(f"{base}.values"), ir.DataType.FLOAT, codes.shape)
    return node


def _declare(node: ir.Node, name: str, dtype: ir.DataType, shape: ir.Shape | None) -> None:
    result = node.outputs[0]
    result.name, result.type, result.shape = name, ir.TensorType(dtype), shape
