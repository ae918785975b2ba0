"""Matrix products: FULLY_CONNECTED where one side is a constant matrix, BATCH_MATMUL where neither is."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ._attributes import operand
from .biases import read_bias
from .flat import in_place
from .layout import Order, plain
from .program import Program
from .registry import converts
from .rewriting import DOMAIN
from .tensors import Tensor


@converts("Linear", domain=DOMAIN, fuses=True, codes="product")
def linear(node: ir.Node, to: Program) -> None:
    """Write ``x @ w + bias``, x: [..., K], w: [K, N] constant, bias: [N] constant."""
    x, w, bias = node.inputs[0], node.inputs[1], operand(node, 2)
    assert x is not None and w is not None
    order = depth_last(x, to)
    tensor = to.read(x, order)
    tensor, weight = in_place(to, tensor, to.read_weight(w, x, (1, 0)))
    added = read_bias(to, bias, weight.shape[0], tensor, weight)
    tensor, inner = (to.reshaped(tensor, (1, *tensor.shape)), ()) if not tensor.shape[:-1] else (tensor, order[:-1])
    y = to.emit(
        "FULLY_CONNECTED",
        [tensor, weight, added],
        (*tensor.shape[:-1], weight.shape[0]),
        fusedActivationFunction=to.activation,
        keepNumDims=True,
    )
    if not inner:
        y = to.reshaped(y, (weight.shape[0],))
    to.give(node.outputs[0], y, (*inner, len(inner)))


def depth_last(x: ir.Value, to: Program) -> Order:
    """Give an order in which the last axis of ``x`` is the last, if one is at hand the nearest to ONNX's own."""
    rank = len(to.shape(x))
    usable = [order for order in to.orders(x) if order[-1:] == (rank - 1,)]
    return plain(rank) if plain(rank) in usable or not usable else usable[0]


@converts("MatMul")
def matmul(node: ir.Node, to: Program) -> None:
    """Write ``a @ b``, a: [..., M, K], b: [..., K, N]; either may be a vector."""
    a, b = node.inputs
    assert a is not None and b is not None
    shapes = to.shape(a), to.shape(b)
    if max(map(len, shapes)) > _RANKS:
        to.refuse(f"a product over {max(map(len, shapes))} axes")
    left, _ = _matrix(a, to, may_turn=False)
    right, turned = _matrix(b, to, may_turn=True)
    if len(shapes[0]) == 1:
        left = to.reshaped(left, (1, *left.shape))
    if len(shapes[1]) == 1:
        right = to.reshaped(right, (*right.shape, 1))
    columns = right.shape[-2] if turned else right.shape[-1]
    batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    y = to.emit("BATCH_MATMUL", [left, right], (*batch, left.shape[-2], columns), adjY=turned)
    rows = (left.shape[-2],) if len(shapes[0]) > 1 else ()
    to.give(node.outputs[0], to.reshaped(y, (*batch, *rows, *((columns,) if len(shapes[1]) > 1 else ()))))


#: As many axes as LiteRT's kernel takes.
_RANKS = 5


def _matrix(value: ir.Value, to: Program, may_turn: bool) -> tuple[Tensor, bool]:
    """Read an operand, with its last two axes changed over where that moves less. Returns: it, and whether they are."""
    rank = len(to.shape(value))
    order = plain(rank)
    orders = to.orders(value)
    if may_turn and rank > 1 and order not in orders and any(held[-1] == rank - 2 for held in orders):
        return to.read(value, (*order[:-2], rank - 1, rank - 2)), True
    return to.read(value, order), False
