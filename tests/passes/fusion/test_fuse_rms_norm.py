"""fuse_rms_norm: the forms of Llama's exports, and what is not quite one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import exports
import pytest
from fusing import fuse

from polycast.load import load
from polycast.passbase import PassContext
from polycast.passes.fusion.fuse_rms_norm import FuseRmsNorm

SCALE = "float[6] w = {0.5, 1, 1.5, 2, -1, 3}"
CONSTANTS = "int64[1] axes = {-1}, float eps = {0.00001}, float two = {2}, float one = {1}, float minus = {-0.5}"
ROOT = "p = Pow(x, two) v = ReduceMean(p, axes) e = Add(v, eps) q = Sqrt(e)"

FORMS = {
    "Reciprocal": f"{ROOT} r = Reciprocal(q) n = Mul(x, r) y = Mul(w, n)",
    "one over Sqrt": f"{ROOT} r = Div(one, q) n = Mul(x, r) y = Mul(n, w)",
    "Div": f"{ROOT} n = Div(x, q) y = Mul(n, w)",
    "Pow by minus a half": """p = Mul(x, x) v = ReduceMean(p, axes) e = Add(v, eps) r = Pow(e, minus)
                              n = Mul(x, r) y = Mul(n, w)""",
    "scale on the root": f"{ROOT} r = Reciprocal(q) f = Mul(r, w) y = Mul(f, x)",
}


def graph(body: str) -> str:
    return f"g (float[a, 4, 6] x) => (float[a, 4, 6] y) <{SCALE}, {CONSTANTS}> {{ {body} }}"


@pytest.mark.parametrize("body", FORMS.values(), ids=FORMS)
def test_fuses(body: str) -> None:
    fused = fuse(FuseRmsNorm(), graph(body), longest=6)
    assert (fused.sites, fused.ops) == (1, ["RMSNormalization"])
    assert [v.name for v in fused.node("RMSNormalization").inputs] == ["x", "w"]
    assert not {"eps", "axes"} & set(fused.graph.graph.initializers)


def test_takes_ones_for_a_missing_scale() -> None:
    fused = fuse(FuseRmsNorm(), graph(f"{ROOT} y = Div(x, q)"), longest=6)
    assert (fused.sites, fused.ops) == (1, ["RMSNormalization"])


def test_takes_in_the_casts_of_half_precision() -> None:
    """Llama in half precision widens x, and narrows again before it multiplies with the weight."""
    fused = fuse(
        FuseRmsNorm(),
        f"""g (float16[a, 6] h) => (float16[a, 6] y)
        <float16[6] w = {{14336, 15360, 15872, 16384, 15360, 16896}}, {CONSTANTS}>
        {{ x = Cast<to: int = 1>(h) {ROOT} n = Div(x, q) o = Cast<to: int = 10>(n) y = Mul(w, o) }}""",
        longest=6,
    )
    assert (fused.sites, fused.ops) == (1, ["RMSNormalization"])


def test_leaves_layer_normalisation_alone() -> None:
    body = f"m = ReduceMean(z, axes) x = Sub(z, m) {ROOT} y = Div(x, q)"
    skipped = fuse(FuseRmsNorm(), graph(body).replace("6] x)", "6] z)"), longest=6)
    assert (skipped.sites, skipped.reasons) == (0, [])


def test_leaves_a_plain_root_mean_square_alone() -> None:
    skipped = fuse(FuseRmsNorm(), graph("p = Mul(x, x) v = ReduceMean(p, axes) q = Sqrt(v) y = Div(x, q)"), longest=6)
    assert (skipped.sites, skipped.reasons) == (0, [])


NEARLY = {
    "its root is read elsewhere too": f"{ROOT} n = Div(x, q) u = Mul(n, w) y = Add(u, q)",
    "its inverse root is read elsewhere too": f"{ROOT} r = Reciprocal(q) n = Mul(x, r) y = Add(n, r)",
    "its root divides another tensor than the one that was squared": f"{ROOT} s = Sin(x) y = Div(s, q)",
    "the mean is over axes [-2], not the last ones": f"{ROOT} y = Div(x, q)".replace("axes", "rows"),
    "the mean drops its axes (keepdims is 0)": """p = Mul(x, x) v = ReduceMean<keepdims = 0>(p, axes) e = Add(v, eps)
        q = Sqrt(e) u = Unsqueeze(q, axes) y = Div(x, u)""",
}


@pytest.mark.parametrize("reason", NEARLY)
def test_says_why_it_did_not(reason: str) -> None:
    text = graph(NEARLY[reason]).replace("int64[1] axes", "int64[1] rows = {-2}, int64[1] axes")
    skipped = fuse(FuseRmsNorm(), text, longest=6)
    assert (skipped.sites, skipped.reasons) == (0, [reason])


@pytest.mark.parametrize("make", [exports.llama_optimum, exports.llama_dynamo])
def test_fuses_every_one_of_a_real_export(make: Callable[[], Path]) -> None:
    ctx = PassContext()
    assert (FuseRmsNorm().rewrite(load(make()).draft(), ctx), ctx.skips) == (2 * exports.LAYERS + 1, [])


def test_fuses_every_one_of_stories260K(zoo: Callable[[str], Path]) -> None:
    ctx = PassContext()
    assert (FuseRmsNorm().rewrite(load(zoo("lm/stories260K.onnx")).draft(), ctx), ctx.skips) == (11, [])
