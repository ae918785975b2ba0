"""Linking for the CPU and the system that a library is for, which need not be this machine's."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from polycast.targetbase import Answer

from . import hsaco
from .cpu_arch import Cpu
from .nvcc import run

#: The same objects give the same bytes, and nothing that only a debugger wants is shipped.
OPTIONS = ("-Wl,--build-id=none", "-s")

#: Android 15 has pages of 16 KiB. Devices before Android 6 read the older table of hashes.
_ANDROID = ("-shared", "--build-id=none", "-s", "-z", "max-page-size=16384", "--hash-style=both", "--no-undefined")

#: How LLD calls the architectures that Android has.
_EMULATIONS = {"aarch64": "aarch64linux", "x86_64": "elf_x86_64"}

#: What generated code calls, by the library that has it on the device.
_NAMES = {
    "libc.so": "memcmp memcpy memmove memset",
    "libm.so": "acosf acoshf asinf asinhf atan2f atanf atanhf ceilf cosf coshf erff exp2f expf floorf fmaf fmodf log10f"
    " log1pf log2f logf nearbyintf powf rintf roundf sinf sinhf sqrtf tanf tanhf truncf exp log pow sqrt tanh erf",
    "libtvm_ffi.so": "TVMFFIErrorSetRaisedFromCStrParts TVMFFIFunctionCall TVMFFIHandleInitOnce",
}


def available(cpu: Cpu) -> Answer:
    """Say whether what links for ``cpu`` is here."""
    if _is_android(cpu):
        if cpu.machine not in _EMULATIONS:
            reason = "what TVM generates for 32-bit ARM unwinds its stack with a part of the NDK"
            return Answer(False, reason, "-t android:arm64@tvm, or another runtime")
        return Answer(True, "LLD") if hsaco.linker() else Answer(False, "LLD is not installed", "apt install lld")
    if _is_here(cpu):
        found = next(filter(shutil.which, filter(None, (os.environ.get("CXX"), "g++", "clang++", "c++"))), None)
        missing = Answer(False, "no C++ compiler is here to link with", "apt install g++, or set CXX")
        return Answer(True, found) if found else missing
    tool = _cross(cpu)
    if shutil.which(tool):
        return Answer(True, tool)
    return Answer(False, f"{tool} is not installed", f"apt install g++-{cpu.machine.replace('_', '-')}-linux-gnu")


def linker(cpu: Cpu) -> Callable[..., None] | str | None:
    """Give what ``export_library`` links for ``cpu`` with; None for TVM's own choice, where that is right."""
    if _is_here(cpu):
        return None

    def link(output: str, objects: Sequence[str], options: Sequence[str] | None = None, **_: Any) -> None:
        if _is_android(cpu):
            _link_for_android(cpu, output, objects)
        else:
            run([_cross(cpu), "-shared", "-fPIC", *OPTIONS, "-o", output, *objects])

    return link


def _link_for_android(cpu: Cpu, output: str, objects: Sequence[str]) -> None:
    """Link without the NDK: against libraries that hold names alone, as the NDK's own do."""
    tool = [hsaco.linker() or "ld.lld", "-m", _EMULATIONS[cpu.machine]]
    with tempfile.TemporaryDirectory(prefix="polycast-") as folder:
        nothing = Path(folder, "nothing")
        nothing.touch()
        for library, names in _NAMES.items():
            words = ["-shared", "-soname", library, "--format=binary", str(nothing), "--format=default"]
            run([*tool, *words, *(f"--defsym={name}=0" for name in names.split()), "-o", f"{folder}/{library}"])
        libraries = [f"{folder}/{library}" for library in _NAMES]
        run([*tool, *_ANDROID, "-soname", Path(output).name, *objects, *libraries, "-o", output])


def _is_android(cpu: Cpu) -> bool:
    return cpu.system.startswith("linux-android")


def _is_here(cpu: Cpu) -> bool:
    machine = platform.machine().lower()
    return cpu.system == "linux-gnu" and cpu.machine == {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def _cross(cpu: Cpu) -> str:
    return f"{cpu.machine}-linux-gnu-g++"
