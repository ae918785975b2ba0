"""LiteRT, as the runtime of several targets: .tflite files written from ONNX, and how they are run."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from polycast.errors import InputError
from polycast.model import Model, Signature
from polycast.targetbase import Answer, CheckedSession

from .. import _run, _runner

_CLEAN = "clean | fold | clean"
_MEND = "correct_bias | clean"
_PLAIN = f"{_CLEAN} | fuse_conv_bn | fuse_one_hot | fuse_gelu | fuse_layer_norm | fuse_rms_norm"
_FLOAT = f"{_PLAIN} | fuse_gemm"

#: What int8 finds no range for, for lack of samples or because no one range suits it, is quantized as it runs.
_DYNAMIC = "int8_dynamic(per='token', convolutions=True)"

_EVERY = "symmetric=True, tied=True, ops=('Conv', 'ConvTranspose', 'Gemm', 'MatMul')"

#: What each precision goes through.
RECIPES: Mapping[str, str] = {
    "fp32": f"{_PLAIN} | clean",
    "fp16-weights": f"{_PLAIN} | fp16_weights | clean",
    "int8": f"{_FLOAT} | int8(calibrate='minmax') | adaround | {_DYNAMIC} | correct_bias | quantize_embeddings | clean",
    "int8-dynamic": f"{_PLAIN} | {_DYNAMIC} | quantize_embeddings | clean",
    "int8-weights": f"{_PLAIN} | quantize_weights(bits=8, block=0, {_EVERY}) | quantize_embeddings | {_MEND}",
    "int4": f"{_PLAIN} | quantize_weights({_EVERY}) | quantize_embeddings | {_MEND}",
}

#: What LiteRT can do beyond plain ONNX.
FEATURES = frozenset(
    {"blocked-qdq", "integer-matmul", "integer-matmul-to-float", "integer-results", "qdq", "u8s8-exact"}
)

_NARROW = "LiteRT's kernels take weights of 8 and of 4 bits"

#: Precisions that LiteRT gains nothing from, each with the reason.
DECLINED: Mapping[str, str] = {
    "bf16": "LiteRT's kernels compute in float32 or in integers",
    "fp16": "LiteRT's kernels here multiply in float32; -p fp16-weights stores weights in half the bytes",
    "int3": _NARROW,
    "int2": _NARROW,
}

#: The same for iOS, whose apps link an older one.
DECLINED_FOR_IOS: Mapping[str, str] = {
    **DECLINED,
    "int4": "TensorFlowLiteSwift 2.17.0 reads no weights with a scale for each block; int8-weights it does",
}


def available() -> Answer:
    """Say whether LiteRT can be imported here."""
    try:
        return Answer(True, f"ai-edge-litert {version('ai-edge-litert')}")
    except PackageNotFoundError:
        return Answer(False, "ai-edge-litert is not installed", "pip install polycast[litert]")


def problems(model: Model, *, for_ios: bool = False) -> tuple[str, ...]:
    """Name every op of ``model`` that cannot be written, or that iOS has no runtime for: sorted, all at once."""
    from . import build

    return build.problems(model, for_ios=for_ios)


def write(model: Model, folder: Path) -> Mapping[str, Any]:
    """Write model.tflite and run.py into ``folder``. Returns: the runtime facts for the manifest."""
    from . import build

    return build.write(model, folder)


def open_build(folder: Path, signature: Signature) -> CheckedSession:
    """Open the build in ``folder`` as its own run.py does; the evidence is the caller's to say."""
    from .run_litert import LiteRtSession

    try:
        session = LiteRtSession(folder, _run.threads())
    except Exception as error:  # the runtime raises plain ValueError and RuntimeError for a file that is damaged
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"LiteRT cannot open the build: {line}", _runner.DAMAGED) from error
    return CheckedSession(session.run_checked, signature)


def what_runs(folder: Path) -> Mapping[str, Any]:
    """Say what runs the operators of the build in ``folder``; see ``Target.kernels``."""
    from . import delegated

    return delegated.what_runs(folder)
