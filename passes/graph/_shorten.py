"""Two nodes in a row that one of them can do alone: Cast, layout, Transpose."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ._edit import Body, constant_before
from ._facts import Facts
from ._noops import LAYOUT, permutation
from ._read import given, integer, ints_of
from ._shapes import Dims

#: Mantissa bits (the hidden one included) and largest exponent.
_FLOATS = {
    ir.DataType.FLOAT16: (11, 15),
    ir.DataType.BFLOAT16: (8, 127),
    ir.DataType.FLOAT: (24, 127),
    ir.DataType.DOUBLE: (53, 1023),
}

#: Value bits, and whether negative numbers are among the values.
_INTS = {
    ir.DataType.BOOL: (1, False),
    **{ir.DataType[f"UINT{bits}"]: (bits, False) for bits in (4, 8, 16, 32, 64)},
    **{ir.DataType[f"INT{bits}"]: (bits - 1, True) for bits in (4, 8, 16, 32, 64)},
}


def shorten(node: ir.Node, facts: Facts) -> bool:
    """Let ``node`` read past the node above it, where it alone can do what both do. Returns: whether it does now."""
    x = given(node, 0)
    above = x.producer() if x is not None else None
    if above is None or node.domain != "" or above.domain != "" or given(above, 0) is None:
        return False
    if node.op_type == "Cast" and above.op_type == "Cast":
        return _cast(node, above, facts)
    if node.op_type == "Reshape" and above.op_type in LAYOUT:
        return _reshape(node, above, facts)
    if node.op_type == "Transpose" and above.op_type == "Transpose":
        return _transpose(node, above, facts)
    return False


def holds_all(wide: ir.DataType, narrow: ir.DataType) -> bool:
    """Whether every value of ``narrow`` is a value of ``wide``."""
    if narrow == wide:
        return True
    if narrow in _FLOATS:
        return wide in _FLOATS and all(w >= n for w, n in zip(_FLOATS[wide], _FLOATS[narrow], strict=True))
    if narrow not in _INTS:
        return False
    bits, signed = _INTS[narrow]
    if wide in _FLOATS:
        return bits <= min(_FLOATS[wide])
    return wide in _INTS and bits <= _INTS[wide][0] and (_INTS[wide][1] or not signed)


def _cast(node: ir.Node, above: ir.Node, facts: Facts) -> bool:
    source = above.inputs[0]
    assert source is not None
    first = facts.shapes.dtype(source)
    between, last = integer(above, "to", None), integer(node, "to", None)
    if first is None or between is None or last is None:
        return False
    a, b, c = first, ir.DataType(between), ir.DataType(last)
    if not holds_all(b, a):
        facts.ctx.skip(node, f"{a.name.lower()} -> {b.name.lower()} may lose values")
        return False
    if c not in _FLOATS and c not in _INTS:
        return False  # how a number is written as text depends on its type
    if a in _INTS and b in _FLOATS and not holds_all(c, a):
        facts.ctx.skip(node, f"{a.name.lower()} -> {c.name.lower()} may give other values without {b.name.lower()}")
        return False
    node.replace_input_with(0, source)
    return True


def _transpose(node: ir.Node, above: ir.Node, facts: Facts) -> bool:
    outer, inner = permutation(node, facts), permutation(above, facts)
    if outer is None or inner is None or len(outer) != len(inner):
        return False
    perm = [inner[axis] for axis in outer]
    if perm != list(range(len(perm))) and not _only_reader(node, above):
        return False
    node.attributes["perm"] = ir.AttrInt64s("perm", perm)
    node.replace_input_with(0, above.inputs[0])
    return True


def _reshape(node: ir.Node, above: ir.Node, facts: Facts) -> bool:
    """A Reshape reads past the layout op above it, once no dimension of it copies one of that op's output."""
    if not _only_reader(node, above):
        return False
    new = ints_of(given(node, 1))
    if new is None:
        facts.ctx.skip(node, "the new shape is computed: it may copy a dimension")
        return False
    if 0 in new:
        if integer(node, "allowzero", 0) != 0:
            return False
        resolved = _without_copies(new, facts.shapes.of(above.outputs[0]), facts.shapes.of(above.inputs[0]))
        if resolved is None:
            facts.ctx.skip(node, "the new shape copies a dimension whose size is not known")
            return False
        if resolved != new:
            _set_shape(node, resolved, facts.body)
    node.replace_input_with(0, above.inputs[0])
    return True


def _without_copies(new: tuple[int, ...], between: Dims | None, source: Dims | None) -> tuple[int, ...] | None:
    """Write out each 0 of ``new``, which copies from ``between``; it may stay where ``source`` has the same size."""
    out: list[int] = []
    for axis, size in enumerate(new):
        copied = between[axis] if size == 0 and between is not None and axis < len(between) else None
        if size != 0 or (copied is not None and source is not None and source[axis : axis + 1] == (copied,)):
            out.append(size)
        elif isinstance(copied, int) and copied > 0:
            out.append(copied)
        else:
            return None
    return tuple(out)


def _set_shape(node: ir.Node, shape: tuple[int, ...], body: Body) -> None:
    tensor = ir.Tensor(np.array(shape, np.int64))
    node.replace_input_with(1, constant_before(node, tensor, f"polycast/{node.outputs[0].name}/shape", body))


def _only_reader(node: ir.Node, above: ir.Node) -> bool:
    value = above.outputs[0]
    return not value.is_graph_output() and {user for user, _ in value.uses()} == {node}
