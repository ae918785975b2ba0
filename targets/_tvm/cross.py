"""Lower and compile one model in a process of its own: ``python -m polycast.targets._tvm.cross job.json``.

TVM numbers what it names for as long as a process lives, and loads a driver once; in a fresh process the same model
gives the same bytes, and a stand-in for a driver that is not there disturbs nobody.
"""

from __future__ import annotations

import ctypes.util
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from polycast.errors import ToolchainError
from polycast.model import Model, Origin

from . import lower, nvcc
from .cpu_arch import Cpu
from .frontend import tensor_key
from .gpu import Gpu


def write(models: Mapping[int, Model], gpu: Gpu | Cpu, folder: Path) -> dict[str, Any]:
    """Write ``lib.so`` and ``weights.safetensors`` for ``gpu`` into ``folder``.

    models: the model by its rows; of a second one, ``lib-8.so`` lies beside, and reads the same weights.
    Returns: what the runner has to know: parameters in order, ports inside, the number of kernels.
    Raises: ToolchainError with what the process says where it fails.
    """
    with tempfile.TemporaryDirectory(prefix="polycast-") as work:
        for rows, model in models.items():
            model.write(Path(work, f"model-{rows}.onnx"))
        facts = Path(work, "facts.json")
        files = {rows: f"{work}/model-{rows}.onnx" for rows in models}
        job = {"models": files, "folder": str(folder), "facts": str(facts)}
        Path(work, "job.json").write_text(json.dumps(job | {"gpu": asdict(gpu)}))
        environment = dict(os.environ, PYTHONHASHSEED="0", TVM_LOG_DEBUG="", OMP_NUM_THREADS="1")
        if gpu.kind == "cuda" and ctypes.util.find_library("cuda") is None:
            nvcc.stand_in(Path(work))
            environment["LD_LIBRARY_PATH"] = ":".join(filter(None, [work, environment.get("LD_LIBRARY_PATH", "")]))
        words = [sys.executable, "-m", __name__, f"{work}/job.json"]
        done = subprocess.run(words, capture_output=True, text=True, env=environment)
        if done.returncode:
            said = (done.stderr or done.stdout).strip() or f"its process ends with {done.returncode}"
            of_a_tool = max(0, said.rfind(nvcc.FAILED))
            why = said[said.rfind("\n", 0, of_a_tool or len(said)) + 1 :]
            hint = "Builds for the runtime onnxruntime compile nothing: their kernels come with it"
            raise ToolchainError(f"compiling for {gpu.kind} {gpu.arch} failed: {why}", hint)
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
    folder, arrays = Path(job["folder"]), Arrays()
    written: list[dict[str, Any]] = []
    for rows, file in job["models"].items():
        lowered = lower(Model("model", ir.load(file), Origin("model.onnx", "")), gpu)
        name = f"lib-{rows}.so" if written else "lib.so"
        library.write(lowered, folder / name)
        inside = {port.name: {"dtype": port.dtype, "shape": list(port.shape or ())} for port in lowered.inputs}
        parameters = [arrays.add(array) for array in lowered.weights.values()]
        facts = {"library": name, "parameters": parameters, "inside": inside}
        written.append(facts | ({"tuned": told(lowered.tuned)} if lowered.tuned else {}))
    if arrays.by_name:
        weights.write(arrays.by_name, folder / "weights.safetensors")
    facts, *larger = written
    if larger:
        facts["larger"] = larger[0]
    if gpu.kind == "rocm":
        facts["code"] = gcn.facts(kernels)
    Path(job["facts"]).write_text(json.dumps(facts))


class Arrays:
    """Arrays by name, each of them once."""

    def __init__(self) -> None:
        self.by_name: dict[str, np.ndarray] = {}
        self._names: dict[str, str] = {}

    def add(self, array: np.ndarray) -> str:
        """Take ``array``, or the one that is there and the same. Returns: its name."""
        name = self._names.setdefault(tensor_key(array), f"weight_{len(self._names)}")
        self.by_name.setdefault(name, array)
        return name


def told(tuned: Mapping[str, Any]) -> dict[str, Any]:
    """Name the records that a build was made with: with others it would have other bytes."""
    spelt = json.dumps({key: asdict(each) for key, each in sorted(tuned.items())})
    return {"kernels": len(tuned), "records": hashlib.sha256(spelt.encode()).hexdigest()}


if __name__ == "__main__":
    main(sys.argv[1])
