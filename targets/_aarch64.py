"""64-bit ARM with Linux where this machine is none: builds run under qemu, with the wheels for it."""

from __future__ import annotations

import platform
from pathlib import Path

from polycast.environments.child import Child
from polycast.environments.sysroot import Sysroot
from polycast.errors import ToolchainError
from polycast.model import Signature
from polycast.targetbase import Answer, CheckedSession, Probe


def is_here() -> bool:
    """Whether this machine is one."""
    return platform.machine().lower() in ("aarch64", "arm64")


def probe(build: Answer) -> Probe:
    """Say what can be built, which is ``build``, and run: the numbers are those of an ARM, and the time is not."""
    run = Sysroot.available()
    emulated = Answer(True, f"{run.reason}: numbers, and no times") if run.yes else run
    return Probe(build, emulated, "emulated", "qemu" if run.yes else "")


def interpreter() -> tuple[str, ...]:
    """Give the command that starts Python there.

    Raises: ToolchainError where there is none.
    """
    sysroot = Sysroot.find()
    if sysroot is None:
        answer = Sysroot.available()
        raise ToolchainError(f"no build for 64-bit ARM runs here: {answer.reason}", answer.mend)
    return tuple(sysroot.python)


def open_build(folder: Path, signature: Signature) -> CheckedSession:
    """Open the build in ``folder`` as its own run.py does."""
    child = Child(interpreter(), folder / "run.py", folder)
    return CheckedSession(child.run, signature, "emulated")
