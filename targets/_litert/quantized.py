"""Constants that are stored as integers behind a DequantizeLinear, as LiteRT stores them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .ends import constant
from .layout import Order
from .tensors import Grid


@dataclass(frozen=True)
class Stored:
    """Codes of a constant, in ONNX's order: an int8 weight with zero at 0, or one of a grid, or an int32 bias.

    Or float16 numbers, which have no grid.
    """

    codes: np.ndarray
    grid: Grid | None

    def moved(self, order: Order) -> tuple[np.ndarray, Grid | None]:
        """Give the codes with their axes in ``order``, and their grid."""
        return self.codes.transpose(order), self.grid and self.grid.moved(order)

    def values(self) -> np.ndarray:
        """What the codes stand for, float32."""
        if self.grid is None:
            return self.codes.astype(np.float32)
        rank = self.codes.ndim
        spread = (
            [-1 if axis == self.grid.axis else 1 for axis in range(rank)] if self.grid.axis is not None else [1] * rank
        )
        steps = (self.codes.astype(np.float64) - self.grid.zero) * np.array(self.grid.scale).reshape(spread)
        numbers: np.ndarray = steps.astype(np.float32)
        return numbers


def is_operand(codes: Stored | None) -> bool:
    """Whether kernels take ``codes`` beside codes that are computed: one scale, and any zero."""
    return codes is not None and codes.grid is not None and codes.codes.dtype == np.int8 and codes.grid.axis is None


def is_weight(codes: Stored | None, outputs: int) -> bool:
    """Whether kernels multiply codes by ``codes``: zero at 0, and one scale, or one for each index of ``outputs``."""
    if codes is None or codes.grid is None or codes.codes.dtype != np.int8:
        return False
    return codes.grid.zero == 0 and codes.grid.axis in (None, outputs)


def stored(value: ir.Value) -> Stored | None:
    """Read the constant that the DequantizeLinear behind ``value`` reads; None where there is none, or blocks.

    A Cast of float16 numbers is taken for one too.
    """
    node = value.producer()
    if node is not None and not node.domain and node.op_type == "Cast":
        half = constant(node.inputs[0]) if node.attributes["to"].as_int() == ir.DataType.FLOAT else None
        return Stored(half, None) if half is not None and half.dtype == np.float16 else None
    if node is None or node.domain or node.op_type != "DequantizeLinear" or "block_size" in node.attributes:
        return None
    codes, scale = constant(node.inputs[0]), constant(node.inputs[1])
    zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if codes is None or scale is None or scale.dtype != np.float32 or codes.dtype not in (np.int8, np.uint8, np.int32):
        return None
    shift = 128 if codes.dtype == np.uint8 else 0
    zeros = {int(z) for z in zero.reshape(-1)} if zero is not None else {0}
    if len(zeros) > 1 or (scale.ndim and scale.size > 1 and zeros != {shift}):
        return None  # LiteRT has one zero for a tensor, and it is 0 where there are several scales
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    narrow = (codes.astype(np.int16) - shift).astype(np.int8) if shift else codes
    grid = Grid(
        tuple(float(s) for s in scale.reshape(-1)),
        zeros.pop() - shift,
        axis % codes.ndim if scale.ndim and codes.ndim and scale.size > 1 else None,
    )
    return Stored(narrow, grid)
