"""NVIDIA GPUs, through kernels that TVM schedules and nvcc compiles beforehand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from polycast.model import Model, Signature
from polycast.targetbase import Answer, CheckedSession, Probe, Target

from . import _tvm
from ._onnxruntime_gpu import CUDA, GpuProvider
from ._tvm import nvcc

_FLOAT = "clean | fold | clean | fuse_conv_bn | fuse_gelu | fuse_layer_norm | fuse_rms_norm"
_HALF = f"{_FLOAT} | fp16"
_EVERY = "tied=True, ops=('Conv', 'ConvTranspose', 'Gemm', 'MatMul')"

#: Stored weights are multiplied by float16: narrower than float32 in memory, and no less exact than the weights are.
_RECIPES = {
    "fp32": f"{_FLOAT} | clean",
    "fp16": f"{_HALF} | clean",
    "int8-weights": f"{_HALF} | quantize_weights(bits=8, block=0, {_EVERY}) | quantize_embeddings | clean",
    "int4": f"{_HALF} | quantize_weights({_EVERY}) | quantize_embeddings(bits=4, block=32) | clean",
}

#: What the field knows, and kernels here would not be faster for.
_DECLINED = {
    "int8": "no kernels here multiply int8 activations; int8-weights reads weights in 8 bits",
    "int8-dynamic": "no kernels here multiply int8 activations; int8-weights reads weights in 8 bits",
    "int3": "words of 32 bits hold codes of 4 or 8 bits; int4 is as fast and more exact",
    "int2": "words of 32 bits hold codes of 4 or 8 bits; int4 is as fast and more exact",
}

_A100 = _tvm.Gpu(
    "cuda",
    threads=1024,
    shared=96 << 10,  # what every one of them has for a block; TVM's runtime asks for what is over 48 KiB
    warp=32,
    tensor_cores=True,
    units=108,
    resident_threads=2048,
    resident_shared=164 << 10,
    registers=65536,
    rate=64,
    tensor_rate=1024,
    bandwidth=48,
)
_SMALL = replace(_A100, resident_threads=1536, resident_shared=100 << 10, rate=128, tensor_rate=512)

#: The largest chip of each architecture. Rates are those of the instructions that are used, from NVIDIA's table of
#: arithmetic throughput (CUDA C++ Programming Guide) and white papers; wgmma of sm_90 is faster, and is not used.
_ARCHES = {
    "sm_80": _A100,
    "sm_86": replace(_SMALL, units=84),
    "sm_89": replace(_SMALL, units=144),
    "sm_90": replace(_A100, units=132, resident_shared=228 << 10, rate=128),
    "sm_100": replace(_A100, units=148, resident_shared=228 << 10, rate=128),
    "sm_120": replace(_SMALL, units=188),
}

#: The oldest of them: its machine code also runs on sm_86 and sm_89, and on nothing newer.
_DEFAULT = "sm_80"


@dataclass(frozen=True)
class Cuda(Target):
    """An NVIDIA GPU of one architecture. Builds hold machine code for it, and nothing is compiled on the device."""

    name = "cuda"
    arches = tuple(_ARCHES)
    runtimes = ("tvm", "onnxruntime")

    @property
    def gpu(self) -> _tvm.Gpu:
        """What schedules have to know of this architecture."""
        arch = self.arch or _DEFAULT
        return replace(_ARCHES[arch], arch=arch)

    @property
    def _provider(self) -> GpuProvider | None:
        """What executes the builds where TVM does not."""
        return CUDA if self.executor == "onnxruntime" else None

    @property
    def features(self) -> frozenset[str]:
        """See ``Target``."""
        return self._provider.features if self._provider else frozenset({"blocked-qdq", "fp16", "gather-nbits"})

    @property
    def declined(self) -> Mapping[str, str]:
        """See ``Target``."""
        return self._provider.declined if self._provider else _DECLINED

    @property
    def precisions(self) -> tuple[str, ...]:
        """See ``Target``."""
        return tuple(self._provider.recipes if self._provider else _RECIPES)

    def recipe(self, precision: str) -> str | None:
        """See ``Target``."""
        return (self._provider.recipes if self._provider else _RECIPES).get(precision)

    def probe(self) -> Probe:
        """See ``Target``."""
        if self._provider:
            return self._provider.probe(self, nvcc.device())
        build = _tvm.available()
        if build.yes and nvcc.command() is None:
            build = Answer(False, "nvcc is not installed", "apt install nvidia-cuda-toolkit, or NVIDIA's CUDA toolkit")
        return Probe(build, nvcc.device(), "device")

    def problems(self, model: Model) -> tuple[str, ...]:
        """See ``Target``."""
        return self._provider.problems(model) if self._provider else _tvm.problems(model)

    def fallback(self, model: Model) -> Mapping[str, str] | None:
        """See ``Target``."""
        return self._provider.fallback(model) if self._provider else None

    def set_up(self) -> str:
        """See ``Target``."""
        return str(self._provider.environment.make()) if self._provider else super().set_up()

    def write(self, model: Model, folder: Path) -> Mapping[str, Any]:
        """See ``Target``."""
        return self._provider.write(model, folder) if self._provider else _tvm.write(model, self.gpu, folder)

    def open(self, folder: Path, *, own_process: bool = False) -> CheckedSession:
        """See ``Target``."""
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        signature = Signature.from_json(manifest["signature"])
        if self._provider:
            return self._provider.open(folder, signature, nvcc.device())
        return _tvm.open_build(folder, signature)
