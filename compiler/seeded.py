"""Seeded inputs: what a model is run on when the user gave no samples."""

from __future__ import annotations

import ast
import operator
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from .model import Model, Port, most_of

#: Sizes tried for a symbolic dimension whose name says nothing, in this order.
_SIZES = (16, 64, 224, 512, 1024, 8, 1)

_HINTS = (("batch", 1), ("past", 8), ("seq", 16), ("len", 16), ("height", 224), ("width", 224), ("channel", 3))

_LETTERS = {"n": 1, "b": 1, "c": 3, "h": 224, "w": 224}

_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv}


def seeded_feeds(
    model: Model, seed: int = 0, sizes: Mapping[str, int] = MappingProxyType({}), *, near: bool = False
) -> Iterator[dict[str, np.ndarray]]:
    """Yield candidate inputs for one run, likeliest first: which of them a model accepts only a run can tell.

    Floats are standard normal, or from 0 to 1 for a model that takes logarithms or roots of them; token ids lie
    within the table that they index; masks are all ones.
    sizes: of symbols, as far as they are known. near: the rows of an input are like its first one, and none is like the
    one before it: floats differ by a tenth, integers by one, and masks end one earlier.
    """
    ports = model.signature.inputs
    bounds = {port.name: _index_bound(model.graph.graph, port.name) for port in ports}
    for size in (None, *_SIZES):
        chosen = _Sizes(size, _totals(ports), sizes)
        for positive in (False, True):
            rng = np.random.default_rng(seed)
            feeds = {port.name: _array(port, chosen.shape(port), bounds[port.name], rng, positive) for port in ports}
            yield {p.name: _near(p, feeds[p.name], bounds[p.name]) for p in ports} if near else feeds
    if any(port.shape is None for port in ports):
        rng = np.random.default_rng(seed)
        for shape in ((1, 16), (16,), (1, 3, 224, 224)):
            yield {p.name: _array(p, shape if p.shape is None else _Sizes(None).shape(p), None, rng) for p in ports}


def _totals(ports: Sequence[Port]) -> dict[str, str]:
    """Spell what only a mask is as long as, where there is a cache: as long as the cache and what is new together."""
    dims = [(port, axis, dim) for port in ports for axis, dim in enumerate(port.shape or ())]
    past = [dim for _, _, dim in dims if isinstance(dim, str) and "past" in dim.lower() and dim.isidentifier()]
    new = [p.shape[1] for p in ports if p.shape and len(p.shape) == 2 and not _is_mask(p) and p.dtype.startswith("int")]
    masks = {port.shape[-1] for port in ports if port.shape and _is_mask(port)}
    masks -= {dim for port, axis, dim in dims if not _is_mask(port) or axis == 0}
    if not past or not new:
        return {}
    return {dim: f"{past[0]} + {new[0]}" for dim in masks if isinstance(dim, str) and dim.isidentifier()}


def _is_mask(port: Port) -> bool:
    return "mask" in port.name.lower()


class _Sizes:
    """Gives every symbol one size, the same wherever it occurs, but for those that ``totals`` spells by others."""

    def __init__(
        self,
        default: int | None,
        totals: Mapping[str, str] = MappingProxyType({}),
        known: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self.default = default
        self.totals = totals
        self._known = dict(known)

    def shape(self, port: Port) -> tuple[int, ...]:
        return tuple(
            dim if isinstance(dim, int) else self.size(dim, first=axis == 0)
            for axis, dim in enumerate(port.shape if port.shape is not None else (1,))
        )

    def size(self, symbol: str, first: bool) -> int:
        try:
            parsed = ast.parse(self.totals.get(symbol, symbol), mode="eval").body
        except SyntaxError:
            return self.named(symbol, first)
        return max(1, self._value(parsed, first)) if isinstance(parsed, ast.BinOp) else self.named(symbol, first)

    def _value(self, node: ast.expr, first: bool) -> int:
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return int(_OPERATORS[type(node.op)](self._value(node.left, first), self._value(node.right, first)))
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        return self.named(ast.unparse(node), first)

    def named(self, symbol: str, first: bool) -> int:
        return self._known.setdefault(symbol, most_of(symbol) or self._guess(symbol.lower(), first))

    def _guess(self, symbol: str, first: bool) -> int:
        if self.default is not None:
            return 1 if first or "batch" in symbol else self.default
        hinted = next((size for word, size in _HINTS if word in symbol), None)
        return hinted or (1 if first else _LETTERS.get(symbol, 16))


def _array(
    port: Port, shape: tuple[int, ...], bound: int | None, rng: np.random.Generator, positive: bool = False
) -> np.ndarray:
    name = port.name.lower()
    if port.dtype == "str":
        return np.full(shape, "a", dtype=object)
    dtype = np.dtype(port.dtype) if port.dtype != "bfloat16" else np.dtype("float32")
    if dtype.kind == "f":
        return (rng.random(shape) if positive else rng.standard_normal(shape)).astype(dtype)
    if dtype.kind == "b" or _is_mask(port):
        return np.ones(shape, dtype)
    if "position" in name and shape:
        return np.broadcast_to(np.arange(shape[-1]), shape).astype(dtype)
    if "token_type" in name or "segment" in name:
        return np.zeros(shape, dtype)
    return np.asarray(rng.integers(0, bound or 2, shape)).astype(dtype)


def _near(port: Port, array: np.ndarray, bound: int | None) -> np.ndarray:
    """Bring the rows of ``array`` near to its first one."""
    if array.dtype.kind not in "fbiu" or not array.ndim:
        return array
    first, row = array[:1], np.arange(len(array)).reshape(-1, *[1] * (array.ndim - 1))
    if array.dtype.kind == "f":
        found = first + 0.1 * (array - first)
    elif _is_mask(port) and array.ndim > 1 and array.shape[-1] > 1:
        found = array * (np.arange(array.shape[-1]) < np.maximum(array.shape[-1] - row, 1))
    else:
        found = (first + row) % (bound or max(2, int(array.max(initial=0)) + 1))
    return np.asarray(found).astype(array.dtype)


def _index_bound(graph: ir.Graph, name: str) -> int | None:
    """Give the number of rows of the constant table that input ``name`` indexes, or is one-hot for; else None."""
    pending = [value for value in graph.inputs if value.name == name]
    while pending:
        for node, index in pending.pop().uses():
            if node.op_type in ("Gather", "GatherND") and index == 1:
                table = node.inputs[0]
                if table is not None and table.shape is not None:
                    axis = node.attributes.get_int("axis", 0)
                    rows = table.shape[axis]
                    if isinstance(rows, int):
                        return rows
            elif node.op_type == "Equal":
                numbers = ir.convenience.get_const_tensor(node.inputs[1 - index])  # type: ignore[arg-type]
                if numbers is not None and numbers.size > 1:
                    return int(numbers.numpy().max()) + 1
            elif (
                node.op_type in ("Cast", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
                and index == 0
            ):
                pending.append(node.outputs[0])
    return None
