"""fp16: what becomes float16, what stays float32 and why, and what that does to the outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from given import Feeds, Given, parsed
from onnx.reference import ReferenceEvaluator

from polycast.errors import InputError
from polycast.load import load
from polycast.model import Model, Origin
from polycast.passbase import PassContext
from polycast.passes.precision.fp16 import Fp16
from polycast.pipeline import apply

ROUNDOFF = 2.0**-11  # of a normal float16
LOWEST = float(np.finfo(np.float32).min)  # what exporters fill masks with


def halve(before: Model, *samples: Feeds, **parameters: object) -> Model:
    return apply(Fp16(**parameters), before, PassContext(calibration=Given(list(samples)) if samples else None))


def ops(after: Model) -> Counter[str]:
    return Counter(node.op_type for node in after.graph.graph)


def dtypes(after: Model) -> dict[str | None, str]:
    """What each node gives first, by the name of the node; Casts aside."""
    return {n.name: str(n.outputs[0].dtype) for n in after.graph.graph if n.op_type != "Cast"}


def reasons(after: Model) -> dict[str, str]:
    return {skip.node: skip.reason for skip in after.history[-1].skips}


def run(of: Model, feeds: Feeds) -> list[np.ndarray]:
    return ReferenceEvaluator(ir.to_proto(of.graph)).run(None, feeds)


def run_onnxruntime(of: Model, feeds: Feeds) -> list[np.ndarray]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    proto = ir.to_proto(ir.external_data.load_to_model(of.graph.clone()))
    return ort.InferenceSession(proto.SerializeToString(), options).run(None, feeds)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


TWO_LAYERS = """g (float[n, 64] x) => (float[n, 8] y) {
  h = MatMul(x, w1)
  r = Relu(h)
  y = MatMul(r, w2)
}"""
LAYERS = {"w1": normal(64, 32), "w2": normal(32, 8, seed=1)}


def test_casts_stand_at_the_borders_only() -> None:
    after = halve(parsed(TWO_LAYERS, LAYERS))
    assert after.history[-1].sites == 3
    assert [n.op_type for n in after.graph.graph] == ["Cast", "MatMul", "Relu", "MatMul", "Cast"]
    assert set(dtypes(after).values()) == {"FLOAT16"}
    assert [str(p.dtype) for p in (*after.signature.inputs, *after.signature.outputs)] == ["float32"] * 2
    assert after.weight_bytes == parsed(TWO_LAYERS, LAYERS).weight_bytes // 2


def test_error_is_that_of_rounding_inputs_weights_and_result() -> None:
    before = parsed("g (float[n, 64] x) => (float[n, 32] y) { y = MatMul(x, w1) }", {"w1": LAYERS["w1"]})
    x = normal(16, 64, seed=2)
    (y,), (half,) = run_onnxruntime(before, {"x": x}), run_onnxruntime(halve(before), {"x": x})
    size = np.abs(x).astype(np.float64) @ np.abs(LAYERS["w1"])
    # One rounding of each factor and one of the sum; the accumulation itself is in float32.
    assert np.all(np.abs(y - half) <= ((1 + ROUNDOFF) ** 3 - 1) * size + 64 * np.finfo(np.float32).eps * size)
    assert np.any(y != half)


def test_a_value_that_crosses_twice_is_cast_once() -> None:
    body = """g (float[n, 64] x) => (float[n, 32] a, float[n, 32] b, float[n, 32] c) {
      a = MatMul(x, w1)
      b = MatMul(x, w1)
      s = Softmax(a)
      t = Exp(a)
      c = Add(s, t)
    }"""
    after = halve(parsed(body, LAYERS))
    casts = [n.inputs[0].name for n in after.graph.graph if n.op_type == "Cast" and n.inputs[0] is not None]
    assert len(casts) == 3 and len(set(casts)) == 3  # x down; a and b up, a once for both of its readers and the output
    assert after.signature == parsed(body, LAYERS).signature


def test_second_run_finds_nothing_even_after_a_round_trip(tmp_path: Path) -> None:
    after = halve(parsed(TWO_LAYERS, LAYERS), {"x": normal(4, 64)}, headroom=1400.0)
    assert "over 65504" in reasons(after)["MatMul_2"] and after.history[-1].sites
    after.write(tmp_path / "half.onnx")
    again = Model("again", ir.load(tmp_path / "half.onnx"), Origin("", ""))
    for samples in ((), ({"x": normal(4, 64)},)):
        second = halve(again, *samples)
        assert second.history[-1].sites == 0
        assert reasons(second) == {"MatMul_2": reasons(after)["MatMul_2"]}


# What the user's samples say.


def test_an_activation_past_the_range_keeps_its_nodes_and_names_the_sample() -> None:
    before = parsed(TWO_LAYERS, LAYERS)
    x = normal(4, 64)
    peak = float(np.abs(run_onnxruntime(before, {"x": 100 * x})[0]).max())
    after = halve(before, {"x": x}, {"x": 100 * x}, headroom=65504 / peak * 1.001)
    assert dtypes(after) == {"MatMul_0": "FLOAT16", "Relu_1": "FLOAT16", "MatMul_2": "FLOAT"}
    assert f"|y| reaches {peak:.3g} on sample 1, over 65504" in reasons(after)["MatMul_2"]
    assert set(dtypes(halve(before, {"x": x}, {"x": 100 * x}, headroom=65504 / peak * 0.999)).values()) == {"FLOAT16"}


def test_an_activation_that_would_be_subnormal_keeps_its_nodes() -> None:
    after = halve(parsed(TWO_LAYERS, LAYERS), {"x": normal(4, 64) * np.float32(1e-9)})
    assert after.history[-1].sites == 0
    assert "subnormal" in reasons(after)["MatMul_0"]


def test_infinities_and_empty_tensors_do_not_count_as_large() -> None:
    body = """g (float[n, 4] x, float[p, 4] past) => (float[m, 8] y) {
      all = Concat<axis = 0>(past, x)
      y = MatMul(all, w)
    }"""
    x = normal(2, 4)
    x[0, 0] = -np.inf
    after = halve(parsed(body, {"w": normal(4, 8)}), {"x": x, "past": normal(0, 4)}, headroom=100.0)
    assert set(dtypes(after).values()) == {"FLOAT16"}


def test_without_samples_that_is_said_once() -> None:
    after = halve(parsed(TWO_LAYERS, LAYERS))
    assert [skip.reason for skip in after.history[-1].skips] == ["ranges not checked: no calibration samples"]
    assert not halve(parsed(TWO_LAYERS, LAYERS), range_check=False).history[-1].skips


def test_a_sample_that_cannot_be_run_is_named() -> None:
    with pytest.raises(InputError, match="sample 0: onnxruntime cannot run"):
        halve(parsed(TWO_LAYERS, LAYERS), {"x": normal(4, 63)})


# What weights say.


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (np.full((64, 32), 7e4, np.float32), "w1 holds 7e+04, over 65504"),
        (np.full((64, 32), 1e-9, np.float32), "2048 of its 2048 nonzero numbers become 0"),
        (normal(64, 32) * np.float32(1e-6), "nonzero numbers become 0"),
    ],
)
def test_a_weight_that_float16_does_not_hold_keeps_its_node(weight: np.ndarray, reason: str) -> None:
    after = halve(parsed(TWO_LAYERS, LAYERS | {"w1": weight}))
    assert reason in reasons(after)["MatMul_0"]
    assert dtypes(after) == {"MatMul_0": "FLOAT", "Relu_1": "FLOAT", "MatMul_2": "FLOAT16"}


def test_dead_weights_may_vanish() -> None:
    """Most weights of the zoo's vww are around 1e-30; beside the others they are as good as zero."""
    weight = normal(64, 32)
    weight[:, 1:] *= np.float32(1e-30)
    assert halve(parsed(TWO_LAYERS, LAYERS | {"w1": weight})).history[-1].sites == 3


