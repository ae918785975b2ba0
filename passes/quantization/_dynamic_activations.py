"""Activations in uint8, quantized while the model runs; what several layers read is quantized once."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ._dynamic_edit import Place
from ._dynamic_zero import MIDDLE


@dataclass(frozen=True)
class Codes:
    """An activation in uint8, ``(codes - zero) * scale``. zero: a scalar. scale: a scalar, or a number per token."""

    codes: ir.Value
    scale: ir.Value
    zero: ir.Value


@dataclass
class Activations:
    """Quantizes each activation once in each graph that reads it."""

    _made: dict[tuple[object, ...], Codes] = field(default_factory=dict)
    _turned: dict[tuple[object, ...], ir.Value] = field(default_factory=dict)

    def turned(self, x: ir.Value, place: Place) -> ir.Value:
        """Transpose a matrix."""
        key = (x, place.graph)
        if key not in self._turned:
            shape = ir.Shape(tuple(reversed(list(x.shape)))) if x.shape is not None else None
            self._turned[key] = place.op("Transpose", [x], {"perm": [1, 0]}, what="turned", shape=shape)
        return self._turned[key]

    def by_tensor(self, x: ir.Value, place: Place) -> Codes:
        """Quantize with one scale and one zero point for all of ``x``."""
        key = (x, place.graph)
        if key not in self._made:
            node = ir.node("DynamicQuantizeLinear", [x], num_outputs=3)
            self._made[key] = Codes(*place.add(node, "quantize", (ir.DataType.UINT8, x.shape), _SCALE, _ZERO))
        return self._made[key]

    def by_token(self, x: ir.Value, axis: int, depth: int, zero: int, place: Place) -> Codes:
        """Quantize with a scale for each token, which is what lies along ``axis``: ``depth`` elements.

        zero: the zero point of every token. The scale is the smallest that reaches both ends of the token; with MIDDLE
        it is the same for both signs, and with 0 nothing is below.
        """
        key = (x, place.graph, axis, zero)
        if key not in self._made:
            scale = self._scale(x, axis, zero, place)
            sizes = place.op("Shape", [scale], what="tokens", dtype=ir.DataType.INT64)
            fill = {"value": ir.tensor(np.array([zero], np.uint8))}
            zeros = place.op("ConstantOfShape", [sizes], fill, what="zeros", dtype=ir.DataType.UINT8, shape=scale.shape)
            codes = place.op(
                "QuantizeLinear",
                [x, scale, zeros],
                {"axis": axis, "block_size": depth},
                what="quantize",
                dtype=ir.DataType.UINT8,
                shape=x.shape,
            )
            self._made[key] = Codes(codes, scale, place.number(zero, np.uint8))
        return self._made[key]

    def _scale(self, x: ir.Value, axis: int, zero: int, place: Place) -> ir.Value:
        """Compute the scale of each token; 0 where the token is, so that whatever its codes are is multiplied by 0."""
        along = place.small(np.array([axis], np.int64))
        kept = _kept(x.shape, axis)

        def times(value: ir.Value, number: float, what: str) -> ir.Value:
            return place.op("Mul", [value, place.number(number)], what=what, shape=kept)

        def reduced(op: str, value: ir.Value, what: str) -> ir.Value:
            return place.op(op, [value, along], {"keepdims": 1}, what=what, shape=kept)

        if zero == MIDDLE:
            size = place.op("Abs", [x], what="size", shape=x.shape)
            return times(reduced("ReduceMax", size, "largest"), 1 / 127, "scale")
        above = times(reduced("ReduceMax", x, "highest"), 1 / (255 - zero), "above" if zero else "scale")
        if not zero:
            return above
        below = times(reduced("ReduceMin", x, "lowest"), -1 / zero, "below")
        return place.op("Max", [above, below], what="scale", shape=kept)


_SCALE = (ir.DataType.FLOAT, ir.Shape([]))
_ZERO = (ir.DataType.UINT8, ir.Shape([]))


def _kept(shape: ir.Shape | None, axis: int) -> ir.Shape | None:
    """Give ``shape`` with size 1 on ``axis``."""
    if shape is None:
        return None
    dims = list(shape)
    dims[axis] = 1
    return ir.Shape(dims)
