"""pad_channels: which convolutions get channels of zeros, that outputs stay, and what integer kernels gain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from polycast.load import load
from polycast.model import Model, Origin
from polycast.passbase import PassContext
from polycast.passes.quantization.pad_channels import PadChannels
from polycast.pipeline import apply

EPS = float(np.finfo(np.float32).eps)


def model(body: str, weights: Mapping[str, np.ndarray]) -> Model:
    proto = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 23]>\n' + body)
    proto.graph.initializer.extend(numpy_helper.from_array(w, name) for name, w in weights.items())
    for number, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}_{number}"
    return Model("given", ir.from_proto(onnx.shape_inference.infer_shapes(proto)), Origin("", ""))


def pad(before: Model) -> Model:
    context = PassContext(frozenset({"conv-blocks"}))
    after = apply(PadChannels(), before, context)
    assert apply(PadChannels(), after, context).history[-1].sites == 0
    return after


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def weights(of: Model) -> dict[str | None, tuple[int, ...]]:
    return {n.name: n.inputs[1].shape.numpy() for n in of.graph.graph if n.op_type == "Conv"}


def reasons(after: Model) -> dict[str, str]:
    return {skip.node: skip.reason for skip in after.history[-1].skips}


def agree(before: Model, after: Model, x: np.ndarray, terms: int) -> None:
    """Sums over ``terms`` products, and as many zeros, in another order."""
    assert before.signature == after.signature
    outputs = (ReferenceEvaluator(ir.to_proto(each.graph)).run(None, {"x": x}) for each in (before, after))
    for want, got in zip(*outputs, strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=0, atol=terms * EPS * np.abs(want).max())


SEPARABLE = """g (float[n, 16, 9, 9] x) => (float[n, 5, 4, 4] y) {
  a = Conv(x, w1, b1)
  r = Clip(a, zero, six)
  d = Conv<group = 24, pads = [1, 1, 1, 1], strides = [2, 2]>(r, w2, b2)
  m = MaxPool<kernel_shape = [2, 2]>(d)
  y = Conv(m, w3)
}"""
LAYERS = {
    "w1": normal(24, 16, 1, 1),
    "b1": normal(24),
    "w2": normal(24, 1, 3, 3, seed=1),
    "b2": normal(24, seed=2),
    "w3": normal(5, 24, 1, 1, seed=3),
    "zero": np.array(0, np.float32),
    "six": np.array(6, np.float32),
}


def test_a_depthwise_convolution_takes_its_neighbours_along() -> None:
    before = model(SEPARABLE, LAYERS)
    after = pad(before)
    assert after.history[-1].sites == 3 and not after.history[-1].skips
    assert weights(after) == {"Conv_0": (32, 16, 1, 1), "Conv_2": (32, 1, 3, 3), "Conv_4": (5, 32, 1, 1)}
    assert [n.op_type for n in after.graph.graph] == [n.op_type for n in before.graph.graph]
    shapes = {v.name: list(v.shape)[1] for n in after.graph.graph for v in n.outputs}
    assert shapes == {"a": 32, "r": 32, "d": 32, "m": 32, "y": 5}
    agree(before, after, normal(2, 16, 9, 9, seed=4), 24 * 9 * 16)
    onnx.checker.check_model(ir.to_proto(after.graph), full_check=True)


def test_an_input_is_padded_and_an_output_is_cut_back() -> None:
    body = """g (float[n, 3, h, w] x) => (float[n, 9, u, v] y) {
      a = Conv(x, w1)
      y = Conv<pads = [1, 1, 1, 1]>(a, w2)
    }"""
    before = model(body, {"w1": normal(16, 3, 3, 3), "w2": normal(9, 16, 3, 3)})
    after = pad(before)
    assert [n.op_type for n in after.graph.graph] == ["Pad", "Conv", "Conv", "Slice"]
    assert weights(after) == {"Conv_0": (16, 4, 3, 3), "Conv_1": (16, 16, 3, 3)}
    agree(before, after, normal(2, 3, 8, 7, seed=4), 27 * 16 * 9)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (
            """g (float[n, 8, 8, 3] x) => (float[n, 16, 6, 6] y) {
              t = Transpose<perm = [0, 3, 1, 2]>(x)
              y = Conv(t, w)
            }""",
            "3 channels are not 4: Transpose gives them",
        ),
        (
            """g (float[n, 16, 8, 8] x) => (float[n, 24, 6, 6] y, float[n, 24, 6, 6] z) {
              c = Conv(x, v)
              z = Relu(c)
              y = Exp(c)
            }""",
            "24 channels are not 32: 2 values would have to be cut back",
        ),
    ],
)
def test_what_costs_more_than_it_gains_is_left(body: str, why: str) -> None:
    tensors = {"w": normal(16, 3, 3, 3), "v": normal(24, 16, 3, 3)}
    after = pad(model(body, {name: w for name, w in tensors.items() if f", {name})" in body}))
    assert after.history[-1].sites == 0 and list(reasons(after).values()) == [why]


def test_without_such_kernels_every_convolution_says_so() -> None:
    after = apply(PadChannels(), model(SEPARABLE, LAYERS), PassContext())
    assert set(reasons(after).values()) == {
        "24 channels are not 32: the target has no kernels that take channels in blocks"
    }


@pytest.mark.parametrize(("channels", "given"), [(16, 16), (1, 16), (48, 32)])
def test_whole_blocks_and_single_positions_are_left(channels: int, given: int) -> None:
    body = f"""g (float[n, {channels}, 8, 8] x) => (float[n, {given}, 8, 8] y) {{ y = Conv(x, w) }}"""
    after = pad(model(body, {"w": normal(given, channels, 1, 1)}))
    assert after.history[-1].sites == 0 and not after.history[-1].skips


def test_a_weight_of_two_convolutions_grows_for_the_one_that_needs_it() -> None:
    body = """g (float[n, 8, 9, 9] x) => (float[n, 8, 7, 7] y, float[n, 8, 9, 9] z) {
      a = Conv(x, w)
      y = Conv<group = 8>(a, d)
      z = Conv(x, w)
    }"""
    before = model(body, {"w": normal(8, 8, 1, 1), "d": normal(8, 1, 3, 3)})
    after = pad(before)
    assert weights(after) == {"Conv_0": (16, 8, 1, 1), "Conv_1": (16, 1, 3, 3), "Conv_2": (8, 8, 1, 1)}
    agree(before, after, normal(2, 8, 9, 9), 72)


def test_super_resolution_gives_the_same_picture(zoo: Callable[[str], Path]) -> None:
    before = load(zoo("superres/sr_core.onnx"))
    after = pad(before)
    assert list(weights(after).values()) == [(64, 4, 5, 5), (64, 64, 3, 3), (32, 64, 3, 3), (16, 32, 3, 3)]
    x = np.random.default_rng(0).random((1, 1, 24, 24), np.float32)
    protos = (ir.to_proto(ir.external_data.load_to_model(each.graph.clone())) for each in (before, after))
    want, got = (ReferenceEvaluator(proto).run(None, {"input": x})[0] for proto in protos)
    np.testing.assert_allclose(got, want, rtol=0, atol=64 * 9 * 4 * EPS)
