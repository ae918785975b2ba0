"""What targets for GPUs share: kernels of TVM's, or with ``@onnxruntime`` a graph for one of its providers."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from polycast.errors import RecipeError
from polycast.model import Model, Signature
from polycast.targetbase import Answer, CheckedSession, Probe, Target

from . import _kernels, _tvm
from ._onnxruntime_gpu import GpuProvider

_FLOAT = "clean | fold | clean | fuse_conv_bn | fuse_one_hot | fuse_gelu | fuse_layer_norm | fuse_rms_norm"
_HALF = f"{_FLOAT} | fp16"
_EVERY = "tied=True, ops=('Conv', 'ConvTranspose', 'Gemm', 'MatMul')"

#: Stored weights are multiplied by float16: narrower than float32 in memory, and no less exact than the weights are.
_RECIPES = {
    "fp32": f"{_FLOAT} | clean",
    "fp16": f"{_HALF} | clean",
    "int8-weights": f"{_HALF} | quantize_weights(bits=8, block=0, {_EVERY}) | quantize_embeddings | clean",
    "int4": f"{_HALF} | quantize_weights({_EVERY}) | quantize_embeddings(bits=4, block=32) | clean",
}

#: What the field knows, and kernels here would not be faster for.
_DECLINED = {
    "int8": "no kernels here multiply int8 activations; int8-weights reads weights in 8 bits",
    "int8-dynamic": "no kernels here multiply int8 activations; int8-weights reads weights in 8 bits",
    "int3": "words of 32 bits hold codes of 4 or 8 bits; int4 is as fast and more exact",
    "int2": "words of 32 bits hold codes of 4 or 8 bits; int4 is as fast and more exact",
}

_FEATURES = frozenset({"blocked-qdq", "fp16", "gather-nbits"})


@dataclass(frozen=True)
class GpuTarget(Target):
    """A GPU of one architecture.

    providers: what executes the builds where TVM does not, by runtime. needs: what a build of TVM's asks for where it
    runs, where that is not the package on PyPI.
    """

    runtimes: ClassVar[tuple[str, ...]] = ("tvm", "onnxruntime")
    providers: ClassVar[Mapping[str, GpuProvider]]
    needs: ClassVar[str] = ""

    #: Minutes of trying schedules on the GPU that is here, and who is told how far that is.
    tune: float = field(default=0.0, compare=False)
    progress: Callable[[str, int, int], None] | None = field(default=None, compare=False, repr=False)

    @property
    @abstractmethod
    def gpu(self) -> _tvm.Gpu:
        """What schedules have to know of this architecture."""

    @property
    @abstractmethod
    def tool(self) -> str | None:
        """The path of what makes machine code of kernels; None where it is not here."""

    @abstractmethod
    def tools(self) -> Answer:
        """Say whether what makes machine code of kernels is here."""

    @abstractmethod
    def device(self) -> Answer:
        """Say whether such a GPU is here."""

    @property
    def _provider(self) -> GpuProvider | None:
        return self.providers.get(self.executor)

    @property
    def features(self) -> frozenset[str]:
        """See ``Target``."""
        return self._provider.features if self._provider else _FEATURES

    @property
    def declined(self) -> Mapping[str, str]:
        """See ``Target``."""
        return self._provider.declined if self._provider else _DECLINED

    @property
    def precisions(self) -> tuple[str, ...]:
        """See ``Target``."""
        return tuple(self._provider.recipes if self._provider else _RECIPES)

    def recipe(self, precision: str) -> str | None:
        """See ``Target``."""
        return (self._provider.recipes if self._provider else _RECIPES).get(precision)

    def probe(self) -> Probe:
        """See ``Target``."""
        if self._provider:
            return self._provider.probe(self, self.device())
        build = _tvm.available()
        return Probe(self.tools() if build.yes else build, self.device(), "device")

    def problems(self, model: Model) -> tuple[str, ...]:
        """See ``Target``."""
        return self._provider.problems(model) if self._provider else _tvm.problems(model)

    def mends(self, model: Model) -> tuple[str, ...]:
        """See ``Target``."""
        return _kernels.older_opset(model) if self._provider else ()

    def fallback(self, model: Model) -> Mapping[str, str] | None:
        """See ``Target``."""
        return self._provider.fallback(model) if self._provider else None

    def made_with(self) -> Mapping[str, object]:
        """See ``Target``."""
        return {} if self._provider else _tvm.made_with(self.tool)

    def set_up(self) -> str:
        """See ``Target``."""
        return str(self._provider.environment.make()) if self._provider else super().set_up()

    def tuned(self, minutes: float, progress: Callable[[str, int, int], None] | None = None) -> Target:
        """See ``Target``."""
        if not minutes or self._provider or not self.probe().run.yes:
            return super().tuned(minutes, progress)
        if not _tvm.is_here(self.gpu):
            reason = f"{self.device().reason} is here, and what is measured on one chip says nothing of another"
            raise RecipeError(f"{self} cannot be tuned here: {reason}", "Name the architecture of the GPU that is here")
        return replace(self, tune=minutes, progress=progress)

    def write(self, model: Model, folder: Path) -> Mapping[str, Any]:
        """See ``Target``."""
        if self._provider:
            return self._provider.write(model, folder)
        if self.tune:
            _tvm.tune(model, self.gpu, self.tune, self.progress)
        facts = _tvm.write(model, self.gpu, folder)
        return {**facts, "needs": self.needs} if self.needs else facts

    def open(self, folder: Path, *, own_process: bool = False) -> CheckedSession:
        """See ``Target``."""
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        signature = Signature.from_json(manifest["signature"])
        if self._provider:
            return self._provider.open(folder, signature, self.device())
        return _tvm.open_build(folder, signature)
