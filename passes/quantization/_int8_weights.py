"""Weights and biases as integers: a scale per output channel, zero at 0."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ._qdq import spread

#: The smallest scale of a weight and of an activation: the product of two is a normal float32.
SMALLEST = 2.0**-62

#: A bias may reach this many of its steps, half of what int32 holds, so that products can be added to it.
_BIAS_STEPS = 2.0**30


@dataclass(frozen=True)
class Operands:
    """The constants of a multiplication with its alpha and beta multiplied in.

    weight: float32; axis: where its output channels are, None where one scale has to do for all.
    bias: [channels] float32, or None where there is none, or where it stays as it is.
    """

    weight: np.ndarray
    axis: int | None
    bias: np.ndarray | None


def read(node: ir.Node, index: int) -> Operands | str:
    """Read the constants of ``node``, whose weight is operand ``index``; or say why they cannot be integers."""
    source, weight = node.inputs[index], _array(node.inputs[index])
    if source is None or weight is None:
        return "its weight is not constant"
    if weight.dtype != np.float32:
        return f"its weight is {weight.dtype}, not float32"
    if source.is_graph_output():
        return "its weight is an output of the graph"
    if not weight.size:
        return "its weight has no elements"
    with np.errstate(over="ignore"):
        weight = weight * np.float32(_float(node, "alpha", 1.0))
    if not np.isfinite(weight).all():
        return "its weight holds NaN or infinity"
    axis = output_axis(node, index, weight.ndim)
    bias = _bias(node, weight.shape[axis]) if axis is not None else None
    return bias if isinstance(bias, str) else Operands(weight, axis, bias)


def _bias(node: ir.Node, channels: int) -> np.ndarray | str | None:
    value = node.inputs[2] if len(node.inputs) > 2 and node.op_type != "ConvTranspose" else None
    if value is None:
        return None
    bias = _array(value)
    if bias is None:
        return "its bias is not constant"
    if bias.dtype != np.float32:
        return f"its bias is {bias.dtype}, not float32"
    if bias.size != 1 and not bias.size == channels == bias.shape[-1]:
        return f"its bias is not one number for each of the {channels} channels"
    with np.errstate(over="ignore"):
        bias = np.broadcast_to(bias.reshape(-1) * np.float32(_float(node, "beta", 1.0)), channels)
    return bias if np.isfinite(bias).all() else "its bias holds NaN or infinity"


def output_axis(node: ir.Node, index: int, rank: int) -> int | None:
    """Give the axis of the weight along which the outputs of ``node`` differ; None where one scale has to do."""
    match node.op_type:
        case "Conv":
            return 0
        case "ConvTranspose":
            return 1
        case "Gemm":
            return 0 if _int(node, "transB", 0) else 1
        case _:
            return 1 if rank == 2 and index == 1 else None


def weight_scale(weight: np.ndarray, axis: int | None, top: int, least: np.ndarray | float = SMALLEST) -> np.ndarray:
    """Give the scale, [channels] or [] float32, at which the largest |weight| of a channel is the code ``top``.

    least: what no scale is smaller than.
    """
    others = tuple(a for a in range(weight.ndim) if a != axis) if axis is not None else None
    largest: np.ndarray = np.abs(weight).max(axis=others)
    return np.maximum(largest / top, least).astype(np.float32)


def least_scale(bias: np.ndarray | None, input_scale: float) -> np.ndarray | float:
    """Give the smallest scale, of each channel, at which its bias fits int32."""
    if bias is None:
        return SMALLEST
    return np.maximum(np.abs(bias.astype(np.float64)) / (_BIAS_STEPS * input_scale), SMALLEST)


def codes(array: np.ndarray, scale: np.ndarray, axis: int | None, top: int, dtype: type[np.integer]) -> np.ndarray:
    """Round ``array`` to the nearest codes in -top..top."""
    steps = np.rint(array.astype(np.float64) / spread(scale, axis, array.ndim).astype(np.float64))
    return np.clip(steps, -top, top).astype(dtype)


def _array(value: ir.Value | None) -> np.ndarray | None:
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None or tensor.dtype == ir.DataType.STRING else tensor.numpy()


def _float(node: ir.Node, name: str, default: float) -> float:
    return node.attributes[name].as_float() if name in node.attributes else default


def _int(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default
