"""Products on a CPU, compiled for each kind of it that runs here; judged by onnxruntime as the graph is written."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("tvm")

from polycast.model import Model, Origin
from polycast.targets._tvm import cpu_arch, cpu_lowering, cpu_rules, library
from polycast.targets._tvm.cpu_arch import Cpu
from polycast.targets._tvm.cpu_tiles import Tile

CPUS = [Cpu(arch) for arch in ("vnni", "avx512", "avx2", "generic")]
EPS = float(np.finfo(np.float32).eps)

#: Channels, groups, kernel, and what Conv is told.
CONVS = {
    "pointwise": (8, 32, 1, (1, 1), {}),
    "padded": (16, 24, 1, (3, 3), {"pads": [1, 1, 1, 1]}),
    "strided": (4, 16, 1, (3, 3), {"strides": [2, 2], "pads": [0, 0, 1, 1]}),
    "dilated": (8, 8, 1, (3, 3), {"dilations": [2, 2], "pads": [2, 2, 2, 2]}),
    "three channels": (3, 16, 1, (5, 5), {"auto_pad": "SAME_UPPER"}),
    "nine outputs": (8, 9, 1, (3, 3), {}),
    "depthwise": (24, 24, 24, (3, 3), {"pads": [1, 1, 1, 1]}),
    "depthwise, strided": (7, 7, 7, (3, 3), {"strides": [2, 2]}),
    "grouped": (8, 16, 2, (3, 3), {}),
}


def needs(cpu: Cpu) -> None:
    if lacking := set(cpu.instructions) - cpu_arch.flags():
        pytest.skip(f"this CPU has no {', '.join(sorted(lacking))}")


def model_of(nodes: list[onnx.NodeProto], shape: list[int], constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    kept = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "product", [x], [y], kept)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return onnx.shape_inference.infer_shapes(proto)


def run(proto: onnx.ModelProto, x: np.ndarray, cpu: Cpu, tile: Tile | None = None) -> np.ndarray:
    import tvm
    from tvm.runtime.vm import VirtualMachine

    model = Model("m", ir.from_proto(proto), Origin("m.onnx", ""))
    tiles = dict.fromkeys(cpu_lowering.kernels(model, cpu), tile) if tile else {}
    machine = VirtualMachine(library.executable(cpu_lowering.lower(model, cpu, tiles)), tvm.cpu())
    [result] = machine["main"](tvm.runtime.tensor(x))
    return result.numpy()


def judged(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(proto.SerializeToString(), options).run(None, {"x": x})[0]


def magnitudes(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """What the sums would be if nothing cancelled out: errors are in proportion to it."""
    wide = onnx.ModelProto()
    wide.CopyFrom(proto)
    for each in wide.graph.initializer:
        if each.name in ("w", "b"):
            each.CopyFrom(numpy_helper.from_array(np.abs(numpy_helper.to_array(each)), each.name))
    return judged(wide, np.abs(x))


def conv(name: str, rng: np.random.Generator) -> tuple[list[onnx.NodeProto], list[int], dict[str, np.ndarray]]:
    ins, outs, groups, kernel, attributes = CONVS[name]
    w = rng.standard_normal((outs, ins // groups, *kernel)).astype(np.float32)
    b = rng.standard_normal(outs).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w", "b"], ["c"], group=groups, **attributes)
    return [node, helper.make_node("Relu", ["c"], ["y"])], [1, ins, 10, 12], {"w": w, "b": b}


@pytest.mark.parametrize("cpu", CPUS, ids=lambda cpu: cpu.arch)
@pytest.mark.parametrize("name", CONVS)
def test_convolution_of_floats(name: str, cpu: Cpu) -> None:
    needs(cpu)
    nodes, shape, constants = conv(name, rng := np.random.default_rng(5))
    proto, x = model_of(nodes, shape, constants), rng.standard_normal(shape).astype(np.float32)
    bound = EPS * constants["w"][0].size * magnitudes(proto, x)
    assert (np.abs(run(proto, x, cpu) - judged(proto, x)) <= bound).all()


@pytest.mark.parametrize("name", ["pointwise", "padded", "nine outputs", "depthwise"])
def test_every_tile_computes_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where an image is too large to be padded as a whole, as each of these is taken to be."""
    monkeypatch.setattr(cpu_rules, "_NEAR", 0)
    cpu = cpu_arch.this_cpu()
    nodes, shape, constants = conv(name, rng := np.random.default_rng(6))
    proto, x = model_of(nodes, shape, constants), rng.standard_normal(shape).astype(np.float32)
    bound = EPS * constants["w"][0].size * magnitudes(proto, x)
    [kernel] = cpu_lowering.kernels(Model("m", ir.from_proto(proto), Origin("m.onnx", "")), cpu).values()
    found = cpu_rules.tiles(kernel, cpu)
    assert len(found) > 3
    for tile in found[:: max(1, len(found) // 4)]:
        assert (np.abs(run(proto, x, cpu, tile) - judged(proto, x)) <= bound).all(), tile


def coded(product: onnx.NodeProto, shape: list[int], w: np.ndarray, axis: int, zero: int) -> onnx.ModelProto:
    """``product`` of x and w with codes in between, as the int8 recipe leaves them."""
    rng = np.random.default_rng(3)
    per = w.shape[axis]
    constants: dict[str, Any] = {
        "sx": np.float32(0.013), "zx": np.uint8(zero), "sw": rng.uniform(1e-3, 2e-3, per).astype(np.float32),
        "codes": w, "zw": np.zeros(per, np.int8), "bias": rng.integers(-(2**16), 2**16, per).astype(np.int32),
        "sb": rng.uniform(1e-5, 2e-5, per).astype(np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "sx", "zx"], ["d"]),
        helper.make_node("DequantizeLinear", ["codes", "sw", "zw"], ["w"], axis=axis),
        helper.make_node("DequantizeLinear", ["bias", "sb"], ["b"], axis=0),
        product,
    ]
    return model_of(nodes, shape, {name: np.asarray(array) for name, array in constants.items()})


def exact(proto: onnx.ModelProto, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sums in float64, and what they would be if nothing cancelled out."""
    from onnx.reference import ReferenceEvaluator

    arrays = {each.name: numpy_helper.to_array(each) for each in proto.graph.initializer}
    zero = float(arrays["zx"])
    code = np.clip(np.rint(x / arrays["sx"]) + zero, 0, 255)
    d = ((code - zero) * float(arrays["sx"])).astype(np.float64)
    axis = next(a.i for n in proto.graph.node if n.output[0] == "w" for a in n.attribute if a.name == "axis")
    at = [-1 if i == axis else 1 for i in range(arrays["codes"].ndim)]
    w = arrays["codes"].astype(np.float64) * arrays["sw"].astype(np.float64).reshape(at)
    b = arrays["bias"] * arrays["sb"].astype(np.float64)
    product = proto.graph.node[-1]
    names = list(product.input)
    ports = [helper.make_tensor_value_info(each, TensorProto.DOUBLE, None) for each in names]
    out = helper.make_tensor_value_info("y", TensorProto.DOUBLE, None)
    alone = helper.make_model(helper.make_graph([product], "p", ports, [out]), opset_imports=proto.opset_import)
    given = {"d": d, "w": w, "b": b}
    judge = ReferenceEvaluator(alone)
    result = judge.run(None, {name: given[name] for name in names})[0]
    return result, judge.run(None, {name: np.abs(given[name]) for name in names})[0]


@pytest.mark.parametrize("zero", [0, 117])
@pytest.mark.parametrize("name", [name for name in CONVS if name != "grouped"])
def test_convolution_of_codes_rounds_only_what_is_scaled(name: str, zero: int) -> None:
    needs(cpu := Cpu("vnni"))
    ins, outs, groups, kernel, attributes = CONVS[name]
    rng = np.random.default_rng(7)
    w = rng.integers(-127, 128, (outs, ins // groups, *kernel)).astype(np.int8)
    product = helper.make_node("Conv", ["d", "w", "b"], ["y"], group=groups, **attributes)
    proto = coded(product, shape := [1, ins, 10, 12], w, 0, zero)
    x = rng.uniform(-1.4, 3.2, shape).astype(np.float32)
    found, (wanted, size) = run(proto, x, cpu), exact(proto, x)
    assert (np.abs(found - wanted) <= 4 * EPS * size).all()  # scale, product, bias, sum: the integers are exact


@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
@pytest.mark.parametrize(("depth", "columns"), [(64, 48), (13, 10), (31, 16)])
def test_product_of_codes_rounds_only_what_is_scaled(op: str, depth: int, columns: int) -> None:
    needs(cpu := Cpu("vnni"))
    rng = np.random.default_rng(8)
    w = rng.integers(-127, 128, (depth, columns)).astype(np.int8)
    product = helper.make_node(op, ["d", "w", "b"] if op == "Gemm" else ["d", "w"], ["y"])
    proto = coded(product, [6, depth], w, 1, 128)
    x = rng.uniform(-1.6, 1.6, (6, depth)).astype(np.float32)
    found, (wanted, size) = run(proto, x, cpu), exact(proto, x)
    assert (np.abs(found - wanted) <= 4 * EPS * size).all()


def assembly(proto: onnx.ModelProto, cpu: Cpu) -> str:
    executable = library.executable(cpu_lowering.lower(Model("m", ir.from_proto(proto), Origin("m.onnx", "")), cpu))
    modules = [executable.mod]
    texts = []
    while modules:
        module = modules.pop()
        modules += list(module.imports)
        if module.kind == "llvm":
            texts.append(module.inspect_source("asm"))
    return "\n".join(texts)


def test_machine_code_is_that_of_the_arch() -> None:
    w = np.random.default_rng(9).integers(-127, 128, (32, 8, 1, 1)).astype(np.int8)
    proto = coded(helper.make_node("Conv", ["d", "w", "b"], ["y"]), [1, 8, 10, 12], w, 0, 3)
    assert "vpdpbusd" in assembly(proto, Cpu("vnni"))
    avx512, avx2, generic = (assembly(proto, Cpu(arch)) for arch in ("avx512", "avx2", "generic"))
    assert "zmm" in avx512
    assert "vpdpbusd" not in avx512
    assert "ymm" in avx2
    assert "zmm" not in avx2
    assert "ymm" not in generic
