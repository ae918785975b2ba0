"""int8: where the grids stand, what they lose, what onnxruntime makes of them, and why a node stays in float."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from given import Feeds, Given, parsed
from hypothesis import given
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from polycast.calibrating.histogram import Histogram
from polycast.load import load
from polycast.model import Model, Origin
from polycast.passbase import PassContext
from polycast.passes.quantization._int8_grids import grid_over, power_and_noise
from polycast.passes.quantization._int8_weights import codes, weight_scale
from polycast.passes.quantization._qdq import Names, grid_of, is_stored, spread, stored
from polycast.passes.quantization.int8 import Int8
from polycast.pipeline import Pipeline, apply

FEATURES = frozenset({"qdq", "u8s8-exact"})
EPS = float(np.finfo(np.float32).eps)


model = partial(parsed, inferred=True)


def quantize(before: Model, *samples: Feeds, features: frozenset[str] = FEATURES, **parameters: object) -> Model:
    context = PassContext(features, calibration=Given(list(samples)) if samples else None)
    return apply(Int8(**parameters), before, context)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ops(after: Model) -> list[str]:
    return [node.op_type for node in after.graph.graph]


def node(after: Model, name: str) -> ir.Node:
    return next(n for n in after.graph.graph if n.name == name)


def reasons(after: Model) -> dict[str, str]:
    return {skip.node: skip.reason for skip in after.history[-1].skips}


def run(of: Model, feeds: Feeds) -> list[np.ndarray]:
    return ReferenceEvaluator(ir.to_proto(of.graph)).run(None, feeds)


def fused(of: Model, path: Path) -> Counter[str]:
    """Count the kernels that onnxruntime takes."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path / "fused.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(ir.to_proto(of.graph).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(n.op_type for n in onnx.load(path / "fused.onnx").graph.node)


CHAIN = """g (float[n, 4, 8, 8] x) => (float[n, 8, 8, 8] y) {
  c = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
  r = Relu(c)
  y = Conv<pads = [1, 1, 1, 1]>(r, w2)
}"""
WEIGHTS = {"w1": normal(16, 4, 3, 3), "b1": normal(16, seed=1), "w2": normal(8, 16, 3, 3, seed=2)}
X = {"x": normal(2, 4, 8, 8, seed=3)}


# Where the grids stand.


def test_grids_stand_at_the_inputs_and_behind_the_relu() -> None:
    after = quantize(model(CHAIN, WEIGHTS), X)
    assert after.history[-1].sites == 2 and not after.history[-1].skips
    pairs = [(n.inputs[0].name, n.outputs[0].name) for n in after.graph.graph if n.op_type == "QuantizeLinear"]
    assert pairs == [("x", "x.codes"), ("r", "r.codes"), ("y.float", "y.codes")]
    assert Counter(ops(after)) == {"QuantizeLinear": 3, "DequantizeLinear": 6, "Conv": 2, "Relu": 1}
    assert [n.outputs[0].name for n in after.graph.graph if n.name in ("Conv_0", "Relu_1")] == ["c", "r"]
    assert grid_of(node(after, "Conv_2").inputs[0]).zero == 0  # the Relu ends the range at zero
    assert sorted(after.graph.graph.initializers.values(), key=lambda v: v.name)[0].name == "b1.codes"
    assert not {"w1", "b1", "w2"} & set(after.graph.graph.initializers)


def test_weights_are_int8_per_channel_and_the_bias_has_the_scale_of_the_products() -> None:
    after = quantize(model(CHAIN, WEIGHTS), X)
    first = node(after, "Conv_0")
    weight, bias, grid = stored(first, 1), stored(first, 2), grid_of(first.inputs[0])
    assert weight.codes.dtype == np.int8 and weight.axis == 0 and weight.scale.shape == (16,)
    assert bias.codes.dtype == np.int32
    np.testing.assert_array_equal(bias.scale, weight.scale * np.float32(grid.scale))
    assert np.abs(weight.codes).max(axis=(1, 2, 3)).min() == 127
    assert np.all(np.abs(weight.values() - WEIGHTS["w1"]) <= weight.spread * (0.5 + 127 * EPS))
    assert np.all(np.abs(bias.values() - WEIGHTS["b1"]) <= bias.scale / 2 + EPS * np.abs(WEIGHTS["b1"]))


def test_where_kernels_give_floats_only_codes_that_are_read_are_made() -> None:
    """The first convolution's codes are read by the second; what that one gives nobody reads as codes."""
    before = model(CHAIN, WEIGHTS)
    rounded, free = quantize(before, X), quantize(before, X, features=FEATURES | {"integer-conv-to-float"})
    assert [ops(each).count("QuantizeLinear") for each in (rounded, free)] == [3, 2]
    assert free.graph.graph.outputs[0].producer().op_type == "Conv"
    [wanted], *found = (run(each, X) for each in (before, rounded, free))
    noise = [float(np.square(each - wanted).sum()) for [each] in found]
    assert noise[1] < noise[0]


def test_one_scale_for_a_whole_weight_where_asked() -> None:
    weight = stored(node(quantize(model(CHAIN, WEIGHTS), X, per_channel=False), "Conv_0"), 1)
    assert weight.axis is None and weight.scale.shape == (1,)
    assert np.abs(weight.codes).max() == 127


def test_without_exact_products_weights_take_seven_bits() -> None:
    """Two products of 255 and 64 fit the 16 bits that they are added in."""
    weight = stored(node(quantize(model(CHAIN, WEIGHTS), X, features=frozenset({"qdq"})), "Conv_0"), 1)
    assert np.abs(weight.codes).max() == 64 and 2 * 255 * 64 < 2**15


def test_symmetric_grids_are_int8_with_zero_at_0() -> None:
    after = quantize(model(CHAIN, WEIGHTS), X, symmetric=True)
    grids = [grid_of(n.outputs[0]) for n in after.graph.graph if n.op_type == "DequantizeLinear"]
    assert [(g.zero, g.signed) for g in grids if g is not None] == [(0, True)] * 3


RESIDUAL = """g (float[n, 8, 8, 4] x) => (float[n, 10] y) {
  t = Transpose<perm = [0, 3, 1, 2]>(x)
  a = Conv<pads = [1, 1, 1, 1]>(t, w1, b1)
  p = Relu(a)
  b = Conv<pads = [1, 1, 1, 1]>(p, w2)
  s = Add(p, b)
  q = Clip(s, zero, six)
  m = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(q)
  k = Concat<axis = 1>(m, m)
  h = GlobalAveragePool(k)
  f = Flatten(h)
  y = Gemm<transB = 1>(f, w3, b3)
}"""
RESIDUAL_WEIGHTS = {
    "w1": normal(16, 4, 3, 3) / 6,
    "b1": normal(16, seed=1),
    "w2": normal(16, 16, 3, 3, seed=2) / 12,
    "w3": normal(10, 32, seed=4) / 6,
    "b3": normal(10, seed=5),
    "zero": np.array(0, np.float32),
    "six": np.array(6, np.float32),
}
IMAGES = [{"x": normal(2, 8, 8, 4, seed=seed)} for seed in range(6, 10)]


def test_onnxruntime_leaves_no_grid_between_integer_kernels(tmp_path: Path) -> None:
    after = quantize(model(RESIDUAL, RESIDUAL_WEIGHTS), *IMAGES)
    assert after.history[-1].sites == 9  # all but the two clamps
    kernels = fused(after, tmp_path)
    assert kernels["QLinearConv"] == 2 and kernels["QLinearAdd"] == kernels["QLinearConcat"] == kernels["QGemm"] == 1
    assert kernels["QLinearGlobalAveragePool"] == 1
    assert kernels["QuantizeLinear"] == 1 and not kernels["DequantizeLinear"]  # the Gemm itself gives floats
    assert not set(kernels) & {"Relu", "Clip", "Add", "Concat", "GlobalAveragePool", "Conv", "Gemm"}


def test_what_only_moves_codes_shares_their_grid() -> None:
    after = quantize(model(RESIDUAL, RESIDUAL_WEIGHTS), *IMAGES)
    graph = {n.name: n for n in after.graph.graph}
    transposed = (grid_of(graph["Transpose_0"].inputs[0]), grid_of(graph["Conv_1"].inputs[0]))
    pooled = (grid_of(graph["MaxPool_6"].inputs[0]), grid_of(graph["Concat_7"].inputs[0]))
    assert transposed[0] == transposed[1] and pooled[0] == pooled[1]
    assert pooled[0].limits[0] == 0 and pooled[0].limits[1] <= 6


def test_a_float_value_is_rounded_only_for_what_multiplies() -> None:
    body = """g (float[n, 64] x) => (float[n, 64] y) {
      s = Softmax(x)
      h = MatMul(s, w)
      y = Add(s, h)
    }"""
    after = quantize(model(body, {"w": normal(64, 64)}), {"x": normal(4, 64)})
    assert [v.name for v in node(after, "Add_2").inputs] == ["s", "h"]
    assert ops(after) == ["DequantizeLinear", "Softmax", "QuantizeLinear", "DequantizeLinear", "MatMul", "Add"]


def test_what_an_integer_kernel_gives_is_rounded_for_all() -> None:
    """Else onnxruntime would compute it in float for the sake of one reader."""
    body = """g (float[n, 4, 8, 8] x) => (float[n, 16, 8, 8] y, float[n, 8, 8, 8] z) {
      c = Conv<pads = [1, 1, 1, 1]>(x, w1)
      y = Exp(c)
      z = Conv<pads = [1, 1, 1, 1]>(c, w2)
    }"""
    after = quantize(model(body, {"w1": WEIGHTS["w1"], "w2": WEIGHTS["w2"]}), X)
    assert node(after, "Exp_1").inputs[0].producer().op_type == "DequantizeLinear"
    assert after.signature == model(body).signature


def test_a_split_and_a_shuffle_stay_codes(tmp_path: Path) -> None:
    body = """g (float[1, 4, 8, 8] x) => (float[1, 16, 8, 8] y) {
      c = Conv<pads = [1, 1, 1, 1]>(x, w1)
      u, v = Split<axis = 1, num_outputs = 2>(c)
      d = Conv<pads = [1, 1, 1, 1]>(u, w2)
      k = Concat<axis = 1>(d, v)
      r = Reshape(k, apart)
      t = Transpose<perm = [0, 2, 1, 3, 4]>(r)
      f = Reshape(t, together)
      y = Conv(f, w3)
    }"""
    weights = {
        "w1": WEIGHTS["w1"],
        "w2": normal(8, 8, 3, 3, seed=5),
        "w3": normal(16, 16, 1, 1, seed=6),
        "apart": np.array([1, 2, 8, 8, 8]),
        "together": np.array([1, 16, 8, 8]),
    }
    after = quantize(model(body, weights), {"x": normal(1, 4, 8, 8)})
    kernels = fused(after, tmp_path)
    assert kernels["QLinearConv"] == 3 and kernels["QLinearConcat"] == 1
    assert kernels["QuantizeLinear"] == kernels["DequantizeLinear"] == 1


def test_a_number_between_two_codes_is_stored_exactly() -> None:
    body = """g (float[n, 4, 8, 8] x) => (float[n, 8, 8, 8] y) {
      c = Conv<pads = [1, 1, 1, 1]>(x, w1)
      m = Mul(c, third)
      y = Conv<pads = [1, 1, 1, 1]>(m, w2)
    }"""
    weights = {"w1": WEIGHTS["w1"], "w2": WEIGHTS["w2"], "third": np.array([-1 / 3], np.float32)}
    after = quantize(model(body, weights), X)
    held = node(after, "Mul_1").inputs[1].producer()
    number, scale, zero = (v.const_value.numpy() for v in held.inputs)
    assert (number.astype(np.float32) - zero) * scale == weights["third"]


def test_a_concat_takes_over_the_grid_that_holds_the_others() -> None:
    body = """g (float[n, 4, 8, 8] x) => (float[n, 8, 8, 8] y) {
      a = Conv<pads = [1, 1, 1, 1]>(x, w1)
      p = Relu(a)
      b = Conv<pads = [1, 1, 1, 1]>(x, small)
      q = Relu(b)
      k = Concat<axis = 1>(p, q)
      y = Conv(k, w3)
    }"""
    weights = {"w1": WEIGHTS["w1"], "small": WEIGHTS["w1"] / 3, "w3": normal(8, 32, 1, 1)}
    after = quantize(model(body, weights), X)
    p, q = (grid_of(value) for value in node(after, "Concat_4").inputs)
    assert grid_of(node(after, "Conv_5").inputs[0]) == p and q.scale < p.scale / 2


def test_a_grid_stands_behind_what_only_a_few_floats_come_through() -> None:
    body = """g (float[n, 4, 8, 8] x) => (float[n, 8, 4, 4] y) {
      e = Exp(x)
      m = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(e)
      t = Transpose<perm = [0, 1, 3, 2]>(m)
      y = Conv(t, w)
    }"""
    after = quantize(model(body, {"w": normal(8, 4, 1, 1)}), X)
    assert [n.inputs[0].name for n in after.graph.graph if n.op_type == "QuantizeLinear"] == ["m", "t", "y.float"]


# What the grids lose.


@given(st.floats(-1e6, 1e6, width=32), st.floats(-1e6, 1e6, width=32), st.booleans(), st.floats(0, 1))
def test_a_grid_is_off_by_half_a_step_inside_its_range(a: float, b: float, symmetric: bool, share: float) -> None:
    low, high = sorted((a, b))
    grid = grid_over(low, high, symmetric)
    low, high = min(low, 0.0), max(high, 0.0)
    number = low + share * (high - low)
    code = np.clip(np.rint(number / grid.scale) + grid.zero, *((-128, 127) if symmetric else (0, 255)))
    # The rounding of the zero moves the ends by half a step, that of the scale to float32 by an epsilon of the range.
    assert abs((code - grid.zero) * grid.scale - number) <= grid.scale * (1 + 1e-9) + EPS * max(-low, high)
    assert (np.clip(grid.zero, 0, 255) if not symmetric else 0) == grid.zero


@given(st.floats(2.0**-20, 1e6, width=32), st.floats(0, 1e6, width=32))
def test_a_grid_within_a_clip_never_passes_it(high: float, low: float) -> None:
    top, bottom = np.float32(high), -np.float32(low)
    lowest, highest = grid_over(float(bottom), float(top), symmetric=False, within=True).limits
    assert np.float32(highest) <= top and np.float32(lowest) >= bottom * np.float32(1 + EPS)


@given(st.integers(0, 2**32 - 1), st.sampled_from([127, 64]))
def test_weights_are_off_by_half_a_step(seed: int, top: int) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal((5, 7)) * np.exp(rng.uniform(-20, 20, (5, 1)))).astype(np.float32)
    scale = weight_scale(weight, 0, top)
    held = codes(weight, scale, 0, top, np.int8)
    off = np.abs(held * spread(scale, 0, 2).astype(np.float64) - weight)
    assert np.all(off <= scale[:, None].astype(np.float64) * (0.5 + top * EPS))
    assert np.abs(held).max() == top


