"""Runs a static plan's kernels with OpenCL on this machine's CPU: TVM's schedules, another code generator.

PoCL keeps a work-group's barriers and shared memory as a GPU does, so that a schedule that races shows here. It runs in
a process of its own: it brings an LLVM, TVM brings another, and one process does not bear both for long.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from polycast.targets._tvm import Gpu
    from polycast.targets._tvm.plan import Plan

#: How long one plan may take, in seconds.
_LIMIT = 240
_NO_DEVICE = 77


@dataclass(frozen=True)
class Job:
    """What the child runs. tensors: elements, dtype and shape by name; launches: kernel, size, group, operands."""

    code: str
    given: dict[str, np.ndarray]
    tensors: dict[str, tuple[int, str, tuple[int, ...]]]
    launches: list[tuple[str, tuple[int, ...], tuple[int, ...], tuple[str, ...]]]
    outputs: tuple[str, ...]


def any_gpu() -> Gpu:
    """Give what PoCL's CPU device allows."""
    from polycast.targets._tvm import Gpu

    return Gpu("opencl", threads=1024, shared=48 << 10, warp=32)


@cache
def needs_device() -> None:
    """Skip where there is no CPU device."""
    pytest.importorskip("pyopencl")
    if _child().returncode:
        pytest.skip("OpenCL finds no CPU device (apt install pocl-opencl-icd)")


def run(plan: Plan, gpu: Gpu, feeds: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Run ``plan`` once. feeds: arrays in the order of its inputs, with the dtypes that they have inside."""
    import stand_ins

    needs_device()
    target = replace(gpu, kind="opencl").target()
    code = stand_ins.readable(import_module("tvm.tirx.build").codegen_build(plan.kernels, target).inspect_source(""))
    launches = []
    for launch in plan.launches:
        group = tuple(plan.threads[launch.kernel])
        whole = tuple(blocks * each for blocks, each in zip(launch.grid, group, strict=True))
        launches.append((launch.kernel, whole, group, tuple(launch.operands)))
    given = {**plan.constants, **dict(zip(plan.inputs, feeds, strict=True))}
    tensors = {name: (each.elements, each.dtype, tuple(each.shape)) for name, each in plan.tensors.items()}
    job = Job(code, given, tensors, launches, tuple(plan.outputs))
    with tempfile.TemporaryDirectory(prefix="polycast-") as folder:
        file, found = Path(folder, "job.pickle"), Path(folder, "found.npz")
        file.write_bytes(pickle.dumps(vars(job)))
        done = _child(str(file), str(found))
        if done.returncode == -signal.SIGSEGV:  # PoCL 3.1's optimizer does, on float16 that is read as vectors
            done = _child(str(file), str(found), "-cl-opt-disable")
        assert done.returncode == 0, f"PoCL leaves with {done.returncode}: {done.stderr[-2000:]}"
        with np.load(found) as arrays:
            return [arrays[str(number)] for number in range(len(job.outputs))]


def _child(*arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, __file__, *arguments]
    environment = os.environ | {"PYOPENCL_NO_CACHE": "1"}
    return subprocess.run(words, capture_output=True, text=True, timeout=_LIMIT, env=environment)


def execute(job: Job, found: str, *options: str) -> None:
    """Run a job and write its outputs, by number. options: for the compiler."""
    import pyopencl as cl

    device = _context()
    queue = cl.CommandQueue(device)
    program = cl.Program(device, job.code).build(["-w", *options])
    flags = cl.mem_flags.READ_WRITE
    buffers = {
        name: cl.Buffer(device, flags | cl.mem_flags.COPY_HOST_PTR, hostbuf=np.ascontiguousarray(array).reshape(-1))
        for name, array in job.given.items()
    }
    for name, (elements, dtype, _) in job.tensors.items():
        if name not in buffers:
            buffers[name] = cl.Buffer(device, flags, max(4, elements * np.dtype(dtype).itemsize))
    for kernel, whole, group, operands in job.launches:
        cl.Kernel(program, kernel)(queue, whole, group, *[buffers[name] for name in operands])
    arrays = {}
    for number, name in enumerate(job.outputs):
        _, dtype, shape = job.tensors[name]
        arrays[str(number)] = np.empty(shape, dtype)
        cl.enqueue_copy(queue, arrays[str(number)], buffers[name])
    queue.finish()
    np.savez(found, **arrays)


def _context() -> Any:
    import pyopencl as cl

    try:
        devices = [d for p in cl.get_platforms() for d in p.get_devices(cl.device_type.CPU)]
    except cl.LogicError:
        devices = []
    if not devices:
        sys.exit(_NO_DEVICE)
    return cl.Context(devices[:1])


if __name__ == "__main__":
    if len(sys.argv) == 1:
        _context()
    else:
        execute(Job(**pickle.loads(Path(sys.argv[1]).read_bytes())), *sys.argv[2:])
