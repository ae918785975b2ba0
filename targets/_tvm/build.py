"""What a build for TVM's runtime holds: one library, the weights beside it, and a runner."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir as ir

from polycast.model import Model, name_of

from .. import _runner
from . import cross, run_tvm
from .cpu_arch import Cpu
from .gpu import Gpu
from .open_sizes import one_row
from .static import bound, fixed

#: What may give an integer that is larger than all that it reads.
_GROWING = frozenset(
    {
        "Add", "BitShift", "Cast", "CumSum", "Gemm", "MatMul", "Mul", "Neg", "Pow", "ReduceProd", "ReduceSum", "Sub",
        "Sum",
    }
)  # fmt: skip


def _limits(model: Model) -> dict[str, str]:
    """Say where integers of 64 bits could need more than the 32 that kernels compute in."""
    wide = (ir.DataType.INT64, ir.DataType.UINT64)
    nodes = (node for node in model.graph.graph.all_nodes() if not node.domain and node.op_type in _GROWING)
    found = sorted({name_of(node) for node in nodes if node.outputs[0].dtype in wide})
    if not found:
        return {}
    return {
        "limits": f"int64 has 32 bits inside: a larger integer that one of these gives is wrong: {', '.join(found)}"
    }


def write(model: Model, gpu: Gpu | Cpu, folder: Path) -> Mapping[str, Any]:
    """Write lib.so, weights.safetensors and what runs them. Returns: the runtime facts for the manifest."""
    static, by_row = one_row(model, gpu)
    most = bound(model)
    facts = cross.write({1: static} | ({most: fixed(model, most)[0]} if most else {}), gpu, folder)
    _runner.write(folder, run_tvm)
    return {
        "name": "tvm",
        "versions": {"apache-tvm": version("apache-tvm")},
        "device": gpu.kind,
        "weights": "weights.safetensors",
        "by_row": by_row,
        **_limits(model),
        **facts,
        **({"machine": gpu.machine, "instructions": list(gpu.instructions)} if isinstance(gpu, Cpu) else {}),
        "needs": f"pip install numpy apache-tvm=={version('apache-tvm')}",
        "how_to_run": ["python run.py --input x.npz", "python run.py --verify", "python run.py --time"],
    }
