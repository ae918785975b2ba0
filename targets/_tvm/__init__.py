"""TVM, as the runtime of several targets: import, schedules for GPUs, and what a build for it holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polycast.calibrating.folder import cache_folder
from polycast.errors import InputError, ToolchainError
from polycast.fingerprint import of_files
from polycast.model import Model, Signature
from polycast.targetbase import Answer, CheckedSession, Probe

from .. import _runner
from . import cpu_arch
from .cpu_arch import NEON, Cpu, this_cpu
from .gpu import Gpu

if TYPE_CHECKING:
    from .lowering import Lowered

__all__ = [
    "NEON",
    "Cpu",
    "Gpu",
    "available",
    "available_for",
    "is_here",
    "lower",
    "made_with",
    "open_build",
    "probe_cpu",
    "problems",
    "this_cpu",
    "tune",
    "write",
]


def available() -> Answer:
    """Say whether TVM can be imported here."""
    try:
        return Answer(True, f"apache-tvm {version('apache-tvm')}")
    except PackageNotFoundError:
        return Answer(False, "apache-tvm is not installed", "pip install polycast[tvm]")


def available_for(cpu: Cpu) -> Answer:
    """Say whether TVM can be imported here, and whether what links for ``cpu`` is here."""
    from . import linking

    tvm, linker = available(), linking.available(cpu)
    return Answer(True, f"{tvm.reason}, and {linker.reason}") if tvm.yes and linker.yes else linker if tvm.yes else tvm


def probe_cpu(cpu: Cpu, hardware: str) -> Probe:
    """Say whether builds for ``cpu`` can be made and run here; hardware: the name of this machine's own."""
    return cpu_arch.probe(cpu, hardware, available_for(cpu), available())


def problems(model: Model, cpu: Cpu | None = None) -> tuple[str, ...]:
    """Name every op and input of ``model`` that cannot be imported, for a GPU or for ``cpu``: sorted, all at once."""
    from . import converters, cpu_converters, frontend, open_sizes, static

    if cpu is None:
        return frontend.problems(static.fixed(model)[0], converters.OWN)
    one, _ = open_sizes.one_row(model, cpu)
    any_size = open_sizes.suits(one, cpu)
    if found := frontend.in_bfloat16(one):
        return found
    found = frontend.problems(one, cpu_converters.own(cpu), any_size=any_size)
    return tuple(frontend.dynamic(model)) if found and any_size else found


def made_with(tool: str | None = None) -> dict[str, object]:
    """Name what TVM's builds depend on: the schedules that were tuned on this machine, and a tool that links them."""
    there = Path(tool) if tool else None
    about = there.stat() if there and there.is_file() else None
    return {
        "tuned": of_files(cache_folder() / "tuned"),
        "tool": [str(there), about.st_size, about.st_mtime_ns] if about else tool,
    }


def tune(model: Model, gpu: Gpu | Cpu, minutes: float, tell: Callable[[str, int, int], None] | None) -> None:
    """Try schedules for the kernels of ``model`` on this machine; builds for ``gpu`` are made with the fastest now."""
    from . import cpu_tuning, gpu_tuning, open_sizes, static

    if isinstance(gpu, Cpu):
        cpu_tuning.tune(open_sizes.one_row(model, gpu)[0], gpu, minutes, tell)
    else:
        gpu_tuning.tune(static.fixed(model)[0], gpu, minutes, tell)


def is_here(gpu: Gpu) -> bool:
    """Whether a GPU of this architecture is here, so that schedules can be tried on it."""
    from . import gpu_tuning

    return gpu_tuning.chip(gpu) is not None


def lower(model: Model, gpu: Gpu | Cpu) -> Lowered:
    """Import ``model`` and schedule every kernel for ``gpu``, with what was measured on such a one here."""
    from . import cpu_lowering, cpu_tuning, gpu_tuning, lowering

    if isinstance(gpu, Cpu):
        return cpu_lowering.lower(model, gpu, cpu_tuning.known(gpu))
    return lowering.lower(model, gpu, gpu_tuning.known(gpu))


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
        mend = "polycast targets says what runs here, and what is lacking"
        raise ToolchainError(f"the build cannot be opened here: {error}", mend) from error
    except Exception as error:  # TVM raises its own types for a library that is damaged
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"TVM cannot open the build: {line}", _runner.DAMAGED) from error
    return CheckedSession(session.run, signature)
