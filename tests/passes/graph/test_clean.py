"""``clean``: what goes, what stays, and why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from rewrites import rewrite

from polycast.model import digest
from polycast.passbase import PassContext
from polycast.passes.graph.clean import Clean

ZOO = (
    "coco/FastestDet.onnx",
    "imagenet/mobilenet_v1_0.25_224.onnx",
    "lm/stories260K.onnx",
    "magika/model.onnx",
    "mlperftiny/ic_resnet8.onnx",
    "mlperftiny/kws.onnx",
    "mlperftiny/vww_96.onnx",
    "mnist/mnist.onnx",
    "silero/silero_vad_16k_op15.onnx",
    "superres/sr_core.onnx",
)


def body(lines: str, x: str = "float[N, 4, 6] x", y: str = "float[N, 4, 6] y", constants: str = "") -> str:
    return f"g ({x}) => ({y}) {f'<{constants}>' if constants else ''} {{ {lines} }}"


#: name -> lines, constants, inputs, outputs, what is left, sites
GONE: dict[str, tuple[str, str, str, str, list[str]]] = {
    "dead code": ("y = Relu(x)  a = Exp(x)  b = Neg(a)", "", "float[N,4] x", "float[N,4] y", ["Relu"]),
    "unused initializer": ("y = Relu(x)", "float[2] w = {1, 2}", "float[N,4] x", "float[N,4] y", ["Relu"]),
    "identity": ("a = Identity(x)  b = Relu(a)  y = Identity(b)", "", "float[N,4] x", "float[N,4] y", ["Relu"]),
    "equal nodes": (
        "a = Exp(x)  b = Exp(x)  c = Add(a, b)  y = Relu(c)",
        "",
        "float[N,4] x",
        "float[N,4] y",
        ["Exp", "Add", "Relu"],
    ),
    "equal outputs of the graph": (
        "a = Exp(x)  y = Exp(x)  z = Neg(a)",
        "",
        "float[N,4] x",
        "float[N,4] y, float[N,4] z",
        ["Exp", "Neg"],
    ),
    "cast to the same type": ("a = Cast<to=1>(x)  y = Relu(a)", "", "float[N,4] x", "float[N,4] y", ["Relu"]),
    "cast there and back": (
        "a = Cast<to=11>(x)  b = Cast<to=1>(a)  y = Relu(b)",
        "",
        "float[N,4] x",
        "float[N,4] y",
        ["Relu"],
    ),
    "lossless cast in between": (
        "a = Cast<to=7>(x)  b = Cast<to=1>(a)  y = Relu(b)",
        "",
        "int8[N,4] x",
        "float[N,4] y",
        ["Cast", "Relu"],
    ),
    "reshape to the same shape": (
        "a = Reshape(x, s)  y = Relu(a)",
        "int64[3] s = {0, 4, -1}",
        "float[N,4,6] x",
        "float[N,4,6] y",
        ["Relu"],
    ),
    "reshape of reshape": (
        "a = Reshape(x, s)  b = Reshape(a, t)  y = Relu(b)",
        "int64[2] s = {0, 24}, int64[3] t = {-1, 3, 2}",
        "float[N,4,6] x",
        "float[M,3,2] y",
        ["Reshape", "Relu"],
    ),
    "reshape that copies a known size": (
        "a = Reshape(x, s)  b = Reshape(a, t)  y = Relu(b)",
        "int64[2] s = {8, 3}, int64[3] t = {0, 3, 1}",
        "float[4,6] x",
        "float[8,3,1] y",
        ["Reshape", "Relu"],
    ),
    "flatten and back": (
        "a = Flatten(x)  b = Reshape(a, t)  y = Relu(b)",
        "int64[3] t = {0, 4, 6}",
        "float[N,4,6] x",
        "float[N,4,6] y",
        ["Relu"],
    ),
    "unsqueeze and squeeze": (
        "a = Unsqueeze(x, axes)  b = Squeeze(a, axes)  y = Relu(b)",
        "int64[1] axes = {-2}",
        "float[N,4] x",
        "float[N,4] y",
        ["Relu"],
    ),
    "flatten of a matrix": ("a = Flatten(x)  y = Relu(a)", "", "float[N,4] x", "float[N,4] y", ["Relu"]),
    "transposes that cancel": (
        "a = Transpose<perm=[1,2,0]>(x)  b = Transpose<perm=[2,0,1]>(a)  y = Relu(b)",
        "",
        "float[N,4,6] x",
        "float[N,4,6] y",
        ["Relu"],
    ),
    "transposes that compose": (
        "a = Transpose<perm=[1,2,0]>(x)  b = Transpose(a)  y = Relu(b)",
        "",
        "float[N,4,6] x",
        "float[N,6,4] y",
        ["Transpose", "Relu"],
    ),
    "dropout": (
        "a = Dropout(x, r, t)  y = Relu(a)",
        "float r = {0.5}, bool t = {0}",
        "float[N,4] x",
        "float[N,4] y",
        ["Relu"],
    ),
    "pad by nothing": (
        "a = Pad(x, p)  y = Relu(a)",
        "int64[4] p = {0,0,0,0}",
        "float[N,4] x",
        "float[N,4] y",
        ["Relu"],
    ),
    "slice of everything": (
        "a = Slice(x, i, j, k)  y = Relu(a)",
        "int64[1] i = {0}, int64[1] j = {9223372036854775807}, int64[1] k = {0}",
        "float[N,4] x",
        "float[N,4] y",
        ["Relu"],
    ),
    "slice to a size that is fixed": (
        "a = Slice(x, i, j, k)  y = Relu(a)",
        "int64[1] i = {-4}, int64[1] j = {4}, int64[1] k = {1}",
        "float[N,4] x",
        "float[N,4] y",
        ["Relu"],
    ),
    "expand to ones": ("a = Expand(x, s)  y = Relu(a)", "int64[1] s = {1}", "float[N,4] x", "float[N,4] y", ["Relu"]),
    "expand to the same": (
        "a = Expand(x, s)  y = Relu(a)",
        "int64[2] s = {3, 4}",
        "float[3,4] x",
        "float[3,4] y",
        ["Relu"],
    ),
    "concat of one": ("a = Concat<axis=0>(x)  y = Relu(a)", "", "float[N,4] x", "float[N,4] y", ["Relu"]),
    "split into one": ("a = Split<num_outputs=1>(x)  y = Relu(a)", "", "float[N,4] x", "float[N,4] y", ["Relu"]),
    "tile once": ("a = Tile(x, r)  y = Relu(a)", "int64[2] r = {1, 1}", "float[N,4] x", "float[N,4] y", ["Relu"]),
}


@pytest.mark.parametrize("case", GONE.values(), ids=GONE.keys())
def test_goes(case: tuple[str, str, str, str, list[str]]) -> None:
    lines, constants, x, y, left = case
    assert rewrite(Clean(), body(lines, x, y, constants)).ops == left


#: name -> lines, constants, inputs, outputs, reason of the skip (none where nobody would ask)
STAYS: dict[str, tuple[str, str, str, str, str]] = {
    "identity from input to output": ("y = Identity(x)", "", "float[N] x", "float[N] y", ""),
    "unused input": ("y = Relu(x)", "", "float[N] x, float[N] unused", "float[N] y", ""),
    "lossy cast chain": (
        "a = Cast<to=6>(x)  b = Cast<to=7>(a)  y = Neg(b)",
        "",
        "int64[N] x",
        "int64[N] y",
        "int64 -> int32 may lose values",
    ),
    "float to int to float": (
        "a = Cast<to=7>(x)  b = Cast<to=1>(a)  y = Neg(b)",
        "",
        "float[N] x",
        "float[N] y",
        "float -> int64 may lose values",
    ),
    "int to float to a narrower int": (
        "a = Cast<to=1>(x)  b = Cast<to=2>(a)  y = Add(b, b)",
        "",
        "int8[N] x",
        "uint8[N] y",
        "int8 -> uint8 may give other values without float",
    ),
    "computed reshape after a reshape": (
        "a = Reshape(x, s)  y = Reshape(a, t)",
        "int64[1] s = {-1}",
        "float[2,6] x, int64[2] t",
        "float[M,K] y",
        "the new shape is computed: it may copy a dimension",
    ),
    "reshape that copies an unknown size": (
        "a = Reshape(x, s)  y = Reshape(a, t)",
        "int64[2] s = {-1, 2}, int64[3] t = {0, 2, 1}",
        "float[N,4] x",
        "float[M,2,1] y",
        "the new shape copies a dimension whose size is not known",
    ),
    "transpose that moves": ("a = Transpose<perm=[1,0]>(x)  y = Relu(a)", "", "float[4,4] x", "float[4,4] y", ""),
    "reshape that swaps sizes": (
        "a = Reshape(x, s)  y = Relu(a)",
        "int64[2] s = {6, 4}",
        "float[4,6] x",
        "float[6,4] y",
        "",
    ),
    "zero that is a zero": (
        "a = Reshape<allowzero=1>(x, s)  y = Relu(a)",
        "int64[2] s = {0, 4}",
        "float[0,6] x",
        "float[0,4] y",
        "",
    ),
    "slice backwards": (
        "a = Slice(x, i, j, k, d)  y = Relu(a)",
        "int64[1] i = {3}, int64[1] j = {-9223372036854775807}, int64[1] k = {0}, int64[1] d = {-1}",
        "float[4] x",
        "float[4] y",
        "",
    ),
    "slice that may cut": (
        "a = Slice(x, i, j, k)  y = Relu(a)",
        "int64[1] i = {0}, int64[1] j = {2}, int64[1] k = {-1}",
        "float[N] x",
        "float[M] y",
        "",
    ),
    "unsqueeze and squeeze of other axes": (
        "a = Unsqueeze(x, i)  b = Squeeze(a, j)  y = Relu(b)",
        "int64[1] i = {0}, int64[1] j = {2}",
        "float[N,1] x",
        "float[1,N] y",
        "",
    ),
    "pad by one": ("a = Pad(x, p)  y = Relu(a)", "int64[2] p = {0, 1}", "float[N] x", "float[M] y", ""),
    "sum with a bias": ("a = Sum(x, x)  y = Relu(a)", "", "float[N] x", "float[N] y", ""),
}


#: Inputs of those that do not run on random ones of size 3.
FEEDS = {
    "float[2,6] x, int64[2] t": {"x": np.ones((2, 6), np.float32), "t": [0, -1]},
    "float[0,6] x": {"x": np.zeros((0, 6), np.float32)},
}


@pytest.mark.parametrize("case", STAYS.values(), ids=STAYS.keys())
def test_stays(case: tuple[str, str, str, str, str]) -> None:
    lines, constants, x, y, reason = case
    feeds = {name: np.array(value) for name, value in FEEDS.get(x, {}).items()}
    result = rewrite(Clean(), body(lines, x, y, constants), feeds)
    assert result.sites == 0
    assert result.reasons == ([reason] if reason else [])


def test_equal_initializers_become_one() -> None:
    constants = "float[2] u = {1, -0.0}, float[2] v = {1, -0.0}, float[2] w = {1, 0}"
    result = rewrite(
        Clean(), body("a = Add(x, u)  b = Mul(a, v)  y = Sub(b, w)", "float[N,2] x", "float[N,2] y", constants)
    )
    assert list(result.graph.graph.initializers) == ["u", "w"], "0 and -0 are not the same"
    assert result.sites == 1


def test_random_nodes_are_not_merged() -> None:
    text = body(
        "a = RandomNormal<shape=[2], seed=1.0>()  b = RandomNormal<shape=[2], seed=1.0>()  c = Mul(a, zero)"
        "d = Mul(b, zero)  e = Add(c, d)  y = Add(x, e)",
        "float[2] x",
        "float[2] y",
        "float zero = {0}",
    )
    result = rewrite(Clean(), text)
    assert result.count["RandomNormal"] == 2
    assert result.reasons == ["the same as RandomNormal, but RandomNormal is random"]


def test_custom_ops_are_not_merged() -> None:
    nodes = [helper.make_node("Counter", ["x"], [name], f"count_{name}", domain="com.example") for name in ("a", "b")]
    graph = ir.from_proto(model([*nodes, helper.make_node("Add", ["a", "b"], ["y"])], opsets={"com.example": 1}))
    ctx = PassContext()
    assert Clean().rewrite(graph, ctx) == 0
    assert [str(s) for s in ctx.skips] == [
        "count_b (Counter): the same as count_a, but com.example.Counter may have state"
    ]


def test_cleans_inside_branches_and_sees_what_they_read() -> None:
    text = """g (bool c, float[N] x) => (float[N] y) {
        kept = Exp(x)
        dead = Neg(x)
        y = If (c) <
            then_branch = t () => (float[N] p) { q = Identity(kept)  p = Relu(q) },
            else_branch = e () => (float[N] r) { again = Exp(x)  unread = Neg(again)  r = Tanh(again) }
        >
    }"""
    result = rewrite(Clean(), text)
    assert result.ops == ["Exp", "If", "Relu", "Tanh"]


def test_outputs_of_a_branch_stay_its_own() -> None:
    text = """g (bool c, float[N] x) => (float[N] y) {
        a = Exp(x)
        y = If (c) <
            then_branch = t () => (float[N] p) { p = Identity(a) },
            else_branch = e () => (float[N] r) { r = Exp(x) }
        >
    }"""
    result = rewrite(Clean(), text)
    assert result.ops == ["Exp", "If", "Identity", "Exp"], "an output of a subgraph has to come from that subgraph"


def test_cleans_inside_loops() -> None:
    text = """g (float[2] x) => (float[2] y) <int64 n = {3}, bool go = {1}> {
        y = Loop (n, go, x) <body = b (int64 i, bool k, float[2] v) => (bool k_out, float[2] v_out) {
            k_out = Identity(k)
            unread = Exp(v)
            same = Cast<to=1>(v)
            doubled = Add(same, same)
            again = Add(same, same)
            v_out = Mul(doubled, again)
        }>
    }"""
    assert rewrite(Clean(), text).ops == ["Loop", "Identity", "Add", "Mul"]


def test_cleans_functions_and_removes_those_that_nobody_calls() -> None:
    def function(name: str) -> onnx.FunctionProto:
        nodes = [helper.make_node("Identity", ["a"], ["t"]), helper.make_node("Relu", ["t"], ["b"])]
        return helper.make_function("local", name, ["a"], ["b"], nodes, [helper.make_opsetid("", 23)])

    proto = model(
        [helper.make_node("f", ["x"], ["y"], domain="local")], out=["N"], opsets={"local": 1, "ai.onnx.ml": 3}
    )
    proto.functions.extend([function("f"), function("g")])
    graph = ir.from_proto(proto)
    assert Clean().rewrite(graph, PassContext()) == 3
    assert [name for _, name, _ in graph.functions] == ["f"]
    assert [node.op_type for node in graph.functions["local", "f", ""]] == ["Relu"]
    assert sorted(graph.opset_imports) == ["", "local"]
    onnx.checker.check_model(ir.to_proto(graph))


def test_an_attribute_that_the_caller_of_a_function_decides_is_not_known() -> None:
    cast = helper.make_node("Cast", ["a"], ["b"])
    cast.attribute.append(onnx.AttributeProto(name="to", type=onnx.AttributeProto.INT, ref_attr_name="kind"))
    call = helper.make_node("f", ["x"], ["y"], domain="local", kind=1)
    proto = model([call], opsets={"local": 1})
    proto.functions.append(
        helper.make_function("local", "f", ["a"], ["b"], [cast], [helper.make_opsetid("", 23)], ["kind"])
    )
    assert Clean().rewrite(ir.from_proto(proto), PassContext()) == 0


def test_a_default_that_the_caller_may_override_is_no_constant() -> None:
    proto = model([helper.make_node("Reshape", ["x", "s"], ["y"])], extra=[("s", TensorProto.INT64, [1])])
    proto.graph.initializer.append(numpy_helper.from_array(np.array([-1]), "s"))
    assert Clean().rewrite(ir.from_proto(proto), PassContext()) == 0


def test_stale_shapes_in_the_file_are_not_believed() -> None:
    """Someone made the batch symbolic and left the old sizes of the intermediate values in the file."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Reshape", ["a", "s"], ["b"]),
        helper.make_node("Neg", ["b"], ["y"]),
    ]
    proto = model(nodes, dims=["N", 4], out=[1, "M"])
    proto.graph.initializer.append(numpy_helper.from_array(np.array([1, -1]), "s"))
    proto.graph.value_info.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "ab")
    assert Clean().rewrite(ir.from_proto(proto), PassContext()) == 0


