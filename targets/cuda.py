"""NVIDIA GPUs, through kernels that TVM schedules and nvcc compiles beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from polycast.targetbase import Answer

from . import _tvm
from ._gpu import GpuTarget
from ._onnxruntime_gpu import CUDA, TENSORRT, GpuProvider
from ._tvm import nvcc

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

#: The largest chip of each architecture. Threads, registers and shared memory of a multiprocessor, and its float32
#: multiply-adds a cycle: CUDA C++ Programming Guide, "Compute Capabilities" and "Arithmetic Instructions". On tensor
#: cores, with float32 sums: 1024 of an A100 (its white paper); 512 of an RTX A6000 and an RTX 6000 Ada, by their data
#: sheets over multiprocessors and clock, and half of it on a GeForce. wmma reaches no more on sm_90 and later, whose
#: own instructions (wgmma, tcgen05) are not used here. bandwidth: the 5120 bytes a cycle of the second-level cache of
#: an A100 (its white paper) and an H100 (PMC10448217, table 3), over the multiprocessors; of the others no
#: figure is published, and theirs is taken to be the A100's.
_ARCHES = {
    "sm_80": _A100,
    "sm_86": replace(_SMALL, units=84),
    "sm_89": replace(_SMALL, units=144),
    "sm_90": replace(_A100, units=132, resident_shared=228 << 10, rate=128, bandwidth=38),
    "sm_100": replace(_A100, units=148, resident_shared=228 << 10, rate=128),
    "sm_120": replace(_SMALL, units=188),
}

#: The oldest of them: its machine code also runs on sm_86 and sm_89, and on nothing newer.
_DEFAULT = "sm_80"


@dataclass(frozen=True)
class Cuda(GpuTarget):
    """An NVIDIA GPU of one architecture. Builds hold machine code for it, and nothing is compiled on the device."""

    name = "cuda"
    arches = tuple(_ARCHES)
    runtimes: ClassVar[tuple[str, ...]] = ("tvm", "onnxruntime", "tensorrt")
    providers: ClassVar[Mapping[str, GpuProvider]] = {"onnxruntime": CUDA, "tensorrt": TENSORRT}

    @property
    def gpu(self) -> _tvm.Gpu:
        """See ``GpuTarget``."""
        arch = self.arch or _DEFAULT
        return replace(_ARCHES[arch], arch=arch)

    @property
    def tool(self) -> str | None:
        """See ``GpuTarget``."""
        return nvcc.command()

    def tools(self) -> Answer:
        """See ``GpuTarget``."""
        if found := self.tool:
            return Answer(True, f"{_tvm.available().reason}, and {found}")
        return Answer(False, "nvcc is not installed", "apt install nvidia-cuda-toolkit, or NVIDIA's CUDA toolkit")

    def device(self) -> Answer:
        """See ``GpuTarget``."""
        return nvcc.device()
