"""fuse_rotary: both orders of turning, both layouts of heads, and where cos and sin come from."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from fusing import fuse, run

from polycast.passbase import PassContext
from polycast.passes.fusion.fuse_rotary import FuseRotary

INTS = """
    i0 = Constant<value_ints: ints = [0]>() i1 = Constant<value_ints: ints = [1]>()
    i2 = Constant<value_ints: ints = [2]>() i3 = Constant<value_ints: ints = [3]>()
    i4 = Constant<value_ints: ints = [4]>() i8 = Constant<value_ints: ints = [8]>()
    end = Constant<value_ints: ints = [9223372036854775807]>()
"""
#: cos and sin: [batch, sequence, 8], computed of angles: [batch, sequence, 4] as transformers does.
TURN = "twice = Concat<axis = -1>(angles, angles) cos3 = Cos(twice) sin3 = Sin(twice)"
ROTATE_HALF = """
    low = Slice(x, i0, i4, i3, i1) high = Slice(x, i4, end, i3, i1) neg = Neg(high) half = Concat<axis = -1>(neg, low)
    a = Mul(x, cos) c = Mul(half, sin) y = Add(a, c)
"""
FOUR = "float[b, 2, s, 8] x, float[b, s, 4] angles"


def graph(body: str, inputs: str = FOUR, output: str = "float[b, 2, s, 8] y") -> str:
    return f"g ({inputs}) => ({output}) {{ {INTS} {body} }}"


HALVES = {
    "by Slice": ROTATE_HALF,
    "by Split": """low, high = Split<axis = -1, num_outputs = 2>(x) neg = Neg(high) half = Concat<axis = -1>(neg, low)
        a = Mul(cos, x) c = Mul(sin, half) y = Add(c, a)""",
}


@pytest.mark.parametrize("body", HALVES.values(), ids=HALVES)
def test_fuses_rotate_half(body: str) -> None:
    fused = fuse(FuseRotary(), graph(f"{TURN} cos = Unsqueeze(cos3, i1) sin = Unsqueeze(sin3, i1) {body}"))
    assert fused.sites == 1 and not fused.reasons
    assert fused.count["RotaryEmbedding"] == 1 and not fused.count["Add"] + fused.count["Neg"]
    assert fused.node("RotaryEmbedding").attributes["interleaved"].as_int() == 0


def test_turns_before_the_heads_are_split() -> None:
    body = f"""{TURN} cos = Unsqueeze(cos3, i1) sin = Unsqueeze(sin3, i1)
        heads = Constant<value_ints: ints = [0, 0, 2, 8]>() h = Reshape(z, heads)
        x = Transpose<perm = [0, 2, 1, 3]>(h) {ROTATE_HALF}"""
    text = graph(body, "float[b, s, 16] z, float[b, s, 4] angles")
    fused = fuse(FuseRotary(), text)
    rotary = fused.node("RotaryEmbedding")
    assert rotary.inputs[0] is fused.graph.graph.inputs[0]
    assert rotary.attributes["num_heads"].as_int() == 2
    _on_onnxruntime(fused.graph, text)


def test_cos_of_one_row_is_repeated_for_the_batch_once() -> None:
    # The operator wants cos and sin for each row of the batch; exporters leave that to broadcasting.
    body = f"{TURN} cos = Unsqueeze(cos3, i1) sin = Unsqueeze(sin3, i1) {ROTATE_HALF}"
    second = """low2 = Slice(y, i0, i4, i3, i1) high2 = Slice(y, i4, end, i3, i1) neg2 = Neg(high2)
        half2 = Concat<axis = -1>(neg2, low2) a2 = Mul(y, cos) c2 = Mul(half2, sin) z = Add(a2, c2)"""
    text = graph(body + second, FOUR.replace("[b, s, 4]", "[1, s, 4]"), "float[b, 2, s, 8] z")
    fused = fuse(FuseRotary(), text)
    assert fused.sites == 2
    assert fused.count["Expand"] == 2  # of cos and of sin
    _on_onnxruntime(fused.graph, text)


#: llama2.c: neighbours are turned together, and heads come after positions.
PAIRS = """
    even = Slice(x, i0, i8, i3, i2) odd = Slice(x, i1, i8, i3, i2)
    a = Mul(even, cos) c = Mul(odd, sin) real = Sub(a, c) d = Mul(even, sin) e = Mul(odd, cos) imag = Add(d, e)
    last = Constant<value_ints: ints = [-1]>() r = Unsqueeze(real, last) i = Unsqueeze(imag, last)
    both = Concat<axis = -1>(r, i) shape = Constant<value_ints: ints = [0, 0, 2, 8]>() y = Reshape(both, shape)
