"""Writing a packed weight as MatMulNBits, and the operations that widen what is stored to what the kernel reads.

The kernel reads codes of 4 or 8 bits, zeros of as many, and scales in the dtype of the activations. What is stored is
narrower: the nodes between are computed from constants alone, so that the runtime folds them when it loads the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ._dynamic_edit import MICROSOFT, Place
from ._grid import LOG_STEPS
from ._pack import Packed, pack
from ._qdq import Names
from ._spill import Spill

#: What the kernel reads for a grid of whole rows: the same scale for each of these. Larger blocks have no fast kernel.
ROW_BLOCK = 128


@dataclass
class Widening:
    """Nodes at the beginning of ``graph`` that compute from constants alone. ``base`` begins the names of these."""

    graph: ir.Graph
    base: str
    names: Names
    spill: Spill
    nodes: list[ir.Node] = field(default_factory=list)

    def constant(self, what: str, array: np.ndarray) -> ir.Value:
        """Make ``array`` an initializer."""
        name = self.names.unused(f"{self.base}.{what}")
        return self._initializer(self.spill.tensor(array, name))

    def packed(self, what: str, numbers: np.ndarray, dtype: ir.DataType) -> ir.Value:
        """Make ``numbers`` an initializer of ``dtype``, of 8 bits or of 4."""
        if dtype.bitwidth == 8:
            return self.constant(what, numbers.astype(dtype.numpy()))
        nibbles = pack(numbers.astype(np.uint8).reshape(1, -1) & 15, 4)[0]
        name = self.names.unused(f"{self.base}.{what}")
        return self._initializer(self.spill.tensor(nibbles, name, dtype, numbers.shape))

    def _initializer(self, tensor: ir.TensorProtocol) -> ir.Value:
        shape = ir.Shape(tensor.shape.numpy())
        value = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def small(self, what: str, array: np.ndarray) -> ir.Value:
        """Make ``array`` an initializer that every weight of the graph shares."""
        return self.names.small(self.graph, what, array)

    def ints(self, *numbers: int) -> ir.Value:
        """Make a shape, or paddings."""
        return self.small("shape", np.array(numbers, np.int64))

    def op(
        self, op: str, *inputs: ir.Value, dtype: ir.DataType = ir.DataType.UINT8, **attributes: int | str
    ) -> ir.Value:
        """Add a node with one output of ``dtype``."""
        node = ir.node(op, inputs, attributes)
        node.outputs[0].name = self.names.unused(f"{self.base}.{op.lower()}")
        node.outputs[0].type = ir.TensorType(dtype)
        self.nodes.append(node)
        return node.outputs[0]

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Add a Cast, where ``value`` is not of ``dtype``."""
        return value if value.dtype == dtype else self.op("Cast", value, dtype=dtype, to=dtype.value)

    def done(self) -> None:
        """Put the nodes into the graph."""
        if self.nodes:
            self.graph.insert_before(self.graph[0], self.nodes)


