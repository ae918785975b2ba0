"""fuse_gelu: every way that an exporter writes GELU, and what only looks like one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import exports
import pytest
from fusing import fuse

from polycast.load import load
from polycast.passbase import PassContext
from polycast.passes.fusion.fuse_gelu import FuseGelu

CONSTANTS = """
    root2 = Constant<value_float: float = 1.41421354>()
    inverse = Constant<value_float: float = 0.707106769>()
    half = Constant<value_float: float = 0.5>()
    one = Constant<value_float: float = 1.0>()
    two = Constant<value_float: float = 2.0>()
    three = Constant<value_float: float = 3.0>()
    cubic = Constant<value_float: float = 0.044715>()
    slope = Constant<value_float: float = 0.7978845608>()
"""

ERF_FORMS = {
    "half last": "d = Div(x, root2) e = Erf(d) g = Add(e, one) p = Mul(x, g) y = Mul(p, half)",
    "half first": "h = Mul(x, half) d = Mul(inverse, x) e = Erf(d) g = Add(one, e) y = Mul(h, g)",
    "half on the gate": "d = Div(x, root2) e = Erf(d) g = Add(e, one) h = Mul(half, g) y = Mul(x, h)",
    "half by Div": "d = Mul(x, inverse) e = Erf(d) g = Add(e, one) p = Mul(g, x) y = Div(p, two)",
    "half inside": "d = Div(x, root2) e = Erf(d) h = Mul(e, half) g = Add(h, half) y = Mul(x, g)",
    "spread out": "d = Div(x, root2) e = Erf(d) h = Mul(x, half) p = Mul(h, e) y = Add(h, p)",
}
TANH_FORMS = {
    "Pow": """p = Pow(x, three) c = Mul(cubic, p) s = Add(x, c) a = Mul(slope, s) t = Tanh(a) g = Add(one, t)
              h = Mul(half, x) y = Mul(h, g)""",
    "products": """q = Mul(x, x) r = Mul(q, x) c = Mul(r, cubic) s = Add(c, x) a = Mul(s, slope) t = Tanh(a)
                   g = Add(t, one) p = Mul(x, g) y = Mul(p, half)""",
    "x taken out": """n = Mul(x, cubic) q = Mul(n, x) f = Add(q, one) v = Mul(x, slope) a = Mul(v, f) t = Tanh(a)
                      g = Add(t, one) h = Mul(x, half) y = Mul(h, g)""",
}


def graph(body: str) -> str:
    return f"g (float[a, 5] x) => (float[a, 5] y) {{ {CONSTANTS} {body} }}"


@pytest.mark.parametrize("body", ERF_FORMS.values(), ids=ERF_FORMS)
def test_fuses_the_erf_form(body: str) -> None:
    fused = fuse(FuseGelu(), graph(body))
    assert fused.sites == 1
    assert fused.count["Gelu"] == 1 and not fused.count["Erf"]
    assert fused.node("Gelu").attributes["approximate"].as_string() == "none"


@pytest.mark.parametrize("body", TANH_FORMS.values(), ids=TANH_FORMS)
def test_fuses_the_tanh_form(body: str) -> None:
    fused = fuse(FuseGelu(), graph(body))
    assert fused.sites == 1
    assert fused.node("Gelu").attributes["approximate"].as_string() == "tanh"


def test_removes_what_the_pattern_alone_used() -> None:
    fused = fuse(FuseGelu(), graph(ERF_FORMS["half last"]))
    assert not set(fused.ops) & {"Erf", "Add", "Mul", "Div"}


def test_keeps_a_following_product() -> None:
    """GEGLU multiplies with a second tensor, which is no part of GELU."""
    fused = fuse(
        FuseGelu(),
        f"""g (float[a, 5] x, float[a, 5] up) => (float[a, 5] z)
        {{ {CONSTANTS} {ERF_FORMS["half last"]} z = Mul(y, up) }}""",
    )
    assert fused.sites == 1 and fused.ops[-2:] == ["Gelu", "Mul"]


def test_x_may_itself_be_a_product() -> None:
    fused = fuse(
        FuseGelu(),
        f"g (float[a, 5] w) => (float[a, 5] y) {{ {CONSTANTS} x = Mul(w, three) {ERF_FORMS['half first']} }}",
    )
    assert fused.sites == 1 and fused.ops[-2:] == ["Mul", "Gelu"]


def test_fuses_inside_a_branch() -> None:
    body = ERF_FORMS["half first"]
    fused = fuse(
        FuseGelu(),
        f"""g (float[2, 5] x, bool c) => (float[2, 5] z) {{ {CONSTANTS}
        z = If(c) <then_branch = t () => (float[2, 5] y) {{ {body} }},
                   else_branch = e () => (float[2, 5] w) {{ w = Identity(x) }}> }}""",
    )
    assert fused.sites == 1 and fused.count["Gelu"] == 1


def test_half_precision_constants_count_as_what_they_round() -> None:
    # The parser takes float16 by its bits: 1.4140625, 1 and 0.5.
    fused = fuse(
        FuseGelu(),
        """g (float16[a, 5] x) => (float16[a, 5] y)
        <float16 root2 = {15784}, float16 one = {15360}, float16 half = {14336}>
        { d = Div(x, root2) e = Erf(d) g = Add(e, one) p = Mul(x, g) y = Mul(p, half) }""",
    )
    assert fused.sites == 1
    assert not fused.graph.graph.initializers


NEARLY = {
    "root2 is 1.5, not 1.41421": """wrong = Constant<value_float: float = 1.5>()
        d = Div(x, wrong) e = Erf(d) g = Add(e, one) p = Mul(x, g) y = Mul(p, half)""",
    "the factor is 1, not 0.5": "d = Div(x, root2) e = Erf(d) g = Add(e, one) y = Mul(x, g)",
    "erf takes more than the x that it is multiplied with": """s = Sin(x) o = Add(x, s) d = Div(o, root2) e = Erf(d)
        g = Add(e, one) p = Mul(x, g) y = Mul(p, half)""",
    "the cubic term is 0.05, not 0.044715": """wrong = Constant<value_float: float = 0.05>() p = Pow(x, three)
        c = Mul(wrong, p) s = Add(x, c) a = Mul(slope, s) t = Tanh(a) g = Add(one, t) h = Mul(half, x) y = Mul(h, g)""",
    "the slope of tanh is 1, not 0.797885": """p = Pow(x, three) c = Mul(cubic, p) a = Add(x, c) t = Tanh(a)
        g = Add(one, t) h = Mul(half, x) y = Mul(h, g)""",
    "x * sigmoid(1.702 * x) is QuickGELU, for which ONNX has no op": """k = Constant<value_float: float = 1.702>()
        v = Mul(x, k) s = Sigmoid(v) y = Mul(x, s)""",
}


@pytest.mark.parametrize("reason", NEARLY)
def test_says_why_it_did_not(reason: str) -> None:
    skipped = fuse(FuseGelu(), graph(NEARLY[reason]))
    assert (skipped.sites, skipped.reasons) == (0, [reason])


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("d = Div(x, root2) e = Erf(d) g = Add(e, one) y = Mul(g, half)", id="the normal distribution"),
        pytest.param("t = Tanh(x) y = Mul(t, x)", id="x * tanh(x)"),
        pytest.param("s = Sigmoid(x) y = Mul(x, s)", id="SiLU"),
    ],
)
def test_says_nothing_of_what_is_no_gelu(body: str) -> None:
    skipped = fuse(FuseGelu(), graph(body))
    assert (skipped.sites, skipped.reasons) == (0, [])


def test_a_gate_that_is_read_elsewhere_stays() -> None:
    body = ERF_FORMS["half first"]
    fused = fuse(FuseGelu(), f"g (float[a, 5] x) => (float[a, 5] y, float[a, 5] g) {{ {CONSTANTS} {body} }}")
    assert fused.sites == 0


def test_a_constant_of_higher_rank_stays() -> None:
    """Broadcasting with [1, 1, 1] gives the result an axis more than Gelu would."""
    skipped = fuse(
        FuseGelu(),
        """g (float[a, 5] x) => (float[b, a, 5] y)
        <float root2 = {1.41421354}, float one = {1}, float[1, 1, 1] half = {0.5}>
        { d = Div(x, root2) e = Erf(d) g = Add(e, one) p = Mul(x, g) y = Mul(p, half) }""",
    )
    assert (skipped.sites, skipped.reasons) == (0, ["a constant adds an axis to the result"])


@pytest.mark.parametrize(
    ("make", "count"), [(exports.vit_optimum, 2), (exports.gpt2_dynamo, 2), (exports.gpt2_optimum, 2)]
)
def test_fuses_every_one_of_a_real_export(make: Callable[[], Path], count: int) -> None:
    ctx = PassContext()
    assert (FuseGelu().rewrite(load(make()).draft(), ctx), ctx.skips) == (exports.LAYERS, [])


def test_fuses_every_one_of_minilm(minilm: Path) -> None:
    ctx = PassContext()
    assert (FuseGelu().rewrite(load(minilm).draft(), ctx), ctx.skips) == (6, [])
