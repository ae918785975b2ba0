"""Resizing images: RESIZE_BILINEAR and RESIZE_NEAREST_NEIGHBOR, or GATHER where those pick other pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from ._attributes import integer, integers, operand, text
from .layout import NHWC
from .program import Program
from .registry import Codes, converts
from .tensors import Tensor


def _codes(node: ir.Node) -> Codes:
    """Picking gives codes that it reads; interpolating makes new ones."""
    return "same" if text(node, "mode", "nearest") == "linear" else "moves"


@converts("Resize", codes=_codes)
def resize(node: ir.Node, to: Program) -> None:
    """Write x: [N, C, H, W] -> [N, C, H', W']."""
    x = node.inputs[0]
    assert x is not None
    shape, result = to.shape(x), to.shape(node.outputs[0])
    if len(shape) != 4 or shape[:2] != result[:2]:
        to.refuse("it resizes other axes than the last two of four")
    scales = _scales(node, to, shape, result)
    match text(node, "mode", "nearest"):
        case "nearest":
            given = _nearest(node, to, to.read(x, NHWC), result, scales)
        case "linear":
            given = _linear(node, to, to.read(x, NHWC), result, scales)
        case mode:
            to.refuse(f"there is no {mode} interpolation")
    given.least = to.read(x, NHWC).least
    to.give(node.outputs[0], given, NHWC)


def _scales(node: ir.Node, to: Program, shape: tuple[int, ...], result: tuple[int, ...]) -> tuple[float, float]:
    """Give the scales of the two axes as ONNX computes coordinates with them."""
    scales, sizes = (to.array(operand(node, at)) for at in (2, 3))
    axes = [axis % len(shape) for axis in integers(node, "axes", range(len(shape)))]
    if operand(node, 2) is not None and scales is None:
        to.refuse("its scales are not constant")
    if scales is None or not scales.size:
        policy = text(node, "keep_aspect_ratio_policy", "stretch")
        if policy == "stretch":
            return result[2] / shape[2], result[3] / shape[3]
        if sizes is None:
            to.refuse("its sizes are not constant")
        ratios = [size / shape[axis] for axis, size in zip(axes, sizes.tolist(), strict=True)]
        scales = np.full(len(axes), min(ratios) if policy == "not_larger" else max(ratios))
    by_axis = dict(zip(axes, map(float, scales), strict=True))
    return by_axis.get(2, 1.0), by_axis.get(3, 1.0)


def _coordinates(node: ir.Node, to: Program, size: int, result: int, scale: float) -> np.ndarray:
    """Give where each pixel of the result lies among the pixels of the operand, as ONNX defines it."""
    at = np.arange(result, dtype=np.float32)
    match text(node, "coordinate_transformation_mode", "half_pixel"):
        case "half_pixel":
            return (at + np.float32(0.5)) / np.float32(scale) - np.float32(0.5)
        case "pytorch_half_pixel":
            return (at + np.float32(0.5)) / np.float32(scale) - np.float32(0.5) if result > 1 else at * 0
        case "asymmetric":
            return at / np.float32(scale)
        case "align_corners":
            reach = scale * size - 1  # of the result before it is cut to whole pixels
            return at * np.float32((size - 1) / reach) if reach > 0 else at * 0
        case mode:
            return to.refuse(f"there is no coordinate mode {mode}")


def _nearest(
    node: ir.Node, to: Program, tensor: Tensor, result: tuple[int, ...], scales: tuple[float, float]
) -> Tensor:
    picked = [
        _picked(node, to, size, out, scale)
        for size, out, scale in zip(tensor.shape[1:3], result[2:], scales, strict=True)
    ]
    if (tensor.dtype == "float32" or tensor.grid is not None) and all(
        np.array_equal(rows, np.repeat(np.arange(size), 2))
        for rows, size in zip(picked, tensor.shape[1:3], strict=True)
    ):
        return _doubled(to, tensor)
    shape = (tensor.shape[0], *result[2:], tensor.shape[3])
    for corners, half in ((False, False), (False, True), (True, False)):
        if all(
            np.array_equal(_picked_by_litert(size, out, corners, half), want)
            for size, out, want in zip(tensor.shape[1:3], result[2:], picked, strict=True)
        ):
            size = to.ints(result[2:])
            options: dict[str, Any] = {"alignCorners": corners, "halfPixelCenters": half}
            return to.emit("RESIZE_NEAREST_NEIGHBOR", [tensor, size], shape, grid=tensor.grid, **options)
    for axis, rows in zip((1, 2), picked, strict=True):
        sizes = (*tensor.shape[:axis], len(rows), *tensor.shape[axis + 1 :])
        tensor = to.emit("GATHER", [tensor, to.ints(rows.tolist())], sizes, grid=tensor.grid, axis=axis)
    return tensor


def _doubled(to: Program, tensor: Tensor) -> Tensor:
    """Write each pixel four times, of channels that are: XNNPACK takes it, and no RESIZE_NEAREST_NEIGHBOR."""
    n, height, width, channels = tensor.shape
    wide = to.emit("CONCATENATION", [tensor] * 4, (n, height, width, 4 * channels), grid=tensor.grid, axis=3)
    doubled = (n, 2 * height, 2 * width, channels)
    return to.emit("DEPTH_TO_SPACE", [wide], doubled, grid=tensor.grid, blockSize=2)


def _picked(node: ir.Node, to: Program, size: int, result: int, scale: float) -> np.ndarray:
    """Give which pixel of the operand each pixel of the result is."""
    at = _coordinates(node, to, size, result, scale)
    match text(node, "nearest_mode", "round_prefer_floor"):
        case "round_prefer_floor":
            found = np.ceil(at - np.float32(0.5))
        case "round_prefer_ceil":
            found = np.floor(at + np.float32(0.5))
        case "floor":
            found = np.floor(at)
        case _:
            found = np.ceil(at)
    places: np.ndarray = np.clip(found, 0, size - 1).astype(np.int32)
    return places


def _picked_by_litert(size: int, result: int, corners: bool, half: bool) -> np.ndarray:
    """Give which pixels RESIZE_NEAREST_NEIGHBOR picks.

    Source: TensorFlow Lite, reference/resize_nearest_neighbor.h, GetNearestNeighbor.
    """
    at = np.arange(result, dtype=np.float32)
    scale = np.float32((size - 1) / (result - 1)) if corners and result > 1 else np.float32(size) / np.float32(result)
    moved = (at + np.float32(0.5 if half else 0.0)) * scale
    # The runtime rounds halves away from zero, which is up, for no coordinate is negative.
    found = np.floor(moved + np.float32(0.5)) if corners else np.floor(moved)
    places: np.ndarray = np.clip(found, 0, size - 1).astype(np.int32)
    return places


def _linear(node: ir.Node, to: Program, tensor: Tensor, result: tuple[int, ...], scales: tuple[float, float]) -> Tensor:
    if integer(node, "antialias", 0):
        to.refuse("it smooths before it shrinks")
    wanted = [
        _coordinates(node, to, size, out, scale).clip(0, size - 1)
        for size, out, scale in zip(tensor.shape[1:3], result[2:], scales, strict=True)
    ]
    shape = (tensor.shape[0], *result[2:], tensor.shape[3])
    for corners, half in ((False, True), (True, False), (False, False)):
        found = [
            _coordinates_of_litert(size, out, corners, half).clip(0, size - 1)
            for size, out in zip(tensor.shape[1:3], result[2:], strict=True)
        ]
        if all(np.allclose(f, w, rtol=0, atol=_NEAR * max(tensor.shape)) for f, w in zip(found, wanted, strict=True)):
            size = to.ints(result[2:])
            options: dict[str, Any] = {"alignCorners": corners, "halfPixelCenters": half}
            return to.emit("RESIZE_BILINEAR", [tensor, size], shape, grid=tensor.grid, **options)
    return to.refuse("its coordinates are none that RESIZE_BILINEAR has")


#: Coordinates that differ by no more than this, for each pixel of the image, differ by rounding.
_NEAR = 4 * float(np.finfo(np.float32).eps)


def _coordinates_of_litert(size: int, result: int, corners: bool, half: bool) -> np.ndarray:
    """Give where RESIZE_BILINEAR reads. Source: TensorFlow Lite, reference/resize_bilinear.h."""
    at = np.arange(result, dtype=np.float32)
    scale = np.float32((size - 1) / (result - 1)) if corners and result > 1 else np.float32(size) / np.float32(result)
    return (at + np.float32(0.5)) * scale - np.float32(0.5) if half else at * scale
