"""What the tests of LiteRT share: files written from small graphs, what stands in them, and what they compute."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from polycast.model import Model, Origin
from polycast.targets import _litert


def written(proto: onnx.ModelProto, folder: Path) -> bytes:
    """Give the file that the graph of ``proto`` becomes, as it is, without any pass."""
    folder.mkdir(parents=True, exist_ok=True)
    _litert.write(Model("x", ir.from_proto(proto), Origin("x.onnx", "")), folder)
    return (folder / "model.tflite").read_bytes()


def problems(proto: onnx.ModelProto) -> tuple[str, ...]:
    return _litert.problems(Model("x", ir.from_proto(proto), Origin("x.onnx", "")))


def read(data: bytes) -> Any:
    """Give the one function of a file, by the classes of LiteRT's own package, with the codes of its operators."""
    from ai_edge_litert import schema_py_generated as schema

    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(data))


def kinds(data: bytes) -> list[str]:
    """Give the operators of a file, in order, as the schema spells them."""
    from ai_edge_litert import schema_py_generated as schema

    names = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
    model = read(data)
    codes = [names[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in model.operatorCodes]
    return [codes[operator.opcodeIndex] for operator in model.subgraphs[0].operators]


def run(data: bytes, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Run a file once, on inputs by the names of its signature; sizes that it leaves open are those of ``feeds``."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter: Any = Interpreter(model_content=data, num_threads=1)
    ports = read(data).signatureDefs[0]
    inputs = {port.name.decode(): port.tensorIndex for port in ports.inputs}
    for name, array in feeds.items():
        interpreter.resize_tensor_input(inputs[name], array.shape)
    interpreter.allocate_tensors()
    for name, array in feeds.items():
        interpreter.set_tensor(inputs[name], array)
    interpreter.invoke()
    return [interpreter.get_tensor(each["index"]) for each in interpreter.get_output_details()]


def exact(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Give what plain onnxruntime computes, its optimizations off."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, dict(feeds))
    return found


def close(found: np.ndarray, want: np.ndarray, terms: int) -> None:
    """Hold ``found`` to what sums of ``terms`` floats in another order may differ by."""
    tolerance = float(np.finfo(np.float32).eps) * np.sqrt(terms) * 8
    assert found.shape == want.shape
    np.testing.assert_allclose(found, want, rtol=0, atol=tolerance * max(float(np.abs(want).max()), 1.0))


def graph(text: str, **weights: np.ndarray) -> onnx.ModelProto:
    """Parse ``text``, an ONNX graph whose initializers are ``weights``, at opset 21."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]> {text}')
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return proto
