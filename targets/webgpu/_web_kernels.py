"""Which nodes onnxruntime-web's WebGPU provider takes, by what it says itself.

onnxruntime_web.json is what benchmarks/webgpu_kernels.py was told by onnxruntime-web 1.30.0: by op and by the version
of the op, the types that it takes.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import onnx
import onnx_ir as ir

from polycast.model import Model, graphs, name_of
from polycast.targets import _kernels
from polycast.targets import _onnxruntime as ort

TABLE = Path(__file__).with_name("onnxruntime_web.json")


def declared(model: Model) -> Model:
    """Give ``model`` at the opset, of those at which it means the same, that leaves the fewest nodes to the CPU."""
    versions = (ort.declare(model, opset) for opset in _kernels.equal_opsets(model))
    return min(versions, key=lambda each: len(_left(each)), default=model)


def fallback(model: Model) -> dict[str, str]:
    """Give the nodes of ``model``, as it is declared, that WebAssembly runs: name -> why."""
    return _left(declared(model))


def _left(model: Model) -> dict[str, str]:
    left = {}
    for graph in graphs(model.graph):
        constant = set(graph.initializers.values()) if isinstance(graph, ir.Graph) else set()
        for node in graph:
            read = {value for value in node.inputs if value is not None}
            if read <= constant and (read or node.op_type == "Constant"):
                constant |= set(node.outputs)  # a session computes it when it opens
            elif not _holds_graphs(node) and (reason := _why_not(node, model.graph.opset_imports.get(node.domain, 1))):
                left[name_of(node)] = reason
    return left


def _holds_graphs(node: ir.Node) -> bool:
    """Whether ``node`` is an If or its like: what is inside counts for itself."""
    return any(each.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for each in node.attributes.values())


def governing(schema: onnx.defs.OpSchema) -> str:
    """Give the type parameter of an op that decides whether there is a kernel: T, else that of the first input."""
    letters = [parameter.type_str for parameter in schema.inputs]
    return "T" if "T" in letters or not letters else letters[0]


def _why_not(node: ir.Node, opset: int) -> str:
    op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:  # com.microsoft has none outside onnxruntime
        schema = None
    versions = _table().get(op)
    if versions is None:
        defined = schema is not None and (schema.has_function or schema.has_context_dependent_function)  # type: ignore[attr-defined]
        return "" if defined else f"the WebGPU provider has no {op}"
    types = versions.get(str(schema.since_version if schema else 1))
    if types is None:
        return f"the WebGPU provider has no {op} of opset {opset}"
    kind = _kind(node, schema)
    return "" if not kind or kind in types.split() else f"the WebGPU provider has no {op} of {kind}"


def _kind(node: ir.Node, schema: onnx.defs.OpSchema | None) -> str:
    """Give the type that decides, or nothing where it is not known."""
    if schema is None:
        return next((v.dtype.name.lower() for v in node.outputs if v.dtype is not None), "")
    letter = governing(schema)
    for at, value in enumerate(node.inputs):
        parameter = schema.inputs[min(at, len(schema.inputs) - 1)]
        if value is not None and value.dtype is not None and parameter.type_str == letter:
            return value.dtype.name.lower()
    return ""


@cache
def _table() -> dict[str, dict[str, str]]:
    table: dict[str, dict[str, str]] = json.loads(TABLE.read_text(encoding="utf-8"))
    return table
