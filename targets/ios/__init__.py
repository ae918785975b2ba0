"""iOS, through LiteRT, or onnxruntime with its provider for CoreML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from polycast.model import Model
from polycast.targetbase import Answer

from .. import _cpu_runtimes
from .._cpu_runtimes import Runtime
from .._mobile import MobileTarget, Sample
from . import coreml, provider

if __name__ != "polycast.targets.ios":
    raise ImportError(f"this package is polycast.targets.ios, not {__name__}")

_GOLDEN = "Golden.swift"


@dataclass(frozen=True)
class Ios(MobileTarget):
    """An iPhone or iPad with iOS 16 or later. With ``@onnxruntime`` what CoreML takes runs on its Neural Engine."""

    name = "ios"
    runtimes = ("litert", "onnxruntime")
    folder = Path(__file__).parent
    samples: ClassVar[Mapping[str, Sample]] = {
        "litert": Sample(
            ("LiteRtSample.swift", _GOLDEN, "Podfile"), "pod 'TensorFlowLiteSwift', '2.17.0'   # ios/Podfile"
        ),
        "onnxruntime": Sample(
            ("OnnxRuntimeSample.swift", _GOLDEN, "Package.swift"),
            f"onnxruntime-swift-package-manager {coreml.VERSION}   // ios/Package.swift",
        ),
    }

    @property
    def on(self) -> Runtime:
        """See ``CpuTarget``."""
        return _cpu_runtimes.litert(for_ios=True) if self.executor == "litert" else provider.RUNTIME

    @property
    def stand_in(self) -> Answer:
        """See ``MobileTarget``."""
        what = "the same file on this machine's CPU" if self.executor == "litert" else "the graph on this machine's CPU"
        return Answer(True, f"{what}: numbers, and no times", "run the sample of the build on a device")

    def fallback(self, model: Model) -> Mapping[str, str] | None:
        """See ``Target``."""
        return coreml.fallback(model) if self.executor == "onnxruntime" else None
