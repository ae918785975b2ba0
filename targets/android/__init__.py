"""Android, through LiteRT, onnxruntime in its own format, or a library that TVM compiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from polycast.targetbase import Answer

from .. import _cpu_runtimes, _native, _tvm
from .._cpu_runtimes import Runtime
from .._mobile import MobileTarget, Sample

if __name__ != "polycast.targets.android":
    raise ImportError(f"this package is polycast.targets.android, not {__name__}")

#: The oldest Android that the runtimes run on is 7.0.
_SYSTEM = "linux-android24"

_CPUS = {
    "arm64": replace(_tvm.NEON, system=_SYSTEM),
    "armv7": _tvm.Cpu("generic", "armv7a", system="linux-androideabi24"),
    "x86_64": _tvm.Cpu("generic", "x86_64", system=_SYSTEM),
}

_GOLDEN = "Golden.kt"

#: Opens what onnxruntime 1.32 writes, tried at every precision; 1.27 lacks an attribute that 1.32 gives MatMulNBits.
_ONNXRUNTIME = "com.microsoft.onnxruntime:onnxruntime-android:1.31.0"


@dataclass(frozen=True)
class Android(MobileTarget):
    """An Android phone or board. Without an arch, arm64: what every phone since 2019 has to have."""

    name = "android"
    arches = tuple(_CPUS)
    runtimes = ("litert", "onnxruntime", "tvm")
    folder = Path(__file__).parent
    samples: ClassVar[Mapping[str, Sample]] = {
        "litert": Sample(
            ("LiteRtSample.kt", _GOLDEN, "LiteRt.gradle.kts"),
            'implementation("com.google.ai.edge.litert:litert:2.3.0")   // build.gradle.kts; minSdk 24',
        ),
        "onnxruntime": Sample(
            ("OnnxRuntimeSample.kt", _GOLDEN, "OnnxRuntime.gradle.kts"),
            f'implementation("{_ONNXRUNTIME}")   // build.gradle.kts; minSdk 24',
        ),
        "tvm": Sample(("TvmSample.md",), "TVM's runtime, built with Android's NDK"),
    }

    @property
    def on(self) -> Runtime:
        """See ``CpuTarget``."""
        if self.executor == "litert":
            return _cpu_runtimes.litert()
        if self.executor == "tvm":
            return _cpu_runtimes.tvm(_CPUS[self.arch or "arm64"])
        return _cpu_runtimes.onnxruntime(exact=self.arch != "x86_64", blocks=False, own_format=True)

    @property
    def stand_in(self) -> Answer:
        """See ``MobileTarget``."""
        if self.executor == "tvm":
            mend = "polycast verify --adb BUILD, with a device on USB"
            return Answer(False, "a library for Android's C library runs on Android alone", mend)
        return Answer(True, "the same file on this machine's CPU: numbers, and no times", "polycast verify --adb BUILD")

    def on_a_device(self, folder: Path) -> list[str]:
        """See ``MobileTarget``."""
        _native.write(folder, self.executor)
        return ["polycast verify --adb .   # with the native runner, which Android's NDK compiles"]
