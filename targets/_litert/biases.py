"""The bias of a product, as its kernel wants it: floats, or int32 at the scale of the products of codes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .program import Program
from .quantized import Stored
from .tensors import Grid, Tensor

#: A product of two float32 scales, whichever way it was rounded.
_NEAR = 4 * float(np.finfo(np.float32).eps)


def read_bias(to: Program, value: ir.Value | None, channels: int, x: Tensor, weight: Tensor) -> Tensor:
    """Give the bias ``value`` of ``x @ weight``, [channels], and nothing but zeros where there is none.

    x, weight: as the kernel reads them. Codes that are stored at another scale are rounded to that of the products.
    """
    if value is None:
        return _zeros(to, channels, x, weight)
    codes = to.stored(value)
    array = to.array(value) if codes is None else codes.codes
    if array is None:
        to.refuse("its bias is not constant")
    if array.size != channels or array.shape[-1:] != (channels,):
        to.refuse("its bias is not one constant for each output")
    if codes is None or codes.grid is None:
        return to.read(value)
    if to.hybrid:
        return to.constant(codes.values(), name=value.name)
    grid = _grid(x, weight)
    if grid is None or _is_on(codes, grid):
        return to.read(value)
    steps = codes.values().astype(np.float64).reshape(-1) / np.array(grid.scale)
    limits = np.iinfo(np.int32)
    return to.constant(np.rint(steps).clip(limits.min, limits.max).astype(np.int32), grid, value.name)


def _zeros(to: Program, channels: int, x: Tensor, weight: Tensor) -> Tensor:
    grid = _grid(x, weight)
    return to.constant(np.zeros(channels, np.float32 if grid is None else np.int32), grid, "zeros")


def _grid(x: Tensor, weight: Tensor) -> Grid | None:
    """Give the grid of the products of codes; None where either holds floats."""
    if x.grid is None or weight.grid is None:
        return None
    product = np.float32(x.grid.scale[0]) * np.array(weight.grid.scale, np.float32)
    return Grid(tuple(map(float, product)), 0, None if len(weight.grid.scale) == 1 else 0)


def _is_on(codes: Stored, grid: Grid) -> bool:
    """Whether ``codes`` are int32 on ``grid``, but for how its scales were rounded."""
    own = codes.grid
    if own is None or codes.codes.dtype != np.int32 or codes.codes.ndim != 1 or own.zero:
        return False
    if len(own.scale) != len(grid.scale):
        return False
    return bool(np.allclose(own.scale, grid.scale, rtol=_NEAR, atol=0))
