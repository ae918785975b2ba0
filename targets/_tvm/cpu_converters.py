"""Converters for a CPU: between convolutions channels stay last, and codes stay codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from . import codes, converters, cpu_products
from .cpu_values import LAST, Known, Laid, moved

if TYPE_CHECKING:
    from .converters import Convert
    from .cpu_arch import Cpu
    from .frontend import Scope

#: What reads one number of each operand for one of the result, wherever it lies.
_ELEMENTWISE = (
    "Abs", "Add", "Cast", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Max",
    "Min", "Mul", "Neg", "Pow", "Relu", "Sigmoid", "Softplus", "Sqrt", "Sub", "Tanh",
)  # fmt: skip


def own(cpu: Cpu) -> dict[tuple[str, str], Convert]:
    """Give the converters for ``cpu``, beside those of every target."""
    table = {**converters.OWN, ("", "Erf"): _erf, ("", "Gelu"): _gelu}
    found: dict[tuple[str, str], Convert] = {
        ("", op): partial(_elementwise, plain=table.get(("", op), converters.by_tvm)) for op in _ELEMENTWISE
    }
    return {
        **converters.OWN,
        **found,
        ("", "Conv"): partial(cpu_products.convolution, cpu=cpu),
        ("", "Gemm"): partial(cpu_products.product, cpu=cpu),
        ("", "MatMul"): partial(cpu_products.product, cpu=cpu),
        ("", "AveragePool"): _pool,
        ("", "Concat"): _concat,
        ("", "DequantizeLinear"): _dequantize,
        ("", "GlobalAveragePool"): _mean,
        ("", "MaxPool"): _pool,
        ("", "QuantizeLinear"): _quantize,
        ("", "Softmax"): _softmax,
        ("", "Transpose"): _transpose,
    }


def _elementwise(scope: Scope, plain: Callable[[Scope], Sequence[Any]]) -> Sequence[Any]:
    """Convert with channels last where an operand has them so, and every other can be brought there."""
    operands = [scope.operand(index) for index in range(len(scope.node.inputs))]
    if not any(isinstance(each, Laid) and each.last for each in operands):
        return plain(scope)
    lasts = [_last(scope, index) for index in range(len(operands))]
    if any(each is None and operand is not None for each, operand in zip(lasts, operands, strict=True)):
        return plain(scope)
    given = dict(zip(scope.node.inputs, lasts, strict=True))
    [result] = plain(replace(scope, read=lambda value: given[value]))
    return [Laid(scope.bb.emit(scope.bb.normalize(result)), True)]


def _erf(scope: Scope) -> Sequence[Any]:
    """Give erf as a fraction of polynomials, which registers can be filled with; libm takes one number at a time."""
    from tvm import topi

    if scope.dtype(0) != "float32":
        return converters.by_tvm(scope)
    return [scope.bb.emit_te(topi.fast_erf, scope.tensor(0), primfunc_name_hint="erf")]


def _gelu(scope: Scope) -> Sequence[Any]:
    from tvm import te, tirx, topi

    if scope.dtype(0) != "float32" or scope.attribute("approximate", "none") != "none":
        return converters.by_tvm(scope)

    def gelu(x: Any) -> Any:
        def scaled(factor: float) -> Any:
            return te.compute(x.shape, lambda *at: x(*at) * tirx.const(factor, "float32"), name="scaled")

        half, erf = scaled(0.5), topi.fast_erf(scaled(0.5**0.5))
        return te.compute(x.shape, lambda *at: half(*at) + half(*at) * erf(*at), name="gelu")

    return [scope.bb.emit_te(gelu, scope.tensor(0), primfunc_name_hint="gelu")]


def _softmax(scope: Scope) -> Sequence[Any]:
    """Give softmax with the exponential as a polynomial."""
    from tvm import topi

    if scope.dtype(0) != "float32" or scope.opset < 13:
        return converters.by_tvm(scope)
    axis = scope.attribute("axis", -1)
    return [scope.bb.emit_te(topi.nn.fast_softmax, scope.tensor(0), axis, primfunc_name_hint="softmax")]


def _last(scope: Scope, index: int) -> Any:
    """Give an operand with its channels last; None where its axes are not those of an image."""
    from tvm import relax

    constant, operand = scope.constant(index), scope.operand(index)
    if constant is not None:
        if constant.size == 1:
            return relax.const(converters.narrow(constant.reshape(())))
        if constant.ndim not in (3, 4):
            return None
        wide = constant.reshape(*[1] * (4 - constant.ndim), *constant.shape)
        return relax.const(np.ascontiguousarray(wide.transpose(LAST)))
    if isinstance(operand, Laid):
        return operand.channels_last(scope.bb).values(scope.bb) if len(operand.shape) == 4 else None
    if operand is None:
        return None
    tensor = scope.bb.emit(scope.tensor(index))
    return moved(scope.bb, tensor, LAST) if tensor.ty.ndim == 4 else None


def _quantize(scope: Scope) -> Sequence[Any]:
    """Give codes of 8 bits; of what codes of the same scale stand for, those codes."""
    from tvm import te, tirx

    scale, zero = scope.constant(1), scope.constant(2)
    plain = converters.by_tvm
    if scale is None or scale.size != 1 or (zero is not None and zero.dtype not in (np.uint8, np.int8)):
        return plain(scope)
    dtype = "uint8" if zero is None else zero.dtype.name
    low, high = (0, 255) if dtype == "uint8" else (-128, 127)
    offset = 0 if zero is None else int(zero.reshape(()))
    step, operand = float(scale.reshape(())), scope.operand(0)
    laid = operand if isinstance(operand, Laid) else Laid(scope.bb.emit(scope.tensor(0)))
    if laid.scale == step and laid.zero == offset and str(laid.expr.ty.dtype.dtype) == dtype:
        return [replace(laid, scale=None, zero=0)]

    def compute(x: Any) -> Any:
        def element(*at: Any) -> Any:
            code = tirx.nearbyint(x(*at) * tirx.const(1 / step, "float32")) + float(offset)
            return tirx.max(tirx.min(code, float(high)), float(low)).astype(dtype)

        return te.compute(x.shape, element, name="quantized")

    return [Laid(scope.bb.emit_te(compute, laid.values(scope.bb), primfunc_name_hint="quantize"), laid.last)]


def _dequantize(scope: Scope) -> Sequence[Any]:
    """Leave codes of an activation as they are, with what they stand for; widen those of a bias."""
    source, scale, zero = scope.node.inputs[0], scope.constant(1), scope.constant(2)
    if scale is not None and (known := scope.constant(0)) is not None and known.dtype == np.int32:
        return [Known(codes.wide(scope, known, scale, zero))]
    if source is None or source.const_value is not None or scale is None or scale.size != 1:
        return codes.CONVERTERS["", "DequantizeLinear"](scope)
    operand = scope.operand(0)
    laid = operand if isinstance(operand, Laid) else Laid(scope.bb.emit(scope.tensor(0)))
    return [replace(laid, scale=float(scale.reshape(())), zero=0 if zero is None else int(zero.reshape(())))]


def _transpose(scope: Scope) -> Sequence[Any]:
    """Rename the axes of an image where that is all that a transposition does to it."""
    operand, order = scope.operand(0), list(scope.attribute("perm", ()))
    if order == [0, 3, 1, 2] and not (isinstance(operand, Laid) and operand.last):
        laid = operand if isinstance(operand, Laid) else Laid(scope.bb.emit(scope.tensor(0)))
        return [replace(laid, last=True)]
    if order == LAST and isinstance(operand, Laid) and operand.last:
        return [replace(operand, last=False)]
    return converters.by_tvm(scope)


def _pool(scope: Scope) -> Sequence[Any]:
    """Pool where the channels lie."""
    from tvm import topi

    from .products import _padding

    operand, kernel = scope.operand(0), list(scope.attribute("kernel_shape", ()))
    plain = not (isinstance(operand, Laid) and operand.last) or scope.attribute("ceil_mode", 0)
    if plain or len(scope.node.outputs) > 1:
        return converters.by_tvm(scope)
    dilations, strides = list(scope.attribute("dilations", [1, 1])), list(scope.attribute("strides", [1, 1]))
    pads = _padding(scope, operand.shape[1:3], kernel, strides, dilations)
    if kernel == operand.shape[1:3] and not any(pads) and scope.node.op_type == "AveragePool":
        return _mean(scope)
    kind = {"AveragePool": "avg", "MaxPool": "max"}[scope.node.op_type]
    every = bool(scope.attribute("count_include_pad", 0))

    def compute(x: Any) -> Any:
        return topi.nn.pool2d(x, kernel, strides, dilations, pads, kind, False, "NHWC", every)

    return [Laid(scope.bb.emit_te(compute, operand.values(scope.bb), primfunc_name_hint="pool"), True)]


def _mean(scope: Scope) -> Sequence[Any]:
    from tvm import relax

    operand = scope.operand(0)
    if not (isinstance(operand, Laid) and operand.last):
        return converters.by_tvm(scope)
    return [Laid(scope.bb.emit(relax.op.mean(operand.values(scope.bb), [1, 2], keepdims=True)), True)]


def _concat(scope: Scope) -> Sequence[Any]:
    """Put images side by side where their channels lie."""
    from tvm import relax

    operands = [scope.operand(index) for index in range(len(scope.node.inputs))]
    if not all(isinstance(each, Laid) and each.last for each in operands):
        return converters.by_tvm(scope)
    axis = [0, 3, 1, 2][scope.attribute("axis", 0) % 4]
    return [Laid(scope.bb.emit(relax.op.concat([each.values(scope.bb) for each in operands], axis)), True)]
