"""Shape arithmetic with symbols: what small integer tensors hold, as far as shapes tell.

An element is a number, the name of a symbolic size (or an expression of such names), or None where it is not known.
Names stand for the sizes of dimensions, so they are never negative.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from ._facts import Facts
from ._read import array_of, given, integer, integers, ints_of
from ._shapes import Dim, Dims

#: A longer vector is no shape.
_MOST = 64


@dataclass(frozen=True)
class Known:
    """The elements of a tensor of rank 0 (``scalar``) or 1."""

    elements: Dims
    scalar: bool = False

    @property
    def complete(self) -> bool:
        """Whether every element is a number or a name."""
        return None not in self.elements

    @property
    def numbers(self) -> tuple[int, ...] | None:
        """The elements, where all of them are numbers."""
        return tuple(e for e in self.elements if isinstance(e, int)) if self.fixed else None

    @property
    def fixed(self) -> bool:
        """Whether every element is a number."""
        return all(isinstance(e, int) for e in self.elements)


Memory = dict[ir.Value, Known]
Rule = Callable[[ir.Node, Facts, "list[Known | None]"], Known | None]


def known_of(value: ir.Value | None, memory: Memory) -> Known | None:
    """Give what is known of the elements of ``value``: a constant, or what ``evaluate`` found."""
    if value is None or value in memory:
        return memory.get(value) if value is not None else None
    array = array_of(value, _MOST)
    if array is None or array.ndim > 1 or array.dtype.kind not in "iub":
        return None
    return Known(tuple(array.reshape(-1).tolist()), array.ndim == 0)


def evaluate(node: ir.Node, facts: Facts, memory: Memory) -> Known | None:
    """Give what is known of the elements of output 0 of ``node``."""
    rule = _RULES.get(node.op_type) if node.domain == "" and node.inputs else None
    if rule is None:
        return None
    known = rule(node, facts, [known_of(value, memory) for value in node.inputs])
    return known if known is not None and len(known.elements) <= _MOST else None


def _shape(node: ir.Node, facts: Facts, inputs: list[Known | None]) -> Known | None:
    dims = facts.shapes.of(node.inputs[0])
    start, end = integer(node, "start", 0), integer(node, "end", None)
    if dims is None or start is None or ("end" in node.attributes and end is None):
        return None
    return Known(dims[start:end])


def _size(node: ir.Node, facts: Facts, inputs: list[Known | None]) -> Known | None:
    dims = facts.shapes.of(node.inputs[0])
    return Known((_product(dims),), scalar=True) if dims is not None else None


def _gather(node: ir.Node, facts: Facts, inputs: list[Known | None]) -> Known | None:
    data, indices = inputs
    if data is None or data.scalar or indices is None or integer(node, "axis", 0) not in (0, -1):
        return None
    picked = indices.numbers
    if picked is None or not all(-len(data.elements) <= i < len(data.elements) for i in picked):
        return None
    return Known(tuple(data.elements[i] for i in picked), indices.scalar)


def _concat(node: ir.Node, facts: Facts, inputs: list[Known | None]) -> Known | None:
    elements: list[Dim] = []
    for value, known in zip(node.inputs, inputs, strict=True):
        if known is not None and not known.scalar:
            elements += known.elements
        elif (dims := facts.shapes.fixed(value)) is not None and len(dims) == 1 and dims[0] <= _MOST:
            elements += [None] * dims[0]
        else:
            return None
    return Known(tuple(elements))


def _slice(node: ir.Node, facts: Facts, inputs: list[Known | None]) -> Known | None:
    data = inputs[0]
    starts, ends = integers(node, "starts", 1), integers(node, "ends", 2)
    steps = ints_of(node.inputs[4]) if given(node, 4) is not None else (1,)
    if data is None or data.scalar or starts is None or ends is None or steps is None:
        return None
    if (len(starts), len(ends), len(steps)) != (1, 1, 1) or steps[0] <= 0:
        return None
    return Known(data.elements[starts[0] : ends[0] : steps[0]])


def _squeeze(node: ir.Node, facts: Facts, inputs: list[Known | None]) -> Known | None:
    data = inputs[0]
    return Known(data.elements, scalar=True) if data is not None and len(data.elements) == 1 else None


def _unsqueeze(node: ir.Node, facts: Facts, inputs: list[Known | None]) -> Known | None:
    data, axes = inputs[0], integers(node, "axes", 1)
    return Known(data.elements) if data is not None and data.scalar and axes in ((0,), (-1,)) else None


def _reshape(node: ir.Node, facts: Facts, inputs: list[Known | None]) -> Known | None:
    data, shape = inputs[0], ints_of(given(node, 1))
    if data is None or shape is None or len(shape) > 1:
        return None
    return Known(data.elements, scalar=not shape)


def _same_elements(node: ir.Node, facts: Facts, inputs: list[Known | None]) -> Known | None:
    return inputs[0]


def _abs(node: ir.Node, facts: Facts, inputs: list[Known | None]) -> Known | None:
    data = inputs[0]
    return Known(tuple(abs(e) if isinstance(e, int) else e for e in data.elements), data.scalar) if data else None


def _cast(node: ir.Node, facts: Facts, inputs: list[Known | None]) -> Known | None:
    data = inputs[0]
    if data is None or integer(node, "to", None) not in (ir.DataType.INT64, ir.DataType.INT32):
        return None
    return Known(tuple(int(e) if isinstance(e, bool) else e for e in data.elements), data.scalar)


def _constant_of_shape(node: ir.Node, facts: Facts, inputs: list[Known | None]) -> Known | None:
    shape = inputs[0].numbers if inputs[0] is not None else None
    attribute = node.attributes.get("value")
    if shape is None or len(shape) > 1 or attribute is None or attribute.is_ref():
        return None
    array = attribute.as_tensor().numpy()
    if array.dtype.kind not in "iub" or sum(shape) > _MOST:
        return None
    return Known(tuple(array.reshape(-1).tolist()) * (shape[0] if shape else 1), scalar=not shape)


def _where(node: ir.Node, facts: Facts, inputs: list[Known | None]) -> Known | None:
    given_ones = [known for known in inputs if known is not None]
    aligned = _broadcast(given_ones)
    if len(given_ones) != 3 or aligned is None:
        return None
    picked = [None if c is None else (y if c else n) for c, y, n in zip(*aligned, strict=True)]
    return Known(tuple(picked), all(known.scalar for known in given_ones))


def _reduce_prod(node: ir.Node, facts: Facts, inputs: list[Known | None]) -> Known | None:
    data = inputs[0]
    if data is None or data.scalar:
        return None
    return Known((_product(data.elements),), scalar=integer(node, "keepdims", 1) == 0)


def _elementwise(combine: Callable[[Dim, Dim], Dim]) -> Rule:
    def rule(node: ir.Node, facts: Facts, inputs: list[Known | None]) -> Known | None:
        given_ones = [known for known in inputs if known is not None]
        aligned = _broadcast(given_ones)
        if len(given_ones) != 2 or aligned is None:
            return None
        return Known(tuple(map(combine, *aligned)), all(known.scalar for known in given_ones))

    return rule


def _broadcast(inputs: list[Known]) -> list[Dims] | None:
    lengths = {len(known.elements) for known in inputs} - {1}
    if len(lengths) > 1:
        return None
    length = lengths.pop() if lengths else 1
    return [known.elements * length if len(known.elements) == 1 else known.elements for known in inputs]


def _product(elements: Dims) -> Dim:
    result: Dim = 1
    for element in elements:
        result = _mul(result, element)
    return result


def _add(a: Dim, b: Dim) -> Dim:
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    if 0 in (a, b):
        return a if b == 0 else b
    return _expression("+", a, b)


def _sub(a: Dim, b: Dim) -> Dim:
    if isinstance(a, int) and isinstance(b, int):
        return a - b
    if b == 0:
        return a
    if a is not None and a == b:
        return 0
    return _undo("+", a, b)


def _mul(a: Dim, b: Dim) -> Dim:
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    if 1 in (a, b):
        return a if b == 1 else b
    return 0 if 0 in (a, b) else _expression("*", a, b)


def _div(a: Dim, b: Dim) -> Dim:
    if isinstance(a, int) and isinstance(b, int):
        return a // b if a >= 0 and b > 0 else None
    if b == 1:
        return a
    return _undo("*", a, b) if isinstance(b, int) and b > 0 else None


def _expression(sign: str, a: Dim, b: Dim) -> Dim:
    """Name a sum or a product; the same two terms give the same name, in any order."""
    if a is None or b is None or any(isinstance(e, int) and e < 0 for e in (a, b)):
        return None  # a name is never negative, so a difference gets none
    low, high = sorted((str(a), str(b)))
    return f"({low} {sign} {high})"


def _undo(sign: str, whole: Dim, part: Dim) -> Dim:
    """Take ``part`` out of a sum or product that was made of it and one more name or number."""
    if not isinstance(whole, str) or part is None:
        return None
    for text in (whole[1 : -len(f" {sign} {part})")], whole[len(f"({part} {sign} ") : -1]):
        element: Dim = int(text) if text.isdecimal() else text
        if text and _expression(sign, element, part) == whole:
            return element
    return None


def _equal(a: Dim, b: Dim) -> Dim:
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    if a is not None and a == b:
        return True
    never = any(isinstance(e, int) and e < 0 for e in (a, b)) and any(isinstance(e, str) for e in (a, b))
    return False if never else None


_RULES: dict[str, Rule] = {
    "Shape": _shape,
    "Size": _size,
    "Gather": _gather,
    "Concat": _concat,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Identity": _same_elements,
    "Abs": _abs,
    "Cast": _cast,
    "ConstantOfShape": _constant_of_shape,
    "Where": _where,
    "ReduceProd": _reduce_prod,
    "Add": _elementwise(_add),
    "Sub": _elementwise(_sub),
    "Mul": _elementwise(_mul),
    "Div": _elementwise(_div),
    "Equal": _elementwise(_equal),
}