def test_an_epsilon_keeps_what_is_computed_from_it() -> None:
    body = """g (float[n, 32] x) => (float[n, 32] y) {
      h = MatMul(x, w)
      sure = Add(h, eps)
      root = Sqrt(sure)
      y = MatMul(root, w)
    }"""
    after = halve(parsed(body, {"w": normal(32, 32), "eps": np.array(1e-12, np.float32)}))
    assert dtypes(after) == {"MatMul_0": "FLOAT16", "Add_1": "FLOAT", "Sqrt_2": "FLOAT", "MatMul_3": "FLOAT16"}
    assert reasons(after)["Sqrt_2"] == "follows Add_1, which gives float32"


@pytest.mark.parametrize("width", [16, 512])
def test_a_weight_that_both_read_is_stored_once_where_that_pays(width: int) -> None:
    body = f"""g (int64[n] i, float[n, {width}] x) => (float[n, {width}] a, float[n, {width}] b) {{
      row = Gather(table, i)
      a = MatMul(row, square)
      p = Pow(x, table)
      b = Softmax(p)
    }}"""
    weights = {"table": normal(4, width), "square": normal(width, width)}
    before = parsed(body, weights)
    after = halve(before)
    stored = [v for v in after.graph.graph.initializers.values() if v.shape == (4, width)]
    assert ir.DataType.FLOAT16 in {v.dtype for v in stored}
    assert len(stored) == (1 if width == 512 else 2)