def test_noise_is_that_of_the_rounded_numbers() -> None:
    x = normal(100_000)
    histogram = Histogram()
    histogram.add(x)
    grid = grid_over(float(x.min()), float(x.max()), symmetric=False)
    rounded = (np.clip(np.rint(x / np.float32(grid.scale)) + grid.zero, 0, 255) - grid.zero) * np.float32(grid.scale)
    power, noise = power_and_noise(histogram, grid)
    # A bin is less than 1 / 8 of a step here, so that its own noise is less than 1 / 64 of that of the step.
    assert histogram.width < grid.scale / 8
    assert power == pytest.approx(np.square(x).mean(), rel=1 / 64)
    assert noise == pytest.approx(np.square(rounded - x).mean(), rel=1 / 64)


def test_error_is_that_of_rounding_input_and_weight() -> None:
    w, x = normal(64, 32), normal(16, 64, seed=2)
    before = model("g (float[n, 64] x) => (float[n, 32] y) { y = MatMul(x, w) }", {"w": w})
    after = quantize(before, {"x": x}, calibrate="minmax")
    (y,), (found,) = run(before, {"x": x}), run(after, {"x": x})
    grid, weight = grid_of(node(after, "MatMul_0").inputs[0]), stored(node(after, "MatMul_0"), 1)
    half_x, half_w = grid.scale, weight.scale.astype(np.float64) / 2  # a whole step of x where the zero was rounded
    size = np.abs(x).astype(np.float64) @ np.abs(w)
    bound = half_x * np.abs(w).sum(0) + np.abs(x).sum(1)[:, None] * half_w + 64 * half_x * half_w
    assert np.all(np.abs(found - y) <= bound + 2 * 64 * EPS * size)
    assert np.any(found != y)


