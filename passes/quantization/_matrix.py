"""Matrices: the constant weight behind an operator, where it lies, who reads it, and its rows, a stripe at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from polycast.errors import InputError

#: Elements of a weight that are in memory at a time, as float32.
STRIPE = 1 << 23

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)

#: What may stand between a weight and its operator.
_MOVES = ("Transpose", "Identity")


@dataclass(frozen=True)
class Matrix:
    """A weight seen as ``w: [N, K], row = output channel``; float32 or float16.

    source: the constant that holds it. axis: that of the output channels there. factor: the alpha of a Gemm.
    """

    source: ir.Value
    axis: int
    factor: float = 1.0

    @property
    def tensor(self) -> ir.TensorProtocol:
        """What is stored."""
        tensor = ir.convenience.get_const_tensor(self.source)
        assert tensor is not None
        return tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of what is stored."""
        return tuple(int(size) for size in self.tensor.shape.numpy())

    @property
    def n(self) -> int:
        """Output channels."""
        return self.shape[self.axis]

    @property
    def k(self) -> int:
        """Elements of a row."""
        return self.tensor.size // self.n

    @property
    def dtype(self) -> type[np.floating]:
        """What the weight is stored as, and its operator computes with."""
        return np.float16 if self.tensor.dtype == ir.DataType.FLOAT16 else np.float32

    @property
    def graph(self) -> ir.Graph:
        """The graph that holds the weight."""
        maker = self.source.producer()
        graph = self.source.graph if maker is None else maker.graph
        assert isinstance(graph, ir.Graph)
        return graph

    def stripes(self) -> Iterator[np.ndarray]:
        """Read the weight in stripes [rows, K] of at most STRIPE elements, or of one row; a view of any strides."""
        rows = max(1, STRIPE // self.k)
        for start in range(0, self.n, rows):
            part = _part(self.tensor, start, min(start + rows, self.n), self.axis)
            part = np.moveaxis(part, self.axis, 0).reshape(-1, self.k)
            yield part if self.factor == 1.0 else part * np.float32(self.factor)

    def whole(self) -> np.ndarray:
        """Read the weight: [N, K] float32, contiguous."""
        return np.concatenate([np.ascontiguousarray(part, np.float32) for part in self.stripes()])

    def limits(self) -> tuple[float, float]:
        """Give the smallest and the largest element, or NaN."""
        found = [(part.astype(np.float32).min(), part.astype(np.float32).max()) for part in self.stripes()]
        low, high = np.array(found).T
        return float(low.min()), float(high.max())

    def laid_out(self, rows: np.ndarray) -> np.ndarray:
        """Lay ``rows: [N, K]`` out as the weight is stored."""
        shape = (self.n, *(size for axis, size in enumerate(self.shape) if axis != self.axis))
        return np.ascontiguousarray(np.moveaxis(rows.reshape(shape), 0, self.axis))

    def readers(self) -> set[ir.Node | None]:
        """Give every node that reads the weight, through a Transpose too; None stands for an output of the graph."""
        found: set[ir.Node | None] = set()
        pending = [self.source]
        while pending:
            value = pending.pop()
            found |= {None} if value.is_graph_output() else set()
            for node, _ in value.uses():
                if node.op_type in _MOVES and node.domain == "":
                    pending.append(node.outputs[0])
                else:
                    found.add(node)
        return found


def matrix_of(node: ir.Node) -> Matrix | str:
    """Give the weight of a MatMul, Gemm, Conv or ConvTranspose, or the reason why it has none that can be quantized.

    The reason is empty where no operand is a constant: there is nothing to quantize.
    """
    x, w = node.inputs[0], node.inputs[1]
    if w is None or not is_constant(w):
        return "its weight is the left operand" if x is not None and is_constant(x) else ""
    linear = node.op_type in ("MatMul", "Gemm")
    axis = int(node.op_type == "ConvTranspose" or (linear and not _int(node, "transB")))
    while (maker := w.producer()) is not None and maker.op_type in _MOVES and maker.domain == "":
        w = maker.inputs[0]
        assert w is not None
        if maker.op_type == "Transpose" and linear:
            permuted = maker.attributes["perm"].as_ints() if "perm" in maker.attributes else (1, 0)
            axis = permuted[axis] if len(permuted) == 2 else axis
        elif maker.op_type == "Transpose":
            return "its weight is transposed first; fold that"
    tensor = ir.convenience.get_const_tensor(w)
    if tensor is None:
        return "its weight is computed from constants, or quantized already"
    reason = _why_not(node, tensor, linear)
    alpha = node.attributes["alpha"].as_float() if node.op_type == "Gemm" and "alpha" in node.attributes else 1.0
    return reason or Matrix(w, axis, alpha)


def _why_not(node: ir.Node, tensor: ir.TensorProtocol, linear: bool) -> str:
    x = node.inputs[0]
    if tensor.dtype not in _FLOATS:
        return f"its weight is {tensor.dtype.numpy().name}"
    if linear and len(tensor.shape) != 2:
        return f"its weight has {len(tensor.shape)} axes, not 2"
    if not tensor.size:
        return "its weight is empty"
    if node.op_type == "Gemm" and _int(node, "transA"):
        return "it transposes its input"
    if linear and x is not None and x.shape is not None and len(x.shape) < 2:
        return "its input is a vector"
    return ""


def is_constant(value: ir.Value) -> bool:
    """Whether ``value`` is computed from constants alone."""
    pending, seen = [value], {value}
    while pending:
        one = pending.pop()
        maker = one.producer()
        if one.is_graph_input():
            return False
        if one.const_value is not None or (maker is not None and maker.op_type == "Constant"):
            continue
        if maker is None or not any(v is not None for v in maker.inputs):
            return False
        fresh = [v for v in maker.inputs if v is not None and v not in seen]
        seen.update(fresh)
        pending += fresh
    return True


def drop_unread(value: ir.Value) -> None:
    """Remove a constant that nothing reads any more, and what it is computed from."""
    if value.uses() or value.is_graph_output() or value.is_graph_input():
        return
    maker = value.producer()
    if (
        maker is not None
        and maker.graph is not None
        and not any(v.uses() or v.is_graph_output() for v in maker.outputs)
    ):
        read = [v for v in maker.inputs if v is not None]
        maker.graph.remove(maker, safe=True)
        for one in read:
            drop_unread(one)
    elif value.is_initializer() and value.graph is not None and value.name is not None:
        value.graph.initializers.pop(value.name)


def _int(node: ir.Node, name: str) -> int:
    return node.attributes[name].as_int() if name in node.attributes else 0


def _part(tensor: ir.TensorProtocol, start: int, stop: int, axis: int) -> np.ndarray:
    """Give ``start..stop`` along ``axis``. A matrix in a file is read: pages that are mapped count as ours."""
    if not isinstance(tensor, ir.ExternalTensor) or len(tensor.shape) != 2:
        array = tensor.numpy()
        return array[start:stop] if axis == 0 else array[:, start:stop]
    dtype = tensor.dtype.numpy()
    height, width = (int(size) for size in tensor.shape.numpy())
    part = np.empty((stop - start, width) if axis == 0 else (height, stop - start), dtype)
    with open(tensor.path, "rb", buffering=0) as file:
        for number, piece in enumerate([part] if axis == 0 else part):
            first = start * width if axis == 0 else number * width + start
            file.seek((tensor.offset or 0) + first * dtype.itemsize)
            if file.readinto(piece.view(np.uint8)) != piece.nbytes:
                raise InputError(f"{tensor.path} ends before the weight {tensor.name!r} does")
    return part
