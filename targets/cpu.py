"""The CPU of this machine or of any other, through onnxruntime, or through kernels that TVM compiles for it."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from polycast.model import Model, Signature
from polycast.targetbase import Probe, Session, Target

from . import _integer_kernels, _kernels, _tvm
from . import _onnxruntime as ort

_CLEAN = "clean | fold | clean"
_FUSE = "fuse_conv_bn | fuse_gelu | fuse_layer_norm | fuse_rms_norm | fuse_rotary | fuse_attention | fuse_gemm"

_FLOAT = f"{_CLEAN} | {_FUSE} | clean"

#: What int8 finds no good range for, for lack of samples or because no one range suits it, is quantized as it runs.
_INT8 = (
    "pad_channels | int8(calibrate='minmax') | adaround | int8_dynamic(convolutions=True) | correct_bias"
    " | quantize_embeddings"
)

#: Embeddings take no fewer than 4 bits: a table is looked up, not summed, so that nothing averages its error out.
_TABLES = "quantize_embeddings(bits=4, block=32)"
_EVERY = "tied=True, ops=('Conv', 'ConvTranspose', 'Gemm', 'MatMul')"

_RECIPES = {
    "fp32": _FLOAT,
    "fp16": f"{_CLEAN} | {_FUSE} | fp16 | clean",
    "int8": f"{_FLOAT} | {_INT8} | clean",
    "int8-dynamic": f"{_FLOAT} | int8_dynamic | quantize_embeddings | clean",
    "int8-weights": f"{_FLOAT} | quantize_weights(bits=8, block=0, {_EVERY}) | quantize_embeddings | clean",
    "int4": f"{_FLOAT} | quantize_weights({_EVERY}) | {_TABLES} | clean",
    "int3": f"{_FLOAT} | quantize_weights(bits=3, {_EVERY}) | {_TABLES} | clean",
    "int2": f"{_FLOAT} | quantize_weights(bits=2, {_EVERY}) | {_TABLES} | clean",
}

#: onnxruntime's own SkipLayerNormalization and BiasGelu are slower on CPU than the two ops that each replaces:
#: MiniLM, 1×128 tokens, ×0.95 with them and ×1.02 without. ``fuse_skip_norm`` is left out of the recipes likewise.
#: WeightBiasQuantization puts the float weights of a convolution between two quantized nodes on one int8 grid, on its
#: own account: a layer that was kept in float for its accuracy is lost after all.
_SESSION = {
    "optimization.disable_specified_optimizers": "SkipLayerNormFusion;BiasGeluFusion;WeightBiasQuantization",
}

#: A masked softmax leaves denormals, each of which costs a CPU some hundred cycles wherever it is read again:
#: stories260K, 1×64 tokens, ×1.5 with them and ×3.1 without.
_OWN_PROCESS = {"session.set_denormal_as_zero": "1"}


#: TVM fuses what follows a product on its own, and knows the plain spelling of every op.
_TVM_FLOAT = f"{_CLEAN} | fuse_conv_bn | fuse_gelu | fuse_layer_norm | fuse_rms_norm"
_TVM_RECIPES = {
    "fp32": f"{_TVM_FLOAT} | clean",
    "int8": f"{_TVM_FLOAT} | int8(calibrate='minmax') | adaround | correct_bias | clean",
}
_WEIGHTS_ONLY = "TVM's kernels here read no packed weights; --runtime onnxruntime does"
_TVM_DECLINED = {
    "bf16": "no kernels here multiply bfloat16",
    "fp16": "no kernels here multiply float16",
    "int8": "TVM's kernels here multiply int8 with AVX-512 VNNI only: -t cpu:vnni, or --runtime onnxruntime",
    "int8-dynamic": "no kernels here find the range of an activation as they run; --runtime onnxruntime has them",
    "int8-weights": _WEIGHTS_ONLY,
    "int4": _WEIGHTS_ONLY,
    "int3": _WEIGHTS_ONLY,
    "int2": _WEIGHTS_ONLY,
}

_FEATURES = frozenset(
    {
        "conv-blocks",
        "dynamic-lstm",
        "fp16",
        "gather-nbits",
        "integer-matmul",
        "integer-matmul-to-float",
        "matmul-nbits",
        "qdq",
        "skip-norm",
    }
)

#: ``vnni``: x86 that adds products of uint8 and int8 in 32 bits. ``avx2``: x86 that adds pairs in 16 bits, which
#: saturate, so that weights get 7 bits. (onnxruntime 1.32 has a session entry against that, ``x64quantprecision``: it
#: refuses QDQ models whose weights share a zero point.)
_ARCHES = ("vnni", "avx2")


@dataclass(frozen=True)
class Cpu(Target):
    """Any CPU that onnxruntime has a wheel for: one like this machine's, or the named kind of x86.

    Builds hold plain ONNX and a short runner; those for TVM hold machine code, and the shapes are fixed.
    """

    name = "cpu"
    arches = _ARCHES
    runtimes = ("onnxruntime", "tvm")

    #: Minutes of trying schedules on this machine, and who is told how far that is.
    tune: float = field(default=0.0, compare=False)
    progress: Callable[[str, int, int], None] | None = field(default=None, compare=False, repr=False)

    @property
    def cpu(self) -> _tvm.Cpu | None:
        """What TVM compiles for; None where another runtime executes the builds."""
        if self.executor != "tvm":
            return None
        return _tvm.Cpu(self.arch) if self.arch else _tvm.this_cpu()

    @property
    def features(self) -> frozenset[str]:
        """See ``Target``."""
        if self.cpu:
            return frozenset({"qdq", "u8s8-exact"} if self.cpu.multiplies_bytes else ())
        exact = self.arch == "vnni" or (not self.arch and _adds_in_32_bits())
        return _FEATURES | ({"u8s8-exact"} if exact else set())

    @property
    def declined(self) -> Mapping[str, str]:
        """See ``Target``."""
        if self.cpu:
            return {name: reason for name, reason in _TVM_DECLINED.items() if name not in self.precisions}
        return {"bf16": "onnxruntime's CPU kernels for convolutions and matrix products take no bfloat16"}

    @property
    def precisions(self) -> tuple[str, ...]:
        """See ``Target``."""
        if self.cpu:
            return tuple(_TVM_RECIPES) if self.cpu.multiplies_bytes else ("fp32",)
        return tuple(_RECIPES)

    def probe(self) -> Probe:
        """See ``Target``."""
        if self.cpu:
            return _tvm.probe_cpu(self.cpu, _cpu_name())
        here = ort.available()
        return Probe(here, here, "device", _cpu_name())

    def recipe(self, precision: str) -> str | None:
        """See ``Target``."""
        if self.cpu:
            return _TVM_RECIPES.get(precision) if precision in self.precisions else None
        return _RECIPES.get(precision)

    def problems(self, model: Model) -> tuple[str, ...]:
        """See ``Target``."""
        return _tvm.problems(model, self.cpu) if self.cpu else _kernels.missing(model)

    def write(self, model: Model, folder: Path) -> Mapping[str, Any]:
        """See ``Target``."""
        if self.cpu:
            if self.tune:
                _tvm.tune(model, self.cpu, self.tune, self.progress)
            return _tvm.write(model, self.cpu, folder)
        settings = {"session": dict(_SESSION), "own_process": dict(_OWN_PROCESS)}
        return ort.write(model, folder, {"graph_optimization_level": "ORT_ENABLE_ALL", **settings})

    def open(self, folder: Path, *, own_process: bool = False) -> Session:
        """See ``Target``."""
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        signature = Signature.from_json(manifest["signature"])
        if self.cpu:
            return _tvm.open_build(folder, signature)
        return ort.open_build(folder, signature, own_process=own_process)

    def tuned(self, minutes: float, progress: Callable[[str, int, int], None] | None = None) -> Target:
        """See ``Target``."""
        if not minutes or self.cpu is None or not self.probe().run.yes:
            return super().tuned(minutes, progress)
        return replace(self, tune=minutes, progress=progress)

    def kernels(self, folder: Path) -> Mapping[str, Any] | None:
        """See ``Target``."""
        return None if self.cpu else _integer_kernels.integer_kernels(folder)


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
