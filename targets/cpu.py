"""The CPU of this machine or of any other, through onnxruntime, LiteRT, or kernels that TVM compiles for it."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from polycast.environments.sysroot import Sysroot
from polycast.model import Model, Signature
from polycast.targetbase import Probe, Session, Target

from . import _aarch64, _cpu_runtimes, _integer_kernels, _litert, _native, _tvm
from ._cpu_runtimes import CpuTarget, Runtime

#: ``vnni``: x86 that adds products of uint8 and int8 in 32 bits. ``avx2``: x86 that adds pairs in 16 bits, which
#: saturate, so that weights get 7 bits. (onnxruntime 1.32 has a session entry against that, ``x64quantprecision``: it
#: refuses QDQ models whose weights share a zero point.) ``aarch64``: 64-bit ARM with Linux, of which ARMv8.0 is asked:
#: a Raspberry Pi since 3, Graviton, a Jetson.
_ARCHES = ("vnni", "avx2", "aarch64")


@dataclass(frozen=True)
class Cpu(CpuTarget):
    """Any CPU that onnxruntime has a wheel for: one like this machine's, the named kind of x86, or 64-bit ARM.

    Builds hold plain ONNX and a short runner; those for TVM hold machine code, for fixed shapes or images of any size.
    """

    name = "cpu"
    arches = _ARCHES
    runtimes = ("onnxruntime", "tvm", "litert")

    #: Minutes of trying schedules on this machine, and who is told how far that is.
    tune: float = field(default=0.0, compare=False)
    progress: Callable[[str, int, int], None] | None = field(default=None, compare=False, repr=False)

    @property
    def cpu(self) -> _tvm.Cpu | None:
        """What TVM compiles for; None where another runtime executes the builds."""
        if self.executor != "tvm":
            return None
        if self.arch == "aarch64":
            return _tvm.NEON
        return _tvm.Cpu(self.arch) if self.arch else _tvm.this_cpu()

    @property
    def on(self) -> Runtime:
        """See ``CpuTarget``."""
        if self.executor == "litert":
            return _cpu_runtimes.litert()
        if self.cpu:
            return _cpu_runtimes.tvm(self.cpu)
        exact = self.arch in ("vnni", "aarch64") or (not self.arch and _adds_in_32_bits())
        return _cpu_runtimes.onnxruntime(exact=exact, blocks=self.arch != "aarch64")

    @property
    def _is_elsewhere(self) -> bool:
        return self.arch == "aarch64" and not _aarch64.is_here()

    @property
    def interpreter(self) -> tuple[str, ...]:
        """See ``Target``."""
        return _aarch64.interpreter() if self._is_elsewhere else super().interpreter

    def probe(self) -> Probe:
        """See ``Target``."""
        here = self.on.available()
        if self._is_elsewhere:
            return _aarch64.probe(here)
        return _tvm.probe_cpu(self.cpu, _cpu_name()) if self.cpu else Probe(here, here, "device", _cpu_name())

    def set_up(self) -> str:
        """See ``Target``."""
        return str(Sysroot.make().folder) if self._is_elsewhere else super().set_up()

    def write(self, model: Model, folder: Path) -> Mapping[str, Any]:
        """See ``Target``."""
        if self.cpu and self.tune:
            _tvm.tune(model, self.cpu, self.tune, self.progress)
        facts = self.on.write(model, folder)
        if self.arch != "aarch64":
            return facts
        _native.write(folder, self.executor)
        how = [
            "polycast verify --ssh HOST .   # on a board, with its Python or the native runner",
            *facts["how_to_run"],
        ]
        return {**facts, "how_to_run": how, "beside": ["native"]}

    def open(self, folder: Path, *, own_process: bool = False) -> Session:
        """See ``Target``."""
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        signature = Signature.from_json(manifest["signature"])
        if self._is_elsewhere:
            return _aarch64.open_build(folder, signature)
        return self.on.open(folder, signature, own_process)

    def tuned(self, minutes: float, progress: Callable[[str, int, int], None] | None = None) -> Target:
        """See ``Target``."""
        if not minutes or self.cpu is None or self._is_elsewhere or not self.probe().run.yes:
            return super().tuned(minutes, progress)
        return replace(self, tune=minutes, progress=progress)

    def kernels(self, folder: Path) -> Mapping[str, Any] | None:
        """See ``Target``."""
        if self._is_elsewhere or self.cpu:
            return None
        return _litert.what_runs(folder) if self.executor == "litert" else _integer_kernels.integer_kernels(folder)


def _adds_in_32_bits() -> bool:
    """Whether products of uint8 and int8 do not saturate here: with VNNI, and on every CPU that is no x86."""
    if platform.machine().lower() not in ("x86_64", "amd64", "i686"):
        return True
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return bool(flags & {"avx512_vnni", "avx_vnni"})


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
