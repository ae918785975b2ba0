"""Open dimensions: a file for every size, where operators do not depend on the sizes, and constants follow from them.

The model is converted at several sizes. Where the operators agree, what differs in their constants is found out in the
file, and it runs at any size that a runner tells it; where they do not, the user has to give a size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

import numpy as np
from onnx.shape_inference import InferenceError

from polycast.model import Model
from polycast.reading.dims import fix_dims

from .convert import Varying, convert, foreseen
from .lowering import lowered
from .merging import merged
from .straight import cut
from .tensors import Subgraph

#: The sizes that are tried together: even and odd, since padding may depend on that, and some a multiple of 32. There
#: are models for long inputs alone, and models whose tables end early. No number divides all that they differ by, so
#: that what divides a sum of them divides it at every size.
_SIZES = ((160, 137, 99), (576, 545, 481), (61, 44, 35))
#: By how much the sizes of two dimensions differ, so that one cannot pass for the other; and up to how much more, not
#: always the same, so that one cannot pass for the other and a number.
_APART, _MORE = 32, 7

#: What says that a model does not go with a size, wherever that first shows.
_MISFITS = (ArithmeticError, LookupError, ValueError, InferenceError)

#: As many integers as a shape has at most, and twice as many for what is put around each axis.
_FEW = 16


def convert_any(model: Model, batch: str | None) -> tuple[Subgraph, tuple[str, ...]]:
    """Convert ``model`` for one row of ``batch``, and for every size of its other open dimensions.

    Returns: as ``convert``.
    """
    dims = {dim for port in model.signature.inputs for dim in port.shape or ("?",) if not isinstance(dim, int)}
    if not dims - {batch}:
        return convert(lowered(_at(model, 0, batch)))
    problems: tuple[str, ...] = ()
    for sizes in _SIZES:
        try:
            found = _converted(model, sizes, batch)
        except _MISFITS as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            found = (f"it does not go with sizes of {', '.join(map(str, sizes))}: {line}",)
        if isinstance(found, Subgraph):
            return found, ()
        problems = problems or found
    return Subgraph(""), tuple(f"{problem}: give --shape" for problem in problems)


def _converted(model: Model, sizes: Sequence[int], batch: str | None) -> Subgraph | tuple[str, ...]:
    """Convert ``model`` at several sizes into one program. Returns: it, or what cannot be written."""
    examples = [lowered(_at(model, size, batch)) for size in sizes]
    arrays, shapes = zip(*(foreseen(example) for example in examples), strict=True)
    varying = _varying(arrays, cut(examples[0].graph.graph, shapes))
    programs: list[Subgraph] = []
    for example in examples:
        program, problems = convert(example, varying)
        if problems:
            return problems
        programs.append(program)
    found = merged(programs)
    if isinstance(found, Subgraph):
        return found
    names = ", ".join(str(port) for port in model.signature.inputs)
    return (f"the size of {names} is not fixed, and {found} depends on it",)


def _varying(known: Sequence[Mapping[str, np.ndarray]], cut: AbstractSet[str]) -> Varying:
    """Name the values that differ between sizes."""
    every = {name: [each.get(name) for each in known] for name in set().union(*known)}
    differ = {name: arrays for name, arrays in every.items() if not _equal(arrays)}
    sizes = {name for name, arrays in differ.items() if _are_few(arrays)}
    return Varying(sizes, differ.keys() - sizes, cut)


def _equal(arrays: Sequence[np.ndarray | None]) -> bool:
    first = arrays[0]
    return all(first is not None and each is not None and np.array_equal(first, each) for each in arrays)


def _are_few(arrays: Sequence[np.ndarray | None]) -> bool:
    """Whether these are a few integers, such as those that a shape is made of."""
    first = arrays[0]
    if first is None or first.dtype not in (np.int32, np.int64) or first.ndim > 1 or first.size > _FEW:
        return False
    return all(each is not None and each.shape == first.shape for each in arrays)


def _at(model: Model, size: int, batch: str | None) -> Model:
    """Give ``model`` with sizes for its open dimensions: one for each symbol, and 1 for ``batch``."""
    symbols: dict[tuple[object, ...], int] = {(batch,): 1} if batch else {}

    def of(name: str, axis: int, dim: int | str) -> int:
        if isinstance(dim, int):
            return dim
        key = (name, axis) if dim == "?" else (dim,)
        return symbols.setdefault(key, size + (_APART + size % _MORE) * (len(symbols) - (batch is not None)))

    shapes = {
        port.name: tuple(of(port.name, axis, dim) for axis, dim in enumerate(port.shape or ()))
        for port in model.signature.inputs
    }
    if all(shape == port.shape for shape, port in zip(shapes.values(), model.signature.inputs, strict=True)):
        return model
    draft = model.draft()
    fix_dims(draft, shapes)
    return replace(model, graph=draft)
