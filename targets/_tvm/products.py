"""Matrix products and convolutions: float16 adds up in float32, stored weights are widened inside the kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from . import matvec
from .scope import Scope
from .stored import Stored


def _matmul(scope: Scope) -> Sequence[Any]:
    return [_product(scope, scope.tensor(0), transposed=False)]


def _gemm(scope: Scope) -> Sequence[Any]:
    from tvm import relax

    a, c = scope.tensor(0), scope.tensor(2)
    dtype = scope.dtype(0)
    if scope.attribute("transA", 0):
        a = relax.op.permute_dims(a, [1, 0])
    y = _product(scope, a, transposed=bool(scope.attribute("transB", 0)))
    if (alpha := scope.attribute("alpha", 1.0)) != 1.0:
        y = relax.op.multiply(y, relax.const(alpha, dtype))
    if c is not None:
        if (beta := scope.attribute("beta", 1.0)) != 1.0:
            c = relax.op.multiply(c, relax.const(beta, dtype))
        y = relax.op.add(y, c)
    return [y]


def _product(scope: Scope, a: Any, *, transposed: bool) -> Any:
    """Multiply ``a`` by operand 1; transposed: that is [N, K]."""
    from tvm import relax

    a, b = scope.bb.normalize(a), scope.operand(1)
    if isinstance(b, Stored) and len(b.shape) == 2 and a.ty.ndim >= 2:
        return _stored_product(scope, a, b if transposed else b.transposed)
    dtype, constant = scope.dtype(0), scope.constant(1)
    if constant is not None and constant.ndim == 2 and a.ty.ndim >= 2 and constant.dtype.kind == "f":
        return _weight_product(scope, a, constant if transposed else constant.T)
    b = b.tensor(scope.bb, scope.keep) if isinstance(b, Stored) else b
    if transposed:
        b = relax.op.permute_dims(b, [1, 0])
    if dtype == "float16":
        return relax.op.astype(scope.bb.emit(relax.op.matmul(a, b, out_dtype="float32")), dtype)
    return relax.op.matmul(a, b)


def _weight_product(scope: Scope, a: Any, weight: np.ndarray) -> Any:
    """Multiply by weight: [N, K]; what the threads of a row read lies beside each other, whatever the file has."""
    from tvm import relax

    weight = np.ascontiguousarray(weight)
    rows = _lead(a)
    if prod(rows) == 1:
        return _emit(scope, a, matvec.dense(weight).times(rows), [relax.const(weight)], "matvec")
    return _emit(scope, a, _by_rows(rows, weight.shape, lambda w: w), [relax.const(weight)], "matmul")


def _stored_product(scope: Scope, a: Any, b: Stored) -> Any:
    """Multiply by b: [N, K], which is widened as it is read."""
    rows = _lead(a)
    if prod(rows) == 1 and (matrix := matvec.packed(b)) is not None:
        return _emit(scope, a, matrix.times(rows), b.operands(scope.keep), "stored_matvec")
    return _emit(scope, a, _by_rows(rows, b.shape, b.widened), b.operands(scope.keep), "stored_matmul")


def _lead(a: Any) -> list[int]:
    """Give all axes of ``a`` but the last."""
    return [int(d) for d in a.ty.shape][:-1]


def _emit(scope: Scope, a: Any, product: Callable[..., Any], operands: list[Any], name: str) -> Any:
    """Emit ``product`` of ``a`` and ``operands``, and bring its sums to the dtype of the node."""
    from tvm import relax

    attributes = matvec.FUSIBLE if name.endswith("matvec") else None
    result = scope.bb.emit_te(product, a, *operands, primfunc_name_hint=name, primfunc_attrs=attributes)
    return relax.op.astype(result, scope.dtype(0)) if str(result.ty.dtype.dtype) != scope.dtype(0) else result


def _by_rows(rows: list[int], shape: Sequence[int], matrix: Callable[..., Any]) -> Callable[..., Any]:
    """Give the product of x: [*rows, K] and a matrix of ``shape`` [N, K] that ``matrix`` makes, added up in float32."""

    def product(x: Any, *read: Any) -> Any:
        from tvm import te

        w, k = matrix(*read), te.reduce_axis((0, shape[1]), "k")
        total = "float32" if str(x.dtype) == "float16" else str(x.dtype)
        return te.compute(
            (*rows, shape[0]),
            lambda *at: te.sum(x(*at[:-1], k).astype(total) * w(at[-1], k).astype(total), axis=k),
            name="product",
        )

    return product


def _conv(scope: Scope) -> Sequence[Any]:
    from tvm import relax

    x, w, bias, dtype = scope.tensor(0), scope.operand(1), scope.tensor(2), scope.dtype(0)
    sizes = [int(d) for d in x.ty.shape][2:]
    shape = w.shape if isinstance(w, Stored) else [int(d) for d in w.ty.shape]
    kernel, axes = [int(d) for d in shape][2:], "DHW"[3 - len(sizes) :]
    strides = list(scope.attribute("strides", [1] * len(sizes)))
    dilations = list(scope.attribute("dilations", [1] * len(sizes)))
    padding = _padding(scope, sizes, kernel, strides, dilations)
    groups, total = scope.attribute("group", 1), "float32" if dtype == "float16" else dtype
    if isinstance(w, Stored):
        y = _stored_conv(scope, x, w, (strides, padding, dilations, groups), total)
    else:
        op = {1: relax.op.nn.conv1d, 2: relax.op.nn.conv2d, 3: relax.op.nn.conv3d}[len(sizes)]
        y = scope.bb.emit(op(x, w, strides, padding, dilations, groups, f"NC{axes}", f"OI{axes}", out_dtype=total))
    if dtype == "float16":
        y = relax.op.astype(y, dtype)
    if bias is not None:
        y = relax.op.add(y, relax.op.reshape(bias, [1, -1] + [1] * len(sizes)))
    return [y]


def _stored_conv(scope: Scope, x: Any, w: Stored, how: tuple[Any, ...], total: str) -> Any:
    from tvm import topi

    axes = "DHW"[5 - len(w.shape) :]
    strides, padding, dilations, groups = how

    def conv(data: Any, *operands: Any) -> Any:
        wide = w.widened(*operands)
        return topi.nn.conv(data, wide, strides, padding, dilations, groups, f"NC{axes}", f"OI{axes}", total)

    return scope.bb.emit_te(conv, x, *w.operands(scope.keep), primfunc_name_hint="stored_conv")


def _padding(scope: Scope, sizes: list[int], kernel: list[int], strides: list[int], dilations: list[int]) -> list[int]:
    """Give the padding before each axis, then after each, as auto_pad has it."""
    auto = scope.attribute("auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        return list(scope.attribute("pads", [0] * (2 * len(kernel))))
    if auto == "VALID":
        return [0] * (2 * len(kernel))
    before, after = [], []
    for size, taps, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + (taps - 1) * dilation + 1 - size)
        small = total // 2
        before.append(small if auto == "SAME_UPPER" else total - small)
        after.append(total - before[-1])
    return before + after


CONVERTERS = {("", "Conv"): _conv, ("", "Gemm"): _gemm, ("", "MatMul"): _matmul}
