"""Run the float16 kernels of a browser build through wgpu, on a software adapter of Vulkan: in a process of its own.

That adapter brings an LLVM of its own, as OpenCL's does, and one process does not bear both.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import wgpu


def find() -> Any:
    """Give an adapter with float16. Leaves with the reason where there is none."""
    try:
        found = wgpu.gpu.request_adapter_sync(power_preference="high-performance")
    except RuntimeError as error:
        sys.exit(f"no adapter for wgpu: {error}")
    if found is None or "shader-f16" not in found.features:
        sys.exit("no adapter for wgpu with shader-f16")
    return found


def run(adapter: Any, folder: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Run the first variant of the plan in ``folder``, whose ports are no integers of 64 bits."""
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


def main(folder: str = "", given: str = "", into: str = "") -> None:
    """Run the samples ``<i>/<input>`` of ``given``, and write ``<i>/<output>``. With nothing, look for an adapter."""
    adapter = find()
    if not folder:
        return
    outputs: dict[str, np.ndarray] = {}
    with np.load(given) as arrays:
        samples: dict[str, dict[str, np.ndarray]] = {}
        for key in arrays.files:
            number, _, name = key.partition("/")
            samples.setdefault(number, {})[name] = arrays[key]
    for number, feeds in samples.items():
        for at, array in enumerate(run(adapter, Path(folder), feeds)):
            outputs[f"{number}/{at}"] = array
    np.savez(into, **outputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
