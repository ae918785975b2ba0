"""Sequential GPTQ: layers that make up for what was rounded before them, and graphs in which that takes care."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from given import Feeds, Given
from repairs import scorer
from weight_only import NBITS, model, normal, ops, reasons, run

from polycast.load import load
from polycast.model import Model, digest
from polycast.passbase import PassContext
from polycast.passes.quantization import _stages
from polycast.passes.quantization._beside import ORIGINAL, Beside, Sight
from polycast.passes.quantization._grid import Grid
from polycast.passes.quantization._plan_weights import LINEAR, layers
from polycast.passes.quantization._select import selected
from polycast.passes.quantization._stages import Reading, stages
from polycast.passes.quantization.quantize_weights import QuantizeWeights
from polycast.pipeline import apply
from polycast.recipe import Recipe
from polycast.targets import find

BLOCKS = """g (float[n, 64] x) => (float[n, 64] y) {
  a = MatMul(x, w0) r = Relu(a) b = Gemm<transB = 1, alpha = 0.5>(r, w1, c) h = Add(x, b)
  d = MatMul(h, w2) s = Relu(d) e = MatMul(s, w3) shape = Shape(h) f = Reshape(e, shape) y = Add(f, h)
}"""
WEIGHTS = {
    "w0": normal(64, 96) / 8,
    "w1": normal(64, 96, seed=1) / 4,
    "c": normal(64, seed=2),
    "w2": normal(64, 96, seed=3) / 8,
    "w3": normal(96, 64, seed=4) / 8,
}


def samples(count: int, seed: int, *shape: int) -> list[Feeds]:
    """Draw samples whose 64 channels depend on each other."""
    mixing = normal(64, 64, seed=7) * np.logspace(0, -1, 64, dtype=np.float32)
    rows = [normal(*(shape or (40,)), 64, seed=seed + number) for number in range(count)]
    return [{"x": each @ mixing / 8} for each in rows]


def rounded(before: Model, feeds: list[Feeds], **parameters: object) -> Model:
    return apply(QuantizeWeights(accuracy_level=0, **parameters), before, PassContext(NBITS, Given(feeds)))


def lost(before: Model, after: Model, feeds: list[Feeds]) -> float:
    """Give the squared error of the outputs over their squares."""
    pairs = [(run(before, each)[0].astype(np.float64), run(after, each)[0]) for each in feeds]
    return sum(float(np.square(y - z).sum()) for y, z in pairs) / sum(float(np.square(y).sum()) for y, _ in pairs)


def planned(of: Model) -> list[list[tuple[Reading, ...]]]:
    nodes = selected(of.graph, LINEAR, (), ())
    found = list(layers(nodes, Grid(), NBITS, False, lambda node, reason: None))
    return [[each.readings for each in stage] for stage in stages(of.graph, found)]


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_errors_of_the_layers_before_are_made_up_for(bits: int) -> None:
    before = model(BLOCKS, WEIGHTS)
    seen, unseen = samples(20, 100), samples(20, 500)
    alone, together = (rounded(before, seen, bits=bits, sequential=each) for each in (False, True))
    assert together.history[-1].sites == 4 and ops(together)["MatMulNBits"] == 4
    assert lost(before, together, unseen) < 0.85 * lost(before, alone, unseen)


def test_the_same_again() -> None:
    before = model(BLOCKS, WEIGHTS)
    first, second = (rounded(before, samples(6, 100)) for _ in range(2))
    assert digest(first.graph) == digest(second.graph)


def test_stages_are_what_does_not_read_each_other() -> None:
    first, second, third, fourth = planned(model(BLOCKS, WEIGHTS))
    assert first == [(Reading("x", 64, beside=False),)]
    assert second == [(Reading("r", 96, beside=True, wanted=("h",), n=64, gain=1.0),)]
    assert third == [(Reading("h", 64, beside=True),)]
    assert fourth == [(Reading("s", 96, beside=True, wanted=("y",), n=64, gain=1.0),)]


def test_layers_that_read_the_same_share_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    body = """g (float[n, 64] x) => (float[n, 64] q, float[n, 64] k, float[n, 64] v) {
      h = MatMul(x, w) q = MatMul(h, a) k = MatMul(h, b) v = MatMul(h, c)
    }"""
    before = model(body, {name: normal(64, 64, seed=seed) for seed, name in enumerate("wabc")})
    assert [len(stage) for stage in planned(before)] == [1, 3]
    assert len({reading for readings in planned(before)[1] for reading in readings}) == 1
    monkeypatch.setattr(_stages, "STAGES", 1)
    assert [len(stage) for stage in planned(before)] == [4]
    assert rounded(before, samples(4, 100)).history[-1].sites == 4


def test_terms_of_a_fused_sum_and_a_bias_on_the_way() -> None:
    body = """g (float[n, 5, 64] x) => (float[n, 5, 64] y, float[n, 5, 64] z) {
      a = MatMul(x, w0) b = MatMul(a, w1) biased = Add(c, b)
      y = com.microsoft.SkipSimplifiedLayerNormalization(x, biased, scale)
      d = MatMul(y, w1) z = Mul(d, y)
    }"""
    constants = {"w0": WEIGHTS["w0"], "w1": WEIGHTS["w3"], "c": WEIGHTS["c"], "scale": normal(64)}
    before = model(body.replace("d = MatMul(y, w1) ", "d = MatMul(y, w2) "), constants | {"w2": normal(64, 64)})
    before.graph.opset_imports["com.microsoft"] = 1
    _, second, third = planned(before)
    assert second == [(Reading("a", 96, beside=True, wanted=("x", "biased"), n=64),)]
    assert third == [(Reading("y", 64, beside=True),)]
    seen = samples(8, 100, 2, 5)
    assert lost(before, rounded(before, seen), seen) < lost(before, rounded(before, seen, method="mse"), seen)


def test_a_weight_with_two_readers_is_rounded_for_both() -> None:
    body = "g (float[n, 64] x) => (float[n, 64] y) { a = MatMul(x, w) t = Tanh(a) y = MatMul(t, w) }"
    before = model(body, {"w": normal(64, 64) / 8})
    seen, unseen = samples(20, 100), samples(20, 500)
    after = rounded(before, seen, bits=3)
    assert after.history[-1].sites == 1 and ops(after)["MatMulNBits"] == 2
    assert lost(before, after, unseen) < 0.8 * lost(before, rounded(before, seen, bits=3, method="mse"), unseen)


def test_branches_are_rounded_for_the_samples_that_take_them() -> None:
    body = """g (bool c, float[n, 64] x) => (float[n, 64] y) {
      h = MatMul(x, w)
      y = If (c) <
        then_branch = t () => (float[n, 64] a) { a = MatMul(h, v) },
        else_branch = e () => (float[n, 64] b) { b = MatMul(h, u) }
      >
    }"""
    before = model(body, {name: normal(64, 64, seed=seed) / 8 for seed, name in enumerate("wvu")})
    taken = [each | {"c": np.array(True)} for each in samples(20, 100)]
    unseen = [each | {"c": np.array(True)} for each in samples(20, 500)]
    after, plain = rounded(before, taken, bits=3), rounded(before, taken, bits=3, method="mse")
    assert after.history[-1].sites == 3
    assert lost(before, after, unseen) < 0.8 * lost(before, plain, unseen)
    other = [each | {"c": np.array(False)} for each in unseen]  # no sample reached it: rounded by itself
    assert lost(before, after, other) < 1.5 * lost(before, plain, other)


def test_a_sum_that_has_more_rows_is_not_aimed_at() -> None:
    body = """g (float[n, 64] x, float[m, n, 64] more) => (float[m, n, 64] y) {
      a = MatMul(x, w0) r = Relu(a) b = MatMul(r, w3) y = Add(b, more)
    }"""
    before = model(body, WEIGHTS)
    seen = [each | {"more": normal(3, 40, 64, seed=9)} for each in samples(6, 100)]
    assert planned(before)[1] == [(Reading("r", 96, beside=True, wanted=("y",), n=64),)]
    after = rounded(before, seen, bits=2)
    assert after.history[-1].sites == 2 and reasons(after) == {}
    assert lost(before, after, seen) < lost(before, rounded(before, seen, bits=2, method="mse"), seen)


def test_one_sample_is_enough() -> None:
    before = model(BLOCKS, WEIGHTS)
    seen = samples(1, 100, 300)
    assert lost(before, rounded(before, seen), seen) < lost(before, rounded(before, seen, method="mse"), seen)


def test_values_that_are_not_finite_leave_finite_weights() -> None:
    seen = samples(6, 100)
    seen[2]["x"][3, 5] = np.inf
    seen[3]["x"][4, 6] = np.nan
    after = rounded(model(BLOCKS, WEIGHTS), seen)
    assert after.history[-1].sites == 4
    assert all(np.isfinite(each).all() for each in run(after, samples(1, 500)[0]))


def test_float16_models() -> None:
    body = (
        "g (float16[n, 64] x) => (float16[n, 64] y) { a = MatMul(x, w0) r = Relu(a) b = MatMul(r, w3) y = Add(b, x) }"
    )
    before = model(body, {name: WEIGHTS[name].astype(np.float16) for name in ("w0", "w3")})
    seen = [{"x": each["x"].astype(np.float16)} for each in samples(8, 100)]
    gain = lost(before, rounded(before, seen, bits=3), seen) / lost(
        before, rounded(before, seen, bits=3, method="mse"), seen
    )
    assert gain < 0.7


def test_both_graphs_stand_side_by_side_and_share_their_weights() -> None:
    before = model(BLOCKS, WEIGHTS)
    nodes = [node for node in before.graph.graph if node.op_type in LINEAR]
    (layer, *_) = layers(nodes, Grid(), NBITS, False, lambda node, reason: None)
    kept = before.digest
    beside = Beside.of(before.graph, nodes)
    assert set(beside.both.graph.initializers) == set(before.graph.graph.initializers)
    changed = 2 * WEIGHTS["w0"].T
    beside.exchange(nodes[0], layer.matrix, changed)
    sight = Sight(beside)
    name = sight.joined([sight.rows("a", 96), sight.difference("a", 96)])
    both = Model("both", sight.only_joined(), before.origin)
    x = samples(1, 3)[0]["x"]
    (found,) = run(both, {"x": x})
    assert [value.name for value in both.graph.graph.outputs] == [name]
    product = x @ WEIGHTS["w0"]
    np.testing.assert_array_equal(found, np.concatenate([2 * product, product - 2 * product], axis=1))
    assert digest(before.graph) == kept
    assert sum(str(node.name).startswith(ORIGINAL) for node in beside.both.graph) == len(before.graph.graph)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the scorer leaves its files to be closed by themselves
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_language_model_keeps_its_perplexity(zoo: Callable[[str], Path]) -> None:
    bits, most = 4, 1.055
    pytest.importorskip("PIL")
    _, score, calibration = scorer(zoo("evals.py")).SUB["stories260K"]
    cpu = find("cpu")
    recipe = Recipe.of(cpu, "fp32").pipeline
    before = recipe.run(load(zoo("lm/stories260K.onnx")), PassContext(cpu.features))
    after = rounded(before, calibration(), bits=bits)
    assert after.history[-1].sites == 36
    bits_each = (
        8
        * sum(
            value.const_value.nbytes
            for value in after.graph.graph.initializers.values()
            if value.name not in before.graph.graph.initializers and value.const_value is not None
        )
        / sum(w.size for w in weights_of(before))
    )
    assert bits_each <= bits + 0.6
    perplexities = [score(lambda feeds, of=of: run(of, feeds))["ppl"] for of in (before, after)]
    assert perplexities[1] <= most * perplexities[0]


def weights_of(of: Model) -> list[np.ndarray]:
    """Give the weights of all MatMuls."""
    tensors = (ir.convenience.get_const_tensor(n.inputs[1]) for n in of.graph.graph if n.op_type == "MatMul")
    return [tensor.numpy() for tensor in tensors if tensor is not None]
