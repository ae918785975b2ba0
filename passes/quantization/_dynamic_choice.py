"""Choosing how an activation is quantized: a scale for each token and where its zero lies, or one grid for all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from polycast.calibrating.observe import observe
from polycast.calibrating.taps import Seen, Tap, Want
from polycast.passbase import PassContext

from ._dynamic_layers import Layer
from ._dynamic_weights import to_int8
from ._dynamic_zero import DIPPING, MIDDLE, TINY, usual_zero

#: The zero points that are tried. One of 0 would cut off what a sample has not shown, so only an operator gives it.
_ZEROS = (16, 32, DIPPING, MIDDLE)

#: How many samples rows come from at most, and how many rows and output channels an error is measured on.
_SAMPLES, _ROWS, _COLUMNS = 64, 128, 512

#: An activation, and the axis of it that is summed over.
Operand = tuple[ir.Value, int]


def choose(
    model: ir.Model, layers: Sequence[Layer], per: str, slack: float, ctx: PassContext
) -> dict[Layer, int | None]:
    """Choose, for what each of ``layers`` reads, the zero point of its tokens; None is one grid for the tensor.

    per: ``token``, ``tensor``, or ``auto``: per tensor where its error on the calibration samples is at most ``slack``
    times that of per token. Without samples ``auto`` is per token, as the operator that makes it suggests.
    """
    if per == "tensor":
        return dict.fromkeys(layers)
    readers: dict[Operand, list[Layer]] = {}
    for layer in layers:
        readers.setdefault((layer.x, layer.axis), []).append(layer)
    seen = _observe(model, readers, ctx)
    chosen: dict[Layer, int | None] = {}
    for operand, group in readers.items():
        usual, found = usual_zero(operand[0]), seen.get(operand)
        best = usual if found is None else _by_error(usual, group, found, slack if per == "auto" else None)
        chosen |= dict.fromkeys(group, best)
    return chosen


def _observe(model: ir.Model, readers: Mapping[Operand, object], ctx: PassContext) -> dict[Operand, Seen]:
    """Keep rows of each activation. One that is summed over along two axes is looked at along the first alone."""
    by_name: dict[str, Operand] = {}
    for each in readers:
        by_name.setdefault(each[0].name or "", each)
    if ctx.calibration is None or not by_name:
        return {}
    taps = [Tap(name, Want.ROWS, axis) for name, (_, axis) in by_name.items()]
    found = observe(model, taps, ctx, samples=_SAMPLES)
    return {by_name[name]: seen for name, seen in found.items() if seen.rows is not None and len(seen.rows)}


def _by_error(usual: int, readers: Sequence[Layer], seen: Seen, slack: float | None) -> int | None:
    assert seen.rows is not None
    rows = seen.rows[:: -(-len(seen.rows) // _ROWS)].astype(np.float64)
    zeros = sorted({usual, *_ZEROS})
    errors = {zero: _error(readers, rows, by_token(rows, zero)) for zero in zeros}
    best = min(zeros, key=errors.__getitem__)
    if slack is None or seen.not_finite:  # on one grid for all, an infinity would reach every token
        return best
    whole = _error(readers, rows, by_tensor(rows, seen.average_low, seen.average_high))
    return None if whole <= slack * errors[best] else best


def _error(readers: Sequence[Layer], rows: np.ndarray, rounded: np.ndarray) -> float:
    """Give how far the products of ``rounded`` with rounded weights lie from those of ``rows``: root of the squares."""
    squares = 0.0
    for layer in readers:
        w = layer.columns
        w = w[:, :: -(-w.shape[1] // _COLUMNS)].astype(np.float64)
        codes, scale = to_int8(w, (0,))
        squares += float(np.square(rounded @ (codes * scale.astype(np.float64)) - rows @ w).sum())
    return math.sqrt(squares)


def by_token(rows: np.ndarray, zero: int) -> np.ndarray:
    """Round each row of ``rows: [rows, channels]`` to uint8 on a grid of its own, with this zero point."""
    top = rows.max(axis=1, keepdims=True, initial=0.0)
    low = rows.min(axis=1, keepdims=True, initial=0.0)
    scale = np.maximum(top / (127 if zero == MIDDLE else 255 - zero), TINY)
    if zero:
        scale = np.maximum(scale, -low / min(zero, 127))
    rounded: np.ndarray = (np.clip(np.rint(rows / scale) + zero, 0, 255) - zero) * scale
    return rounded


def by_tensor(rows: np.ndarray, low: float, high: float) -> np.ndarray:
    """Round ``rows`` to the steps of a grid of 256 codes from ``low`` to ``high``, as wide as a whole tensor is."""
    scale = max((max(high, 0.0) - min(low, 0.0)) / 255, TINY)
    rounded: np.ndarray = np.rint(rows / scale) * scale
    return rounded
