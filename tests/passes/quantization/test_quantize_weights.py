"""quantize_weights: what is stored, and what the runtime makes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from given import Given
from onnx.reference import ReferenceEvaluator
from weight_only import (
    BLOCKED,
    EPS,
    NBITS,
    model,
    normal,
    ops,
    product,
    quantized,
    reasons,
    run,
    session,
    stored_weight,
)

from polycast.load import load
from polycast.passbase import PassContext
from polycast.passes.quantization.quantize_weights import QuantizeWeights
from polycast.pipeline import apply, parse_pass
from polycast.shares import count

CONVOLUTIONS = ("Conv", "ConvTranspose")


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("k", "block"), [(64, 32), (172, 32), (31, 16), (5, 16), (300, 128), (2, 16), (300, 0)])
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_the_product_is_that_with_the_weight_that_is_stored(bits: int, k: int, block: int, symmetric: bool) -> None:
    w, x = normal(k, 40), normal(7, k, seed=1)
    after = quantized(product(w), bits=bits, block=block, symmetric=symmetric, method="rtn", accuracy_level=0)
    stored, step = stored_weight(after)
    half = 0.5 + 2 * EPS * (1 << bits)
    assert np.all(np.abs(stored - w.T) <= half * step)
    size = np.abs(x.astype(np.float64)) @ np.abs(stored.T)
    for optimized in (False, True):
        (y,) = run(after, {"x": x}, optimized)
        assert np.all(np.abs(y - x.astype(np.float64) @ stored.T) <= (k + 4) * EPS * size)


@pytest.mark.parametrize("scales", ["log8", "float16", "float32"])
@pytest.mark.parametrize("k", [64, 172])
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_level_four_rounds_activations_to_int8_block_by_block(bits: int, k: int, scales: str) -> None:
    w, x = normal(k, 40), normal(7, k, seed=1)
    after = quantized(product(w), bits=bits, scales=scales)
    stored, _ = stored_weight(after)
    blocks = np.pad(np.abs(x), ((0, 0), (0, -k % 32))).reshape(7, -1, 32).max(-1) / 127
    half_steps = np.repeat(blocks, 32, axis=1)[:, :k] / 2
    size = np.abs(x) @ np.abs(stored.T)
    for optimized in (False, True):
        (y,) = run(after, {"x": x}, optimized)
        assert np.all(np.abs(y - x @ stored.T) <= half_steps @ np.abs(stored.T) + (k + 4) * EPS * size)
    assert count(after).to_json()["macs"] == {"int8": 1.0}


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_float16_models_keep_float16_activations(bits: int) -> None:
    w, x = normal(64, 40, dtype=np.float16), normal(5, 64, seed=1, dtype=np.float16)
    after = quantized(product(w), bits=bits, method="rtn", accuracy_level=0)
    stored, step = stored_weight(after)
    assert np.all(np.abs(stored - w.T) <= (0.5 + 2 * EPS * (1 << bits)) * step)
    (y,) = run(after, {"x": x}, optimized=True)
    size = np.abs(x.astype(np.float64)) @ np.abs(stored.T)
    # The result is rounded to float16; onnxruntime may round the widened weight to it as well.
    assert y.dtype == np.float16 and np.all(np.abs(y - x @ stored.T) <= 2 * 2.0**-11 * size + 64 * EPS * size)


def test_float16_where_the_graph_does_not_say_so() -> None:
    body = "g (float16[n, 64] x) => (float16[n, 64] y) { h = Gemm(x, w, c)\n y = MatMul(h, v) }"
    constants = {"w": normal(64, 64), "v": normal(64, 64, seed=1), "c": normal(64, seed=2)}
    before = model(body, {name: array.astype(np.float16) for name, array in constants.items()})
    assert {value.dtype for node in before.graph.graph for value in node.outputs if value.name == "h"} == {None}
    after = quantized(before)
    products = [node for node in after.graph.graph if node.op_type == "MatMulNBits"]
    assert [node.outputs[0].dtype for node in products] == [ir.DataType.FLOAT16] * 2
    assert run(after, {"x": normal(3, 64, dtype=np.float16)}, optimized=True)[0].dtype == np.float16


@pytest.mark.parametrize(("bits", "most"), [(8, 8.6), (4, 4.6), (3, 3.6), (2, 2.6)])
@pytest.mark.parametrize("k", [64, 172])
def test_storage_is_counted_to_the_last_byte(bits: int, k: int, most: float) -> None:
    after = quantized(product(normal(k, 512)), bits=bits)
    assert 8 * after.weight_bytes <= most * k * 512 + 8 * (1024 + 64)  # the table of log8, and a few shapes
    assert count(after).to_json()["weights"] == {f"int{bits}": 1.0}


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("block", [32, 0])
def test_onnxruntime_widens_at_load(tmp_path: Path, bits: int, block: int) -> None:
    session(quantized(product(normal(172, 64)), bits=bits, block=block), True, tmp_path / "optimized.onnx")
    optimized = onnx.load(tmp_path / "optimized.onnx").graph
    assert [node.op_type for node in optimized.node] == ["MatMulNBits"]


GEMMS = {
    "plain": ("Gemm(x, w, c)", (40,)),
    "no C": ("Gemm(x, w)", (40,)),
    "transposed": ("Gemm<transB=1>(x, w, c)", (40,)),
    "alpha, beta": ("Gemm<alpha=0.5, beta=2.0>(x, w, c)", (40,)),
    "scalar": ("Gemm(x, w, c)", ()),
    "column": ("Gemm(x, w, c)", (7, 1)),
}


@pytest.mark.parametrize("features", [NBITS, BLOCKED, frozenset()], ids=["nbits", "blocked", "neither"])
@pytest.mark.parametrize("name", GEMMS)
def test_gemm(name: str, features: frozenset[str]) -> None:
    call, shape = GEMMS[name]
    w = normal(64, 40) if name != "transposed" else normal(40, 64)
    x, c = normal(7, 64, seed=1), normal(*shape, seed=2)
    before = model(f"g (float[7, 64] x) => (float[7, 40] y) {{ y = {call} }}", {"w": w, "c": c})
    after = quantized(before, features, bits=8, accuracy_level=0)
    assert after.history[-1].sites == 1 and reasons(after) == {}
    assert any(node.name == "Gemm_0" for node in after.graph.graph)
    (exact,), (y,) = run(before, {"x": x}), run(after, {"x": x})
    half = (np.abs(w).max() * 2) / 255 * 2 ** (1 / 16)  # a step at most, of a row or block of both signs
    assert np.abs(y - exact).max() <= half * np.abs(x).sum(-1).max()
    assert np.abs(y - exact).max() > 0


def test_alpha_is_part_of_the_stored_weight() -> None:
    before = model("g (float[n, 64] x) => (float[n, 40] y) { y = Gemm<alpha=0.5>(x, w) }", {"w": normal(64, 40)})
    stored, step = stored_weight(quantized(before, method="rtn"))
    assert np.all(np.abs(stored - 0.5 * normal(64, 40).T) <= (0.5 + 32 * EPS) * step)


# Kernels that read floats.


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("block", [32, 0])
@pytest.mark.parametrize("bits", [8, 4])
def test_blocked_qdq(bits: int, block: int, symmetric: bool, axis: int) -> None:
    w, x = normal(64, 40), normal(5, 64, seed=1)
    if axis == 0:
        before = model("g (float[n, 64] x) => (float[n, 40] y) { y = Gemm<transB=1>(x, w) }", {"w": w.T.copy()})
    else:
        before = product(w)
    after = quantized(before, BLOCKED, bits=bits, block=block, symmetric=symmetric, method="rtn")
    assert ops(after) == {"DequantizeLinear": 1, ("Gemm" if axis == 0 else "MatMul"): 1}
    assert count(after).to_json()["weights"] == {f"int{bits}": 1.0}
    (y,) = ReferenceEvaluator(ir.to_proto(after.graph)).run(None, {"x": x})
    blocks = w.reshape(-1, block or 64, 40)
    top = (1 << bits) - 1
    low, high = np.minimum(blocks.min(1), 0), np.maximum(blocks.max(1), 0)
    step = np.maximum(high / (top // 2), -low / (top // 2 + 1)) if symmetric else (high - low) / top
    half_steps = np.repeat(step / 2, block or 64, axis=0)
    size = np.abs(x) @ (np.abs(w) + 2 * half_steps)
    assert np.all(np.abs(y - x @ w) <= np.abs(x) @ half_steps + (64 + 2 * top) * EPS * size)


@pytest.mark.parametrize("op", CONVOLUTIONS)
@pytest.mark.parametrize("group", [1, 2])
def test_convolutions_are_stored_in_int8(op: str, group: int, tmp_path: Path) -> None:
    w = normal(8, 8 // group, 3, 3) * np.logspace(-2, 2, 8, dtype=np.float32)[:, None, None, None]
    before = model(f"g (float[1, 8, 9, 9] x) => (float[1, m, h, v] y) {{ y = {op}<group={group}>(x, w) }}", {"w": w})
    after = quantized(before, NBITS, bits=8, method="rtn", ops=CONVOLUTIONS)
    assert count(after).to_json() == {"weights": {"int8": 1.0}, "macs": {"fp32": 1.0}}
    (got,) = (v.const_value.numpy() for v in after.graph.graph.initializers.values() if v.name == "w.int8")
    (scale,) = (v.const_value.numpy() for v in after.graph.graph.initializers.values() if v.name == "w.scale")
    assert got.dtype == np.int8 and scale.shape == ((8, 1, 1, 1) if op == "Conv" else (1, 8 // group, 1, 1))
    assert np.all(np.abs(got * scale - w) <= (0.5 + 512 * EPS) * scale)
    session(after, True, tmp_path / "optimized.onnx")
    optimized = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert optimized - {"ReorderInput", "ReorderOutput"} == {op}  # whichever layout onnxruntime likes better here
    narrow = quantized(before, NBITS, bits=4, ops=CONVOLUTIONS)
    assert reasons(narrow) == {f"{op}_0": "the weight of a convolution takes 8 bits, not 4"}


def test_a_target_without_a_kernel_is_told() -> None:
    before = product(normal(64, 40))
    assert reasons(quantized(before, frozenset())) == {
        "MatMul_0": "the target has neither matmul-nbits nor blocked-qdq"
    }
    assert reasons(quantized(before, BLOCKED, bits=3)) == {"MatMul_0": "DequantizeLinear stores 4 or 8 bits, not 3"}


def test_keep_and_only_choose() -> None:
    body = "g (float[n, 64] x) => (float[n, 64] y) { h = MatMul(x, w)\n y = MatMul(h, v) }"
    before = model(body, {"w": normal(64, 64), "v": normal(64, 64, seed=1)})
    for parameters in ({"keep": ("MatMul_0",)}, {"only": ("*_1",)}):
        after = quantized(before, **parameters)
        assert [node.op_type for node in after.graph.graph if node.name.startswith("MatMul_")] == [
            "MatMul",
            "MatMulNBits",
        ]
        assert [node.outputs[0].name for node in after.graph.graph if node.name.startswith("MatMul_")] == ["h", "y"]
        assert reasons(after) == {}


@pytest.mark.parametrize("text", ["bits=5", "block=24", "method='best'", "scales='bf16'", "ops=('Add',)"])
def test_a_wrong_parameter_is_named(text: str) -> None:
    with pytest.raises(Exception, match=text.partition("=")[0]):
        parse_pass(f"quantize_weights({text})")


# With samples.


def test_gptq_changes_the_outputs_less() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((64, 64)) * np.logspace(0, -2, 64)
    feeds = [{"x": (rng.standard_normal((20, 64)) @ mixing).astype(np.float32)} for _ in range(8)]
    before = product(normal(64, 40))

    def lost(method: str) -> float:
        after = apply(QuantizeWeights(method=method), before, PassContext(NBITS, Given(feeds)))
        return sum(float(np.square(run(after, each)[0] - run(before, each)[0]).sum()) for each in feeds)

    assert lost("auto") == lost("gptq") < 0.7 * lost("mse")


def test_gptq_without_samples_is_told() -> None:
    assert reasons(quantized(product(normal(64, 40)), method="gptq")) == {"MatMul_0": "gptq needs calibration samples"}


def test_stories_keep_their_distribution(zoo: Callable[[str], Path]) -> None:
    before = load(zoo("lm/stories260K.onnx"))
    ids = np.random.default_rng(0).integers(3, 500, (1, 48))
    (exact,) = run(before, {"input_ids": ids}, optimized=True)

    def divergence(**parameters: object) -> float:
        after = apply(QuantizeWeights(**parameters), before, PassContext(NBITS))
        assert after.history[-1].sites == 36
        (y,) = run(after, {"input_ids": ids}, optimized=True)
        p, q = (each - np.log(np.exp(each).sum(-1, keepdims=True)) for each in (exact, y))
        return float((np.exp(p) * (p - q)).sum(-1).mean())

    found = {bits: divergence(bits=bits) for bits in (8, 4, 3, 2)}
    assert found[8] < found[4] / 20 < found[3] / 20 < found[2] / 20
    assert divergence(bits=4, method="mse") < divergence(bits=4, method="rtn")
