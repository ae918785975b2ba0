"""TVM, as the runtime of several targets: import, schedules for GPUs, and what a build for it holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polycast.errors import InputError, ToolchainError
from polycast.model import Model, Signature
from polycast.targetbase import Answer, CheckedSession, Probe

from . import cpu_arch
from .cpu_arch import Cpu, this_cpu
from .gpu import Gpu

if TYPE_CHECKING:
    from .lowering import Lowered

__all__ = ["Cpu", "Gpu", "available", "lower", "open_build", "probe_cpu", "problems", "this_cpu", "tune", "write"]


def available() -> Answer:
    """Say whether TVM can be imported here."""
    try:
        return Answer(True, f"apache-tvm {version('apache-tvm')}")
    except PackageNotFoundError:
        return Answer(False, "apache-tvm is not installed", "pip install polycast[tvm]")


def probe_cpu(cpu: Cpu, hardware: str) -> Probe:
    """Say whether builds for ``cpu`` can be made and run here; hardware: the name of this machine's own."""
    return cpu_arch.probe(cpu, hardware, available())


def problems(model: Model, cpu: Cpu | None = None) -> tuple[str, ...]:
    """Name every op and input of ``model`` that cannot be imported, for a GPU or for ``cpu``: sorted, all at once."""
    from . import converters, cpu_converters, frontend, static

    return frontend.problems(static.fixed(model)[0], cpu_converters.own(cpu) if cpu else converters.OWN)


def tune(model: Model, cpu: Cpu, minutes: float, tell: Callable[[str, int, int], None] | None) -> None:
    """Try tiles for the kernels of ``model`` on this machine; builds for ``cpu`` are made with the fastest from now."""
    from . import cpu_tuning, static

    cpu_tuning.tune(static.fixed(model)[0], cpu, minutes, tell)


def lower(model: Model, gpu: Gpu | Cpu) -> Lowered:
    """Import ``model`` and schedule every kernel for ``gpu``."""
    from . import cpu_lowering, cpu_tuning, lowering

    return (
        cpu_lowering.lower(model, gpu, cpu_tuning.known_tiles(gpu))
        if isinstance(gpu, Cpu)
        else lowering.lower(model, gpu)
    )


def write(model: Model, gpu: Gpu | Cpu, folder: Path) -> Mapping[str, Any]:
    """Write lib.so, its weights and run.py into ``folder``. Returns: the runtime facts for the manifest."""
    from . import build

    return build.write(model, gpu, folder)


def open_build(folder: Path, signature: Signature) -> CheckedSession:
    """Open the build in ``folder`` as its own run.py does."""
    from .run_tvm import TvmSession

    try:
        session = TvmSession(folder)
    except RuntimeError as error:
        raise ToolchainError(f"the build cannot be opened here: {error}") from error
    except Exception as error:  # TVM raises its own types for a library that is damaged
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"TVM cannot open the build: {line}") from error
    return CheckedSession(session.run, signature)
