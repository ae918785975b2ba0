"""onnxruntime's GPU providers: what their tables say of a graph, what a build for them holds, and what stands in."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from models import conv_net, save
from onnx import TensorProto, helper, numpy_helper, parser

import polycast
from polycast.environments.child import Child
from polycast.environments.environment import Environment
from polycast.errors import PromiseError, ToolchainError
from polycast.load import load
from polycast.model import Model, Origin
from polycast.targetbase import Answer
from polycast.targets import _onnxruntime_gpu as gpu
from polycast.targets import _run_onnxruntime, find
from polycast.targets._onnxruntime_gpu import cuda_kernels, migraphx_ops, tensorrt_ops
from polycast.targets._tvm import hsaco, nvcc

TARGETS = ("cuda:sm_90@onnxruntime", "rocm:gfx942@onnxruntime")
HERE, ABSENT = Answer(True, "a GPU"), Answer(False, "no GPU is here", "get one")


def model(text: str, opset: int = 21) -> Model:
    proto = parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>\n{text}')
    return Model("m", ir.from_proto(proto), Origin("m.onnx", ""))


def cuda(text: str, opset: int = 21) -> dict[str, str]:
    return cuda_kernels.fallback(model(text, opset))


def test_cuda_takes_what_its_table_lists():
    assert cuda("g (float[2] x) => (float[2] y) { y = Relu(x) }") == {}
    assert cuda("g (float[1,2,4] x) => (float[1,2,4] y) { y = com.microsoft.Gelu(x) }") == {}


def test_cuda_names_an_op_a_type_and_an_opset_that_it_lacks():
    assert cuda("g (float[2] x) => (float[2] y) { y = Asin(x) }") == {"y": "the CUDA provider has no Asin"}
    assert cuda("g (int8[2,2] x) => (int8[2,2] y) { y = Relu(x) }") == {"y": "the CUDA provider has no Relu of int8"}
    text = "g (uint8[2,2] a, uint8[2,2] b) => (int32[2,2] y) { y = MatMulInteger(a, b) }"
    assert cuda(text) == {"y": "the CUDA provider has no MatMulInteger of uint8"}
    attention = "g (float[1,2,4,4] q) => (float[1,2,4,4] y) { y = Attention(q, q, q) }"
    assert cuda(attention, 23) == {}


def test_an_opset_is_declared_that_has_kernels():
    """The CUDA provider's MaxPool is of opset 12, and so takes no node of opset 22, which means the same."""
    pool = "g (float[1,1,4,4] x) => (float[1,1,2,2] y) { y = MaxPool <kernel_shape = [2,2], strides = [2,2]> (x) }"
    assert cuda_kernels.declared(model(pool, 23)).opset == 21
    assert cuda(pool, 23) == {}
    attention = pool.replace("}", "z = Attention(y, y, y) }").replace("y)", "z)", 1).replace("2,2] y", "2,2] z")
    held = model(attention, 23)
    assert cuda_kernels.declared(held).opset == 23
    assert list(cuda_kernels.fallback(held).values()) == ["the CUDA provider has no MaxPool of opset 23"]


def test_what_onnx_defines_by_other_ops_is_no_fallback():
    assert cuda("g (float[2] x) => (float[2] y) { y = HardSwish(x) }") == {}
    assert cuda("g () => (float[1] y) { y = Constant <value_floats = [1.0]> () }") == {}


def test_the_cuda_table_is_of_the_version_that_is_installed():
    assert f"=={cuda_kernels.VERSION}" in gpu.CUDA.requirements[0]
    assert gpu.TENSORRT.requirements[0] == gpu.CUDA.requirements[0]
    assert f"=={migraphx_ops.VERSION}" in gpu.MIGRAPHX.requirements[0]


def test_every_row_of_the_cuda_table_is_a_version_of_its_op():
    """The table is of the ops of ONNX: every range begins at a version that the op has, or has had."""
    for op, rows in cuda_kernels._table().items():
        if "." in op:
            continue
        schemas = {s.since_version for s in onnx.defs.get_all_schemas_with_history() if (s.name, s.domain) == (op, "")}
        starts = {first for first, _, _ in rows}
        if schemas:
            assert starts & schemas, f"{op}: kernels from {sorted(starts)}, versions {sorted(schemas)}"
        assert all(not last or first <= last for first, last, _ in rows)


def many_unknown(n: int) -> Model:
    names = ["x", *(f"v{i}" for i in range(n)), "y"]
    nodes = [helper.make_node("IsInf" if i < n else "Not", [names[i]], [names[i + 1]], f"n{i}") for i in range(n + 1)]
    for node in nodes[1:n]:
        node.op_type = "BitwiseNot"
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:])
    return Model("m", ir.from_proto(helper.make_model(graph)), Origin("m.onnx", ""))


