"""Codes: a QDQ graph as a LiteRT file keeps every scale and every stored code, and computes within one step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from litert_files import exact, graph, kinds, read, run

from polycast.load import load
from polycast.model import Model, Origin
from polycast.passbase import PassContext
from polycast.pipeline import Pipeline
from polycast.samples import open_samples
from polycast.targets import _litert, find

Zoo = Callable[[str], Path]

RNG = np.random.default_rng(3)

#: Everything between two convolutions that has a kernel for codes.
NET = """net (float[1, 3, 12, 12] x) => (float[1, 6] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    a1 = Relu (a)
    c = Conv <pads = [1, 1, 1, 1], group = 8> (a1, d, e)
    c1 = Clip (c, low, high)
    f = Add (a1, c1)
    g = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (f)
    h = AveragePool <kernel_shape = [2, 2], strides = [1, 1]> (g)
    i = Conv (h, k)
    j = LeakyRelu <alpha = 0.1> (i)
    l = Concat <axis = 1> (h, j)
    m = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (l, n)
    o = Sigmoid (m)
    q = Mul (m, o)
    s = Conv (q, t)
    u = GlobalAveragePool (s)
    v = Flatten (u)
    y = Gemm <transB = 1> (v, z, zz)
}"""


def weight(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


WEIGHTS = {
    "w": weight(8, 3, 3, 3), "b": weight(8), "d": weight(8, 1, 3, 3), "e": weight(8), "k": weight(4, 8, 1, 1),
    "n": weight(8, 12, 3, 3), "t": weight(8, 8, 1, 1), "z": weight(6, 8), "zz": weight(6),
    "low": np.array(0, np.float32), "high": np.array(6, np.float32),
}  # fmt: skip


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, onnx.ModelProto, Path]:
    """The network with 8-bit grids; as ONNX; and the folder of its file."""
    folder = tmp_path_factory.mktemp("quantized")
    model = Model("net", ir.from_proto(graph(NET, **WEIGHTS)), Origin("net.onnx", ""))
    rows = {f"{at}/x": RNG.standard_normal((1, 3, 12, 12)).astype(np.float32) for at in range(8)}
    np.savez(folder / "rows.npz", **rows)
    samples = open_samples(folder / "rows.npz", model.signature)
    found = Pipeline.parse("int8(calibrate='minmax')").run(model, PassContext(_litert.FEATURES, samples))
    _litert.write(found, folder)
    return found, ir.to_proto(found.graph), folder


def stored(model: Model) -> dict[bytes, tuple[np.ndarray, np.ndarray]]:
    """Give the stored codes of a QDQ graph by their sorted bytes, and their scales."""
    found = {}
    for node in model.graph.graph:
        if node.op_type == "DequantizeLinear":
            codes, scale = (ir.convenience.get_const_tensor(v) for v in node.inputs[:2])  # type: ignore[arg-type]
            if codes is not None and scale is not None:
                array = codes.numpy()
                found[np.sort(array.reshape(-1)).tobytes()] = array, scale.numpy().reshape(-1)
    return found


def test_scales_and_codes_are_those_of_the_graph_bit_for_bit(quantized: tuple[Model, onnx.ModelProto, Path]) -> None:
    model, _, folder = quantized
    file = read((folder / "model.tflite").read_bytes())
    wanted = stored(model)
    grids = {
        (float(scale.numpy()), int(zero.numpy()) - 128)
        for node in model.graph.graph
        if node.op_type == "QuantizeLinear"
        for scale, zero in [[ir.convenience.get_const_tensor(v) for v in node.inputs[1:]]]  # type: ignore[arg-type]
    }
    assert {np.dtype(np.uint8)} == {
        ir.convenience.get_const_tensor(n.inputs[2]).numpy().dtype  # type: ignore[arg-type, union-attr]
        for n in model.graph.graph
        if n.op_type == "QuantizeLinear"
    }
    seen = 0
    for tensor in file.subgraphs[0].tensors:
        if tensor.quantization is None or tensor.quantization.scale is None:
            continue
        scale = np.asarray(tensor.quantization.scale, np.float32)
        data = file.buffers[tensor.buffer].data
        if data is None:
            assert (float(scale[0]), int(tensor.quantization.zeroPoint[0])) in grids | {(1 / 256, -128)}
            continue
        codes = np.frombuffer(bytes(data), {9: np.int8, 2: np.int32}[tensor.type])
        if not codes.any():
            continue  # the bias of a convolution that has none
        array, scales = wanted[np.sort(codes).tobytes()]
        np.testing.assert_array_equal(scale, scales)  # float32, bit for bit
        if len(scale) > 1:
            assert tensor.shape[tensor.quantization.quantizedDimension] == len(scale)
        seen += array.dtype == np.int8
    assert seen == 6


def test_it_computes_what_the_graph_says_to_a_few_steps(quantized: tuple[Model, onnx.ModelProto, Path]) -> None:
    """Kernels round once where the graph rounds twice; a step of difference grows by no more than a step a layer."""
    model, proto, folder = quantized
    data = (folder / "model.tflite").read_bytes()
    last = [node for node in model.graph.graph if node.op_type == "QuantizeLinear"][-1]
    step = ir.convenience.get_const_tensor(last.inputs[1])  # type: ignore[arg-type]
    assert step is not None
    gain = np.abs(WEIGHTS["z"]).sum(axis=1).max()
    for seed in range(4):
        feeds = {"x": np.random.default_rng(seed).standard_normal((1, 3, 12, 12)).astype(np.float32)}
        found, want = run(data, feeds)[0], exact(proto, feeds)[0]
        assert np.abs(found - want).max() <= 2 * gain * float(step.numpy())


def test_nothing_but_the_ends_computes_in_float(quantized: tuple[Model, onnx.ModelProto, Path]) -> None:
    """Where LiteRT wants one grid for several tensors, or one of its own, a QUANTIZE brings them to it."""
    _, _, folder = quantized
    model = read((folder / "model.tflite").read_bytes())
    names = kinds((folder / "model.tflite").read_bytes())
    floats = [
        name
        for name, operator in zip(names, model.subgraphs[0].operators, strict=True)
        if any(model.subgraphs[0].tensors[at].type == 0 for at in operator.outputs)
    ]
    assert floats == ["DEQUANTIZE", "FULLY_CONNECTED"]
    assert names.count("QUANTIZE") == 1 + 2 + 1  # the input, the operands of the Concat, the sigmoid


@pytest.mark.parametrize("kind", ["Conv", "Add", "Mul", "AveragePool", "Concat", "LeakyRelu", "MaxPool", "Sigmoid"])
def test_one_operator_on_codes_is_right_to_a_step(kind: str, tmp_path: Path) -> None:
    """Against onnxruntime on the very graph: the codes differ by one where a rounding falls the other way."""
    fine = {"scale": np.array(0.02, np.float32), "zero": np.array(100, np.uint8)}
    rough = {"wide": np.array(0.05, np.float32), "mid": np.array(120, np.uint8)}
    body = {
        "Conv": "r = Conv (p, kernel)",
        "Add": "r = Add (p, q)",
        "Mul": "r = Mul (p, q)",
        "AveragePool": "r = AveragePool <kernel_shape = [2, 2]> (p)",
        "Concat": "r = Concat <axis = 1> (p, q)",
        "LeakyRelu": "r = LeakyRelu <alpha = 0.2> (p)",
        "MaxPool": "r = MaxPool <kernel_shape = [2, 2]> (p)",
        "Sigmoid": "r = Sigmoid (p)",
    }[kind]
    proto = graph(
        f"""net (float[1, 3, 6, 6] x) => (float[1, c, h, w] y) {{
            a = QuantizeLinear (x, scale, zero)
            p = DequantizeLinear (a, scale, zero)
            b = QuantizeLinear (x, wide, mid)
            q = DequantizeLinear (b, wide, mid)
            {"kernel = DequantizeLinear <axis = 0> (codes, scales)" if kind == "Conv" else ""}
            {body}
            s = QuantizeLinear (r, last, end)
            y = DequantizeLinear (s, last, end)
        }}""",
        codes=np.random.default_rng(4).integers(-127, 128, (4, 3, 3, 3)).astype(np.int8),
        scales=np.array([0.002, 0.003, 0.004, 0.005], np.float32),
        last=np.array(0.03, np.float32),
        end=np.array(110, np.uint8),
        **fine,
        **rough,
    )
    _litert.write(Model("one", ir.from_proto(proto), Origin("one.onnx", "")), tmp_path)
    data = (tmp_path / "model.tflite").read_bytes()
    feeds = {"x": np.random.default_rng(5).uniform(-2, 3, (1, 3, 6, 6)).astype(np.float32)}
    found, want = run(data, feeds)[0], exact(proto, feeds)[0]
    steps = (found - want) / 0.03
    assert np.abs(steps).max() < 1.5
    assert abs(steps.mean()) < 0.5, "the codes are all off to one side"


def test_grids_that_litert_has_no_word_for_are_refused(tmp_path: Path) -> None:
    proto = graph(
        """net (float[1, 4] x) => (float[1, 4] y) {
            a = QuantizeLinear <axis = 1> (x, scale, zero)
            y = DequantizeLinear <axis = 1> (a, scale, zero)
        }""",
        scale=np.array([1, 2, 3, 4], np.float32),
        zero=np.zeros(4, np.uint8),
    )
    [problem] = _litert.problems(Model("one", ir.from_proto(proto), Origin("one.onnx", "")))
    assert "its grid is not one of 8 bits with one scale" in problem


@pytest.mark.slow
def test_a_real_network_computes_in_integers_and_agrees_with_its_graph(zoo: Zoo, tmp_path: Path) -> None:
    target = find("cpu@litert")
    model = load(zoo("mlperftiny/kws.onnx"))
    rows = np.load(zoo("mlperftiny/kws.npz"))
    name = model.signature.inputs[0].name
    array = next(rows[key] for key in rows.files if rows[key].ndim == 4)[:32].astype(np.float32)
    np.savez(tmp_path / "rows.npz", **{f"{at}/{name}": array[at : at + 1] for at in range(16)})
    ctx = PassContext(target.features, open_samples(tmp_path / "rows.npz", model.signature))
    text = target.recipe("int8")
    assert text is not None
    found = Pipeline.parse(text).run(model, ctx)
    _litert.write(found, tmp_path)
    data: Any = (tmp_path / "model.tflite").read_bytes()
    proto = ir.to_proto(found.graph)
    for row in array[16:]:
        feeds = {name: row[None]}
        assert run(data, feeds)[0].argmax() == exact(proto, feeds)[0].argmax()
