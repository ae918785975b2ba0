"""Graphs that look like others: what is written computes what ONNX says of them, or they are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from litert_files import close, exact, graph, problems, run, written
from onnx.reference import ReferenceEvaluator

RNG = np.random.default_rng(11)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def codes(*shape: int, dtype: str = "int8") -> np.ndarray:
    limits = np.iinfo(dtype)
    return RNG.integers(limits.min, limits.max + 1, shape).astype(dtype)


#: Of 8 bits: what codes are read by, and written by.
GRID = {"s": np.array(0.05, np.float32), "z": np.array(0, np.int8), "u": np.array(128, np.uint8)}
READ = "q = QuantizeLinear (x, s, z) a = DequantizeLinear (q, s, z)"
GIVE = "e = QuantizeLinear (c, s, z) y = DequantizeLinear (e, s, z)"

#: What computes in floats: its inputs and its result, the nodes, and constants.
FLOATS = {
    "an activation behind a sum of two": ("[2, 3] x, float[2, 3] b", "[2, 3]", "t = Sum (x, b) y = Relu (t)", {}),
    "an activation behind a sum of one": ("[2, 3] x", "[2, 3]", "t = Sum (x) y = Relu (t)", {}),
    "an activation behind one mean": (
        "[1, 3, 4, 4] x", "[1, 3, 1, 1]", "t = AveragePool <kernel_shape = [4, 4]> (x) y = Relu (t)", {},
    ),
    "an activation behind the mean of a sequence": (
        "[1, 3, 4] x", "[1, 3, 1]", "t = AveragePool <kernel_shape = [4]> (x) y = Relu (t)", {},
    ),
    "codes with a sign, and no zero": (
        "[8] x", "[8]", "q = QuantizeLinear <output_dtype = 3> (x, s) y = DequantizeLinear (q, s)", {},
    ),
    "codes without a sign, and no zero": ("[8] x", "[8]", "q = QuantizeLinear (x, s) y = DequantizeLinear (q, s)", {}),
    "codes that are moved": (
        "[2, 3] x", "[3, 2]", "q = QuantizeLinear (x, s, z) m = Transpose (q) y = DequantizeLinear (m, s, z)", {},
    ),
    "a bias of each column behind windows": (
        "[1, 2, 3, 3] x", "[1, 2, 2, 2]",
        "q, k, o = DynamicQuantizeLinear (x) t = ConvInteger (q, w, o) f = Cast <to = 1> (t) m = Mul (k, s)"
        " p = Mul (f, m) y = Add (p, c)",
        {"w": codes(2, 2, 2, 2), "c": normal(2)},
    ),
    "scales of two axes": (
        "[1, 1, 5, 5] x", "[1, 1, 7, 7]",
        'y = Resize <axes = [2, 3], mode = "linear", coordinate_transformation_mode = "asymmetric"> (x, , k)',
        {"k": np.array([1.5, 1.5], np.float32)},
    ),
    "sizes that keep the aspect ratio": (
        "[1, 1, 5, 6] x", "[1, 1, 7, 8]",
        'y = Resize <axes = [2, 3], keep_aspect_ratio_policy = "not_larger", mode = "nearest", nearest_mode = "floor",'
        ' coordinate_transformation_mode = "asymmetric"> (x, , , k)',
        {"k": np.array([7, 9])},
    ),
    **{
        f"{op} over no axes": ("[3] x", "[3]", f"t = Abs (x) y = {op} <noop_with_empty_axes = 1> ({of})", {})
        for op, of in (("ReduceL1", "x"), ("ReduceL2", "x"), ("ReduceSumSquare", "x"), ("ReduceLogSum", "t"),
                       ("ReduceLogSumExp", "x"), ("ReduceSum", "x"))
    },
    "a power with more axes": ("[3] x", "[1, 3]", "y = Pow (x, k)", {"k": np.array([[2]], np.float32)}),
}  # fmt: skip

#: What computes on codes, from ``a`` to ``c``: the shapes of the two, the nodes, and constants.
CODES = {
    "an activation behind one mean": (
        "[1, 3, 4, 4]", "[1, 3, 1, 1]", "t = AveragePool <kernel_shape = [4, 4]> (a) c = Relu (t)", {},
    ),
    "bounds that only the grid behind a mean has": (
        "[1, 1, 3, 3]", "[1, 1, 2, 2]",
        "g = QuantizeLinear (x, v, z) h = DequantizeLinear (g, v, z)"
        " t = AveragePool <kernel_shape = [2, 2]> (h) c = Clip (t, least, most)",
        {"v": np.array(0.1, np.float32), "least": np.array(-7, np.float32), "most": np.array(7, np.float32)},
    ),
    "a bias on another scale": (
        "[1, 2, 3, 3]", "[1, 2, 3, 3]",
        "k = DequantizeLinear <axis = 0> (w, v) d = DequantizeLinear (b, o) c = Conv (a, k, d)",
        {
            "w": codes(2, 2, 1, 1), "v": np.full(2, 0.01, np.float32), "b": np.array([100, -70], np.int32),
            "o": np.array(0.01, np.float32),
        },
    ),
    "a bias of 8 bits": (
        "[2, 4]", "[2, 3]", "k = DequantizeLinear (w, v) d = DequantizeLinear (b, v) c = Gemm (a, k, d)",
        {"w": codes(4, 3), "v": np.array(0.01, np.float32), "b": codes(3)},
    ),
    "a weight whose zero is not 0": (
        "[1, 2, 3, 3]", "[1, 2, 3, 3]", "k = DequantizeLinear (w, v, o) c = Conv (a, k)",
        {"w": codes(2, 2, 1, 1, dtype="uint8"), "v": np.array(0.01, np.float32), "o": np.array(120, np.uint8)},
    ),
    "a weight with a scale for each input": (
        "[1, 2, 3, 3]", "[1, 2, 3, 3]", "k = DequantizeLinear <axis = 1> (w, v) c = Conv (a, k)",
        {"w": codes(2, 2, 1, 1), "v": np.array([0.01, 0.002], np.float32)},
    ),
    "a factor with a scale for each channel": (
        "[2, 4]", "[2, 4]", "k = DequantizeLinear <axis = 0> (w, v) c = Mul (a, k)",
        {"w": codes(4), "v": np.array([0.01, 0.02, 0.03, 0.04], np.float32)},
    ),
}  # fmt: skip

DYNAMIC = "q, k, o = DynamicQuantizeLinear (x)"
SCALED = "f = Cast <to = 1> (t) m = Mul (k, s) y = Mul (f, m)"

#: What LiteRT has no words for: inputs and result, nodes, constants, and what the user is told.
REFUSED = {
    "a bias of each row": (
        "[3, 2]", "[3, 3]", "y = Gemm (x, w, c)", {"w": normal(2, 3), "c": normal(3, 1)}, "not one constant for each",
    ),
    "blocks of int8": (
        "[1, 32]", "[1, 2]", "d = DequantizeLinear <axis = 0, block_size = 32> (w, k) y = MatMul (x, d)",
        {"w": codes(32, 2), "k": np.ones((1, 2), np.float32)}, "not on a grid of 8 bits with one scale",
    ),
    "a product by codes whose zero it leaves out": (
        "[1, 2]", "[1, 2]", f"{DYNAMIC} t = MatMulInteger (q, w) {SCALED}", {"w": codes(2, 2)}, "MatMulInteger",
    ),
    "windows over codes whose zero they leave out": (
        "[1, 2, 3, 3]", "[1, 2, 2, 2]", f"{DYNAMIC} t = ConvInteger (q, w) {SCALED}", {"w": codes(2, 2, 2, 2)},
        "ConvInteger",
    ),
    "codes of 16 bits": (
        "[4]", "[4]", "q = QuantizeLinear <output_dtype = 5> (x, s) y = DequantizeLinear (q, s)", {},
        "not one of 8 bits",
    ),
    "codes as numbers": (
        "[4]", "[4]", "q = QuantizeLinear (x, s, u) y = Cast <to = 1> (q)", {}, "takes the codes of q for numbers",
    ),
    "zeros between codes": (
        "[4]", "[6]", "q = QuantizeLinear (x, s, u) p = Pad (q, k) y = DequantizeLinear (p, s, u)",
        {"k": np.array([1, 1])}, "takes the codes of q for numbers",
    ),
    "bounds of codes": (
        "[1, 1, 4, 4]", "[1, 1, 2, 2]",
        "q = QuantizeLinear (x, s, u) m = MaxPool <kernel_shape = [3, 3]> (q) c = Clip (m, low, high)"
        " y = DequantizeLinear (c, s, u)",
        {"low": np.array(0, np.uint8), "high": np.array(6, np.uint8)}, "takes the codes of m for numbers",
    ),
    "codes on another grid": (
        "[4]", "[4]", "q = QuantizeLinear (x, s, u) y = DequantizeLinear (q, k, u)", {"k": np.array(0.1, np.float32)},
        "another than that of the codes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", FLOATS)
def test_floats_are_what_onnx_says(what: str, tmp_path: Path) -> None:
    inputs, output, body, constants = FLOATS[what]
    proto = graph(f"net (float{inputs}) => (float{output} y) {{ {body} }}", **GRID, **constants)
    feeds = {port.name: normal(*_shape(port)) for port in proto.graph.input}
    [found] = run(written(proto, tmp_path), feeds)
    close(found, ReferenceEvaluator(proto).run(None, feeds)[0], 32)


@pytest.mark.parametrize("what", CODES)
def test_codes_are_what_onnx_says_to_a_step(what: str, tmp_path: Path) -> None:
    shape, output, body, constants = CODES[what]
    nodes = f"{READ} {body} {GIVE}"
    proto = graph(f"net (float{shape} x) => (float{output} y) {{ {nodes} }}", **GRID, **constants)
    feeds = {"x": np.resize(np.linspace(-3, 3, 11, dtype=np.float32), _shape(proto.graph.input[0]))}
    [found] = run(written(proto, tmp_path), feeds)
    assert np.abs(found - ReferenceEvaluator(proto).run(None, feeds)[0]).max() < 1.5 * GRID["s"]


@pytest.mark.parametrize("what", REFUSED)
def test_what_litert_has_no_words_for_is_refused(what: str) -> None:
    shape, output, body, constants, reason = REFUSED[what]
    found = problems(graph(f"net (float{shape} x) => (float{output} y) {{ {body} }}", **GRID, **constants))
    assert reason in " ".join(found)


def test_erf_has_its_limits(tmp_path: Path) -> None:
    proto = graph("net (float[4] x) => (float[4] y) { y = Erf (x) }")
    [found] = run(written(proto, tmp_path), {"x": np.array([-np.inf, np.inf, np.nan, 30], np.float32)})
    np.testing.assert_array_equal(found, np.array([-1, 1, np.nan, 1], np.float32))


def test_a_cut_backwards_begins_at_the_first_at_least(tmp_path: Path) -> None:
    """onnxruntime is the judge: onnx.reference cuts as Python does, which finds nothing there."""
    bounds = {"from": np.array([-9]), "to": np.array([-99]), "zero": np.array([0]), "back": np.array([-1])}
    proto = graph("net (float[3] x) => (float[n] y) { y = Slice (x, from, to, zero, back) }", **bounds)
    feeds = {"x": normal(3)}
    np.testing.assert_array_equal(run(written(proto, tmp_path), feeds), exact(proto, feeds))


def _shape(port: Any) -> list[int]:
    return [dim.dim_value for dim in port.type.tensor_type.shape.dim]