"""
POSITIONS_FIRST = "float[b, s, 2, 8] x, float[1, s, 1, 4] angles"


def test_fuses_pairs() -> None:
    text = graph(f"cos = Cos(angles) sin = Sin(angles) {PAIRS}", POSITIONS_FIRST, "float[b, s, 2, 8] y")
    fused = fuse(FuseRotary(), text)
    assert fused.sites == 1
    assert fused.node("RotaryEmbedding").attributes["interleaved"].as_int() == 1
    _on_onnxruntime(fused.graph, text)


def test_fuses_halves_that_are_turned_one_by_one() -> None:
    body = """cos3 = Cos(angles) sin3 = Sin(angles) cos = Unsqueeze(cos3, i1) sin = Unsqueeze(sin3, i1)
        one, two = Split<axis = 3, num_outputs = 2>(x) a = Mul(one, cos) c = Mul(two, sin) real = Sub(a, c)
        d = Mul(two, cos) e = Mul(one, sin) imag = Add(d, e) y = Concat<axis = 3>(real, imag)"""
    fused = fuse(FuseRotary(), graph(body))
    assert fused.node("RotaryEmbedding").attributes["interleaved"].as_int() == 0


def test_a_table_becomes_the_cache() -> None:
    angles = np.outer(np.arange(5), [1, 0.1, 0.01, 0.001])
    rows = {name: turn(np.tile(angles, 2)).astype(np.float32) for name, turn in (("ct", np.cos), ("st", np.sin))}
    body = f"""cos3 = Gather(ct, at) sin3 = Gather(st, at) cos = Unsqueeze(cos3, i1) sin = Unsqueeze(sin3, i1)
        {ROTATE_HALF}"""
    proto = _model(graph(body, "float[b, 2, s, 8] x, int64[b, s] at, float[5, 8] ct, float[5, 8] st"))
    del proto.graph.input[2:]
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in rows.items())
    fused = ir.from_proto(proto)
    assert FuseRotary().rewrite(fused, PassContext()) == 1
    (rotary,) = (n for n in fused.graph if n.op_type == "RotaryEmbedding")
    x, cos, _, at = rotary.inputs
    assert x is not None and cos is not None and at is not None
    assert (x.name, at.name) == ("x", "at")
    assert cos.const_value is not None and tuple(cos.const_value.shape) == (5, 4)
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 2, 3, 8)).astype(np.float32)}
    feeds["at"] = np.array([[0, 1, 2], [2, 3, 4], [4, 0, 4]])
    (want,), (got,) = run(proto, feeds), run(ir.to_proto(fused), feeds)
    np.testing.assert_allclose(got, want, rtol=0, atol=4 * np.finfo(np.float32).eps * np.abs(want).max())


SKIPPED = {
    "the halves of cos and sin are not shown to be alike": (
        f"cos = Unsqueeze(cos3, i1) sin = Unsqueeze(sin3, i1) {ROTATE_HALF}",
        "float[b, 2, s, 8] x, float[b, s, 8] cos3, float[b, s, 8] sin3",
    ),
    "head count is unknown: x is [b, h, s, 8]": (
        f"{TURN} cos = Unsqueeze(cos3, i1) sin = Unsqueeze(sin3, i1) {ROTATE_HALF}",
        "float[b, h, s, 8] x, float[b, s, 4] angles",
    ),
    "cos [b, 2, s, 8] does not tell the heads of x [b, 2, s, 8] from its positions": (
        f"twice = Concat<axis = -1>(angles, angles) cos = Cos(twice) sin = Sin(twice) {ROTATE_HALF}",
        "float[b, 2, s, 8] x, float[b, 2, s, 4] angles",
    ),
    "what is added to the rotated half is not x * cos": (
        f"{TURN} cos = Unsqueeze(cos3, i1) sin = Unsqueeze(sin3, i1) "
        + ROTATE_HALF.replace("Mul(x, cos)", "Mul(sin, cos)"),
        FOUR,
    ),
    "the rotated half is not multiplied with sin and added": (
        f"{TURN} cos = Unsqueeze(cos3, i1) sin = Unsqueeze(sin3, i1) " + ROTATE_HALF.replace("Add(a, c)", "Sub(a, c)"),
        FOUR,
    ),
}


@pytest.mark.parametrize("reason", SKIPPED)
def test_says_why_not(reason: str) -> None:
    body, inputs = SKIPPED[reason]
    output = "float[b, h, s, 8] y" if "[b, h" in inputs else "float[b, 2, s, 8] y"
    fused = fuse(FuseRotary(), graph(body, inputs, output))
    assert fused.sites == 0
    assert fused.reasons == [reason]


def test_an_imaginary_part_that_does_not_belong_to_the_real_one() -> None:
    body = f"cos = Cos(angles) sin = Sin(angles) {PAIRS}".replace("imag = Add(d, e)", "imag = Max(d, e)")
    fused = fuse(FuseRotary(), graph(body, POSITIONS_FIRST, "float[b, s, 2, 8] y"))
    assert fused.reasons == ["the imaginary part is not a * sin + b * cos"]


def _model(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 23]>' + text)


def _on_onnxruntime(graph: ir.Model, text: str) -> None:
    """onnxruntime's kernel gives for ``graph`` what the reference evaluator gives for the formula."""
    proto = _model(text)
    rng = np.random.default_rng(0)
    feeds = {
        i.name: rng.standard_normal([d.dim_value or 3 for d in i.type.tensor_type.shape.dim]).astype(np.float32)
        for i in proto.graph.input
    }
    session = ort.InferenceSession(ir.to_proto(graph).SerializeToString(), providers=["CPUExecutionProvider"])
    for got, want in zip(session.run(None, feeds), run(proto, feeds), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=8 * np.finfo(np.float32).eps * np.abs(want).max())
