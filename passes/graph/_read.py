"""Reading a graph: constants and attributes, with None for what is not known."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

#: More numbers than any shape has.
_SMALL = 256


def tensor_of(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Give the tensor behind an initializer or a ``Constant`` node; None where a caller may override it."""
    if value is None or value.is_graph_input():
        return None
    if value.is_initializer():
        return value.const_value
    node = value.producer()
    if node is not None and node.op_type == "Constant" and node.domain == "":
        return _tensor_of_constant(node)
    return None


def _tensor_of_constant(node: ir.Node) -> ir.TensorProtocol | None:
    if len(node.attributes) != 1:
        return None
    (attribute,) = node.attributes.values()
    if attribute.is_ref():
        return None
    match attribute.name:
        case "value":
            return attribute.as_tensor()
        case "value_int" | "value_ints":
            return ir.Tensor(np.array(attribute.value, np.int64))
        case "value_float" | "value_floats":
            return ir.Tensor(np.array(attribute.value, np.float32))
        case "value_string":
            return ir.StringTensor([attribute.as_string().encode()], shape=ir.Shape([]))
        case "value_strings":
            return ir.StringTensor([text.encode() for text in attribute.as_strings()])
    return None


def array_of(value: ir.Value | None, most: int = _SMALL) -> np.ndarray | None:
    """Give the numbers of a constant of at most ``most`` elements."""
    tensor = tensor_of(value)
    if tensor is None or tensor.size > most or tensor.dtype == ir.DataType.STRING:
        return None
    return tensor.numpy()


def ints_of(value: ir.Value | None) -> tuple[int, ...] | None:
    """Give a small constant of an integer type as a flat tuple."""
    array = array_of(value)
    if array is None or array.dtype.kind not in "iu":
        return None
    return tuple(array.reshape(-1).tolist())


def given(node: ir.Node, index: int) -> ir.Value | None:
    """Give input ``index`` of ``node``; None where it is left out."""
    value = node.inputs[index] if index < len(node.inputs) else None
    return value if value is not None and (value.name != "" or value.producer() is not None) else None


def integer(node: ir.Node, name: str, default: int | None) -> int | None:
    """Give an attribute, or ``default`` where it is left out; None where the caller of a function decides it."""
    attribute = node.attributes.get(name)
    if attribute is None:
        return default
    return None if attribute.is_ref() else attribute.as_int()


def integers(node: ir.Node, name: str, index: int | None = None) -> tuple[int, ...] | None:
    """Give numbers that older opsets have as attribute ``name`` and newer ones as input ``index``; None: not known."""
    attribute = node.attributes.get(name)
    if attribute is not None:
        return None if attribute.is_ref() else tuple(attribute.as_ints())
    return ints_of(given(node, index)) if index is not None else None
