"""AMD GPUs, through kernels that TVM schedules, its LLVM generates and LLD links beforehand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polycast.model import Model, Signature
from polycast.targetbase import Answer, CheckedSession, Probe, Target

from . import _tvm
from ._onnxruntime_gpu import MIGRAPHX, GpuProvider
from ._tvm import gcn, hsaco

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

#: The chip that a build most likely meets. Unlike on other GPUs, code for one architecture runs on that one alone.
_DEFAULT = "gfx942"

#: What a build asks for where it runs.
_NEEDS = f"numpy, and TVM {hsaco.FROM_SOURCE}"


@dataclass(frozen=True)
class Rocm(Target):
    """An AMD GPU of one architecture. Builds hold a code object for it, and nothing is compiled on the device.

    Every thread multiplies for itself, in float16 too: the schedules do not use matrix instructions (MFMA, WMMA).
    """

    name = "rocm"
    arches = tuple(gcn.CHIPS)
    runtimes = ("tvm", "onnxruntime")

    @property
    def gpu(self) -> _tvm.Gpu:
        """What schedules have to know of this architecture."""
        arch = self.arch or _DEFAULT
        return gcn.CHIPS[arch].gpu(arch)

    @property
    def _provider(self) -> GpuProvider | None:
        """What executes the builds where TVM does not."""
        return MIGRAPHX if self.executor == "onnxruntime" else None

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
            return self._provider.probe(self, hsaco.device())
        build = _tvm.available()
        if build.yes and hsaco.linker() is None:
            build = Answer(False, "LLD, the linker for code objects, is not installed", "apt install lld")
        return Probe(build, hsaco.device(), "device")

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
            return self._provider.open(folder, signature, hsaco.device())
        return _tvm.open_build(folder, signature)
