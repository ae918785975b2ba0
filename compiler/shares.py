"""Shares: how much of a model is stored, and of its arithmetic done, at which precision. Counted, not told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from .model import Model, graphs, named

#: The ops whose weights count, and which input is the weight. MatMul takes its weight on either side.
WEIGHT_INPUT: Mapping[tuple[str, str], tuple[int, ...]] = {
    ("", "Conv"): (1,),
    ("", "ConvTranspose"): (1,),
    ("", "Gemm"): (1, 0),
    ("", "MatMul"): (1, 0),
    ("", "ConvInteger"): (1,),
    ("", "MatMulInteger"): (1, 0),
    ("", "QLinearConv"): (3,),
    ("", "QLinearMatMul"): (3, 0),
    ("com.microsoft", "Attention"): (1,),
    ("com.microsoft", "DynamicQuantizeMatMul"): (1,),
    ("com.microsoft", "FusedMatMul"): (1, 0),
    ("com.microsoft", "MatMulIntegerToFloat"): (1,),
    ("com.microsoft", "MatMulNBits"): (1,),
    ("com.microsoft", "QGemm"): (3,),
}

#: Ops that multiply integers whatever their weight looks like.
_INTEGER = {
    "ConvInteger", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QGemm", "QLinearConv",
    "QLinearMatMul",
}  # fmt: skip

_CONVOLUTIONS = {"Conv", "ConvTranspose", "ConvInteger", "QLinearConv"}

_FLOATS = {
    ir.DataType.FLOAT: "fp32",
    ir.DataType.DOUBLE: "fp64",
    ir.DataType.FLOAT16: "fp16",
    ir.DataType.BFLOAT16: "bf16",
}


@dataclass(frozen=True)
class Shares:
    """Per precision: elements of the weights of Conv, ConvTranspose, Gemm and MatMul, and their multiply-accumulates.

    Elements, not stored bytes, so that halving a weight's bytes does not halve its say.
    """

    weights: Mapping[str, int] = field(default_factory=dict)
    macs: Mapping[str, int] = field(default_factory=dict)

    def share(self, of: str, precision: str) -> float:
        """Give the share, 0 to 1, of ``of`` ("weights" or "macs") at ``precision``; 0 where there are none at all."""
        counts: Mapping[str, int] = getattr(self, of)
        total = sum(counts.values())
        return counts.get(precision, 0) / total if total else 0.0

    def to_json(self) -> dict[str, dict[str, float]]:
        """Both shares by precision, rounded to 1e-6."""
        return {of: {p: round(self.share(of, p), 6) for p in sorted(getattr(self, of))} for of in ("weights", "macs")}


@dataclass(frozen=True)
class Weight:
    """The weight of a node: which input it is, what is stored for it, how many elements it has, at which precision.

    A weight may be packed, so that ``elements`` is not the size of ``stored``: ``precision`` is the bits that are
    stored per element, ``int4`` or ``int3``, whatever dtype holds them.
    """

    index: int
    stored: ir.TensorProtocol
    elements: int
    precision: str


def count(model: Model, shapes: Mapping[str, tuple[int, ...]] | None = None, leave_out: Collection[str] = ()) -> Shares:
    """Count weights and MACs per precision.

    shapes: input name -> concrete shape at which MACs are counted; a dimension that stays unknown counts as 1.
    leave_out: names, op types and globs of nodes that do not count.
    """
    weights: Counter[str] = Counter()
    macs: Counter[str] = Counter()
    seen: set[int] = set()
    for node, weight in weighted(model, shapes):
        if named(node, leave_out):
            continue
        if id(weight.stored) not in seen:
            seen.add(id(weight.stored))
            weights[weight.precision] += weight.elements
        macs[_computed_in(node, weight)] += macs_of(node, weight)
    return Shares(dict(weights), dict(macs))


def weighted(model: Model, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Iterator[tuple[ir.Node, Weight]]:
    """Yield every node that counts, of a copy in which shapes are inferred from ``shapes``, with its weight."""
    draft = model.draft()
    for value in draft.graph.inputs:
        if shapes and value.name is not None and value.name in shapes:
            value.shape = ir.Shape(shapes[value.name])
    if shapes:
        for value in (v for node in draft.graph for v in node.outputs if not v.is_graph_output()):
            value.shape = None  # what was inferred for symbolic inputs would hide what the concrete ones give
    ShapeInferencePass()(draft)
    for graph in graphs(draft):
        for node in graph:
            if (found := weight_of(node)) is not None:
                yield node, found


def weight_of(node: ir.Node) -> Weight | None:
    """Give the weight of ``node``: an input that is computed from constants alone. None where it has none."""
    for index in WEIGHT_INPUT.get((node.domain, node.op_type), ()):
        value = node.inputs[index] if index < len(node.inputs) else None
        stored = _stored(value) if value is not None else None
        if value is not None and stored is not None:
            elements = _elements(node, value, stored)
            return Weight(index, stored, elements, _precision(stored, elements))
    return None


def macs_of(node: ir.Node, weight: Weight) -> int:
    """Count multiply-accumulates of one run: each weight element once per position that it is applied to."""
    shape = (node.inputs[0] if node.op_type == "ConvTranspose" else node.outputs[0]).shape  # type: ignore[union-attr]
    if shape is None:
        return weight.elements
    dims: list[int] = [d if isinstance(d, int) else 1 for d in shape]
    if node.op_type in _CONVOLUTIONS:
        return weight.elements * prod(dims[:1] + dims[2:])
    rows = dims[:-1] if weight.index else dims[:-2] + dims[-1:]
    return weight.elements * prod(rows)


def _stored(value: ir.Value) -> ir.TensorProtocol | None:
    """Give the constant of most elements that ``value`` is computed from, if it is computed from constants alone."""
    leaves: dict[int, ir.TensorProtocol] = {}
    pending, seen = [value], {value}
    while pending:
        one = pending.pop()
        producer = one.producer()
        if one.const_value is not None and not one.is_graph_input():
            leaves[id(one.const_value)] = one.const_value
        elif producer is None or producer.op_type == "Constant" or _has_graph(producer):
            constant = ir.convenience.get_const_tensor(one)
            if constant is None:
                return None
            leaves[id(constant)] = constant
        else:
            fresh = [v for v in producer.inputs if v is not None and v not in seen]
            if not any(v is not None for v in producer.inputs):
                return None  # made of nothing, as RandomNormal is
            seen.update(fresh)
            pending += fresh
    # The most elements, not bytes: a scale for each of few rows is longer than the int8 weight that it belongs to.
    return max(leaves.values(), key=lambda tensor: (tensor.size, -tensor.nbytes), default=None)


_SUBGRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def _has_graph(node: ir.Node) -> bool:
    return any(attribute.type in _SUBGRAPHS for attribute in node.attributes.values())


def _elements(node: ir.Node, value: ir.Value, stored: ir.TensorProtocol) -> int:
    if node.op_type == "MatMulNBits":
        return node.attributes["K"].as_int() * node.attributes["N"].as_int()
    if value.shape is not None and value.shape.is_static():
        return prod(value.shape.numpy())
    return prod(stored.shape.numpy())


def _precision(stored: ir.TensorProtocol, elements: int) -> str:
    if stored.dtype in _FLOATS:
        return _FLOATS[stored.dtype]
    return f"int{stored.nbytes * 8 // elements}" if elements else "int8"


def _computed_in(node: ir.Node, weight: Weight) -> str:
    """Give the precision that ``node`` computes in: integer only where both of its operands are integers there."""
    if node.op_type in _INTEGER:
        return weight.precision
    if node.op_type == "MatMulNBits":
        level = node.attributes.get("accuracy_level")
        return "int8" if level is not None and level.as_int() == 4 else "fp32"
    if weight.precision.startswith("int"):
        other = node.inputs[1 - weight.index] if weight.index < 2 else None
        producer = other.producer() if other is not None else None
        return weight.precision if producer is not None and producer.op_type == "DequantizeLinear" else "fp32"
    result = node.outputs[0].dtype or (node.inputs[weight.index].dtype if node.inputs[weight.index] else None)  # type: ignore[union-attr]
    return _FLOATS.get(result, weight.precision) if result is not None else weight.precision
