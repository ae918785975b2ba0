"""quantize_weights on awkward weights: quantized, or left alone with the reason, never wrong; and on large models."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from weight_only import (
    EPS,
    model,
    normal,
    ops,
    product,
    quantized,
    reasons,
    run,
    stored_weight,
)

from polycast.model import weights
from polycast.passes.quantization import _matrix
from polycast.passes.quantization._spill import Spill


def with_one(number: float) -> np.ndarray:
    w = normal(64, 40)
    w[3, 5] = number
    return w


AWKWARD = {
    "NaN": (product(with_one(np.nan)), "its weight holds NaN or infinity, or numbers whose range overflows"),
    "infinity": (product(with_one(-np.inf)), "its weight holds NaN or infinity, or numbers whose range overflows"),
    "too large": (product(1e6 * normal(64, 40)), "its weight needs a scale of 4.64e+05, which float16 does not hold"),
    "empty": (product(np.zeros((64, 0), np.float32)), "its weight is empty"),
    "one by one": (product(np.ones((1, 1), np.float32)), "its weight would take 3 bytes, and takes 2"),
    "double": (
        model(
            "g (double[n, 64] x) => (double[n, 40] y) { y = MatMul(x, w) }", {"w": normal(64, 40).astype(np.float64)}
        ),
        "its weight is float64",
    ),
    "stack": (
        model("g (float[2, n, 64] x) => (float[2, n, 40] y) { y = MatMul(x, w) }", {"w": normal(2, 64, 40)}),
        "its weight has 3 axes, not 2",
    ),
    "left operand": (
        model("g (float[64, n] x) => (float[40, n] y) { y = MatMul(w, x) }", {"w": normal(40, 64)}),
        "its weight is the left operand",
    ),
    "vector": (
        model("g (float[64] x) => (float[40] y) { y = MatMul(x, w) }", {"w": normal(64, 40)}),
        "its input is a vector",
    ),
    "transA": (
        model("g (float[64, n] x) => (float[n, 40] y) { y = Gemm<transA=1>(x, w) }", {"w": normal(64, 40)}),
        "it transposes its input",
    ),
    "computed": (
        model("g (float[n, 64] x) => (float[n, 40] y) { v = Exp(w)\n y = MatMul(x, v) }", {"w": normal(64, 40)}),
        "its weight is computed from constants, or quantized already",
    ),
    "graph output": (
        model("g (float[n, 64] x) => (float[n, 40] y, float[64, 40] w) { y = MatMul(x, w) }", {"w": normal(64, 40)}),
        "its weight is an output of the graph too, and stays",
    ),
    "tied": (
        model(
            "g (int64[n] i) => (float[n, 40] y) { x = Gather(t, i)\n v = Transpose(t)\n y = MatMul(x, v) }",
            {"t": normal(40, 64)},
        ),
        "its weight is read by Gather too, and would be stored twice",
    ),
}


@pytest.mark.parametrize("name", AWKWARD)
def test_is_left_alone_with_the_reason(name: str) -> None:
    before, reason = AWKWARD[name]
    if name == "too large":
        after = quantized(before, scales="float16")
    elif name == "one by one":
        half = model(
            "g (float16[n, 1] x) => (float16[n, 1] y) { y = MatMul(x, w) }", {"w": np.ones((1, 1), np.float16)}
        )
        after = quantized(half)
    else:
        after = quantized(before)
    assert list(reasons(after).values()) == [reason]


def test_two_activations_are_nothing_to_quantize() -> None:
    after = quantized(model("g (float[n, 64] x, float[64, 40] w) => (float[n, 40] y) { y = MatMul(x, w) }", {}))
    assert after.history[-1].sites == 0 and reasons(after) == {}


def test_a_tied_table_is_quantized_when_asked() -> None:
    before, _ = AWKWARD["tied"]
    after = quantized(before, tied=True)
    assert after.history[-1].sites == 1 and ops(after)["MatMulNBits"] == 1
    assert "t" in after.graph.graph.initializers


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_all_zero_weights_give_zero(bits: int) -> None:
    after = quantized(product(np.zeros((64, 40), np.float32)), bits=bits)
    assert after.history[-1].sites == 1
    assert not run(after, {"x": normal(3, 64)}, optimized=True)[0].any()


def test_one_outlier_channel_costs_the_others_nothing() -> None:
    w = normal(64, 40)
    loud = w.copy()
    loud[:, 7] *= 1e4
    (plain, _), (beside, step) = (stored_weight(quantized(product(each), method="rtn")) for each in (w, loud))
    others = np.arange(40) != 7
    assert np.all(np.abs(beside - loud.T) <= (0.5 + 32 * EPS) * step)
    # All that changes is where the steps of the scales begin.
    assert np.abs(beside - loud.T)[others].max() <= 2 ** (1 / 16) * np.abs(plain - w.T)[others].max() * 1.1


def test_a_weight_that_two_nodes_share_is_stored_once() -> None:
    body = (
        "g (float[n, 64] x, float[n, 64] z) => (float[n, 40] y, float[n, 40] u) { y = MatMul(x, w)\n u = MatMul(z, w) }"
    )
    after = quantized(model(body, {"w": normal(64, 40)}))
    assert after.history[-1].sites == 1 and ops(after)["MatMulNBits"] == 2
    assert after.weight_bytes < product(normal(64, 40)).weight_bytes / 4
    x = normal(3, 64, seed=1)
    y, u = run(after, {"x": x, "z": x})
    np.testing.assert_array_equal(y, u)


def test_a_weight_inside_an_if() -> None:
    body = """g (bool c, float[n, 64] x) => (float[n, 40] y) {
      y = If (c) <
        then_branch = t () => (float[n, 40] a) { a = MatMul(x, w) },
        else_branch = e () => (float[n, 40] b)
          <float[64, 40] v = {LEAVES}> { b = MatMul(x, v) }
      >
    }""".replace("LEAVES", ",".join(map(str, normal(64, 40, seed=4).ravel().tolist())))
    after = quantized(model(body, {"w": normal(64, 40)}), bits=8, accuracy_level=0)
    assert after.history[-1].sites == 2 and ops(after)["MatMulNBits"] == 2
    x = normal(3, 64, seed=1)
    for taken, seed in ((True, 0), (False, 4)):
        for optimized in (False, True):
            (y,) = run(after, {"c": np.array(taken), "x": x}, optimized)
            w = normal(64, 40, seed=seed)
            step = 2 * np.abs(w).max() / 255 * 2 ** (1 / 16)
            assert np.abs(y - x @ w).max() <= step * np.abs(x).sum(-1).max()


def test_transposes_before_the_weight_are_folded() -> None:
    body = """g (float[n, 64] x) => (float[n, 40] y) {
      a = Transpose(w)
      b = Identity(a)
      y = MatMul(x, b)
    }"""
    after = quantized(model(body, {"w": normal(40, 64)}), method="rtn")
    stored, step = stored_weight(after)
    assert "Transpose" not in ops(after) and "w" not in after.graph.graph.initializers
    assert np.all(np.abs(stored - normal(40, 64)) <= (0.5 + 32 * EPS) * step)


# Large models.


@given(st.integers(0, 1), st.integers(1, 9), st.integers(1, 9), st.integers(1, 30))
def test_a_weight_in_a_file_is_read_in_stripes(axis: int, height: int, width: int, stripe: int) -> None:
    array = normal(height, width, dtype=np.float16)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(_matrix, "STRIPE", stripe)
        Path(folder, "w").write_bytes(b"\0" * 6 + array.tobytes())
        tensor = ir.ExternalTensor(
            "w", 6, array.nbytes, ir.DataType.FLOAT16, shape=ir.Shape(array.shape), name="w", base_dir=folder
        )
        matrix = _matrix.Matrix(ir.val("w", const_value=tensor), axis)
        stripes = list(matrix.stripes())
        np.testing.assert_array_equal(np.concatenate(stripes), array if axis == 0 else array.T)
        assert all(len(part) == 1 or part.size <= stripe for part in stripes)


def test_what_is_spilled_lives_as_long_as_its_tensors() -> None:
    array = np.arange(1 << 17, dtype=np.uint8).reshape(2, -1)
    spill = Spill(large=True)
    small, first, second = (spill.tensor(each, "t") for each in (array[:, :10], array, array[::-1]))
    assert isinstance(small, ir.Tensor) and isinstance(second, ir.ExternalTensor)
    np.testing.assert_array_equal(first.numpy(), array)
    np.testing.assert_array_equal(second.numpy(), array[::-1])
    file = Path(second.path)
    del spill, first
    assert file.exists()
    del second
    assert not file.exists()


def test_a_large_model_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = product(normal(512, 600))
    quantized(before).write(tmp_path / "small.onnx")
    monkeypatch.setattr("polycast.passes.quantization._spill.INLINE_BYTES", 1000)
    after = quantized(before)
    assert any(isinstance(tensor, ir.ExternalTensor) for tensor in weights(after.graph))
    after.write(tmp_path / "large.onnx")
    assert (tmp_path / "large.onnx").read_bytes() == (tmp_path / "small.onnx").read_bytes()
