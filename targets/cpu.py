"""The CPU of this machine or of any other, through onnxruntime."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polycast.errors import RecipeError
from polycast.model import Model, Signature
from polycast.profiling import ProfiledSession
from polycast.targetbase import Probe, Target

from . import _kernels
from . import _onnxruntime as ort

_CLEAN = "clean | fold | clean"
_FUSE = "fuse_conv_bn | fuse_gelu | fuse_layer_norm | fuse_rms_norm | fuse_rotary | fuse_attention | fuse_gemm"

_RECIPES = {
    "fp32": f"{_CLEAN} | {_FUSE} | clean",
    "fp16": f"{_CLEAN} | {_FUSE} | fp16 | clean",
}

#: onnxruntime's own SkipLayerNormalization and BiasGelu are slower on CPU than the two ops that each replaces:
#: MiniLM, 1×128 tokens, ×0.95 with them and ×1.02 without. ``fuse_skip_norm`` is left out of the recipes likewise.
_SESSION = {"optimization.disable_specified_optimizers": "SkipLayerNormFusion;BiasGeluFusion"}

#: A masked softmax leaves denormals, each of which costs a CPU some hundred cycles wherever it is read again:
#: stories260K, 1×64 tokens, ×1.5 with them and ×3.1 without.
_OWN_PROCESS = {"session.set_denormal_as_zero": "1"}


@dataclass(frozen=True)
class Cpu(Target):
    """Any CPU that onnxruntime has a wheel for. Builds hold plain ONNX and a short runner."""

    name = "cpu"

    def __post_init__(self) -> None:
        if self.arch:
            raise RecipeError(f"unknown target 'cpu:{self.arch}'", "The cpu target takes no architecture: -t cpu")

    @property
    def features(self) -> frozenset[str]:
        """See ``Target``."""
        return frozenset({"skip-norm", "fp16"})

    @property
    def precisions(self) -> tuple[str, ...]:
        """See ``Target``."""
        return tuple(_RECIPES)

    def probe(self) -> Probe:
        """See ``Target``."""
        here = ort.available()
        return Probe(here, here, "device", _cpu_name())

    def recipe(self, precision: str) -> str | None:
        """See ``Target``."""
        return _RECIPES.get(precision)

    def problems(self, model: Model) -> tuple[str, ...]:
        """See ``Target``."""
        return _kernels.missing(model)

    def write(self, model: Model, folder: Path) -> Mapping[str, Any]:
        """See ``Target``."""
        settings = {"session": dict(_SESSION), "own_process": dict(_OWN_PROCESS)}
        return ort.write(model, folder, {"graph_optimization_level": "ORT_ENABLE_ALL", **settings})

    def open(self, folder: Path, *, own_process: bool = False) -> ProfiledSession:
        """See ``Target``."""
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return ort.open_build(folder, Signature.from_json(manifest["signature"]), own_process=own_process)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
