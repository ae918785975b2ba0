"""fuse_attention: what exporters write around a Softmax, the plainest form of what it becomes, and what stays."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from fusing import assert_within_rounding, fuse, run

from polycast.passes.fusion.fuse_attention import FuseAttention

CONSTANTS = """
    third = Constant<value_float: float = 0.35>()
    root = Constant<value_float: float = 0.591607978>()
    inverse = Constant<value_float: float = 2.857142857>()
    zero = Constant<value_float: float = 0.0>()
    lowest = Constant<value_float: float = -3.4028234663852886e38>()
    minus = Constant<value_float: float = -10000.0>()
"""
INPUTS = "float[b, 4, s, 8] q, float[b, 4, t, 8] k, float[b, 4, t, 8] v, float[b, 1, s, t] mask"
KEYS = "kt = Transpose<perm = [0, 1, 3, 2]>(k)"
END = "w = Softmax<axis = -1>(m) y = MatMul(w, v)"


def graph(body: str, inputs: str = INPUTS, outputs: str = "float[b, 4, s, 8] y") -> str:
    return f"g ({inputs}) => ({outputs}) {{ {CONSTANTS} {body} }}"


FORMS = {
    "scaled": f"{KEYS} p = MatMul(q, kt) c = Mul(p, third) m = Add(c, mask) {END}",
    "divided, mask first": f"{KEYS} p = MatMul(q, kt) c = Div(p, inverse) m = Add(mask, c) {END}",
    "q scaled": f"{KEYS} c = Mul(third, q) p = MatMul(c, kt) m = Add(p, mask) {END}",
    "q and k scaled": f"{KEYS} c = Mul(q, root) e = Mul(kt, root) p = MatMul(c, e) m = Add(p, mask) {END}",
    "computed scale": f"""{KEYS} all = Shape(q) i = Constant<value_ints: ints = [-1]>() last = Gather(all, i)
        f = Cast<to = 1>(last) r = Sqrt(f) p = MatMul(q, kt) c = Div(p, r) m = Add(c, mask) {END}""",
    "no mask": f"{KEYS} p = MatMul(q, kt) m = Mul(p, third) {END}",
    "two masks": f"{KEYS} p = MatMul(q, kt) c = Mul(p, third) d = Add(c, mask) m = Add(d, mask) {END}",
    "guarded against NaN": f"""{KEYS} p = MatMul(q, kt) c = Mul(p, third) m = Add(c, mask)
        u = Softmax<axis = -1>(m) n = IsNaN(u) w = Where(n, zero, u) y = MatMul(w, v)""",
    "flattened for the transpose": f"""three = Constant<value_ints: ints = [-1, 3, 8]>() f = Reshape(k, three)
        ft = Transpose<perm = [0, 2, 1]>(f) four = Constant<value_ints: ints = [-1, 4, 8, 3]>() kt = Reshape(ft, four)
        p = MatMul(q, kt) c = Mul(p, third) m = Add(c, mask) {END}""",
}


@pytest.mark.parametrize("body", FORMS.values(), ids=FORMS)
def test_fuses(body: str) -> None:
    fixed = INPUTS.replace("t, 8]", "3, 8]") if "three" in body else INPUTS
    fused = fuse(FuseAttention(), graph(body, fixed))
    assert fused.sites == 1 and not fused.reasons
    assert fused.count["Attention"] == 1 and not fused.count["Softmax"] + fused.count["MatMul"]
    expected = 8**-0.5 if "Sqrt" in body else 0.35
    assert fused.node("Attention").attributes["scale"].as_float() == pytest.approx(expected)


def test_takes_keys_that_are_stored_transposed() -> None:
    inputs = INPUTS.replace("[b, 4, t, 8] k", "[b, 4, 8, t] k")
    fused = fuse(FuseAttention(), graph(f"m = MatMul(q, k) {END}", inputs))
    assert fused.node("Transpose").attributes["perm"].as_ints() == (0, 1, 3, 2)


def test_choosing_the_scores_by_a_condition_is_a_mask() -> None:
    inputs = INPUTS.replace("float[b, 1, s, t] mask", "bool[b, 1, s, t] mask")
    for order in ("mask, p, lowest", "mask, lowest, p"):
        fused = fuse(FuseAttention(), graph(f"{KEYS} p = MatMul(q, kt) m = Where({order}) {END}", inputs))
        assert fused.sites == 1 and fused.count["Where"] == 1


SPLIT = """
    heads = Constant<value_ints: ints = [0, 0, 4, 8]>() whole = Constant<value_ints: ints = [0, 0, 32]>()
    qh = Reshape(q, heads) kh = Reshape(k, heads) vh = Reshape(v, heads)
    qt = Transpose<perm = [0, 2, 1, 3]>(qh) kt = Transpose<perm = [0, 2, 3, 1]>(kh)
    vt = Transpose<perm = [0, 2, 1, 3]>(vh)
    p = MatMul(qt, kt) c = Mul(p, third) m = Add(c, mask) w = Softmax<axis = -1>(m) o = MatMul(w, vt)
    ot = Transpose<perm = [0, 2, 1, 3]>(o)
