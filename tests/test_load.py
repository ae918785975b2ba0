"""Loading ONNX: the normal form, shapes, names, folders, models in memory, and the zoo."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest

from polycast.errors import InputError
from polycast.load import load
from polycast.model import OPSET, Model, Port


def parse(text: str, opset: int = 17) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}, "my.ops": 1]> g {text}')


def save(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


RELU = parse("(float[2] x) => (float[2] y) { y = Relu(x) }")


def test_an_initializer_that_is_an_input_too_is_a_weight() -> None:
    proto = parse("(float[2] x, float[2] w) => (float[2] y) { y = Add(x, w) }")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(2, np.float32), "w"))
    model = load(proto)
    assert [port.name for port in model.signature.inputs] == ["x"]
    assert [value.name for value in model.graph.graph.inputs] == ["x"]
    assert list(model.graph.graph.initializers) == ["w"]


def test_old_versions_become_current() -> None:
    proto = parse("(float[2,3] x) => (float[2,3] y) { y = Clip<min=0.0>(x) }", opset=7)
    proto.ir_version = 3
    model = load(proto)
    assert model.opset == OPSET
    onnx.checker.check_model(ir.to_proto(model.graph), full_check=True)


def test_nodes_in_any_order_are_sorted() -> None:
    model = load(parse("(float[2] x) => (float[2] y) { y = Relu(a) a = Neg(x) }"))
    assert [node.op_type for node in model.graph.graph] == ["Neg", "Relu"]


def test_unknown_ranks_are_kept() -> None:
    model = load(parse("(float[] x) => (float[] y) { y = my.ops.Twirl(x) }"))
    assert model.signature.inputs == (Port("x", "float32", None),)
    assert model.signature.outputs == (Port("y", "float32", None),)


def test_custom_domains_are_kept() -> None:
    model = load(parse("(float[2] x) => (float[2] y) { a = my.ops.Twirl<n=3>(x) y = Relu(a) }", opset=9))
    node = model.graph.graph[0]
    assert (node.domain, node.op_type, node.attributes.get_int("n")) == ("my.ops", "Twirl", 3)


@pytest.mark.parametrize(
    ("text", "opset", "message"),
    [
        ("(float[2] x) => (float[2] y) { y = Add(x, z) }", 17, r"\(Add\) reads 'z', which is no input"),
        ("(float[2] x) => (float[2] y) { a = Add(x, y) y = Neg(a) }", 17, "has a cycle"),
        ("(float[2] x) => (float[2] y) { y = Frobnicate(x) }", 17, "No Op registered for Frobnicate"),
        ("(float[2] x) => (float[2] y) { y = Gelu(x) }", 17, "No Op registered for Gelu with domain_version of 17"),
        ("(float[2] x) => (float[2] y) { y = Relu<slope=1>(x) }", 17, "Unrecognized attribute: slope"),
        ("(float[2] x) => (float[2] y) { y = Relu(x) }", 6, "opset 6: 7 and up"),
        ("(float[2] x) => (float[2] y) { y = other.Op(x) }", 17, "other"),
    ],
    ids=["undefined", "cycle", "unknown op", "op of a later opset", "attribute", "opset", "domain not imported"],
)
def test_what_is_not_valid_is_refused_in_one_line(tmp_path: Path, text: str, opset: int, message: str) -> None:
    path = save(parse(text, opset), tmp_path / "m.onnx")
    with pytest.raises(InputError, match=message) as info:
        load(path)
    assert "\n" not in info.value.message
    assert str(path) in info.value.message


TWO = "(float[batch,seq] a, float[batch,seq,4] b, float[2,?] c) => (float[batch,seq] y) { y = Abs(a) }"


def test_shapes_replace_a_symbol_everywhere() -> None:
    model = load(parse(TWO), shapes={"a": (1, 128)})
    assert [port.shape for port in model.signature.inputs] == [(1, 128), (1, 128, 4), (2, "?")]
    assert model.signature.outputs[0].shape == (1, 128)


def test_shapes_inside_an_expression() -> None:
    text = "(float[past] a, float[n] b) => (float[m] y) { y = Concat<axis=0>(a, b) }"
    proto = parse(text)
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "past + n"
    assert load(proto, shapes={"a": (3,)}).signature.outputs[0].shape == ("n + 3",)
    assert load(proto, shapes={"a": (3,), "b": (4,)}).signature.outputs[0].shape == (7,)


def test_shapes_leave_the_given_model_alone() -> None:
    model = load(parse(TWO))
    fixed = load(model, shapes={"a": (1, 2)})
    assert model.signature.inputs[0].shape == ("batch", "seq")
    assert fixed.digest != model.digest
    assert fixed.origin == model.origin
    assert load(model) is model


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"aa": (1, 2)}, r"no input 'aa'\nDid you mean 'a'\?"),
        ({"a": (1, 2, 3)}, r"has 3 axes: expected 2, as in \[batch, seq\]"),
        ({"a": (1, 2), "b": (1, 3, 4)}, "has 3 on axis 1: expected 2, which 'seq' is elsewhere"),
        ({"b": (1, 2, 5)}, "has 5 on axis 2: expected 4, which the model fixes"),
        ({"a": (1, -1)}, "negative"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(InputError) as info:
        load(parse(TWO), shapes=shapes)
    assert re.search(message, str(info.value))


def test_names_and_origins(tmp_path: Path) -> None:
    path = save(RELU, tmp_path / "net.onnx")
    model = load(path)
    assert (model.name, model.origin.uri) == ("net", str(path))
    assert load(str(path), name="other").name == "other"
    assert load(tmp_path).name == "net"
    assert load(tmp_path).origin.uri == str(tmp_path)
    assert load(RELU).name == "g"


def test_a_folder_needs_one_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected one .onnx file or a Hugging Face model .* found none"):
        load(tmp_path)
    save(RELU, tmp_path / "a.onnx")
    save(RELU, tmp_path / "b.onnx")
    with pytest.raises(InputError, match=r"found a.onnx, b.onnx"):
        load(tmp_path)


def test_a_model_in_memory_is_left_as_it_was() -> None:
    source = ir.from_proto(parse("(float[2,3] x) => (float[] y) { y = Clip<min=0.0>(x) }", opset=9))
    before = ir.to_proto(source).SerializeToString()
    model = load(source)
    assert isinstance(model, Model)
    assert model.opset == OPSET
    assert ir.to_proto(source).SerializeToString() == before


def test_a_proto_without_its_folder_cannot_have_external_data(tmp_path: Path) -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(RELU)
    tensor = proto.graph.initializer.add(name="w", dims=[1], data_type=1, data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="w.bin")
    with pytest.raises(InputError, match="tensor 'w' is external data"):
        load(proto)


ZOO = {
    "mnist/mnist.onnx": {},
    "mlperftiny/kws.onnx": {"batch": 2},
    "mlperftiny/ic_resnet8.onnx": {"batch": 2},
    "mlperftiny/vww_96.onnx": {"batch": 1},
    "imagenet/mobilenet_v1_0.25_224.onnx": {"batch": 1},
    "coco/FastestDet.onnx": {},
    "magika/model.onnx": {"unk__214": 2},
    "silero/silero_vad_16k_op15.onnx": {"batch": 1, "sequence": 512},
    "superres/sr_core.onnx": {"batch": 1, "h": 24, "w": 17},
    "lm/stories260K.onnx": {"batch": 1, "seq": 9},
}


@pytest.mark.parametrize("name", ZOO)
def test_a_trained_model_computes_the_same_after_load(name: str, zoo: object, tmp_path: Path) -> None:
    path = zoo(name)  # type: ignore[operator]
    model = load(path)
    assert model.opset == OPSET
    model.write(tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    feeds = {}
    for port in model.signature.inputs:
        shape = [ZOO[name].get(d, d) for d in port.shape or ()]
        real = np.issubdtype(np.dtype(port.dtype), np.floating)
        feeds[port.name] = (rng.standard_normal(shape) if real else rng.integers(0, 200, shape)).astype(port.dtype)
    if "sr" in feeds:
        feeds["sr"] = np.array(16000)
    for before, after in zip(run(path, feeds), run(tmp_path / "m.onnx", feeds), strict=True):
        # Kernels of two opsets may round differently; the longest sum here has a few thousand terms.
        bound = np.finfo(np.float32).eps * 4096
        np.testing.assert_allclose(after, before, rtol=bound, atol=bound * np.abs(before).max())


def run(path: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, feeds)
