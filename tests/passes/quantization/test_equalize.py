"""equalize: channels have equal ranges afterwards, outputs stay bit for bit, and per-tensor int8 loses less."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from repairs import decibels, model, normal, reasons, round_to_int8, run, through, weight, zoo_samples

from polycast.load import load
from polycast.model import Model
from polycast.passes.fusion.fuse_conv_bn import FuseConvBn
from polycast.passes.graph.clean import Clean
from polycast.passes.graph.fold import Fold
from polycast.passes.quantization._channels import groups
from polycast.passes.quantization.equalize import Equalize


def uneven(*shape: int, axis: int = 0, seed: int = 0) -> np.ndarray:
    """Weights whose channels along ``axis`` differ by up to a million."""
    factor = np.exp2(np.random.default_rng(seed + 100).integers(-10, 10, shape[axis]))
    return normal(*shape, seed=seed) * factor.reshape([-1 if a == axis else 1 for a in range(len(shape))]).astype("f")


CONV = "g (float[1, 3, 8, 8] x) => (float[1, 5, 8, 8] y) { h = Conv(x, a, b) r = Relu(h) y = Conv(r, c) }"
CONV_WEIGHTS = {"a": uneven(4, 3, 1, 1), "b": normal(4, seed=3), "c": normal(5, 4, 1, 1, seed=1)}
IMAGE = {"x": normal(1, 3, 8, 8, seed=9)}

PAIRS = {
    "convolutions": (CONV, CONV_WEIGHTS),
    "depthwise": (
        """g (float[1, 3, 8, 8] x) => (float[1, 5, 6, 6] y) {
          h = Conv(x, a) r = LeakyRelu(h) d = Conv<group = 4>(r, k, b) p = PRelu(d, s) y = Conv(p, c)
        }""",
        CONV_WEIGHTS | {"k": uneven(4, 1, 3, 3, seed=2), "s": normal(4, 1, 1, seed=4)},
    ),
    "grouped and transposed": (
        """g (float[1, 3, 8, 8] x) => (float[1, 5, 9, 9] y) {
          h = Conv(x, a, b) t = ConvTranspose<group = 2>(h, k) r = Relu(t) y = Conv(r, c2)
        }""",
        CONV_WEIGHTS | {"k": uneven(4, 3, 2, 2, axis=1, seed=2), "c2": normal(5, 6, 1, 1, seed=1)},
    ),
    "flattened after a pool": (
        """g (float[1, 3, 8, 8] x) => (float[1, 5] y) {
          h = Conv(x, a, b) r = Relu(h) p = MaxPool<kernel_shape = [4, 4], strides = [4, 4]>(r)
          f = Flatten(p) y = Gemm<transB = 1, alpha = 0.5>(f, w)
        }""",
        CONV_WEIGHTS | {"w": normal(5, 16, seed=1)},
    ),
    "joined": (
        """g (float[1, 3, 8, 8] x) => (float[1, 5, 8, 8] y) {
          h = Conv(x, a, b) i = Conv(x, a2) s = Add(h, shift) j = Concat<axis = 1>(s, i) r = Relu(j) y = Conv(r, c2)
        }""",
        CONV_WEIGHTS | {"a2": uneven(2, 3, 1, 1, seed=5), "shift": normal(4, 1, 1), "c2": normal(5, 6, 1, 1, seed=1)},
    ),
    "gated": (
        """g (float[1, 6, 8] x) => (float[1, 6, 8] y) {
          g1 = MatMul(x, a) s = Sigmoid(g1) u = MatMul(x, b) m = Mul(s, u) y = MatMul(m, c)
        }""",
        {"a": normal(8, 16), "b": uneven(8, 16, axis=1), "c": normal(16, 8, seed=1)},
    ),
    "attention": (
        """g (float[1, 6, 8] x) => (float[1, 6, 8] y) {
          q = MatMul(x, a) k = MatMul(x, b) v = MatMul(x, b2)
          m = Attention<q_num_heads = 4, kv_num_heads = 2>(q, k, v) y = MatMul(m, c)
        }""",
        {"a": normal(8, 8), "b": normal(8, 4, seed=2), "b2": uneven(8, 4, axis=1), "c": normal(8, 8, seed=1)},
    ),
}  # fmt: skip


def feeds_of(before: Model) -> list[dict[str, np.ndarray]]:
    (port,) = before.signature.inputs
    assert port.shape is not None
    return [{"x": normal(*(int(d) for d in port.shape), seed=seed)} for seed in (9, 10)]


@pytest.mark.parametrize("pair", PAIRS)
def test_outputs_stay_bit_for_bit(pair: str) -> None:
    before = model(*PAIRS[pair])
    after = through(before, Equalize())
    assert after.history[-1].sites >= 1
    samples = feeds_of(before)
    np.testing.assert_array_equal(run(after, samples), run(before, samples))
    assert through(after, Equalize()).history[-1].sites == 0


@pytest.mark.parametrize("pair", PAIRS)
def test_what_is_made_and_what_reads_it_differ_by_two_at_most(pair: str) -> None:
    after = through(model(*PAIRS[pair]), Equalize())
    looked_at = 0
    for group in groups(after.draft()):
        if not group.makers:
            continue
        looked_at += 1
        made = np.zeros(group.channels)
        for taker in group.takers:
            held = taker.index >= 0
            made[held] = np.maximum(made[held], taker.slices.largest()[taker.index[held]])
        read = np.max([slices.largest() for slices in group.consumers], axis=0)
        ratio = group.tied(made) / group.tied(read)
        assert (ratio <= 2).all() and (ratio >= 0.5).all()
    assert looked_at


@settings(max_examples=25)
@given(st.lists(st.floats(-20, 20), min_size=4, max_size=4))
def test_any_spread_of_ranges_is_taken_in(exponents: list[float]) -> None:
    spread = np.exp2(np.array(exponents)).astype(np.float32).reshape(4, 1, 1, 1)
    before = model(CONV, CONV_WEIGHTS | {"a": CONV_WEIGHTS["a"] * spread})
    after = through(before, Equalize())
    np.testing.assert_array_equal(run(after, [IMAGE]), run(before, [IMAGE]))


def test_channels_that_are_dead_or_not_finite_stay() -> None:
    weights = {name: array.copy() for name, array in CONV_WEIGHTS.items()}
    weights["a"][0], weights["b"][0] = 0, 0
    weights["c"][:, 1] = 0
    weights["a"][2], weights["a"][3] = np.nan, 1000
    before = model(CONV, weights)
    after = through(before, Equalize())
    for name, axis in (("Conv_0", 0), ("Conv_2", 1)):
        np.testing.assert_array_equal(
            weight(after, name).take([0, 1, 2], axis), weight(before, name).take([0, 1, 2], axis)
        )
    assert (weight(after, "Conv_0")[3] != weight(before, "Conv_0")[3]).all()


def test_a_bias_counts_so_that_it_does_not_blow_up() -> None:
    """Most weights of the zoo's vww are around 1e-30, with biases around 1."""
    weights = CONV_WEIGHTS | {"a": CONV_WEIGHTS["a"] * np.float32(1e-30), "b": np.ones(4, np.float32)}
    after = through(model(CONV, weights), Equalize())
    assert np.abs(weight(after, "Conv_0", 2)).max() <= 2 * np.abs(weights["c"]).max() ** 0.5


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("h = Conv(x, a, b) r = Sigmoid(h) y = Conv(r, c)", "Sigmoid_1 (Sigmoid) does not keep a factor"),
        ("h = Conv(x, a, b) r = Clip(h, zero, six) y = Conv(r, c)", "Clip_1 (Clip) clips every channel at 6"),
        ("h = Conv(x, a, b) r = Relu(h) z = Conv(r, c) e = Exp(r) s = ReduceSum(e) y = Add(z, s)", "(Exp) reads r"),
        ("h = Conv(x, a, b) d = Exp(h) r = Relu(h) z = Conv(r, c) s = ReduceSum(d) y = Add(z, s)", "(Exp) reads h"),
        ("h = Conv(x, a, b) t = Conv(x, a) u = Mul(h, t) y = Conv(u, c)", "is read elsewhere too"),
    ],
)  # fmt: skip
def test_where_a_factor_cannot_pass_the_reason_is_given(body: str, reason: str) -> None:
    text = f"g (float[1, 3, 8, 8] x) => (float[1, 5, 8, 8] y) {{ {body} }}"
    limits = {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
    after = through(model(text, CONV_WEIGHTS | limits), Equalize())
    assert after.history[-1].sites == 0
    assert any(reason in found for found in reasons(after).values()), reasons(after)


def test_an_output_of_the_model_keeps_its_channels() -> None:
    both = CONV.replace("(float[1, 5, 8, 8] y)", "(float[1, 5, 8, 8] y, float[1, 4, 8, 8] r)")
    after = through(model(both, CONV_WEIGHTS), Equalize())
    assert after.history[-1].sites == 0
    assert reasons(after) == {"Conv_2": "r is an output of the model"}


@pytest.mark.parametrize("bounds", [{"low": 0.0, "high": 6.0}, {"low": -0.5, "high": 0.25}])
def test_a_clip_is_split_where_that_is_asked_for(bounds: dict[str, float]) -> None:
    body = (
        "g (float[1, 3, 8, 8] x) => (float[1, 5, 8, 8] y) { h = Conv(x, a, b) r = Clip(h, low, high) y = Conv(r, c) }"
    )
    before = model(body, CONV_WEIGHTS | {name: np.array(bound, np.float32) for name, bound in bounds.items()})
    after = through(before, Equalize(split_clip=True))
    assert [n.op_type for n in after.graph.graph] == ["Conv", "Max" if bounds["low"] else "Relu", "Min", "Conv"]
    np.testing.assert_array_equal(run(after, [IMAGE]), run(before, [IMAGE]))
    assert through(after, Equalize(split_clip=True)).history[-1].sites == 0


@pytest.mark.parametrize("keep", ["Conv_0", "Conv_2", "Conv"])
def test_what_the_user_keeps_is_kept(keep: str) -> None:
    after = through(model(CONV, CONV_WEIGHTS), Equalize(keep=(keep,)))
    assert after.history[-1].sites == 0 and not reasons(after)


def test_it_does_not_scale_what_repairs_compare_with() -> None:
    from polycast.passes.quantization.int8 import Int8

    after = through(model(CONV, CONV_WEIGHTS), Int8(only=("Conv_0",)), Equalize(), samples=[IMAGE])
    assert after.history[-1].sites == 0
    assert "a lossy pass came before" in next(iter(reasons(after).values()))


def test_weights_on_one_grid_lose_less(zoo: Callable[[str], Path]) -> None:
    """Depthwise weights in one int8 grid for all channels ruin MobileNetV1."""
    samples = zoo_samples(zoo("evals.py"), "mobilenet025")[:6]
    before = through(load(zoo("imagenet/mobilenet_v1_0.25_224.onnx")), Clean(), Fold(), Clean(), FuseConvBn())
    after = through(before, Equalize(split_clip=True))
    assert after.history[-1].sites == 27
    logits = next(n for n in before.graph.graph if n.op_type == "Softmax").inputs[0]
    assert logits is not None and logits.name is not None

    def outputs(of: Model) -> list[np.ndarray]:
        return [found[-1] for found in run(of, samples, str(logits.name))]

    wanted = outputs(before)
    np.testing.assert_array_equal(outputs(after), wanted)
    lost, kept = (decibels(wanted, outputs(in_int8(of))) for of in (before, after))
    assert lost < 0 < kept, "the noise was louder than the signal, and no longer is"


def in_int8(before: Model) -> Model:
    """Round each convolution's weight to int8, one scale for all of it."""
    draft = before.draft()
    for n in draft.graph:
        if n.op_type == "Conv":
            value = n.inputs[1]
            assert value is not None and value.const_value is not None
            value.const_value = ir.tensor(round_to_int8(value.const_value.numpy()))
    return Model("rounded", draft, before.origin)
