"""Fixing the dimensions of a model's inputs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches

import onnx_ir as ir

from polycast.errors import InputError
from polycast.model import graphs


def fix_dims(model: ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Give the inputs of ``model`` the dimensions in ``shapes``, in place.

    shapes: input name -> one int for each axis. A symbol is replaced wherever it occurs, in other inputs too.
    Raises: InputError for an unknown input, a wrong rank, or a dimension that contradicts another.
    """
    inputs = {value.name or "": value for value in model.graph.inputs}
    bindings: dict[str, int] = {}
    for name, dims in shapes.items():
        if name not in inputs:
            near = get_close_matches(name, inputs, n=1)
            raise InputError(
                f"the model has no input {name!r}",
                f"Did you mean {near[0]!r}?" if near else f"Its inputs: {', '.join(inputs)}",
            )
        _bind(inputs[name], tuple(dims), bindings)
    for graph in graphs(model):
        values = [*graph.inputs, *graph.outputs, *(value for node in graph for value in node.outputs)]
        for value in values:
            if value.shape is not None and any(not isinstance(dim, int) for dim in value.shape):
                value.shape = ir.Shape([_bound(dim, bindings) for dim in value.shape])
    for name, dims in shapes.items():
        inputs[name].shape = ir.Shape(dims)


def _bind(value: ir.Value, dims: tuple[int, ...], bindings: dict[str, int]) -> None:
    """Check ``dims`` against the shape of ``value``, and note what each of its symbols stands for."""
    where = f"input {value.name!r}: shape {list(dims)}"
    if any(d < 0 for d in dims):
        raise InputError(f"{where} has a negative dimension")
    if value.shape is None:
        return
    if len(dims) != len(value.shape):
        raise InputError(f"{where} has {len(dims)} axes: expected {len(value.shape)}, as in {_text(value.shape)}")
    for axis, (dim, fixed) in enumerate(zip(value.shape, dims, strict=True)):
        if isinstance(dim, int):
            expected, why = dim, "which the model fixes"
        elif dim.value is not None:
            expected, why = bindings.setdefault(dim.value, fixed), f"which {dim.value!r} is elsewhere"
        else:
            continue
        if expected != fixed:
            raise InputError(f"{where} has {fixed} on axis {axis}: expected {expected}, {why}")


def _bound(dim: int | ir.SymbolicDim, bindings: Mapping[str, int]) -> int | str | None:
    """Put numbers for symbols: "batch" as a whole, or inside an expression such as "past + 1"."""
    if isinstance(dim, int):
        return dim
    text = dim.value
    if text is None or text in bindings:
        return text and bindings[text]
    if not bindings.keys() & set(re.findall(r"[A-Za-z_][\w.]*", text)):
        return text
    try:
        result = dim.evaluate(bindings)
    except Exception:  # not every exporter's name for a dimension is an expression
        return text
    return result if isinstance(result, int) else result.value


def _text(shape: ir.Shape) -> str:
    return f"[{', '.join(str(d) if isinstance(d, int) else d.value or '?' for d in shape)}]"
