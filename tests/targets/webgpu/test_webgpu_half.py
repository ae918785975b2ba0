"""Kernels of float16, on an adapter that has it: the plan of a build run by wgpu, on a software adapter of Vulkan."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polycast

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "digits"


@pytest.fixture(scope="module")
def adapter() -> Any:
    wgpu = pytest.importorskip("wgpu")
    try:
        found = wgpu.gpu.request_adapter_sync(power_preference="high-performance")
    except RuntimeError as error:
        pytest.skip(f"no adapter for wgpu: {error}")
    if found is None or "shader-f16" not in found.features:
        pytest.skip("no adapter for wgpu with shader-f16")
    return found


def run(adapter: Any, folder: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Run the first variant of the plan in ``folder``, whose ports are no integers of 64 bits."""
    import wgpu

    plan = json.loads((folder / "plan.json").read_text())
    variant = plan["variants"][0]
    assert variant["features"] == ["shader-f16"]
    limits = {"".join("-" + c.lower() if c.isupper() else c for c in k): v for k, v in variant["limits"].items()}
    device = adapter.request_device_sync(required_features=["shader-f16"], required_limits=limits)
    usage = wgpu.BufferUsage.STORAGE | wgpu.BufferUsage.COPY_SRC | wgpu.BufferUsage.COPY_DST
    buffers = [device.create_buffer(size=size, usage=usage) for size in variant["buffers"]]
    data = [b"".join((folder / f["file"]).read_bytes() for f in each["files"]) for each in plan["weights"]]
    weights = [device.create_buffer_with_data(data=each, usage=usage) for each in data]
    modules = (folder / variant["code"]["file"]).read_text().split("//#\n")[1:]
    pipelines = [
        device.create_compute_pipeline(
            layout="auto", compute={"module": device.create_shader_module(code=code), "entry_point": "main"}
        )
        for code in modules
    ]

    def bound(operand: int) -> dict[str, Any]:
        if operand >= 0:
            return {"buffer": buffers[operand], "offset": 0, "size": buffers[operand].size}
        buffer, offset, size = plan["constants"][-1 - operand]
        return {"buffer": weights[buffer], "offset": offset, "size": size}

    for port in plan["inputs"]:
        device.queue.write_buffer(buffers[port["buffer"]], 0, feeds[port["name"]].tobytes())
    encoder = device.create_command_encoder()
    for kernel, grid, operands in plan["launches"]:
        entries = [{"binding": i, "resource": bound(operand)} for i, operand in enumerate(operands)]
        group = device.create_bind_group(layout=pipelines[kernel].get_bind_group_layout(0), entries=entries)
        launch = encoder.begin_compute_pass()
        launch.set_pipeline(pipelines[kernel])
        launch.set_bind_group(0, group)
        launch.dispatch_workgroups(*grid)
        launch.end()
    device.queue.submit([encoder.finish()])
    found = []
    for port in plan["outputs"]:
        array = np.frombuffer(device.queue.read_buffer(buffers[port["buffer"]]), port["stored"])
        found.append(array[: int(np.prod(port["shape"]))].reshape(port["shape"]))
    return found


def test_example_gives_what_the_same_model_gives_in_onnxruntime(adapter: Any, tmp_path: Path) -> None:
    [build] = polycast.compile(EXAMPLE / "digits.onnx", "webgpu", "fp16", out=tmp_path)
    rows = np.load(EXAMPLE / "digits-test.npz")["image"][:16]
    assert_near(adapter, EXAMPLE / "digits.onnx", build.path, [{"image": row[None]} for row in rows])


@pytest.mark.parametrize("name", ["mlperftiny/kws.onnx", "mlperftiny/ic_resnet8.onnx", "mlperftiny/vww_96.onnx"])
def test_model_of_the_zoo(adapter: Any, zoo: Callable[[str], Path], name: str, tmp_path: Path) -> None:
    source = zoo(name)
    [build] = polycast.compile(source, "webgpu", "fp16", out=tmp_path)
    [port] = build.signature.inputs
    shape = [1, *(port.shape or ())[1:]]
    rows = np.random.default_rng(0).random((4, *shape), np.float32) * (255 if "resnet" in name else 1)
    assert_near(adapter, source, build.path, [{port.name: row} for row in rows])


def assert_near(adapter: Any, source: Path, folder: Path, feeds: list[dict[str, np.ndarray]]) -> None:
    """Hold every output to what rounding to float16 explains."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    original = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    layers = len(json.loads((folder / "plan.json").read_text())["launches"])
    for each in feeds:
        want, found = original.run(None, each)[0], run(adapter, folder, each)[0]
        # Each layer rounds its result to float16, half a step of 2**-10; the errors of layers add up.
        assert np.abs(found - want).max() <= layers * 2.0**-11 * np.abs(want).max()