"""
HIDDEN = "float[b, s, 32] q, float[b, t, 32] k, float[b, t, 32] v, float[b, 1, s, t] mask"


def test_drops_the_split_and_the_merge_of_heads() -> None:
    fused = fuse(FuseAttention(), graph(SPLIT + "r = Reshape(ot, whole) y = Neg(r)", HIDDEN, "float[b, s, 32] y"))
    assert [op for op in fused.ops if op != "Constant"] == ["Attention", "Neg"]
    attributes = fused.node("Attention").attributes
    assert attributes["q_num_heads"].as_int() == attributes["kv_num_heads"].as_int() == 4


def test_a_merge_into_two_axes_stays_a_reshape() -> None:
    body = SPLIT + "flat = Constant<value_ints: ints = [-1, 32]>() y = Reshape(ot, flat)"
    fused = fuse(FuseAttention(), graph(body, HIDDEN, "float[n, 32] y"))
    assert [op for op in fused.ops if op != "Constant"] == ["Attention", "Reshape"]


def test_heads_stay_split_where_the_result_is_read_so() -> None:
    fused = fuse(FuseAttention(), graph(SPLIT + "y = Neg(ot)", HIDDEN, "float[b, s, 4, 8] y"))
    assert fused.sites == 1
    assert "q_num_heads" not in fused.node("Attention").attributes


def test_a_mask_for_padding_gets_one_row_for_each_query() -> None:
    # The operator broadcasts the mask; onnxruntime's kernel refuses one that has a single row.
    inputs = INPUTS.replace("[b, 1, s, t] mask", "[b, 1, 1, t] mask")
    text = graph(FORMS["scaled"], inputs)
    fused = fuse(FuseAttention(), text)
    assert fused.count["Expand"] == 1
    _on_onnxruntime(fused.graph, _random(text))


@pytest.mark.parametrize("shape", ["b, 1, s, 1", "b, 1, 1, 1", "t", "s, t", "4, 1, t", "1"])
def test_a_mask_of_any_shape_that_broadcasts(shape: str) -> None:
    text = graph(FORMS["scaled"], INPUTS.replace("[b, 1, s, t] mask", f"[{shape}] mask"))
    fused = fuse(FuseAttention(), text)
    assert fused.sites == 1
    _on_onnxruntime(fused.graph, _random(text))


def test_a_number_for_a_mask() -> None:
    text = graph(f"{KEYS} p = MatMul(q, kt) m = Add(p, third) {END}")
    fused = fuse(FuseAttention(), text)
    assert fused.sites == 1
    _on_onnxruntime(fused.graph, _random(text))


def test_layers_share_the_mask() -> None:
    body = f"""{KEYS} p = MatMul(q, kt) m = Add(p, mask) w = Softmax<axis = -1>(m) h = MatMul(w, v)
        p2 = MatMul(h, kt) m2 = Add(p2, mask) w2 = Softmax<axis = -1>(m2) y = MatMul(w2, v)"""
    fused = fuse(FuseAttention(), graph(body, INPUTS.replace("[b, 1, s, t] mask", "[b, 1, 1, t] mask")))
    assert fused.sites == 2
    assert fused.count["Expand"] == 1


EXPANDED = """
    ax = Constant<value_ints: ints = [2]>() five = Constant<value_ints: ints = [1, 1, 2, 1, 1]>()
    many = Constant<value_ints: ints = [0, 4, -1, 8]>()
    ku = Unsqueeze(k, ax) ke = Expand(ku, five) kr = Reshape(ke, many)
    vu = Unsqueeze(v, ax) ve = Expand(vu, five) vr = Reshape(ve, many)
