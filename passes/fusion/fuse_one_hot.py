"""Fuse a product of one-hot vectors into a lookup."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from polycast.passbase import Numerics, Pass, PassContext

from ._match import constant, dtype_of, either, need_shapes, new_constant, nodes, producer, rank, substitute, used_once

_INTEGERS = (ir.DataType.INT32, ir.DataType.INT64)


@dataclass(frozen=True)
class FuseOneHot(Pass):
    """Fuse ``cast(ids == 0 … V-1) @ w``, which picks rows of w, into a Gather of them.

    ids: [..., 1] int32 or int64; w: [V, N] float32, constant and finite. An id that no number equals picks zeros: one
    row of them lies on either side of w, and ids are clipped to the two. The sum over V comes to one of its terms, so
    that the result is the same to the bit.
    Source: ONNX Equal, opset 19, and Gather, opset 13; the one-hot product is how jax.nn.one_hot embeds.
    """

    numerics = Numerics.EXACT

    def rewrite(self, graph: ir.Model, ctx: PassContext) -> int:
        """Fuse every product of one-hot vectors; one that stays is skipped with the reason."""
        found = [(node, *hot) for node in nodes(graph, "MatMul") if (hot := _one_hot(node)) is not None]
        need_shapes(graph, (ids for _, ids, *_ in found))
        sites = 0
        for product, ids, numbers, vectors in found:
            if reason := _why_not(product, ids, numbers, vectors):
                ctx.skip(product, reason)
                continue
            _fuse(product, ids, numbers)
            sites += 1
        return sites


def _one_hot(product: ir.Node) -> tuple[ir.Value, np.ndarray, ir.Value] | None:
    """Give the ids, the numbers that they are compared with, and the vectors that ``product`` multiplies."""
    cast = producer(product.inputs[0], "Cast")
    equal = producer(cast.inputs[0], "Equal") if cast is not None else None
    if cast is None or equal is None or constant(product.inputs[1]) is None:
        return None
    for ids, other in either(equal):
        numbers = constant(other)
        if numbers is not None and numbers.dtype.kind == "i" and numbers.size == numbers.shape[-1:][0] > 1:
            return ids, numbers, cast.outputs[0]
    return None


def _why_not(product: ir.Node, ids: ir.Value, numbers: np.ndarray, vectors: ir.Value) -> str:
    w = constant(product.inputs[1])
    assert w is not None
    flat = numbers.reshape(-1).astype(np.int64)
    if dtype_of(ids) not in _INTEGERS:
        return f"the ids are {dtype_of(ids)}, neither INT32 nor INT64"
    if ids.shape is None or ids.shape[-1:] != (1,) or (rank(ids) or 0) < numbers.ndim:
        return "the last axis of the ids is not known to be one id"
    if (np.diff(flat) != 1).any():
        return "the ids are not compared with numbers in a row"
    if w.ndim != 2 or len(w) != len(flat) or w.dtype != np.float32:
        return f"the weight is {list(w.shape)} {w.dtype}, not [{len(flat)}, N] float32"
    if not np.isfinite(w).all():
        return "the weight is not finite"
    if not used_once(vectors):
        return "the one-hot vectors are read elsewhere"
    return ""


def _fuse(product: ir.Node, ids: ir.Value, numbers: np.ndarray) -> None:
    w, name = constant(product.inputs[1]), product.outputs[0].name
    assert w is not None and product.graph is not None
    kind = ids.dtype.numpy() if ids.dtype is not None else np.int64
    nothing = np.zeros((1, w.shape[1]), w.dtype)
    table = new_constant(f"{name}.rows", np.concatenate([nothing, w, nothing]), product)

    def op(op_type: str, *operands: ir.Value, shape: ir.Shape | None) -> ir.Value:
        node = ir.node(op_type, operands)
        value = node.outputs[0]
        value.name, value.type, value.shape = f"{name}.{op_type.lower()}", ids.type, shape
        assert product.graph is not None
        product.graph.insert_before(product, node)
        return value

    def number(value: int, what: str) -> ir.Value:
        return new_constant(f"{name}.{what}", np.array(value, kind), product)

    assert ids.shape is not None
    single = op("Squeeze", ids, new_constant(f"{name}.last", np.array([-1]), product), shape=ir.Shape(ids.shape[:-1]))
    moved = op("Sub", single, number(int(numbers.reshape(-1)[0]) - 1, "before"), shape=single.shape)
    row = op("Clip", moved, number(0, "first"), number(numbers.size + 1, "end"), shape=single.shape)
    substitute(product.outputs, "Gather", [table, row], before=product)
