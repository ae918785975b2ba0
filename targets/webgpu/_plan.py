"""plan.json, kernels.wgsl and the weights: what the runner in the browser runs."""

from __future__ import annotations

import hashlib
import json
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from polycast.model import Model, Port
from polycast.targets import _tvm
from polycast.targets._tvm.plan import Plan, Tensor, static_plan

from . import _memory, _weights, _wgsl
from ._bytes import WORDS
from ._weights import Place
from ._wgsl import Kernel

#: Version of plan.json; the runner refuses another one.
FORMAT = 1


def write(model: Model, gpu: _tvm.Gpu, folder: Path, *, by_row: bool = False) -> None:
    """Lower ``model``, whose shapes are fixed, and write it into ``folder``.

    by_row: whether it is one row of a batch, which the runner may be given.
    """
    lowered = _tvm.lower(model, gpu)
    plan = static_plan(lowered)
    with gpu.target() as target:
        kernels = _wgsl.generate(plan, target)
    codes = list(dict.fromkeys(kernels[launch.kernel] for launch in plan.launches))
    weights, places = _weights.write(plan.constants, folder)
    held = _buffers(plan, wide=True)[1]
    table = {
        "format": FORMAT,
        "byRow": by_row,
        "inputs": _ports(model.signature.inputs, lowered.inputs, plan.inputs, plan, held, places),
        "outputs": _ports(model.signature.outputs, lowered.outputs, plan.outputs, plan, held, places),
        "weights": weights,
        "constants": [[p.buffer, p.offset, p.bytes] for p in dict.fromkeys(places.values())],
        "kernels": [kernel.access for kernel in codes],
        "launches": _launches(plan, kernels, codes, held, places),
        "variants": [
            _variant(plan, codes, weights, places, folder, wide=wide)
            for wide in ((False, True) if any(kernel.code != kernel.wide for kernel in codes) else (False,))
        ],
    }
    (folder / "plan.json").write_text(json.dumps(table, separators=(",", ":")) + "\n", encoding="utf-8")


def _variant(
    plan: Plan,
    codes: list[Kernel],
    weights: list[dict[str, Any]],
    places: dict[str, Place],
    folder: Path,
    *,
    wide: bool,
) -> dict[str, Any]:
    """Write the kernels of one variant, and spell what it asks of an adapter.

    wide: with float32 for float16, for adapters that lack it; the launches and their buffers are the same.
    """
    file = "kernels-f32.wgsl" if wide else "kernels.wgsl"
    code = _wgsl.joined(kernel.wide if wide else kernel.code for kernel in codes).encode()
    (folder / file).write_bytes(code)
    sizes = _buffers(plan, wide=wide)[0]
    return {
        "features": ["shader-f16"] if b"enable f16;" in code else [],
        "float16": "float32" if wide else "float16",
        "limits": _limits(plan, codes, [*sizes, *(w["bytes"] for w in weights)], sizes, places, wide=wide),
        "buffers": sizes,
        "code": {"file": file, "sha256": hashlib.sha256(code).hexdigest()},
    }


def stored(dtype: str) -> str:
    """Give the dtype that a tensor has in its buffer: nothing there is narrower than 16 bits."""
    return WORDS.get(dtype, dtype)


def _buffers(plan: Plan, *, wide: bool) -> tuple[list[int], dict[str, int]]:
    """Give the sizes of the buffers, and the buffer of each tensor, which is the same whether wide or not.

    wide: with float32 for float16.
    """
    words = {name: _bytes(plan.tensors[name], wide=True) for name in plan.tensors}
    outputs = [name for name in plan.outputs if name in plan.tensors]
    spans = _memory.spans(words, (launch.operands for launch in plan.launches), plan.inputs, outputs)
    sizes, held = _memory.share(spans)
    if wide:
        return sizes, held
    narrow = [0] * len(sizes)
    for name, number in held.items():
        narrow[number] = max(narrow[number], _bytes(plan.tensors[name], wide=False))
    return narrow, held


def _bytes(tensor: Tensor, *, wide: bool) -> int:
    item = 4 if wide and tensor.dtype == "float16" else np.dtype(stored(tensor.dtype)).itemsize
    return -(-max(1, tensor.elements) * item // 4) * 4


def _ports(
    ports: tuple[Port, ...],
    inside: tuple[Port, ...],
    names: tuple[str, ...],
    plan: Plan,
    held: dict[str, int],
    places: dict[str, Place],
) -> list[dict[str, Any]]:
    """Spell inputs or outputs. dtype: what a user gives or gets; stored: what lies in the buffer.

    inside: with their shapes; a tensor of the plan has the shape that it had before it was reshaped.
    """
    found = []
    for port, shaped, name in zip(ports, inside, names, strict=True):
        constant = plan.constants.get(name)  # an output may be one
        kept = stored(plan.tensors[name].dtype) if constant is None else constant.dtype.name
        found.append(
            {
                "name": port.name,
                "dtype": port.dtype,
                "shape": list(shaped.shape or ()),
                "stored": kept,
                "buffer": _operand(name, held, places),
            }
        )
    return found


def _operand(name: str, held: dict[str, int], places: dict[str, Place]) -> int:
    """Spell a buffer as its number, and a constant as ``-1`` minus its number."""
    return held[name] if name in held else -1 - list(dict.fromkeys(places.values())).index(places[name])


def _launches(
    plan: Plan, kernels: dict[str, Kernel], codes: list[Kernel], held: dict[str, int], places: dict[str, Place]
) -> list[list[Any]]:
    """Spell each launch: kernel, workgroups, operands."""
    return [
        [
            codes.index(kernels[launch.kernel]),
            list(_wgsl.folded(launch.grid)),
            [_operand(name, held, places) for name in launch.operands],
        ]
        for launch in plan.launches
    ]


def _limits(
    plan: Plan, codes: list[Kernel], buffers: list[int], bound: list[int], places: dict[str, Place], *, wide: bool
) -> dict[str, int]:
    """Say what the adapter has to allow, by WebGPU's names."""

    def most(values: Any) -> int:
        return max(values, default=0)

    threads = plan.threads.values()
    return {
        "maxBufferSize": most(buffers),
        "maxStorageBufferBindingSize": most([*bound, *(place.bytes for place in places.values())]),
        "maxStorageBuffersPerShaderStage": most(len(kernel.access) for kernel in codes),
        "maxComputeWorkgroupStorageSize": most(kernel.wide_shared if wide else kernel.shared for kernel in codes),
        "maxComputeInvocationsPerWorkgroup": most(prod(each) for each in threads),
        "maxComputeWorkgroupSizeX": most(each[0] for each in threads),
        "maxComputeWorkgroupSizeY": most(each[1] for each in threads),
        "maxComputeWorkgroupSizeZ": most(each[2] for each in threads),
        "maxComputeWorkgroupsPerDimension": most(max(_wgsl.folded(launch.grid)) for launch in plan.launches),
    }
