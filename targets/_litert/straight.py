"""What is made of a size before the model runs, where a few sizes that are tried have to tell of every other.

Sums, products and choices of entries go on as they begin. What turns somewhere, as a bound or a comparison does, may
turn at a size that is none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

import numpy as np
import onnx_ir as ir

Known = Callable[[ir.Value | None], np.ndarray | None]

#: Operators that add, multiply or move whatever they read.
_STRAIGHT = frozenset({"Add", "Concat", "Mul", "Neg", "Sub", "Sum"})

#: Operators that do so with these operands.
_OPERANDS = {
    **dict.fromkeys(
        (
            "ConstantOfShape", "CumSum", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity",
            "ReduceProd", "ReduceSum", "Reshape", "Shape", "Size", "Slice", "Split", "Squeeze", "Tile", "Transpose",
            "Unsqueeze",
        ),
        frozenset({0}),
    ),
    **dict.fromkeys(("Pad", "ScatterElements", "ScatterND"), frozenset({0, 2})),
    "Where": frozenset({1, 2}),
}  # fmt: skip

_BOUNDS = frozenset({"Abs", "Clip", "Max", "Min", "ReduceMax", "ReduceMin", "Relu"})
_COMPARISONS = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})

#: Operators that give as much of an axis as there is, up to a length; or steps over it.
_CUTS = frozenset({"AveragePool", "Conv", "ConvTranspose", "MaxPool", "Slice"})


def cut(nodes: Iterable[ir.Node], shapes: Sequence[Mapping[str, tuple[int, ...]]]) -> set[str]:
    """Name the values of which an axis is cut to one length at every size tried, and all that follows from them.

    shapes: of values by name, at each of the sizes.
    """
    found = set[str]()
    for node in nodes:
        names = [value.name for value in node.outputs if value.name]
        if any(value is not None and value.name in found for value in node.inputs):
            found.update(names)
        elif node.op_type in _CUTS and node.inputs[0] is not None and names:
            before, after = ([each.get(name or "", ()) for each in shapes] for name in (node.inputs[0].name, names[0]))
            axes = zip(zip(*before, strict=False), zip(*after, strict=False), strict=False)
            least = 1 if node.op_type == "Slice" else 0  # one entry is there at every size
            if any(len(set(b)) > 1 and len(set(a)) == 1 and a[0] > least for b, a in axes):
                found.update(names)
    return found


def turns(node: ir.Node, sizes: AbstractSet[str], cut: AbstractSet[str], array: Known) -> str:
    """Say why what ``node`` makes of sizes may be another thing at one that is not tried; "" where it may not be.

    sizes: names of the values that differ between sizes. cut: see above. array: gives what an operand holds.
    """
    if node.op_type in ("Shape", "Size") and node.inputs[0] is not None and node.inputs[0].name in cut:
        return "what it measures was cut to a length that not every size reaches"
    read = {at for at, value in enumerate(node.inputs) if value is not None and value.name in sizes}
    straight = node.op_type in _STRAIGHT or read <= _OPERANDS.get(node.op_type, frozenset())
    if not read or straight or _is_straight(node, read, array):
        return ""
    if node.op_type in _BOUNDS:
        return "a size has a bound here that no size tried may reach"
    return "what it makes of a size may turn at one that is not tried"


def _is_straight(node: ir.Node, read: AbstractSet[int], array: Known) -> bool:
    """Whether the operands are such that ``node`` computes no more than a sum or a product."""
    known = [each for value in node.inputs if (each := array(value)) is not None]
    match node.op_type:
        case "Cast":
            return node.attributes["to"].as_int() in (ir.DataType.INT32, ir.DataType.INT64)
        case "Div" | "Mod":  # what divides two sums of a size without a rest divides every other, see ``_SIZES``
            return bool(known[1].all()) and not (known[0] % known[1]).any()
        case "Range":
            start, stop, step = (int(array.reshape(())) for array in known)
            return abs(step) == 1 and (stop - start) * step > 0
        case op if op in _COMPARISONS:  # no size is -1, as exporters spell "as it is"
            return any((known[1 - at] < 0).all() for at in read) and all((known[at] >= -1).all() for at in read)
    return False
