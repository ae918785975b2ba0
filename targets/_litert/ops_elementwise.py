"""Operators on one element at a time: arithmetic and activations, in whatever layout their operands have."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from ._attributes import integer, number, operand
from .ends import FUSED, bounds, grid_of
from .program import Program
from .registry import Codes, converts
from .tensors import Tensor

_TWO = {"Add": "ADD", "Sub": "SUB", "Mul": "MUL", "Div": "DIV"}
_ONE = {
    "Abs": "ABS", "Ceil": "CEIL", "Cos": "COS", "Exp": "EXP", "Floor": "FLOOR", "Log": "LOG", "Neg": "NEG",
    "Relu": "RELU", "Round": "ROUND", "Sigmoid": "LOGISTIC", "Sign": "SIGN", "Sin": "SIN", "Sqrt": "SQRT",
    "Tanh": "TANH",
}  # fmt: skip


@converts("Add", "Mul", "Sub", fuses=True, codes="any")
@converts("Div", fuses=True)
def arithmetic(node: ir.Node, to: Program) -> None:
    """Write an operator of two operands, which broadcast."""
    _combine(node, to, _TWO[node.op_type], fusedActivationFunction=to.activation)


@converts("Max", "Min")
def extreme(node: ir.Node, to: Program) -> None:
    """Write the largest or smallest of any number of operands."""
    _combine(node, to, {"Max": "MAXIMUM", "Min": "MINIMUM"}[node.op_type])


@converts("Sum", fuses=True)
def total(node: ir.Node, to: Program) -> None:
    """Write the sum of any number of operands."""
    _combine(node, to, "ADD", fusedActivationFunction=to.activation)


@converts("Pow")
def power(node: ir.Node, to: Program) -> None:
    """Write ``x ** y``; a square and a root by operators of their own."""
    x, exponent = node.inputs[0], to.array(node.inputs[1])
    assert x is not None
    one = exponent is not None and exponent.size == 1 and exponent.ndim <= len(to.shape(x))
    kind = {2.0: "SQUARE", 0.5: "SQRT", -0.5: "RSQRT"}.get(float(exponent.reshape(()))) if one else None  # type: ignore[union-attr]
    if kind is not None and to.dtype(x) == "float32":
        _map(node, to, kind)
    else:
        _combine(node, to, "POW")


def _combine(node: ir.Node, to: Program, kind: str, **options: Any) -> None:
    values = [v for v in node.inputs if v is not None]
    shape = np.broadcast_shapes(*(to.shape(v) for v in values))
    order = to.common_order(values, len(shape))
    operands = [to.read_broadcast(v, order) for v in values]
    result = operands[0]
    for at, tensor in enumerate(operands[1:], 2):
        sizes = np.broadcast_shapes(result.shape, tensor.shape)
        last: dict[str, Any] = options if at == len(operands) or kind in ("MAXIMUM", "MINIMUM") else {}
        result = to.emit(kind, [result, tensor], sizes, **last)
    if len(operands) == 1:
        result = to.reshaped(result, result.shape)
    to.give(node.outputs[0], result, order)


@converts("Abs", "Ceil", "Cos", "Exp", "Floor", "Log", "Neg", "Round", "Sign", "Sin", "Sqrt")
@converts("Relu", codes="any")
def function(node: ir.Node, to: Program) -> None:
    """Write a function of one operand."""
    _map(node, to, _ONE[node.op_type])


def _map(node: ir.Node, to: Program, kind: str, **options: Any) -> None:
    tensor, order = _any(node, to)
    result = to.emit(kind, [tensor], tensor.shape, **options)
    result.least = _LEAST.get(kind)
    to.give(node.outputs[0], result, order)


#: What these operators give nothing less than.
_LEAST = {"ABS": 0.0, "EXP": 0.0, "LOGISTIC": 0.0, "RELU": 0.0, "RELU6": 0.0, "RELU_0_TO_1": 0.0, "SQRT": 0.0}


def _any(node: ir.Node, to: Program) -> tuple[Tensor, tuple[int, ...]]:
    """Read the first operand in the order in which it is at hand."""
    x = node.inputs[0]
    assert x is not None
    order = to.common_order([x], len(to.shape(x)))
    return to.read(x, order), order


@converts("Reciprocal")
def reciprocal(node: ir.Node, to: Program) -> None:
    """Write ``1 / x``."""
    tensor, order = _any(node, to)
    to.give(node.outputs[0], to.emit("DIV", [to.number(1.0), tensor], tensor.shape), order)


@converts("Identity", "Dropout", codes="moves")
def identity(node: ir.Node, to: Program) -> None:
    """Write nothing: the result is the operand."""
    training = operand(node, 2)
    if training is not None and (to.array(training) is None or to.array(training).any()):  # type: ignore[union-attr]
        to.refuse("it drops out as in training")
    if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        to.refuse("it gives a mask")
    tensor, order = _any(node, to)
    to.give(node.outputs[0], tensor, order)


def _clips_codes(node: ir.Node) -> Codes:
    return "any" if bounds(node) in FUSED else "none"


@converts("Clip", codes=_clips_codes)
def clip(node: ir.Node, to: Program) -> None:
    """Write a clamp; those that LiteRT has an operator for by that."""
    known = bounds(node)
    x = node.inputs[0]
    assert x is not None
    if known is not None and to.dtype(x) == "float32" and known in {**FUSED, (0.0, 1.0): ""}:
        _map(node, to, FUSED.get(known, "RELU_0_TO_1"))
        return
    tensor, order = _any(node, to)
    for value, kind in ((operand(node, 1), "MAXIMUM"), (operand(node, 2), "MINIMUM")):
        if value is not None:
            tensor = to.emit(kind, [tensor, to.read(value)], tensor.shape)
    if known is not None and known[0] <= known[1]:
        tensor.least = known[0]
    to.give(node.outputs[0], tensor, order)


#: LiteRT's kernels give these on one grid alone.
_OWN_SCALE = {"LOGISTIC": (1 / 256, -128), "TANH": (1 / 128, 0), "SOFTMAX": (1 / 256, -128)}


@converts("Sigmoid", "Tanh", codes="any")
def squash(node: ir.Node, to: Program) -> None:
    """Write a sigmoid or tanh."""
    kind = _ONE[node.op_type]
    tensor, order = _any(node, to)
    to.give(node.outputs[0], to.emit(kind, [tensor], tensor.shape, grid=to.fixed_grid(*_OWN_SCALE[kind])), order)


@converts("Softmax", codes="any")
def softmax(node: ir.Node, to: Program) -> None:
    """Write a softmax over one axis, which has to be the last of its tensor."""
    grid = to.fixed_grid(*_OWN_SCALE["SOFTMAX"])
    tensor, order = _axis_last(node, to)
    to.give(node.outputs[0], to.emit("SOFTMAX", [tensor], tensor.shape, grid=grid, beta=1.0), order)


@converts("LogSoftmax")
def log_softmax(node: ir.Node, to: Program) -> None:
    """Write the logarithm of a softmax."""
    tensor, order = _axis_last(node, to)
    to.give(node.outputs[0], to.emit("LOG_SOFTMAX", [tensor], tensor.shape), order)


def _axis_last(node: ir.Node, to: Program) -> tuple[Tensor, tuple[int, ...]]:
    x = node.inputs[0]
    assert x is not None
    rank = len(to.shape(x))
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
    wishes = [o for o in to.orders(x) if o[-1] == axis % rank]
    order = wishes[0] if wishes else (*(a for a in range(rank) if a != axis % rank), axis % rank)
    return to.read(x, order), order


@converts("LeakyRelu", codes="any")
def leaky_relu(node: ir.Node, to: Program) -> None:
    """Write ``max(x, 0) + alpha * min(x, 0)``."""
    _map(node, to, "LEAKY_RELU", alpha=number(node, "alpha", 0.01))


@converts("PRelu")
def prelu(node: ir.Node, to: Program) -> None:
    """Write a LeakyRelu with a slope for each channel; the slope broadcasts to x."""
    x, slope = node.inputs[0], node.inputs[1]
    assert x is not None and slope is not None
    rank = len(to.shape(x))
    order = to.common_order([x], rank)
    alpha = to.read_broadcast(slope, order)
    tensor = to.read(x, order)
    if alpha.data is not None and alpha.shape[:1] == (1,) and len(alpha.shape) == rank:
        alpha = to.constant(np.broadcast_to(alpha.data[0], (*alpha.shape[1:-1], tensor.shape[-1])), name=slope.name)
        if prod(alpha.shape[:-1]) == 1:
            to.give(node.outputs[0], to.emit("PRELU", [tensor, alpha], tensor.shape), order)
            return
    zero = to.number(0.0)
    above = to.emit("RELU", [tensor], tensor.shape)
    below = to.emit("MUL", [to.emit("MINIMUM", [tensor, zero], tensor.shape), alpha], tensor.shape)
    to.give(node.outputs[0], to.emit("ADD", [above, below], tensor.shape), order)


@converts("HardSwish")
def hard_swish(node: ir.Node, to: Program) -> None:
    """Write ``x * clip(x / 6 + 1 / 2, 0, 1)``."""
    _map(node, to, "HARD_SWISH")


@converts("HardSigmoid")
def hard_sigmoid(node: ir.Node, to: Program) -> None:
    """Write ``clip(alpha * x + beta, 0, 1)``."""
    tensor, order = _any(node, to)
    alpha, beta = number(node, "alpha", 0.2), number(node, "beta", 0.5)
    scaled = to.emit("MUL", [tensor, to.number(alpha)], tensor.shape)
    moved = to.emit("ADD", [scaled, to.number(beta)], tensor.shape)
    to.give(node.outputs[0], to.emit("RELU_0_TO_1", [moved], tensor.shape), order)


@converts("Elu")
def elu(node: ir.Node, to: Program) -> None:
    """Write ``x`` above 0 and ``alpha * (exp(x) - 1)`` below."""
    alpha = number(node, "alpha", 1.0)
    if alpha == 1.0:
        _map(node, to, "ELU")
    else:
        _above_and_below(node, to, 1.0, alpha, 1.0)


@converts("Selu")
def selu(node: ir.Node, to: Program) -> None:
    """Write ``gamma * x`` above 0 and ``gamma * alpha * (exp(x) - 1)`` below."""
    gamma, alpha = number(node, "gamma", 1.05070098), number(node, "alpha", 1.67326319)
    _above_and_below(node, to, gamma, gamma * alpha, 1.0)


@converts("Celu")
def celu(node: ir.Node, to: Program) -> None:
    """Write ``x`` above 0 and ``alpha * (exp(x / alpha) - 1)`` below."""
    alpha = number(node, "alpha", 1.0)
    _above_and_below(node, to, 1.0, alpha, alpha)


def _above_and_below(node: ir.Node, to: Program, above: float, below: float, width: float) -> None:
    """Write ``above * x`` above 0 and ``below * (exp(x / width) - 1)`` below."""
    tensor, order = _any(node, to)
    shape = tensor.shape
    right = to.emit("MUL", [to.emit("RELU", [tensor], shape), to.number(above)], shape)
    left = to.emit("MINIMUM", [tensor, to.number(0.0)], shape)
    left = to.emit("MUL", [left, to.number(1 / width)], shape) if width != 1.0 else left
    left = to.emit("MUL", [to.emit("ELU", [left], shape), to.number(below)], shape)
    to.give(node.outputs[0], to.emit("ADD", [right, left], shape), order)


@converts("Softplus")
def softplus(node: ir.Node, to: Program) -> None:
    """Write ``log(1 + exp(x))``."""
    tensor, order = _any(node, to)
    to.give(node.outputs[0], _softplus(to, tensor), order)


@converts("Mish")
def mish(node: ir.Node, to: Program) -> None:
    """Write ``x * tanh(log(1 + exp(x)))``."""
    tensor, order = _any(node, to)
    bent = to.emit("TANH", [_softplus(to, tensor)], tensor.shape)
    to.give(node.outputs[0], to.emit("MUL", [tensor, bent], tensor.shape), order)


def _softplus(to: Program, x: Tensor) -> Tensor:
    """Give ``max(x, 0) + log(1 + exp(-|x|))``, whose exponential does not overflow."""
    small = to.emit("EXP", [to.emit("NEG", [to.emit("ABS", [x], x.shape)], x.shape)], x.shape)
    rest = to.emit("LOG", [to.emit("ADD", [small, to.number(1.0)], x.shape)], x.shape)
    return to.emit("ADD", [to.emit("RELU", [x], x.shape), rest], x.shape)


@converts("Softsign")
def softsign(node: ir.Node, to: Program) -> None:
    """Write ``x / (1 + |x|)``."""
    tensor, order = _any(node, to)
    below = to.emit("ADD", [to.emit("ABS", [tensor], tensor.shape), to.number(1.0)], tensor.shape)
    to.give(node.outputs[0], to.emit("DIV", [tensor, below], tensor.shape), order)


@converts("BatchNormalization", fuses=True)
def batch_normalization(node: ir.Node, to: Program) -> None:
    """Write the scale and shift that are left of a normalization by constants: MUL and ADD."""
    x = node.inputs[0]
    arrays = [to.array(v) for v in node.inputs[1:5]]
    assert x is not None
    if any(a is None for a in arrays) or integer(node, "training_mode", 0):
        to.refuse("its statistics are not constant")
    scale, bias, mean, variance = (a.astype(np.float64) for a in arrays if a is not None)
    factor = scale / np.sqrt(variance + number(node, "epsilon", 1e-5))
    rank = len(to.shape(x))
    order = to.common_order([x], rank)
    tensor = to.read(x, order)

    def channels(array: np.ndarray) -> Tensor:
        spread = array.astype(np.float32).reshape([-1 if axis == 1 else 1 for axis in range(rank)])
        return to.constant(spread.transpose(order), name="channels")

    scaled = to.emit("MUL", [tensor, channels(factor)], tensor.shape)
    shifted = to.emit(
        "ADD", [scaled, channels(bias - mean * factor)], tensor.shape, fusedActivationFunction=to.activation
    )
    to.give(node.outputs[0], shifted, order)


@converts("QuantizeLinear")
def quantize(node: ir.Node, to: Program) -> None:
    """Write floats, or codes of another grid, as codes of the grid; nothing if that is what they are."""
    grid = grid_of(node)
    if grid is None:
        to.refuse("its grid is not one of 8 bits with one scale")
    x = node.inputs[0]
    assert x is not None
    tensor, order = to.codes(x) if to.has_codes(x) else _any(node, to)
    to.give(node.outputs[0], to.requantized(tensor, grid), order)


@converts("DequantizeLinear")
def dequantize(node: ir.Node, to: Program) -> None:
    """Write nothing: whoever wants floats gets them made of the codes."""
    codes = node.inputs[0]
    assert codes is not None
    if not to.has_codes(codes):
        to.refuse("what it reads is not on a grid of 8 bits with one scale")
    if grid_of(node) != to.grid_of(codes):
        to.refuse("its grid is another than that of the codes that it reads")
    to.alias(node.outputs[0], codes)
