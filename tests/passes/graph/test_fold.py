"""``fold``: what is computed at compile time, what is not, and why."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from rewrites import rewrite

from polycast.model import digest
from polycast.passbase import PassContext
from polycast.passes.graph.clean import Clean
from polycast.passes.graph.fold import Fold

SUBGRAPHS = "silero/silero_vad_16k_op15.onnx"
ZOO = ("coco/FastestDet.onnx", "lm/stories260K.onnx", "magika/model.onnx", "mnist/mnist.onnx", SUBGRAPHS)


def body(lines: str, x: str, y: str, constants: str = "") -> str:
    return f"g ({x}) => ({y}) {f'<{constants}>' if constants else ''} {{ {lines} }}"


#: name -> lines, constants, inputs, outputs, what is left
FOLDED: dict[str, tuple[str, str, str, str, list[str]]] = {
    "constants": (
        "c = Constant<value_float=2.0>()  d = Exp(c)  e = Add(d, w)  y = Mul(x, e)",
        "float[4] w = {1, 2, 3, 4}",
        "float[N,4] x",
        "float[N,4] y",
        ["Mul"],
    ),
    "several outputs": (
        "a, b = Split<axis=0, num_outputs=2>(w)  c = Mul(x, a)  y = Add(c, b)",
        "float[2] w = {1, 2}",
        "float[N] x",
        "float[N] y",
        ["Mul", "Add"],
    ),
    "output of the graph": (
        "y = Exp(w)  z = Neg(x)",
        "float[1] w = {1}",
        "float[N] x",
        "float[1] y, float[N] z",
        ["Constant", "Neg"],
    ),
    "fixed shape": (
        "s = Shape(x)  t = Concat<axis=0>(s, one)  y = Reshape(x, t)",
        "int64[1] one = {1}",
        "float[2,4] x",
        "float[2,4,1] y",
        ["Reshape"],
    ),
    "fixed size": ("s = Size(x)  f = Cast<to=1>(s)  y = Div(x, f)", "", "float[2,4] x", "float[2,4] y", ["Div"]),
    "fixed part of a symbolic shape": (
        "s = Shape<start=1, end=2>(x)  f = Cast<to=1>(s)  y = Div(x, f)",
        "",
        "float[N,4] x",
        "float[N,4] y",
        ["Div"],
    ),
    "size that is copied": (
        "s = Shape(x)  n = Gather(s, zero)  u = Unsqueeze(n, zeros)  t = Concat<axis=0>(u, two, two)y = Reshape(x, t)",
        "int64 zero = {0}, int64[1] zeros = {0}, int64[1] two = {2}",
        "float[N,4] x",
        "float[N,2,2] y",
        ["Reshape"],
    ),
    "size that is inferred": (
        "s = Shape(x)  n = Gather(s, one)  t = Concat<axis=0>(two, n)  y = Reshape(x, t)",
        "int64[1] one = {1}, int64[1] two = {2}",
        "float[2,M] x",
        "float[2,M] y",
        ["Reshape"],
    ),
    "size that is not of the input": (
        "s = Shape(z)  n = Gather(s, zero)  t = Concat<axis=0>(n, two)  y = Reshape(x, t)",
        "int64[1] zero = {0}, int64[1] two = {2}",
        "float[N,2,1] x, float[N] z",
        "float[N,2] y",
        ["Reshape"],
    ),
    "arithmetic that cancels": (
        "s = Shape(x)  n = Gather(s, zero)  m = Mul(n, eight)  k = Div(m, eight)  t = Concat<axis=0>(k, two, two)"
        "y = Reshape(x, t)",
        "int64[1] zero = {0}, int64[1] eight = {8}, int64[1] two = {2}",
        "float[N,4] x",
        "float[N,2,2] y",
        ["Reshape"],
    ),
    "expand to its own size": (
        "s = Shape(x)  n = Gather(s, zero)  t = Concat<axis=0>(n, four)  y = Expand(x, t)",
        "int64[1] zero = {0}, int64[1] four = {4}",
        "float[N,1] x",
        "float[N,4] y",
        ["Expand"],
    ),
    "minus one where a mask is expanded": (  # as transformers exports it
        "s = Shape(x)  n = Gather(s, zero)  t = Concat<axis=0>(n, four)  r = Shape(t)"
        "ones = ConstantOfShape<value=int64[1] {1}>(r)"
        "m = Mul(ones, minus)  q = Equal(t, m)  w = Where(q, ones, t)  y = Expand(x, w)",
        "int64[1] zero = {0}, int64[1] four = {4}, int64 minus = {-1}",
        "float[N,1] x",
        "float[N,4] y",
        ["Expand"],
    ),
    "slice to the end": (
        "s = Shape(x)  n = Gather(s, zero)  y = Slice(x, one, n, zero)",
        "int64[1] zero = {0}, int64[1] one = {1}",
        "float[N,4] x",
        "float[M,4] y",
        ["Slice"],
    ),
    "what is left for a -1 is a size of the input": (
        "s = Shape(x)  n = Gather(s, zero)  t = Concat<axis=0>(n, minus, four)  a = Reshape(x, t)  z = Relu(a)"
        "u = Shape(z)  y = Reshape(x, u)",
        "int64[1] zero = {0}, int64[1] minus = {-1}, int64[1] four = {4}",
        "float[N,M,2,2] x",
        "float[N,M,4] y",
        ["Reshape"],
    ),
    "what is left for a -1 is twice a size of the input": (
        "s = Shape(x)  n = Gather(s, zero)  t = Concat<axis=0>(n, minus, four)  a = Reshape(x, t)  z = Relu(a)"
        "u = Shape(z)  y = Reshape(x, u)",
        "int64[1] zero = {0}, int64[1] minus = {-1}, int64[1] four = {4}",
        "float[N,M,8] x",
        "float[N,K,4] y",
        ["Reshape", "Relu", "Shape", "Reshape"],
    ),
    "a range as long as an input": (
        "s = Shape(x)  n = Gather(s, one)  r = Range(zero, n, one)  f = Cast<to=1>(r)  t = Shape(f)"
        "q = Gather(t, zero)  v = Unsqueeze(q, zeros)  o = Concat<axis=0>(two, v)  g = Reshape(x, o)  y = Add(g, f)",
        "int64 zero = {0}, int64 one = {1}, int64[1] zeros = {0}, int64[1] two = {2}",
        "float[2,M] x",
        "float[2,M] y",
        ["Shape", "Gather", "Range", "Cast", "Reshape", "Add"],
    ),
    "the same symbolic shape twice": (
        "a = Exp(x)  s = Shape(x)  t = Shape(a)  c = ConstantOfShape(s)  d = ConstantOfShape(t)"
        "e = Add(c, d)  y = Add(e, a)",
        "",
        "float[N,M] x",
        "float[N,M] y",
        ["Exp", "Shape", "ConstantOfShape", "ConstantOfShape", "Add", "Add"],
    ),
    "constant of a fixed shape": (
        "s = Shape(x)  c = ConstantOfShape<value=float[1] {2.0}>(s)  y = Add(x, c)",
        "",
        "float[2,3] x",
        "float[2,3] y",
        ["Add"],
    ),
}


@pytest.mark.parametrize("case", FOLDED.values(), ids=FOLDED.keys())
def test_folds(case: tuple[str, str, str, str, list[str]]) -> None:
    lines, constants, x, y, left = case
    result = rewrite(Fold(), body(lines, x, y, constants))
    assert result.sites > 0
    assert result.ops == left


#: name -> lines, constants, inputs, outputs, reason of the skip
KEPT: dict[str, tuple[str, str, str, str, str]] = {
    "random": (
        "r = RandomNormalLike<seed=1.0>(w)  z = Mul(r, n)  y = Add(x, z)",
        "float[2] w = {1, 2}, float n = {0}",
        "float[2] x",
        "float[2] y",
        "RandomNormalLike is random",
    ),
    "quantized": (
        "w = DequantizeLinear(q, s)  y = Add(x, w)",
        "int8[2] q = {1, 2}, float s = {0.5}",
        "float[2] x",
        "float[2] y",
        "the constant is quantized, and stays so",
    ),
    "large": (
        "w = Expand(v, s)  y = Add(x, w)",
        "float[1] v = {1}, int64[2] s = {512, 1024}",
        "float[512,1024] x",
        "float[512,1024] y",
        "result is 2.0 MB, over max_bytes",
    ),
    "two computed sizes": (
        "s = Shape(z)  y = Reshape(x, s)",
        "",
        "float[N] x, float[A,B] z",
        "float[A,B] y",
        "2 sizes of the new shape are computed and not those of the input in place",
    ),
    "a computed size beside a symbolic one": (
        "s = Shape(z)  y = Reshape(x, s)",
        "",
        "float[N,K] x, float[N,B] z",
        "float[N,B] y",
        "a size of the new shape is computed, and cannot be -1 beside another that may be 0",
    ),
}


@pytest.mark.parametrize("case", KEPT.values(), ids=KEPT.keys())
def test_keeps(case: tuple[str, str, str, str, str]) -> None:
    lines, constants, x, y, reason = case
    feeds = {"x": np.ones(9, np.float32), "z": np.ones((3, 3), np.float32)} if x.startswith("float[N] x") else {}
    result = rewrite(Fold(), body(lines, x, y, constants), feeds)
    assert result.sites == 0
    assert result.reasons == [reason]


def test_max_bytes_is_a_parameter() -> None:
    text = body(
        "w = Exp(v)  u = Expand(w, s)  y = Add(x, u)", "float[4] x", "float[4] y", "float[1] v = {1}, int64[1] s = {4}"
    )
    assert Fold(max_bytes=4).spelling == "fold(max_bytes=4)"
    assert rewrite(Fold(max_bytes=4), text).ops == ["Expand", "Add"]
    assert rewrite(Fold(max_bytes=16), text).ops == ["Add"]


def test_a_large_weight_is_replaced_but_never_doubled() -> None:
    """A transposed weight may take the place of the weight; beside it, it would double the model."""
    for readers, left in ((["t"], ["MatMul"]), (["t", "w"], ["Transpose", "MatMul", "MatMul"])):
        nodes = [helper.make_node("Transpose", ["w"], ["t"])]
        nodes += [helper.make_node("MatMul", ["x", w], [f"y{i}"]) for i, w in enumerate(readers)]
        infos = [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, ["N", 64]) for i in range(len(readers))]
        weight = numpy_helper.from_array(np.eye(64, dtype=np.float32), "w")
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])
        graph = helper.make_graph(nodes, "g", [x], infos, [weight])
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
        assert rewrite(Fold(max_bytes=1024), proto).ops == left


def test_custom_ops_are_kept_with_the_reason() -> None:
    nodes = [helper.make_node("Twice", ["w"], ["t"], domain="com.example"), helper.make_node("Add", ["x", "t"], ["y"])]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(np.ones(1, np.float32), "w")])
    imports = [helper.make_opsetid("", 23), helper.make_opsetid("com.example", 1)]
    ctx = PassContext()
    assert Fold().rewrite(ir.from_proto(helper.make_model(graph, opset_imports=imports)), ctx) == 0
    assert [skip.reason for skip in ctx.skips] == ["com.example.Twice has no reference implementation"]


IF = """g (float[N] x) => (float[N] y) <bool c = {{{condition}}}> {{
    a = If (c) <
        then_branch = t () => (float[N] p) {{ w = Constant<value_float=2.0>()  q = Mul(x, w)  p = Exp(q) }},
        else_branch = e () => (float[N] p) {{ q = Neg(x)  p = Tanh(q) }}
    >
    b = If (c) <
        then_branch = t () => (float[N] p) {{ p = Identity(a) }},
        else_branch = e () => (float[N] p) {{ q = Neg(a)  p = Tanh(q) }}
    >
    y = Add(a, b)
}}"""


@pytest.mark.parametrize(
    ("condition", "left"),
    [("1", ["Mul", "Exp", "Identity", "Add"]), ("0", ["Neg", "Tanh", "Neg", "Tanh", "Add"])],
)
def test_takes_the_branch_of_a_constant_condition(condition: str, left: list[str]) -> None:
    assert rewrite(Fold(), IF.format(condition=condition)).ops == left


def test_a_branch_that_gives_an_outer_value_to_an_output() -> None:
    text = """g (float[N] x) => (float[N] y, float[N] z) <bool c = {1}> {
        y = Exp(x)
        z = If (c) <then_branch = t () => (float[N] p) { p = Identity(y) },
                    else_branch = e () => (float[N] r) { r = Neg(y) }>
    }"""
    assert rewrite(Fold(), text).ops == ["Exp", "Identity"]


def test_folds_inside_loops_without_mixing_up_their_symbols() -> None:
    """The size of v grows with every turn, so N inside the loop is not N outside."""
    text = """g (float[N] x) => (float[M] y) <int64 n = {2}, bool go = {1}> {
        s = Shape(x)
        f = Cast<to=1>(s)
        a = Div(x, f)
        y = Loop (n, go, a) <body = b (int64 i, bool k, float[N] v) => (bool k_out, float[L] v_out) {
            k_out = Identity(k)
            t = Shape(v)
            g = Cast<to=1>(t)
            two = Constant<value_float=2.0>()
            four = Exp(two)
            h = Mul(v, four)
            o = Concat<axis=0>(h, g)
            v_out = Identity(o)
        }>
    }"""
    result = rewrite(Fold(), text)
    assert result.count["Shape"] == 2
    assert result.count["Exp"] == result.count["Constant"] == 0


def test_in_a_function_a_constant_stays_a_node() -> None:
    nodes = [
        helper.make_node("Constant", [], ["c"], value_float=2.0),
        helper.make_node("Exp", ["c"], ["d"]),
        helper.make_node("Mul", ["a", "d"], ["b"]),
    ]
    call = helper.make_node("f", ["x"], ["y"], domain="local")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    imports = [helper.make_opsetid("", 23), helper.make_opsetid("local", 1)]
    proto = helper.make_model(helper.make_graph([call], "g", [x], [y]), opset_imports=imports, ir_version=10)
    proto.functions.append(helper.make_function("local", "f", ["a"], ["b"], nodes, imports[:1]))
    result = rewrite(Fold(), proto)
    assert [node.op_type for node in result.graph.functions["local", "f", ""]] == ["Constant", "Mul"]


def test_leaves_the_inferred_shapes_in_the_graph() -> None:
    text = body(
        "a = Transpose<perm=[1,0]>(x)  c = Constant<value_float=2.0>()  y = Mul(a, c)", "float[N,4] x", "float[4,N] y"
    )
    shape = rewrite(Fold(), text).node("Transpose").outputs[0].shape
    assert shape is not None and [str(d) for d in shape] == ["4", "N"]


@pytest.mark.parametrize(("declared", "known"), [(["N", 4], True), ([1, 4], False)])
def test_shapes_in_the_file_fill_gaps_unless_they_contradict(declared: list[int | str], known: bool) -> None:
    """Inference cannot tell what comes out of a custom op; the file says that its size is N, or a stale 1."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("NonZero", ["a"], ["b"]),
        helper.make_node("Shape", ["b"], ["s"], start=1),
        helper.make_node("Concat", ["s", "four"], ["t"], axis=0),
        helper.make_node("Reshape", ["a", "t"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(np.array([4]), "four")])
    graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, declared))
    graph.value_info.append(helper.make_tensor_value_info("b", TensorProto.INT64, [2, declared[0]]))
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    model = ir.from_proto(proto)
    assert Fold().rewrite(model, PassContext()) == 1
    (target,) = (node.inputs[1] for node in model.graph if node.op_type == "Reshape")
    assert target is not None and target.const_value is not None
    assert target.const_value.numpy().tolist() == ([0, 4] if known else [-1, 4])


