"""fuse_gemm: a linear layer's MatMul and bias become one Gemm, flattened where the input has more than two axes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import exports
import pytest
from fusing import fuse

from polycast.load import load
from polycast.passbase import PassContext
from polycast.passes.fusion.fuse_gemm import FuseGemm

WEIGHTS = """float[3, 2] w = {1, 2, -3, 0.5, 5, -1}, float[2] b = {0.25, -2}, float[1, 1, 2] row = {4, -1},
    float[1] one = {3}, float[3] wide = {1, 2, 3}, float[2, 3, 2] stack = {1, 2, 3, 4, 5, 6, 6, 5, 4, 3, 2, 1}"""


def graph(body: str, x: str = "float[n, s, 3] x", y: str = "float[n, s, 2] y") -> str:
    return f"g ({x}) => ({y}) <{WEIGHTS}> {{ {body} }}"


def test_two_axes_become_a_plain_gemm() -> None:
    fused = fuse(FuseGemm(), graph("p = MatMul(x, w) y = Add(p, b)", "float[n, 3] x", "float[n, 2] y"), longest=3)
    assert (fused.sites, fused.ops) == (1, ["Gemm"])


@pytest.mark.parametrize("bias", ["b", "row"])
@pytest.mark.parametrize("order", ["p, {}", "{}, p"])
def test_more_axes_are_flattened_and_come_back(bias: str, order: str) -> None:
    fused = fuse(FuseGemm(), graph(f"p = MatMul(x, w) y = Add({order.format(bias)})"), longest=3)
    assert (fused.sites, sorted(fused.ops)) == (1, ["Concat", "Gemm", "Reshape", "Reshape", "Shape"])


@pytest.mark.parametrize("x", ["float[4, 5, 3] x", "float[n, 5, 3] x", "float[4, n, 3] x"])
def test_one_open_size_needs_no_shape_at_run_time(x: str) -> None:
    fused = fuse(FuseGemm(), graph("p = MatMul(x, w) y = Add(p, b)", x, x.replace("3] x", "2] y")), longest=3)
    assert (fused.sites, fused.ops) == (1, ["Reshape", "Gemm", "Reshape"])


def test_layers_of_one_shape_share_it() -> None:
    body = "p = MatMul(x, w) y = Add(p, b) r = Relu(x) q = MatMul(r, w) z = Add(q, b)"
    fused = fuse(FuseGemm(), graph(body, y="float[n, s, 2] y, float[n, s, 2] z"), longest=3)
    assert fused.sites == 2
    assert (fused.count["Gemm"], fused.count["Shape"], fused.count["Concat"]) == (2, 1, 1)


def test_works_inside_a_branch() -> None:
    body = """y = If(c) <then_branch = a () => (float[n, s, 2] t) { p = MatMul(x, w) t = Add(p, b) },
        else_branch = e () => (float[n, s, 2] f) { q = MatMul(x, w) f = Sub(q, b) }>"""
    fused = fuse(FuseGemm(), graph(body, "float[n, s, 3] x, bool c"), longest=3)
    assert fused.sites == 1


@pytest.mark.parametrize(
    ("body", "ports", "reason"),
    [
        ("p = MatMul(x, w) y = Add(p, one)", (), "the bias is [1], not [2]"),
        ("p = MatMul(x, w) y = Add(p, b) z = Relu(p)", ("z",), "the product without the bias is read elsewhere"),
        ("p = MatMul(x, stack) y = Add(p, b)", ("2",), "the weight has 3 axes, not 2"),
    ],
    ids=["bias", "read twice", "stack"],
)
def test_what_stays_says_why(body: str, ports: tuple[str, ...], reason: str) -> None:
    outputs = "float[n, s, 2] y, float[n, s, 2] z" if "z" in ports else "float[n, s, 2] y"
    x = "float[2, s, 3] x" if "2" in ports else "float[n, s, 3] x"
    fused = fuse(FuseGemm(), graph(body, x, outputs), longest=3)
    assert (fused.sites, fused.reasons) == (0, [reason])


def test_a_bias_that_is_computed_is_no_candidate() -> None:
    fused = fuse(FuseGemm(), graph("p = MatMul(x, w) y = Add(p, v)", "float[n, s, 3] x, float[2] v"), longest=3)
    assert (fused.sites, fused.reasons) == (0, [])


def test_fuses_every_linear_layer_of_minilm(minilm: Path) -> None:
    graph = load(minilm).draft()
    assert FuseGemm().rewrite(graph, PassContext()) == 36
    assert FuseGemm().rewrite(graph, PassContext()) == 0


@pytest.mark.parametrize("export", [exports.bert_optimum, exports.vit_optimum])
def test_fuses_exported_models(export: Callable[[], Path]) -> None:
    graph = load(export()).draft()
    assert FuseGemm().rewrite(graph, PassContext()) > 0