@pytest.mark.parametrize("pads", [[0, 1, 2, 1], [0, 0, 0, 0]])
@pytest.mark.parametrize("group", [1, 4])
def test_padding_is_zero_whatever_the_zero_point(pads: list[int], group: int, tmp_path: Path) -> None:
    """onnxruntime pads with the zero point: its fused kernel and the unfused reference agree to a step."""
    import onnxruntime as ort

    body = f"""g (float[1, 4, 9, 9] x) => (y) {{ y = Conv<pads = {pads}, group = {group}, strides = [2, 1]>(x, w) }}"""
    before = model(body, {"w": normal(8, 4 // group, 3, 3)})
    before.graph.graph.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    x = {"x": normal(1, 4, 9, 9, seed=1) + 3}
    after = quantize(before, x, calibrate="minmax")
    assert fused(after, tmp_path)["QLinearConv"] == 1
    session = ort.InferenceSession(ir.to_proto(after.graph).SerializeToString(), providers=["CPUExecutionProvider"])
    (found,), (wanted,) = session.run(None, x), run(after, x)
    step = grid_of(after.graph.graph.outputs[0]).scale
    assert np.abs(found - wanted).max() <= step * (1 + 1e-4)


def test_alpha_and_beta_go_into_the_integers() -> None:
    before = model(
        "g (float[n, 64] x) => (float[n, 32] y) { y = Gemm<alpha = -0.5, beta = 2.0>(x, w, b) }",
        {"w": normal(64, 32), "b": normal(1, 32, seed=1)},
    )
    x = normal(16, 64, seed=2)
    after = quantize(before, {"x": x}, calibrate="minmax")
    gemm = node(after, "Gemm_0")
    assert not {"alpha", "beta"} & set(gemm.attributes)
    (y,), (found,) = run(before, {"x": x}), run(after, {"x": x})
    grid, weight = grid_of(gemm.inputs[0]), stored(gemm, 1)
    half = weight.scale / 2
    bound = grid.scale * np.abs(normal(64, 32) / 2).sum(0) + np.abs(x).sum(1)[:, None] * half + 64 * grid.scale * half
    assert np.all(np.abs(found - y) <= bound + grid.scale * weight.scale + 1e-5)


def test_an_outlier_in_a_channel_leaves_the_others_their_steps() -> None:
    weights = {**WEIGHTS, "w1": WEIGHTS["w1"].copy()}
    weights["w1"][3, 0, 0, 0] = 1e4
    weight = stored(node(quantize(model(CHAIN, weights), X), "Conv_0"), 1)
    others = np.delete(np.arange(16), 3)
    np.testing.assert_array_equal(
        weight.codes[others], stored(node(quantize(model(CHAIN, WEIGHTS), X), "Conv_0"), 1).codes[others]
    )


# Why a node stays in float.


def test_without_samples_every_node_says_so() -> None:
    after = quantize(model(CHAIN, WEIGHTS))
    assert after.history[-1].sites == 0
    assert reasons(after) == dict.fromkeys(
        ("Conv_0", "Conv_2"), "no calibration samples: the range of its input is not known"
    )


def test_without_the_operators_every_node_says_so() -> None:
    after = quantize(model(CHAIN, WEIGHTS), X, features=frozenset())
    assert set(reasons(after).values()) == {"the target has no QuantizeLinear and DequantizeLinear"}


OUTLIERS = "g (float[n, 64] x) => (float[n, 32] y) { s = Mul(x, gains) y = MatMul(s, w) }"


def outliers() -> tuple[Model, Feeds]:
    """One channel of 64 is 30 times as large as the others, and its weights as much smaller."""
    gains, w = np.ones(64, np.float32), normal(64, 32)
    gains[7], w[7] = 30, w[7] / 30
    return model(OUTLIERS, {"gains": gains, "w": w}), {"x": normal(64, 64)}


def test_an_input_that_one_grid_does_not_hold_stays_float() -> None:
    before, x = outliers()
    after = quantize(before, x, calibrate="minmax")
    assert after.history[-1].sites == 0
    (reason,) = reasons(after).values()
    assert reason.startswith("static int8 of its input keeps ") and reason.endswith(" dB, under 30")
    (y,) = run(before, x)
    (found,) = run(quantize(before, x, calibrate="minmax", least_db=0.0), x)
    reached = 10 * np.log10(np.square(y).sum() / np.square(found - y).sum())
    # Products of 64 channels over 64 rows: the estimate takes channels for independent, and leaves rounded weights out.
    assert float(reason.split("keeps ")[1].split(" dB")[0]) == pytest.approx(reached, abs=1)


def test_what_the_user_keeps_is_kept() -> None:
    after = quantize(model(CHAIN, WEIGHTS), X, keep=("Conv_2",))
    assert after.history[-1].sites == 1 and not after.history[-1].skips
    assert not is_stored(node(after, "Conv_2").inputs[1])
    only = quantize(model(CHAIN, WEIGHTS), X, only=("Conv_2",))
    assert not is_stored(node(only, "Conv_0").inputs[1]) and is_stored(node(only, "Conv_2").inputs[1])


def test_an_add_that_the_user_keeps_computes_in_float(tmp_path: Path) -> None:
    kernels = fused(quantize(model(RESIDUAL, RESIDUAL_WEIGHTS), *IMAGES, keep=("Add",)), tmp_path)
    assert kernels["Add"] == 1 and not kernels["QLinearAdd"]


def test_a_product_of_two_activations_stays_float() -> None:
    body = "g (float[n, 8, 8] x) => (float[n, 8, 8] y) { y = MatMul(x, x) }"
    assert reasons(quantize(model(body), {"x": normal(1, 8, 8)})) == {"MatMul_0": "its weight is not constant"}


# Running again, exchanging.


def test_second_run_finds_nothing_even_after_a_round_trip(tmp_path: Path) -> None:
    before, x = outliers()
    before.graph.graph.register_initializer(ir.Value(name="u", const_value=ir.tensor(normal(32, 8), name="u")))
    more = ir.node("MatMul", [before.graph.graph.outputs[0], before.graph.graph.initializers["u"]], name="More")
    more.outputs[0].name, more.outputs[0].type = "z", ir.TensorType(ir.DataType.FLOAT)
    before.graph.graph.append(more)
    before.graph.graph.outputs.append(more.outputs[0])
    after = quantize(before, x)
    assert after.history[-1].sites == 1 and list(reasons(after)) == ["MatMul_1"]
    after.write(tmp_path / "int8.onnx")
    again = Model("again", ir.load(tmp_path / "int8.onnx"), Origin("", ""))
    second = quantize(again, x, least_db=0.0)
    assert second.history[-1].sites == 0 and reasons(second) == reasons(after)


def test_a_first_and_a_second_half_make_the_whole() -> None:
    """What the first run left on a grid is not put on another one."""
    half = quantize(model(CHAIN, WEIGHTS), X, only=("Conv_0",))
    whole = quantize(half, X)
    assert whole.history[-1].sites == 1
    assert Counter(ops(whole)) == Counter(ops(quantize(model(CHAIN, WEIGHTS), X)))


def test_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        quantize(model(RESIDUAL, RESIDUAL_WEIGHTS), *IMAGES).write(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_codes_are_exchanged_for_one_reader_only() -> None:
    body = "g (float[n, 64] x) => (float[n, 32] a, float[n, 32] b) { a = MatMul(x, w) b = MatMul(x, w) }"
    after = quantize(model(body, {"w": normal(64, 32)}), {"x": normal(4, 64)})
    draft = after.draft()
    first, second = (n for n in draft.graph if n.op_type == "MatMul")
    assert stored(first, 1).readers == 2
    new = np.ones_like(stored(first, 1).codes)
    stored(first, 1).exchange(new, Names.of(draft))
    assert stored(first, 1).readers == 1
    np.testing.assert_array_equal(stored(first, 1).codes, new)
    np.testing.assert_array_equal(stored(second, 1).codes, stored(node(after, "MatMul_1"), 1).codes)
    onnx.checker.check_model(ir.to_proto(draft), full_check=True)


# On trained models.


def test_keywords_are_told_apart_as_before(zoo: Callable[[str], Path], tmp_path: Path) -> None:
    import onnxruntime as ort

    data = np.load(zoo("mlperftiny/kws.npz"))

    def features(rows: np.ndarray) -> np.ndarray:
        return ((rows.astype(np.float32) - data["zero_point"]) * data["scale"]).astype(np.float32)

    recipe = "clean | fold | clean | fuse_conv_bn | fuse_gemm | int8 | clean"
    before = load(zoo("mlperftiny/kws.onnx"))
    samples = Given([{"input": row[None]} for row in features(data["calib"])[:32]])
    after = Pipeline.parse(recipe).run(before, PassContext(FEATURES, samples))
    kernels = fused(after, tmp_path)
    assert kernels["QLinearConv"] == 9 and kernels["QGemm"] == 1
    assert kernels["QuantizeLinear"] == 1 and not kernels["DequantizeLinear"] and not kernels["Conv"]
    rows, labels, right = features(data["x"][:200]), data["y"][:200], []
    for each in (before, after):
        proto = ir.to_proto(ir.external_data.load_to_model(each.graph.clone()))
        session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        found = [session.run(None, {"input": row[None]})[0].argmax() for row in rows]
        right.append(np.array(found) == labels)
    # Rows that changed either way are as likely to be lost as won, to two standard errors (McNemar 1947).
    lost, won = np.sum(right[0] & ~right[1]), np.sum(right[1] & ~right[0])
    assert lost - won <= 2 * np.sqrt(lost + won) and lost + won < 10