def test_migraphx_takes_nothing_where_it_does_not_know_eleven_nodes():
    assert set(migraphx_ops.fallback(many_unknown(10))) == {f"n{i}" for i in range(10)}
    eleven = migraphx_ops.fallback(many_unknown(11))
    assert set(eleven) == {f"n{i}" for i in range(12)}
    assert "more than 10 nodes: the MIGraphX provider does not know IsInf" in eleven["n11"]


@pytest.mark.parametrize("target", TARGETS)
def test_a_build_says_provider_package_and_that_a_stand_in_ran(target, tmp_path, monkeypatch):
    without_gpu(monkeypatch)
    [build] = polycast.compile(conv_net(tmp_path / "m.onnx"), target, "fp16", out=tmp_path / "out")
    provider = gpu.CUDA if "cuda" in target else gpu.MIGRAPHX
    runtime = build.manifest["runtime"]
    assert list(runtime["providers"]) == [provider.name]
    assert runtime["versions"] == {provider.package: provider.version}
    assert provider.requirements[0] in runtime["needs"]
    assert build.manifest["evidence"] == "emulated"
    assert build.manifest["fallback"]["macs"] == 0


def test_the_runner_says_that_it_runs_on_the_cpu(tmp_path, monkeypatch):
    without_gpu(monkeypatch)
    [build] = polycast.compile(conv_net(tmp_path / "m.onnx"), TARGETS[0], out=tmp_path / "out")
    done = subprocess.run([sys.executable, build.path / "run.py", "--verify"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr == "run.py: CUDAExecutionProvider is not here: this runs on the CPU\n"


def test_more_on_the_cpu_than_is_allowed_is_refused(tmp_path, monkeypatch):
    """Half of the arithmetic is a ConvInteger, which the CUDA provider has no kernel for."""
    without_gpu(monkeypatch)
    ones = numpy_helper.from_array(np.ones((1, 1, 3, 3), np.uint8), "w")
    floats = numpy_helper.from_array(np.ones((1, 1, 3, 3), np.float32), "v")
    nodes = [
        helper.make_node("ConvInteger", ["x", "w"], ["sum"], "integer", pads=[1, 1, 1, 1]),
        helper.make_node("Cast", ["sum"], ["float"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Conv", ["float", "v"], ["y"], "float", pads=[1, 1, 1, 1]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 1, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 8, 8])
    source = save(helper.make_graph(nodes, "g", [x], [y], [ones, floats]), tmp_path / "m.onnx")
    match = r"leaves 50\.0% of the MACs to the CPU, and 49% are allowed: ConvInteger 50\.0%"
    with pytest.raises(PromiseError, match=match) as caught:
        polycast.compile(source, "cuda@onnxruntime", out=tmp_path / "out", max_cpu_share=49)
    assert caught.value.hint == "Because: integer: the CUDA provider has no ConvInteger"
    assert not (tmp_path / "out").exists()
    [build] = polycast.compile(source, "cuda@onnxruntime", out=tmp_path / "out", max_cpu_share=50)
    assert build.manifest["fallback"]["ops"] == {"ConvInteger": 0.5}


def test_a_gpu_that_is_here_is_used_from_the_environment_of_its_package(tmp_path, monkeypatch):
    """The environment is this one, whose provider is called the CPU's."""
    without_gpu(monkeypatch)
    [build] = polycast.compile(conv_net(tmp_path / "m.onnx"), TARGETS[0], out=tmp_path / "out")
    made: list[str] = []
    monkeypatch.setattr(Environment, "make", lambda self: made.append(self.name))
    monkeypatch.setattr(Environment, "python", Path(sys.executable))
    session = replace(gpu.CUDA, name="CPUExecutionProvider").open(build.path, build.signature, HERE)
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(session.run({"x": x})[0], build.run({"x": x})[0])
    assert made == ["onnxruntime-gpu"]
    assert session.evidence == "device"


def test_a_gpu_whose_provider_does_not_start_is_no_device(tmp_path, monkeypatch):
    without_gpu(monkeypatch)
    [build] = polycast.compile(conv_net(tmp_path / "m.onnx"), TARGETS[0], out=tmp_path / "out")
    monkeypatch.setattr(Environment, "make", lambda self: None)
    monkeypatch.setattr(Environment, "python", Path(sys.executable))
    with pytest.raises(ToolchainError, match="does not start CUDAExecutionProvider here"):
        gpu.CUDA.open(build.path, build.signature, HERE)


def test_the_probe_names_the_stand_in_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYCAST_CACHE", str(tmp_path))
    target = find(TARGETS[0])
    absent, here = gpu.CUDA.probe(target, ABSENT), gpu.CUDA.probe(target, HERE)
    assert (absent.run.yes, absent.evidence) == (True, "emulated")
    assert absent.run.reason.startswith("no GPU is here: the graph runs on onnxruntime's CPU provider")
    assert (here.run.yes, here.evidence) == (True, "device")
    assert here.run.mend == "polycast setup cuda:sm_90@onnxruntime makes it now"


def test_tensorrt_takes_a_build_in_symmetric_int8_and_cuda_stands_behind_it(tmp_path, monkeypatch):
    """The biases are float, since TensorRT widens no int32; and the agreement says what it cost."""
    without_gpu(monkeypatch)
    source, rows = conv_net(tmp_path / "m.onnx"), np.random.default_rng(0)
    shapes = [port.shape for port in load(source).signature.inputs]
    np.savez(tmp_path / "rows.npz", **{f"{i}/x": rows.standard_normal((1, *shapes[0][1:])) for i in range(4)})
    samples = {f"{i}/x": a.astype(np.float32) for i, a in enumerate(np.load(tmp_path / "rows.npz").values())}
    np.savez(tmp_path / "rows.npz", **samples)
    [build] = polycast.compile(
        source, "cuda:sm_90@tensorrt", "int8", calibration=tmp_path / "rows.npz", out=tmp_path / "out"
    )
    runtime = build.manifest["runtime"]
    assert list(runtime["providers"]) == ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
    asked = runtime["providers"]["TensorrtExecutionProvider"]
    assert (asked["trt_int8_enable"], asked["trt_fp16_enable"]) == ("1", "0")
    assert runtime["left_to_cuda"] == {} and build.manifest["fallback"]["nodes"] == 0
    graph = onnx.load(build.path / "model.onnx").graph
    zeros = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    coded = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert coded and all(node.input[0] not in zeros or zeros[node.input[0]].dtype == np.int8 for node in coded)
    assert all(zeros[node.input[2]].dtype == np.int8 and not zeros[node.input[2]].any() for node in coded)


def test_tensorrt_leaves_what_it_does_not_know_to_cuda_and_that_to_the_cpu():
    shrunk = model("g (float[2] x) => (bool[2] y) { y = IsInf(x) }")
    assert tensorrt_ops.left_to_cuda(shrunk) == {} == tensorrt_ops.fallback(shrunk)
    text = "g (uint8[2] a, uint8[2] b) => (uint8[2] y) { y = BitwiseAnd(a, b) }"
    assert tensorrt_ops.left_to_cuda(model(text)) == {"y": "TensorRT does not know BitwiseAnd"}
    asked = "g (uint8[2,2] a, uint8[2,2] b) => (int32[2,2] y) { y = MatMulInteger(a, b) }"
    [reason] = tensorrt_ops.fallback(model(asked)).values()
    assert reason == "TensorRT does not know MatMulInteger; the CUDA provider has no MatMulInteger of uint8"


def test_tensorrt_quantizes_with_zero_at_0_only():
    text = "g (float[2] x, float s, {0} z) => ({0}[2] y) {{ y = QuantizeLinear(x, s, z) }}"
    found = [tensorrt_ops.left_to_cuda(model(text.format(kind)))["y"] for kind in ("uint8", "int8")]
    assert found == ["TensorRT quantizes to no uint8", "TensorRT quantizes with zero at 0 only"]


def test_the_runner_makes_the_folders_of_this_user_and_loads_what_lies_in_packages(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    spelt = _run_onnxruntime._spelt({"path": "~/cache/engines", "flag": "1"})
    assert spelt == {"path": str(tmp_path / "cache" / "engines"), "flag": "1"}
    assert Path(spelt["path"]).is_dir()
    package = tmp_path / "some_libs"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "libsome.so.1").touch()
    monkeypatch.syspath_prepend(tmp_path)
    loaded: list[str] = []
    monkeypatch.setattr(_run_onnxruntime.ctypes, "CDLL", lambda path, mode: loaded.append(path))
    _run_onnxruntime._preload({"some_libs": ["libsome.so.1", "libabsent.so.1"], "absent_libs": ["libsome.so.1"]})
    assert loaded == [str(package / "libsome.so.1")]


def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for tool in (nvcc, hsaco):
        monkeypatch.setattr(tool, "device", lambda: ABSENT)


@pytest.fixture
def real(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Environment]:
    monkeypatch.setenv("POLYCAST_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield gpu.MIGRAPHX.environment


@pytest.mark.slow
def test_the_real_package_lives_beside_ours_and_runs_a_build(real, tmp_path, monkeypatch):
    """onnxruntime-migraphx replaces onnxruntime, and here it does not: a child has it, and this process ours."""
    try:
        real.make()
    except ToolchainError as error:
        pytest.skip(error.message)
    [build] = polycast.compile(conv_net(tmp_path / "m.onnx"), TARGETS[1], out=tmp_path / "out")
    child = Child(real.python, build.path / "run.py", build.path)
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    tolerance = json.loads((build.path / "manifest.json").read_text())["agreement"]["tolerance"]
    want, found = build.run({"x": x})[0], child.run({"x": x})[0]
    child.close()
    assert np.abs(found - want).max() <= tolerance * np.abs(want).max()
