"""What the tests of clean and fold share: rewrite a graph written as text, and hold the rewrite to its contract."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from polycast.model import Model, Origin, Signature, digest
from polycast.passbase import Pass, PassContext
from polycast.pipeline import Pipeline

#: Every symbolic dimension has this size when a graph is run.
SIZE = 3


@dataclass(frozen=True)
class Rewritten:
    """A graph after a pass."""

    graph: ir.Model
    sites: int
    reasons: list[str]

    @property
    def ops(self) -> list[str]:
        """Op of each node, subgraphs included, in order."""
        return [node.op_type for node in self.graph.graph.all_nodes()]

    @property
    def count(self) -> Counter[str]:
        """How often each op occurs."""
        return Counter(self.ops)

    def node(self, op: str) -> ir.Node:
        """Give the only node of this op."""
        (node,) = (n for n in self.graph.graph.all_nodes() if n.op_type == op)
        return node


def rewrite(one: Pass, text: str | onnx.ModelProto, feeds: dict[str, np.ndarray] | None = None) -> Rewritten:
    """Run ``one`` on a model; it must keep the contract, and the outputs bit for bit on the reference evaluator."""
    proto = onnx.parser.parse_model(HEADER + text) if isinstance(text, str) else text
    onnx.checker.check_model(proto)
    graph = ir.from_proto(proto)
    before, signature = digest(graph), str(Signature.of(graph.graph))
    ctx = PassContext()
    sites = one.rewrite(graph, ctx)
    assert (sites == 0) == (digest(graph) == before)
    assert str(Signature.of(graph.graph)) == signature
    after = digest(graph)
    assert one.rewrite(graph, PassContext()) == 0, "a second run finds more"
    assert digest(graph) == after
    result = ir.to_proto(graph)
    onnx.checker.check_model(result)
    feeds = feeds or random_feeds(proto)
    for want, got in zip(
        ReferenceEvaluator(proto).run(None, feeds), ReferenceEvaluator(result).run(None, feeds), strict=True
    ):
        assert (want.dtype, want.shape, want.tobytes()) == (got.dtype, got.shape, got.tobytes())
    # The pipeline holds it to the same, and works on a draft.
    Pipeline((one,)).run(Model("test", ir.from_proto(proto), Origin("test", "")))
    return Rewritten(graph, sites, [skip.reason for skip in ctx.skips])


HEADER = '<ir_version: 10, opset_import: ["" : 23]>\n'


def random_feeds(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Draw an array for each input."""
    rng = np.random.default_rng(0)
    feeds = {}
    for info in proto.graph.input:
        shape = [d.dim_value or SIZE for d in info.type.tensor_type.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        feeds[info.name] = (rng.standard_normal(shape) * 4).astype(dtype)
    return feeds
