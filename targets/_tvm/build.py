"""What a build for TVM's runtime holds: one library, the weights beside it, and a runner."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from polycast.model import Model

from .. import _runner
from . import cross, run_tvm
from .cpu_arch import Cpu
from .gpu import Gpu
from .open_sizes import one_row
from .static import bound, fixed


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
        **facts,
        **({"machine": gpu.machine, "instructions": list(gpu.instructions)} if isinstance(gpu, Cpu) else {}),
        "needs": f"pip install numpy apache-tvm=={version('apache-tvm')}",
        "how_to_run": ["python run.py --input x.npz", "python run.py --verify", "python run.py --time"],
    }
