"""int8 on the worst cases: each is quantized or skipped with a reason, and the outputs are never wrong."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from given import Feeds, Given
from onnx import numpy_helper

from polycast.model import Model, Origin
from polycast.passbase import PassContext
from polycast.passes.quantization._qdq import is_stored, stored
from polycast.passes.quantization.int8 import Int8
from polycast.pipeline import apply

FEATURES = frozenset({"qdq", "u8s8-exact"})


def model(body: str, weights: Mapping[str, np.ndarray] | None = None, *, inputs: bool = False) -> Model:
    """Read ``body``; ``weights`` become its initializers. inputs: these are listed among its inputs as well."""
    proto = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 23]>\n' + body)
    for name, w in (weights or {}).items():
        tensor = numpy_helper.from_array(w, name)
        proto.graph.initializer.append(tensor)
        if inputs:
            proto.graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, w.shape))
    return Model("given", ir.from_proto(onnx.shape_inference.infer_shapes(proto)), Origin("", ""))


def quantize(before: Model, *samples: Feeds, **parameters: object) -> Model:
    """Run the pass twice, the second time to no effect."""
    context = PassContext(FEATURES, calibration=Given(list(samples)))
    after = apply(Int8(calibrate="minmax", **parameters), before, context)
    assert apply(Int8(calibrate="minmax"), after, context).history[-1].sites == 0
    return after


def run(of: Model, feeds: Feeds, *, fused: bool = False) -> list[np.ndarray]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    if not fused:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(ir.to_proto(of.graph).SerializeToString(), options).run(None, feeds)


def agree(before: Model, after: Model, feeds: Feeds, db: float = 25) -> None:
    """Hold the outputs, fused or not, to 8-bit noise: two grids at 8 bits of uniform numbers leave more than 40 dB."""
    for fused in (False, True):
        for want, got in zip(run(before, feeds), run(after, feeds, fused=fused), strict=True):
            assert (got.dtype, got.shape) == (want.dtype, want.shape)
            noise, signal = np.square(got - want).sum(), np.square(want).sum()
            assert noise <= signal * 10 ** (-db / 10)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def reasons(after: Model) -> list[str]:
    return [skip.reason for skip in after.history[-1].skips]


CONV = "g (float[n, 4, 8, 8] x) => (float[n, 16, 6, 6] y) { y = Conv(x, w, b) }"
PRODUCT = "g (float[n, 64] x) => (float[n, 32] y) { y = MatMul(x, w) }"
W, B, X = normal(16, 4, 3, 3), normal(16, seed=1), {"x": normal(2, 4, 8, 8, seed=2)}
ROWS = {"x": normal(32, 64, seed=3)}


def test_all_zero_weights() -> None:
    before = model(CONV, {"w": 0 * W, "b": B})
    after = quantize(before, X)
    assert after.history[-1].sites == 1
    agree(before, after, X)


def test_an_all_zero_channel_with_a_large_bias() -> None:
    """Its bias must fit int32 at the scale of products that are all zero."""
    w, b = W.copy(), B.copy()
    w[3], b[3] = 0, 1e5
    before = model(CONV, {"w": w, "b": b})
    after = quantize(before, X)
    y = next(n for n in after.graph.graph if n.op_type == "Conv")
    assert abs(stored(y, 2).values()[3] / 1e5 - 1) < 2**-20
    agree(before, after, X)


def test_an_all_zero_input() -> None:
    zeros = {"x": np.zeros_like(X["x"])}
    before = model(CONV, {"w": W, "b": B})
    after = quantize(before, zeros)
    for fused in (False, True):
        assert np.isfinite(run(after, X, fused=fused)[0]).all()
        (found,) = run(after, zeros, fused=fused)
        np.testing.assert_allclose(found, run(before, zeros)[0], atol=np.ptp(B) / 255)


@pytest.mark.parametrize("scale", [1e-30, 1e-42, 1e30])
def test_weights_at_the_ends_of_float32(scale: float) -> None:
    before = model(PRODUCT, {"w": (normal(64, 32) * np.float64(scale)).astype(np.float32)})
    after = quantize(before, ROWS)
    (y,), (found,) = run(before, ROWS), run(after, ROWS)
    assert np.isfinite(found).all()
    # What lies under 2**-62 is rounded to steps of that size: off by half of one for each of 64 products.
    assert np.abs(found - y).max() <= max(0.05 * np.abs(y).max(), 2.0**-63 * np.abs(ROWS["x"]).sum(1).max())


def test_an_outlier_channel() -> None:
    w = W.copy()
    w[5] *= 1e4
    before = model(CONV, {"w": w, "b": B})
    agree(before, quantize(before, X), X)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["w", "b"])
def test_weights_that_are_not_finite(name: str, bad: float) -> None:
    weights = {"w": W.copy(), "b": B.copy()}
    weights[name].flat[3] = bad
    after = quantize(model(CONV, weights), X)
    assert after.history[-1].sites == 0
    assert reasons(after) == [f"its {'weight' if name == 'w' else 'bias'} holds NaN or infinity"]


def test_samples_that_are_not_finite() -> None:
    bad = {"x": X["x"].copy()}
    bad["x"].flat[7] = np.nan
    after = quantize(model(CONV, {"w": W, "b": B}), X, bad)
    assert after.history[-1].sites == 0 and reasons(after) == ["its input holds NaN or infinity"]


def test_one_by_one() -> None:
    before = model("g (float[1, 1] x) => (float[1, 1] y) { y = MatMul(x, w) }", {"w": np.array([[-0.3]], np.float32)})
    x = {"x": np.array([[0.7]], np.float32)}
    after = quantize(before, x)
    assert after.history[-1].sites == 1
    agree(before, after, x)


def test_an_empty_weight() -> None:
    body = "g (float[n, 0] x) => (float[n, 4] y) { y = MatMul(x, w) }"
    after = quantize(model(body, {"w": np.zeros((0, 4), np.float32)}), {"x": np.zeros((2, 0), np.float32)})
    assert reasons(after) == ["its weight has no elements"]


def test_an_empty_batch() -> None:
    after = quantize(model(PRODUCT, {"w": normal(64, 32)}), {"x": np.zeros((0, 64), np.float32)})
    assert reasons(after) == ["no sample shows x"]


def test_a_weight_of_two_nodes_is_stored_once() -> None:
    body = """g (float[n, 64] x) => (float[n, 32] y) {
      a = MatMul(x, w)
      s = Softmax(x)
      b = MatMul(s, w)
      y = Add(a, b)
    }"""
    before = model(body, {"w": normal(64, 32)})
    after = quantize(before, ROWS)
    assert after.history[-1].sites == 2
    assert [t.shape for t in after.graph.graph.initializers.values() if t.dtype == ir.DataType.INT8 and t.shape[-1:]]
    held = {id(v.const_value) for v in after.graph.graph.initializers.values() if v.const_value.size == 64 * 32}
    assert len(held) == 1
    agree(before, after, ROWS)


def test_a_weight_read_both_ways_round_has_two_scales() -> None:
    body = """g (float[n, 32] x) => (float[n, 32] y) {
      a = MatMul(x, w)
      y = Gemm<transB = 1>(a, w)
    }"""
    before, x = model(body, {"w": normal(32, 32)}), {"x": normal(16, 32)}
    after = quantize(before, x)
    axes = {stored(n, 1).axis for n in after.graph.graph if n.op_type in ("MatMul", "Gemm")}
    assert axes == {0, 1}
    agree(before, after, x)


def test_a_weight_that_is_an_output() -> None:
    before = model(
        "g (float[n, 64] x) => (float[n, 32] y, float[64, 32] w) { y = MatMul(x, w) }", {"w": normal(64, 32)}
    )
    after = quantize(before, ROWS)
    assert after.history[-1].sites == 0 and reasons(after) == ["its weight is an output of the graph"]


def test_a_weight_that_a_caller_may_replace() -> None:
    after = quantize(model(PRODUCT, {"w": normal(64, 32)}, inputs=True), ROWS)
    assert after.history[-1].sites == 0 and reasons(after) == ["its weight is not constant"]


def test_a_bias_that_a_caller_gives() -> None:
    body = "g (float[n, 4, 8, 8] x, float[16] b) => (float[n, 16, 6, 6] y) { y = Conv(x, w, b) }"
    after = quantize(model(body, {"w": W}), {**X, "b": B})
    assert after.history[-1].sites == 0 and reasons(after) == ["its bias is not constant"]


def test_a_bias_that_differs_from_row_to_row() -> None:
    body = "g (float[4, 64] x) => (float[4, 32] y) { y = Gemm(x, w, b) }"
    after = quantize(model(body, {"w": normal(64, 32), "b": normal(4, 32)}), {"x": normal(4, 64)})
    assert reasons(after) == ["its bias is not one number for each of the 32 channels"]


@pytest.mark.parametrize("shape", [(), (1,), (1, 32), (32,)])
def test_a_bias_of_any_shape_per_channel(shape: tuple[int, ...]) -> None:
    body = "g (float[4, 64] x) => (float[4, 32] y) { y = Gemm(x, w, b) }"
    before = model(body, {"w": normal(64, 32), "b": normal(*shape, seed=1)})
    x = {"x": normal(4, 64, seed=2)}
    after = quantize(before, x)
    assert after.history[-1].sites == 1
    agree(before, after, x)


BRANCHES = """g (bool c, float[n, 64] x) => (float[n, 32] y) {
  h = Tanh(x)
  y = If (c) <
    then_branch = then () => (float[n, 32] a) { p = Relu(h) a = MatMul(p, w) },
    else_branch = else () => (float[n, 32] b) {
      v = Constant<value = float[64, 32] {WEIGHT}>()
      q = Sigmoid(h)
      b = MatMul(q, v)
    }
  >
}"""


def branches() -> Model:
    numbers = ", ".join(f"{number:.4f}" for number in normal(64, 32, seed=4).ravel())
    return model(BRANCHES.replace("{WEIGHT}", "{" + numbers + "}"), {"w": normal(64, 32)})


def test_weights_inside_the_branches_of_an_if() -> None:
    before, taken, other = branches(), {"c": np.array(True), **ROWS}, {"c": np.array(False), **ROWS}
    after = quantize(before, taken, other)
    assert after.history[-1].sites == 2
    inside = [n for graph in after.graph.graph.subgraphs() for n in graph if n.op_type == "MatMul"]
    assert len(inside) == 2 and all(is_stored(n.inputs[1]) for n in inside)
    for feeds in (taken, other):
        agree(before, after, feeds)


def test_a_branch_that_no_sample_takes_stays_float() -> None:
    before, taken = branches(), {"c": np.array(True), **ROWS}
    after = quantize(before, taken)
    assert after.history[-1].sites == 1 and reasons(after) == ["no sample shows q"]
    agree(before, after, taken)
    agree(before, after, {"c": np.array(False), **ROWS}, db=120)


def test_a_loop_stays_float() -> None:
    body = """g (float[4, 32] x) => (float[4, 32] y) {
      n = Constant<value = int64 {3}>()
      t = Constant<value = bool {1}>()
      y = Loop (n, t, x) <body = step (int64 i, bool c, float[4, 32] s) => (bool d, float[4, 32] r) {
        d = Identity(c)
        m = MatMul(s, w)
        r = Tanh(m)
      }>
    }"""
    after = quantize(model(body, {"w": normal(32, 32)}), {"x": normal(4, 32)})
    assert after.history[-1].sites == 0 and reasons(after) == ["no sample shows s"]


def test_an_outer_value_on_a_grid_of_its_own() -> None:
    """What a branch reads from outside is put on a grid inside it, also where it is codes outside."""
    body = """g (bool c, float[n, 4, 8, 8] x) => (float[n, 8, 8, 8] y) {
      h = Conv<pads = [1, 1, 1, 1]>(x, w)
      r = Relu(h)
      y = If (c) <
        then_branch = then () => (float[n, 8, 8, 8] a) { a = Conv(r, v) },
        else_branch = else () => (float[n, 8, 8, 8] b) { b = Conv(r, u) }
      >
    }"""
    before = model(body, {"w": W, "v": normal(8, 16, 1, 1), "u": normal(8, 16, 1, 1, seed=1)})
    feeds = [{"c": np.array(c), **X} for c in (True, False)]
    after = quantize(before, *feeds)
    assert after.history[-1].sites == 3
    for each in feeds:
        agree(before, after, each)


@pytest.mark.parametrize("dtype", ["float16", "double"])
def test_other_floats_are_left(dtype: str) -> None:
    body = f"g ({dtype}[n, 64] x) => ({dtype}[n, 32] y) {{ y = MatMul(x, w) }}"
    kind = np.float64 if dtype == "double" else np.float16
    after = quantize(model(body, {"w": normal(64, 32).astype(kind)}), {"x": ROWS["x"].astype(kind)})
    assert reasons(after) == [f"its weight is {np.dtype(kind)}, not float32"]


def test_a_weight_on_the_left_is_left() -> None:
    body = "g (float[64, n] x) => (float[32, n] y) { y = MatMul(w, x) }"
    after = quantize(model(body, {"w": normal(32, 64)}), {"x": ROWS["x"].T.copy()})
    assert reasons(after) == ["its weight is the left operand"]


@pytest.mark.parametrize("group", [1, 2, 4])
def test_groups(group: int) -> None:
    body = f"g (float[n, 4, 8, 8] x) => (float[n, 8, 6, 6] y) {{ y = Conv<group = {group}>(x, w) }}"
    before = model(body, {"w": normal(8, 4 // group, 3, 3)})
    agree(before, quantize(before, X), X)


@pytest.mark.parametrize("group", [1, 2])
def test_transposed_convolutions(group: int) -> None:
    body = f"""g (float[n, 4, 8, 8] x) => (float[n, 8, 17, 17] y) {{
      y = ConvTranspose<group = {group}, strides = [2, 2]>(x, w, b)
    }}"""
    before = model(body, {"w": normal(4, 8 // group, 3, 3), "b": normal(8, seed=1)})
    after = quantize(before, X)
    assert after.history[-1].sites == 1
    agree(before, after, X)


def test_convolutions_along_one_axis_with_pads_on_one_side() -> None:
    body = "g (float[n, 4, 30] x) => (float[n, 8, 30] y) { y = Conv<pads = [4, 0], dilations = [2]>(x, w) }"
    before, x = model(body, {"w": normal(8, 4, 3)}), {"x": normal(2, 4, 30) + 5}
    agree(before, quantize(before, x), x)


def test_products_of_many_axes() -> None:
    body = "g (float[n, 3, 5, 8] x) => (float[n, 3, 5, 6] y) { y = MatMul(x, w) }"
    before, x = model(body, {"w": normal(3, 8, 6)}), {"x": normal(2, 3, 5, 8)}
    after = quantize(before, x)
    assert after.history[-1].sites == 1
    agree(before, after, x)


def test_a_product_with_one_column() -> None:
    body = "g (float[n, 64] x) => (float[n] y) { y = MatMul(x, w) }"
    before = model(body, {"w": normal(64)})
    agree(before, quantize(before, ROWS), ROWS)


def test_a_transposed_gemm() -> None:
    body = "g (float[64, 7] x) => (float[7, 32] y) { y = Gemm<transA = 1, alpha = 2.0>(x, w) }"
    before, x = model(body, {"w": normal(64, 32)}), {"x": normal(64, 7)}
    agree(before, quantize(before, x), x)


def test_the_same_value_twice() -> None:
    body = """g (float[n, 4, 8, 8] x) => (float[n, 8, 8, 8] y) {
      c = Conv<pads = [1, 1, 1, 1]>(x, w)
      s = Add(c, c)
      m = Mul(s, s)
      y = Conv(m, v)
    }"""
    before = model(body, {"w": W, "v": normal(8, 16, 1, 1)})
    after = quantize(before, X)
    assert after.history[-1].sites == 4
    agree(before, after, X)


def test_nothing_to_do() -> None:
    after = quantize(model("g (float[n, 4] x) => (float[n, 4] y) { y = Softmax(x) }"), {"x": normal(2, 4)})
    assert after.history[-1].sites == 0 and not after.history[-1].skips
