"""Converters for a CPU: between convolutions channels stay last, and codes stay codes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from . import codes, converters, cpu_products, extremes
from .converters import Convert
from .cpu_arch import Cpu
from .cpu_values import LAST, Joined, Known, Laid, joined, moved
from .scope import Scope, narrow

#: What reads one number of each operand for one of the result, wherever it lies.
_ELEMENTWISE = (
    "Abs", "Add", "Cast", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Max",
    "Min", "Mul", "Neg", "Pow", "Relu", "Sigmoid", "Softplus", "Sqrt", "Sub", "Tanh",
)  # fmt: skip

#: Added to a float32 number below 2**22, it rounds that half to even, and leaves the whole number in the lowest bits.
_TO_WHOLE = 1.5 * 2.0**23

#: TVM's name for what takes nothing else into its loops.
_ALONE = {"op_pattern": 8}

#: What moves the numbers of operand 0, and changes none.
_MOVING = ("Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Unsqueeze")


def own(cpu: Cpu) -> dict[tuple[str, str], Convert]:
    """Give the converters for ``cpu``, beside those of every target."""
    table = {**converters.OWN, **extremes.CONVERTERS, ("", "Clip"): _clip, ("", "Erf"): _erf, ("", "Gelu"): _gelu}
    found: dict[tuple[str, str], Convert] = {
        ("", op): partial(_elementwise, plain=table.get(("", op), Scope.by_tvm)) for op in _ELEMENTWISE
    }
    return {
        **converters.OWN,
        **extremes.CONVERTERS,
        **found,
        **{("", op): partial(_moving, plain=table.get(("", op), Scope.by_tvm)) for op in _MOVING},
        ("", "Conv"): partial(cpu_products.convolution, cpu=cpu),
        ("", "Gemm"): partial(cpu_products.product, cpu=cpu),
        ("", "MatMul"): partial(cpu_products.product, cpu=cpu),
        ("", "AveragePool"): _pool,
        ("", "Concat"): _concat,
        ("", "DepthToSpace"): _depth_to_space,
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
    [result] = _bound(scope, plain(replace(scope, read=lambda value: given[value])))
    return [Laid(result, True)]


def _moving(scope: Scope, plain: Callable[[Scope], Sequence[Any]]) -> Sequence[Any]:
    """Move codes rather than what they stand for."""
    operand = scope.operand(0)
    if not isinstance(operand, Laid) or operand.scale is None:
        return plain(scope)
    laid = operand.second(scope.bb)
    results = plain(
        replace(scope, read=lambda value: laid.expr if value is scope.node.inputs[0] else scope.read(value))
    )
    return [replace(laid, expr=each) for each in _bound(scope, results)]


def _bound(scope: Scope, results: Iterable[Any]) -> list[Any]:
    """Give each result a name, where it has none."""
    from tvm import relax

    given = [scope.bb.normalize(each) for each in results]
    return [each if isinstance(each, relax.Var) else scope.bb.emit(each) for each in given]


def _clip(scope: Scope) -> Sequence[Any]:
    """Clip between known bounds; TVM's importer asks of each bound whether it is a number."""
    from tvm import te, tirx

    bounds = [scope.constant(index) for index in (1, 2)]
    missing = [len(scope.node.inputs) <= index or scope.node.inputs[index] is None for index in (1, 2)]
    if scope.dtype(0) != "float32" or any(b is None and not m for b, m in zip(bounds, missing, strict=True)):
        return scope.by_tvm()
    spelt = [
        scope.attribute(name) if bound is None else bound for name, bound in zip(("min", "max"), bounds, strict=True)
    ]
    low, high = (None if each is None else tirx.const(float(np.asarray(each).reshape(())), "float32") for each in spelt)

    def compute(x: Any) -> Any:
        def element(*at: Any) -> Any:
            # In this order what is no number stays none.
            found = x(*at) if low is None else tirx.max(low, x(*at))
            return found if high is None else tirx.min(high, found)

        return te.compute(x.shape, element, name="clip")

    return [scope.bb.emit_te(compute, scope.tensor(0), primfunc_name_hint="clip")]


def _erf(scope: Scope) -> Sequence[Any]:
    """Give erf as a fraction of polynomials, which registers can be filled with; libm takes one number at a time."""
    from tvm import topi

    if scope.dtype(0) != "float32":
        return scope.by_tvm()
    return [scope.bb.emit_te(topi.fast_erf, scope.tensor(0), primfunc_name_hint="erf")]


def _gelu(scope: Scope) -> Sequence[Any]:
    from tvm import te, tirx, topi

    if scope.dtype(0) != "float32" or scope.attribute("approximate", "none") != "none":
        return scope.by_tvm()

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
        return scope.by_tvm()
    axis = scope.attribute("axis", -1)
    return [scope.bb.emit_te(topi.nn.fast_softmax, scope.tensor(0), axis, primfunc_name_hint="softmax")]


