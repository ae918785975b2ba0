"""One program of several: the same operators at several sizes, and what differs between them found out in the file."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np

from .sizes import Sizes
from .tensors import Operator, Subgraph, Tensor

#: Operands that may be found out in the file, by operator; their results have fixed shapes all the same.
_COUNTED = {
    "BROADCAST_TO": (1,),
    "FILL": (0,),
    "GATHER": (1,),
    "PAD": (1,),
    "PADV2": (1,),
    "RANGE": (0, 1, 2),
    "RESHAPE": (1,),
    "RESIZE_BILINEAR": (1,),
    "RESIZE_NEAREST_NEIGHBOR": (1,),
    "SPLIT_V": (1,),
    "STRIDED_SLICE": (1, 2),
    "TILE": (1,),
    **dict.fromkeys(
        (
            "ADD", "CAST", "EQUAL", "FLOOR_DIV", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL", "MAXIMUM", "MINIMUM",
            "MUL", "NOT_EQUAL", "SUB",
        ),
        (0, 1),
    ),
    "SELECT_V2": (1, 2),
}  # fmt: skip

#: Operators that go over the second and third axis by steps.
_WINDOWS = frozenset({"AVERAGE_POOL_2D", "CONV_2D", "DEPTHWISE_CONV_2D", "MAX_POOL_2D"})
#: Operators whose results have the sizes of what they read, or sizes that differ by a number.
_KEEPS = frozenset(
    {
        "ADD", "DEQUANTIZE", "DIV", "HARD_SWISH", "LOGISTIC", "MUL", "PAD", "PADV2", "QUANTIZE", "RELU", "RELU6",
        "SQRT", "SQUARE", "SUB", "TANH",
    }
)  # fmt: skip


def merged(programs: Sequence[Subgraph]) -> Subgraph | str:
    """Give the one program that ``programs`` are, or name the operator that tells them apart.

    Where an axis has one size in all of them and could have another elsewhere, the program allocates nothing there.
    """
    sizes, operators = Sizes(), list[Operator]()
    for tensors in zip(*(each.inputs for each in programs), strict=True):
        _open(tensors, sizes)
    for each in zip_longest(*(program.operators for program in programs)):
        if None in each or not _agree(each, sizes):
            return next(operator.kind for operator in each if operator is not None)
        operators += [*sizes.operators, each[0]]
        sizes.operators.clear()
        for tensors in zip(*(operator.outputs for operator in each), strict=True):
            _open(tensors, sizes)
    if any(each.short != programs[0].short for each in programs):
        return "Slice"
    for tensor, axis in _narrowed(operators, programs[0].outputs):
        sizes.hold(tensor, axis)
    programs[0].operators = [*operators, *sizes.operators]
    return programs[0]


def _open(tensors: Sequence[Tensor], sizes: Sizes) -> None:
    """Have the first of ``tensors``, the same one at several sizes, say which of its axes have any size."""
    every = list(zip(*(tensor.shape for tensor in tensors), strict=True))
    if any(len(set(each)) > 1 for each in every):
        tensors[0].signature = tuple(each[0] if len(set(each)) == 1 else -1 for each in every)
        sizes.note(tensors)


def _narrowed(operators: Sequence[Operator], outputs: Sequence[Tensor]) -> list[tuple[Tensor, int]]:
    """Give axes on which windows leave one size of several, where something else than a window or a number reads them.

    As many of the steps of a window as fit are taken, so that a few sizes may give the same that others do not.
    """
    narrow: dict[Tensor, set[int]] = {}
    found: dict[tuple[Tensor, int], None] = {}
    for operator in operators:
        data = [tensor for tensor in operator.inputs if tensor is not None and tensor.data is None]
        slides = operator.kind in _WINDOWS
        if slides or operator.kind in _KEEPS:
            for result in operator.outputs:
                before = set().union(*(narrow.get(tensor, ()) for tensor in data))
                now = {axis for axis in (1, 2) if axis in before or (slides and _is_open(data[0], axis))}
                narrow[result] = {axis for axis in now if not _is_open(result, axis)}
        else:
            found |= {(tensor, axis): None for tensor in data for axis in sorted(narrow.get(tensor, ()))}
    return [*found, *((tensor, axis) for tensor in outputs for axis in sorted(narrow.get(tensor, ())))]


def _is_open(tensor: Tensor, axis: int) -> bool:
    return tensor.signature is not None and tensor.signature[axis] == -1


def _agree(operators: Sequence[Operator], sizes: Sizes) -> bool:
    """Whether operators of several programs are the same one, once what differs is found out in the file."""
    first = operators[0]
    if len({(each.kind, len(each.inputs), len(each.outputs)) for each in operators}) > 1:
        return False
    if any(len({len(t.shape) for t in tensors}) > 1 for tensors in zip(*(o.outputs for o in operators), strict=True)):
        return False
    alike = first.kind in _FITTED and all(_same(first.inputs[0], each.inputs[0]) for each in operators)
    if alike and _FITTED[first.kind](operators):
        return True
    if first.kind == "SLICE":
        for each in operators:
            _stride(each)
    for index, tensors in enumerate(zip(*(each.inputs for each in operators), strict=True)):
        if not all(_same(tensors[0], other) for other in tensors[1:]) and not _counted(operators, index, sizes):
            return False
    if first.kind == "RESHAPE":
        first.options = {}  # the shape is an input now
        return True
    return all(each.options == first.options for each in operators)


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    if (one.dtype, one.grid, one.data is None, len(one.shape)) != (
        other.dtype, other.grid, other.data is None, len(other.shape),
    ):  # fmt: skip
        return False
    return one.data is None or other.data is None or np.array_equal(one.data, other.data)


def _counted(operators: Sequence[Operator], index: int, sizes: Sizes) -> bool:
    """Have one input of the first operator found out in the file. Returns: whether it can be."""
    first, tensors = operators[0], [each.inputs[index] for each in operators]
    arrays = [tensor.data for tensor in tensors if tensor is not None and tensor.data is not None]
    if index not in _COUNTED.get(first.kind, ()) or len(arrays) < len(tensors):
        return False
    made = sizes.write(arrays, f"{first.outputs[0].name}.{index}")
    if made is None:
        return False
    first.inputs = [*first.inputs[:index], made, *first.inputs[index + 1 :]]
    return True


def _reshapes_alike(operators: Sequence[Operator]) -> bool:
    """Whether the shapes differ on one axis at most, which is then left to be found out: XNNPACK takes it so."""
    shapes = [tuple(each.outputs[0].shape) for each in operators]
    open_axes = [axis for axis, sizes in enumerate(zip(*shapes, strict=True)) if len(set(sizes)) > 1]
    if len(open_axes) > 1:
        return False
    if open_axes:
        wanted = np.array([-1 if axis in open_axes else size for axis, size in enumerate(shapes[0])], np.int32)
        first = operators[0]
        target = Tensor(f"{first.outputs[0].name}.shape", "int32", wanted.shape, wanted)
        first.inputs = [first.inputs[0], target]
        first.options = {"newShape": wanted.tolist()}
    return True


def _slices_alike(operators: Sequence[Operator]) -> bool:
    """Whether the sizes of a SLICE differ only where it reaches to the end of an axis, which a mask says."""
    first = operators[0]
    begins, sizes = (np.array([o.inputs[at].data for o in operators]) for at in (1, 2))  # type: ignore[union-attr]
    shapes = np.array([o.inputs[0].shape for o in operators])  # type: ignore[union-attr]
    differs = (sizes != sizes[0]).any(axis=0)
    if (begins != begins[0]).any() or not (begins + sizes == shapes)[:, differs].all():
        return False
    if differs.any():
        _stride(first)
        first.options = {"endMask": sum(1 << int(axis) for axis in np.flatnonzero(differs))}
    return True


#: What finds sizes out by itself, and XNNPACK with it.
_FITTED = {"RESHAPE": _reshapes_alike, "SLICE": _slices_alike}


def _stride(operator: Operator) -> None:
    """Spell a SLICE as a STRIDED_SLICE: the former's kernel does not take new sizes once it has had some."""
    x, begin, size = operator.inputs
    assert begin is not None and size is not None and begin.data is not None and size.data is not None
    ends, steps = begin.data + size.data, np.ones_like(begin.data)
    name = operator.outputs[0].name
    operator.kind = "STRIDED_SLICE"
    operator.inputs = [
        x, begin, *(Tensor(f"{name}.{what}", "int32", a.shape, a) for what, a in (("ends", ends), ("steps", steps))),
    ]  # fmt: skip
