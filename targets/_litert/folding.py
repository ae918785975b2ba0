"""What is known of a node before the model runs: the shapes of what it gives, or all of it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from ._attributes import integer
from .program import Program, Unsupported


def infer(node: ir.Node, to: Program, opset: int) -> None:
    """Find the types and shapes of what ``node`` gives, where the graph does not say."""
    unknown = [v for v in node.outputs if v.name and (v.dtype is None or v.shape is None or not v.shape.is_static())]
    if not unknown or node.domain:
        return
    inputs = [v for v in node.inputs if v is not None]
    types = {v.name: _type(to.dtype(v), to.shape(v)) for v in inputs if v.name}
    arrays = {v.name: to.array(v) for v in inputs if v.name}
    data = {name: onnx.numpy_helper.from_array(array) for name, array in arrays.items() if array is not None}
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    imports = [onnx.helper.make_opsetid("", opset)]
    try:
        found = onnx.shape_inference.infer_node_outputs(
            schema, _standard(node, schema), types, data, opset_imports=imports
        )
    except onnx.shape_inference.InferenceError as error:
        raise _misfit(error) from error
    for value in unknown:
        proto = found.get(value.name or "")
        if proto is not None and proto.HasField("tensor_type"):
            dims = proto.tensor_type.shape.dim
            value.type = ir.TensorType(ir.DataType(proto.tensor_type.elem_type))
            if proto.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
                value.shape = ir.Shape([dim.dim_value for dim in dims])


def _standard(node: ir.Node, schema: onnx.defs.OpSchema) -> onnx.NodeProto:
    """Spell ``node`` without what only the converters here know of it."""
    proto = ir.to_proto(node)
    kept = [attribute for attribute in proto.attribute if attribute.name in schema.attributes]
    del proto.attribute[:]
    proto.attribute.extend(kept)
    return proto


def fold(node: ir.Node, to: Program, opset: int) -> bool:
    """Compute ``node`` now, where it is the same in every run. Returns: whether it is."""
    if node.op_type == "Constant" or _is_stored(node, to):
        return True
    if node.domain or node.op_type in ("DequantizeLinear", "QuantizeLinear"):
        return False
    if node.op_type in ("Shape", "Size"):
        to.arrays[node.outputs[0]] = _size(node, to)
        return True
    values = [v for v in node.inputs if v is not None]
    arrays = {v.name or "": array for v in values if (array := to.array(v)) is not None}
    if not values or len(arrays) < len({v.name for v in values}) or _has_graphs(node):
        return False
    for value, array in zip(node.outputs, _computed(node, arrays, opset), strict=True):
        to.arrays[value] = np.asarray(array)
    return True


def _size(node: ir.Node, to: Program) -> np.ndarray:
    x = node.inputs[0]
    assert x is not None
    shape = np.array(to.shape(x), np.int64)
    if node.op_type == "Size":
        return np.array(shape.prod())
    return shape[integer(node, "start", 0) : integer(node, "end", len(shape))]


def _computed(node: ir.Node, arrays: dict[str, np.ndarray], opset: int) -> list[np.ndarray]:
    from onnx.reference import ReferenceEvaluator

    inputs = [onnx.helper.make_value_info(name, _type(array.dtype.name, array.shape)) for name, array in arrays.items()]
    outputs = [onnx.helper.make_empty_tensor_value_info(value.name or "") for value in node.outputs]
    graph = onnx.helper.make_graph([ir.to_proto(node)], "one", inputs, outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    try:
        with np.errstate(all="ignore"):  # infinity is what a mask is made of
            found: list[np.ndarray] = ReferenceEvaluator(model).run(None, arrays)  # type: ignore[assignment]
    except (IndexError, ValueError) as error:  # as of a table of positions that is shorter than the size tried
        raise _misfit(error) from error
    return found


def _misfit(error: Exception) -> Unsupported:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return Unsupported(f"its inputs do not fit each other at this size ({line.strip()})")


def _is_stored(node: ir.Node, to: Program) -> bool:
    return node.op_type in ("Cast", "DequantizeLinear") and to.stored(node.outputs[0]) is not None


def _has_graphs(node: ir.Node) -> bool:
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attribute.type in kinds for attribute in node.attributes.values())


def _type(dtype: str, shape: tuple[int, ...]) -> onnx.TypeProto:
    return onnx.helper.make_tensor_type_proto(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
