"""correct_bias: the means that rounding took come back, on samples that it did not see, wherever the bias is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from repairs import FEATURES, Feeds, Given, decibels, model, node, normal, reasons, run, through, zoo_samples

from polycast.load import load
from polycast.model import Model
from polycast.passbase import PassContext
from polycast.passes.fusion.fuse_conv_bn import FuseConvBn
from polycast.passes.graph.clean import Clean
from polycast.passes.graph.fold import Fold
from polycast.passes.quantization._qdq import stored
from polycast.passes.quantization.correct_bias import CorrectBias
from polycast.passes.quantization.int8 import Int8
from polycast.passes.quantization.int8_dynamic import Int8Dynamic
from polycast.pipeline import apply

TWO = """g (float[n, 4, 6, 6] x) => (float[n, 3, 6, 6] y) {
  h = Conv<pads = [1, 1, 1, 1]>(x, a, b) r = Relu(h) y = Conv(r, c)
}"""
# One large weight in each output channel makes the steps coarse, so that rounding the others moves the means.
A, C = normal(8, 4, 3, 3) / 30, normal(3, 8, 1, 1, seed=1) / 10
A[:, 0, 1, 1], C[:, 0] = 8, 6
WEIGHTS = {"a": A, "b": normal(8, seed=2), "c": C}


def images(first: int, count: int) -> list[Feeds]:
    """Images with a mean, as those of a camera have."""
    return [{"x": np.abs(normal(1, 4, 6, 6, seed=seed)) + 1} for seed in range(first, first + count)]


SEEN, UNSEEN = images(0, 24), images(1000, 24)


def quantized() -> tuple[Model, Model]:
    """Both layers in float and in int8."""
    before = model(TWO, WEIGHTS)
    return before, through(before, Int8(), samples=SEEN)


def correct(original: Model, after: Model, samples: Sequence[Feeds] = SEEN, **parameters: object) -> Model:
    context = PassContext(FEATURES, calibration=Given(samples) if samples else None, original=original.graph)
    return apply(CorrectBias(**parameters), after, context)


def gaps(before: Model, after: Model, name: str) -> np.ndarray:
    """By how much the channel means of ``name`` differ on samples that no pass has seen."""

    def means(of: Model) -> np.ndarray:
        return np.mean([found[-1].mean(axis=(0, 2, 3)) for found in run(of, UNSEEN, name)], axis=0)

    return np.abs(means(before) - means(after))


@pytest.mark.parametrize("looks", [0, 1, 4])
def test_means_come_back_on_samples_that_were_not_seen(looks: int) -> None:
    before, plain = quantized()
    after = correct(before, plain, looks=looks)
    assert after.history[-1].sites == 2
    for name in ("h", "y"):
        lost, kept = gaps(before, plain, name), gaps(before, after, name)
        assert kept.mean() < lost.mean() / 2, name
    wanted, lost, kept = ([found[0] for found in run(of, UNSEEN)] for of in (before, plain, after))
    assert decibels(wanted, kept) > decibels(wanted, lost)


def test_it_goes_into_the_codes_of_the_bias() -> None:
    before, plain = quantized()
    after = correct(before, plain)
    assert [n.op_type for n in after.graph.graph if n.op_type != "DequantizeLinear"] == [
        n.op_type for n in plain.graph.graph if n.op_type != "DequantizeLinear"
    ]
    was, now = (stored(node(of, "Conv_0"), 2) for of in (plain, after))
    assert was is not None and now is not None
    assert now.codes.dtype == np.int32 and (now.codes != was.codes).any()
    np.testing.assert_array_equal(now.scale, was.scale)
    # The second Conv had no bias: it has one now, at the scale of its products.
    new, weight = stored(node(after, "Conv_2"), 2), stored(node(after, "Conv_2"), 1)
    assert new is not None and weight is not None and new.codes.dtype == np.int32
    (grid,) = {float(n.inputs[1].const_value.numpy()) for n in [node(after, "Conv_2").inputs[0].producer()]}
    np.testing.assert_allclose(new.scale, weight.scale * grid, rtol=np.finfo(np.float32).eps)


def test_second_run_finds_nothing() -> None:
    before, plain = quantized()
    once = correct(before, plain)
    assert correct(before, once).history[-1].sites == 0


MATMUL = "g (float[n, 16] x) => (float[n, 5] y) { h = MatMul(x, w) s = Add(h, b) y = Sigmoid(s) }"
DENSE = {"w": normal(16, 5) / 10, "b": normal(5, seed=1)}
DENSE["w"][0] = 9
# What the large weights read is small, so that they do not drown what the others lack.
LOUDNESS = np.where(np.arange(16) == 0, 0.1, 1).astype(np.float32)
ROWS = [{"x": (np.abs(normal(8, 16, seed=seed)) + 1) * LOUDNESS} for seed in range(24)]


@pytest.mark.parametrize("quantize", [Int8(), Int8Dynamic()], ids=["static", "dynamic"])
def test_a_product_without_a_bias_gets_an_add_under_its_name(quantize: Int8 | Int8Dynamic) -> None:
    before = model(MATMUL, DENSE)
    context = PassContext(FEATURES | {"integer-matmul"}, calibration=Given(ROWS), original=before.graph)
    plain = apply(quantize, before, context)
    after = apply(CorrectBias(), plain, context)
    assert after.history[-1].sites == 1
    made = {v.name: n for n in after.graph.graph for v in n.outputs}
    assert made["h"].op_type == "Add"

    def missing(of: Model) -> np.ndarray:
        pairs = zip(run(before, ROWS, "h"), run(of, ROWS, "h"), strict=True)
        return np.abs(np.mean([wanted[-1].mean(axis=0) - found[-1].mean(axis=0) for wanted, found in pairs], axis=0))

    assert missing(after).mean() < missing(plain).mean() / 10
    assert apply(CorrectBias(), after, context).history[-1].sites == 0


def test_an_add_is_not_worth_a_small_gap() -> None:
    whole = np.round(normal(16, 5) * 30)
    whole[0] = 127
    before = model(MATMUL, DENSE | {"w": whole + np.float32(0.02)})
    context = PassContext(FEATURES | {"integer-matmul"}, calibration=Given(ROWS), original=before.graph)
    after = apply(CorrectBias(), apply(Int8Dynamic(), before, context), context)
    assert after.history[-1].sites == 0
    (reason,) = reasons(after).values()
    assert reason.startswith("it has no bias, and what its channels lack is 0.") and reason.endswith("not worth an Add")


def test_an_output_of_the_model_keeps_its_name() -> None:
    before = model("g (float[n, 16] x) => (float[n, 5] y) { y = MatMul(x, w) }", {"w": DENSE["w"]})
    context = PassContext(FEATURES | {"integer-matmul"}, calibration=Given(ROWS), original=before.graph)
    after = apply(CorrectBias(), apply(Int8Dynamic(), before, context), context)
    assert after.history[-1].sites == 1 and after.signature == before.signature


def test_a_gap_that_is_not_sure_is_left() -> None:
    """Symmetric inputs: whatever rounding does, the means stay."""
    before = model(TWO, WEIGHTS | {"b": np.zeros(8, np.float32)})
    even = [{"x": sign * feeds["x"]} for feeds in SEEN[:8] for sign in (1, -1)]
    plain = through(before, Int8(only=("Conv_0",), symmetric=True), samples=even)
    after = correct(before, plain, [even[n] for n in (0, 2, 4, 6, 1, 3, 5, 7)])
    assert after.history[-1].sites == 0
    assert reasons(after) == {"Conv_0": "no channel lacks more than two standard errors"}


@pytest.mark.parametrize(
    ("samples", "reason"),
    [([], "no calibration samples"), (SEEN[:1], "one calibration sample does not tell how sure a mean is")],
)
def test_too_few_samples_are_a_reason(samples: list[Feeds], reason: str) -> None:
    after = correct(*quantized(), samples)
    assert after.history[-1].sites == 0 and set(reasons(after).values()) == {reason}


def test_what_the_user_keeps_is_kept() -> None:
    after = correct(*quantized(), keep=("Conv_2",))
    assert after.history[-1].sites == 1
    assert len(node(after, "Conv_2").inputs) == 2


def test_a_float_model_has_nothing_to_correct() -> None:
    before = model(TWO, WEIGHTS)
    assert correct(before, before).history[-1].sites == 0
    assert apply(CorrectBias(), before, PassContext(calibration=Given(SEEN))).history[-1].sites == 0


def test_looks_are_checked() -> None:
    with pytest.raises(ValueError, match="looks"):
        CorrectBias(looks=-1)


@pytest.mark.slow
def test_mobilenet_gains_on_images_that_were_not_seen(zoo: Callable[[str], Path]) -> None:
    samples = zoo_samples(zoo("evals.py"), "mobilenet025")
    before = through(load(zoo("imagenet/mobilenet_v1_0.25_224.onnx")), Clean(), Fold(), Clean(), FuseConvBn())
    logits = next(n for n in before.graph.graph if n.op_type == "Softmax").inputs[0]
    plain = through(before, Int8(), samples=samples[:32])
    after = correct(before, plain, samples[:32])

    def outputs(of: Model) -> list[np.ndarray]:
        assert isinstance(logits, ir.Value) and logits.name is not None
        return [found[-1] for found in run(of, samples[32:], logits.name)]

    wanted = outputs(before)
    assert decibels(wanted, outputs(after)) > decibels(wanted, outputs(plain)) + 10 * np.log10(2), "half of the noise"