"""
JOINED = """
    ax = Constant<value_ints: ints = [2]>() many = Constant<value_ints: ints = [0, 4, -1, 8]>()
    ku = Unsqueeze(k, ax) ke = Concat<axis = 2>(ku, ku) kr = Reshape(ke, many)
    vu = Unsqueeze(v, ax) ve = Concat<axis = 2>(vu, vu) vr = Reshape(ve, many)
"""
GROUPED = "float[b, 4, s, 8] q, float[b, 2, t, 8] k, float[b, 2, t, 8] v, float[b, 1, s, t] mask"
GROUPED_END = """kt = Transpose<perm = [0, 1, 3, 2]>(kr) p = MatMul(q, kt) c = Mul(p, third) m = Add(c, mask)
    w = Softmax<axis = -1>(m) y = MatMul(w, vr)"""


@pytest.mark.parametrize("repeat", [EXPANDED, JOINED], ids=["Expand", "Concat"])
def test_query_heads_share_heads_that_were_repeated(repeat: str) -> None:
    text = graph(repeat + GROUPED_END, GROUPED)
    fused = fuse(FuseAttention(), text)
    assert [op for op in fused.ops if op != "Constant"] == ["Attention"]
    _on_onnxruntime(fused.graph, _random(text))


def test_heads_that_are_repeated_in_another_order_are_not_grouped() -> None:
    # [a, b] becomes [a, b, a, b], as a Tile has it, not [a, a, b, b].
    body = "kr = Concat<axis = 1>(k, k) vr = Concat<axis = 1>(v, v)" + GROUPED_END
    fused = fuse(FuseAttention(), graph(body, GROUPED))
    assert fused.sites == 1 and fused.count["Concat"] == 2


CACHED = """float[b, 4, s, 8] q, float[b, 4, n, 8] k, float[b, 4, n, 8] v, float[b, 1, s, t] mask,
    float[b, 4, 5, 8] pk, float[b, 4, 5, 8] pv"""
CACHED_BODY = """allk = Concat<axis = -2>(pk, k) allv = Concat<axis = 2>(pv, v)
    kt = Transpose<perm = [0, 1, 3, 2]>(allk) p = MatMul(q, kt) c = Mul(p, third) m = Add(c, mask)
    w = Softmax<axis = -1>(m) y = MatMul(w, allv)"""


def test_caches_become_past_and_present() -> None:
    inputs = CACHED.replace("[b, 1, s, t] mask", "[b, 1, s, 8] mask")
    text = graph(CACHED_BODY, inputs, "float[b, 4, s, 8] y, float[b, 4, u, 8] allk, float[b, 4, u, 8] allv")
    fused = fuse(FuseAttention(), text)
    assert [op for op in fused.ops if op != "Constant"] == ["Attention"]
    attention = fused.node("Attention")
    assert [v.name for v in attention.inputs if v is not None] == ["q", "k", "v", "mask", "pk", "pv"]
    assert [v.name for v in attention.outputs] == ["y", "allk", "allv"]
    _on_onnxruntime(fused.graph, _random(text))


def test_a_cache_that_is_read_elsewhere_stays_a_concat() -> None:
    body = CACHED_BODY + " z = Neg(allk)"
    inputs = CACHED.replace("[b, 1, s, t] mask", "[b, 1, s, 8] mask")
    fused = fuse(FuseAttention(), graph(body, inputs, "float[b, 4, s, 8] y, float[b, 4, u, 8] z"))
    assert fused.sites == 1 and fused.count["Concat"] == 2


def test_an_attention_that_the_model_comes_with_is_simplified() -> None:
    body = EXPANDED + "y = Attention(q, kr, vr, mask)"
    fused = fuse(FuseAttention(), graph(body, GROUPED))
    assert fused.sites == 1 and not fused.count["Expand"]


def test_fuses_inside_a_branch() -> None:
    text = graph(
        f"""y = If (c) <then_branch = t () => (float[b, 4, s, 8] z)
            {{ {KEYS} p = MatMul(q, kt) m = Add(p, mask) w = Softmax<axis = -1>(m) z = MatMul(w, v) }},
            else_branch = e () => (float[b, 4, s, 8] n) {{ n = Neg(q) }}>""",
        INPUTS + ", bool c",
    )
    fused = fuse(FuseAttention(), text)
    assert fused.sites == 1 and fused.count["Attention"] == 1


@pytest.mark.parametrize("fill", [-np.inf, float(np.finfo(np.float32).min)], ids=["-inf", "lowest"])
def test_a_row_that_is_masked_as_a_whole(fill: float) -> None:
    """By -inf it is zeros where the model guards against NaN; by the lowest number it is uniform."""
    body = f"""fill = Constant<value = float {{{"-inf" if fill == -np.inf else "-3.4028234663852886e38"}}}>()
        {KEYS} p = MatMul(q, kt) term = Where(mask, zero, fill) m = Add(p, term)
        u = Softmax<axis = -1>(m) n = IsNaN(u) w = Where(n, zero, u) y = MatMul(w, v)"""
    text = graph(body, INPUTS.replace("float[b, 1, s, t] mask", "bool[b, 1, s, t] mask"))
    fused = fuse(FuseAttention(), text)
    assert fused.sites == 1
    feeds = _random(text)
    feeds["mask"] = np.ones((3, 1, 3, 3), bool)
    feeds["mask"][1, 0, 2] = False
    with np.errstate(invalid="ignore"):  # the formula makes a NaN before it guards against it
        want = run(_model(text), feeds)
        assert_within_rounding(_model(text), ir.to_proto(fused.graph), feeds, 8)
    assert (want[0][1, :, 2] == 0).all() == (fill == -np.inf)
    _on_onnxruntime(fused.graph, feeds)


SKIPPED = {
    "the softmax output is also a graph output": (FORMS["scaled"], INPUTS, ", float[b, 4, s, t] w"),
    "the scores are also a graph output": (FORMS["scaled"], INPUTS, ", float[b, 4, s, t] c"),
    "Neg reads the softmax output too": (FORMS["scaled"] + " z = Neg(w)", INPUTS, ", float[b, 4, s, t] z"),
    "scale is not constant": (
        f"{KEYS} p = MatMul(q, kt) m = Mul(p, temperature) {END}",
        INPUTS + ", float[4, 1, 1] temperature",
        "",
    ),
    "scale is -0.35, which is not positive": (
        f"{KEYS} n = Constant<value_float: float = -0.35>() p = MatMul(q, kt) m = Mul(p, n) {END}",
        INPUTS,
        "",
    ),
    "the scores are scaled after the mask was added": (
        f"{KEYS} p = MatMul(q, kt) c = Add(p, mask) m = Mul(c, third) {END}",
        INPUTS,
        "",
    ),
    "masked scores are set to -10000.0, not to the lowest number": (
        f"{KEYS} p = MatMul(q, kt) m = Where(mask, p, minus) {END}",
        INPUTS.replace("float[b, 1, s, t] mask", "bool[b, 1, s, t] mask"),
        "",
    ),
    "head count is unknown: shape of q is [b, h, s, 8], of k [b, h, 8, t], of v [b, h, t, 8]": (
        FORMS["scaled"],
        INPUTS.replace("[b, 4,", "[b, h,"),
        "",
    ),
    "k or v is broadcast over the batch: shape of q is [b, 4, s, 8], of k [1, 4, 8, t], of v [1, 4, t, 8]": (
        FORMS["scaled"],
        INPUTS.replace("[b, 4, t, 8]", "[1, 4, t, 8]"),
        "",
    ),
    "heads of q, k and v differ: 4, 1, 1": (FORMS["scaled"], INPUTS.replace("[b, 4, t, 8]", "[b, 1, t, 8]"), ""),
    "the softmax is over axis 2, not over the last one": (
        FORMS["scaled"].replace("axis = -1", "axis = 2"),
        INPUTS,
        "",
    ),
    "q is [s, 8], not of rank 4": (
        "kt = Transpose<perm = [1, 0]>(k) m = MatMul(q, kt) " + END,
        "float[s, 8] q, float[t, 8] k, float[t, 8] v",
        "",
    ),
}


@pytest.mark.parametrize("reason", SKIPPED)
def test_says_why_not(reason: str) -> None:
    body, inputs, more = SKIPPED[reason]
    output = "float[s, 8] y" if reason.startswith("q is") else "float[b, 4, s, 8] y"
    if "head count" in reason:
        output = "float[b, h, s, 8] y"
    fused = fuse(FuseAttention(), graph(body, inputs, output + more))
    assert fused.sites == 0 and fused.count["Softmax"] == 1
    assert fused.reasons == [reason]


def test_a_softmax_of_something_else_is_no_candidate() -> None:
    body = "p = MatMul(x, w) y = Softmax<axis = -1>(p)"
    fused = fuse(FuseAttention(), graph(body, "float[b, 8] x, float[8, 5] w", "float[b, 5] y"))
    assert fused.sites == 0 and not fused.reasons


def _model(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 23]>' + text)


def _random(text: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    feeds = {}
    for i in _model(text).graph.input:
        shape = [d.dim_value or 3 for d in i.type.tensor_type.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type)
        feeds[i.name] = rng.standard_normal(shape).astype(dtype)
    return feeds


def _on_onnxruntime(graph: ir.Model, feeds: dict[str, np.ndarray]) -> None:
    """onnxruntime's kernel gives for ``graph`` what the reference evaluator gives."""
    proto = ir.to_proto(graph)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for got, want in zip(session.run(None, feeds), run(proto, feeds), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=8 * np.finfo(np.float32).eps * np.abs(want).max())


