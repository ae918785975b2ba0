"""Convolutions and products with weights: channels last, weights in panels of one register, codes multiplied as codes.

Each is one function of three stages that ``cpu_rules`` knows by name: what pads or rearranges the input, ``dot`` or
``taps``, which adds up, and ``flat``, which scales the sums and adds the bias.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import open_sizes, products
from .cpu_arch import Cpu
from .cpu_values import Known, Laid
from .scope import Scope
from .stored import Stored

#: TVM's name for what may take elementwise operators behind it into its own loop.
_FUSIBLE = {"op_pattern": 4}


@dataclass(frozen=True)
class Weight:
    """A constant factor. values: float32, or int8 codes, which ``scale`` (of one number, or one a channel) widens."""

    values: np.ndarray
    scale: np.ndarray | None = None

    @property
    def floats(self) -> np.ndarray:
        """The numbers, with the output channel first."""
        if self.scale is None:
            return self.values
        wide: np.ndarray = self.values.astype(np.float32) * self.scale.reshape(-1, *[1] * (self.values.ndim - 1))
        return wide


def weight_of(scope: Scope, axis: int) -> Weight | None:
    """Give operand 1 with ``axis`` brought to the front, where it is a constant of float32 or of symmetric codes."""
    operand, constant = scope.operand(1), scope.constant(1)
    if constant is not None and constant.dtype == np.float32:
        return Weight(np.moveaxis(constant, axis, 0))
    if not isinstance(operand, Stored) or operand.dtype != "float32" or operand.block or not operand.signed:
        return None
    if operand.axis not in (None, axis % len(operand.shape)) or (operand.zero is not None and operand.zero.any()):
        return None
    return Weight(np.moveaxis(operand.codes(), axis, 0), operand.scale)


def input_of(scope: Scope, weight: Weight, cpu: Cpu) -> tuple[Laid, Weight]:
    """Give operand 0 and the weight as they are multiplied: both as codes, or both as float numbers."""
    operand = scope.operand(0)
    laid = operand if isinstance(operand, Laid) else Laid(scope.bb.emit(scope.tensor(0)))
    codes = laid.scale is not None and str(laid.expr.ty.dtype.dtype) == "uint8"
    if codes and weight.scale is not None and cpu.multiplies_bytes:
        return laid, weight
    return Laid(laid.values(scope.bb), laid.last), Weight(weight.floats)


def bias_of(scope: Scope, channels: int) -> np.ndarray | None:
    """Give operand 2 as one number a channel; None where it is no such constant."""
    if len(scope.node.inputs) < 3 or scope.node.inputs[2] is None:
        return np.zeros(channels, np.float32)
    operand = scope.operand(2)
    array = operand.array if isinstance(operand, Known) else scope.constant(2)
    if array is None:
        return None
    flat = array.reshape(-1) if array.shape[-1:] == (array.size,) else array
    return np.broadcast_to(flat, channels).astype(np.float32) if flat.ndim <= 1 else None


def scaled(laid: Laid, weight: Weight, bias: np.ndarray) -> list[np.ndarray]:
    """Give what a sum goes through: of codes, what the zero adds to each, and scale; then the bias."""
    if laid.scale is None or weight.scale is None:
        return [bias]
    sums = weight.values.reshape(len(bias), -1).astype(np.int64).sum(1)
    factor = np.broadcast_to(weight.scale.astype(np.float64) * laid.scale, bias.shape)
    return [(sums * laid.zero).astype(np.int32), factor.astype(np.float32), bias]


def panels(values: np.ndarray, lanes: int, group: int) -> np.ndarray:
    """Lay [N, …, K] out as [N / lanes, …, K / group, lanes * group], filled up with zeros.

    A register of ``lanes`` outputs is read at once, with ``group`` neighbours of the sum of each.
    """
    fill = [(0, -values.shape[0] % lanes), *[(0, 0)] * (values.ndim - 2), (0, -values.shape[-1] % group)]
    wide = np.pad(values, fill)
    split = wide.reshape(wide.shape[0] // lanes, lanes, *wide.shape[1:-1], wide.shape[-1] // group, group)
    laid = np.ascontiguousarray(np.moveaxis(split, 1, -2))
    return laid if group > 1 else laid[..., 0]


def flat(sums: Any, lanes: int, shape: Sequence[Any], factors: Sequence[Any]) -> Any:
    """Give the sums [.., N / lanes, lanes] as [.., N], scaled."""
    from tvm import te

    def element(*at: Any) -> Any:
        n, found = at[-1], sums(*at[:-1], at[-1] // lanes, at[-1] % lanes) if lanes else sums(*at)
        *of_codes, bias = factors
        if of_codes:
            found = (found - of_codes[0](n)).astype("float32") * of_codes[1](n)
        return found + bias(n)

    return te.compute(shape, element, name="flat")


#: What it costs to scale the sums of one register outside the loop that adds them up, in multiply-adds.
_APART = 24


def lanes_for(channels: int, steps: int, cpu: Cpu) -> int:
    """Give how many outputs a register holds: all that fit, or fewer where there are fewer.

    Fewer as well where the last register would be filled in part, and a few ``steps`` for each sum are cheaper than
    to scale the sums apart.
    """
    lanes = cpu.lanes
    while lanes > 4 and lanes >= 2 * channels:
        lanes //= 2
    full = -(-channels // lanes)
    even = next((each for each in (lanes, lanes // 2, lanes // 4) if each >= 4 and channels % each == 0), lanes)
    return even if (channels // even - full) * steps <= _APART * full else lanes


def convolution(scope: Scope, cpu: Cpu) -> Sequence[Any]:
    """Convert Conv of two spatial axes, dense or depthwise, to channels last; what is neither goes TVM's way."""
    from tvm import relax

    weight = weight_of(scope, 0)
    groups = scope.attribute("group", 1)
    if weight is None or weight.values.ndim != 4 or scope.dtype(0) != "float32":
        return products.CONVERTERS["", "Conv"](scope)
    channels, per_group, *kernel = weight.values.shape
    depthwise = groups == channels and per_group == 1
    bias = bias_of(scope, channels)
    if bias is None or (groups > 1 and not depthwise):
        return products.CONVERTERS["", "Conv"](scope)
    laid, weight = input_of(scope, weight, cpu)
    laid = laid.channels_last(scope.bb)
    strides = list(scope.attribute("strides", [1, 1]))
    dilations = list(scope.attribute("dilations", [1, 1]))
    pads = products._padding(scope, laid.shape[1:3], list(kernel), strides, dilations)
    window = Window(laid, weight, tuple(kernel), strides, dilations, pads, cpu)
    stage = window.taps if depthwise and groups > 1 else window.dot
    arrays, compute = stage(bias)
    constants = [relax.const(np.ascontiguousarray(each)) for each in arrays]
    return [
        Laid(scope.bb.emit_te(compute, laid.expr, *constants, primfunc_name_hint="conv", primfunc_attrs=_FUSIBLE), True)
    ]


