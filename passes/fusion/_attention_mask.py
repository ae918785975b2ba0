"""Making one mask, as runtimes take it, of the terms that mask the scores of an attention."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ._attention import Mask, Match
from ._attention_heads import insert, literal, split_heads
from ._attention_sizes import Sizes
from ._match import constant, dtype_of, exchange, is_op, scalar

_LOWEST = float(np.finfo(np.float32).min)


class Masks:
    """The masks of one model: layers that share their terms share the mask that is made of them."""

    def __init__(self, sizes: Sizes) -> None:
        self._sizes = sizes
        self._made: dict[tuple[object, ...], ir.Value] = {}

    def one(self, found: Match, before: ir.Node) -> ir.Value:
        """Give the mask of ``found``, in front of ``before``."""
        terms = [self._term(mask, before) for mask in found.masks]
        value = terms[0]
        for other in terms[1:]:
            value = self._once(before, "Add", value, other)
        return self._whole(value, found, before)

    def _term(self, mask: Mask, before: ir.Node) -> ir.Value:
        if mask.fill is None:
            _leave_lowest(mask.value)
            return mask.value
        key = (before.graph, mask.value, mask.fill, mask.inverted)
        if key not in self._made:
            number, dtype = scalar(mask.fill), dtype_of(mask.fill) or ir.DataType.FLOAT
            assert number is not None
            fill, zero = (literal(before, self._sizes, np.array(n, dtype.numpy())) for n in (_not_lowest(number), 0))
            branches = (fill, zero) if mask.inverted else (zero, fill)
            self._made[key] = insert(before, self._sizes, "Where", [mask.value, *branches])
            self._made[key].dtype = dtype
        return self._made[key]

    def _whole(self, mask: ir.Value, found: Match, before: ir.Node) -> ir.Value:
        """Expand ``mask`` to a row for each query and a column for each key: kernels broadcast over neither."""
        dims, q, v = (self._sizes.of(x) for x in (mask, found.q, found.v))
        assert dims is not None and q is not None and v is not None
        by_query = len(dims) >= 2 and dims[-2] == q[2]
        by_key = len(dims) >= 1 and dims[-1] != 1
        if by_query and (by_key or v[2] == 1):
            return mask
        key = (before.graph, mask, q[2], None if by_key else v[2])
        if key not in self._made:
            rows = self._size(found.q, before)
            columns = literal(before, self._sizes, np.array([1], np.int64)) if by_key else self._size(found.v, before)
            shape = insert(before, self._sizes, "Concat", [rows, columns], {"axis": 0})
            self._made[key] = insert(before, self._sizes, "Expand", [mask, shape])
        return self._made[key]

    def _size(self, value: ir.Value, before: ir.Node) -> ir.Value:
        """Give the sequence length of ``value``: [batch, heads, sequence, size], taken before its heads were split."""
        split = split_heads(value, self._sizes)
        source, axis = (split[0], 1) if split is not None else (value, 2)
        return insert(before, self._sizes, "Shape", [source], {"start": axis, "end": axis + 1})

    def _once(self, before: ir.Node, op: str, *inputs: ir.Value) -> ir.Value:
        key = (before.graph, op, *inputs)
        if key not in self._made:
            self._made[key] = insert(before, self._sizes, op, inputs)
        return self._made[key]


def _leave_lowest(mask: ir.Value) -> None:
    """Let ``mask`` be one step above the lowest number, where it is made with that.

    A row of nothing but the lowest number is uniform to a softmax, and so it is one step above. To onnxruntime's
    Attention the lowest number itself means "masked", and gives a row of zeros.
    """
    node = mask.producer()
    while node is not None and is_op(node, "Expand", "Identity", "Reshape", "Slice", "Squeeze", "Unsqueeze"):
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    if node is None or not is_op(node, "Where", "Mul"):
        return
    for i, value in enumerate(node.inputs):
        lowest = constant(value) if scalar(value) == _LOWEST else None
        if lowest is not None and lowest.dtype == np.float32:
            exchange(node, i, np.full_like(lowest, _not_lowest(_LOWEST)), "masked")


def _not_lowest(number: float) -> float:
    return float(np.nextafter(np.float32(_LOWEST), np.float32(0))) if number == _LOWEST else number
