"""What a schedule has to know of a GPU, whatever generates the code for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU: its code generator and the limits of one thread block.

    kind: TVM's code generator: ``cuda``, ``rocm``, ``webgpu``, ``opencl``. arch: what it generates for, ``sm_90``.
    threads: of one block at most. shared: bytes of memory that a block may share. warp: threads that run in step.
    tensor_cores: whether float16 products have instructions of their own that TVM knows. lanes: of a vector at most.

    What the model in ``tiles`` counts with: units, the multiprocessors (compute units); of each, resident_threads,
    resident_shared (bytes) and registers; rate and tensor_rate, multiply-adds a cycle; bandwidth, bytes a cycle from
    the cache that all units share; shared_rate, the bytes a cycle, for each thread of a warp, from shared memory.
    """

    kind: str
    arch: str = ""
    threads: int = 256
    shared: int = 16 << 10
    warp: int = 32
    tensor_cores: bool = False
    lanes: int = 8
    units: int = 16
    resident_threads: int = 1024
    resident_shared: int = 32 << 10
    registers: int = 65536
    rate: int = 64
    tensor_rate: int = 512
    bandwidth: int = 32
    shared_rate: int = 4

    def target(self, host: str = "x86_64-linux-gnu") -> Any:
        """Give the tvm.target.Target; host: the LLVM triple of the machine that launches the kernels."""
        import tvm

        options: dict[str, Any] = {
            "kind": self.kind,
            "max_num_threads": self.threads,
            "max_shared_memory_per_block": min(self.shared, 48 << 10),  # more has to be asked for
            "thread_warp_size": self.warp,
            "host": {"kind": "llvm", "mtriple": host},
        }
        if self.kind == "webgpu":
            options.pop("thread_warp_size")
        if self.kind == "cuda":
            options |= {"arch": self.arch, "max_threads_per_block": self.threads, "registers_per_block": self.registers}
        if self.kind == "rocm":
            options |= {"mcpu": self.arch, "mtriple": "amdgcn-amd-amdhsa-hcc", "max_threads_per_block": self.threads}
        return tvm.target.Target(options)