def test_loadable_oddities() -> None:
    nodes = [
        helper.make_node("Clip", ["x", "", "high"], ["a"]),
        helper.make_node("MaxPool", ["a"], ["p", ""], kernel_shape=[1]),
        helper.make_node("Identity", ["p"], ["y"]),
    ]
    proto = model(nodes, dims=[1, 2, 4], out=None)
    proto.opset_import.append(helper.make_opsetid("", 23))
    proto.graph.initializer.append(numpy_helper.from_array(np.array(1, np.float32), "high"))
    graph = ir.from_proto(proto)
    assert Clean().rewrite(graph, PassContext()) == 1
    assert [node.op_type for node in graph.graph] == ["Clip", "MaxPool"]
    assert graph.graph.outputs[0].name == "y"


def test_mapped_weights_stay_mapped(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((256, 256)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "u"], ["a"]), helper.make_node("MatMul", ["a", "v"], ["y"])]
    proto = model(nodes, dims=["N", 256], out=["N", 256])
    proto.graph.initializer.extend(numpy_helper.from_array(weight, name) for name in "uv")
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data")
    graph = ir.load(tmp_path / "m.onnx")
    assert Clean().rewrite(graph, PassContext()) == 1
    (left,) = graph.graph.initializers.values()
    assert isinstance(left.const_value, ir.ExternalTensor)


