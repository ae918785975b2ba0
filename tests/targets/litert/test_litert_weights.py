"""Weights in fewer bits, as LiteRT multiplies by them: which kernel takes them, and how far the results may move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from polycast.model import Model, Origin
from polycast.passbase import PassContext
from polycast.pipeline import Pipeline
from polycast.targets import _litert

ROWS, COLUMNS = 6, 16
EPS = float(np.finfo(np.float32).eps)


def layer(depth: int, seed: int = 0) -> tuple[onnx.ModelProto, np.ndarray, np.ndarray]:
    """A MatMul with a bias, x: [2, ROWS, depth], and its weight and bias."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((depth, COLUMNS)).astype(np.float32)
    bias = rng.standard_normal(COLUMNS).astype(np.float32)
    ports = f"(float[2, {ROWS}, {depth}] x) => (float[2, {ROWS}, {COLUMNS}] y)"
    text = f'<ir_version: 10, opset_import: ["" : 23]> g {ports} {{ p = MatMul(x, w) y = Add(p, b) }}'
    return with_constants(onnx.parser.parse_model(text), w=w, b=bias), w, bias


def with_constants(proto: onnx.ModelProto, **arrays: np.ndarray) -> onnx.ModelProto:
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return proto


def lower(proto: onnx.ModelProto, precision: str) -> Model:
    """What the recipe makes of a model."""
    pipeline = Pipeline.parse(_litert.RECIPES[precision])
    return pipeline.run(Model("layer", ir.from_proto(proto), Origin("layer", "")), PassContext(_litert.FEATURES))


