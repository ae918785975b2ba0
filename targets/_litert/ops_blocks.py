"""Products by int4 weights with several scales in a row: FULLY_CONNECTED, which rounds its other side to int8."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ._attributes import integer, operand
from .biases import read_bias
from .ops_matmul import depth_last
from .program import Program
from .registry import converts
from .rewriting import DOMAIN
from .tensors import Blocks, Tensor

#: Kernels take no scales that are subnormal in float16.
_LEAST = np.float16(2.0**-14)

#: Kernels go by so many columns at a time.
_STEP = 32


@converts("LinearBlocks", domain=DOMAIN)
def linear_blocks(node: ir.Node, to: Program) -> None:
    """Write ``x @ w + bias``, w: [K, N] int4 codes, scales: [K / block, N], bias: [N] constant."""
    x, codes, scales = node.inputs[0], to.array(node.inputs[1]), to.array(node.inputs[2])
    bias, block = operand(node, 3), integer(node, "block", _STEP)
    assert x is not None and codes is not None and scales is not None
    if block % _STEP:
        to.refuse(f"blocks of {block}, which no multiple of {_STEP} is")
    order = depth_last(x, to)
    tensor = to.read(x, order)
    short = -len(codes) % block
    if short:
        tensor = _padded(to, tensor, short)
    weight = matrix(to, np.pad(codes, ((0, short), (0, 0))).T, scales.T, block)
    added = read_bias(to, bias, weight.shape[0], tensor, weight)
    shape = (*tensor.shape[:-1], weight.shape[0])
    y = to.emit("FULLY_CONNECTED", [tensor, weight, added], shape, keepNumDims=True)
    to.give(node.outputs[0], y, order)


def _padded(to: Program, tensor: Tensor, columns: int) -> Tensor:
    """Put zeros behind the last axis, so that whole blocks come of it."""
    amounts = np.array([(0, 0)] * (len(tensor.shape) - 1) + [(0, columns)], np.int32)
    shape = (*tensor.shape[:-1], tensor.shape[-1] + columns)
    return to.emit("PAD", [tensor, to.constant(amounts, name="padding")], shape)


def matrix(to: Program, codes: np.ndarray, scales: np.ndarray, block: int) -> Tensor:
    """Give a constant of int4, codes: [N, K], scales: [N, K / block], which are rounded to float16."""
    halves = scales.astype(np.float16)
    if not np.isfinite(halves).all():
        to.refuse("a scale that float16 does not hold")
    small = np.repeat(halves < _LEAST, block, axis=1)
    if small.any():  # as near as the smallest scale comes
        exact = np.repeat(scales, block, axis=1).astype(np.float64) * codes
        codes = np.where(small, np.rint(exact / float(_LEAST)), codes).astype(np.int8)
    held = to.constant(np.maximum(halves, _LEAST), name="scales")
    return Tensor(to.name("weight"), "int4", codes.shape, codes.astype(np.int8), blocks=Blocks(held, block))