@pytest.mark.parametrize("name", ZOO)
def test_zoo(zoo: Callable[[str], Path], name: str) -> None:
    graph = ir.load(zoo(name))
    before = digest(graph)
    sites = Clean().rewrite(graph, PassContext())
    after = digest(graph)
    assert (sites == 0) == (before == after)
    assert Clean().rewrite(graph, PassContext()) == 0
    assert digest(graph) == after


@given(st.permutations(range(4)), st.permutations(range(4)), st.permutations(range(4)))
def test_any_chain_of_transposes_becomes_one_at_most(p: list[int], q: list[int], r: list[int]) -> None:
    lines = f"a = Transpose<perm={p}>(x)  b = Transpose<perm={q}>(a)  c = Transpose<perm={r}>(b)  y = Relu(c)"
    result = rewrite(Clean(), body(lines, "float[2,3,4,5] x", "float[a,b,c,d] y"))
    identity = [p[i] for i in (q[j] for j in r)] == [0, 1, 2, 3]
    assert result.ops == (["Relu"] if identity else ["Transpose", "Relu"])


def model(
    nodes: list[onnx.NodeProto],
    dims: list[int | str] | None = None,
    out: list[int | str] | None = None,
    opsets: dict[str, int] | None = None,
    extra: list[tuple[str, int, list[int]]] | None = None,
) -> onnx.ModelProto:
    """Make a model of x -> y, both float32."""
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, dims if dims is not None else ["N"]),
            *(helper.make_tensor_value_info(*each) for each in extra or []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
    )
    imports = [helper.make_opsetid(domain, version) for domain, version in {"": 23, **(opsets or {})}.items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)
