"""fuse_layer_norm: every way that an exporter writes it, with and without scale and bias, and what is not quite one."""

from __future__ import annotations

from pathlib import Path

import pytest
from fusing import fuse

from polycast.load import load
from polycast.passbase import PassContext
from polycast.passes.fusion.fuse_layer_norm import FuseLayerNorm

WEIGHTS = "float[6] w = {0.5, 1, 1.5, 2, -1, 3}, float[6] b = {0, 1, -1, 2, -2, 0.5}"
AXES = "int64[1] axes = {-1}, float eps = {0.00001}, float two = {2}, float one = {1}, float half = {0.5}"
START = "m = ReduceMean(x, axes) c = Sub(x, m)"

FORMS = {
    "Pow, Sqrt, Div": """p = Pow(c, two) v = ReduceMean(p, axes) e = Add(v, eps) r = Sqrt(e) n = Div(c, r)
                         s = Mul(n, w) y = Add(s, b)""",
    "Mul, Reciprocal": """p = Mul(c, c) v = ReduceMean(p, axes) e = Add(eps, v) q = Sqrt(e) r = Reciprocal(q)
                          n = Mul(r, c) s = Mul(w, n) y = Add(b, s)""",
    "one over Sqrt": """p = Mul(c, c) v = ReduceMean(p, axes) e = Add(v, eps) q = Sqrt(e) r = Div(one, q)
                        n = Mul(c, r) s = Mul(n, w) y = Add(s, b)""",
    "Pow by a half": """p = Mul(c, c) v = ReduceMean(p, axes) e = Add(v, eps) r = Pow(e, half) n = Div(c, r)
                        s = Mul(n, w) y = Add(s, b)""",
    "centred twice": """c2 = Sub(x, m) p = Pow(c2, two) v = ReduceMean(p, axes) e = Add(v, eps) r = Sqrt(e)
                        n = Div(c, r) s = Mul(n, w) y = Add(s, b)""",
    "scale on the root": """p = Mul(c, c) v = ReduceMean(p, axes) e = Add(v, eps) q = Sqrt(e) r = Reciprocal(q)
                            f = Mul(r, w) s = Mul(c, f) y = Add(s, b)""",
}
CORE = "p = Pow(c, two) v = ReduceMean(p, axes) e = Add(v, eps) r = Sqrt(e)"


def graph(body: str, extra: str = "") -> str:
    return f"g (float[a, 4, 6] x) => (float[a, 4, 6] y) <{WEIGHTS}, {AXES}{extra}> {{ {START} {body} }}"


@pytest.mark.parametrize("body", FORMS.values(), ids=FORMS)
def test_fuses(body: str) -> None:
    fused = fuse(FuseLayerNorm(), graph(body), longest=6)
    assert (fused.sites, fused.ops) == (1, ["LayerNormalization"])
    assert [v.name for v in fused.node("LayerNormalization").inputs] == ["x", "w", "b"]
    assert not {"eps", "axes"} & set(fused.graph.graph.initializers)


def test_takes_ones_for_a_missing_scale() -> None:
    fused = fuse(FuseLayerNorm(), graph(f"{CORE} y = Div(c, r)"), longest=6)
    assert (fused.sites, fused.ops) == (1, ["LayerNormalization"])
    assert len(fused.node("LayerNormalization").inputs) == 2


def test_takes_a_bias_without_scale_and_a_scale_without_bias() -> None:
    assert fuse(FuseLayerNorm(), graph(f"{CORE} n = Div(c, r) y = Add(n, b)"), longest=6).ops == ["LayerNormalization"]
    assert fuse(FuseLayerNorm(), graph(f"{CORE} n = Div(c, r) y = Mul(n, w)"), longest=6).ops == ["LayerNormalization"]


def test_leaves_a_product_that_is_no_scale() -> None:
    """Adaptive normalisation multiplies with one number per row and channel: only the rest is a LayerNorm."""
    fused = fuse(
        FuseLayerNorm(),
        f"""g (float[a, 4, 6] x, float[a, 4, 6] k) => (float[a, 4, 6] y) <{WEIGHTS}, {AXES}>
        {{ {START} {CORE} n = Div(c, r) y = Mul(n, k) }}""",
        longest=6,
    )
    assert (fused.sites, fused.ops) == (1, ["LayerNormalization", "Mul"])