# Masks.

SCORES = """g (float[h, s, d] q, float[h, s, d] k, float[h, s, d] v, bool[s, s] seen) => (float[h, s, d] y) {
  mask = Where(seen, zero, lowest)
  kt = Transpose<perm = [0, 2, 1]>(k)
  scores = MatMul(q, kt)
  masked = Add(scores, mask)
  p = Softmax(masked)
  y = MatMul(p, v)
}"""
MASK = {"zero": np.array(0, np.float32), "lowest": np.array(LOWEST, np.float32)}


def attention_feeds(shape: tuple[int, ...] = (2, 5, 8)) -> Feeds:
    seen = np.tril(np.ones((5, 5), bool))
    seen[3] = False  # a row that sees nothing, as padding makes them
    return {name: normal(*shape, seed=seed) for seed, name in enumerate("qkv")} | {"seen": seen}


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_mask_stays_float32_up_to_the_softmax(calibrated: bool) -> None:
    before, feeds = parsed(SCORES, MASK), attention_feeds()
    after = halve(before, *([feeds] if calibrated else []))
    assert {name for name, dtype in dtypes(after).items() if dtype == "FLOAT"} == {"Where_0", "Add_3", "Softmax_4"}
    (y,), (half,) = run(before, feeds), run(after, feeds)
    # A score is off by three roundings of |q| |k|, a probability by twice that and a rounding, y by two more.
    score = np.abs(feeds["q"]) @ np.abs(feeds["k"]).swapaxes(-1, -2)
    bound = (2 * 3 * ROUNDOFF * score.max() + 3 * ROUNDOFF) * np.abs(feeds["v"]).max()
    assert np.isfinite(half).all()
    np.testing.assert_allclose(half, y, rtol=0, atol=2 * bound)


FUSED = {
    "Attention": """g (float[1, h, s, d] q, float[1, h, s, d] k, float[1, h, s, d] v, bool[s, s] seen)
      => (float[1, h, s, d] y) {
      mask = Where(seen, zero, lowest)
      y = Attention(q, k, v, mask)
    }""",
    "MultiHeadAttention": """g (float[1, s, d] q, float[1, s, d] k, float[1, s, d] v, bool[1, 1, s, s] seen)
      => (float[1, s, d] y) {
      mask = Where(seen, zero, lowest)
      y = com.microsoft.MultiHeadAttention<num_heads = 2>(q, k, v, , , mask)
    }""",
}


@pytest.mark.parametrize("op", FUSED)
def test_the_mask_of_a_fused_attention_is_clamped(op: str) -> None:
    before = parsed(FUSED[op], MASK)
    feeds = attention_feeds((1, 2, 5, 8) if op == "Attention" else (1, 5, 8))
    if op == "MultiHeadAttention":
        feeds["seen"] = feeds["seen"][None, None]
    after = halve(before, feeds)
    assert ops(after) == {"Where": 1, "Clip": 1, "Cast": 5, op: 1}
    (y,), (half,) = run_onnxruntime(before, feeds), run_onnxruntime(after, feeds)
    assert np.isfinite(half).all()
    rows = [0, 1, 2, 4]  # row 3 sees nothing, and what it then attends to differs from runtime to runtime
    score = np.abs(feeds["q"]) @ np.abs(feeds["k"]).swapaxes(-1, -2)
    bound = (2 * 3 * ROUNDOFF * score.max() + 3 * ROUNDOFF) * np.abs(feeds["v"]).max()
    np.testing.assert_allclose(half[..., rows, :], y[..., rows, :], rtol=0, atol=2 * bound)


def test_attention_takes_its_softmax_in_float32() -> None:
    node = next(n for n in halve(parsed(FUSED["Attention"], MASK)).graph.graph if n.op_type == "Attention")
    assert [v.dtype.name for v in node.inputs if v is not None and v.dtype] == ["FLOAT16"] * 4
    assert node.attributes.get_int("softmax_precision") == ir.DataType.FLOAT


# What stays float32 for what it is.


