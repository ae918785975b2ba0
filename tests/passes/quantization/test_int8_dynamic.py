"""int8_dynamic: MatMul and Gemm stay within the steps of their grids, or are skipped with the reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from dynamic import EPSILON, FEATURES, lowered, model, normal, ops, quantize, reasons, run
from hypothesis import given
from hypothesis import strategies as st

from polycast.errors import RecipeError
from polycast.model import Model
from polycast.passes.quantization._dynamic_weights import to_int8
from polycast.pipeline import Pipeline

PLAIN = FEATURES - {"integer-matmul-to-float"}


def steps(array: np.ndarray, axis: int | None, codes: int) -> np.ndarray:
    """Give the step of a symmetric grid of ``codes`` on each side for what lies along ``axis``."""
    return np.abs(array).max(axis=axis, keepdims=True).astype(np.float64) / codes


def bound(a: np.ndarray, da: np.ndarray, b: np.ndarray, db: np.ndarray) -> np.ndarray:
    """Give how far ``a @ b`` may move when no element of a moves by more than da, none of b by more than db.

    A sum of K float32 products adds K roundings of its terms at most, and three more bring it to its scale and bias.
    """
    a, b = np.abs(a.astype(np.float64)), np.abs(b.astype(np.float64))
    da, db = np.broadcast_to(da, a.shape), np.broadcast_to(db, b.shape)
    return (a @ db + da @ b + da @ db) + (a.shape[-1] + 3) * EPSILON * (a @ b)


FORMS = {
    "matmul": ("float[m, 48] x", "y = MatMul(x, w)", "float[m, 24] y", (5, 48), (48, 24)),
    "batched activation": ("float[b, m, 48] x", "y = MatMul(x, w)", "float[b, m, 24] y", (2, 5, 48), (48, 24)),
    "batched weight": ("float[2, m, 48] x", "y = MatMul(x, w)", "float[2, m, 24] y", (2, 5, 48), (2, 48, 24)),
    "weight on the left": ("float[48, m] x", "y = MatMul(w, x)", "float[24, m] y", (48, 5), (24, 48)),
    "batched, weight on the left": ("float[b, 48, m] x", "y = MatMul(w, x)", "float[b, 24, m] y", (2, 48, 5), (24, 48)),
    "gemm": ("float[m, 48] x", "y = Gemm(x, w)", "float[m, 24] y", (5, 48), (48, 24)),
    "gemm, weight transposed": ("float[m, 48] x", "y = Gemm<transB = 1>(x, w)", "float[m, 24] y", (5, 48), (24, 48)),
    "gemm, activation transposed": (
        "float[48, m] x",
        "y = Gemm<transA = 1>(x, w)",
        "float[m, 24] y",
        (48, 5),
        (48, 24),
    ),
    "gemm, weight on the left": ("float[48, m] x", "y = Gemm(w, x)", "float[24, m] y", (48, 5), (24, 48)),
    "gemm, left, both transposed": (
        "float[m, 48] x",
        "y = Gemm<transA = 1, transB = 1>(w, x)",
        "float[24, m] y",
        (5, 48),
        (48, 24),
    ),
}


@pytest.mark.parametrize("features", [FEATURES, PLAIN], ids=["fused", "plain"])
@pytest.mark.parametrize("per", ["token", "tensor"])
@pytest.mark.parametrize("form", FORMS)
def test_products_move_by_no_more_than_half_steps_explain(form: str, per: str, features: frozenset[str]) -> None:
    takes, product, gives, size, weight = FORMS[form]
    w = normal(*weight) * np.exp(normal(1, weight[-1], seed=1))
    x = normal(*size, seed=2) * np.exp(normal(*size[:-2], size[-2], 1, seed=3))
    after = quantize(model(f"g ({takes}) => ({gives}) {{ {product} }}", {"w": w}), per=per, features=features)
    assert after.history[-1].sites == 1 and "MatMul" not in ops(after) and "Gemm" not in ops(after)

    turned_x = x.T if form in ("gemm, activation transposed", "gemm, left, both transposed") else x
    turned_w = w.T if form in ("gemm, weight transposed", "gemm, left, both transposed") else w
    left = "left" in form
    axis = -2 if left else -1
    dw = steps(turned_w, -1 if left else -2, 127) / 2
    # One grid for all: the zero point is rounded too, which moves both ends by half a step.
    dx = steps(turned_x, axis, 127) / 2 if per == "token" else np.float64(turned_x.max() - turned_x.min()) / 255
    operands = (turned_w, dw, turned_x, dx) if left else (turned_x, dx, turned_w, dw)
    exact = operands[0].astype(np.float64) @ operands[2].astype(np.float64)
    for optimized in (False, True):
        (y,) = run(after, {"x": x}, optimized=optimized)
        assert y.shape == exact.shape
        assert np.all(np.abs(y - exact) <= bound(*operands)), optimized
        assert np.any(y != exact.astype(np.float32))


@pytest.mark.parametrize("features", [FEATURES, PLAIN], ids=["fused", "plain"])
@pytest.mark.parametrize("per", ["token", "tensor"])
def test_gemm_keeps_its_factors_and_its_bias(per: str, features: frozenset[str]) -> None:
    body = "g (float[m, 48] x, float[m, 24] c) => (float[m, 24] y) { y = Gemm<alpha = 0.5, beta = -2.0>(x, w, c) }"
    w, x, c = normal(48, 24), normal(5, 48, seed=1), normal(5, 24, seed=2)
    after = quantize(model(body, {"w": w}), per=per, features=features)
    half = 0.5 * w.astype(np.float64)
    dx = steps(x, -1, 127) / 2 if per == "token" else np.float64(x.max() - x.min()) / 255
    room = bound(x, dx, half, steps(half, 0, 127) / 2) + 2 * EPSILON * np.abs(2 * c)
    for optimized in (False, True):
        (y,) = run(after, {"x": x, "c": c}, optimized=optimized)
        assert np.all(np.abs(y - (x @ half - 2 * c)) <= room)


def test_gemm_without_beta_drops_the_bias() -> None:
    body = "g (float[m, 8] x) => (float[m, 4] y) { y = Gemm<beta = 0.0>(x, w, c) }"
    after = quantize(model(body, {"w": normal(8, 4), "c": np.full(4, 7, np.float32)}))
    (y,) = run(after, {"x": np.zeros((2, 8), np.float32)})
    assert not y.any() and "Add" not in ops(after)


@given(st.integers(0, 2**32 - 1), st.floats(-30, 30), st.sampled_from([63, 127]))
def test_a_weight_moves_by_half_a_step_at_most(seed: int, size: float, top: int) -> None:
    w = normal(7, 5, seed=seed) * np.float32(10.0**size)
    codes, scale = to_int8(w, (0,), top)
    assert codes.dtype == np.int8 and np.abs(codes).max() <= top and (scale > 0).all()
    moved = np.abs(codes * scale.astype(np.float64) - w)
    assert np.all(moved <= scale.astype(np.float64) * (0.5 + top * EPSILON))


# What is shared.


QKV = """g (float[m, 16] x) => (float[m, 16] q, float[m, 16] k, float[m, 8] v) {
  q = MatMul(x, wq)
  k = MatMul(x, wk)
  v = MatMul(x, wv)
}"""


@pytest.mark.parametrize(("per", "quantizer"), [("token", "QuantizeLinear"), ("tensor", "DynamicQuantizeLinear")])
def test_what_several_products_read_is_quantized_once(per: str, quantizer: str) -> None:
    weights = {"wq": normal(16, 16), "wk": normal(16, 16, seed=1), "wv": normal(16, 8, seed=2)}
    after = quantize(model(QKV, weights), per=per)
    assert after.history[-1].sites == 3 and ops(after)[quantizer] == 1


def test_a_weight_that_two_products_read_is_stored_once() -> None:
    body = """g (float[m, 16] x) => (float[m, 16] z) {
      y = MatMul(x, w)
      z = MatMul(y, w)
    }"""
    after = quantize(model(body, {"w": normal(16, 16)}))
    assert after.history[-1].sites == 2
    assert sum(v.const_value.size == 256 for v in after.graph.graph.initializers.values() if v.const_value) == 1
    assert after.weight_bytes < 16 * 16 * 4 / 2


def test_a_weight_that_is_an_output_too_stays_beside_its_integers() -> None:
    body = "g (float[m, 16] x) => (float[m, 8] y, float[16, 8] w) { y = MatMul(x, w) }"
    w = normal(16, 8)
    after = quantize(model(body, {"w": w}))
    np.testing.assert_array_equal(run(after, {"x": normal(2, 16)})[1], w)
    assert after.history[-1].sites == 1


def test_nodes_and_outputs_keep_their_names() -> None:
    body = """g (float[m, 16] x) => (float[m, 4] y) {
      h = Gemm(x, w, b)
      r = Relu(h)
      y = MatMul(r, v)
    }"""
    after = quantize(model(body, {"w": normal(16, 8), "b": normal(8), "v": normal(8, 4)}))
    made = {node.name: node for node in after.graph.graph}
    assert made["Gemm_0"].op_type == made["MatMul_2"].op_type == "MatMulIntegerToFloat"
    assert {"h", "r", "y"} <= {value.name for node in after.graph.graph for value in node.outputs}


def test_keep_and_only_choose() -> None:
    weights = {"wq": normal(16, 16), "wk": normal(16, 16, seed=1), "wv": normal(16, 8, seed=2)}
    assert quantize(model(QKV, weights), keep=("MatMul_1",)).history[-1].sites == 2
    assert quantize(model(QKV, weights), only=("MatMul_1",)).history[-1].sites == 1


# How an activation is quantized.


def zero_points(after: Model) -> list[int]:
    """Read the zero points of the tokens."""
    fills = (n.attributes["value"].as_tensor() for n in after.graph.graph if n.op_type == "ConstantOfShape")
    return [int(fill.numpy()[0]) for fill in fills]


@pytest.mark.parametrize(
    ("made_by", "zero"),
    [
        ("a = Relu(x)", 0),
        ("r = Sigmoid(x) a = Reshape(r, shape)", 0),
        ("a = Clip(x, nothing, six)", 0),
        ("a = Clip(x, nothing)", 0),
        ("a = Clip(x, minus)", 128),
        ("a = Gelu(x)", 64),
        ("s = Sigmoid(x) a = Mul(s, x)", 64),
        ("s = Sigmoid(x) t = Tanh(x) a = Mul(s, t)", 128),
        ("a = Tanh(x)", 128),
    ],
)
def test_the_operator_says_where_zero_is(made_by: str, zero: int) -> None:
    weights = {"w": normal(64, 8), "shape": np.array([-1, 64]), "nothing": np.float32(0), "six": np.float32(6)}
    body = f"g (float[m, 64] x) => (float[m, 8] y) {{ {made_by} y = MatMul(a, w) }}"
    before = model(body, weights | {"minus": np.float32(-1)})
    after = quantize(before)
    assert zero_points(after) == [zero]
    x = 2 * normal(50, 64, seed=1)
    exact = run(before, {"x": x})[0]

    def error(of: Model) -> float:
        return float(np.linalg.norm(run(of, {"x": x})[0] - exact))

    if zero != 128:  # the same activation, as if nothing were known of it
        hidden = model(body.replace("MatMul(a,", "MatMul(i,").replace("y = MatMul", "i = Add(a, none) y = MatMul"),
                       weights | {"minus": np.float32(-1), "none": np.zeros(1, np.float32)})  # fmt: skip
        assert zero_points(quantize(hidden)) == [128]
        assert error(after) < error(quantize(hidden))


def test_samples_say_where_zero_is() -> None:
    x = np.maximum(4 * normal(64, 32), np.float32(-0.1))
    before = model("g (float[m, 32] x) => (float[m, 8] y) { y = MatMul(x, w) }", {"w": normal(32, 8)})
    assert zero_points(quantize(before, per="token")) == [128]
    assert zero_points(quantize(before, {"x": x}, per="token")) == [16]
    assert zero_points(quantize(before, {"x": normal(64, 32)}, per="token")) == [128]


def test_one_grid_for_all_where_that_loses_little() -> None:
    before = model("g (float[m, 32] x) => (float[m, 8] y) { y = MatMul(x, w) }", {"w": normal(32, 8)})
    alike = normal(64, 32, seed=1)
    apart = alike * np.float32(10.0) ** np.linspace(-2, 2, 64, dtype=np.float32)[:, None]
    assert "DynamicQuantizeLinear" in ops(quantize(before, {"x": alike}, slack=2.0))
    assert "DynamicQuantizeLinear" not in ops(quantize(before, {"x": alike}, slack=0.5))
    assert "DynamicQuantizeLinear" not in ops(quantize(before, {"x": apart}, slack=2.0))
    assert "DynamicQuantizeLinear" not in ops(quantize(before, slack=2.0))  # no samples
    hole = alike.copy()
    hole[0, 0] = np.nan
    assert "DynamicQuantizeLinear" not in ops(quantize(before, {"x": hole}, slack=2.0))


def test_weights_take_7_bits_where_pairs_of_products_may_saturate() -> None:
    before = model("g (float[m, 32] x) => (float[m, 8] y) { y = MatMul(x, w) }", {"w": normal(32, 8)})
    for features, top in ((FEATURES, 127), (FEATURES - {"u8s8-exact"}, 63)):
        codes = quantize(before, features=features).graph.graph.initializers["w.int8"].const_value
        assert codes is not None and np.abs(codes.numpy()).max() == top


# The worst cases.


ONE = "g (float[m, 16] x) => (float[m, 8] y) { y = MatMul(x, w) }"


@pytest.mark.parametrize(
    ("body", "w", "reason"),
    [
        (
            ONE,
            np.where(np.eye(16, 8) > 0, np.nan, normal(16, 8)).astype(np.float32),
            "its weight holds NaN or infinity",
        ),
        (ONE, np.where(np.eye(16, 8) > 0, -np.inf, normal(16, 8)).astype(np.float32), "holds NaN or infinity"),
        (ONE.replace("8]", "0]"), normal(16, 0), "its weight is empty"),
        (ONE.replace("float[", "float16["), normal(16, 8).astype(np.float16), "its weight is FLOAT16, not FLOAT"),
        (ONE.replace("float[", "double["), normal(16, 8).astype(np.float64), "its weight is DOUBLE, not FLOAT"),
        (ONE.replace("[m, 16]", "[16]").replace("[m, 8]", "[8]"), normal(16, 8), "it multiplies a vector"),
        (ONE.replace("[m, 8]", "[m]"), normal(16), "it multiplies a vector"),
        (ONE.replace(") =>", ", float[16, 8] w) =>"), normal(16, 8), "its weight w is an input of the model"),
        (ONE.replace("MatMul(x", "Gemm<alpha = 1e30>(x"), normal(16, 8) * 1e30, "times alpha does not fit into FLOAT"),
        (ONE.replace("16", "66312"), np.ones((66312, 8), np.float32), "a sum of 66312 products of 8-bit numbers"),
    ],
)
def test_what_int8_does_not_suit_is_skipped_with_the_reason(body: str, w: np.ndarray, reason: str) -> None:
    with np.errstate(over="ignore"):
        after = quantize(model(body, {"w": w}))
    assert after.history[-1].sites == 0
    (found,) = reasons(after).values()
    assert reason in found


def test_without_the_feature_every_product_is_skipped() -> None:
    after = quantize(model(ONE, {"w": normal(16, 8)}), features=frozenset())
    assert reasons(after) == {"MatMul_0": "the target has no product of integers (integer-matmul)"}


def test_a_product_of_two_activations_is_none_of_its_business() -> None:
    after = quantize(model("g (float[m, 4] x, float[4, n] w) => (float[m, n] y) { y = MatMul(x, w) }", {}))
    assert after.history[-1].sites == 0 and not reasons(after)


@pytest.mark.parametrize("per", ["token", "tensor"])
def test_zero_weights_give_zeros_and_an_outlier_harms_its_channel_alone(per: str) -> None:
    w = normal(16, 8)
    w[:, 0], w[3, 1] = 0, 1e6
    x = normal(5, 16, seed=1)
    (y,) = run(quantize(model(ONE, {"w": w}), per=per), {"x": x})
    assert not y[:, 0].any()
    calm = w.copy()
    calm[3, 1] = 0
    (expected,) = run(quantize(model(ONE, {"w": calm}), per=per), {"x": x})
    np.testing.assert_array_equal(y[:, 2:], expected[:, 2:])
    assert (
        not quantize(model(ONE, {"w": np.zeros_like(w)})).graph.graph.initializers["w.int8"].const_value.numpy().any()
    )


@pytest.mark.parametrize("per", ["token", "tensor"])
def test_one_by_one(per: str) -> None:
    after = quantize(model(ONE.replace("16", "1").replace("8", "1"), {"w": np.full((1, 1), 3, np.float32)}), per=per)
    (y,) = run(after, {"x": np.full((2, 1), -5, np.float32)})
    np.testing.assert_allclose(y, -15, rtol=4 * EPSILON)


@pytest.mark.parametrize("made_by", ["", "a = Relu(x)", "a = Gelu(x)"])
@pytest.mark.parametrize("optimized", [False, True])
def test_zeros_nan_and_infinity_stay_in_their_token_and_no_token_is_fine(made_by: str, optimized: bool) -> None:
    body = ONE.replace("y = MatMul(x", f"{made_by} y = MatMul({'a' if made_by else 'x'}")
    after = quantize(model(body, {"w": normal(16, 8)}))
    x = normal(4, 16, seed=1)
    x[1] = 0
    (expected,) = run(after, {"x": x}, optimized=optimized)
    assert not expected[1].any()
    for trouble in (np.nan, np.inf, -np.inf):
        x[2, 3] = trouble
        (y,) = run(after, {"x": x}, optimized=optimized)
        np.testing.assert_array_equal(y[[0, 1, 3]], expected[[0, 1, 3]])  # a token does not depend on the others
    assert run(after, {"x": x[:0]}, optimized=optimized)[0].shape == (0, 8)


@pytest.mark.parametrize("per", ["token", "tensor"])
def test_weights_inside_the_branches_of_an_if(per: str) -> None:
    body = """g (float[m, 16] x, bool c) => (float[m, 8] y) {
      y = If (c) <
        then_branch = yes () => (float[m, 8] a) { a = MatMul(x, w) },
        else_branch = no () => (float[m, 8] b) { b = Gemm(x, inner, bias) }
      >
    }"""
    w, inner, bias = normal(16, 8), normal(16, 8, seed=1), normal(8, seed=2)
    before = model(body, {"w": w})
    branch = next(iter(before.graph.graph)).attributes["else_branch"].as_graph()
    for name, array in (("inner", inner), ("bias", bias)):
        value = next(v for node in branch for v in node.inputs if v is not None and v.name == name)
        value.const_value = ir.tensor(array, name=name)
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(array.shape)
        branch.register_initializer(value)
    after = quantize(before, per=per)
    assert after.history[-1].sites == 2 and "w.int8" in after.graph.graph.initializers
    x = normal(5, 16, seed=3)
    dx = steps(x, -1, 127) / 2 if per == "token" else np.float64(x.max() - x.min()) / 255
    for condition, weight, added in ((True, w, 0), (False, inner, bias)):
        (y,) = run(after, {"x": x, "c": np.array(condition)})
        room = bound(x, dx, weight, steps(weight, 0, 127) / 2) + 2 * EPSILON * np.abs(added)
        assert np.all(np.abs(y - (x.astype(np.float64) @ weight + added)) <= room)


def test_parameters_are_checked() -> None:
    for spelling in ("int8_dynamic(per='row')", "int8_dynamic(slack=-1.0)"):
        with pytest.raises(RecipeError, match=r"is (one of|at least)"):
            Pipeline.parse(spelling)


# Real models.


@pytest.mark.slow
def test_minilm_loses_less_per_token_than_per_tensor(minilm: Path) -> None:
    before = lowered(minilm)
    ids = np.random.default_rng(0).integers(1000, 30000, (1, 24))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    exact = run(before, feeds)[0]
    error = {}
    for per in ("token", "tensor"):
        after = quantize(before, per=per)
        assert after.history[-1].sites == 36 and not after.history[-1].skips
        assert ops(after)["QuantizeLinear" if per == "token" else "DynamicQuantizeLinear"] == 24
        error[per] = np.linalg.norm(run(after, feeds)[0] - exact)
    assert error["token"] < error["tensor"]
