"""Fuse rotary position embeddings into RotaryEmbedding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from polycast.passbase import Numerics, Pass, PassContext

from ._attention import SWAP, Mismatch
from ._attention_heads import insert, literal, merged_heads, split_heads
from ._attention_sizes import Sizes
from ._match import constant, new_constant, nodes, producer, substitute
from ._rotary import Rotation, head_axis, match, repeats


@dataclass(frozen=True)
class FuseRotary(Pass):
    """Fuse ``x * cos + rotate_half(x) * sin``, and its form on neighbouring pairs, into ``RotaryEmbedding``.

    x: [batch, heads, sequence, size] or [batch, sequence, heads, size], size even. Where the graph splits x from
    [batch, sequence, hidden], that is what is turned, and the heads are split after it.
    cos, sin: [batch or 1, sequence, size], both halves alike, or [.., size / 2]; computed or cut from a table. A
    constant table from which rows are gathered by position becomes the operator's cache.
    Source: Su et al. 2021, arXiv:2104.09864, section 3.4.2; ONNX RotaryEmbedding, opset 23.
    """

    numerics = Numerics.ROUNDING

    def rewrite(self, graph: ir.Model, ctx: PassContext) -> int:
        """Fuse every rotary embedding of ``graph``; what is nearly one is skipped with the reason."""
        sizes = Sizes(graph)
        turns = _Turns(sizes)
        sites = 0
        for node in nodes(graph, "Concat", "Sub"):
            try:
                found = match(node, sizes)
                if found is not None:
                    _fuse(found, sizes, turns)
                    sites += 1
            except Mismatch as reason:
                ctx.skip(node, str(reason))
        return sites


def _fuse(found: Rotation, sizes: Sizes, turns: _Turns) -> None:
    axis = head_axis(found, sizes)
    if not found.halved and not (repeats(found.cos, sizes) and repeats(found.sin, sizes)):
        raise Mismatch("the halves of cos and sin are not shown to be alike")
    dims, before = sizes.of(found.x), found.output.producer()
    assert dims is not None and before is not None
    heads, size = dims[axis], dims[3]
    assert isinstance(heads, int) and isinstance(size, int)
    turn = turns.of(found, axis, before)
    split = split_heads(found.x, sizes) if axis == 1 else merged_heads(found.x, sizes)
    interleaved = {"interleaved": int(found.interleaved)}
    if axis == 1 and split is None:
        sizes.note(substitute([found.output], "RotaryEmbedding", [found.x, *turn], interleaved))
        return
    if split is not None:
        hidden = split[0]
    else:
        merged = literal(before, sizes, np.array([0, 0, heads * size], np.int64))
        hidden = insert(before, sizes, "Reshape", [found.x, merged])
    turned = insert(before, sizes, "RotaryEmbedding", [hidden, *turn], {"num_heads": heads, **interleaved})
    apart = literal(before, sizes, np.array([0, 0, heads, size], np.int64))
    if axis == 1:
        inner = insert(before, sizes, "Reshape", [turned, apart])
        last = substitute([found.output], "Transpose", [inner])
        last.attributes.add(ir.AttrInt64s("perm", SWAP))
    else:
        last = substitute([found.output], "Reshape", [turned, apart])
    sizes.note(last)


class _Turns:
    """The cos and sin of one model as the operator takes them; what turns alike shares them."""

    def __init__(self, sizes: Sizes) -> None:
        self._sizes = sizes
        self._made: dict[tuple[object, ...], ir.Value] = {}

    def of(self, found: Rotation, axis: int, before: ir.Node) -> list[ir.Value]:
        """Give cos, sin, and the positions where these are tables, in front of ``before``."""
        tables = [_gathered(v, axis) for v in (found.cos, found.sin)]
        (cos, at), (sin, also_at) = (t if t is not None else (None, None) for t in tables)
        if cos is not None and sin is not None and at is not None and at is also_at:
            return [*(self._table(t, found.halved, before) for t in (cos, sin)), at]
        return [self._computed(v, found, axis, before) for v in (found.cos, found.sin)]

    def _table(self, table: ir.Value, halved: bool, before: ir.Node) -> ir.Value:
        """Give ``table``: [positions, size] as [positions, size / 2]."""
        key = (before.graph, table)
        if halved:
            return table
        if key not in self._made:
            array = constant(table)
            assert array is not None
            half = np.ascontiguousarray(array[:, : array.shape[1] // 2])
            self._made[key] = new_constant(f"{table.name}.half", half, before)
        return self._made[key]

    def _computed(self, value: ir.Value, found: Rotation, axis: int, before: ir.Node) -> ir.Value:
        """Give ``value``: broadcast over the heads of x, as [batch, sequence, size / 2]."""
        x = self._sizes.of(found.x)
        assert x is not None
        key = (before.graph, value, x[0], found.halved)
        if key not in self._made:
            plain = self._without_heads(value, axis, before)
            if not found.halved:
                plain = self._half(plain, before)
            dims = self._sizes.of(plain)
            if dims is not None and dims[0] == 1 and x[0] != 1:
                plain = self._for_batch(plain, found.x, before)
            self._made[key] = plain
        return self._made[key]

    def _without_heads(self, value: ir.Value, axis: int, before: ir.Node) -> ir.Value:
        dims = self._sizes.of(value)
        assert dims is not None
        if len(dims) == 3:
            return value
        added = producer(value, "Unsqueeze")
        if len(dims) == 4 and added is not None and self._sizes.integers(added.inputs[1]) in ((axis,), (axis - 4,)):
            assert added.inputs[0] is not None
            return added.inputs[0]
        op, at = ("Unsqueeze", 0) if len(dims) == 2 else ("Squeeze", axis)
        return insert(before, self._sizes, op, [value, literal(before, self._sizes, np.array([at], np.int64))])

    def _half(self, value: ir.Value, before: ir.Node) -> ir.Value:
        dims = self._sizes.of(value)
        assert dims is not None and isinstance(dims[-1], int)
        bounds = [literal(before, self._sizes, np.array([n], np.int64)) for n in (0, dims[-1] // 2, -1)]
        return insert(before, self._sizes, "Slice", [value, *bounds])

    def _for_batch(self, value: ir.Value, x: ir.Value, before: ir.Node) -> ir.Value:
        batch = insert(before, self._sizes, "Shape", [x], {"start": 0, "end": 1})
        ones = literal(before, self._sizes, np.array([1, 1], np.int64))
        shape = insert(before, self._sizes, "Concat", [batch, ones], {"axis": 0})
        return insert(before, self._sizes, "Expand", [value, shape])


def _gathered(value: ir.Value, axis: int) -> tuple[ir.Value, ir.Value] | None:
    """Read ``value`` as rows of a constant table of rank 2, picked by positions: [batch, sequence]."""
    unsqueeze = producer(value, "Unsqueeze")
    gather = producer(unsqueeze.inputs[0], "Gather") if unsqueeze is not None else None
    if unsqueeze is None or gather is None or constant(unsqueeze.inputs[1]) is None:
        return None
    table, at = gather.inputs
    array = constant(table)
    by_row = "axis" not in gather.attributes or gather.attributes["axis"].as_int() == 0
    whole = array is not None and array.ndim == 2 and by_row and at is not None and len(at.shape or ()) == 2
    return (table, at) if whole and table is not None and at is not None else None