@settings(max_examples=40)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_shape_arithmetic_is_that_of_the_reference(sizes: list[int], data: st.DataObject) -> None:
    """Any mix of fixed and symbolic sizes through slices, gathers and products gives the numbers that ONNX gives."""
    fixed = [data.draw(st.booleans()) for _ in sizes]
    dims = [str(size) if known else f"d{size}" for size, known in zip(sizes, fixed, strict=True)]
    start = data.draw(st.integers(-len(sizes), len(sizes) - 1))
    pick = data.draw(st.integers(-len(sizes), len(sizes) - 1))
    text = body(
        "s = Shape(x)  a = Slice(s, i, j)  b = Gather(s, k)  c = Mul(a, b)  d = Div(c, b)  e = Sub(d, a)"
        "f = Add(c, b)  g = Equal(d, a)  h = Where(g, f, minus)  p = ReduceProd(h)  m = Sub(a, nine)"
        "q = Div(m, four)  v = Add(a, none)  w = Mul(v, none)  y = Concat<axis=0>(h, e, p, q, v, w)",
        f"float[{','.join(dims)}] x",
        "int64[L] y",
        f"int64[1] i = {{{start}}}, int64[1] j = {{9}}, int64[1] k = {{{pick}}}, int64 minus = {{-1}},"
        "int64 nine = {9}, int64 four = {4}, int64 none = {0}",
    )
    result = rewrite(Fold(), text, {"x": np.zeros(sizes, np.float32)})
    if all(fixed):
        assert result.ops == ["Constant"]


