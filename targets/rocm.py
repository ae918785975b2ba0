"""AMD GPUs, through kernels that TVM schedules, its LLVM generates and LLD links beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from polycast.targetbase import Answer

from . import _tvm
from ._gpu import GpuTarget
from ._onnxruntime_gpu import MIGRAPHX, GpuProvider
from ._tvm import gcn, hsaco

#: The chip that a build most likely meets. Unlike on other GPUs, code for one architecture runs on that one alone.
_DEFAULT = "gfx942"


@dataclass(frozen=True)
class Rocm(GpuTarget):
    """An AMD GPU of one architecture. Builds hold a code object for it, and nothing is compiled on the device.

    Every thread multiplies for itself, in float16 too: the schedules do not use matrix instructions (MFMA, WMMA).
    """

    name = "rocm"
    arches = tuple(gcn.CHIPS)
    providers: ClassVar[Mapping[str, GpuProvider]] = {"onnxruntime": MIGRAPHX}
    needs = f"numpy, and TVM {hsaco.FROM_SOURCE}"

    @property
    def gpu(self) -> _tvm.Gpu:
        """See ``GpuTarget``."""
        arch = self.arch or _DEFAULT
        return gcn.CHIPS[arch].gpu(arch)

    @property
    def tool(self) -> str | None:
        """See ``GpuTarget``."""
        return hsaco.linker()

    def tools(self) -> Answer:
        """See ``GpuTarget``."""
        if found := self.tool:
            return Answer(True, f"{_tvm.available().reason}, and {found}")
        return Answer(False, "LLD, the linker for code objects, is not installed", "apt install lld")

    def device(self) -> Answer:
        """See ``GpuTarget``."""
        return hsaco.device()
