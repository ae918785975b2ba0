"""The native runner, compiled for the device that it will run on."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from polycast.calibrating.folder import cache_folder
from polycast.environments.sysroot import Sysroot
from polycast.errors import ToolchainError
from polycast.targets import _native

#: So that the device needs nothing but its C library.
_FLAGS = ("-std=c++17", "-O2", "-static-libstdc++", "-static-libgcc", "-pthread")

_ANDROID = {
    "aarch64": "aarch64-linux-android24",
    "x86_64": "x86_64-linux-android24",
    "armv7l": "armv7a-linux-androideabi24",
    "armv8l": "armv7a-linux-androideabi24",
}
#: 32-bit ARM, whose compiler is not called after what ``uname`` says of it.
_LINUX = dict.fromkeys(("armv7l", "armv8l"), "arm-linux-gnueabihf")
_NDK = ("ANDROID_NDK_HOME", "ANDROID_NDK_ROOT", "ANDROID_NDK")


#: What a wheel has of a runtime that a program needs, and the packages that it installs.
_LIBRARIES = {
    "onnxruntime": ("onnxruntime/capi/libonnxruntime.so.*",),
    "litert": ("ai_edge_litert/libLiteRt.so",),
    "tvm": ("tvm/lib/libtvm_runtime.so", "tvm/lib/libtvm_runtime_extra.so", "tvm_ffi/lib/libtvm_ffi.so"),
}
_PACKAGES = {"onnxruntime": ("onnxruntime",), "litert": ("ai_edge_litert",), "tvm": ("tvm", "tvm_ffi")}


def runner(machine: str, android: bool) -> Path:
    """Give the runner for a device. machine: as its ``uname -m`` says. It is compiled once, and kept.

    Raises: ToolchainError where no compiler for it is here, or it fails.
    """
    compiler = _for_android(machine) if android else _for_linux(machine)
    source = _native.source()
    told = f"{compiler}\n{_FLAGS}\n{source.read_text(encoding='utf-8')}"
    made = cache_folder() / "runners" / hashlib.sha256(told.encode()).hexdigest()[:16] / "polycast_run"
    if made.exists():
        return made
    made.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=made.parent) as scratch:
        words = [compiler, *_FLAGS, str(source), "-o", f"{scratch}/{made.name}", "-ldl"]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            said = f"{' '.join(words)} exits with {done.returncode}: {done.stderr.strip()}"
            raise ToolchainError(said, "--runner F takes a runner that was compiled for the device elsewhere")
        Path(scratch, made.name).replace(made)
    return made


def libraries(machine: str, runtime: str) -> list[Path]:
    """Give the shared libraries of ``runtime`` for a device with Linux, out of its wheels, where they are here."""
    if machine == _here():
        roots = [Path(each, "..") for package in _PACKAGES[runtime] for each in _places(package)]
    else:
        sysroot = Sysroot.find() if machine == "aarch64" else None
        # Of each folder that the sysroot names, its package lies one or two above.
        roots = [folder.parents[up] for folder in (sysroot.libraries if sysroot else ()) for up in (0, 1)]
    return sorted({path.resolve() for root in roots for name in _LIBRARIES[runtime] for path in root.glob(name)})


def version(runtime: str) -> str:
    """Give the version of the wheels that ``libraries`` takes from."""
    return metadata.version({"litert": "ai-edge-litert", "tvm": "apache-tvm"}.get(runtime, runtime))


def _places(package: str) -> list[str]:
    found = find_spec(package)
    return list(found.submodule_search_locations or ()) if found else []


def _here() -> str:
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def _for_linux(machine: str) -> str:
    system = _LINUX.get(machine, f"{machine}-linux-gnu")
    names = ("g++", "clang++") if machine == _here() else (f"{system}-g++",)
    if found := next(filter(None, map(shutil.which, names)), None):
        return found
    package = "g++" if machine == _here() else f"g++-{system.replace('_', '-')}"
    raise ToolchainError(f"no compiler for {machine} is here to make the runner with", f"apt install {package}")


def _for_android(machine: str) -> str:
    folders = [Path(os.environ[name]) for name in _NDK if os.environ.get(name)]
    for folder in folders:
        for found in sorted(folder.glob(f"toolchains/llvm/prebuilt/*/bin/{_ANDROID.get(machine, machine)}-clang++")):
            return str(found)
    hint = "Set ANDROID_NDK_HOME, or give a runner that is built with it: --runner polycast_run"
    raise ToolchainError(f"a runner for Android on {machine} is built with the NDK, and there is none here", hint)
