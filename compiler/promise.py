"""Promises: what share of a model's weights and multiply-accumulates runs at which precision, counted and held."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from .errors import PromiseError
from .model import Model, graphs

#: The ops whose weights count, and which input is the weight. MatMul takes its weight on either side.
WEIGHT_INPUT: Mapping[tuple[str, str], tuple[int, ...]] = {
    ("", "Conv"): (1,),
    ("", "ConvTranspose"): (1,),
    ("", "Gemm"): (1, 0),
    ("", "MatMul"): (1, 0),
    ("com.microsoft", "Attention"): (1,),
    ("com.microsoft", "FusedMatMul"): (1, 0),
}

_NAMES = {
    ir.DataType.FLOAT: "fp32",
    ir.DataType.DOUBLE: "fp64",
    ir.DataType.FLOAT16: "fp16",
    ir.DataType.BFLOAT16: "bf16",
    ir.DataType.INT8: "int8",
    ir.DataType.UINT8: "int8",
    ir.DataType.INT4: "int4",
    ir.DataType.UINT4: "int4",
}

#: What a weight may pass through between where it is stored and the op that multiplies by it.
_ON_THE_WAY = {"DequantizeLinear", "Cast", "Transpose", "Reshape", "Identity"}


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
class Promise:
    """What a recipe says its builds will be: at least these shares of weights and of MACs at ``precision``.

    An empty ``precision`` promises that nothing is stored or computed narrower than in the model that came in.
    """

    precision: str = ""
    weights: float = 0.0
    macs: float = 0.0

    def asked(self) -> dict[str, Any]:
        """The promise, as the manifest spells it."""
        if not self.precision:
            return {"weights": {"as given": 1.0}, "macs": {"as given": 1.0}}
        return {"weights": {self.precision: self.weights}, "macs": {self.precision: self.macs}}

    def check(self, before: Shares, after: Shares, why: Iterable[str] = ()) -> None:
        """Hold the counted shares against the promise.

        why: the reasons of what was skipped, of which the first few go into the message.
        Raises: PromiseError saying what was asked, what was reached, and why.
        """
        if not self.precision:
            for precision, elements in after.weights.items():
                if precision not in ("fp32", "fp64") and elements > before.weights.get(precision, 0):
                    raise PromiseError(f"the recipe promises weights as given; {elements} elements are now {precision}")
            return
        if not after.weights:
            raise PromiseError(
                f"nothing to make {self.precision}: the model has no Conv, ConvTranspose, Gemm or MatMul with weights",
                "Compile it with -p fp32",
            )
        for of, least in (("weights", self.weights), ("macs", self.macs)):
            reached = after.share(of, self.precision)
            if reached < least:
                reasons = [line for _, line in zip(range(5), why, strict=False)]
                raise PromiseError(
                    f"asked {least:.0%} of {of} in {self.precision}, reached {reached:.1%}",
                    "Because: " + "; ".join(reasons) if reasons else "No pass of the recipe says why",
                )


def count(model: Model, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Shares:
    """Count weights and MACs per precision.

    shapes: input name -> concrete shape at which MACs are counted; a dimension that stays unknown counts as 1.
    """
    draft = model.draft()
    for value in draft.graph.inputs:
        if shapes and value.name is not None and value.name in shapes:
            value.shape = ir.Shape(shapes[value.name])
    if shapes:
        for value in (v for node in draft.graph for v in node.outputs if not v.is_graph_output()):
            value.shape = None  # what was inferred for symbolic inputs would hide what the concrete ones give
    ShapeInferencePass()(draft)
    weights: Counter[str] = Counter()
    macs: Counter[str] = Counter()
    seen: set[int] = set()
    for graph in graphs(draft):
        for node in graph:
            found = weight_of(node)
            if found is None:
                continue
            index, stored = found
            elements = prod(stored.shape.numpy())
            name = _NAMES.get(stored.dtype, str(stored.dtype).lower())
            if id(stored) not in seen:
                seen.add(id(stored))
                weights[name] += elements
            macs[_computed_in(node, index, name)] += _macs(node, index, elements)
    return Shares(dict(weights), dict(macs))


def weight_of(node: ir.Node) -> tuple[int, ir.TensorProtocol] | None:
    """Give the index of the weight input of ``node`` and the tensor that is stored for it, or None."""
    for index in WEIGHT_INPUT.get((node.domain, node.op_type), ()):
        value = node.inputs[index] if index < len(node.inputs) else None
        while value is not None and value.const_value is None:
            producer = value.producer()
            if producer is None or producer.op_type not in _ON_THE_WAY:
                break
            value = producer.inputs[0]
        if value is not None and value.const_value is not None:
            return index, value.const_value
    return None


def _computed_in(node: ir.Node, weight: int, stored: str) -> str:
    """Give the precision that ``node`` computes in: integer only where both of its operands are dequantized there."""
    other = node.inputs[1 - weight] if weight < 2 else None
    producer = other.producer() if other is not None else None
    if stored.startswith("int"):
        return stored if producer is not None and producer.op_type == "DequantizeLinear" else "fp32"
    result = node.outputs[0].dtype or (node.inputs[weight].dtype if node.inputs[weight] else None)  # type: ignore[union-attr]
    return _NAMES.get(result, stored) if result is not None else stored


def _macs(node: ir.Node, weight: int, elements: int) -> int:
    """Multiply-accumulates of one run: each weight element once per position that it is applied to."""
    shape = (node.inputs[0] if node.op_type == "ConvTranspose" else node.outputs[0]).shape  # type: ignore[union-attr]
    if shape is None:
        return elements
    dims: list[int] = [d if isinstance(d, int) else 1 for d in shape]
    if node.op_type in ("Conv", "ConvTranspose"):
        return elements * prod(dims[:1] + dims[2:])
    rows = dims[:-1] if weight == 1 else dims[:-2] + dims[-1:]
    return elements * prod(rows)
