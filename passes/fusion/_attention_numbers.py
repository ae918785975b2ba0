"""The contents of small tensors that are computed from sizes: shapes, mostly, and the scale of an attention."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir

from ._attention_dims import Known, Numbers
from ._attention_rules import flag

#: More numbers than any shape has.
MOST = 16


def _shape_numbers(sizes: Known, node: ir.Node) -> Numbers | None:
    x = sizes.of(node.inputs[0])
    if x is None:
        return None
    end = node.attributes["end"].as_int() if "end" in node.attributes else len(x)
    return x[flag(node, "start") : end]


def _same_numbers(sizes: Known, node: ir.Node) -> Numbers | None:
    return sizes.numbers(node.inputs[0])


def _cast_numbers(sizes: Known, node: ir.Node) -> Numbers | None:
    to, found = node.attributes["to"].as_int(), sizes.numbers(node.inputs[0])
    if found is None or to in (ir.DataType.INT64, ir.DataType.INT32):
        return found and tuple(int(n) if isinstance(n, float) else n for n in found)
    if to in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
        return tuple(float(n) if isinstance(n, int) else n for n in found)
    return None


def _flat_numbers(sizes: Known, node: ir.Node) -> Numbers | None:
    shape = sizes.integers(node.inputs[1])
    return sizes.numbers(node.inputs[0]) if shape is not None and len(shape) <= 1 else None


def _gathered_numbers(sizes: Known, node: ir.Node) -> Numbers | None:
    x, at = sizes.numbers(node.inputs[0]), sizes.integers(node.inputs[1])
    if x is None or at is None or sizes.of(node.inputs[0]) == () or not all(-len(x) <= i < len(x) for i in at):
        return None
    return tuple(x[i] for i in at)


def _sliced_numbers(sizes: Known, node: ir.Node) -> Numbers | None:
    x = sizes.numbers(node.inputs[0])
    given = [*node.inputs, None, None]
    cut = [sizes.integers(given[i]) if given[i] is not None else default for i, default in _SLICE_DEFAULTS]
    if x is None or any(c is None or len(c) != 1 for c in cut):
        return None
    start, end, _, step = (c[0] for c in cut if c is not None)
    return x[start:end:step]


_SLICE_DEFAULTS: tuple[tuple[int, tuple[int, ...]], ...] = ((1, ()), (2, ()), (3, (0,)), (4, (1,)))


def _joined_numbers(sizes: Known, node: ir.Node) -> Numbers | None:
    parts = [sizes.numbers(v) for v in node.inputs]
    return tuple(n for p in parts if p is not None for n in p) if None not in parts else None


def _filled_numbers(sizes: Known, node: ir.Node) -> Numbers | None:
    shape = sizes.integers(node.inputs[0])
    if shape is None or len(shape) > 1 or math.prod(shape) > MOST:
        return None
    attribute = node.attributes.get("value")
    fill = attribute.as_tensor().numpy().reshape(-1)[0].item() if attribute is not None else 0.0
    return (fill,) * math.prod(shape)


def _equal_numbers(sizes: Known, node: ir.Node) -> Numbers | None:
    return _pairwise(sizes, node, _equal)


def _equal(a: float | str, b: float | str) -> bool | None:
    if a == b or (isinstance(a, (int, float)) and isinstance(b, (int, float))):
        return a == b
    number = a if not isinstance(a, str) else b
    return False if not isinstance(number, str) and number < 0 else None  # a size is never negative


def _chosen_numbers(sizes: Known, node: ir.Node) -> Numbers | None:
    which, yes, no = (sizes.numbers(v) for v in node.inputs)
    if which is None or yes is None or no is None or not len(which) == len(yes) == len(no):
        return None
    return tuple(None if w is None else y if w else n for w, y, n in zip(which, yes, no, strict=True))


def _arithmetic(compute: Callable[[float, float], float]) -> Callable[[Known, ir.Node], Numbers | None]:
    def numbers(a: float | str, b: float | str) -> float | None:
        return compute(a, b) if not isinstance(a, str) and not isinstance(b, str) else None

    return lambda sizes, node: _pairwise(sizes, node, numbers)


def _pairwise(
    sizes: Known, node: ir.Node, compute: Callable[[float | str, float | str], float | str | None]
) -> Numbers | None:
    a, b = (sizes.numbers(v) for v in node.inputs)
    if not a or not b or (len(a) != len(b) and 1 not in (len(a), len(b))):
        return None
    length = max(len(a), len(b))
    pairs = zip(a * (length // len(a)), b * (length // len(b)), strict=True)
    return tuple(None if x is None or y is None else compute(x, y) for x, y in pairs)


def _root_numbers(sizes: Known, node: ir.Node) -> Numbers | None:
    found = sizes.numbers(node.inputs[0])
    return found and tuple(math.sqrt(n) if isinstance(n, float) and n >= 0 else None for n in found)


def _divide(a: float, b: float) -> float:
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a >= 0 and b > 0 else math.nan
    return a / b if b else math.nan


NUMBERS: dict[str, Callable[[Known, ir.Node], Numbers | None]] = {
    "Add": _arithmetic(lambda a, b: a + b),
    "Cast": _cast_numbers,
    "Concat": _joined_numbers,
    "ConstantOfShape": _filled_numbers,
    "Div": _arithmetic(_divide),
    "Equal": _equal_numbers,
    "Gather": _gathered_numbers,
    "Identity": _same_numbers,
    "Mul": _arithmetic(lambda a, b: a * b),
    "Reshape": _flat_numbers,
    "Shape": _shape_numbers,
    "Slice": _sliced_numbers,
    "Sqrt": _root_numbers,
    "Squeeze": _same_numbers,
    "Sub": _arithmetic(lambda a, b: a - b),
    "Unsqueeze": _same_numbers,
    "Where": _chosen_numbers,
}
