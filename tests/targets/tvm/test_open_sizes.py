"""Kernels for images of any size, judged by onnxruntime as the graph is written, at sizes that no tile divides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("tvm")

import polycast
from polycast.errors import UnsupportedError
from polycast.load import load
from polycast.targets import find
from polycast.targets._tvm import cpu_arch, cpu_converters, cpu_lowering, frontend, library, open_sizes
from polycast.targets._tvm.cpu_arch import Cpu

#: Full tiles, parts of them, a single pixel, and an image that has left the near caches.
SIZES = [(8, 16), (9, 13), (1, 1), (3, 129), (67, 131)]
STEP = 0.02


def net(*, coded: bool, last: str = "DepthToSpace") -> onnx.ModelProto:
    """Few channels to sixteen, depthwise with stride 2, a sum, then a number of channels that fills no register."""
    rng = np.random.default_rng(4)
    arrays: dict[str, np.ndarray] = {}
    nodes: list[onnx.NodeProto] = []

    def quantized(name: str) -> str:
        if not coded:
            return name
        nodes.append(helper.make_node("QuantizeLinear", [name, "step", "zero"], [f"{name}_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", "step", "zero"], [f"{name}_d"]))
        return f"{name}_d"

    def conv(name: str, given: str, shape: tuple[int, ...], **attributes: object) -> None:
        codes, scales = rng.integers(-127, 128, shape).astype(np.int8), rng.uniform(1e-3, 2e-3, shape[0])
        arrays[f"{name}_s"] = scales.astype(np.float32)
        arrays[f"{name}_b"] = rng.standard_normal(shape[0]).astype(np.float32)
        if coded:
            arrays[f"{name}_c"] = codes
            nodes.append(helper.make_node("DequantizeLinear", [f"{name}_c", f"{name}_s"], [f"{name}_w"], axis=0))
        else:
            arrays[f"{name}_w"] = codes * arrays[f"{name}_s"].reshape(-1, 1, 1, 1)
        nodes.append(helper.make_node("Conv", [given, f"{name}_w", f"{name}_b"], [name], **attributes))

    arrays |= {"step": np.float32(STEP), "zero": np.uint8(117), "low": np.float32(0), "high": np.float32(2)}
    conv("first", quantized("x"), (16, 1, 5, 5), pads=[2, 2, 2, 2])
    nodes.append(helper.make_node("Clip", ["first", "low", "high"], ["clipped"]))
    a = quantized("clipped")
    conv("second", a, (16, 16, 3, 3), pads=[1, 1, 1, 1])
    nodes.append(helper.make_node("Add", [quantized("second"), a], ["sum"]))
    conv("third", quantized("sum"), (16, 1, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2], group=16)
    conv("fourth", quantized("third"), (9, 16, 1, 1))
    attributes = {"blocksize": 3} if last == "DepthToSpace" else {}
    nodes.append(helper.make_node(last, [quantized("fourth")], ["y"], **attributes))
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in
             (("x", ["batch", 1, "h", "w"]), ("y", ["batch", None, None, None]))]  # fmt: skip
    kept = [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "net", ports[:1], ports[1:], kept)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def judge(proto: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(proto.SerializeToString(), options)


def test_one_library_serves_every_size() -> None:
    import tvm
    from tvm.runtime.vm import VirtualMachine

    cpu = cpu_arch.this_cpu()
    if cpu.machine != "x86_64" or not cpu.multiplies_bytes:
        pytest.skip("no kernels of any size for this CPU")
    proto = net(coded=True)
    one, by_row = open_sizes.one_row(load(proto), cpu)
    assert by_row
    assert open_sizes.suits(one, cpu)
    run = VirtualMachine(library.executable(cpu_lowering.lower(one, cpu)), tvm.cpu())["main"]
    session, rng = judge(proto), np.random.default_rng(0)
    for size in SIZES:
        x = rng.uniform(-1, 1, (1, 1, *size)).astype(np.float32)
        [found], [wanted] = run(tvm.runtime.tensor(x)), session.run(None, {"x": x})
        assert found.shape == wanted.shape
        # A sum that lies between two codes is rounded either way, and the layers behind may do so again.
        off = np.abs(found.numpy() - wanted)
        assert off.max() <= 2 * STEP and (off > STEP / 2).mean() < 0.02


def test_what_needs_a_size_is_refused_with_what_gives_one(tmp_path: Path) -> None:
    onnx.save(net(coded=False, last="GlobalAveragePool"), tmp_path / "m.onnx")
    with pytest.raises(UnsupportedError, match="--shape x=N,1,N,N"):
        polycast.compile(tmp_path / "m.onnx", "cpu@tvm", out=tmp_path / "out")


@pytest.mark.slow
def test_a_build_runs_rows_of_any_size(tmp_path: Path) -> None:
    if not (probe := find("cpu@tvm").probe()).build.yes or cpu_arch.this_cpu().machine != "x86_64":
        pytest.skip(probe.build.reason)
    proto = net(coded=False)
    onnx.save(proto, tmp_path / "m.onnx")
    [build] = polycast.compile(tmp_path / "m.onnx", "cpu@tvm", out=tmp_path / "out")
    session, plain = build.open(), judge(proto)
    for shape in ((1, 1, 5, 7), (3, 1, 12, 9), (1, 1, 67, 131)):
        x = np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)
        [found], [wanted] = session.run({"x": x}), plain.run(None, {"x": x})
        assert np.abs(found - wanted).max() <= build.manifest["golden"]["tolerance"] * np.abs(wanted).max()


def test_only_images_on_x86_are_of_any_size() -> None:
    model = load(net(coded=False))
    assert not open_sizes.suits(model, Cpu("avx2"))  # its batch is open
    one, _ = open_sizes.one_row(model, Cpu("avx2"))
    assert open_sizes.suits(one, Cpu("avx2"))
    assert not open_sizes.suits(one, cpu_arch.NEON)
    assert frontend.problems(one, cpu_converters.own(Cpu("avx2")), any_size=True) == ()
