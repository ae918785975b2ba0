"""Lower and compile one model in a process of its own: ``python -m polycast.targets._tvm.cross job.json``.

TVM numbers what it names for as long as a process lives, and loads a driver once; in a fresh process the same model
gives the same bytes, and a stand-in for a driver that is not there disturbs nobody.
"""

from __future__ import annotations

import ctypes.util
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from polycast.errors import ToolchainError
from polycast.model import Model, Origin

from . import lower, nvcc
from .cpu_arch import Cpu
from .gpu import Gpu


def write(model: Model, gpu: Gpu | Cpu, folder: Path) -> dict[str, Any]:
    """Write ``lib.so`` and ``weights.safetensors`` for ``gpu`` into ``folder``.

    Returns: what the runner has to know: parameters in order, ports inside, the number of kernels.
    Raises: ToolchainError with what the process says where it fails.
    """
    with tempfile.TemporaryDirectory(prefix="polycast-") as work:
        model.write(Path(work, "model.onnx"))
        facts = Path(work, "facts.json")
        job = {"model": f"{work}/model.onnx", "folder": str(folder), "facts": str(facts)}
        Path(work, "job.json").write_text(json.dumps(job | {"gpu": asdict(gpu)}))
        environment = dict(os.environ, PYTHONHASHSEED="0", TVM_LOG_DEBUG="", OMP_NUM_THREADS="1")
        if gpu.kind == "cuda" and ctypes.util.find_library("cuda") is None:
            nvcc.stand_in(Path(work))
            environment["LD_LIBRARY_PATH"] = ":".join(filter(None, [work, environment.get("LD_LIBRARY_PATH", "")]))
        words = [sys.executable, "-m", __name__, f"{work}/job.json"]
        done = subprocess.run(words, capture_output=True, text=True, env=environment)
        if done.returncode:
            said = (done.stderr or done.stdout).strip()
            of_a_tool = max(0, said.rfind(nvcc.FAILED))
            why = said[said.rfind("\n", 0, of_a_tool or len(said)) + 1 :]
            raise ToolchainError(f"compiling for {gpu.kind} {gpu.arch} failed: {why}")
        found: dict[str, Any] = json.loads(facts.read_text())
        return found


def main(path: str) -> None:
    """Do the job that ``path`` describes."""
    import onnx_ir as ir
    import tvm_ffi

    from . import gcn, hsaco, library, weights

    job = json.loads(Path(path).read_text())
    gpu = (Cpu if job["gpu"]["kind"] == "cpu" else Gpu)(**job["gpu"])
    if gpu.kind == "cuda":

        def compile_cuda(code: str) -> bytes:
            return nvcc.compile_kernels(code, gpu.arch)

        import tvm  # noqa: F401  # registers its own first

        tvm_ffi.register_global_func("tvm_callback_cuda_compile", compile_cuda, override=True)
    kernels = hsaco.register(gpu.arch, Path(path).parent) if gpu.kind == "rocm" else []
    model = Model("model", ir.load(job["model"]), Origin("model.onnx", ""))
    lowered = lower(model, gpu)
    folder = Path(job["folder"])
    library.write(lowered, folder / "lib.so")
    if lowered.weights:
        weights.write(lowered.weights, folder / "weights.safetensors")
    inside = {port.name: {"dtype": port.dtype, "shape": list(port.shape or ())} for port in lowered.inputs}
    facts = {"parameters": list(lowered.weights), "inside": inside}
    if gpu.kind == "rocm":
        facts["code"] = gcn.facts(kernels)
    Path(job["facts"]).write_text(json.dumps(facts))


if __name__ == "__main__":
    main(sys.argv[1])
