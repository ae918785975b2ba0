"""fuse_skip_norm: a residual sum and its normalisation become one op, where the target has it and the shapes allow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import exports
import pytest
from fusing import fuse

from polycast.load import load
from polycast.passbase import PassContext
from polycast.passes.fusion.fuse_skip_norm import FuseSkipNorm

FEATURES = frozenset({"skip-norm"})
WEIGHTS = (
    "float[6] w = {0.5, 1, 1.5, 2, -1, 3}, float[6] b = {0, 1, -1, 2, -2, 0.5}, float[6] bias = {1, 2, 3, 4, 5, 6}"
)
PORTS = "float[n, s, 6] x, float[n, s, 6] skip"
LAYER = "y = LayerNormalization<epsilon = 0.001>(t, w, b)"
RMS = "y = RMSNormalization<epsilon = 0.001>(t, w)"


def graph(body: str, inputs: str = PORTS, outputs: str = "float[n, s, 6] y") -> str:
    return f"g ({inputs}) => ({outputs}) <{WEIGHTS}> {{ {body} }}"


@pytest.mark.parametrize(
    ("norm", "op"), [(LAYER, "SkipLayerNormalization"), (RMS, "SkipSimplifiedLayerNormalization")], ids=["layer", "rms"]
)
def test_fuses(norm: str, op: str) -> None:
    fused = fuse(FuseSkipNorm(), graph(f"t = Add(x, skip) {norm}"), longest=6, features=FEATURES)
    assert (fused.sites, fused.ops) == (1, [op])
    assert fused.graph.opset_imports["com.microsoft"] == 1


@pytest.mark.parametrize("norm", [LAYER, RMS], ids=["layer", "rms"])
def test_gives_the_sum_to_who_else_reads_it(norm: str) -> None:
    """The other reader comes first, so the fused op has to come before it."""
    fused = fuse(
        FuseSkipNorm(),
        graph(f"t = Add(x, skip) z = Relu(t) {norm}", outputs="float[n, s, 6] y, float[n, s, 6] z"),
        longest=6,
        features=FEATURES,
    )
    assert fused.sites == 1 and fused.ops[1] == "Relu"


def test_gives_the_sum_as_a_graph_output() -> None:
    fused = fuse(
        FuseSkipNorm(),
        graph(f"t = Add(x, skip) {LAYER}", outputs="float[n, s, 6] y, float[n, s, 6] t"),
        longest=6,
        features=FEATURES,
    )
    assert fused.ops == ["SkipLayerNormalization"]


@pytest.mark.parametrize("norm", [LAYER, RMS], ids=["layer", "rms"])
def test_takes_a_bias_in(norm: str) -> None:
    fused = fuse(
        FuseSkipNorm(),
        graph(f"u = Add(bias, x) t = Add(skip, u) {norm}", outputs="float[n, s, 6] y, float[n, s, 6] t"),
        longest=6,
        features=FEATURES,
    )
    (node,) = fused.graph.graph
    assert node.inputs[-1].name == "bias"


def test_a_scale_made_after_the_sum_is_in_time() -> None:
    body = """t = Add(x, skip) z = Relu(t) w2 = Constant<value = float[6] {1, 2, 3, 4, 5, 6}>()
               y = LayerNormalization(t, w2, b)"""
    fused = fuse(
        FuseSkipNorm(), graph(body, outputs="float[n, s, 6] y, float[n, s, 6] z"), longest=6, features=FEATURES
    )
    assert fused.sites == 1


def test_fuses_inside_a_branch() -> None:
    fused = fuse(
        FuseSkipNorm(),
        f"""g (float[2, 3, 6] x, float[2, 3, 6] skip, bool c) => (float[2, 3, 6] z) <{WEIGHTS}> {{
        z = If(c) <then_branch = q () => (float[2, 3, 6] y) {{ t = Add(x, skip) {LAYER} }},
                   else_branch = e () => (float[2, 3, 6] u) {{ u = Identity(x) }}> }}""",
        longest=6,
        features=FEATURES,
    )
    assert fused.count["SkipLayerNormalization"] == 1


NEARLY = {
    "[1,s,6] and [n,s,6] are not known to be one shape": ("1, s, 6", "n, s, 6", LAYER),
    "[n,s,6] and [n,r,6] are not known to be one shape": ("n, s, 6", "n, r, 6", LAYER),
    "the axis is 1, not the last one": ("n, 3, 6", "n, 3, 6", "y = LayerNormalization<axis = 1>(t, k)"),
    "its mean or deviation is read elsewhere": ("n, s, 6", "n, s, 6", "u, y = LayerNormalization(t, w, b)"),
    "the sum has 4 axes, not 2 or 3": ("n, s, 2, 6", "n, s, 2, 6", LAYER),
}


@pytest.mark.parametrize("reason", NEARLY)
def test_says_why_it_did_not(reason: str) -> None:
    first, second, norm = NEARLY[reason]
    last = "n, s, 1" if norm.startswith("u") else second
    skipped = fuse(
        FuseSkipNorm(),
        f"""g (float[{first}] x, float[{second}] skip, float[3, 6] k) => (float[{last}] y)
        <{WEIGHTS}> {{ t = Add(x, skip) {norm} }}""",
        longest=6,
        features=FEATURES,
    )
    assert (skipped.sites, skipped.reasons) == (0, [reason])


def test_says_that_the_target_cannot() -> None:
    skipped = fuse(FuseSkipNorm(), graph(f"t = Add(x, skip) {LAYER}"), longest=6)
    assert (skipped.sites, skipped.reasons) == (0, ["the target has no skip-norm"])


def test_says_nothing_of_a_bias_before_a_norm() -> None:
    skipped = fuse(FuseSkipNorm(), graph(f"t = Add(x, bias) {LAYER}", "float[n, s, 6] x"), longest=6, features=FEATURES)
    assert (skipped.sites, skipped.reasons) == (0, [])


@pytest.mark.parametrize(("make", "count"), [(exports.bert_dynamo, 4), (exports.llama_dynamo, 0)])
def test_fuses_a_real_export(make: Callable[[], Path], count: int) -> None:
    """BERT has two residuals a layer; Llama's are normalised by an op that only fuse_rms_norm makes."""
    assert FuseSkipNorm().rewrite(load(make()).draft(), PassContext(FEATURES)) == count
