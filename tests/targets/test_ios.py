"""iOS builds: what CoreML takes and why not, a graph that is shaped for it, row by row."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from given import parsed
from models import conv_net
from onnx.reference import ReferenceEvaluator

import polycast
from polycast.auto import Auto
from polycast.candidates import Choice
from polycast.errors import PromiseError, UnsupportedError
from polycast.guard import Guarded
from polycast.load import load
from polycast.recipe import Recipe
from polycast.targets import find
from polycast.targets._litert import older
from polycast.targets._litert.tensors import Blocks, Operator, Subgraph, Tensor
from polycast.targets.ios import Ios, coreml
from polycast.targets.ios.shaping import shaped

F = np.float32
#: A graph of one node, its weights, and why CoreML leaves it to the CPU; nothing where it takes it.
CASES = {
    "Conv": ("(float[1,3,8,8] x) => (float[1,4,6,6] y) {y = Conv(x, w)}", {"w": np.ones((4, 3, 3, 3), F)}, ""),
    "Conv in 3-D": (
        "(float[1,1,4,4,4] x) => (float[1,1,2,2,2] y) {y = Conv(x, w)}",
        {"w": np.ones((1, 1, 3, 3, 3), F)},
        "one and two dimensions",
    ),
    "Conv of a long signal": (
        "(float[1,1,20000] x) => (float[1,1,19998] y) {y = Conv(x, w)}",
        {"w": np.ones((1, 1, 3), F)},
        "20000 elements along one dimension, and CoreML takes 16384",
    ),
    "Pad": (
        "(float[1,1,4,4] x) => (float[1,1,6,6] y) {y = Pad(x, w)}",
        {"w": np.array([0, 0, 1, 1, 0, 0, 1, 1])},
        "into no ML Program",
    ),
    "LSTM": (
        "(float[1,1,2] x) => (float[1,1,1,2] y) {y = LSTM<hidden_size=2>(x, w, r)}",
        {"w": np.ones((1, 8, 2), F), "r": np.ones((1, 8, 2), F)},
        "CoreML's provider has no LSTM",
    ),
    "integers": ("(int64[2] x) => (int64[2] y) {y = Add(x, x)}", {}, "takes no Add of int64"),
    "an open shape": ("(float[N,M] x) => (float[N,M] y) {y = Relu(x)}", {}, "is not fixed; --shape fixes"),
    "six dimensions": ("(float[1,1,1,1,1,2] x) => (float[1,1,1,1,1,2] y) {y = Relu(x)}", {}, "has 6 dimensions"),
    "a computed bound": ("(float[2] x, float a) => (float[2] y) {y = Clip(x, a)}", {}, "'a' is computed"),
    "Gemm with alpha": (
        "(float[1,2] x) => (float[1,2] y) {y = Gemm<alpha=2.0>(x, w)}",
        {"w": np.ones((2, 2), F)},
        "without transA, alpha and beta",
    ),
    "nearest, half pixel": (
        "(float[1,1,4,4] x) => (float[1,1,8,8] y) {y = Resize<mode=\"nearest\">(x, , s)}",
        {"s": np.array([1, 1, 2, 2], F)},
        "asymmetric floor, and this is half_pixel round_prefer_floor",
    ),
    "nearest as it is there": (
        '(float[1,1,4,4] x) => (float[1,1,8,8] y) {y = Resize<mode="nearest", nearest_mode="floor",'
        ' coordinate_transformation_mode="asymmetric">(x, , s)}',
        {"s": np.array([1, 1, 2, 2], F)},
        "",
    ),
    "a pool with dilations": (
        "(float[1,1,8,8] x) => (float[1,1,4,4] y) {y = MaxPool<kernel_shape=[3,3], dilations=[2,2]>(x)}",
        {},
        "dilations",
    ),
    "a cast to bytes": ("(float[2] x) => (uint8[2] y) {y = Cast<to=2>(x)}", {}, "casts nothing to uint8"),
    "Flatten, which is shaped": ("(float[1,2,3] x) => (float[1,6] y) {y = Flatten(x)}", {}, ""),
    "one index, which is shaped": ("(float[2,3] x) => (float[3] y) {y = Gather(x, i)}", {"i": np.array(1)}, ""),
}  # fmt: skip


@pytest.mark.parametrize(("body", "weights", "why"), CASES.values(), ids=CASES)
def test_what_coreml_takes_and_why_not(body, weights, why):
    left = coreml.fallback(parsed("g " + body, weights, inferred=True))
    assert len(left) == (1 if why else 0), left
    assert all(why in reason for reason in left.values())


def test_every_op_of_the_table_is_an_op():
    for op in coreml._KNOWN | coreml._NO_PROGRAM | set(coreml._CONSTANT) | set(coreml._RULES):
        assert onnx.defs.has(op), op
    assert set(coreml._CONSTANT) | set(coreml._RULES) <= coreml._KNOWN


def test_the_shaped_graph_computes_the_same():
    body = "g (float[N,2,3] x) => (float[N,3] y, float[N,6] z) {z = Flatten(x) y = Gather<axis=1>(x, i)}"
    model = load(parsed(body, {"i": np.array(-1)}, inferred=True))
    static, by_row = shaped(model)
    assert by_row
    x = np.random.default_rng(0).standard_normal((1, 2, 3)).astype(F)
    judge, found = (ReferenceEvaluator(ir.to_proto(each.graph)).run(None, {"x": x}) for each in (model, static))
    for want, got in zip(judge, found, strict=True):
        np.testing.assert_array_equal(got, want)
    ops = [node.op_type for node in static.graph.graph]
    assert "Flatten" not in ops
    assert ops.count("Squeeze") == 1


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> polycast.Build:
    folder = tmp_path_factory.mktemp("ios")
    [build] = polycast.compile(conv_net(folder / "m.onnx"), "ios@onnxruntime", out=folder)
    return build


def test_a_build_for_coreml_has_fixed_shapes_and_takes_a_batch_row_by_row(build, tmp_path):
    import onnxruntime

    inside = onnx.load(build.path / "model.onnx").graph.input[0].type.tensor_type.shape
    assert [dim.dim_value for dim in inside.dim] == [1, 3, 8, 8]
    x = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(F)
    judge = onnxruntime.InferenceSession(conv_net(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    [want], [found] = judge.run(None, {"x": x}), build.run({"x": x})
    assert (found.dtype, found.shape) == (want.dtype, want.shape)
    np.testing.assert_allclose(found, want, rtol=0, atol=build.manifest["golden"]["tolerance"] * np.abs(want).max())
    assert build.manifest["evidence"] == "emulated"
    assert build.manifest["fallback"]["nodes"] == 0


def newer(text: str, folder: Path) -> Path:
    proto = onnx.parser.parse_model(f'<ir_version: 14, opset_import: ["": 26]> g {text}')
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0), "axis"))
    onnx.save(proto, folder / "m.onnx")
    return folder / "m.onnx"


def test_a_newer_opset_is_declared_as_one_that_the_package_reads(tmp_path):
    [build] = polycast.compile(newer("(float[2] x) => (float[2] y) {y = Relu(x)}", tmp_path), "ios@onnxruntime",
                               out=tmp_path)  # fmt: skip
    written = onnx.load(build.path / "model.onnx")
    assert (written.opset_import[0].version, written.ir_version) == (25, 13)
    model = newer("(float[2] x) => (float[2] y) {y = CumProd(x, axis)}", tmp_path)
    with pytest.raises(UnsupportedError, match=rf"opset 26, of which onnxruntime {coreml.VERSION} reads up to 25"):
        polycast.compile(model, "ios@onnxruntime", out=tmp_path / "other")


def test_a_share_of_the_cpu_is_held(tmp_path):
    body = "(float[1,1,6,6,6] x) => (float[1,1,4,4,4] y) {y = Conv(x, w)}"
    model = parsed("g " + body, {"w": np.ones((1, 1, 3, 3, 3), F)})
    onnx.save(ir.to_proto(model.graph), tmp_path / "m.onnx")
    with pytest.raises(PromiseError, match=r"leaves 100.0% of the MACs to the CPU, and 5% are allowed: Conv 100.0%"):
        polycast.compile(tmp_path / "m.onnx", "ios@onnxruntime", out=tmp_path, max_cpu_share=5)


@pytest.mark.parametrize("runtime", Ios.runtimes)
def test_the_package_file_names_the_version_of_the_manifest(runtime):
    sample = Ios.samples[runtime]
    package = (Ios.folder / sample.files[-1]).read_text()
    version = sample.dependency.split("#")[0].split("//")[0].strip(" '").split()[-1].strip("'")
    assert version in package
    assert json.dumps(version) in package or f"'{version}'" in package


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A model that looks rows of a table up."""
    weights = {"t": np.linspace(-1, 1, 64 * 32, dtype=F).reshape(64, 32), "w": np.ones((32, 8), F)}
    model = parsed("g (int64[1,4] i) => (float[1,4,8] y) {e = Gather(t, i) y = MatMul(e, w)}", weights, inferred=True)
    onnx.save(ir.to_proto(model.graph), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_what_the_older_runtime_of_ios_lacks_is_refused_with_its_operator(table, tmp_path):
    with pytest.raises(UnsupportedError, match=rf"TensorFlow Lite {older.RELEASE} has no GATHER of float16"):
        polycast.compile(table, "ios", "fp16-weights", out=tmp_path)
    polycast.compile(table, ["ios", "android"], "int8-weights", out=tmp_path)
    polycast.compile(table, "android", "fp16-weights", out=tmp_path)
    assert "scale for each block" in find("ios").declined["int4"]
    assert "int4" in find("android").precisions and "int4" not in find("ios").precisions


def test_what_is_newer_is_named():
    x, y = Tensor("x", "float32", (1, 32)), Tensor("y", "float32", (1, 8))
    codes = Tensor("w", "int4", (8, 32), np.zeros((8, 32), np.int8))
    blocks = Blocks(Tensor("s", "float16", (8, 1)), 32)
    product = Operator("FULLY_CONNECTED", [x, replace(codes, blocks=blocks)], [y])
    lacking = older.lacking(Subgraph("g", operators=[Operator("DEQUANTIZE", [codes], [x]), product, product]))
    assert [each.partition(" has no ")[2] for each in lacking] == [
        "DEQUANTIZE of version 6, which came with 2.18.0",
        "FULLY_CONNECTED by weights with a scale for each block",
    ]
    assert older.lacking(Subgraph("g", operators=[Operator("GELU", [x], [x])])) == ()


@pytest.mark.parametrize(
    ("kind", "shape", "other", "lacking"),
    [
        ("LESS", (2, 1, 2, 3, 2), (2, 1, 2, 3, 2), ""),
        ("LESS", (2, 1, 2, 3, 2), (), "LESS of shapes that differ, over 5 axes"),
        ("LESS", (2, 1, 2, 3), (), ""),
        ("ADD", (2, 1, 2, 3, 2, 3), (3,), ""),
        ("ADD", (2, 1, 2, 3, 2, 3, 1), (3,), "ADD over 7 axes"),
        ("SLICE", (2, 1, 2, 3, 2, 3), (6,), "SLICE over 6 axes"),
    ],
)
def test_over_how_many_axes_kernels_go(kind, shape, other, lacking):
    x, y = Tensor("x", "int32", shape), Tensor("y", "int32", other)
    found = older.lacking(Subgraph("g", operators=[Operator(kind, [x, y], [x])]))
    assert found == ((f"TensorFlow Lite {older.RELEASE} has no {lacking}",) if lacking else ())


def test_what_is_best_is_chosen_among_what_the_older_runtime_takes(table, tmp_path, monkeypatch):
    def choose(auto: Auto) -> Choice:
        with pytest.raises(UnsupportedError, match=r"^ios lacks .* GATHER of float16"):
            auto.cast(Guarded(Recipe.of(auto.target, "fp16-weights")))
        return Choice(Guarded(Recipe.of(auto.target, "fp32")), {})

    monkeypatch.setattr(Auto, "choose", choose)
    [build] = polycast.compile(table, "ios", "auto", out=tmp_path)
    assert build.manifest["auto"]["on"].startswith("cpu@litert, ")


@pytest.mark.parametrize("runtime", Ios.runtimes)
def test_the_sample_passes_no_output_over_and_no_build_without_one(runtime):
    """As ``verify.difference`` compares them: only how an element is read depends on its type."""
    sample, golden, _ = ((Ios.folder / name).read_text() for name in Ios.samples[runtime].files)
    run = sample.partition("private func ")[0]
    assert "var within = golden.isThere\n" in run and "return within\n" in run
    assert run.count("golden.deviation(golden.output(sample, name), ") == 1
    assert not re.search(r'"[<|]\w\d"|continue|where golden', run)
    assert "isThere: Bool { count > 0 && !outputs.isEmpty }" in golden
    assert '"biu".contains' in golden and "Double(differ.count * size) / Double(got.count)" in golden


def test_versions_of_the_table_and_of_the_package_are_one():
    assert f"'TensorFlowLiteSwift', '{older.RELEASE}'" in (Path(Ios.folder) / "Podfile").read_text()
    assert f'exact: "{coreml.VERSION}"' in (Path(Ios.folder) / "Package.swift").read_text()
