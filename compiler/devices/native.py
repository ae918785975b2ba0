"""The native runner, compiled for the device that it will run on."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from polycast.calibrating.folder import cache_folder
from polycast.errors import ToolchainError
from polycast.targets import _native

#: So that the device needs nothing but its C library.
_FLAGS = ("-std=c++17", "-O2", "-static-libstdc++", "-static-libgcc", "-pthread")

_ANDROID = {
    "aarch64": "aarch64-linux-android24",
    "x86_64": "x86_64-linux-android24",
    "armv7l": "armv7a-linux-androideabi24",
}
_NDK = ("ANDROID_NDK_HOME", "ANDROID_NDK_ROOT", "ANDROID_NDK")


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
            raise ToolchainError(f"{' '.join(words)} exits with {done.returncode}: {done.stderr.strip()}")
        Path(scratch, made.name).replace(made)
    return made


def _for_linux(machine: str) -> str:
    here = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    names = ("g++", "clang++") if machine == here else (f"{machine}-linux-gnu-g++",)
    if found := next(filter(None, map(shutil.which, names)), None):
        return found
    package = f"g++-{machine.replace('_', '-')}-linux-gnu" if machine != here else "g++"
    raise ToolchainError(f"no compiler for {machine} is here to make the runner with", f"apt install {package}")


def _for_android(machine: str) -> str:
    folders = [Path(os.environ[name]) for name in _NDK if os.environ.get(name)]
    for folder in folders:
        for found in sorted(folder.glob(f"toolchains/llvm/prebuilt/*/bin/{_ANDROID.get(machine, machine)}-clang++")):
            return str(found)
    hint = "Set ANDROID_NDK_HOME, or give a runner that is built with it: --runner polycast_run"
    raise ToolchainError(f"a runner for Android on {machine} is built with the NDK, and there is none here", hint)
