"""AMD GPUs by architecture: what a schedule counts with, and what a kernel may take of a chip.

Source: AMD's ISA documents of CDNA 2, CDNA 3 and RDNA 3; LLVM, User Guide for AMDGPU Backend; AMD's data sheets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .code_object import CodeObject, Kernel
from .gpu import Gpu

#: What LLVM inside TVM lets a thread block of a kernel have: it asks a device for more, and none is here.
THREADS = 256

#: The version of code objects that is asked for: metadata of 1.2 is of version 5.
_VERSION = (1, 2)


@dataclass(frozen=True)
class Chip:
    """One architecture. machine: its number in an ELF header. units: compute units of its largest chip.

    wave: threads that run in step. Of a kernel at most: vgprs, registers of a thread, and sgprs, of a wave, with those
    that always are there; lds, bytes that a thread block shares. granule: how many vector registers come at once.
    waves: of a compute unit at most. registers: of 32 bits, of a compute unit. rate: multiply-adds of a compute unit a
    cycle; bandwidth: its bytes a cycle from the second cache. Memory that a block shares has 32 banks of 4 bytes.
    """

    machine: int
    units: int
    wave: int
    vgprs: int
    granule: int
    waves: int
    registers: int
    rate: int
    sgprs: int = 108
    lds: int = 64 << 10
    bandwidth: int = 64

    def gpu(self, arch: str) -> Gpu:
        """What schedules have to know of it."""
        return Gpu(
            "rocm",
            arch,
            threads=THREADS,
            shared=self.lds,
            warp=self.wave,
            units=self.units,
            resident_threads=self.waves * self.wave,
            resident_shared=self.lds,
            registers=self.registers,
            rate=self.rate,
            bandwidth=self.bandwidth,
            shared_rate=128 // self.wave,
        )


#: MI200 (each of the two dies of an MI250X), MI300, and the Radeon RX 7900. Rates by the data sheets, over compute
#: units and clock: 47.9 TFLOP/s of float32 in vectors at 1.7 GHz, 163.4 at 2.1, and 61.4 at 2.5; those of the last two
#: count two multiply-adds in one instruction. bandwidth is the width of a compute unit's path, since AMD publishes the
#: second cache's by chip only.
CHIPS = {
    "gfx90a": Chip(0x3F, units=110, wave=64, vgprs=512, granule=8, waves=32, registers=4 * 512 * 64, rate=64),
    "gfx942": Chip(0x4C, units=304, wave=64, vgprs=512, granule=8, waves=32, registers=4 * 512 * 64, rate=128),
    "gfx1100": Chip(0x41, units=96, wave=32, vgprs=256, granule=8, waves=32, registers=2 * 1536 * 32, rate=128),
}


def problems(code: CodeObject, arch: str) -> list[str]:
    """Say what of ``code`` a chip of ``arch`` cannot hold, kernel by kernel."""
    chip = CHIPS[arch]
    found = []
    if code.machine != chip.machine:
        found.append(f"the code is for ELF machine {code.machine:#x}, {arch} is {chip.machine:#x}")
    if code.version != _VERSION:
        found.append(f"the metadata has version {'.'.join(map(str, code.version))}, not 1.2")
    return found + [f"{kernel.name} {problem}" for kernel in code.kernels for problem in _excess(kernel, chip)]


def _excess(kernel: Kernel, chip: Chip) -> Iterator[str]:
    """Say what a kernel takes that its chip does not have, and where its descriptor says something else."""
    for what, taken, limit in (
        ("vector registers a thread", kernel.vgprs, chip.vgprs),
        ("scalar registers a wave", kernel.sgprs, chip.sgprs),
        ("bytes of LDS", kernel.lds, chip.lds),
        ("threads a block", kernel.threads, THREADS),
    ):
        if taken > limit:
            yield f"takes {taken} {what}, of {limit}"
    if kernel.wave != chip.wave:
        yield f"runs in waves of {kernel.wave}, not {chip.wave}"
    if (described := kernel.described) is None:
        yield "has no kernel descriptor"
        return
    if (described.lds, described.scratch, described.wave) != (kernel.lds, kernel.scratch, kernel.wave):
        yield "has a descriptor that its metadata contradicts"
    if described.granules * chip.granule < kernel.vgprs:
        yield f"is given {described.granules * chip.granule} vector registers, and takes {kernel.vgprs}"


def facts(kernels: list[Kernel]) -> Mapping[str, Any]:
    """Give the figures of a build for its manifest: the most that any of its kernels takes."""
    return {
        "kernels": len(kernels),
        "vgprs": max((kernel.vgprs for kernel in kernels), default=0),
        "sgprs": max((kernel.sgprs for kernel in kernels), default=0),
        "lds_bytes": max((kernel.lds for kernel in kernels), default=0),
        "scratch_bytes": max((kernel.scratch for kernel in kernels), default=0),
        "spilled_registers": sum(kernel.spilled for kernel in kernels),
    }
