"""Runs a static plan's kernels with OpenCL on this machine's CPU: TVM's schedules, another code generator.

PoCL keeps a work-group's barriers and shared memory as a GPU does, so that a schedule that races shows here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import stand_ins

from polycast.targets._tvm import Gpu
from polycast.targets._tvm.plan import Plan

#: What PoCL's CPU device allows.
GPU = Gpu("opencl", threads=1024, shared=48 << 10, warp=32)


@cache
def context() -> Any:
    """Give the context of a CPU device; the test is skipped where there is none."""
    cl = pytest.importorskip("pyopencl")
    try:
        devices = [d for p in cl.get_platforms() for d in p.get_devices(cl.device_type.CPU)]
    except cl.LogicError:
        devices = []
    if not devices:
        pytest.skip("OpenCL finds no CPU device (apt install pocl-opencl-icd)")
    return cl.Context(devices[:1])


def run(plan: Plan, gpu: Gpu, feeds: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Run ``plan`` once. feeds: arrays in the order of its inputs, with the dtypes that they have inside."""
    cl = pytest.importorskip("pyopencl")
    device, queue = context(), cl.CommandQueue(context())
    target = replace(gpu, kind="opencl").target()
    code = stand_ins.readable(import_module("tvm.tirx.build").codegen_build(plan.kernels, target).inspect_source(""))
    program = cl.Program(device, code).build(["-w"])
    given = {**plan.constants, **dict(zip(plan.inputs, feeds, strict=True))}
    flags = cl.mem_flags.READ_WRITE
    buffers = {
        name: cl.Buffer(device, flags | cl.mem_flags.COPY_HOST_PTR, hostbuf=np.ascontiguousarray(array).reshape(-1))
        for name, array in given.items()
    }
    for name, tensor in plan.tensors.items():
        if name not in buffers:
            buffers[name] = cl.Buffer(device, flags, max(4, tensor.elements * np.dtype(tensor.dtype).itemsize))
    for launch in plan.launches:
        threads = plan.threads[launch.kernel]
        whole = tuple(blocks * each for blocks, each in zip(launch.grid, threads, strict=True))
        cl.Kernel(program, launch.kernel)(queue, whole, threads, *[buffers[name] for name in launch.operands])
    outputs = []
    for name in plan.outputs:
        kind = plan.tensors[name]
        array = np.empty(kind.shape, kind.dtype)
        cl.enqueue_copy(queue, array, buffers[name])
        outputs.append(array)
    queue.finish()
    return outputs
