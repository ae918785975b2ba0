"""Tables that Gather looks rows up in: which ones can be stored as integers, and what looks rows up then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from polycast.model import name_of

from ._dynamic_edit import MICROSOFT, Place
from ._grid import Grid, Quantized, Scales
from ._pack import Packed
from ._qdq import Names
from ._search import rounded
from ._slices import constant_tensor, integer

#: Elements that are quantized at a time.
_PART = 1 << 22

#: GatherBlockQuantized wants a block of a power of two, and at least this many elements.
_LEAST_BLOCK = 16

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)

#: What passes the numbers of a row on.
_MOVES = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


@dataclass(frozen=True)
class Table:
    """Rows of numbers, w: [rows, columns] float, and the nodes that look rows up."""

    value: ir.Value
    nodes: tuple[ir.Node, ...]

    @property
    def tensor(self) -> ir.TensorProtocol:
        """What is stored."""
        tensor = constant_tensor(self.value)
        assert tensor is not None
        return tensor


def tables(nodes: Sequence[ir.Node], least_bytes: int) -> Iterator[Table]:
    """Yield each constant float table that some of ``nodes``, Gathers, look rows up in, with those of them that do.

    What holds fewer than ``least_bytes`` is passed over.
    """
    found: dict[ir.Value, list[ir.Node]] = {}
    for node in nodes:
        value = node.inputs[0]
        tensor = ir.convenience.get_const_tensor(value) if value is not None else None
        if (
            value is not None
            and tensor is not None
            and tensor.dtype.is_floating_point()
            and tensor.nbytes >= least_bytes
        ):
            found.setdefault(value, []).append(node)
    for value, readers in found.items():
        yield Table(value, tuple(readers))


def why_not(table: Table, bits: int) -> str:
    """Say why ``table`` cannot be stored as integers; "" where it can."""
    tensor = constant_tensor(table.value)
    if tensor is None:
        return f"the table {table.value.name} is an input of the model"
    if not isinstance(table.value.graph, ir.Graph) or any(not isinstance(n.graph, ir.Graph) for n in table.nodes):
        return "it lies in a function"
    if tensor.dtype not in _FLOATS:
        return f"the table is {tensor.dtype}, neither FLOAT nor FLOAT16"
    if len(tensor.shape) != 2 or any(integer(node, "axis", 0) not in (0, -2) for node in table.nodes):
        return "it does not look up rows of a matrix"
    if bits == 4 and tensor.shape.numpy()[1] % 2:
        return "rows of an odd number of columns do not fill bytes with 4 bits each"
    if table.value.is_graph_output():
        return "the table is an output of the model"
    if other := next((n for n, at in table.value.uses() if n not in table.nodes or at != 0), None):
        return f"{name_of(other)} ({other.op_type}) reads the table too"
    if any(_scales(node.outputs[0]) for node in table.nodes):
        return "its rows are factors of other activations, as those of a rotary embedding"
    return "" if _is_finite(tensor) else "the table holds NaN or infinity"


def _scales(rows: ir.Value) -> bool:
    """Whether ``rows`` multiply something that is not constant."""
    for node, position in rows.uses():
        if node.op_type == "RotaryEmbedding":
            return True
        if node.op_type == "Mul" and constant_tensor(node.inputs[1 - position]) is None:
            return True
        if node.op_type in _MOVES and position == 0 and _scales(node.outputs[0]):
            return True
    return False


def _is_finite(tensor: ir.TensorProtocol) -> bool:
    return all(np.isfinite(part).all() for part in _parts(tensor.numpy()))


def _parts(array: np.ndarray) -> Iterator[np.ndarray]:
    step = max(1, _PART // max(array.shape[1], 1))
    for start in range(0, len(array), step):
        yield array[start : start + step]


@dataclass(frozen=True)
class Lookup:
    """Stores tables on ``grid`` and looks rows up in them. fused: whether the target has GatherBlockQuantized."""

    names: Names
    grid: Grid
    fused: bool

    def rewrite(self, table: Table) -> None:
        """Put integers in the place of ``table``."""
        packed = self._packed(table)
        graph, name, dtype = table.value.graph, table.value.name, table.tensor.dtype
        assert isinstance(graph, ir.Graph)
        codes = packed.codes if self.fused else (packed.codes.astype(np.int16) - self.grid.middle).astype(np.int8)
        stored = [
            self.names.constant(graph, f"{name}.int{self.grid.bits}", codes),
            self.names.constant(graph, f"{name}.scale", packed.scale),
            self.names.constant(graph, f"{name}.zero", packed.zero) if packed.zero is not None else None,
        ]
        for node in table.nodes:
            if self.fused:
                self._fused(node, stored, packed, dtype)
            else:
                self._plain(node, stored, dtype)

    def _packed(self, table: Table) -> Packed:
        tensor = table.tensor
        kind = tensor.dtype.numpy().type
        scales = Scales("float16" if tensor.dtype == ir.DataType.FLOAT16 else "float32", 1.0, kind)
        return Packed.of(self._rounded(tensor.numpy(), scales))

    def _rounded(self, w: np.ndarray, scales: Scales) -> Iterator[Quantized]:
        for part in _parts(w):
            yield rounded(part.astype(np.float32), self.grid, scales, "mse")

    def _fused(self, node: ir.Node, stored: Sequence[ir.Value | None], packed: Packed, dtype: ir.DataType) -> None:
        codes, scale, zero = stored
        place = Place(node, self.names)
        operands = [codes, node.inputs[1], scale, *([zero] if zero is not None else [])]
        block = self.grid.block or max(_LEAST_BLOCK, 1 << (packed.k - 1).bit_length())
        attributes = {"bits": self.grid.bits, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
        shape = node.outputs[0].shape
        rows = place.op(
            "GatherBlockQuantized", operands, attributes, what="rows", dtype=dtype, shape=shape, domain=MICROSOFT
        )
        place.put(rows, rows)

    def _plain(self, node: ir.Node, stored: Sequence[ir.Value | None], dtype: ir.DataType) -> None:
        codes, scale, _ = stored
        place = Place(node, self.names)
        indices, shape = node.inputs[1], node.outputs[0].shape
        rows = place.op("Gather", [codes, indices], what="codes", dtype=ir.DataType.INT8, shape=shape)
        wide = place.op("Cast", [rows], {"to": dtype}, what="wide", dtype=dtype, shape=shape)
        factor = place.op("Gather", [scale, indices], what="scale", dtype=dtype)
        place.put(place.op("Mul", [wide, factor], what="rows", dtype=dtype, shape=shape), rows)
