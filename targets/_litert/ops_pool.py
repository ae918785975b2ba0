"""Pools: MAX_POOL_2D, AVERAGE_POOL_2D, and MEAN where one window is all there is."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from ._attributes import integer, integers
from .layout import channels_last
from .ops_conv import pad
from .program import Program
from .registry import converts
from .tensors import Tensor
from .windows import SAME, VALID, Window, window


@converts("GlobalAveragePool", codes="any")
def global_average_pool(node: ir.Node, to: Program) -> None:
    """Write x: [N, C, *spatial] -> [N, C, 1, …]."""
    _mean(node, to)


@converts("GlobalMaxPool", codes="moves")
def global_max_pool(node: ir.Node, to: Program) -> None:
    """Write x: [N, C, *spatial] -> [N, C, 1, …]."""
    x = node.inputs[0]
    assert x is not None
    _reduce(node, to, "REDUCE_MAX", x)


def _mean(node: ir.Node, to: Program) -> None:
    x = node.inputs[0]
    assert x is not None
    _reduce(node, to, "MEAN", x)


def _reduce(node: ir.Node, to: Program, kind: str, x: ir.Value) -> None:
    rank = len(to.shape(x))
    tensor = to.read(x, channels_last(rank))
    axes = tuple(range(1, rank - 1))
    shape = (tensor.shape[0], *(1 for _ in axes), tensor.shape[-1])
    y = to.emit(kind, [tensor, to.ints(axes)], shape, keepDims=True)
    to.give(node.outputs[0], y, channels_last(rank))


@converts("MaxPool", fuses=True, codes="moves")
def max_pool(node: ir.Node, to: Program) -> None:
    """Write the largest of each window."""
    if len(node.outputs) > 1 and node.outputs[1].uses():
        to.refuse("it gives indices")
    tensor, slides, padding = _read(node, to)
    if slides.dilation != (1, 1):
        to.refuse("its window is dilated")
    if padding is None:
        tensor, padding = _pad_with_least(to, tensor, slides), VALID
    _give(node, to, "MAX_POOL_2D", tensor, slides, padding)


@converts("AveragePool", fuses=True, codes="same")
def average_pool(node: ir.Node, to: Program) -> None:
    """Write the mean of each window, with or without the zeros around it."""
    x = node.inputs[0]
    assert x is not None
    tensor, slides, padding = _read(node, to)
    if slides.dilation != (1, 1):
        to.refuse("its window is dilated")
    if not slides.padded and slides.kernel == tensor.shape[1:3]:
        if to.integer:
            to.grid = to.ends[node.outputs[0]].grid  # the mean may have any grid
        _mean(node, to)
        return
    counts_zeros = bool(integer(node, "count_include_pad", 0))
    if slides.padded and (counts_zeros or padding != SAME):
        _check_overhang(node, to, slides, counts_zeros)
        if not counts_zeros:
            _average_of_inside(node, to, tensor, slides)
            return
        tensor, padding = pad(to, tensor, slides), VALID
    assert padding is not None
    _give(node, to, "AVERAGE_POOL_2D", tensor, slides, padding)


def _check_overhang(node: ir.Node, to: Program, slides: Window, counts_zeros: bool) -> None:
    """With ceil_mode, a window may reach past the padding, and what lies there is not counted."""
    declared = integers(node, "pads", (0,) * 4)
    declared = (0,) * (2 - len(declared) // 2) + declared[len(declared) // 2 :]
    if (
        counts_zeros
        and integer(node, "ceil_mode", 0)
        and any(a > d for a, d in zip(slides.after, declared, strict=True))
    ):
        to.refuse("its last window reaches past the padding that it counts")


def _average_of_inside(node: ir.Node, to: Program, tensor: Tensor, slides: Window) -> None:
    """Average with the zeros, and then correct by how many they were."""
    if to.integer:
        to.refuse("its padding is uneven")
    inside = np.ones((1, *tensor.shape[1:3], 1), np.float32)
    padded = pad(to, tensor, slides)
    shape = _shape(to, node, tensor)
    share = _counts(inside, slides, shape)
    mean = to.emit("AVERAGE_POOL_2D", [padded], shape, **_options(slides, VALID), fusedActivationFunction=0)
    scaled = to.emit("MUL", [mean, to.constant(share, "shares")], shape, fusedActivationFunction=to.activation)
    _give_image(node, to, scaled)


def _counts(inside: np.ndarray, slides: Window, shape: tuple[int, ...]) -> np.ndarray:
    """Give what to multiply each mean by: the size of the window over how many of its elements are inside."""
    around = [(0, 0), *zip(slides.before, slides.after, strict=True), (0, 0)]
    padded = np.pad(inside, around)[0, :, :, 0]
    windows = np.lib.stride_tricks.sliding_window_view(padded, slides.kernel)
    counts = windows[:: slides.stride[0], :: slides.stride[1]].sum(axis=(2, 3))[: shape[1], : shape[2]]
    share: np.ndarray = (np.float32(np.prod(slides.kernel)) / counts).astype(np.float32)
    return share[None, :, :, None]


def _read(node: ir.Node, to: Program) -> tuple[Tensor, Window, int | None]:
    x = node.inputs[0]
    assert x is not None
    shape, result = to.shape(x), to.shape(node.outputs[0])
    if len(shape) not in (3, 4):
        to.refuse(f"a pool over {len(shape) - 2} axes")
    slides = window(node, integers(node, "kernel_shape", ()), shape[2:], result[2:], not to.open_dims)
    padding = slides.padding(shape[2:], result[2:])
    tensor = to.read(x, channels_last(len(shape)))
    if len(shape) == 4:
        return tensor, slides, padding
    least, tensor = tensor.least, to.reshaped(tensor, (tensor.shape[0], 1, *tensor.shape[1:]))
    tensor.least = least
    return tensor, slides.lifted, padding


def _pad_with_least(to: Program, tensor: Tensor, slides: Window) -> Tensor:
    """Put what no maximum is around ``tensor``: zeros where nothing is less, for which there is a faster operator."""
    least = tensor.least is not None and tensor.least >= 0
    if least or (tensor.grid is not None and tensor.grid.zero == -128):
        return pad(to, tensor, slides)
    amounts = [(0, 0), *zip(slides.before, slides.after, strict=True), (0, 0)]
    shape = [size + sum(amount) for size, amount in zip(tensor.shape, amounts, strict=True)]
    padding = to.constant(np.array(amounts, np.int32), "padding")
    if tensor.grid is not None:
        lowest = to.constant(np.array([-128], np.int8), tensor.grid, "lowest")
    else:
        lowest = to.constant(np.array([np.finfo(np.float32).min], np.float32), "lowest")
    return to.emit("PADV2", [tensor, padding, lowest], shape, grid=tensor.grid)


def _shape(to: Program, node: ir.Node, tensor: Tensor) -> tuple[int, ...]:
    """Give the shape of the result as an image: a sequence is one of one row."""
    size = to.shape(node.outputs[0])[2:]
    return (tensor.shape[0], *(1,) * (2 - len(size)), *size, tensor.shape[3])


def _options(slides: Window, padding: int) -> dict[str, Any]:
    return {
        "padding": padding,
        "strideH": slides.stride[0],
        "strideW": slides.stride[1],
        "filterHeight": slides.kernel[0],
        "filterWidth": slides.kernel[1],
    }


def _give(node: ir.Node, to: Program, kind: str, tensor: Tensor, slides: Window, padding: int) -> None:
    shape = _shape(to, node, tensor)
    options = _options(slides, padding)
    y = to.emit(kind, [tensor], shape, **options, fusedActivationFunction=to.activation)
    if kind == "MAX_POOL_2D":
        y.least = tensor.least
    _give_image(node, to, y)


def _give_image(node: ir.Node, to: Program, y: Tensor) -> None:
    rank = len(to.shape(node.outputs[0]))
    to.give(node.outputs[0], y if rank == 4 else to.reshaped(y, (y.shape[0], *y.shape[2:])), channels_last(rank))
