"""The browser, through WebGPU: kernels, a list of launches, weights, and a runner of a few kilobytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polycast.errors import PolycastError, ToolchainError
from polycast.model import Model, Signature
from polycast.targetbase import CheckedSession, Probe, Target
from polycast.targets import _kernels, _tvm

from . import _onnxruntime_web as ort
from . import _probe, _site

_FLOAT = "clean | fold | clean | fuse_conv_bn | fuse_one_hot | fuse_gelu | fuse_layer_norm | fuse_rms_norm | fuse_gemm"
_EVERY = "tied=True, ops=('Conv', 'ConvTranspose', 'Gemm', 'MatMul')"
#: Images are far from 0 on average, and so is then what rounded weights miss.
_MEND = "correct_bias | clean"

_RECIPES = {
    "fp32": f"{_FLOAT} | clean",
    "fp16": f"{_FLOAT} | fp16 | clean",
    "int8-weights": f"{_FLOAT} | quantize_weights(bits=8, block=0, {_EVERY}) | quantize_embeddings | {_MEND}",
    "int4": f"{_FLOAT} | quantize_weights({_EVERY}) | quantize_embeddings(bits=4, block=32) | {_MEND}",
}

#: What the field knows, and nothing here would be faster for.
_DECLINED = dict.fromkeys(
    ("int8", "int8-dynamic"), "no kernels here multiply int8 activations; int8-weights reads weights in 8 bits"
)

#: What every adapter allows: https://www.w3.org/TR/webgpu/#limits.
_GPU = _tvm.Gpu("webgpu", threads=256, shared=16 << 10, lanes=4)


@dataclass(frozen=True)
class WebGpu(Target):
    """A browser with WebGPU. Builds hold a page and ES modules that need nothing else.

    With ``@onnxruntime-web`` they hold the model as ONNX, and need that package from npm.
    """

    name = "webgpu"
    runtimes = ("runner", "onnxruntime-web")

    @property
    def features(self) -> frozenset[str]:
        """See ``Target``."""
        return ort.FEATURES if self.runtime else frozenset({"blocked-qdq", "fp16", "gather-nbits"})

    @property
    def declined(self) -> Mapping[str, str]:
        """See ``Target``."""
        return _DECLINED

    @property
    def precisions(self) -> tuple[str, ...]:
        """See ``Target``."""
        return tuple(self._recipes)

    @property
    def _recipes(self) -> dict[str, str]:
        return ort.RECIPES if self.runtime else _RECIPES

    def probe(self) -> Probe:
        """See ``Target``."""
        run, evidence, adapter = _probe.browser()
        if self.runtime:
            return Probe(_site.ALWAYS, ort.can_run(), evidence, adapter)
        return Probe(_tvm.available(), run, evidence, adapter)

    def recipe(self, precision: str) -> str | None:
        """See ``Target``."""
        return self._recipes.get(precision)

    def problems(self, model: Model) -> tuple[str, ...]:
        """See ``Target``."""
        return ort.problems(model) if self.runtime else _tvm.problems(model)

    def mends(self, model: Model) -> tuple[str, ...]:
        """See ``Target``."""
        return _kernels.older_opset(model) if self.runtime else ()

    def fallback(self, model: Model) -> Mapping[str, str] | None:
        """See ``Target``. Own kernels run every node."""
        return ort.fallback(model) if self.runtime else None

    def made_with(self) -> Mapping[str, object]:
        """See ``Target``."""
        return {} if self.runtime else _tvm.made_with()

    def write(self, model: Model, folder: Path) -> Mapping[str, Any]:
        """See ``Target``."""
        if self.runtime:
            return ort.write(model, folder)
        from polycast.targets._tvm.static import fixed

        from . import _plan, _wgsl

        static, by_row = fixed(model)
        try:
            _plan.write(static, _GPU, folder, by_row=by_row)
        except PolycastError:
            raise
        except Exception as error:  # TVM raises its own types for a kernel that it cannot make
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ToolchainError(f"compiling for {self} failed: {line}", f"Try {_wgsl.OTHER_KERNELS}") from error
        return {**_site.write(folder), "by_row": by_row}

    def open(self, folder: Path, *, own_process: bool = False) -> CheckedSession:
        """See ``Target``."""
        from ._session import Page

        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        signature = Signature.from_json(manifest["signature"])
        if self.runtime:
            return ort.open_build(folder, signature)
        page = Page(folder, [port.dtype for port in signature.outputs])
        return CheckedSession(page.run, signature, page.adapter.evidence)
