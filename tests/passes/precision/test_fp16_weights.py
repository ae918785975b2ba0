"""fp16_weights: weights take half the bytes, everything computes in float32, and what float16 does not hold stays."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from polycast.passbase import PassContext
from polycast.passes.precision.fp16_weights import Fp16Weights

HEADER = '<ir_version: 10, opset_import: ["" : 23]> '
LAYER = "g (float[3, 16] x) => (float[3, 8] y) { y = MatMul(x, w) }"
TABLE = "g (int64[3] x) => (float[3, 8] y) { r = Gather(w, x) y = Relu(r) }"


def graph(text: str, **arrays: np.ndarray) -> ir.Model:
    proto = onnx.parser.parse_model(HEADER + text)
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.from_proto(proto)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_weight_is_stored_in_half_and_computed_with_in_whole() -> None:
    w, x = random(16, 8), random(3, 16)
    model = graph(LAYER, w=w)
    assert Fp16Weights().rewrite(model, PassContext()) == 1
    assert ops(model) == ["Cast", "MatMul"]
    assert [v.dtype for v in model.graph.initializers.values()] == [ir.DataType.FLOAT16]
    found = ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": x})[0]
    np.testing.assert_array_equal(found, x @ w.astype(np.float16).astype(np.float32))
    assert Fp16Weights().rewrite(model, PassContext()) == 0


def test_rows_that_are_looked_up_are_widened_and_the_table_is_not() -> None:
    w = random(16, 8)
    model = graph(TABLE, w=w)
    assert Fp16Weights().rewrite(model, PassContext()) == 1
    assert ops(model) == ["Gather", "Cast", "Relu"]
    found = ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": np.array([2, 0, 5])})[0]
    np.testing.assert_array_equal(found, np.maximum(w[[2, 0, 5]].astype(np.float16), 0).astype(np.float32))


def test_weight_that_several_read_is_stored_once() -> None:
    model = graph("g (int64[3] x) => (float[3, 16] y) { r = Gather(w, x) y = Gemm<transB = 1>(r, w) }", w=random(16, 8))
    assert Fp16Weights().rewrite(model, PassContext()) == 1
    assert len(model.graph.initializers) == 1
    assert sorted(ops(model)) == ["Cast", "Cast", "Gather", "Gemm"]


@pytest.mark.parametrize(
    ("w", "reason"),
    [(np.full((16, 8), 1e6, np.float32), "its weight w holds 1e+06, over 65504"), (random(2, 2), None)],
)
def test_what_float16_does_not_hold_or_is_small_stays(w: np.ndarray, reason: str | None) -> None:
    model, ctx = graph(LAYER.replace("16", str(len(w))).replace("8", str(w.shape[1])), w=w), PassContext()
    assert Fp16Weights().rewrite(model, ctx) == 0
    assert [skip.reason for skip in ctx.skips] == ([reason] if reason else [])


def test_what_is_kept_stays() -> None:
    assert Fp16Weights(keep=("MatMul",)).rewrite(graph(LAYER, w=random(16, 8)), PassContext()) == 0
