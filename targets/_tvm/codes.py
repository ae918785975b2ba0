"""Nodes that say what stored codes stand for: DequantizeLinear, and a Cast of int8 with the Mul behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir

from .scope import Scope, inside
from .stored import Stored

_BITS = {ir.DataType.INT4: 4, ir.DataType.UINT4: 4, ir.DataType.INT8: 8, ir.DataType.UINT8: 8}


def _dequantize(scope: Scope) -> Sequence[Any]:
    source, scale = scope.node.inputs[0], scope.constant(1)
    zero = scope.constant(2)
    if source is None or source.const_value is None or scale is None or (has_zero(scope) and zero is None):
        return scope.by_tvm()
    if source.const_value.dtype not in _BITS:  # an int32 bias
        return [scope.folded(wide(scope, source.const_value.numpy(), scale, zero))]
    axis, block = scope.attribute("axis", 1), scope.attribute("block_size", 0)
    shape = source.const_value.shape.numpy()
    per = None if scale.ndim == 0 or scale.size == 1 else axis % len(shape)
    return [_stored(source.const_value, scale if per is not None else scale.reshape(()), zero, per, block)]


def quantize(scope: Scope) -> Sequence[Any]:
    """Give codes as TVM does, but of the dtype that is asked for: its importer knows that of a zero point alone."""
    from tvm import relax

    asked = scope.attribute("output_dtype", 0)
    if has_zero(scope) or not asked or scope.attribute("block_size", 0):
        return scope.by_tvm()
    dtype, x, scale = ir.DataType(asked).numpy().name, scope.tensor(0), scope.tensor(1)
    axis = 0 if x.ty.ndim < 2 else scope.attribute("axis", 1)
    return [scope.bb.emit(relax.op.quantize(x, scale, relax.const(0, dtype), axis=axis, out_dtype=dtype))]


def has_zero(scope: Scope) -> bool:
    """Whether a node of codes has a zero point, constant or not."""
    return len(scope.node.inputs) > 2 and scope.node.inputs[2] is not None


def wide(scope: Scope, codes: np.ndarray, scale: np.ndarray, zero: np.ndarray | None) -> np.ndarray:
    """Give ``(codes - zero) * scale``, as the node says it."""
    axis = scope.attribute("axis", 1) % max(codes.ndim, 1)
    shape = [-1 if at == axis else 1 for at in range(codes.ndim)] if scale.ndim else []
    offset = 0 if zero is None else zero.astype(np.int64).reshape(shape)
    return ((codes.astype(np.int64) - offset) * scale.reshape(shape).astype(np.float64)).astype(scale.dtype)


def _stored(
    tensor: ir.TensorProtocol, scale: np.ndarray, zero: np.ndarray | None, axis: int | None, block: int
) -> Stored:
    def codes() -> np.ndarray:
        array: np.ndarray = tensor.numpy()
        return array.astype(np.int8 if signed else np.uint8)

    signed = tensor.dtype in (ir.DataType.INT4, ir.DataType.INT8)
    if zero is not None:
        zero = zero.astype(np.int8 if signed else np.uint8)
        zero = zero if axis is not None else zero.reshape(())
    return Stored(codes, scale, zero, tuple(tensor.shape.numpy()), _BITS[tensor.dtype], signed, axis, block)


def _cast(scope: Scope) -> Sequence[Any]:
    from tvm import relax

    source, to = scope.node.inputs[0], ir.DataType(scope.attribute("to"))
    tensor = source.const_value if source is not None else None
    if tensor is not None and tensor.dtype in _BITS and len(tensor.shape) > 1 and to.is_floating_point():
        return [_stored(tensor, np.ones((), to.numpy()), None, None, 0)]
    x = scope.bb.normalize(scope.tensor(0))
    if isinstance(x.ty, relax.ShapeType):
        if to.is_integer():
            return [x]  # what reads a shape wants it as one
        x = scope.bb.emit(relax.op.shape_to_tensor(x))
    return [relax.op.astype(x, inside(to.numpy().name))]


def _mul(scope: Scope) -> Sequence[Any]:
    """Give stored codes the scale that they are multiplied by, one for all or one for each index of one axis."""
    for index in (0, 1):
        stored, factor = scope.operand(index), scope.constant(1 - index)
        if isinstance(stored, Stored) and factor is not None and stored.axis is None and not stored.scale.ndim:
            wide = [axis for axis, size in enumerate(factor.shape) if size > 1]
            if factor.ndim == len(stored.shape) and len(wide) <= 1:
                axis = wide[0] if wide else None
                scale = (factor * stored.scale).astype(factor.dtype).reshape(-1 if wide else ())
                return [stored.scaled(scale, axis)]
    return scope.by_tvm()


def _block_rows(scope: Scope) -> Sequence[Any]:
    """Look rows up in a table of codes, each widened by its blocks. Source: com.microsoft GatherBlockQuantized 1."""
    table, scale, zero = scope.node.inputs[0], scope.constant(2), scope.constant(3)
    bits, block = scope.attribute("bits", 4), scope.attribute("block_size", 128)
    axes = scope.attribute("gather_axis", 0), scope.attribute("quantize_axis", 1)
    if table is None or table.const_value is None or scale is None or axes != (0, 1):
        raise ValueError("only rows of a constant table of two axes are looked up")
    tensor = table.const_value
    packed = tensor.dtype == ir.DataType.UINT8 and bits == 4
    columns = int(tensor.shape.numpy()[1]) * (2 if packed else 1)
    rows = int(tensor.shape.numpy()[0])
    halved = cache(lambda: _halves(tensor.numpy(), columns) if packed else tensor.numpy())
    if zero is not None and packed:
        zero = _halves(zero, scale.shape[1])
    if zero is None and not (signed := tensor.dtype in (ir.DataType.INT4, ir.DataType.INT8)):
        zero = np.full(scale.shape, 2 ** (bits - 1), np.uint8)
    signed = tensor.dtype in (ir.DataType.INT4, ir.DataType.INT8)
    stored = Stored(halved, scale, zero, (rows, columns), bits, signed, 1, block)
    return [rows_of(scope, stored, scope.tensor(1))]


def _halves(packed: np.ndarray, columns: int) -> np.ndarray:
    """Take bytes of two codes apart: the first one lies in the low bits."""
    both = np.stack([packed & 15, packed >> 4], -1)
    return both.reshape(*packed.shape[:-1], -1)[..., :columns]


def rows_of(scope: Scope, table: Stored, indices: Any) -> Any:
    """Look rows up along axis 0, and widen what is looked up."""
    from tvm import te, tirx

    indices = scope.bb.emit(indices)
    shape = [int(d) for d in indices.ty.shape]

    def rows(index: Any, *operands: Any) -> Any:
        codes, scale, zero = (*operands, None)[:3]

        def element(*at: Any) -> Any:
            row = index(*at[: len(shape)])
            row = tirx.max(tirx.min(tirx.if_then_else(row < 0, row + table.shape[0], row), table.shape[0] - 1), 0)
            return table.element(codes, scale, zero, (row, *at[len(shape) :]))

        return te.compute((*shape, *table.shape[1:]), element, name="rows", tag="injective")

    return scope.bb.emit_te(rows, indices, *table.operands(scope.keep), primfunc_name_hint="stored_rows")


CONVERTERS: dict[tuple[str, str], Callable[[Scope], Sequence[Any]]] = {
    ("", "Cast"): _cast,
    ("", "DequantizeLinear"): _dequantize,
    ("", "Mul"): _mul,
    ("", "QuantizeLinear"): quantize,
    ("com.microsoft", "GatherBlockQuantized"): _block_rows,
}
