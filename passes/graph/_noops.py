"""Nodes that give what they take."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from ._facts import Facts
from ._read import array_of, given, integer, integers, ints_of
from ._shapes import same, same_for_equal_sizes

#: Keep every element in its place in memory, whatever they do to the shape.
LAYOUT = {"Reshape", "Flatten", "Squeeze", "Unsqueeze"}

Rule = Callable[[ir.Node, Facts], ir.Value | None]

#: A Slice that ends here goes to the end, whatever the size.
_TO_THE_END = (1 << 31) - 1


def same_as_input(node: ir.Node, facts: Facts) -> ir.Value | None:
    """Give the earlier value that output 0 of ``node`` always equals; None where there is none to be proved."""
    rule = _RULES.get(node.op_type) if node.domain == "" else None
    return rule(node, facts) if rule is not None and node.inputs and given(node, 0) is not None else None


def _identity(node: ir.Node, facts: Facts) -> ir.Value | None:
    return node.inputs[0]


def _cast(node: ir.Node, facts: Facts) -> ir.Value | None:
    x = node.inputs[0]
    assert x is not None
    dtype = facts.shapes.dtype(x)
    return x if dtype is not None and dtype == integer(node, "to", None) else None


def _dropout(node: ir.Node, facts: Facts) -> ir.Value | None:
    if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        return None
    if facts.opset(node) < 7:
        return node.inputs[0] if integer(node, "is_test", 0) == 1 else None
    training = given(node, 2)
    if training is None:
        return node.inputs[0]
    mode = array_of(training)
    if mode is None:
        facts.ctx.skip(node, "training_mode is computed")
    return node.inputs[0] if mode is not None and not mode.any() else None


def _layout(node: ir.Node, facts: Facts) -> ir.Value | None:
    """Find the value up the chain of layout ops that has the shape of this one's output."""
    dims = facts.shapes.of(node.outputs[0])
    x = node.inputs[0]
    if node.op_type == "Reshape" and x is not None and _keeps_every_dim(node, facts):
        return x
    if node.op_type in ("Squeeze", "Unsqueeze") and (undone := _undone(node)) is not None:
        return undone
    best: ir.Value | None = None
    while x is not None:
        if same_for_equal_sizes(dims, facts.shapes.of(x)):
            best = x
        above = x.producer()
        if above is None or above.op_type not in LAYOUT or above.domain != "" or not above.inputs:
            return best
        x = above.inputs[0]
    return best


def _keeps_every_dim(node: ir.Node, facts: Facts) -> bool:
    new, old = ints_of(given(node, 1)), facts.shapes.of(node.inputs[0])
    if new is None or old is None or len(new) != len(old) or integer(node, "allowzero", 0) != 0:
        return False
    return sum(n == -1 for n in new) <= 1 and all(n in (0, -1) or n == o for n, o in zip(new, old, strict=True))


def _undone(node: ir.Node) -> ir.Value | None:
    """Squeeze and Unsqueeze of the same axes cancel: both count them in the larger of the two ranks."""
    x = node.inputs[0]
    above = x.producer() if x is not None else None
    other = "Unsqueeze" if node.op_type == "Squeeze" else "Squeeze"
    if above is None or above.op_type != other or above.domain != "":
        return None
    axes, undone = integers(node, "axes", 1), integers(above, "axes", 1)
    return above.inputs[0] if axes and undone and sorted(axes) == sorted(undone) else None


def permutation(node: ir.Node, facts: Facts) -> tuple[int, ...] | None:
    """Give the permutation of a ``Transpose``, which is the reversal where none is written."""
    if "perm" in node.attributes:
        return integers(node, "perm")
    rank = facts.shapes.rank(node.inputs[0])
    return tuple(reversed(range(rank))) if rank is not None else None


def _transpose(node: ir.Node, facts: Facts) -> ir.Value | None:
    perm = permutation(node, facts)
    return node.inputs[0] if perm is not None and perm == tuple(range(len(perm))) else None


def _pad(node: ir.Node, facts: Facts) -> ir.Value | None:
    pads = integers(node, "pads", 1)
    return node.inputs[0] if pads is not None and not any(pads) else None


def _slice(node: ir.Node, facts: Facts) -> ir.Value | None:
    starts, ends = integers(node, "starts", 1), integers(node, "ends", 2)
    if starts is None or ends is None or len(starts) != len(ends):
        return None
    steps = ints_of(node.inputs[4]) if given(node, 4) is not None else (1,) * len(starts)
    if steps is None or any(step != 1 for step in steps):
        return None
    if all(start == 0 and end >= _TO_THE_END for start, end in zip(starts, ends, strict=True)):
        return node.inputs[0]
    before, after = facts.shapes.of(node.inputs[0]), facts.shapes.of(node.outputs[0])
    axes = range(len(starts)) if "axes" not in node.attributes and given(node, 3) is None else integers(node, "axes", 3)
    if before is None or after is None or axes is None:
        return None
    # Of a fixed size, a Slice of step 1 that keeps the size keeps everything.
    return node.inputs[0] if all(isinstance(before[a], int) and before[a] == after[a] for a in axes) else None


def _expand(node: ir.Node, facts: Facts) -> ir.Value | None:
    before, target = facts.shapes.of(node.inputs[0]), ints_of(given(node, 1))
    if before is not None and target is not None and len(target) <= len(before) and set(target) <= {1}:
        return node.inputs[0]
    return node.inputs[0] if same(before, facts.shapes.of(node.outputs[0])) else None


def _tile(node: ir.Node, facts: Facts) -> ir.Value | None:
    repeats = ints_of(given(node, 1))
    return node.inputs[0] if repeats is not None and set(repeats) <= {1} else None


def _single(node: ir.Node, facts: Facts) -> ir.Value | None:
    return node.inputs[0] if len(node.inputs) == 1 else None


def _split(node: ir.Node, facts: Facts) -> ir.Value | None:
    return node.inputs[0] if len(node.outputs) == 1 else None


def _clip(node: ir.Node, facts: Facts) -> ir.Value | None:
    bounds = [given(node, 1), given(node, 2)]
    return node.inputs[0] if facts.opset(node) >= 11 and bounds == [None, None] else None


_RULES: dict[str, Rule] = {
    "Identity": _identity,
    "Cast": _cast,
    "Dropout": _dropout,
    "Transpose": _transpose,
    "Pad": _pad,
    "Slice": _slice,
    "Expand": _expand,
    "Tile": _tile,
    "Split": _split,
    "Clip": _clip,
    **dict.fromkeys(LAYOUT, _layout),
    **dict.fromkeys(("Concat", "Sum", "Max", "Min", "Mean"), _single),
}
