"""WGSL for the kernels of a plan: one module each, with one entry point, and nothing bound but storage."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from polycast.errors import PassError, UnsupportedError
from polycast.targets._tvm.plan import Plan

from ._bytes import Words
from ._wide import widened

#: Workgroups along one dimension that every adapter takes; more are folded into the third one.
WORKGROUPS = 65535

_BINDING = re.compile(r"^@group\(0\) @binding\(\d+\) var<storage, (read|read_write)> ", re.MULTILINE)
_POD = re.compile(r"struct PODArgs \{\s*packGridDimX: u32\s*\}\s*@group\(0\) @binding\(\d+\) var<uniform> podArgs .*\n")
_GUARD = re.compile(r"^  if \(blockIdx\.z \* gridDim\.x \+ blockIdx\.x > podArgs\.packGridDimX\).*\n", re.MULTILINE)

#: TVM calls the remainder by its name in C, which WGSL does not know; its ``%`` is the same: the sign is that of x.
_FMOD = "fn fmodf(x: f32, y: f32) -> f32 { return x % y; }\n"

#: What else runs a model in the browser.
OTHER_KERNELS = "-t webgpu@onnxruntime-web, which has kernels of its own"


@dataclass(frozen=True)
class Kernel:
    """A WGSL module with the entry point ``main``.

    access: a letter for each binding, ``r`` or ``w`` (which may read too). shared: bytes of workgroup memory.
    wide: the module for adapters without float16, the same where it has none; wide_shared: its workgroup memory.
    """

    code: str
    access: str
    shared: int
    wide: str
    wide_shared: int


def generate(plan: Plan, target: Any) -> dict[str, Kernel]:
    """Generate the module of every kernel of ``plan``."""
    import tvm

    held = _held(plan)
    functions = {
        g: Words(f, held[g.name_hint]).rewritten() for g, f in plan.kernels.functions.items() if g.name_hint in held
    }
    module = tvm.tirx.transform.CommonSubexprElim()(tvm.IRModule(functions))
    text = tvm.get_global_func("target.build.webgpu")(module, target).inspect_source("")
    parts = re.split(r"(?m)^// Function: (\w+)\n(?=//-+\n// Function)", text)
    codes = dict(zip(parts[1::2], parts[2::2], strict=True))
    grids = {launch.kernel: launch.grid for launch in plan.launches}
    kernels = {}
    for variable, function in functions.items():
        name = variable.name_hint
        access = "".join("w" if each == "read_write" else "r" for each in _BINDING.findall(codes[name]))
        code = tidy(codes[name], name, grids[name][0])
        sizes = shared_bytes(function), shared_bytes(function, wide=True)
        kernels[name] = Kernel(code, access, sizes[0], widened(code, held[name]), sizes[1])
    return kernels


def _held(plan: Plan) -> dict[str, set[int]]:
    """Give the operands that are constants of less than a word, by kernel.

    Raises: UnsupportedError for a kernel that reads such a constant in one launch, and what was computed in another.
    """
    found: dict[str, set[int]] = {}
    for launch in plan.launches:
        held = {i for i, o in enumerate(launch.operands) if o in plan.constants and plan.constants[o].itemsize < 4}
        if found.setdefault(launch.kernel, held) != held:
            what = f"kernel {launch.kernel} reads stored weights in one launch, and not in another"
            raise UnsupportedError(what, f"Try -p fp32, which stores whole words, or {OTHER_KERNELS}")
    return found


def tidy(code: str, name: str, width: int) -> str:
    """Take from TVM's module what a static grid does not need. width: workgroups along x.

    TVM passes the width as a uniform, since it may fold x into z; here it is a constant, and mostly not folded.
    """
    code = re.sub(r"(?m)^//.*\n", "", code).strip() + "\n"
    code, found = _POD.subn(f"const width = {width}u;\n" if width > WORKGROUPS else "", code)
    if found != 1 or "podArgs" not in code:
        raise PassError(f"the code generator of TVM says kernel {name} otherwise than it used to")
    if width > WORKGROUPS:
        code = code.replace("blockIdx.x > podArgs.packGridDimX", "blockIdx.x >= width")
    else:
        code = _GUARD.sub("", code).replace("blockIdx.z * gridDim.x + blockIdx.x", "blockIdx.x")
        code = code.replace("  @builtin(num_workgroups) gridDim : vec3<u32>,\n", "")
    if "fmodf(" in code:
        code += _FMOD
    return code.replace(f"fn {name}(", "fn main(")


def folded(grid: tuple[int, int, int]) -> tuple[int, int, int]:
    """Give the workgroups to dispatch for ``grid``, x folded into z where it is too wide.

    Raises: UnsupportedError where no adapter has to take that many.
    """
    x, y, z = grid
    if max(y, z) > WORKGROUPS or (x > WORKGROUPS and z > 1):
        what = f"a kernel of this model needs {x} × {y} × {z} workgroups, more than WebGPU allows"
        raise UnsupportedError(what, f"A smaller --shape needs fewer; or try {OTHER_KERNELS}")
    return grid if x <= WORKGROUPS else (WORKGROUPS, y, -(-x // WORKGROUPS))


def joined(codes: Iterable[str]) -> str:
    """Join modules into one file, each after a line ``//#``."""
    return "".join(f"//#\n{code}" for code in codes)


def shared_bytes(function: Any, *, wide: bool = False) -> int:
    """Count the bytes of workgroup memory that a kernel declares; wide: with float32 for float16."""
    from math import prod

    import numpy as np
    from tvm import tirx
    from tvm_ffi import structural_walk

    def itemsize(buffer: Any) -> int:
        kind, _, lanes = str(buffer.dtype).partition("x")
        item = 4 if kind == "bool" else np.dtype(kind).itemsize
        return max(4 if wide else 2, item) * int(lanes or 1)

    sizes: list[int] = []

    def allocate(statement: Any) -> None:
        buffer = statement.buffer
        if buffer.scope() == "shared":
            sizes.append(prod(int(d) for d in buffer.shape) * itemsize(buffer))

    structural_walk(function.body, (tirx.AllocBuffer, allocate))
    return sum(sizes)
