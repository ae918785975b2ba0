"""Fixing the dimensions of a model's inputs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches

import onnx_ir as ir

from polycast.errors import InputError
from polycast.model import Dims, graphs, up_to

_BOUND = re.compile(r"\.\.([1-9]\d*)")


def fix_dims(model: ir.Model, shapes: Mapping[str, Dims]) -> None:
    """Give the inputs of ``model`` the dimensions in ``shapes``, in place.

    shapes: input name -> a size for each axis. A symbol is replaced wherever it occurs, in other inputs too.
    Raises: InputError for an unknown input, a wrong rank, or a dimension that contradicts another.
    """
    inputs = {value.name or "": value for value in model.graph.inputs}
    bindings: dict[str, int | str] = {}
    for name, dims in shapes.items():
        if name not in inputs:
            near = get_close_matches(name, inputs, n=1)
            raise InputError(
                f"the model has no input {name!r}",
                f"Did you mean {near[0]!r}?" if near else f"Its inputs: {', '.join(inputs)}",
            )
        _bind(inputs[name], _read(name, dims), bindings)
    fix_symbols(model, bindings)
    for name, dims in shapes.items():
        inputs[name].shape = ir.Shape(_read(name, dims))


def fix_symbols(model: ir.Model, bindings: Mapping[str, int | str]) -> None:
    """Put what ``bindings`` says in the place of symbols wherever they occur in shapes, in place."""
    for graph in graphs(model):
        values = [*graph.inputs, *graph.outputs, *(value for node in graph for value in node.outputs)]
        for value in values:
            if value.shape is not None and any(not isinstance(dim, int) for dim in value.shape):
                value.shape = ir.Shape([_bound(dim, bindings) for dim in value.shape])


def _read(name: str, dims: Dims) -> Dims:
    """Put the symbol of a bound in the place of its text."""
    found: list[int | str] = []
    for dim in dims:
        bound = _BOUND.fullmatch(dim) if isinstance(dim, str) else None
        if isinstance(dim, str) and bound is None:
            raise InputError(f"input {name!r}: {dim!r} is no size; 8 fixes one, and '..8' allows any up to that")
        found.append(up_to(int(bound[1])) if bound else dim)
    return tuple(found)


def _bind(value: ir.Value, dims: Dims, bindings: dict[str, int | str]) -> None:
    """Check ``dims`` against the shape of ``value``, and note what each of its symbols stands for."""
    where = f"input {value.name!r}: shape [{', '.join(map(str, dims))}]"
    if any(isinstance(d, int) and d < 0 for d in dims):
        raise InputError(f"{where} has a negative dimension")
    if value.shape is None:
        return
    if len(dims) != len(value.shape):
        raise InputError(f"{where} has {len(dims)} axes: expected {len(value.shape)}, as in {_text(value.shape)}")
    for axis, (dim, fixed) in enumerate(zip(value.shape, dims, strict=True)):
        if isinstance(dim, int):
            expected: int | str = dim
            why = "which the model fixes"
        elif dim.value is not None:
            expected, why = bindings.setdefault(dim.value, fixed), f"which {dim.value!r} is elsewhere"
        else:
            continue
        if expected != fixed:
            raise InputError(f"{where} has {fixed} on axis {axis}: expected {expected}, {why}")


def _bound(dim: int | ir.SymbolicDim, bindings: Mapping[str, int | str]) -> int | str | None:
    """Put numbers for symbols: "batch" as a whole, or inside an expression such as "past + 1"."""
    if isinstance(dim, int):
        return dim
    text = dim.value
    if text is None or text in bindings:
        return text and bindings[text]
    if not bindings.keys() & set(re.findall(r"[A-Za-z_][\w.]*", text)):
        return text
    try:
        result = dim.evaluate({symbol: size for symbol, size in bindings.items() if isinstance(size, int)})
    except Exception:  # not every exporter's name for a dimension is an expression
        return text
    return result if isinstance(result, int) else result.value


def _text(shape: ir.Shape) -> str:
    return f"[{', '.join(str(d) if isinstance(d, int) else d.value or '?' for d in shape)}]"