@dataclass(frozen=True)
class Window:
    """A convolution of ``laid``, [n, h, w, c], with ``weight``, [o, c, kh, kw]."""

    laid: Laid
    weight: Weight
    kernel: tuple[int, ...]
    strides: list[int]
    dilations: list[int]
    pads: list[int]
    cpu: Cpu

    @property
    def size(self) -> list[Any]:
        """Height and width of the output."""
        return [
            open_sizes.size((full + before + after - (taps - 1) * dilation - 1) // stride + 1)
            for full, before, after, taps, stride, dilation in zip(
                self.laid.shape[1:3],
                self.pads[:2],
                self.pads[2:],
                self.kernel,
                self.strides,
                self.dilations,
                strict=True,
            )
        ]

    @property
    def columns(self) -> Any:
        """Pixels of a row that are computed: more than the output has, where it may have any size."""
        return open_sizes.filled(self.size[1], -(-self.weight.values.shape[0] // self.cpu.lanes))

    def padded(self, x: Any, channels: int, wide: bool = False) -> Any:
        """Fill up around the input, with what stands for 0, and behind its channels; wide: as float numbers."""
        from tvm import te, tirx

        n, h, w, c = self.laid.shape
        top, left, bottom, right = self.pads
        may_miss = any(self.pads) or channels > c or not isinstance(w, int)
        if not (may_miss or wide):
            return x
        kind = "float32" if wide else str(x.dtype)
        zero = tirx.const(0 if wide else self.laid.zero, kind)

        def element(b: Any, y: Any, x_: Any, k: Any) -> Any:
            inside = tirx.all(y >= top, y < top + h, x_ >= left, x_ < left + w, *([k < c] if channels > c else []))
            found = x(b, y - top, x_ - left, k)
            if wide:
                found = found.astype("float32") - float(self.laid.zero)
            return tirx.if_then_else(inside, found, zero) if may_miss else found

        reach = (self.columns - 1) * self.strides[1] + (self.kernel[1] - 1) * self.dilations[1] + 1
        across = w + left + right if isinstance(w, int) else reach
        return te.compute((n, h + top + bottom, across, channels), element, name="padded")

    def at(self, y: Any, x: Any, ry: Any, rx: Any) -> tuple[Any, Any]:
        """Give the pixel of the padded input that tap (ry, rx) of the output pixel (y, x) reads."""
        (sy, sx), (dy, dx) = self.strides, self.dilations
        return y * sy + ry * dy, x * sx + rx * dx

    def dot(self, bias: np.ndarray) -> tuple[list[np.ndarray], Callable[..., Any]]:
        """Every channel reads every channel. Returns: constants, and the tensor expression of input and constants."""
        from tvm import te

        coded, values = self.weight.scale is not None, np.moveaxis(self.weight.values, 1, -1)
        in_rows = coded and values.shape[-1] % 4 != 0 and self.dilations[1] == 1
        if in_rows:
            values = values.reshape(*values.shape[:2], 1, -1)
        channels, kh, kw, depth = values.shape
        group = 4 if coded else 1
        deep = -(-depth // group) * group
        lanes = lanes_for(channels, kh * kw * deep // group, self.cpu)
        n, (height, width) = self.laid.shape[0], self.size
        outs = -(-channels // lanes)

        def compute(x: Any, w: Any, *factors: Any) -> Any:
            read = self.rows(x, deep) if in_rows else self.padded(x, deep)
            ry, rx = te.reduce_axis((0, kh), "ry"), te.reduce_axis((0, kw), "rx")
            k, inner = te.reduce_axis((0, deep // group), "k"), te.reduce_axis((0, group), "inner")

            def element(b: Any, y: Any, x_: Any, o: Any, lane: Any) -> Any:
                row, pixel = self.at(y, x_, ry, rx)
                if not coded:
                    return te.sum(read(b, row, pixel, k) * w(o, ry, rx, k, lane), axis=[ry, rx, k])
                at = [pixel * self.laid.shape[3] + k * 4 + inner] if in_rows else [pixel, k * 4 + inner]
                code = read(b, row, *at).astype("int32")
                return te.sum(code * w(o, ry, rx, k, lane, inner).astype("int32"), axis=[ry, rx, k, inner])

            sums = te.compute((n, height, self.columns, outs, lanes), element, name="dot")
            return flat(sums, lanes, (n, height, width, channels), factors)

        return [panels(values, lanes, group), *scaled(self.laid, self.weight, bias)], compute

    def rows(self, x: Any, deep: int) -> Any:
        """Fill up around the input, with its pixels side by side as [n, h, w * c].

        Where the channels are too few to fill an instruction, it takes those of the pixels behind along with them.
        ``deep`` codes are read from each pixel on.
        """
        from tvm import te, tirx

        n, h, w, c = self.laid.shape
        top, left, bottom, _ = self.pads
        length = (self.columns - 1) * self.strides[1] * c + deep

        def element(b: Any, y: Any, at: Any) -> Any:
            inside = tirx.all(y >= top, y < top + h, at >= left * c, at < (left + w) * c)
            found = x(b, y - top, (at - left * c) // c, (at - left * c) % c)
            return tirx.if_then_else(inside, found, tirx.const(self.laid.zero, str(x.dtype)))

        return te.compute((n, h + top + bottom, length), element, name="padded")

    def taps(self, bias: np.ndarray) -> tuple[list[np.ndarray], Callable[..., Any]]:
        """Every channel reads itself. Sums of few codes are exact in float32, and need no rearranging there."""
        from tvm import te

        coded = self.weight.scale is not None
        values = np.moveaxis(self.weight.values[:, 0], 0, -1).astype(np.float32)
        kh, kw, channels = values.shape
        n, (height, width) = self.laid.shape[0], self.size

        def compute(x: Any, w: Any, *factors: Any) -> Any:
            read = self.padded(x, channels, wide=coded)
            ry, rx = te.reduce_axis((0, kh), "ry"), te.reduce_axis((0, kw), "rx")
            sums = te.compute(
                (n, height, self.columns, channels),
                lambda b, y, x_, c: te.sum(read(b, *self.at(y, x_, ry, rx), c) * w(ry, rx, c), axis=[ry, rx]),
                name="taps",
            )

            def element(b: Any, y: Any, x_: Any, c: Any) -> Any:
                found = sums(b, y, x_, c)
                return (found * factors[0](c) if coded else found) + factors[-1](c)

            return te.compute((n, height, width, channels), element, name="flat")

        arrays = scaled(self.laid, self.weight, bias)
        return [values, *arrays[-2:]], compute


def product(scope: Scope, cpu: Cpu) -> Sequence[Any]:
    """Convert MatMul, or Gemm without transA, by a constant of two axes; every other goes the way of all targets."""
    from tvm import relax, te

    op = scope.node.op_type
    transposed = bool(scope.attribute("transB", 0))
    weight = weight_of(scope, 0 if transposed else -1) if scope.dtype(0) == "float32" else None
    odd = op == "Gemm" and (
        scope.attribute("transA", 0) or scope.attribute("alpha", 1.0) != 1 or scope.attribute("beta", 1.0) != 1
    )
    if weight is None or weight.values.ndim != 2 or odd:
        return products.CONVERTERS["", op](scope)
    channels, depth = weight.values.shape
    bias = bias_of(scope, channels) if op == "Gemm" else np.zeros(channels, np.float32)
    if bias is None:
        return products.CONVERTERS["", op](scope)
    laid, weight = input_of(scope, weight, cpu)
    laid = laid.second(scope.bb)
    coded = weight.scale is not None
    group = 4 if coded else 1
    deep = -(-depth // group) * group
    lanes = lanes_for(channels, deep // group, cpu)
    outs, rows = -(-channels // lanes), laid.shape[:-1]
    arrays = [panels(weight.values, lanes, group), *scaled(laid, weight, bias)]

    def compute(x: Any, w: Any, *factors: Any) -> Any:
        read = _filled(x, deep)
        k, inner = te.reduce_axis((0, deep // group), "k"), te.reduce_axis((0, group), "inner")

        def element(*at: Any) -> Any:
            *row, o, lane = at
            if not coded:
                return te.sum(read(*row, k) * w(o, k, lane), axis=[k])
            code = read(*row, k * 4 + inner).astype("int32")
            return te.sum(code * w(o, k, lane, inner).astype("int32"), axis=[k, inner])

        return flat(te.compute((*rows, outs, lanes), element, name="dot"), lanes, (*rows, channels), factors)

    constants = [relax.const(np.ascontiguousarray(each)) for each in arrays]
    return [scope.bb.emit_te(compute, laid.expr, *constants, primfunc_name_hint="product", primfunc_attrs=_FUSIBLE)]


def _filled(x: Any, deep: int) -> Any:
    """Fill the last axis up to ``deep`` numbers; what stands there is multiplied by 0."""
    from tvm import te, tirx

    depth = int(x.shape[-1])
    if depth == deep:
        return x

    def element(*at: Any) -> Any:
        return tirx.if_then_else(at[-1] < depth, x(*at), tirx.const(0, str(x.dtype)))

    return te.compute((*x.shape[:-1], deep), element, name="padded")
