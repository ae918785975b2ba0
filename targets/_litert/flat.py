"""Products of what was flattened: their weights are put into the order in which the elements lie already."""

from __future__ import annotations

from math import prod

import numpy as np

from .program import Program
from .tensors import Operator, Tensor


def in_place(to: Program, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Give the operands of ``x @ weight.T`` without the transposition that flattening an image took.

    x: [N, K], weight: [M, K]. Both as they are where nothing was flattened, or the weight cannot be put in order.
    """
    widened = _maker(to, x, "DEQUANTIZE")
    flattened = _maker(to, _first(widened) if widened else x, "RESHAPE")
    turned = _maker(to, _first(flattened), "TRANSPOSE") if flattened else None
    if turned is None or weight.data is None or weight.dtype == "int4" or len(x.shape) != 2:
        return x, weight
    source, permutation = _first(turned), turned.inputs[1]
    if permutation is None or permutation.data is None or permutation.data[0] != 0 or source.shape[0] != x.shape[0]:
        return x, weight
    moved = np.arange(prod(source.shape[1:])).reshape(source.shape[1:])
    places = np.argsort(moved.transpose(permutation.data[1:] - 1).reshape(-1))
    flat = to.reshaped(source, x.shape)
    ordered = to.constant(weight.data[:, places], weight.grid, weight.name)
    return (to.dequantized(flat) if widened else flat), ordered


def _maker(to: Program, tensor: Tensor, kind: str) -> Operator | None:
    operator = to.makers.get(tensor)
    return operator if operator is not None and operator.kind == kind else None


def _first(operator: Operator) -> Tensor:
    tensor = operator.inputs[0]
    assert tensor is not None
    return tensor
