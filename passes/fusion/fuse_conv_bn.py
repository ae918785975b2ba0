"""Fold the batch normalisation, or the constant scale and shift, that follows a convolution into its weight."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from polycast.passbase import Numerics, Pass, PassContext

from ._match import constant, exchange, nodes, producer, remove_dead, take_over, used_once

_LINEAR = ("Conv", "ConvTranspose", "Gemm")


@dataclass(frozen=True)
class FuseConvBn(Pass):
    """Fold ``BatchNormalization(Conv(x, w, b))``, or a constant Mul, Div, Add or Sub there, into ``Conv(x, w', b')``.

    w: [M, C / group, ...], b: [M]; the constants are per output channel. ConvTranspose and Gemm are folded alike. The
    new weight is computed in float64 and rounded once; a weight with other readers is copied, not changed.
    Source: Jacob et al. 2018, arXiv:1712.05877, section 3.2; ONNX BatchNormalization, opset 15.
    """

    numerics = Numerics.ROUNDING

    def rewrite(self, graph: ir.Model, ctx: PassContext) -> int:
        """Fold everything that can be folded; what follows a convolution and cannot is skipped with the reason."""
        sites = 0
        for node in nodes(graph, "BatchNormalization", "Mul", "Div", "Add", "Sub"):
            linear = next((n for n in (producer(v, *_LINEAR) for v in node.inputs) if n is not None), None)
            reason = _fold(linear, node) if linear is not None else _unfounded(node)
            sites += reason == ""
            if reason:
                ctx.skip(node, reason)
        return sites


@dataclass(frozen=True)
class _Affine:
    """``y = x * scale + shift``; both float64."""

    scale: np.ndarray
    shift: np.ndarray


_ONE, _ZERO = np.ones(1), np.zeros(1)


def _unfounded(node: ir.Node) -> str | None:
    if node.op_type != "BatchNormalization":
        return None
    maker = node.inputs[0].producer() if node.inputs[0] is not None else None
    return f"it follows {maker.op_type if maker is not None else 'an input'}, not a convolution"


def _fold(linear: ir.Node, node: ir.Node) -> str | None:
    """Fold ``node`` into ``linear``: "" where that was done, the reason where not, None where there is nothing."""
    value, weight = linear.outputs[0], constant(linear.inputs[1])
    bias_value = linear.inputs[2] if len(linear.inputs) > 2 else None
    bias = constant(bias_value)
    affine = _batch_norm(node) if node.op_type == "BatchNormalization" else _elementwise(node, value)
    if affine is None or isinstance(affine, str):
        return affine
    if weight is None or (bias is None and bias_value is not None):
        return f"the weight or the bias of the {linear.op_type} is not constant"
    if not used_once(value):
        return f"the output of the {linear.op_type} is read elsewhere too"
    channels = _channels(linear, weight)
    if node.op_type != "BatchNormalization":
        scale, shift = (_per_channel(a, channels, weight.ndim) for a in (affine.scale, affine.shift))
        if scale is None or shift is None:
            return f"its constant is not one number for each of the {channels} channels"
        affine = _Affine(scale, shift)
    old_bias = _per_channel(_bias(linear, bias), channels, 2)
    if old_bias is None:
        return "the bias of the Gemm is not one number per channel"
    with np.errstate(over="ignore"):
        new_weight = _scaled(linear, weight, np.broadcast_to(affine.scale, channels)).astype(weight.dtype)
        new_bias = np.broadcast_to(old_bias * affine.scale + affine.shift, channels).astype(weight.dtype)
    if not (np.isfinite(new_weight).all() and np.isfinite(new_bias).all()):
        return f"the folded weight does not fit {weight.dtype}"
    if (affine.scale != 1).any():
        exchange(linear, 1, new_weight, f"{node.outputs[0].name}.weight")
    exchange(linear, 2, new_bias, f"{node.outputs[0].name}.bias")
    linear.attributes.pop("beta", None)
    take_over(node.outputs[0], value)
    remove_dead(node)
    return ""


def _batch_norm(node: ir.Node) -> _Affine | str:
    training = node.attributes.get("training_mode")
    if training is not None and training.as_int():
        return "training_mode is 1"
    parameters = [constant(v) for v in node.inputs[1:5]]
    if any(p is None for p in parameters):
        return "its scale, bias, mean or variance is not constant"
    scale, bias, mean, variance = (p.astype(np.float64) for p in parameters if p is not None)
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    if (variance + epsilon <= 0).any():
        return "its variance plus epsilon is not positive"
    factor = scale / np.sqrt(variance + epsilon)
    return _Affine(factor, bias - mean * factor)


def _elementwise(node: ir.Node, value: ir.Value) -> _Affine | None:
    """Read ``node`` as a scale or a shift of ``value`` by a constant, which still has the shape it is written in."""
    a, b = node.inputs
    array = constant(b if a is value else a)
    if array is None:
        return None
    number = array.astype(np.float64)
    match node.op_type:
        case "Mul":
            return _Affine(number, _ZERO)
        case "Add":
            return _Affine(_ONE, number)
        case "Sub":
            return _Affine(_ONE, -number) if a is value else _Affine(-_ONE, number)
        case _:
            return _Affine(1 / number, _ZERO) if a is value and number.all() else None


def _per_channel(array: np.ndarray, channels: int, rank: int) -> np.ndarray | None:
    """Give ``array`` as [channels] or [1], where broadcast to ``rank`` axes it varies along the channels only."""
    dims = (1,) * (rank - array.ndim) + array.shape
    one_each = len(dims) == rank and dims[1] in (1, channels) and array.size == dims[1]
    return array.reshape(-1) if one_each else None


def _channels(linear: ir.Node, weight: np.ndarray) -> int:
    match linear.op_type:
        case "Conv":
            return int(weight.shape[0])
        case "ConvTranspose":
            return int(weight.shape[1]) * _int(linear, "group", 1)
        case _:
            return int(weight.shape[0 if _int(linear, "transB", 0) else 1])


def _bias(linear: ir.Node, bias: np.ndarray | None) -> np.ndarray:
    beta = linear.attributes["beta"].as_float() if "beta" in linear.attributes else 1.0
    return np.zeros(1) if bias is None else bias.astype(np.float64) * beta


def _scaled(linear: ir.Node, weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Multiply what makes output channel m with ``scale[m]``, in float64."""
    tail = (1,) * (weight.ndim - 2)
    match linear.op_type:
        case "Conv":
            factor = scale.reshape(-1, 1, *tail)
        case "ConvTranspose":
            # [C, M / group, ...]: a group of input channels meets its own group of output channels.
            groups = _int(linear, "group", 1)
            factor = np.repeat(scale.reshape(groups, -1), weight.shape[0] // groups, axis=0)
            factor = factor.reshape(*weight.shape[:2], *tail)
        case _:
            factor = scale[:, None] if _int(linear, "transB", 0) else scale
    wide: np.ndarray = np.multiply(weight, factor, dtype=np.float64)
    return wide


def _int(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default
