"""Open dimensions: a file for every size, where nothing but the shapes of its tensors depends on the sizes.

The model is converted at several sizes. Where operators and constants agree, the file runs at any size, and a runner
tells it which; where they do not, the size is part of the file, and its user has to give one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest

import numpy as np

from polycast.model import Model
from polycast.reading.dims import fix_dims

from .._tvm.static import batch
from .convert import convert
from .lowering import lowered
from .tensors import Operator, Subgraph, Tensor

#: The sizes that are tried: even and odd, since padding may depend on that, and one that is a multiple of 32.
_SIZES = (64, 41, 30)
#: By how much the sizes of two dimensions differ, so that one cannot pass for the other.
_APART = 32


def rows(model: Model) -> str | None:
    """Give the symbol of the rows that ``model`` treats alike: of which each output has as many as each input.

    Exporters lose the name on the way to an output, so that two sizes are tried where the names do not tell.
    """
    if (known := batch(model)) is not None:
        return known
    firsts = {port.shape[0] if port.shape else None for port in model.signature.inputs}
    symbol = firsts.pop() if len(firsts) == 1 else None
    others = {dim for port in model.signature.inputs for dim in (port.shape or ())[1:]}
    if not isinstance(symbol, str) or symbol == "?" or symbol in others:
        return None
    for size in _SIZES[:2]:
        program, problems = convert(lowered(_at(model, size, None)))
        if problems or any(tensor.shape[:1] != (size,) for tensor in program.outputs):
            return None
    return symbol


def convert_any(model: Model, batch: str | None) -> tuple[Subgraph, tuple[str, ...]]:
    """Convert ``model`` for one row of ``batch``, and for every size of its other open dimensions.

    Returns: as ``convert``.
    """
    dims = {dim for port in model.signature.inputs for dim in port.shape or ("?",) if not isinstance(dim, int)}
    if not dims - {batch}:
        return convert(lowered(_at(model, 0, batch)))
    programs: list[Subgraph] = []
    for size in _SIZES:
        program, problems = convert(lowered(_at(model, size, batch)), open_dims=True)
        if problems:
            return program, tuple(f"{problem}: give --shape" for problem in problems)
        programs.append(program)
    found = _merged(programs)
    if isinstance(found, str):
        names = ", ".join(str(port) for port in model.signature.inputs)
        return programs[0], (f"the size of {names} is not fixed, and {found} depends on it: give --shape",)
    return found, ()


def _at(model: Model, size: int, batch: str | None) -> Model:
    """Give ``model`` with sizes for its open dimensions: one for each symbol, and 1 for ``batch``."""
    symbols: dict[tuple[object, ...], int] = {(batch,): 1} if batch else {}

    def of(name: str, axis: int, dim: int | str) -> int:
        if isinstance(dim, int):
            return dim
        key = (name, axis) if dim == "?" else (dim,)
        return symbols.setdefault(key, size + _APART * (len(symbols) - (batch is not None)))

    shapes = {
        port.name: tuple(of(port.name, axis, dim) for axis, dim in enumerate(port.shape or ()))
        for port in model.signature.inputs
    }
    if all(shape == port.shape for shape, port in zip(shapes.values(), model.signature.inputs, strict=True)):
        return model
    draft = model.draft()
    fix_dims(draft, shapes)
    return replace(model, graph=draft)


def _merged(programs: Sequence[Subgraph]) -> Subgraph | str:
    """Give the one program that ``programs`` are, or name the operator that tells them apart."""
    first: Subgraph = programs[0]
    for operators in zip_longest(*(each.operators for each in programs)):
        if None in operators or not _agree(operators):
            return next(operator.kind for operator in operators if operator is not None)
    for tensors in zip(*(_activations(each) for each in programs), strict=True):
        sizes = list(zip(*(tensor.shape for tensor in tensors), strict=True))
        if any(len(set(each)) > 1 for each in sizes):
            tensors[0].signature = tuple(each[0] if len(set(each)) == 1 else -1 for each in sizes)
    return first


def _activations(program: Subgraph) -> list[Tensor]:
    return [*program.inputs, *(tensor for operator in program.operators for tensor in operator.outputs)]


def _agree(operators: Sequence[Operator]) -> bool:
    """Whether operators of several programs are the same one; a size that it can find out itself becomes -1."""
    first = operators[0]
    if len({(each.kind, len(each.inputs), len(each.outputs)) for each in operators}) > 1:
        return False
    for index, tensors in enumerate(zip(*(each.inputs for each in operators), strict=True)):
        if first.kind == "RESHAPE" and index == 1:
            continue
        if not all(_same(tensors[0], other) for other in tensors[1:]) and not (
            first.kind == "SLICE" and index == 2 and _to_the_end(operators)
        ):
            return False
    if first.kind == "RESHAPE":
        return _reshapes_alike(operators)
    return all(each.options == first.options for each in operators)


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    if (one.dtype, one.grid, one.data is None, len(one.shape)) != (
        other.dtype, other.grid, other.data is None, len(other.shape),
    ):  # fmt: skip
        return False
    return one.data is None or other.data is None or np.array_equal(one.data, other.data)


def _reshapes_alike(operators: Sequence[Operator]) -> bool:
    """Whether the shapes differ on one axis at most, which is then left to be found out."""
    shapes = [tuple(each.outputs[0].shape) for each in operators]
    if len({len(shape) for shape in shapes}) > 1:
        return False
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


def _to_the_end(operators: Sequence[Operator]) -> bool:
    """Whether the sizes of a SLICE differ only where it reaches to the end of an axis, which -1 says too."""
    begins, sizes = (np.array([o.inputs[at].data for o in operators]) for at in (1, 2))  # type: ignore[union-attr]
    shapes = np.array([o.inputs[0].shape for o in operators])  # type: ignore[union-attr]
    differs = (sizes != sizes[0]).any(axis=0)
    if (begins != begins[0]).any() or not (begins + sizes == shapes)[:, differs].all():
        return False
    wanted = np.where(differs, -1, sizes[0]).astype(np.int32)
    first = operators[0]
    target = Tensor(f"{first.outputs[0].name}.sizes", "int32", wanted.shape, wanted)
    first.inputs = [*first.inputs[:2], target]
    return True
