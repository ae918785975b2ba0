"""fuse_conv_bn: batch normalisation and constant scales and shifts fold into the weight before them, or say why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import models
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from fusing import fuse
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from polycast.load import load
from polycast.passbase import PassContext
from polycast.passes.fusion.fuse_conv_bn import FuseConvBn

BN = "float[4] g = {1, -2, 0, 0.5}, float[4] h = {0, 1, 2, -1}, float[4] m = {0, 1, -1, 2}, float[4] v = {1, 2, 0.5, 0}"
W = "float[4, 2, 1, 1] w = {1, 2, 3, 4, -1, -2, -3, -4}"
NORM = "y = BatchNormalization(c, g, h, m, v)"


def graph(body: str, weights: str = "") -> str:
    return f"g (float[a, 2, 3, 3] x) => (float[a, 4, 3, 3] y) <{W}, {BN}{weights}> {{ {body} }}"


def test_folds_into_a_convolution_without_bias() -> None:
    fused = fuse(FuseConvBn(), graph(f"c = Conv(x, w) {NORM}"))
    assert (fused.sites, fused.ops) == (1, ["Conv"])
    assert fused.node("Conv").outputs[0].name == "y"
    assert set(fused.graph.graph.initializers) == {"w", "y.bias"}


def test_folds_into_weight_and_bias_under_their_names() -> None:
    fused = fuse(FuseConvBn(), graph(f"c = Conv(x, w, b) {NORM}", ", float[4] b = {1, 2, 3, 4}"))
    assert set(fused.graph.graph.initializers) == {"w", "b"}


def test_epsilon_counts() -> None:
    assert fuse(FuseConvBn(), graph("c = Conv(x, w) y = BatchNormalization<epsilon = 0.5>(c, g, h, m, v)")).sites == 1


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("y = Mul(c, s)", id="Mul by a column"),
        pytest.param("y = Add(s, c)", id="Add of a column"),
        pytest.param("y = Div(c, s)", id="Div by a column"),
        pytest.param("y = Sub(c, s)", id="Sub of a column"),
        pytest.param("y = Sub(s, c)", id="Sub from a column"),
        pytest.param("y = Mul(c, k)", id="Mul by a number"),
    ],
)
def test_folds_constants(body: str) -> None:
    fused = fuse(FuseConvBn(), graph(f"c = Conv(x, w) {body}", ", float[4, 1, 1] s = {1, 2, -3, 4}, float k = {3}"))
    assert (fused.sites, fused.ops) == (1, ["Conv"])


def test_folds_a_chain() -> None:
    body = "c = Conv(x, w) d = Add(c, s) e = Mul(d, s) y = BatchNormalization(e, g, h, m, v)"
    fused = fuse(FuseConvBn(), graph(body, ", float[1, 4, 1, 1] s = {1, 2, -3, 4}"))
    assert (fused.sites, fused.ops) == (3, ["Conv"])


def test_a_shift_leaves_the_weight_the_very_bytes() -> None:
    fused = fuse(FuseConvBn(), graph("c = Conv(x, w) y = Add(c, s)", ", float[4, 1, 1] s = {1, 2, -3, 4}"))
    assert fused.node("Conv").inputs[1].const_value.numpy().ravel().tolist() == [1, 2, 3, 4, -1, -2, -3, -4]


def test_a_shared_weight_is_copied() -> None:
    fused = fuse(
        FuseConvBn(),
        f"g (float[a, 2, 3, 3] x) => (float[a, 4, 3, 3] y, float[a, 4, 3, 3] z) <{W}, {BN}>"
        f"{{ c = Conv(x, w) {NORM} z = Conv(x, w) }}",
    )
    folded, other = (n.inputs[1] for n in fused.graph.graph)
    assert other.const_value.numpy().ravel().tolist() == [1, 2, 3, 4, -1, -2, -3, -4]
    assert folded is not other


def test_folds_inside_branches_that_share_a_weight() -> None:
    fused = fuse(
        FuseConvBn(),
        f"""g (float[1, 2, 3, 3] x, bool k) => (float[1, 4, 3, 3] z) <{W}, {BN}> {{
        z = If(k) <then_branch = t () => (float[1, 4, 3, 3] y) {{ c = Conv(x, w) {NORM} }},
                   else_branch = e () => (float[1, 4, 3, 3] u)
                   {{ d = Conv(x, w) u = BatchNormalization<epsilon = 1.0>(d, g, h, m, v) }}> }}""",
    )
    assert fused.sites == 2 and fused.count["Conv"] == 2


@settings(max_examples=40)
@given(
    op=st.sampled_from(["Conv", "ConvTranspose", "Gemm"]),
    groups=st.integers(1, 3),
    per_group=st.integers(1, 3),
    has_bias=st.booleans(),
    transposed=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_folds_any_linear(op: str, groups: int, per_group: int, has_bias: bool, transposed: bool, seed: int) -> None:
    model, longest = _linear_then_norm(op, groups, per_group, has_bias, transposed, seed)
    fused = fuse(FuseConvBn(), model, longest=longest)
    assert (fused.sites, fused.ops) == (1, [op])


def _linear_then_norm(
    op: str, groups: int, per_group: int, has_bias: bool, transposed: bool, seed: int
) -> tuple[onnx.ModelProto, int]:
    rng = np.random.default_rng(seed)
    inputs, channels = 2 * groups, groups * per_group
    shape, tail, attributes = [3, inputs], [], {}
    if op == "Gemm":
        kernel = [channels, inputs] if transposed else [inputs, channels]
        attributes = {"transB": int(transposed), "alpha": 0.5, "beta": 3.0}
    else:
        kernel = [channels, 2, 3] if op == "Conv" else [inputs, per_group, 3]
        shape, tail, attributes = [*shape, 7], [None], {"group": groups}
    arrays = {"w": rng.standard_normal(kernel), "s": rng.standard_normal(channels), "t": rng.standard_normal(channels)}
    arrays |= {"m": rng.standard_normal(channels), "v": rng.uniform(0.1, 2, channels)}
    if has_bias:
        arrays["b"] = rng.standard_normal(channels)
    graph = helper.make_graph(
        [
            helper.make_node(op, ["x", "w", *(["b"] if has_bias else [])], ["c"], **attributes),
            helper.make_node("BatchNormalization", ["c", "s", "t", "m", "v"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, channels, *tail])],
        [numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items()],
    )
    longest = inputs if op == "Gemm" else 2 * 3
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), longest


NEARLY = {
    "training_mode is 1": "c = Conv(x, w) y, mean, var = BatchNormalization<training_mode = 1>(c, g, h, m, v)",
    "its scale, bias, mean or variance is not constant": """c = Conv(x, w) r = Relu(g)
        y = BatchNormalization(c, r, h, m, v)""",
    "the weight or the bias of the Conv is not constant": f"r = Relu(w) c = Conv(x, r) {NORM}",
    "the output of the Conv is read elsewhere too": """c = Conv(x, w) n = BatchNormalization(c, g, h, m, v)
        y = Add(n, c)""",
    "its variance plus epsilon is not positive": "c = Conv(x, w) y = BatchNormalization(c, g, h, m, negative)",
    "its constant is not one number for each of the 4 channels": "c = Conv(x, w) y = Add(c, row)",
    "it follows Relu, not a convolution": f"d = Conv(x, w) c = Relu(d) {NORM}",
    "the folded weight does not fit float32": "c = Conv(x, w) d = Mul(c, huge) y = Mul(d, huge)",
}


@pytest.mark.parametrize("reason", NEARLY)
def test_says_why_it_did_not(reason: str) -> None:
    weights = ", float[4] negative = {1, -1, 1, 1}, float[3] row = {1, 2, 3}, float huge = {1e38}"
    model = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 23]>' + graph(NEARLY[reason], weights))
    ctx = PassContext()
    FuseConvBn().rewrite(ir.from_proto(model), ctx)
    assert [skip.reason for skip in ctx.skips] == [reason]


def test_says_that_the_output_is_the_graph_s_own() -> None:
    skipped = fuse(
        FuseConvBn(),
        f"""g (float[a, 2, 3, 3] x) => (float[a, 4, 3, 3] y, float[a, 4, 3, 3] c) <{W}, {BN}>
        {{ c = Conv(x, w) {NORM} }}""",
    )
    assert (skipped.sites, skipped.reasons) == (0, ["the output of the Conv is read elsewhere too"])


def test_says_nothing_of_a_residual() -> None:
    skipped = fuse(FuseConvBn(), graph("c = Conv(x, w) d = Conv(x, w) y = Add(c, d)"))
    assert (skipped.sites, skipped.reasons) == (0, [])


def test_folds_the_small_network(tmp_path: Path) -> None:
    model = load(models.conv_net(tmp_path / "net.onnx"))
    assert FuseConvBn().rewrite(model.draft(), PassContext()) == 1


def test_folds_every_one_of_kws(zoo: Callable[[str], Path]) -> None:
    ctx = PassContext()
    assert (FuseConvBn().rewrite(load(zoo("mlperftiny/kws.onnx")).draft(), ctx), ctx.skips) == (9, [])