class Written:
    """A file that LiteRT has opened."""

    def __init__(self, model: Model, folder: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter

        assert _litert.problems(model) == ()
        path = folder / _litert.write(model, folder)["model"]
        self.bytes = path.stat().st_size
        self.interpreter: Any = Interpreter(str(path), num_threads=1)
        self.interpreter.allocate_tensors()

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.interpreter.set_tensor(self.interpreter.get_input_details()[0]["index"], x)
        self.interpreter.invoke()
        result: np.ndarray = self.interpreter.get_tensor(self.interpreter.get_output_details()[0]["index"])
        return result

    @property
    def operators(self) -> list[str]:
        found = [op["op_name"] for op in self.interpreter._get_ops_details()]
        return [name for name in found if name != "DELEGATE"]

    def types(self, name: str) -> list[str]:
        """Types of what the operator of that name reads."""
        tensors = {each["index"]: each for each in self.interpreter.get_tensor_details()}
        [op] = [op for op in self.interpreter._get_ops_details() if op["op_name"] == name]
        return [np.dtype(tensors[index]["dtype"]).name for index in op["inputs"]]


def step(x: np.ndarray) -> np.ndarray:
    """The step of an int8 grid that holds each row of ``x``, and 0."""
    return (np.maximum(x.max(-1, keepdims=True), 0) - np.minimum(x.min(-1, keepdims=True), 0)) / 255


def reference(model: Model, x: np.ndarray) -> np.ndarray:
    result: np.ndarray = ReferenceEvaluator(ir.to_proto(model.graph)).run(None, {"x": x})[0]
    return result


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((2, ROWS, 64)).astype(np.float32)


def test_dynamic_int8_multiplies_floats_by_codes_in_one_kernel(x: np.ndarray, tmp_path: Path) -> None:
    proto, w, bias = layer(64)
    written = Written(lower(proto, "int8-dynamic"), tmp_path)
    assert written.operators == ["FULLY_CONNECTED"]
    assert written.types("FULLY_CONNECTED") == ["float32", "int8", "float32"]
    exact = x.astype(np.float64) @ w + bias
    of_w, of_x = np.abs(w).max(0) / 127 / 2, step(x) / 2
    allowed = np.abs(x).sum(-1, keepdims=True) * of_w + of_x * np.abs(w).sum(0) + 64 * of_x * of_w
    assert (np.abs(written(x) - exact) <= allowed + 64 * EPS * np.abs(exact).max()).all()


def test_dynamic_int8_convolves_floats_by_codes_in_one_kernel(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    w, bias = rng.standard_normal((8, 4, 3, 3)).astype(np.float32), rng.standard_normal(8).astype(np.float32)
    text = """<ir_version: 10, opset_import: ["" : 23]> g (float[1, 4, 6, 6] x) => (float[1, 8, 4, 4] y)
        { c = Conv(x, w, b) y = Relu(c) }"""
    proto = with_constants(onnx.parser.parse_model(text), w=w, b=bias)
    written = Written(lower(proto, "int8-dynamic"), tmp_path)
    assert sorted(written.operators) == ["CONV_2D", "TRANSPOSE", "TRANSPOSE"]
    assert written.types("CONV_2D") == ["float32", "int8", "float32"]
    image = rng.standard_normal((1, 4, 6, 6)).astype(np.float32)
    exact = ReferenceEvaluator(proto).run(None, {"x": image})[0]
    of_w, of_x = np.abs(w).max((1, 2, 3)) / 127 / 2, step(image.reshape(1, -1)).item() / 2
    window = np.abs(image).max() * w[0].size
    allowed = window * of_w + of_x * np.abs(w).sum((1, 2, 3)) + w[0].size * of_x * of_w
    assert (np.abs(written(image) - exact) <= allowed[:, None, None] + w[0].size * EPS * np.abs(exact).max()).all()


@pytest.mark.parametrize("precision", ["fp16-weights", "int8-weights"])
def test_stored_weights_are_widened_and_multiply_floats(precision: str, x: np.ndarray, tmp_path: Path) -> None:
    proto, *_ = layer(64)
    model = lower(proto, precision)
    written = Written(model, tmp_path)
    assert written.operators == ["DEQUANTIZE", "FULLY_CONNECTED"]
    want = reference(model, x)
    np.testing.assert_allclose(written(x), want, rtol=0, atol=64 * EPS * np.abs(want).max())


@pytest.mark.parametrize("depth", [64, 40])
def test_int4_weights_have_several_scales_in_a_row(depth: int, x: np.ndarray, tmp_path: Path) -> None:
    """The codes are those of the recipe, whose scales float16 rounds; a row of no whole blocks is filled with zeros."""
    proto, *_ = layer(depth)
    model, x = lower(proto, "int4"), x[..., :depth]
    written = Written(model, tmp_path)
    assert written.operators == ["PAD"] * (depth % 32 > 0) + ["FULLY_CONNECTED"]
    assert written.types("FULLY_CONNECTED")[0] == "float32"
    want = reference(model, x)
    w = np.abs(weights(model, depth))
    allowed = step(x) / 2 * w.sum(0) + (np.abs(x) @ w) * 2.0**-11
    assert (np.abs(written(x) - want) <= allowed + depth * EPS * np.abs(want).max()).all()


def weights(model: Model, depth: int) -> np.ndarray:
    """What the stored weight of a model stands for."""
    [node] = [node for node in model.graph.graph if node.op_type == "DequantizeLinear"]
    codes, scale = (value.const_value.numpy().astype(np.float64) for value in node.inputs)  # type: ignore[union-attr]
    return codes * np.repeat(scale, 32, axis=0)[:depth]


def test_narrow_weights_make_a_small_file(tmp_path: Path) -> None:
    sizes = {}
    rng = np.random.default_rng(0)
    text = '<ir_version: 10, opset_import: ["" : 23]> g (float[1, 256] x) => (float[1, 256] y) { y = MatMul(x, w) }'
    for precision in ("fp32", "fp16-weights", "int8-dynamic", "int4"):
        proto = with_constants(onnx.parser.parse_model(text), w=rng.standard_normal((256, 256)).astype(np.float32))
        folder = tmp_path / precision
        folder.mkdir()
        sizes[precision] = Written(lower(proto, precision), folder).bytes
    weights = 256 * 256
    assert sizes["fp32"] > 4 * weights
    assert 2 * weights < sizes["fp16-weights"] < 2.1 * weights
    assert weights < sizes["int8-dynamic"] < 1.1 * weights
    assert weights / 2 < sizes["int4"] < 0.65 * weights
