"""What executes builds on a CPU, of this machine or of a phone: onnxruntime, LiteRT, or kernels that TVM compiles."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from polycast.model import Model, Signature
from polycast.targetbase import Answer, CheckedSession, Target

from . import _kernels, _litert, _ort_format, _tvm
from . import _onnxruntime as ort

_CLEAN = "clean | fold | clean"
_PLAIN = "fuse_conv_bn | fuse_one_hot | fuse_gelu | fuse_layer_norm | fuse_rms_norm"
_FUSE = f"{_PLAIN} | fuse_rotary | fuse_attention | fuse_gemm"

_FLOAT = f"{_CLEAN} | {_FUSE} | clean"

#: What int8 finds no good range for, for lack of samples or because no one range suits it, is quantized as it runs.
_INT8 = (
    "pad_channels | int8(calibrate='minmax') | adaround | int8_dynamic(convolutions=True) | correct_bias"
    " | quantize_embeddings"
)

#: Embeddings take no fewer than 4 bits: a table is looked up, not summed, so that nothing averages its error out.
_TABLES = "quantize_embeddings(bits=4, block=32)"
_EVERY = "tied=True, ops=('Conv', 'ConvTranspose', 'Gemm', 'MatMul')"
_MEND = "correct_bias | clean"

_RECIPES = {
    "fp32": _FLOAT,
    "fp16": f"{_CLEAN} | {_FUSE} | fp16 | clean",
    "int8": f"{_FLOAT} | {_INT8} | clean",
    "int8-dynamic": f"{_FLOAT} | int8_dynamic | quantize_embeddings | clean",
    "int8-weights": f"{_FLOAT} | quantize_weights(bits=8, block=0, {_EVERY}) | quantize_embeddings | {_MEND}",
    "int4": f"{_FLOAT} | quantize_weights({_EVERY}) | {_TABLES} | {_MEND}",
    "int3": f"{_FLOAT} | quantize_weights(bits=3, {_EVERY}) | {_TABLES} | {_MEND}",
    "int2": f"{_FLOAT} | quantize_weights(bits=2, {_EVERY}) | {_TABLES} | {_MEND}",
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
_SETTINGS = {"graph_optimization_level": "ORT_ENABLE_ALL", "session": _SESSION, "own_process": _OWN_PROCESS}

#: TVM fuses what follows a product on its own, and knows the plain spelling of every op.
_TVM_FLOAT = f"{_CLEAN} | {_PLAIN}"
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


@dataclass(frozen=True)
class Runtime:
    """One of them, for one kind of CPU: what it takes, what is written for it, and how that is opened.

    open: of a folder and a signature, whether the process is the build's own. made_with, mends: as for ``Target``.
    """

    features: frozenset[str]
    recipes: Mapping[str, str]
    declined: Mapping[str, str]
    available: Callable[[], Answer]
    problems: Callable[[Model], tuple[str, ...]]
    write: Callable[[Model, Path], Mapping[str, Any]]
    open: Callable[[Path, Signature, bool], CheckedSession]
    made_with: Callable[[], Mapping[str, object]] = dict
    mends: Callable[[Model], tuple[str, ...]] = lambda model: ()


def onnxruntime(*, exact: bool, blocks: bool = True, own_format: bool = False) -> Runtime:
    """Give onnxruntime.

    exact: whether products of uint8 and int8 do not saturate. blocks: whether convolutions take channels in blocks.
    own_format: whether model.ort is written in place of model.onnx.
    """
    features = (_FEATURES if blocks else _FEATURES - {"conv-blocks"}) | ({"u8s8-exact"} if exact else set())
    write = _ort_format.write if own_format else ort.write
    return Runtime(
        frozenset(features),
        _RECIPES,
        {"bf16": "onnxruntime's CPU kernels for convolutions and matrix products take no bfloat16"},
        ort.available,
        _kernels.missing,
        lambda model, folder: write(model, folder, _SETTINGS),
        lambda folder, signature, own: ort.open_build(folder, signature, own_process=own),
        mends=_kernels.older_opset,
    )


def litert(*, for_ios: bool = False) -> Runtime:
    """Give LiteRT, whose files are the same for every CPU. for_ios: where it is an older one, which takes less."""
    declined = _litert.DECLINED_FOR_IOS if for_ios else _litert.DECLINED
    return Runtime(
        _litert.FEATURES,
        {name: recipe for name, recipe in _litert.RECIPES.items() if name not in declined},
        declined,
        _litert.available,
        partial(_litert.problems, for_ios=for_ios),
        _litert.write,
        lambda folder, signature, _: _litert.open_build(folder, signature),
    )


def tvm(cpu: _tvm.Cpu) -> Runtime:
    """Give TVM, whose kernels are machine code for ``cpu``."""
    recipes = _TVM_RECIPES if cpu.multiplies_bytes else {"fp32": _TVM_RECIPES["fp32"]}
    return Runtime(
        frozenset({"integer-conv-to-float", "qdq", "u8s8-exact"} if cpu.multiplies_bytes else ()),
        recipes,
        {name: reason for name, reason in {**_TVM_DECLINED, **_on_arm(cpu)}.items() if name not in recipes},
        lambda: _tvm.available_for(cpu),
        lambda model: _tvm.problems(model, cpu),
        lambda model, folder: _tvm.write(model, cpu, folder),
        lambda folder, signature, _: _tvm.open_build(folder, signature),
        lambda: {**_tvm.made_with(_tvm.available_for(cpu).reason), "cpu": cpu.to_json()},
    )


def _on_arm(cpu: _tvm.Cpu) -> dict[str, str]:
    reason = (
        "ARM multiplies bytes since ARMv8.2, and TVM's kernels here are for every 64-bit ARM; --runtime litert does"
    )
    return {"int8": reason} if cpu.arch == "neon" else {}


class CpuTarget(Target):
    """A target whose builds one of these runtimes executes."""

    @property
    @abstractmethod
    def on(self) -> Runtime:
        """What executes the builds."""

    @property
    def features(self) -> frozenset[str]:
        """See ``Target``."""
        return self.on.features

    @property
    def declined(self) -> Mapping[str, str]:
        """See ``Target``."""
        return self.on.declined

    @property
    def precisions(self) -> tuple[str, ...]:
        """See ``Target``."""
        return tuple(self.on.recipes)

    def recipe(self, precision: str) -> str | None:
        """See ``Target``."""
        return self.on.recipes.get(precision)

    def problems(self, model: Model) -> tuple[str, ...]:
        """See ``Target``."""
        return self.on.problems(model)

    def mends(self, model: Model) -> tuple[str, ...]:
        """See ``Target``."""
        return self.on.mends(model)

    def made_with(self) -> Mapping[str, object]:
        """See ``Target``."""
        return self.on.made_with()

    def write(self, model: Model, folder: Path) -> Mapping[str, Any]:
        """See ``Target``."""
        return self.on.write(model, folder)
