"""smooth_quant: what outliers cost goes down on samples that it did not see, outputs stay, and the rest is left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from repairs import Feeds, decibels, model, normal, reasons, round_to_int8, run, through, weight

from polycast.load import load
from polycast.model import Model
from polycast.passes.quantization.smooth_quant import SmoothQuant

CHANNELS = 32
NORM = """g (float[n, 32] x) => (float[n, 16] y, float[n, 8] z) {
  h = LayerNormalization(x, scale, shift) y = MatMul(h, w1) z = Gemm<transB = 1>(h, w2, b)
}"""
WEIGHTS = {
    "scale": np.where(np.arange(CHANNELS) % 11 == 3, 60, 1).astype(np.float32),
    "shift": normal(CHANNELS, seed=1),
    "w1": normal(CHANNELS, 16, seed=2),
    "w2": normal(8, CHANNELS, seed=3),
    "b": normal(8, seed=4),
}
SEEN = [{"x": normal(24, CHANNELS, seed=10 + n)} for n in range(4)]
UNSEEN = [{"x": normal(24, CHANNELS, seed=50 + n)} for n in range(4)]


def outputs(of: Model, samples: Sequence[Feeds]) -> list[np.ndarray]:
    return [array for found in run(of, samples) for array in found]


def quantized(of: Model, samples: Sequence[Feeds], per_row: bool) -> list[np.ndarray]:
    """Compute both layers of NORM in 8 bits, as written here: weights per output channel, activations as asked."""
    found = []
    for _, _, h in run(of, samples, "h"):
        step = np.abs(h).max(axis=1 if per_row else None, keepdims=True) / 127
        h = np.round(h / step) * step
        w1, w2 = weight(of, "MatMul_1"), weight(of, "Gemm_2")
        found += [h @ round_to_int8(w1, axis=1), h @ round_to_int8(w2, axis=0).T + WEIGHTS["b"]]
    return found


@pytest.mark.parametrize("activations", ["tensor", "token"])
def test_outliers_cost_less_on_samples_that_were_not_seen(activations: str) -> None:
    before = model(NORM, WEIGHTS)
    after = through(before, SmoothQuant(activations=activations), samples=SEEN)
    assert after.history[-1].sites == 1
    wanted = outputs(before, UNSEEN)
    lost, kept = (decibels(wanted, quantized(of, UNSEEN, activations == "token")) for of in (before, after))
    assert kept > lost + 20 * np.log10(2), "less than half of the error is left"


def test_outputs_stay_bit_for_bit_since_factors_are_powers_of_two() -> None:
    before = model(NORM, WEIGHTS)
    after = through(before, SmoothQuant(), samples=SEEN)
    for wanted, found in zip(outputs(before, UNSEEN), outputs(after, UNSEEN), strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert after.weight_bytes == before.weight_bytes


@pytest.mark.parametrize("alpha", [-1.0, 0.5, 0.6])
def test_second_run_finds_nothing(alpha: float) -> None:
    once = through(model(NORM, WEIGHTS), SmoothQuant(alpha=alpha), samples=SEEN)
    assert once.history[-1].sites == 1
    twice = through(once, SmoothQuant(alpha=alpha), samples=SEEN)
    assert twice.history[-1].sites == 0
    assert "not down by 10%" in reasons(twice)["MatMul_1"]


def test_the_searched_alpha_is_at_least_as_good_as_any_other() -> None:
    before = model(NORM, WEIGHTS)
    wanted = outputs(before, SEEN)
    found = {
        alpha: decibels(wanted, quantized(through(before, SmoothQuant(alpha=alpha), samples=SEEN), SEEN, False))
        for alpha in (-1.0, 0.0, 0.2, 0.5, 0.8, 1.0)
    }
    best = found.pop(-1.0)
    # It is searched on half of the rows, and without the bias: as good but for that noise.
    assert best > max(found.values()) - 1


def test_without_outliers_nothing_is_done_and_the_figures_are_given() -> None:
    even = WEIGHTS | {name: np.sign(WEIGHTS[name]) for name in ("scale", "w1", "w2")} | {"shift": WEIGHTS["shift"] * 0}
    after = through(model(NORM, even), SmoothQuant(), samples=SEEN)
    assert after.history[-1].sites == 0
    assert "brings the squared error of its layers from" in reasons(after)["MatMul_1"]


RESIDUAL = """g (float[n, 32] x) => (float[n, 32] y) {
  h = LayerNormalization(x, scale, shift) m = MatMul(h, w) y = Add(h, m)
}"""
SQUARE = {"scale": WEIGHTS["scale"], "shift": WEIGHTS["shift"], "w": normal(CHANNELS, CHANNELS, seed=2)}


def test_a_new_mul_divides_only_where_that_is_allowed() -> None:
    before = model(RESIDUAL, SQUARE)
    left = through(before, SmoothQuant(), samples=SEEN)
    assert left.history[-1].sites == 0 and reasons(left) == {"MatMul_1": "Add_2 (Add) reads h too"}
    after = through(before, SmoothQuant(explicit=True), samples=SEEN)
    assert [n.op_type for n in after.graph.graph] == ["LayerNormalization", "Mul", "MatMul", "Add"]
    np.testing.assert_array_equal(outputs(after, UNSEEN), outputs(before, UNSEEN))
    assert through(after, SmoothQuant(explicit=True), samples=SEEN).history[-1].sites == 0


def test_an_input_of_the_model_is_divided_by_a_new_mul() -> None:
    before = model("g (float[n, 32] x) => (float[n, 16] y) { y = MatMul(x, w1) }", {"w1": WEIGHTS["w1"]})
    loud = [{"x": feeds["x"] * WEIGHTS["scale"]} for feeds in SEEN]
    assert through(before, SmoothQuant(), samples=loud).history[-1].sites == 0
    after = through(before, SmoothQuant(explicit=True), samples=loud)
    assert [n.op_type for n in after.graph.graph] == ["Mul", "MatMul"]
    np.testing.assert_array_equal(outputs(after, loud), outputs(before, loud))


def test_a_tensor_between_with_a_grid_of_its_own_is_respected() -> None:
    body = """g (float[1, 4, 8, 8] x) => (float[1, 5] y) {
      h = Conv(x, a) r = Relu(h) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm(f, c)
    }"""
    loud = np.where(np.arange(32) % 11 == 3, 60, 1).astype(np.float32)
    before = model(body, {"a": normal(32, 4, 1, 1) * loud.reshape(-1, 1, 1, 1), "c": normal(32, 5)})
    samples = [{"x": normal(1, 4, 8, 8, seed=n)} for n in range(16)]
    after = through(before, SmoothQuant(), samples=samples)
    assert after.history[-1].sites == 0
    assert reasons(after)["Gemm_4"] == "what GlobalAveragePool_2 (GlobalAveragePool) reads has a grid of its own"
    assert through(before, SmoothQuant(activations="token"), samples=samples).history[-1].sites == 1


def test_what_is_not_seen_is_left() -> None:
    assert set(reasons(through(model(NORM, WEIGHTS), SmoothQuant())).values()) == {"no calibration samples"}
    one = through(model(NORM, WEIGHTS), SmoothQuant(), samples=[{"x": SEEN[0]["x"][:1]}])
    assert "show too little" in reasons(one)["MatMul_1"]


def test_what_the_user_keeps_is_kept() -> None:
    after = through(model(NORM, WEIGHTS), SmoothQuant(keep=("Gemm_*",)), samples=SEEN)
    assert after.history[-1].sites == 0 and not reasons(after)


@pytest.mark.parametrize("wrong", [{"alpha": 1.5}, {"activations": "row"}, {"margin": 0.0}])
def test_parameters_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SmoothQuant(**wrong)  # type: ignore[arg-type]


@pytest.mark.slow
def test_minilm_loses_less_on_sentences_that_were_not_seen(minilm: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    tokenizer = tokenizers.Tokenizer.from_file(str(minilm.parent / "tokenizer.json"))
    tokenizer.no_padding()

    def feeds(text: str) -> Feeds:
        ids = np.array([tokenizer.encode(text).ids], np.int64)
        return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}

    lines = [
        line for line in (Path(__file__).parents[3] / "README.md").read_text("utf-8").splitlines() if len(line) > 60
    ]
    seen, unseen = [feeds(line) for line in lines[::2][:16]], [feeds(line) for line in lines[1::2][:16]]
    before = load(minilm)
    after = through(before, SmoothQuant(explicit=True), samples=seen)
    assert after.history[-1].sites >= 12
    wanted = [found[-1] for found in run(before, unseen)]

    def dynamic(of: Model) -> list[np.ndarray]:
        path = minilm.parent / "smooth_quant.onnx"
        of.write(path)
        quantize_dynamic(path, path, weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=["MatMul"])
        return [found[-1] for found in run(load(path), unseen)]

    lost, kept = (decibels(wanted, dynamic(of)) for of in (before, after))
    assert kept > lost + 10 * np.log10(1.5), "less than a third of the noise is gone"