def widened(packed: Packed, to: Widening, activations: ir.DataType) -> tuple[list[ir.Value | None], dict[str, int]]:
    """Give inputs 1 to 3 of MatMulNBits for ``packed``, and the attributes; activations: the dtype of its input 0.

    Source: MatMulNBits of onnxruntime's contrib operators, com.microsoft version 1.
    """
    grid, (n, _) = packed.grid, packed.codes.shape
    block = grid.block or ROW_BLOCK
    bits = 8 if grid.bits == 8 else 4
    blocks = -(-packed.k // block)
    scale = widened_scale(packed, to, activations)
    if not grid.block:
        scale = to.op("Expand", scale, to.ints(n, blocks), dtype=activations)
    codes = _codes(packed, to, (n, blocks, block * bits // 8), as_they_are=scale.is_initializer())
    zero = _zero(packed, to, blocks if bits == 8 else -(-blocks // 2))
    return [codes, scale, zero], {"K": packed.k, "N": n, "bits": bits, "block_size": block}


def _codes(packed: Packed, to: Widening, shape: tuple[int, int, int], as_they_are: bool) -> ir.Value:
    """Give the codes as the kernel reads them: ``shape`` uint8.

    as_they_are: whether an initializer may be read without a node between. Where the scales are computed it may not:
    with its optimizations off, onnxruntime 1.32 then packs codes without scales, and gives 0 at accuracy level 4.
    """
    n, blocks, block_bytes = shape
    bits, width = packed.grid.bits, packed.codes.shape[1]
    if bits in (4, 8) and width == blocks * block_bytes and as_they_are:
        return to.constant(f"int{bits}", packed.codes.reshape(shape))
    if bits in (4, 8):
        rows = to.constant(f"int{bits}", packed.codes)
    else:
        width = {3: width // 3 * 4, 2: width * 2}[bits]
        rows = _three_bits(packed, to) if bits == 3 else _two_bits(packed, to)
    if width != blocks * block_bytes:
        rows = rows if bits in (4, 8) else to.op("Reshape", rows, to.ints(n, width))
        rows = to.op("Pad", rows, to.ints(0, 0, 0, blocks * block_bytes - width))
    return to.op("Reshape", rows, to.ints(*shape))


def _two_bits(packed: Packed, to: Widening) -> ir.Value:
    """Spread each byte over two: codes 0 and 1 are its bits 0, 1, 4, 5; codes 2 and 3 the others."""
    rows = to.constant("int2", packed.codes[..., None])
    pairs = to.op("BitShift", rows, to.small("shift", np.array([0, 2], np.uint8)), direction="RIGHT")
    return to.op("BitwiseAnd", pairs, to.small("mask", np.array(0x33, np.uint8)))


def _three_bits(packed: Packed, to: Widening) -> ir.Value:
    """Spread three bytes over four: the fourth lies in bits 3 and 7 of the three."""
    three = to.constant("int3", packed.codes.reshape(len(packed.codes), -1, 3))
    first = to.op("BitwiseAnd", three, to.small("mask", np.array(0x77, np.uint8)))
    gaps = to.op("BitwiseAnd", three, to.small("mask", np.array(0x88, np.uint8)))
    gaps = to.op("BitShift", gaps, to.small("shift", np.array([3, 2, 1], np.uint8)), direction="RIGHT")
    parts = [to.op("Slice", gaps, to.ints(start), to.ints(start + 1), to.ints(2), to.ints(1)) for start in range(3)]
    last = to.op("BitwiseOr", to.op("BitwiseOr", parts[0], parts[1]), parts[2])
    return to.op("Concat", first, last, axis=2)


def widened_scale(packed: Packed, to: Widening, dtype: ir.DataType) -> ir.Value:
    """Give the scales as the kernel reads them: [N, blocks] of ``dtype``."""
    stored = to.constant("scale", packed.scale)
    if packed.scales.stored != "log8":
        return to.cast(stored, dtype)
    steps = to.small("log_steps", LOG_STEPS)
    scale = to.op("Gather", steps, to.cast(stored, ir.DataType.INT32), dtype=ir.DataType.FLOAT)
    unit = to.small("unit", np.array(packed.scales.unit, np.float32))
    return to.cast(to.op("Mul", scale, unit, dtype=ir.DataType.FLOAT), dtype)


def _zero(packed: Packed, to: Widening, width: int) -> ir.Value | None:
    """Give the zeros as the kernel reads them: [N, width] uint8; None for what it takes where none are given."""
    grid, n = packed.grid, len(packed.codes)
    if packed.zero is None and grid.bits in (4, 8):
        return None
    zero = (
        to.small("zero", np.array([grid.middle * 0x11], np.uint8))
        if packed.zero is None
        else to.constant("zero", packed.zero)
    )
    return zero if zero.shape == (n, width) else to.op("Expand", zero, to.ints(n, width))


def put_nbits(
    node: ir.Node, inputs: Sequence[ir.Value | None], attributes: Mapping[str, int], dtype: ir.DataType, names: Names
) -> None:
    """Put a MatMulNBits in the place of ``node``, a MatMul or Gemm, whose output and name it takes over.

    dtype: of the activations and of the result, which the graph may not say. A Gemm's C becomes the bias where it is a
    vector of the output's width; else it is added afterwards.
    """
    place = Place(node, names)
    x, shape = node.inputs[0], node.outputs[0].shape
    assert x is not None
    addend = node.inputs[2] if len(node.inputs) > 2 else None
    beta = node.attributes["beta"].as_float() if "beta" in node.attributes else 1.0
    operands = [x, *inputs]
    if addend is not None and beta == 1.0 and _is_vector(addend, attributes["N"]):
        operands += [None, addend]
        addend = None
    while operands[-1] is None:
        operands.pop()
    product = place.op("MatMulNBits", operands, attributes, what="nbits", dtype=dtype, shape=shape, domain=MICROSOFT)
    result = product
    if addend is not None:
        if beta != 1.0:
            scalar = place.number(beta, dtype.numpy().type)
            addend = place.op("Mul", [addend, scalar], what="beta", dtype=dtype, shape=addend.shape)
        result = place.op("Add", [product, addend], what="add", dtype=dtype, shape=shape)
    place.put(result, product)


def _is_vector(value: ir.Value, n: int) -> bool:
    return value.shape is not None and value.shape.is_static() and value.shape.numpy() == (n,)
