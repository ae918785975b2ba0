"""Upstream: which constants take a factor per channel of a value, so that the operators between need not change.

An operator is looked through where ``op(x * f) = op(x) * f`` holds for every positive f: exactly for powers of two,
within rounding for others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from polycast.model import name_of

from ._layout import Dim, dims_of, moved_from
from ._slices import LINEAR, Slices, constant, constant_tensor, integer, operand_slices, output_slices


@dataclass(frozen=True)
class Taker:
    """A constant that takes a factor: channel c of the value is slice ``index[c]`` of it, or none where that is -1."""

    slices: Slices
    index: np.ndarray

    def factor(self, scale: np.ndarray) -> np.ndarray:
        """Give the factor of each slice for a value whose channels are divided by ``scale``."""
        factor = np.ones(int(np.prod(self.slices.along)))
        held = self.index >= 0
        factor[self.index[held]] = 1 / scale[held]
        return factor


class Refusal(Exception):
    """Why no constant upstream takes the factor."""


@dataclass(frozen=True)
class _Flow:
    """Channels on their way up: channel c of interest is ``index[c]`` along ``axis`` of ``value``; -1: not in it."""

    value: ir.Value
    axis: int
    index: np.ndarray
    clips: bool

    @property
    def dims(self) -> tuple[Dim, ...]:
        dims = dims_of(self.value)
        if dims is None:
            raise Refusal(f"the shape of {self.value.name} is not known")
        return dims

    @property
    def channels(self) -> int:
        size = self.dims[self.axis]
        if not isinstance(size, int):
            raise Refusal(f"the number of channels of {self.value.name} is not known")
        return size

    def at(self, value: ir.Value | None, axis: int | None = None, index: np.ndarray | None = None) -> _Flow:
        """Go on at ``value``."""
        assert value is not None
        return replace(
            self,
            value=value,
            axis=self.axis if axis is None else axis,
            index=self.index if index is None else index,
        )


def takers(
    value: ir.Value, axis: int, channels: int, readers: Collection[ir.Node], *, clips: bool = False
) -> tuple[Taker, ...]:
    """Find the constants that take a factor per channel of ``axis`` of ``value``.

    readers: the nodes that may read ``value``, since they make up for the factor.
    clips: whether the bounds of a Clip may take it, which makes them one number per channel.
    Raises: Refusal saying what is in the way.
    """
    return tuple(_up(_Flow(value, axis, np.arange(channels), clips), readers))


def _up(flow: _Flow, readers: Collection[ir.Node]) -> Iterator[Taker]:
    node = flow.value.producer()
    if node is None:
        raise Refusal(f"{flow.value.name} is an input of the model")
    if flow.value.is_graph_output():
        raise Refusal(f"{flow.value.name} is an output of the model")
    for other, _ in flow.value.uses():
        if other not in readers and other.op_type not in ("Shape", "Size"):
            raise Refusal(f"{name_of(other)} ({other.op_type}) reads {flow.value.name} too")
    if flow.value is not node.outputs[0]:
        raise Refusal(f"{flow.value.name} is not the first output of {name_of(node)} ({node.op_type})")
    rule = _RULES.get((node.domain, node.op_type))
    if rule is None:
        raise Refusal(f"{name_of(node)} ({node.op_type}) does not keep a factor per channel")
    yield from rule(node, flow)


def _from(node: ir.Node, flow: _Flow) -> Iterator[Taker]:
    """Go on above ``node``, which has to read the value once: it keeps the factor of one input at a time."""
    if sum(user is node for user, _ in flow.value.uses()) > 1:
        raise Refusal(f"{name_of(node)} ({node.op_type}) reads {flow.value.name} twice")
    return _up(flow, (node,))


# What ends the way: constants that the factor goes into.


def _linear(node: ir.Node, flow: _Flow) -> Iterator[Taker]:
    weight = output_slices(node)
    last = node.op_type in ("MatMul", "Gemm")
    if weight is None or flow.axis != (len(flow.dims) - 1 if last else 1):
        raise Refusal(f"{name_of(node)} ({node.op_type}) has no constant weight for these channels")
    _need_own(weight)
    yield Taker(weight, flow.index)
    if node.op_type != "MatMul" and len(node.inputs) > 2 and node.inputs[2] is not None:
        rank, axis = (2, 1) if node.op_type == "Gemm" else (1, 0)
        yield _operand(node, 2, flow, rank, axis, int(np.prod(weight.along)))


def _norm(node: ir.Node, flow: _Flow) -> Iterator[Taker]:
    by_channel = node.op_type in ("BatchNormalization", "InstanceNormalization")
    last = len(flow.dims) - 1
    if flow.axis != (1 if by_channel else last) or not (by_channel or integer(node, "axis", -1) in (-1, last)):
        raise Refusal(f"{name_of(node)} ({node.op_type}) normalises over other axes")
    first = 2 if node.op_type.startswith("Skip") else 1
    has_bias = "RMS" not in node.op_type and "Simplified" not in node.op_type
    for position in range(first, first + 1 + has_bias):
        if position < len(node.inputs) and node.inputs[position] is not None:
            yield _operand(node, position, flow, 1, 0, flow.channels)


def _operand(node: ir.Node, position: int, flow: _Flow, rank: int, axis: int, channels: int) -> Taker:
    slices = operand_slices(node, position, rank, axis, channels)
    if slices is None:
        raise Refusal(f"input {position} of {name_of(node)} ({node.op_type}) is not constant per channel")
    return Taker(slices, flow.index)


def _need_own(slices: Slices) -> None:
    """Refuse a weight with other readers: it would have to be stored twice."""
    if is_shared(slices.value):
        raise Refusal(f"the weight of {name_of(slices.node)} ({slices.node.op_type}) is read elsewhere too")


def is_shared(value: ir.Value) -> bool:
    """Whether a constant has more than one reader, or is an output of the model."""
    return len(value.uses()) > 1 or value.is_graph_output()


# What the factor goes through.


def _passes(node: ir.Node, flow: _Flow) -> Iterator[Taker]:
    return _from(node, flow.at(node.inputs[0]))


def _spatial(node: ir.Node, flow: _Flow) -> Iterator[Taker]:
    """Pools: they look at one channel at a time, and pad with zeros or with nothing."""
    if flow.axis != 1:
        raise Refusal(f"{name_of(node)} ({node.op_type}) pools over these channels")
    return _passes(node, flow)


def _resize(node: ir.Node, flow: _Flow) -> Iterator[Taker]:
    mode = node.attributes.get("coordinate_transformation_mode")
    if mode is not None and mode.as_string() == "tf_crop_and_resize":
        raise Refusal(f"{name_of(node)} (Resize) extrapolates with a constant")
    before = dims_of(node.inputs[0])
    if before is None or before[flow.axis] != flow.channels:
        raise Refusal(f"{name_of(node)} (Resize) resizes these channels")
    return _passes(node, flow)


def _pad(node: ir.Node, flow: _Flow) -> Iterator[Taker]:
    fill = node.inputs[2] if len(node.inputs) > 2 else None
    number = constant(fill)
    before = dims_of(node.inputs[0])
    if (fill is not None and (number is None or number.any())) or before is None or before[flow.axis] != flow.channels:
        raise Refusal(f"{name_of(node)} (Pad) pads these channels, or with other numbers than zero")
    return _passes(node, flow)


def _mean(node: ir.Node, flow: _Flow) -> Iterator[Taker]:
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    before = dims_of(node.inputs[0])
    if axes is None or before is None or not integer(node, "keepdims", 1):
        raise Refusal(f"{name_of(node)} ({node.op_type}) reduces axes that are not known, or drops them")
    if any(int(axis) % len(before) == flow.axis for axis in axes.reshape(-1)):
        raise Refusal(f"{name_of(node)} ({node.op_type}) reduces over these channels")
    return _passes(node, flow)


def _slope(node: ir.Node, flow: _Flow) -> Iterator[Taker]:
    if constant_tensor(node.inputs[1]) is None:
        raise Refusal(f"{name_of(node)} (PRelu) has a slope that is not constant")
    return _passes(node, flow)


def _moved(node: ir.Node, flow: _Flow) -> Iterator[Taker]:
    found = moved_from(node, flow.axis)
    if found is None:
        raise Refusal(
            f"{name_of(node)} ({node.op_type}) mixes these channels with other axes, or its shape is not known"
        )
    axis, repeats = found
    index = np.where(flow.index >= 0, flow.index // repeats, -1)
    return _from(node, flow.at(node.inputs[0], axis, index))


def _concat(node: ir.Node, flow: _Flow) -> Iterator[Taker]:
    dims = [dims_of(value) for value in node.inputs]
    if any(d is None for d in dims):
        raise Refusal(f"the shapes that {name_of(node)} (Concat) joins are not known")
    along = integer(node, "axis", 0) % len(flow.dims)
    start = 0
    for value, shape in zip(node.inputs, dims, strict=True):
        index = flow.index
        if along == flow.axis:
            size = shape[along] if shape is not None else None
            if not isinstance(size, int):
                raise Refusal(f"the shapes that {name_of(node)} (Concat) joins are not known")
            index = np.where((index >= start) & (index < start + size), index - start, -1)
            start += size
        yield from _from(node, flow.at(value, index=index))


def _elementwise(node: ir.Node, flow: _Flow) -> Iterator[Taker]:
    """Add, Sub, Min, Max: both operands take the factor, a constant one itself."""
    for position, value in enumerate(node.inputs):
        if constant_tensor(value) is not None:
            yield _operand(node, position, flow, len(flow.dims), flow.axis, flow.channels)
        else:
            _need_alike(node, value, flow)
            yield from _from(node, flow.at(value))


def _product(node: ir.Node, flow: _Flow) -> Iterator[Taker]:
    """Mul: one operand takes the factor, a constant one itself."""
    for position, value in enumerate(node.inputs):
        if constant_tensor(value) is not None:
            return iter([_operand(node, position, flow, len(flow.dims), flow.axis, flow.channels)])
    reasons = []
    for value in node.inputs:
        try:
            _need_alike(node, value, flow)
            return iter(tuple(_from(node, flow.at(value))))
        except Refusal as reason:
            reasons.append(str(reason))
    raise Refusal("; ".join(reasons))


def _quotient(node: ir.Node, flow: _Flow) -> Iterator[Taker]:
    if constant_tensor(node.inputs[1]) is None:
        raise Refusal(f"{name_of(node)} (Div) does not divide by a constant")
    _need_alike(node, node.inputs[0], flow)
    return _passes(node, flow)


def _need_alike(node: ir.Node, value: ir.Value | None, flow: _Flow) -> None:
    dims = dims_of(value)
    if dims is None or len(dims) != len(flow.dims) or dims[flow.axis] != flow.channels:
        raise Refusal(f"{name_of(node)} ({node.op_type}) repeats {value.name if value else '?'} along these channels")


def _clip(node: ir.Node, flow: _Flow) -> Iterator[Taker]:
    """A bound of zero or beyond every number stays; another one has to move with its channel."""
    for position, value in enumerate(node.inputs[1:], 1):
        bound = constant(value)
        if value is None or (bound is not None and (not bound.any() or np.abs(bound) >= np.finfo(bound.dtype).max)):
            continue
        if not flow.clips or bound is None:
            shown = "?" if bound is None else f"{float(bound.reshape(-1)[0]):g}"
            raise Refusal(f"{name_of(node)} (Clip) clips every channel at {shown}")
        yield _operand(node, position, flow, len(flow.dims), flow.axis, flow.channels)
    yield from _passes(node, flow)


def _attention(node: ir.Node, flow: _Flow) -> Iterator[Taker]:
    """Attention is linear in its values, whose head h is head ``h // (q heads / kv heads)``."""
    before = dims_of(node.inputs[2])
    heads = integer(node, "q_num_heads", 0)
    more = [v for v in node.inputs[4:6] if v is not None] + [v for v in node.outputs[1:] if v.name and v.uses()]
    present = any(v.is_graph_output() for v in node.outputs[1:])
    if not heads or len(flow.dims) != 3 or flow.axis != 2 or before is None or more or present:
        raise Refusal(f"{name_of(node)} (Attention) keeps a cache, or its heads have an axis of their own")
    width = flow.channels // heads
    shared = heads // integer(node, "kv_num_heads", heads)
    index = np.where(flow.index >= 0, flow.index // width // shared * width + flow.index % width, -1)
    return _from(node, flow.at(node.inputs[2], index=index))


_RULES: Mapping[tuple[str, str], Callable[[ir.Node, _Flow], Iterator[Taker]]] = {
    **{("", op): _linear for op in LINEAR},
    **{("", op): _norm for op in ("BatchNormalization", "InstanceNormalization")},
    **{("", op): _norm for op in ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")},
    **{("com.microsoft", op): _norm for op in ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")},
    **{("", op): _passes for op in ("Abs", "LeakyRelu", "Neg", "Relu")},
    **{("", op): _spatial for op in ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "MaxPool")},
    **{("", op): _moved for op in ("Cast", "Dropout", "Identity", "Transpose")},
    **{("", op): _moved for op in ("Flatten", "Reshape", "Squeeze", "Unsqueeze")},
    **{("", op): _mean for op in ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum")},
    **{("", op): _elementwise for op in ("Add", "Max", "Min", "Sub")},
    ("", "Attention"): _attention,
    ("", "Clip"): _clip,
    ("", "Concat"): _concat,
    ("", "Div"): _quotient,
    ("", "Mul"): _product,
    ("", "Pad"): _pad,
    ("", "PRelu"): _slope,
    ("", "Resize"): _resize,
}  # fmt: skip
