"""What the tests of weight-only quantization share: small models, running them, and reading what is stored."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from given import Feeds, parsed
from onnx.reference import ReferenceEvaluator

from polycast.model import Model
from polycast.passbase import PassContext
from polycast.passes.quantization.quantize_weights import QuantizeWeights
from polycast.pipeline import apply

EPS = float(np.finfo(np.float32).eps)
NBITS = frozenset({"matmul-nbits"})
BLOCKED = frozenset({"blocked-qdq"})

model = partial(parsed, ir_version=11)


def product(w: np.ndarray) -> Model:
    """x @ w"""
    kind = "float16" if w.dtype == np.float16 else "float"
    return model(f"g ({kind}[n, {w.shape[0]}] x) => ({kind}[n, {w.shape[1]}] y) {{ y = MatMul(x, w) }}", {"w": w})


def quantized(before: Model, features: frozenset[str] = NBITS, **parameters: object) -> Model:
    """Run the pass, and see that a second run finds nothing."""
    after = apply(QuantizeWeights(**parameters), before, PassContext(features))
    assert apply(QuantizeWeights(**parameters), after, PassContext(features)).history[-1].sites == 0
    return after


def reasons(after: Model) -> dict[str, str]:
    return {skip.node: skip.reason for skip in after.history[-1].skips}


def ops(after: Model) -> Counter[str]:
    return Counter(node.op_type for node in after.graph.graph.all_nodes())


def session(of: Model, optimized: bool = False, path: Path | None = None) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if path is not None:
        options.optimized_model_filepath = str(path)
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    proto = ir.to_proto(ir.external_data.load_to_model(of.graph.clone()))
    return ort.InferenceSession(proto.SerializeToString(), options)


def run(of: Model, feeds: Feeds, optimized: bool = False) -> list[np.ndarray]:
    return session(of, optimized).run(None, feeds)


def normal(*shape: int, seed: int = 0, dtype: type[np.floating] = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def stored_weight(after: Model) -> tuple[np.ndarray, np.ndarray]:
    """Decode the operands of the only MatMulNBits as its documentation says: w [N, K] and its steps [N, K], float64."""
    graph = after.graph.clone()
    (node,) = (n for n in graph.graph.all_nodes() if n.op_type == "MatMulNBits")
    operands = [value for value in node.inputs[1:4] if value is not None]
    attributes = {name: node.attributes[name].as_int() for name in ("K", "N", "bits", "block_size")}
    node.graph.remove(node)
    graph.graph.inputs.clear()
    graph.graph.outputs.clear()
    for value in operands:
        copy = ir.node("Identity", [value])
        graph.graph.append(copy)
        graph.graph.outputs.append(copy.outputs[0])
    codes, scale, *zeros = ReferenceEvaluator(ir.to_proto(graph)).run(None, {})
    k, n, bits, block = (attributes[name] for name in ("K", "N", "bits", "block_size"))
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], -1)
        zeros = [np.stack([each & 15, each >> 4], -1).reshape(n, -1) for each in zeros]
    codes = codes.reshape(n, -1)[:, :k].astype(np.float64)
    zero = zeros[0][:, : scale.shape[1]] if zeros else np.full(scale.shape, 1 << (bits - 1))
    zero, step = (np.repeat(each.astype(np.float64), block, axis=1)[:, :k] for each in (zero, scale))
    return (codes - zero) * step, step