def test_stays_in_float64() -> None:
    """onnxruntime has no kernel for it, and the operator's definition rounds the scale to float32."""
    doubles = graph(f"{KEYS} p = MatMul(q, kt) m = Add(p, mask) {END}").replace("float[", "double[")
    fused = fuse(FuseAttention(), doubles.replace("<value_double", "<value_float"))
    assert fused.sites == 0
    assert fused.reasons == ["it is float64, for which runtimes have no Attention; its definition scales in float32"]


def test_scores_that_are_reshaped_say_so() -> None:
    """As Bloom and DeBERTa are exported: the heads are folded into the batch for the products."""
    shapes = """fold = Constant<value_ints: ints = [-1, 5, 3]>() back = Constant<value_ints: ints = [-1, 4, 5, 3]>()"""
    scores = "p = MatMul(q, kt) f = Reshape(p, fold) m = Mul(f, third)"
    weighted = "w = Softmax<axis = -1>(m) u = Reshape(w, back) y = MatMul(u, v)"
    inputs = "float[b, 4, 5, 8] q, float[b, 4, 3, 8] k, float[b, 4, 3, 8] v"
    fused = fuse(FuseAttention(), graph(f"{KEYS} {shapes} {scores} {weighted}", inputs, "float[b, 4, 5, 8] y"))
    assert (fused.sites, fused.reasons) == (0, ["the scores are reshaped between the products and the softmax"])