def _last(scope: Scope, index: int) -> Any:
    """Give an operand with its channels last; None where its axes are not those of an image."""
    from tvm import relax

    constant, operand = scope.constant(index), scope.operand(index)
    if constant is not None:
        if constant.size == 1:
            return relax.const(narrow(constant.reshape(())))
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
    asked = ir.DataType(scope.attribute("output_dtype", 0) or ir.DataType.UINT8)
    dtype = asked.numpy().name if zero is None else zero.dtype.name
    if scale is None or scale.size != 1 or (codes.has_zero(scope) and zero is None) or dtype not in ("uint8", "int8"):
        return codes.quantize(scope)
    low, high = (0, 255) if dtype == "uint8" else (-128, 127)
    offset = 0 if zero is None else int(zero.reshape(()))
    step, operand = float(scale.reshape(())), scope.operand(0)

    def quantized(laid: Laid) -> Laid:
        if laid.scale == step and laid.zero == offset and str(laid.expr.ty.dtype.dtype) == dtype:
            return replace(laid, scale=None, zero=0)
        return Laid(scope.bb.emit_te(compute, laid.values(scope.bb), primfunc_name_hint="quantize"), laid.last)

    def compute(x: Any) -> Any:
        def element(*at: Any) -> Any:
            steps = x(*at) * tirx.const(1 / step, "float32")
            # In this order what is no number becomes the lowest code, as in ONNX Runtime.
            kept = tirx.min(tirx.max(steps, float(low - offset)), float(high - offset))
            return (tirx.reinterpret("int32", kept + _TO_WHOLE) + offset).astype(dtype)

        return te.compute(x.shape, element, name="quantized")

    if isinstance(operand, Joined):
        return [joined(scope.bb, [quantized(part) for part in operand.parts])]
    return [quantized(operand if isinstance(operand, Laid) else Laid(scope.bb.emit(scope.tensor(0))))]


def _dequantize(scope: Scope) -> Sequence[Any]:
    """Leave codes of an activation as they are, with what they stand for; widen those of a bias."""
    source, scale, zero = scope.node.inputs[0], scope.constant(1), scope.constant(2)
    if codes.has_zero(scope) and zero is None:
        return codes.CONVERTERS["", "DequantizeLinear"](scope)
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
    return _moving(scope, Scope.by_tvm)


def _pool(scope: Scope) -> Sequence[Any]:
    """Pool where the channels lie."""
    from tvm import topi

    from .products import _padding

    operand, kernel = scope.operand(0), list(scope.attribute("kernel_shape", ()))
    if not isinstance(operand, Laid) or scope.attribute("ceil_mode", 0) or len(scope.node.outputs) > 1:
        return scope.by_tvm()
    if len(operand.shape) != 4 or not (operand.last or operand.scale is not None):
        return scope.by_tvm()
    operand = operand.channels_last(scope.bb)
    dilations, strides = list(scope.attribute("dilations", [1, 1])), list(scope.attribute("strides", [1, 1]))
    pads = _padding(scope, operand.shape[1:3], kernel, strides, dilations)
    if kernel == operand.shape[1:3] and not any(pads) and scope.node.op_type == "AveragePool":
        return _mean(scope)
    kind = {"AveragePool": "avg", "MaxPool": "max"}[scope.node.op_type]
    every = bool(scope.attribute("count_include_pad", 0))

    def compute(x: Any) -> Any:
        return topi.nn.pool2d(x, kernel, strides, dilations, pads, kind, False, "NHWC", every)

    if kind == "max":  # of the codes it is the code of the largest
        return [replace(operand, expr=scope.bb.emit_te(compute, operand.expr, primfunc_name_hint="pool"))]
    return [Laid(scope.bb.emit_te(compute, operand.values(scope.bb), primfunc_name_hint="pool"), True)]


def _depth_to_space(scope: Scope) -> Sequence[Any]:
    """Spread channels over pixels, and widen codes on the way; the result is an image with its channels second."""
    from tvm import te, tirx

    operand, block = scope.operand(0), scope.attribute("blocksize")
    if not (isinstance(operand, Laid) and operand.last and operand.dtype == "float32"):
        return scope.by_tvm()
    n, height, width, deep = operand.shape
    channels, first = deep // block**2, scope.attribute("mode", "DCR") == "DCR"

    def compute(x: Any) -> Any:
        def element(b: Any, c: Any, y: Any, x_: Any) -> Any:
            inside = y % block * block + x_ % block
            found = x(b, y // block, x_ // block, inside * channels + c if first else c * block**2 + inside)
            if operand.scale is None:
                return found
            return (found.astype("float32") - float(operand.zero)) * tirx.const(operand.scale, "float32")

        shape = (n, channels, height * block, width * block)
        return te.compute(shape, element, name="depth_to_space", attrs={"block": block})

    return [Laid(scope.bb.emit_te(compute, operand.expr, primfunc_name_hint="spread", primfunc_attrs=_ALONE))]


def _mean(scope: Scope) -> Sequence[Any]:
    from tvm import relax

    operand = scope.operand(0)
    if not (isinstance(operand, Laid) and operand.last):
        return scope.by_tvm()
    return [Laid(scope.bb.emit(relax.op.mean(operand.values(scope.bb), [1, 2], keepdims=True)), True)]


def _concat(scope: Scope) -> Sequence[Any]:
    """Put images side by side where their channels lie."""
    operands = [scope.operand(index) for index in range(len(scope.node.inputs))]
    images = [each for each in operands if isinstance(each, Laid) and len(each.shape) == 4 and each.dtype == "float32"]
    if len(images) < len(operands) or scope.attribute("axis", 0) % 4 != 1:
        return scope.by_tvm()
    return [Joined(tuple(images))]
