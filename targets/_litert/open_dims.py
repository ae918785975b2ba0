"""Open dimensions: a file for every size, where nothing but the shapes of its tensors depends on the sizes.

The model is converted at several sizes. Where operators and constants agree, the file runs at any size, and a runner
tells it which; where they do not, the size is part of the file, and its user has to give one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from polycast.model import Model
from polycast.reading.dims import fix_dims

from .._tvm.static import batch
from .convert import convert, foreseen
from .lowering import lowered
from .merging import merged
from .tensors import Subgraph

#: The sizes that are tried: even and odd, since padding may depend on that, and one that is a multiple of 32.
_SIZES = (160, 137, 98)
#: By how much the sizes of two dimensions differ, so that one cannot pass for the other.
_APART = 32

#: As many integers as a shape has at most, and twice as many for what is put around each axis.
_FEW = 16


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
    examples = [lowered(_at(model, size, batch)) for size in _SIZES]
    computed = _differing([foreseen(example) for example in examples])
    programs: list[Subgraph] = []
    for example in examples:
        program, problems = convert(example, computed)
        if problems:
            return program, tuple(f"{problem}: give --shape" for problem in problems)
        programs.append(program)
    found = merged(programs)
    if isinstance(found, str):
        names = ", ".join(str(port) for port in model.signature.inputs)
        return programs[0], (f"the size of {names} is not fixed, and {found} depends on it: give --shape",)
    return found, ()


def _differing(known: Sequence[Mapping[str, np.ndarray]]) -> frozenset[str]:
    """Name the values that depend on sizes and are more than a few integers, such as those that a shape is made of."""
    every = {name: [each.get(name) for each in known] for name in set().union(*known)}
    return frozenset(name for name, arrays in every.items() if not _alike(arrays))


def _alike(arrays: Sequence[np.ndarray | None]) -> bool:
    first = arrays[0]
    if first is None or any(each is None or each.shape != first.shape for each in arrays):
        return False
    few = first.dtype in (np.int32, np.int64) and first.ndim <= 1 and first.size <= _FEW
    return few or all(np.array_equal(first, each) for each in arrays if each is not None)


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