def test_clip_bounds_past_the_range_are_clamped() -> None:
    body = "g (float[n, 64] x) => (float[n, 32] y) { h = MatMul(x, w1) y = Clip(h, zero, top) }"
    after = halve(parsed(body, {"w1": LAYERS["w1"], "zero": MASK["zero"], "top": np.array(3.4e38, np.float32)}))
    assert set(dtypes(after).values()) == {"FLOAT16"}
    top = next(v for name, v in after.graph.graph.initializers.items() if name.startswith("top"))
    assert top.const_value is not None and float(top.const_value.numpy()) == 65504


def test_positions_are_never_float16() -> None:
    """In float16 the angle of position 2049 would be that of 2048."""
    body = """g (int64[s] position, float[s, 4] x) => (float[s, 4] y) {
      p = Cast<to = 1>(position)
      column = Reshape(p, shape)
      angle = MatMul(column, frequency)
      c = Cos(angle)
      h = MatMul(x, w)
      y = Mul(h, c)
    }"""
    weights = {
        "shape": np.array([-1, 1]),
        "frequency": 10 ** -np.arange(4, dtype=np.float32)[None],
        "w": normal(4, 4),
    }
    after = halve(parsed(body, weights))
    assert {name for name, dtype in dtypes(after).items() if dtype == "FLOAT16"} == {"MatMul_4"}
    assert reasons(after)["Reshape_1"] == "computes an angle"


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ("ReduceSum(h)", "sums over many elements"),
        ("LogSoftmax(h)", "takes exponentials"),
        ("Celu(h)", "T of Celu cannot be float16"),
        ("LayerNormalization<stash_type = 10>(h, scale)", "variance"),
    ],
)
def test_an_unsafe_operator_says_why(call: str, reason: str) -> None:
    body = f"g (float[n, 64] x) => (y) {{ h = MatMul(x, w1) y = {call} }}"
    before = parsed(body, {"w1": LAYERS["w1"], "scale": normal(32)})
    before.graph.graph.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    after = halve(before)
    assert after.history[-1].sites == 1
    assert any(reason in text for text in reasons(after).values())


def test_what_the_user_keeps_is_kept() -> None:
    assert dtypes(halve(parsed(TWO_LAYERS, LAYERS), keep=("Relu", "MatMul_2"))) == {
        "MatMul_0": "FLOAT16",
        "Relu_1": "FLOAT",
        "MatMul_2": "FLOAT",
    }
    kept = reasons(halve(parsed(TWO_LAYERS, LAYERS), keep=("MatMul_*",)))
    assert kept["MatMul_0"] == "kept in float32 by keep='MatMul_*'"


def test_nothing_is_converted_where_nothing_multiplies() -> None:
    after = halve(parsed("g (float[n, 4] x) => (float[n, 4] y) { a = Neg(x) y = Softmax(a) }"))
    assert after.history[-1].sites == 0
    assert reasons(after)["Neg_0"] == "nothing around it is float16"


def test_a_body_reads_float32_from_outside() -> None:
    body = """g (bool c, float[n, 64] x) => (float[n, 32] y) {
      h = MatMul(x, w1)
      y = If (c) <
        then_branch = then () => (float[n, 32] a) { a = Exp(h) },
        else_branch = else () => (float[n, 32] b) { b = Neg(h) }
      >
    }"""
    before = parsed(body, LAYERS)
    after = halve(before)
    assert dtypes(after) == {"MatMul_0": "FLOAT16", "If_1": "FLOAT"}
    feeds = {"c": np.array(False), "x": normal(2, 64)}
    (y,), (half,) = run_onnxruntime(before, feeds), run_onnxruntime(after, feeds)
    size = np.abs(feeds["x"]) @ np.abs(LAYERS["w1"])
    assert np.all(np.abs(y - half) <= 4 * ROUNDOFF * size)


# On trained models.


def test_digits_change_only_where_the_model_was_undecided(zoo: Callable[[str], Path]) -> None:
    data = np.load(zoo("mnist/test.npz"))
    images = data["x"][:200].reshape(-1, 1, 1, 28, 28).astype(np.float32)
    before = load(zoo("mnist/mnist.onnx"))
    after = halve(before, *({"Input3": image.astype(np.float32)} for image in images[:8]))
    assert set(ops(after)) == {*ops(before), "Cast"}
    for image in images:
        (exact,), (half,) = run_onnxruntime(before, {"Input3": image}), run_onnxruntime(after, {"Input3": image})
        if exact.argmax() != half.argmax():
            second, first = np.sort(exact.ravel())[-2:]
            assert first - second < 2 * ROUNDOFF * len(dtypes(after)) * np.abs(exact).max()
