"""Which nodes onnxruntime's CUDA provider has kernels for, by its own table.

cuda.json is what ``get_all_opkernel_def`` of onnxruntime-gpu 1.31.1 lists for CUDAExecutionProvider: by op, ranges of
opsets, an open one ending in 0, with the types that each parameter admits.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from polycast.model import Model, graphs, name_of
from polycast.targets import _kernels
from polycast.targets import _onnxruntime as ort

#: Which version of onnxruntime-gpu the table is of.
VERSION = "1.31.1"

#: What a session resolves before it runs.
_RESOLVED = {"Constant"}


def declared(model: Model) -> Model:
    """Give ``model`` at the opset, of those at which it means the same, that leaves the fewest nodes to the CPU.

    A kernel with an open range serves the version of the op that it was written for: MaxPool has one for opset 12,
    and none for opset 22, which only admits one type more.
    """
    return min((ort.declare(model, opset) for opset in _kernels.equal_opsets(model)), key=_count, default=model)


def _count(model: Model) -> int:
    return len(_left(model))


def fallback(model: Model) -> dict[str, str]:
    """Give the nodes of ``model``, as it is declared, that have no kernel: name -> why."""
    return _left(declared(model))


def _left(model: Model) -> dict[str, str]:
    left = {}
    for graph in graphs(model.graph):
        for node in graph:
            opset = model.graph.opset_imports.get(node.domain, 1)
            if reason := _why_not(node, opset):
                left[name_of(node)] = reason
    return left


def _why_not(node: ir.Node, opset: int) -> str:
    if node.op_type in _RESOLVED and not node.domain:
        return ""
    op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    rows = _table().get(op)
    schema = _schema(node.op_type, node.domain, opset)
    if rows is None:
        return "" if schema is not None and _is_function(schema) else f"the CUDA provider has no {op}"
    since = schema.since_version if schema is not None else 1
    fitting = [types for first, last, types in rows if _kernels.serves([(first, last or _kernels.OPEN)], since)]
    if not fitting:
        return f"the CUDA provider has no {op} of opset {opset}"
    refusals = [refusal for types in fitting for refusal in [_type_refused(node, schema, types)]]
    return "" if not all(refusals) else f"the CUDA provider has no {op} of {refusals[0]}"


def _type_refused(node: ir.Node, schema: onnx.defs.OpSchema | None, types: dict[str, str]) -> str:
    """Give the type of an input that ``types`` does not admit, or nothing."""
    every = {kind for admitted in types.values() for kind in admitted.split()}
    for index, value in enumerate(node.inputs):
        if value is None or value.dtype is None or not every:
            continue
        kind = value.dtype.name.lower()
        if schema is None:  # com.microsoft has no schemas outside onnxruntime: only what all its inputs admit is known
            if value.dtype.is_floating_point() and kind not in every:
                return kind
            continue
        parameter = schema.inputs[min(index, len(schema.inputs) - 1)].type_str
        if parameter in types and kind not in types[parameter].split():
            return kind
    return ""


def _is_function(schema: onnx.defs.OpSchema) -> bool:
    """Whether onnxruntime runs the op as the ops that ONNX defines it by; the stubs of onnx lack both names."""
    return bool(schema.has_function or schema.has_context_dependent_function)  # type: ignore[attr-defined]


@cache
def _schema(op: str, domain: str, version: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op, version, domain)
    except onnx.defs.SchemaError:
        return None


@cache
def _table() -> dict[str, list[tuple[int, int, dict[str, str]]]]:
    table: dict[str, Any] = json.loads(Path(__file__).with_name("cuda.json").read_text(encoding="utf-8"))
    return table
