"""Attention, as two products with a softmax between them. Source: ONNX Attention, opset 23; Vaswani et al. 2017."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .scope import Scope

#: Attributes that change what is computed, with the values that mean that they do not.
_PLAIN = {"softcap": 0.0, "qk_matmul_output_mode": 0}


def _attention(scope: Scope) -> Sequence[Any]:
    """q: [batch, heads, rows, size] or [batch, rows, heads * size]; k and v likewise, of fewer heads or as many."""
    from tvm import relax

    bb, op = scope.bb, relax.op
    for name, plain in _PLAIN.items():
        if (found := scope.attribute(name, plain)) != plain:
            raise ValueError(f"Attention with {name}={found} is not supported")
    if len(scope.node.outputs) > 3:
        raise ValueError("Attention that gives its products is not supported")
    dtype, flat = scope.dtype(0), int(scope.tensor(0).ty.ndim) == 3
    heads = [scope.attribute(name, 0) for name in ("q_num_heads", "kv_num_heads", "kv_num_heads")]
    q, k, v = (bb.emit(_split(scope.tensor(index), heads[index])) for index in range(3))
    if (past := scope.tensor(4)) is not None:
        k = bb.emit(op.concat([past, k], 2))
    if (past := scope.tensor(5)) is not None:
        v = bb.emit(op.concat([past, v], 2))
    present = [k, v]
    if (groups := int(q.ty.shape[1]) // int(k.ty.shape[1])) > 1:
        k, v = (bb.emit(op.repeat(each, groups, axis=1)) for each in (k, v))
    rows, terms = int(q.ty.shape[2]), int(k.ty.shape[2])
    scale = scope.attribute("scale") or int(q.ty.shape[3]) ** -0.5
    weights = bb.emit(op.matmul(q, op.permute_dims(k, [0, 1, 3, 2]), out_dtype="float32"))
    weights = bb.emit(op.multiply(weights, relax.const(scale, "float32")))
    if (mask := scope.tensor(3)) is not None:
        weights = bb.emit(op.add(weights, _added(mask)))
    if scope.attribute("is_causal", 0):
        later = np.triu(np.full((rows, terms), -np.inf, np.float32), 1)
        weights = bb.emit(op.add(weights, relax.const(later)))
    weights = bb.emit(op.astype(op.nn.softmax(weights, -1), dtype))
    y = bb.emit(op.astype(op.matmul(weights, v, out_dtype="float32"), dtype))
    if flat:
        batch, count, _, size = (int(d) for d in y.ty.shape)
        y = op.reshape(op.permute_dims(y, [0, 2, 1, 3]), [batch, rows, count * size])
    return [y, *present]


def _split(x: Any, heads: int) -> Any:
    """Bring [batch, rows, heads * size] to [batch, heads, rows, size]."""
    from tvm import relax

    if int(x.ty.ndim) == 4:
        return x
    batch, rows, width = (int(d) for d in x.ty.shape)
    return relax.op.permute_dims(relax.op.reshape(x, [batch, rows, heads, width // heads]), [0, 2, 1, 3])


def _added(mask: Any) -> Any:
    """Give the mask as what is added: a boolean one lets through what is true."""
    from tvm import relax

    if str(mask.ty.dtype.dtype) != "bool":
        return relax.op.astype(mask, "float32")
    return relax.op.where(mask, relax.const(0.0, "float32"), relax.const(-np.inf, "float32"))


CONVERTERS = {("", "Attention"): _attention}
