"""Nodes that compute the same, and initializers that hold the same."""

from __future__ import annotations

from collections import ChainMap, defaultdict
from collections.abc import Hashable, MutableMapping

import onnx_ir as ir

from polycast.model import tensor_digest
from polycast.passbase import PassContext

from ._edit import can_replace, is_standard, remove, replace, subgraphs

#: Give another result each time, even for equal inputs.
RANDOM = {
    "Bernoulli",
    "Dropout",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}

#: What is compared of a large tensor before all of it is read.
_SAMPLE_BYTES = 4096

Seen = MutableMapping[Hashable, ir.Node]


def merge_nodes(graph: ir.Graph | ir.Function, ctx: PassContext, outer: Seen | None = None) -> int:
    """Let one node do the work of all those in ``graph``, and under it, that compute the same.

    outer: what the graphs around this one have computed so far. Returns: the nodes that are gone.
    """
    seen: Seen = ChainMap({}, *([outer] if outer is not None else []))
    merged = 0
    for node in list(graph):
        held = subgraphs(node)
        merged += sum(merge_nodes(inner, ctx, seen) for inner in held)
        if held or not node.outputs:
            continue
        key = _node_key(node)
        first = seen.setdefault(key, node)
        if first is node:
            continue
        if reason := _unlike(node, first):
            ctx.skip(node, reason)
        elif all(can_replace(old, new) for old, new in zip(node.outputs, first.outputs, strict=True)):
            for old, new in zip(node.outputs, first.outputs, strict=True):
                replace(old, new)
            remove(node)
            merged += 1
    return merged


def _unlike(node: ir.Node, first: ir.Node) -> str:
    """Say why ``node`` is not the same as ``first``, though op, inputs and attributes are."""
    if not is_standard(node):
        return f"the same as {first.name or first.op_type}, but {node.domain}.{node.op_type} may have state"
    if node.op_type in RANDOM:
        return f"the same as {first.name or first.op_type}, but {node.op_type} is random"
    return ""


def _node_key(node: ir.Node) -> Hashable:
    attributes = sorted((name, _attribute_key(value)) for name, value in node.attributes.items())
    given = tuple(bool(output.name) for output in node.outputs)
    return node.op_identifier(), tuple(map(id, node.inputs)), tuple(attributes), given


def _attribute_key(attribute: ir.Attr) -> str:
    if attribute.is_ref():
        return f"ref {attribute.ref_attr_name}"
    if attribute.type == ir.AttributeType.TENSOR:
        return f"tensor {tensor_digest(attribute.as_tensor())}"
    return f"{attribute.type.name} {attribute.value!r}"


def merge_initializers(graph: ir.Graph, outer: dict[Hashable, list[ir.Value]] | None = None) -> int:
    """Keep one of the initializers in ``graph``, and under it, that hold the same bytes. Returns: how many are gone."""
    seen: dict[Hashable, list[ir.Value]] = defaultdict(list)
    for key, values in (outer or {}).items():
        seen[key] += values
    merged = 0
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or value.is_graph_input():
            continue
        alike = seen[_sample(tensor)]
        first = next((v for v in alike if _equal(v.const_value, tensor)), None)
        if first is None:
            alike.append(value)
        elif replace(value, first):
            graph.initializers.pop(name)
            merged += 1
    for node in graph:
        for inner in subgraphs(node):
            merged += merge_initializers(inner, seen)
    return merged


def _equal(a: ir.TensorProtocol | None, b: ir.TensorProtocol) -> bool:
    return a is b or (a is not None and tensor_digest(a) == tensor_digest(b))


def _sample(tensor: ir.TensorProtocol) -> Hashable:
    """Give what equal tensors have in common and few others share; of a mapped tensor it reads one page."""
    shape = tuple(tensor.shape)
    if tensor.dtype == ir.DataType.STRING:
        return tensor.dtype, shape
    if isinstance(tensor, ir.ExternalTensor) and tensor.raw is not None:
        start = tensor.offset or 0
        return tensor.dtype, shape, bytes(memoryview(tensor.raw)[start : start + min(tensor.nbytes, _SAMPLE_BYTES)])
    array = tensor.numpy()
    return tensor.dtype, shape, array.reshape(-1)[: _SAMPLE_BYTES // max(array.itemsize, 1)].tobytes()
