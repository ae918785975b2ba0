"""Normalizations, as their parts: LiteRT has no operator for any of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ._attributes import integer, number, operand
from .layout import Order, channels_last
from .program import Program
from .registry import converts
from .tensors import Tensor


@converts("LayerNormalization")
def layer_normalization(node: ir.Node, to: Program) -> None:
    """Write ``(x - mean) / sqrt(variance + epsilon) * scale + bias`` over the axes from ``axis`` on."""
    x, scale, bias = node.inputs[0], node.inputs[1], operand(node, 2)
    assert x is not None and scale is not None
    rank = len(to.shape(x))
    order = to.common_order([x], rank)
    axes = range(integer(node, "axis", -1) % rank, rank)
    y, mean, inverse = _standardized(to, to.read(x, order), _places(order, axes), number(node, "epsilon", 1e-5))
    y = _scaled(to, y, scale, bias, order)
    for value, tensor in zip(node.outputs, (y, mean, inverse), strict=False):
        to.give(value, tensor, order)


@converts("RMSNormalization", "SimplifiedLayerNormalization")
def rms_normalization(node: ir.Node, to: Program) -> None:
    """Write ``x / sqrt(mean(x * x) + epsilon) * scale`` over the axes from ``axis`` on."""
    x, scale = node.inputs[0], node.inputs[1]
    assert x is not None and scale is not None
    rank = len(to.shape(x))
    order = to.common_order([x], rank)
    tensor = to.read(x, order)
    squares = to.emit("MUL", [tensor, tensor], tensor.shape)
    mean = _mean(to, squares, _places(order, range(integer(node, "axis", -1) % rank, rank)))
    inverse = _inverse_root(to, mean, number(node, "epsilon", 1e-5))
    y = to.emit("MUL", [tensor, inverse], tensor.shape)
    to.give(node.outputs[0], _scaled(to, y, scale, None, order), order)


@converts("InstanceNormalization")
def instance_normalization(node: ir.Node, to: Program) -> None:
    """Write what normalizes each channel of each sample, x: [N, C, *spatial]; scale, bias: [C]."""
    x = node.inputs[0]
    assert x is not None
    order = channels_last(len(to.shape(x)))
    tensor = to.read(x, order)
    y, *_ = _standardized(to, tensor, range(1, len(order) - 1), number(node, "epsilon", 1e-5))
    scale, bias = (to.read(v) for v in node.inputs[1:3] if v is not None)
    y = to.emit("ADD", [to.emit("MUL", [y, scale], y.shape), bias], y.shape)
    to.give(node.outputs[0], y, order)


@converts("GroupNormalization")
def group_normalization(node: ir.Node, to: Program) -> None:
    """Write what normalizes each group of channels of each sample, x: [N, C, *spatial]; scale, bias: [C]."""
    x, groups = node.inputs[0], integer(node, "num_groups", 1)
    assert x is not None
    shape = to.shape(x)
    scale, bias = (to.read(v) for v in node.inputs[1:3] if v is not None)
    if scale.shape != (shape[1],):
        to.refuse("scales of groups, as before opset 21")
    parts = to.reshaped(to.read(x), (shape[0], groups, shape[1] // groups * int(np.prod(shape[2:]))))
    y, *_ = _standardized(to, parts, (2,), number(node, "epsilon", 1e-5))
    each = (1, shape[1], *(1 for _ in shape[2:]))
    y = to.emit("MUL", [to.reshaped(y, shape), to.reshaped(scale, each)], shape)
    to.give(node.outputs[0], to.emit("ADD", [y, to.reshaped(bias, each)], shape))


@converts("LpNormalization")
def lp_normalization(node: ir.Node, to: Program) -> None:
    """Write ``x / norm(x)`` along ``axis``."""
    x = node.inputs[0]
    assert x is not None
    order = to.common_order([x], len(to.shape(x)))
    tensor = to.read(x, order)
    axes = to.ints(_places(order, [integer(node, "axis", -1) % len(order)]))
    kept = tuple(1 if axis in axes.data.tolist() else size for axis, size in enumerate(tensor.shape))  # type: ignore[union-attr]
    if integer(node, "p", 2) == 1:
        norm = to.emit("SUM", [to.emit("ABS", [tensor], tensor.shape), axes], kept, keepDims=True)
    else:
        squares = to.emit("MUL", [tensor, tensor], tensor.shape)
        norm = to.emit("SQRT", [to.emit("SUM", [squares, axes], kept, keepDims=True)], kept)
    norm = to.emit("MAXIMUM", [norm, to.number(float(np.finfo(np.float32).tiny))], kept)  # what is 0 throughout stays 0
    to.give(node.outputs[0], to.emit("DIV", [tensor, norm], tensor.shape), order)


def _places(order: Order, axes: Sequence[int]) -> tuple[int, ...]:
    """Give where ``axes`` lie in ``order``."""
    return tuple(sorted(order.index(axis) for axis in axes))


def _standardized(to: Program, x: Tensor, axes: Sequence[int], epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """Give x with mean 0 and variance 1 over ``axes``, its mean, and one over its deviation."""
    mean = _mean(to, x, axes)
    centred = to.emit("SUB", [x, mean], x.shape)
    variance = _mean(to, to.emit("MUL", [centred, centred], x.shape), axes)
    inverse = _inverse_root(to, variance, epsilon)
    return to.emit("MUL", [centred, inverse], x.shape), mean, inverse


def _mean(to: Program, x: Tensor, axes: Sequence[int]) -> Tensor:
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))
    return to.emit("MEAN", [x, to.ints(axes)], kept, keepDims=True)


def _inverse_root(to: Program, x: Tensor, epsilon: float) -> Tensor:
    return to.emit("RSQRT", [to.emit("ADD", [x, to.number(epsilon)], x.shape)], x.shape)


def _scaled(to: Program, y: Tensor, scale: ir.Value, bias: ir.Value | None, order: Order) -> Tensor:
    y = to.emit("MUL", [y, to.read_broadcast(scale, order)], y.shape)
    return y if bias is None else to.emit("ADD", [y, to.read_broadcast(bias, order)], y.shape)
