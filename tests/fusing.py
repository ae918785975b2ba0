"""What the tests of the fusions share: fuse a graph written as text, and hold the result to ROUNDING."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from rewrites import HEADER, Rewritten, random_feeds

from polycast.model import Model, Origin, Signature, digest
from polycast.passbase import Pass, PassContext
from polycast.pipeline import Pipeline


def fuse(
    one: Pass, text: str | onnx.ModelProto, *, longest: int = 8, features: frozenset[str] = frozenset()
) -> Rewritten:
    """Run ``one`` on a model; it must keep the contract, and the outputs up to rounding.

    longest: terms in the longest sum of the graph, which the tolerance follows from.
    """
    proto = onnx.parser.parse_model(HEADER + text) if isinstance(text, str) else text
    onnx.checker.check_model(proto)
    graph = ir.from_proto(proto)
    before, signature = digest(graph), str(Signature.of(graph.graph))
    ctx = PassContext(features)
    sites = one.rewrite(graph, ctx)
    assert (sites == 0) == (digest(graph) == before)
    assert str(Signature.of(graph.graph)) == signature
    after = digest(graph)
    assert one.rewrite(graph, PassContext(features)) == 0, "a second run finds more"
    assert digest(graph) == after
    result = ir.to_proto(graph)
    onnx.checker.check_model(result)
    assert_within_rounding(proto, result, random_feeds(proto), longest)
    Pipeline((one,)).run(Model("test", ir.from_proto(proto), Origin("test", "")), PassContext(features))
    return Rewritten(graph, sites, [skip.reason for skip in ctx.skips])


def assert_within_rounding(
    before: onnx.ModelProto, after: onnx.ModelProto, feeds: dict[str, np.ndarray], longest: int
) -> None:
    """Each node may add a rounding of the output's dtype, a sum of n terms sqrt(n) of them (Higham and Mary 2019)."""
    for want, got in zip(run(before, feeds), run(after, feeds), strict=True):
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        rounding = float(np.finfo(want.dtype).eps) * math.sqrt(longest) * len(before.graph.node)
        np.testing.assert_allclose(got, want, rtol=0, atol=rounding * float(np.abs(want).max()))


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Run on the reference evaluator, or on onnxruntime with its optimizations off where only that can.

    The reference evaluator has no op of other domains, and reshapes the weight of a grouped ConvTranspose wrongly.
    """
    if all(o.domain == "" for o in model.opset_import) and all(n.op_type != "ConvTranspose" for n in model.graph.node):
        return ReferenceEvaluator(model).run(None, feeds)
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"]).run(
        None, {name: np.asarray(array) for name, array in feeds.items()}
    )
