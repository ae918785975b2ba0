"""adaround: outputs come closer on samples that it did not see, by moves of one step, and never at a layer's cost."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from repairs import FEATURES, Feeds, Given, decibels, model, node, normal, reasons, run, through, zoo_samples

from polycast.load import load
from polycast.model import Model
from polycast.passbase import PassContext
from polycast.passes.fusion.fuse_conv_bn import FuseConvBn
from polycast.passes.graph.clean import Clean
from polycast.passes.graph.fold import Fold
from polycast.passes.quantization._qdq import stored
from polycast.passes.quantization._rerounding import Layer, reround
from polycast.passes.quantization.adaround import Adaround
from polycast.passes.quantization.int8 import Int8
from polycast.pipeline import apply


def layer_of(seed: int, inputs: int = 6, outputs: int = 3, rows: int = 40) -> Layer:
    """A layer whose inputs depend on one another, on a grid of 4 bits."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((rows, 2)) @ rng.standard_normal((2, inputs)))[None] + 0.1 * rng.standard_normal(
        (1, rows, inputs)
    )
    weight = rng.standard_normal((1, outputs, inputs))
    scale = np.abs(weight).max(axis=2, keepdims=True) / 7
    return Layer(x, weight, np.round(weight / scale), scale)


@settings(max_examples=30)
@given(st.integers(0, 1000))
def test_each_code_is_a_neighbour_of_its_weight_and_the_error_does_not_grow(seed: int) -> None:
    layer = layer_of(seed)
    codes = reround(layer, 7)
    assert (np.abs(codes - layer.weight / layer.scale) < 1).all() and (np.abs(codes) <= 7).all()
    np.testing.assert_array_equal(codes, np.round(codes))
    # What is brought down is the error with a hundredth of the inputs' mean square on every weight: bounded by both.
    damping = 0.01 * np.square(layer.x).sum() / layer.x.shape[2]
    power = np.square(layer.x @ layer.weight.swapaxes(1, 2)).sum()

    def objective(of: np.ndarray) -> float:
        return layer.error(of) * power + damping * np.square(of * layer.scale - layer.weight).sum()

    assert objective(codes) <= objective(layer.codes) * (1 + 1e-9)


def test_it_comes_close_to_the_best_of_all_choices() -> None:
    gained = []
    for seed in range(20):
        layer = layer_of(seed, outputs=1)
        low = np.floor(layer.weight / layer.scale)
        every = [low + np.array(up).reshape(low.shape) for up in itertools.product((0, 1), repeat=low.size)]
        best = min(layer.error(codes) for codes in every if np.abs(codes).max() <= 7)
        nearest, found = layer.error(layer.codes), layer.error(reround(layer, 7))
        gained.append((nearest - found) / (nearest - best) if nearest > best else 1.0)
    assert np.mean(gained) > 0.5, "most of what rounding well can gain is gained"


# Inputs that depend on one another: rounding each weight on its own is far from the best there.
MIX = normal(3, 8, seed=7)
PASSED = {
    "Conv": (
        "g (float[1, 8, 6, 6] x) => (float[1, 4, 3, 3] y) { y = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w, b) }",
        {"w": normal(4, 8, 3, 3), "b": normal(4, seed=1)},
    ),
    "grouped Conv": (
        "g (float[1, 8, 6, 6] x) => (float[1, 4, 4, 4] y) { y = Conv<group = 2>(x, w) }",
        {"w": normal(4, 4, 3, 3)},
    ),
    "Gemm": (
        "g (float[n, 8] x) => (float[n, 4] y) { y = Gemm<alpha = 0.5>(x, w, b) }",
        {"w": normal(8, 4), "b": normal(4)},
    ),
    "Gemm transB": ("g (float[n, 8] x) => (float[n, 4] y) { y = Gemm<transB = 1>(x, w) }", {"w": normal(4, 8)}),
    "MatMul": ("g (float[1, n, 8] x) => (float[1, n, 4] y) { y = MatMul(x, w) }", {"w": normal(8, 4)}),
}  # fmt: skip


