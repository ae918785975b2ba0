"""awq: blocks of scaled weights lose less on samples that were not seen, the float model stays, the rest is left."""

from __future__ import annotations

import numpy as np
import pytest
from repairs import Feeds, model, normal, reasons, run, through, weight

from polycast.model import Model
from polycast.passbase import PassContext
from polycast.passes.quantization.awq import Awq
from polycast.passes.quantization.quantize_weights import QuantizeWeights
from polycast.pipeline import apply, parse_pass

K = 64
BODY = """g (float[n, 64] x) => (float[n, 48] y, float[n, 32] z) {
  h = LayerNormalization(x, scale, shift) y = MatMul(h, w1) z = Gemm<transB = 1>(h, w2, b)
}"""
LOUD = np.where(np.arange(K) % 9 == 4, 20, 1).astype(np.float32)
WEIGHTS = {
    "scale": LOUD,
    "shift": normal(K, seed=1),
    "w1": normal(K, 48, seed=2),
    "w2": normal(32, K, seed=3),
    "b": normal(32, seed=4),
}
SEEN = [{"x": normal(24, K, seed=10 + n)} for n in range(8)]
UNSEEN = [{"x": normal(24, K, seed=50 + n)} for n in range(8)]


def in_blocks(w: np.ndarray, block: int = 32, bits: int = 4) -> np.ndarray:
    """Round ``w: [K, N]`` as written here: each block of a column reaches its extremes, zero among them."""
    found = np.empty(w.shape)
    for start in range(0, len(w), block):
        part = w[start : start + block].astype(np.float64)
        low, high = np.minimum(part.min(axis=0), 0), np.maximum(part.max(axis=0), 0)
        step = (high - low) / (2**bits - 1)
        zero = np.round(-low / step)
        found[start : start + block] = (np.clip(np.round(part / step) + zero, 0, 2**bits - 1) - zero) * step
    return found


def lost(of: Model, samples: list[Feeds]) -> float:
    """Give the squared error that rounding both weights makes to the outputs."""
    w1, w2 = weight(of, "MatMul_1"), weight(of, "Gemm_2").T
    errors = [h @ np.hstack([in_blocks(w) - w for w in (w1, w2)]) for _, _, h in run(of, samples, "h")]
    return sum(float(np.square(error).sum()) for error in errors)


@pytest.mark.parametrize("method", ["rtn", "mse", "hqq"])
def test_less_is_lost_on_samples_that_were_not_seen(method: str) -> None:
    before = model(BODY, WEIGHTS)
    after = through(before, Awq(method=method), samples=SEEN)
    assert after.history[-1].sites == 1
    assert lost(after, UNSEEN) < 0.7 * lost(before, UNSEEN)


def test_the_float_model_stays_within_rounding() -> None:
    before = model(BODY, WEIGHTS)
    after = through(before, Awq(), samples=SEEN)
    assert after.weight_bytes == before.weight_bytes
    hold_to_rounding(before, after, WEIGHTS)


def hold_to_rounding(before: Model, after: Model, weights: dict[str, np.ndarray]) -> None:
    """A normalised row, its scale, and the weight each carry a few roundings; K products are added up."""
    for wanted, found in zip(run(before, UNSEEN, "h"), run(after, UNSEEN), strict=True):
        size = np.abs(wanted[2]) @ np.abs(np.hstack([weights["w1"], weights["w2"].T])) + np.abs(weights["b"]).max()
        error = np.abs(np.hstack(found) - np.hstack(wanted[:2]))
        assert (error <= (K + 8) * np.finfo(np.float32).eps * size).all()


def test_second_run_finds_nothing() -> None:
    once = through(model(BODY, WEIGHTS), Awq(), samples=SEEN)
    twice = through(once, Awq(), samples=SEEN)
    assert once.history[-1].sites == 1 and twice.history[-1].sites == 0
    even = model(BODY, WEIGHTS | {"scale": np.ones(K, np.float32), "shift": np.zeros(K, np.float32)})
    left = through(even, Awq(), samples=SEEN)
    again = through(left, Awq(), samples=SEEN)
    assert left.history[-1].sites == again.history[-1].sites == 0 and reasons(left) == reasons(again)


def test_even_channels_are_left_and_the_figures_are_given() -> None:
    even = WEIGHTS | {"scale": np.ones(K, np.float32), "shift": np.zeros(K, np.float32)}
    after = through(model(BODY, even), Awq(), samples=SEEN)
    assert after.history[-1].sites == 0
    assert "squared error of its layers" in reasons(after)["MatMul_1"]


def test_a_channel_that_is_always_zero_stays_finite() -> None:
    dead = WEIGHTS | {name: np.where(np.arange(K) == 7, 0, WEIGHTS[name]) for name in ("scale", "shift")}
    after = through(model(BODY, dead), Awq(), samples=SEEN)
    assert after.history[-1].sites == 1
    assert all(np.isfinite(weight(after, name)).all() for name in ("MatMul_1", "Gemm_2"))
    hold_to_rounding(model(BODY, dead), after, dead)


def test_reasons_are_told() -> None:
    before = model(BODY, WEIGHTS)
    assert reasons(through(before, Awq())) == {"MatMul_1": "no calibration samples"}
    assert reasons(through(before, Awq(), samples=SEEN[:1])) == {
        "MatMul_1": "the calibration samples show too little of what it reads"
    }
    residual = "g (float[n, 64] x) => (float[n, 64] y) { h = Relu(x) m = MatMul(h, w) y = Add(h, m) }"
    after = through(model(residual, {"w": normal(K, K)}), Awq(), samples=SEEN)
    assert reasons(after) == {"MatMul_1": "Add_2 (Add) reads h too"}
    lossy = apply(QuantizeWeights(bits=8, only=("MatMul_1",)), before, PassContext(frozenset({"matmul-nbits"})))
    late = apply(Awq(), lossy, PassContext(original=before.graph))
    assert late.history[-1].sites == 0 and "a lossy pass came before" in next(iter(reasons(late).values()))


def test_layers_that_are_kept_and_convolutions_stay_without_a_word() -> None:
    after = through(model(BODY, WEIGHTS), Awq(keep=("Gemm_2",)), samples=SEEN)
    assert after.history[-1].sites == 0 and reasons(after) == {}
    body = """g (float[1, 4, 8, 8] x) => (float[1, 5, 8, 8] y) { h = Conv(x, a) y = Conv(h, b) }"""
    convolutions = {"a": normal(4, 4, 1, 1), "b": normal(5, 4, 1, 1)}
    after = through(model(body, convolutions), Awq(), samples=[{"x": normal(1, 4, 8, 8)}] * 2)
    assert after.history[-1].sites == 0 and reasons(after) == {}


@pytest.mark.parametrize("text", ["bits=5", "block=24", "scales='bf16'", "method='best'", "margin=1.0"])
def test_a_wrong_parameter_is_named(text: str) -> None:
    with pytest.raises(Exception, match=text.partition("=")[0]):
        parse_pass(f"awq({text})")
