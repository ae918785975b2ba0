"""A code object that a chip cannot hold is refused, and every kernel and limit is named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from polycast.targets._tvm import gcn
from polycast.targets._tvm.code_object import CodeObject, Described, Kernel

FITS = Kernel("conv", 512, 108, 64 << 10, 0, 0, 64, 256, Described(64, 64 << 10, 0, 64))
CODE = CodeObject(0x4C, (1, 2), (FITS,))

EXCESS = {
    "takes 513 vector registers a thread, of 512": {"vgprs": 513, "described": Described(65, 64 << 10, 0, 64)},
    "takes 109 scalar registers a wave, of 108": {"sgprs": 109},
    "takes 65537 bytes of LDS, of 65536": {"lds": 65537, "described": Described(64, 65537, 0, 64)},
    "takes 1024 threads a block, of 256": {"threads": 1024},
    "runs in waves of 32, not 64": {"wave": 32, "described": Described(64, 64 << 10, 0, 32)},
    "has no kernel descriptor": {"described": None},
    "has a descriptor that its metadata contradicts": {"described": Described(64, 0, 0, 64)},
    "is given 504 vector registers, and takes 512": {"described": Described(63, 64 << 10, 0, 64)},
}


def test_kernel_at_every_limit_fits() -> None:
    assert gcn.problems(CODE, "gfx942") == []


@pytest.mark.parametrize("problem", EXCESS)
def test_kernel_beyond_a_limit_is_named(problem: str) -> None:
    code = replace(CODE, kernels=(FITS, replace(FITS, name="gemm", **EXCESS[problem])))
    assert gcn.problems(code, "gfx942") == [f"gemm {problem}"]


def test_code_for_another_chip_or_of_another_version_is_refused() -> None:
    problems = gcn.problems(replace(CODE, version=(1, 3)), "gfx90a")
    assert problems == ["the code is for ELF machine 0x4c, gfx90a is 0x3f", "the metadata has version 1.3, not 1.2"]


def test_figures_are_the_most_that_a_kernel_takes() -> None:
    other = replace(FITS, vgprs=7, lds=12, scratch=8, spilled=3)
    assert gcn.facts([FITS, other]) == {
        "kernels": 2,
        "vgprs": 512,
        "sgprs": 108,
        "lds_bytes": 64 << 10,
        "scratch_bytes": 8,
        "spilled_registers": 3,
    }


@pytest.mark.parametrize("arch", gcn.CHIPS)
def test_schedules_stay_inside_a_chip(arch: str) -> None:
    """What schedules count with is no more than what the checker allows."""
    chip, gpu = gcn.CHIPS[arch], gcn.CHIPS[arch].gpu(arch)
    assert gpu.threads <= gcn.THREADS and gpu.threads % gpu.warp == 0
    assert gpu.shared <= chip.lds
    assert gpu.resident_threads * chip.granule <= gpu.registers
    # A block of the most threads with the most registers has room in one compute unit.
    assert gpu.threads * chip.vgprs <= gpu.registers