def samples_for(before: Model, first: int, count: int = 24) -> list[Feeds]:
    """Samples whose 8 channels are mixed from 3."""
    shape = before.signature.inputs[0].shape
    assert shape is not None
    dims = [d if isinstance(d, int) else 12 for d in shape]
    axis = 1 if len(dims) == 4 else len(dims) - 1

    def one(seed: int) -> np.ndarray:
        dims_of_three = [3 if at == axis else d for at, d in enumerate(dims)]
        mixed = np.tensordot(normal(*dims_of_three, seed=seed), MIX, (axis, 0))
        return np.ascontiguousarray(np.moveaxis(mixed, -1, axis)).astype(np.float32)

    return [{"x": one(seed)} for seed in range(first, first + count)]


def adaround(original: Model, after: Model, samples: Sequence[Feeds], **parameters: object) -> Model:
    context = PassContext(FEATURES, calibration=Given(samples) if samples else None, original=original.graph)
    return apply(Adaround(**parameters), after, context)


@pytest.mark.parametrize("kind", PASSED)
def test_outputs_come_closer_on_samples_that_were_not_seen(kind: str) -> None:
    before = model(*PASSED[kind])
    seen, unseen = samples_for(before, 0), samples_for(before, 500)
    plain = through(before, Int8(least_db=0.0), samples=seen)
    after = adaround(before, plain, seen)
    assert after.history[-1].sites == 1, reasons(after)
    wanted, lost, kept = ([found[0] for found in run(of, unseen)] for of in (before, plain, after))
    assert decibels(wanted, kept) > decibels(wanted, lost)
    was, now = (stored(node(of, before.graph.graph[0].name or ""), 1) for of in (plain, after))
    assert was is not None and now is not None and now.codes.dtype == np.int8
    assert np.abs(now.codes.astype(int) - was.codes).max() == 1
    np.testing.assert_array_equal(now.scale, was.scale)
    assert adaround(before, after, seen).history[-1].sites == 0
    assert after.signature == before.signature


def test_a_layer_that_would_not_gain_keeps_its_weights_and_gives_the_figures() -> None:
    """What does not depend on one another is rounded best weight by weight; a few rows show else by chance."""
    before = model("g (float[n, 16] x) => (float[n, 4] y) { y = MatMul(x, w) }", {"w": normal(16, 4)})
    seen = [{"x": normal(3, 16, seed=seed)} for seed in range(4)]
    after = adaround(before, through(before, Int8(least_db=0.0), samples=seen), seen)
    assert after.history[-1].sites == 0
    assert "on rows held out from" in reasons(after)["MatMul_0"]


def test_what_cannot_be_rounded_anew_says_why() -> None:
    body = "g (float[1, 4, 6, 6] x) => (float[1, 4, 7, 7] y) { y = ConvTranspose(x, w) }"
    before = model(body, {"w": normal(4, 4, 2, 2)})
    samples = [{"x": normal(1, 4, 6, 6, seed=seed)} for seed in range(4)]
    plain = through(before, Int8(), samples=samples)
    assert reasons(adaround(before, plain, samples)) == {
        "ConvTranspose_0": "ConvTranspose has no int8 weight of its own"
    }
    before = model(*PASSED["Gemm"])
    samples = samples_for(before, 0)
    plain = through(before, Int8(least_db=0.0), samples=samples)
    assert reasons(adaround(before, plain, [])) == {"Gemm_0": "no calibration samples"}
    kept = adaround(before, plain, samples, keep=("Gemm",))
    assert kept.history[-1].sites == 0 and not reasons(kept)


def test_a_float_model_has_nothing_to_round() -> None:
    before = model(*PASSED["Gemm"])
    assert adaround(before, before, samples_for(before, 0)).history[-1].sites == 0
    assert apply(Adaround(), before, PassContext(FEATURES)).history[-1].sites == 0


@pytest.mark.slow
def test_mobilenet_gains_on_images_that_were_not_seen(zoo: Callable[[str], Path]) -> None:
    samples = zoo_samples(zoo("evals.py"), "mobilenet025")
    before = through(load(zoo("imagenet/mobilenet_v1_0.25_224.onnx")), Clean(), Fold(), Clean(), FuseConvBn())
    logits = next(n for n in before.graph.graph if n.op_type == "Softmax").inputs[0]
    assert logits is not None and logits.name is not None
    plain = through(before, Int8(), samples=samples[:32])
    after = adaround(before, plain, samples[:32])
    wanted, lost, kept = ([f[-1] for f in run(of, samples[32:], str(logits.name))] for of in (before, plain, after))
    assert decibels(wanted, kept) > decibels(wanted, lost) + 10 * np.log10(2), "half of the noise"
