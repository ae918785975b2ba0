"""Padding, and moving pixels between space and depth."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ._attributes import integer, operand, text
from .layout import NHWC
from .program import Program
from .registry import converts
from .tensors import Tensor


@converts("Pad", codes="moves")
def pad(node: ir.Node, to: Program) -> None:
    """Write PAD or PADV2 for a constant, MIRROR_PAD for a reflection; a negative padding is a SLICE."""
    x = node.inputs[0]
    assert x is not None
    rank = len(to.shape(x))
    amounts = _amounts(node, to, rank)
    order = to.common_order([x], rank)
    tensor = to.read(x, order)
    tensor = _cropped(to, tensor, [amounts[axis] for axis in order])
    around = [(max(b, 0), max(a, 0)) for b, a in (amounts[axis] for axis in order)]
    if any(map(any, around)):
        tensor = _padded(node, to, tensor, around)
    to.give(node.outputs[0], tensor, order)


def _amounts(node: ir.Node, to: Program, rank: int) -> list[tuple[int, int]]:
    pads, axes = to.array(operand(node, 1)), to.array(operand(node, 3))
    if pads is None or (axes is None and operand(node, 3) is not None):
        to.refuse("how much it pads is not constant")
    amounts = [(0, 0)] * rank
    half = len(pads) // 2
    for at, axis in enumerate(axes.tolist() if axes is not None else range(rank)):
        amounts[axis % rank] = (int(pads[at]), int(pads[half + at]))
    return amounts


def _cropped(to: Program, tensor: Tensor, amounts: list[tuple[int, int]]) -> Tensor:
    begin = [max(-before, 0) for before, _ in amounts]
    sizes = [n - b - max(-after, 0) for n, b, (_, after) in zip(tensor.shape, begin, amounts, strict=True)]
    if tuple(sizes) == tensor.shape:
        return tensor
    return to.emit("SLICE", [tensor, to.ints(begin), to.ints(sizes)], sizes, grid=tensor.grid)


def _padded(node: ir.Node, to: Program, tensor: Tensor, around: list[tuple[int, int]]) -> Tensor:
    shape = [n + before + after for n, (before, after) in zip(tensor.shape, around, strict=True)]
    padding = to.constant(np.array(around, np.int32), "padding")
    mode = text(node, "mode", "constant")
    if mode == "reflect":
        return to.emit("MIRROR_PAD", [tensor, padding], shape, grid=tensor.grid, mode=0)
    if mode != "constant":
        to.refuse(f"there is no padding by {mode}")
    value = operand(node, 2)
    number = to.array(value)
    if value is not None and number is None:
        to.refuse("what it pads with is not constant")
    if number is None or not number.any():
        return to.emit("PAD", [tensor, padding], shape, grid=tensor.grid)
    if tensor.grid is not None:
        code = np.rint(float(number.reshape(())) / tensor.grid.scale[0]) + tensor.grid.zero
        filler = to.constant(np.clip(code, -128, 127).astype(np.int8).reshape(1), tensor.grid, "filler")
    else:
        filler = to.constant(number.reshape(1).astype(tensor.dtype), "filler")
    return to.emit("PADV2", [tensor, padding, filler], shape, grid=tensor.grid)


@converts("DepthToSpace", codes="moves")
def depth_to_space(node: ir.Node, to: Program) -> None:
    """Write DEPTH_TO_SPACE, whose depth is block, block, channels; in CRD channels come first, and are moved."""
    x = node.inputs[0]
    assert x is not None
    block = integer(node, "blocksize", 0)
    shape = to.shape(x)
    channels = shape[1] // block**2
    tensor = to.read(x, NHWC)
    if text(node, "mode", "DCR") == "CRD" and channels > 1:
        tensor = _depth(to, tensor, np.arange(shape[1]).reshape(channels, block * block).T)
    sizes = (shape[0], shape[2] * block, shape[3] * block, channels)
    given = to.emit("DEPTH_TO_SPACE", [tensor], sizes, grid=tensor.grid, blockSize=block)
    given.least = tensor.least
    to.give(node.outputs[0], given, NHWC)


@converts("SpaceToDepth", codes="moves")
def space_to_depth(node: ir.Node, to: Program) -> None:
    """Write SPACE_TO_DEPTH, whose depth is block, block, channels; in CRD channels come first, and are moved."""
    x = node.inputs[0]
    assert x is not None
    block = integer(node, "blocksize", 0)
    n, channels, height, width = to.shape(x)
    tensor = to.read(x, NHWC)
    sizes = (n, height // block, width // block, channels * block**2)
    given = to.emit("SPACE_TO_DEPTH", [tensor], sizes, blockSize=block)
    if text(node, "mode", "DCR") == "CRD" and channels > 1:
        given = _depth(to, given, np.arange(sizes[3]).reshape(block * block, channels).T)
    given.least = tensor.least
    to.give(node.outputs[0], given, NHWC)


def _depth(to: Program, tensor: Tensor, permutation: np.ndarray) -> Tensor:
    """Put the channels of ``tensor``: [N, H, W, C] into another order."""
    places = to.ints(permutation.reshape(-1).tolist())
    return to.emit("GATHER", [tensor, places], tensor.shape, axis=3)