def test_drops_leading_axes_of_the_scale() -> None:
    fused = fuse(
        FuseLayerNorm(),
        graph(f"{CORE} n = Div(c, r) y = Mul(n, k)", ", float[1, 1, 6] k = {1, 2, 3, 4, 5, 6}"),
        longest=6,
    )
    assert fused.sites == 1
    assert fused.node("LayerNormalization").inputs[1].shape == (6,)


def test_normalises_the_last_two_axes() -> None:
    fused = fuse(
        FuseLayerNorm(),
        f"""g (float[a, 2, 3] x) => (float[a, 2, 3] y)
        <float[2, 3] w = {{1, 2, 3, 4, 5, 6}}, int64[2] axes = {{1, 2}}, float eps = {{0.001}}, float two = {{2}}>
        {{ {START} {CORE} n = Div(c, r) y = Mul(n, w) }}""",
        longest=6,
    )
    assert fused.sites == 1
    assert fused.node("LayerNormalization").attributes["axis"].as_int() == -2


def test_takes_in_the_casts_of_half_precision() -> None:
    fused = fuse(
        FuseLayerNorm(),
        f"""g (float16[a, 6] h) => (float16[a, 6] y)
        <float16[6] w = {{14336, 15360, 15872, 16384, 15360, 16896}}, {AXES}>
        {{ x = Cast<to: int = 1>(h) {START} {CORE} n = Div(c, r) o = Cast<to: int = 10>(n) y = Mul(o, w) }}""",
        longest=6,
    )
    assert (fused.sites, fused.ops) == (1, ["LayerNormalization"])


def test_fuses_inside_a_branch() -> None:
    fused = fuse(
        FuseLayerNorm(),
        f"""g (float[2, 6] x, bool k) => (float[2, 6] z) <{WEIGHTS}, {AXES}> {{
        z = If(k) <then_branch = t () => (float[2, 6] y) {{ {START} {FORMS["Mul, Reciprocal"]} }},
                   else_branch = o () => (float[2, 6] u) {{ u = Identity(x) }}> }}""",
        longest=6,
    )
    assert fused.count["LayerNormalization"] == 1 and "Sqrt" not in fused.ops


NEARLY = {
    "its root is read elsewhere too": f"{CORE} n = Div(c, r) u = Add(n, r) y = Mul(u, w)",
    "its mean of squares is read elsewhere too": f"{CORE} n = Div(c, r) u = Add(n, v) y = Mul(u, w)",
    "its root divides another tensor than the one that was squared": f"{CORE} y = Div(x, r)",
    "epsilon is not a constant": """p = Mul(c, c) v = ReduceMean(p, axes) k = ReduceMax(x, axes) e = Add(v, k)
                                    r = Sqrt(e) y = Div(c, r)""",
    "the mean is over axes [-2], not the last ones": """mm = ReduceMean(x, rows) cc = Sub(x, mm) p = Mul(cc, cc)
        v = ReduceMean(p, rows) e = Add(v, eps) r = Sqrt(e) y = Div(cc, r)""",
    "mean and variance are over different axes": """p = Mul(c, c) v = ReduceMean(p, rows) e = Add(v, eps)
        r = Sqrt(e) y = Div(c, r)""",
}


@pytest.mark.parametrize("reason", NEARLY)
def test_says_why_it_did_not(reason: str) -> None:
    skipped = fuse(FuseLayerNorm(), graph(NEARLY[reason], ", int64[1] rows = {-2}"), longest=6)
    assert (skipped.sites, skipped.reasons) == (0, [reason])


def test_says_that_a_size_is_unknown() -> None:
    skipped = fuse(
        FuseLayerNorm(),
        f"g (float[a, n] x) => (float[a, n] y) <{AXES}> {{ {START} {CORE} y = Div(c, r) }}",
        longest=6,
    )
    assert skipped.reasons == ["the size of the axes that the mean is over is not fixed"]


def test_says_that_it_would_narrow_float64() -> None:
    skipped = fuse(
        FuseLayerNorm(),
        f"""g (double[a, 6] x) => (double[a, 6] y)
        <int64[1] axes = {{-1}}, double eps = {{0.00001}}, double two = {{2}}> {{ {START} {CORE} y = Div(c, r) }}""",
        longest=6,
    )
    assert skipped.reasons == ["it is computed in float64, which the fused op would narrow to float32"]


def test_fuses_every_one_of_minilm(minilm: Path) -> None:
    ctx = PassContext()
    assert (FuseLayerNorm().rewrite(load(minilm).draft(), ctx), ctx.skips) == (13, [])
