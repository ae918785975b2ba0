"""Which converter takes a node: one of our own, or that of TVM's ONNX importer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir

from . import attention, codes, powers, products, recurrent, rows

if TYPE_CHECKING:
    from .frontend import Scope

#: Gives a node's outputs, as Relax expressions.
Convert = Callable[["Scope"], Sequence[Any]]

OWN: dict[tuple[str, str], Convert] = {
    **attention.CONVERTERS,
    **codes.CONVERTERS,
    **powers.CONVERTERS,
    **products.CONVERTERS,
    **recurrent.CONVERTERS,
    **rows.CONVERTERS,
}


def find(node: ir.Node, table: Mapping[tuple[str, str], Convert] = OWN) -> Convert | None:
    """Give what converts ``node``: a converter of ``table``, or TVM's; None where nothing does."""
    if (own := table.get((node.domain, node.op_type))) is not None:
        return own
    return by_tvm if not node.domain and _of_tvm(node.op_type) is not None else None


def by_tvm(scope: Scope) -> Sequence[Any]:
    """Convert a node as TVM's own importer does."""
    from tvm import relax
    from tvm.relax.frontend.onnx import onnx_frontend

    node = scope.node
    operands = onnx_frontend.onnx_input()
    operands.extend(scope.tensor(index) for index in range(len(node.inputs)))
    attributes: dict[str, Any] = {a.name: _encoded(a) for a in node.attributes.values()}
    attributes["tvm_custom"] = {"name": node.name or "", "num_outputs": len(node.outputs)}
    convert = _of_tvm(node.op_type).get_converter(scope.opset)
    result = scope.bb.normalize(convert(scope.bb, operands, attributes, [{}, {}]))
    if isinstance(result, relax.Tuple):
        return list(result.fields)
    if isinstance(result.ty, relax.TupleType):
        result = scope.bb.emit(result)
        return [scope.bb.emit(relax.TupleGetItem(result, i)) for i in range(len(result.ty.fields))]
    return [result]


def _of_tvm(op_type: str) -> Any:
    from tvm.relax.frontend.onnx import onnx_frontend

    return onnx_frontend._get_convert_map().get(op_type)


def _encoded(attribute: ir.Attr) -> Any:
    """Spell an attribute as TVM's importer reads it."""
    kind = ir.AttributeType
    if attribute.type == kind.STRING:
        return attribute.as_string().encode()
    if attribute.type == kind.STRINGS:
        return tuple(text.encode() for text in attribute.as_strings())
    if attribute.type == kind.TENSOR:
        return onnx.numpy_helper.from_array(narrow(attribute.as_tensor().numpy()))
    if attribute.type in (kind.INTS, kind.FLOATS):
        return tuple(attribute.value)
    return attribute.value


def narrow(array: np.ndarray) -> np.ndarray:
    """Bring 64-bit integers to 32; what does not fit stands for no limit, as in a Slice, and is clipped."""
    kind = {"i": np.int32, "u": np.uint32}.get(array.dtype.kind)
    if kind is None or array.dtype.itemsize < 8:
        return np.asarray(array, order="C")
    info = np.iinfo(kind)
    clipped: np.ndarray = np.clip(array, info.min, info.max).astype(kind)
    return clipped