@pytest.mark.parametrize("name", ZOO)
def test_zoo(zoo: Callable[[str], Path], name: str) -> None:
    graph = ir.load(zoo(name))
    Clean().rewrite(graph, PassContext())
    before = digest(graph)
    sites = Fold().rewrite(graph, PassContext())
    after = digest(graph)
    assert (sites == 0) == (before == after)
    assert Fold().rewrite(graph, PassContext()) == 0
    assert digest(graph) == after


def test_opens_the_branches_of_silero(zoo: Callable[[str], Path]) -> None:
    graph = ir.load(zoo(SUBGRAPHS))
    branches = sum(node.op_type == "If" for node in graph.graph.all_nodes())
    Clean().rewrite(graph, PassContext())
    Fold().rewrite(graph, PassContext())
    assert sum(node.op_type == "If" for node in graph.graph.all_nodes()) < branches


def test_weights_that_are_not_folded_are_not_read(tmp_path: Path) -> None:
    """A model of 256 MB goes through ``clean | fold``; the process grows by less than a tenth of it."""
    size, layers = 2048, 16
    path = tmp_path / "m.onnx"
    nodes, weights = [], []
    with open(tmp_path / "m.data", "wb") as data:
        for layer in range(layers):
            block = np.full((size, size), layer, np.float32)
            tensor = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=block.shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", "m.data"), ("offset", data.tell()), ("length", block.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            data.write(block.data)
            weights.append(tensor)
            nodes += [
                helper.make_node("MatMul", [f"a{layer}", f"w{layer}"], [f"b{layer}"]),
                helper.make_node("Identity", [f"b{layer}"], [f"a{layer + 1}"]),
            ]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size]) for name in ("a0", f"b{layers - 1}")]
    graph = helper.make_graph(nodes[:-1], "g", infos[:1], infos[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path)
    script = f"""
        import resource, onnx.reference, onnx_ir as ir
        from polycast.passbase import PassContext
        from polycast.passes.graph.clean import Clean
        from polycast.passes.graph.fold import Fold
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        graph = ir.load({str(path)!r})
        before = peak()
        assert Clean().rewrite(graph, PassContext()) == {layers - 1}
        assert Fold().rewrite(graph, PassContext()) == 0
        print(peak() - before)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < size * size * 4 * layers / 10
