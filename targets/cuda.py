"""NVIDIA GPUs, through kernels that TVM schedules and nvcc compiles beforehand."""

from __future__ import annotations

from dataclasses import dataclass, replace

from polycast.targetbase import Answer

from . import _tvm
from ._gpu import GpuTarget
from ._onnxruntime_gpu import CUDA
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
class Cuda(GpuTarget):
    """An NVIDIA GPU of one architecture. Builds hold machine code for it, and nothing is compiled on the device."""

    name = "cuda"
    arches = tuple(_ARCHES)
    provider = CUDA

    @property
    def gpu(self) -> _tvm.Gpu:
        """See ``GpuTarget``."""
        arch = self.arch or _DEFAULT
        return replace(_ARCHES[arch], arch=arch)

    def tools(self) -> Answer:
        """See ``GpuTarget``."""
        if found := nvcc.command():
            return Answer(True, f"{_tvm.available().reason}, and {found}")
        return Answer(False, "nvcc is not installed", "apt install nvidia-cuda-toolkit, or NVIDIA's CUDA toolkit")

    def device(self) -> Answer:
        """See ``GpuTarget``."""
        return nvcc.device()
