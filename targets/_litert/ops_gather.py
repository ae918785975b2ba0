"""Looking entries up, putting entries in, and repeating them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import onnx_ir as ir

from ._attributes import integer, operand, text
from .ends import constant
from .layout import plain, without
from .ops_logic import cast_to, chosen
from .program import Program
from .registry import Codes, converts
from .tensors import Tensor


def _moves_codes(node: ir.Node) -> Codes:
    return "moves" if constant(node.inputs[1]) is not None else "none"


@converts("Gather", codes=_moves_codes)
def gather(node: ir.Node, to: Program) -> None:
    """Write slices of x along ``axis``, one for each of the indices."""
    x, indices = node.inputs
    assert x is not None and indices is not None
    shape = to.shape(x)
    axis = integer(node, "axis", 0) % len(shape)
    places = _counted_up(to, indices, shape[axis])
    if places.data is not None and not places.shape:
        take_one(node, to, x, axis, int(places.data))
        return
    tensor = to.read(x)
    result = (*shape[:axis], *places.shape, *shape[axis + 1 :])
    to.give(node.outputs[0], to.emit("GATHER", [tensor, places], result, axis=axis))


def take_one(node: ir.Node, to: Program, x: ir.Value, axis: int, index: int) -> None:
    """Write one slice of x, which loses ``axis``, in the layout at hand.

    Elements that lie apart would be copied one by one: of those the axis is moved to the front, once for all slices.
    """
    order = to.common_order([x], len(to.shape(x)))
    order = (axis, *order[:-1]) if order[-1] == axis else order
    tensor, at = to.read(x, order), order.index(axis)
    begin = [index if each == at else 0 for each in range(len(order))]
    sizes = [1 if each == at else size for each, size in enumerate(tensor.shape)]
    cut = to.emit("SLICE", [tensor, to.ints(begin), to.ints(sizes)], sizes)
    cut.least = tensor.least
    left = (*tensor.shape[:at], *tensor.shape[at + 1 :])
    to.give(node.outputs[0], to.reshaped(cut, left), without(order, [axis]))


def _counted_up(to: Program, indices: ir.Value, size: int | np.ndarray) -> Tensor:
    """Give indices of which none counts from the end. size: of the axis, or of each axis that the last axis names."""
    array = to.array(indices)
    if array is not None:
        return to.constant(np.where(array < 0, array + size, array).astype(np.int32), name=indices.name)
    tensor = to.read(indices)
    if tensor.least is not None and tensor.least >= 0:
        return tensor
    zero = to.number(0, tensor.dtype)
    below = to.emit("LESS", [tensor, zero], tensor.shape, "bool")
    whole = to.constant(np.array(size, tensor.dtype), name="size")
    return chosen(to, below, to.emit("ADD", [tensor, whole], tensor.shape), tensor)


@converts("GatherElements")
def gather_elements(node: ir.Node, to: Program) -> None:
    """Write entries of x, of which the indices say the place along ``axis``, and their own place the rest."""
    x, indices = node.inputs
    assert x is not None and indices is not None
    shape = to.shape(x)
    places = _flat_places(node, to, indices, shape)
    flat = to.reshaped(to.read(x), (prod(shape),))
    to.give(node.outputs[0], to.emit("GATHER", [flat, places], places.shape, axis=0))


def _flat_places(node: ir.Node, to: Program, indices: ir.Value, shape: Sequence[int]) -> Tensor:
    """Give places in x as if it were a vector: int32."""
    axis = integer(node, "axis", 0) % len(shape)
    strides = [prod(shape[at + 1 :]) for at in range(len(shape))]
    grid = np.indices(to.shape(indices))
    fixed = sum((grid[at] * strides[at] for at in range(len(shape)) if at != axis), np.zeros(to.shape(indices), int))
    along = _counted_up(to, indices, shape[axis])
    if along.data is not None:
        return to.constant((along.data * strides[axis] + fixed).astype(np.int32), name="places")
    steps = to.emit("MUL", [cast_to(to, along, "int32"), to.number(strides[axis], "int32")], along.shape)
    return to.emit("ADD", [steps, to.constant(fixed.astype(np.int32), name="places")], along.shape)


@converts("GatherND")
def gather_nd(node: ir.Node, to: Program) -> None:
    """Write entries or slices of x, of which the last axis of the indices says the place."""
    x, indices = node.inputs
    assert x is not None and indices is not None
    shape, batch = to.shape(x), integer(node, "batch_dims", 0)
    depth = to.shape(indices)[-1]
    places = _counted_up(to, indices, np.array(shape[batch : batch + depth]))
    if batch:
        places = _with_batch(to, cast_to(to, places, "int32"), batch)
    result = (*places.shape[:-1], *shape[batch + depth :])
    to.give(node.outputs[0], to.emit("GATHER_ND", [to.read(x), places], result))


def _with_batch(to: Program, places: Tensor, batch: int) -> Tensor:
    """Put the place in the first ``batch`` axes before each index."""
    own = np.moveaxis(np.indices(places.shape[:-1])[:batch], 0, -1).astype(np.int32)
    if places.data is not None:
        return to.constant(np.concatenate([own, places.data], -1), name="places")
    shape = (*places.shape[:-1], batch + places.shape[-1])
    return to.emit("CONCATENATION", [to.constant(own, name="own"), places], shape, axis=len(shape) - 1)


@converts("ScatterND")
def scatter_nd(node: ir.Node, to: Program) -> None:
    """Write x with entries or slices of other values in the places that the indices say."""
    x, indices, updates = node.inputs
    assert x is not None and indices is not None and updates is not None
    if text(node, "reduction", "none") != "none":
        to.refuse("values that are combined with those that they replace")
    shape = to.shape(x)
    depth = to.shape(indices)[-1]
    places = cast_to(to, _counted_up(to, indices, np.array(shape[:depth])), "int32")
    _give_scattered(node, to, to.read(x), places, to.read(updates))


@converts("ScatterElements", "Scatter")
def scatter_elements(node: ir.Node, to: Program) -> None:
    """Write x with other entries in the places that the indices say along ``axis``, and their own place the rest."""
    x, indices, updates = node.inputs
    assert x is not None and indices is not None and updates is not None
    if text(node, "reduction", "none") != "none":
        to.refuse("values that are combined with those that they replace")
    shape = to.shape(x)
    places = _flat_places(node, to, indices, shape)
    count = prod(places.shape)
    places, values = to.reshaped(places, (count, 1)), to.reshaped(to.read(updates), (count,))
    _give_scattered(node, to, to.reshaped(to.read(x), (prod(shape),)), places, values)


def _give_scattered(node: ir.Node, to: Program, x: Tensor, places: Tensor, values: Tensor) -> None:
    """Give x with ``values`` in ``places``: what is scattered on zeros where ones that are scattered too say so."""
    if x.dtype != "float32":
        to.refuse(f"values of type {x.dtype}")
    sizes = to.ints(x.shape)
    there = to.emit("SCATTER_ND", [places, values, sizes], x.shape, x.dtype)
    ones = to.constant(np.ones(values.shape, np.float32), name="ones")
    marks = to.emit("SCATTER_ND", [places, ones, sizes], x.shape, x.dtype)
    changed = to.emit("NOT_EQUAL", [marks, to.number(0.0)], x.shape, "bool")
    y = chosen(to, changed, there, x)
    value = node.outputs[0]
    to.give(value, to.reshaped(y, to.shape(node.inputs[0])))  # type: ignore[arg-type]


@converts("OneHot")
def one_hot(node: ir.Node, to: Program) -> None:
    """Write the second of two values where an index says so along a new axis, and the first elsewhere."""
    indices, depth, values = node.inputs
    count, pair = to.array(depth), to.array(values)
    assert indices is not None
    if count is None or pair is None:
        to.refuse("its depth or its values are not constant")
    size = int(count.reshape(()))
    places = cast_to(to, _counted_up(to, indices, np.array(size, to.dtype(indices))), "int32")
    rank = len(places.shape) + 1
    axis = integer(node, "axis", -1) % rank
    shape = (*places.shape[:axis], size, *places.shape[axis:])
    off, on = (to.constant(np.array(v), name="value") for v in pair)
    operands = [places, to.number(size, "int32"), on, off]
    to.give(node.outputs[0], to.emit("ONE_HOT", operands, shape, on.dtype, axis=axis))


@converts("Expand")
def expand(node: ir.Node, to: Program) -> None:
    """Write x repeated along its axes of size 1, and along new ones."""
    x, sizes = node.inputs[0], to.array(operand(node, 1))
    assert x is not None
    if sizes is None:
        to.refuse("its shape is not constant")
    shape = np.broadcast_shapes(to.shape(x), tuple(sizes.tolist()))
    tensor = to.read_broadcast(x, plain(len(shape)))
    y = tensor if tensor.shape == shape else to.emit("BROADCAST_TO", [tensor, to.ints(shape)], shape)
    to.give(node.outputs[0], to.reshaped(y, shape))


@converts("Tile")
def tile(node: ir.Node, to: Program) -> None:
    """Write x repeated so many times along each axis."""
    x, repeats = node.inputs[0], to.array(operand(node, 1))
    assert x is not None
    if repeats is None:
        to.refuse("how often is not constant")
    tensor = to.read(x)
    shape = tuple(size * int(times) for size, times in zip(tensor.shape, repeats, strict=True))
    to.give(node.outputs[0], to.emit("TILE", [tensor, to.ints([int(t) for t in repeats])], shape))


@converts("ConstantOfShape")
def constant_of_shape(node: ir.Node, to: Program) -> None:
    """Write one number in every place of a shape."""
    sizes = to.array(node.inputs[0])
    if sizes is None:
        to.refuse("its shape is not constant")
    value = node.attributes["value"].as_tensor().numpy() if "value" in node.attributes else np.zeros(1, np.float32)
    number = to.constant(value.reshape(()), name="number")
    to.give(node.outputs[0], to.emit("FILL", [to.ints(sizes.tolist()), number], sizes.tolist(), number.dtype))


@converts("Range")
def count(node: ir.Node, to: Program) -> None:
    """Write the numbers from one up to another, by steps."""
    ends = [to.array(value) for value in node.inputs]
    if any(end is None for end in ends):
        to.refuse("its ends are not constant")
    start, stop, step = (to.constant(end, name="number") for end in ends if end is not None)
    length = max(int(np.ceil((stop.data - start.data) / step.data)), 0)  # type: ignore[operator]
    y = to.emit("RANGE", [start, stop, step], (length,))
    y.least = float(start.data) if step.data > 0 else None  # type: ignore[arg-type, operator]
    to.give(node.outputs[0], y)
