"""Writing a quantized weight for kernels that read floats: in the place of the weight, and laid out as it was."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ._grid import Quantized
from ._matrix import Matrix
from ._nbits import Widening


def put_qdq(matrix: Matrix, weight: Quantized, to: Widening) -> None:
    """Put a DequantizeLinear of 4 or 8 bits in the place of the weight, in blocks along its input channels.

    Source: ONNX DequantizeLinear, opset 21 (block_size).
    """
    grid, kind = weight.grid, matrix.tensor.dtype
    shift = grid.middle if grid.symmetric else 0
    codes = matrix.laid_out(weight.codes)
    stored = to.packed(f"int{grid.bits}", codes.astype(np.int16) - shift, _dtype(grid.bits, bool(shift)))
    blocks = weight.scale[:, 0] if not grid.block else _along(matrix, weight.scale)
    operands = [stored, to.constant("scale", blocks.astype(kind.numpy()))]
    if not grid.symmetric:
        zero = weight.zero[:, 0] if not grid.block else _along(matrix, weight.zero)
        operands.append(to.packed("zero", zero, _dtype(grid.bits, signed=False)))
    attributes = {"axis": 1 - matrix.axis, "block_size": grid.block} if grid.block else {"axis": matrix.axis}
    _replace(matrix, to.op("DequantizeLinear", *operands, dtype=kind, **attributes), to)


def put_float(matrix: Matrix, weight: Quantized, to: Widening) -> None:
    """Put the product of int8 and a scale per output channel in the place of the weight: the runtime folds it at load.

    Source: ONNX Cast and Mul; that constants are folded at load, and kept narrow in the file, is what onnxruntime does.
    """
    kind = matrix.tensor.dtype
    codes = (matrix.laid_out(weight.codes).astype(np.int16) - weight.grid.middle).astype(np.int8)
    shape = [-1 if axis == matrix.axis else 1 for axis in range(codes.ndim)]
    scale = to.constant("scale", weight.scale.astype(kind.numpy()).reshape(shape))
    wide = to.op("Cast", to.constant("int8", codes), dtype=kind, to=kind.value)
    _replace(matrix, to.op("Mul", wide, scale, dtype=kind), to)


def _along(matrix: Matrix, per_block: np.ndarray) -> np.ndarray:
    """Lay ``per_block: [N, blocks]`` out as the weight is."""
    return np.ascontiguousarray(per_block if matrix.axis == 0 else per_block.T)


def _dtype(bits: int, signed: bool) -> ir.DataType:
    if bits == 4:
        return ir.DataType.INT4 if signed else ir.DataType.UINT4
    return ir.DataType.INT8 if signed else ir.DataType.UINT8


def _replace(matrix: Matrix, value: ir.Value, to: Widening) -> None:
    value.shape = ir.Shape(matrix.shape)
    matrix.source.replace_all_uses_with(value)
    to.done()
