"""What a converter sees of a node, and TVM's own importer, which does what no converter of ours does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from .stored import Keep, Lazy


@dataclass
class Scope:
    """What a converter sees: the node, its operands, the block builder, the opset.

    read: gives a value as a Relax expression, or as Lazy. keep: makes an array a parameter.
    """

    node: ir.Node
    read: Callable[[ir.Value], Any]
    bb: Any
    opset: int
    keep: Keep

    def operand(self, index: int) -> Any:
        """Give operand ``index``, stored or not; None where the node has none."""
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        return None if value is None else self.read(value)

    def tensor(self, index: int) -> Any:
        """Give operand ``index`` as a Relax expression; None where the node has none."""
        operand = self.operand(index)
        return operand.tensor(self.bb, self.keep) if isinstance(operand, Lazy) else operand

    def dtype(self, index: int) -> str:
        """Give the dtype of operand ``index``."""
        operand = self.operand(index)
        return operand.dtype if isinstance(operand, Lazy) else str(self.bb.normalize(operand).ty.dtype.dtype)

    def constant(self, index: int) -> np.ndarray | None:
        """Give operand ``index`` where it is a constant of the model."""
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        return None if value is None or value.const_value is None else value.const_value.numpy()

    def folded(self, array: np.ndarray) -> Any:
        """Give ``array`` as a constant."""
        from tvm import relax

        return relax.const(array)

    def attribute(self, name: str, default: Any = None) -> Any:
        """Give the attribute ``name``, as Python spells it."""
        found = self.node.attributes.get(name)
        return default if found is None else found.value

    def by_tvm(self) -> Sequence[Any]:
        """Convert the node as TVM's own importer does."""
        from tvm import relax
        from tvm.relax.frontend.onnx import onnx_frontend

        node = self.node
        operands = onnx_frontend.onnx_input()
        operands.extend(self.tensor(index) for index in range(len(node.inputs)))
        attributes: dict[str, Any] = {a.name: _encoded(a) for a in node.attributes.values()}
        attributes["tvm_custom"] = {"name": node.name or "", "num_outputs": len(node.outputs)}
        convert = of_tvm(node.op_type).get_converter(self.opset)
        result = self.bb.normalize(convert(self.bb, operands, attributes, [{}, {}]))
        if isinstance(result, relax.Tuple):
            return list(result.fields)
        if isinstance(result.ty, relax.TupleType):
            result = self.bb.emit(result)
            return [self.bb.emit(relax.TupleGetItem(result, i)) for i in range(len(result.ty.fields))]
        return [result]


def of_tvm(op_type: str) -> Any:
    """Give TVM's own converter of ``op_type``, or None."""
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


def inside(dtype: str) -> str:
    """Give the dtype that a port has inside: no kernel computes with 64-bit integers."""
    return {"int64": "int32", "uint64": "uint32"}.get(dtype, dtype)
