"""Instrument a graph: its outputs become what the taps want of its values, reduced where the values are made."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ._writing import Body, Outputs, Place, places
from .taps import PER_CHANNEL, Tap, Want

#: How many elements of a tensor a histogram looks at in each sample, about, at least and at most; how many it wants.
FEWEST_ELEMENTS, MOST_ELEMENTS = 1 << 12, 1 << 14
_WANTED_ELEMENTS = 1 << 19

#: Rows of one tensor of one sample that the choice of rows draws from.
ROWS_PER_SAMPLE = 128

_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

#: Operators that give nothing below zero: there the smallest element need not be looked for.
_FROM_ZERO = ("Relu", "Sigmoid", "Softmax")

_CHANNEL_REDUCTIONS = {
    "channel_low": "ReduceMin",
    "channel_high": "ReduceMax",
    "channel_sum": "ReduceSum",
    "channel_squares": "ReduceSumSquare",
}


@dataclass(frozen=True)
class Reading:
    """Where a run of an instrumented graph gives what a tap wants: numbers of its outputs, by field."""

    tap: Tap
    outputs: dict[str, int]


def elements_of(samples: int) -> int:
    """Give how many elements of a tensor a histogram looks at in each of ``samples``: the more the fewer there are.

    Looking at all of them would take longer than the inference that makes them.
    """
    return min(max(_WANTED_ELEMENTS // max(samples, 1), FEWEST_ELEMENTS), MOST_ELEMENTS)


def survey(model: ir.Model) -> dict[str, int]:
    """Make the shapes of all tensors but the weights the outputs of ``model``, in place; give their numbers by name.

    A value in a branch that the run does not take has no number in its shape, whatever its rank.
    """
    outputs = Outputs(model)
    numbers = {}
    for name, place in reversed(places(model).items()):
        value = place.value
        if name and value.const_value is None and (value.type is None or isinstance(value.type, ir.TensorType)):
            shape = Body(outputs, place).add("Shape", value, dtype=ir.DataType.INT64)
            numbers[name] = outputs.give(shape, place.branches, np.zeros(0, np.int64))
    RemoveUnusedNodesPass()(model)
    return numbers


def instrument(
    model: ir.Model,
    taps: Sequence[Tap],
    shapes: Mapping[str, tuple[int, ...]],
    careful: Collection[str] = (),
    elements: int = MOST_ELEMENTS,
) -> list[Reading]:
    """Make what ``taps`` want the outputs of ``model``, in place, and remove what they do not need.

    shapes: of each value with a tap, as one sample gave it; its rank is that of every sample.
    careful: the values that were found to hold NaN or infinities. Only there these are told apart: it costs time.
    elements: how many of one tensor of one sample a histogram looks at, about.
    """
    found, outputs = places(model), Outputs(model)
    # onnxruntime begins with what the last node needs: last come the first taps, so that each value is read at once.
    readings = [
        Reading(tap, _read(outputs, found[tap.value], tap, shapes[tap.value], tap.value in careful, elements))
        for tap in reversed(taps)
    ]
    RemoveUnusedNodesPass()(model)
    return readings


def _read(
    outputs: Outputs, place: Place, tap: Tap, shape: tuple[int, ...], careful: bool, elements: int
) -> dict[str, int]:
    """Write what ``tap`` wants; give the number of each output. The ``size`` is -1 where the branch is not taken."""
    body, value = Body(outputs, place), place.value
    if value.dtype is None or value.dtype in _NARROW:
        value = body.cast(value, ir.DataType.FLOAT)
    fields = {"size": body.add("Size", value, dtype=ir.DataType.INT64)}
    below = above = finite = value
    if careful:
        is_finite = body.add("Less", body.add("Abs", value), body.constant(math.inf, value), dtype=ir.DataType.BOOL)
        fields["finite"] = body.add("ReduceSum", body.cast(is_finite, ir.DataType.INT64), keepdims=0)
        below, above, finite = (
            body.add("Where", is_finite, value, body.constant(other, value), dtype=value.dtype)
            for other in (math.inf, -math.inf, 0)
        )
    if not _from_zero(place.value):
        fields["low"] = body.add("ReduceMin", below, keepdims=0)
    fields["high"] = body.add("ReduceMax", above, keepdims=0)
    fields["sum"] = body.add("ReduceSum", finite, keepdims=0)
    if Want.HISTOGRAM in tap.want:
        flat = body.add("Reshape", value, body.constant([-1]))
        fields["elements"] = body.strided(flat, elements)
    if tap.want & PER_CHANNEL:
        fields |= _per_channel(body, finite, tap, shape)
    return {field: outputs.give(made, place.branches, _nothing(field, made)) for field, made in fields.items()}


def _from_zero(value: ir.Value) -> bool:
    """Whether the range of ``value`` begins at zero for what computes it."""
    node = value.producer()
    return node is not None and node.domain == "" and node.op_type in _FROM_ZERO


def _per_channel(body: Body, value: ir.Value, tap: Tap, shape: tuple[int, ...]) -> dict[str, ir.Value]:
    """Write what needs to know the channels of ``value``."""
    channels, axis = shape[tap.axis], tap.axis % len(shape)
    rows = _as_rows(body, value, axis, len(shape)) if tap.want & (Want.GRAM | Want.ROWS) else value
    fields: dict[str, ir.Value] = {}
    if Want.CHANNELS in tap.want:
        if len(shape) == 1:  # a reduction over no axis is one over all
            value, axis, shape = body.add("Reshape", value, body.constant([1, -1])), 1, (1, *shape)
        others = body.constant([a for a in range(len(shape)) if a != axis])
        fields |= {field: body.add(op, value, others, keepdims=0) for field, op in _CHANNEL_REDUCTIONS.items()}
    if Want.GRAM in tap.want:
        if math.prod(shape) < channels**2:
            fields["gram_rows"] = rows
        else:
            fields["gram"] = body.add("Gemm", rows, rows, transA=1)
    if Want.ROWS in tap.want:
        fields["rows"] = body.strided(rows, ROWS_PER_SAMPLE)
    return fields


def _as_rows(body: Body, value: ir.Value, axis: int, rank: int) -> ir.Value:
    """View ``value`` as [rows, channels]."""
    if axis != rank - 1:
        value = body.add("Transpose", value, perm=[*(a for a in range(rank) if a != axis), axis])
    return body.add("Flatten", value, axis=rank - 1)


_RANKS = {"elements": 1, "gram": 2, "gram_rows": 2, "rows": 2, **dict.fromkeys(_CHANNEL_REDUCTIONS, 1)}


def _nothing(field: str, made: ir.Value) -> np.ndarray:
    """Give what stands in for ``made`` where its branch is not taken: as many axes, and -1 where it is a scalar."""
    dtype = made.dtype.numpy() if made.dtype else np.dtype(np.float32)
    rank = _RANKS.get(field, 0)
    return np.zeros((0,) * rank, dtype) if rank else np.array(-1, dtype)
