"""onnxruntime with its provider for CoreML: shapes are fixed, and what CoreML computes in is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polycast.model import Model

from .. import _kernels
from .. import _onnxruntime as ort
from .._cpu_runtimes import Runtime
from . import coreml
from .shaping import shaped

#: Fusions whose results the provider knows; it knows nothing of onnxruntime's own domain.
_FLOAT = "clean | fold | clean | fuse_conv_bn | fuse_gelu | fuse_layer_norm | fuse_gemm"

_NO_CODES = "CoreML's provider takes no QuantizeLinear and no DequantizeLinear, so that all would run on the CPU"
_NO_PACKED = "CoreML's provider reads no packed weights; --runtime litert does"

_OPTIONS = {"ModelFormat": "MLProgram", "MLComputeUnits": "ALL", "RequireStaticInputShapes": "1"}

#: The newest opset, and version of the format, that the package's onnxruntime reads.
_OPSET, _FORMAT = 25, 13


def _readable(model: Model) -> int:
    """Give the newest opset that the package reads and at which all means the same; 0 where there is none."""
    return next((opset for opset in _kernels.equal_opsets(model) if opset <= _OPSET), 0)


def _problems(model: Model) -> tuple[str, ...]:
    newer = f"ops of opset {model.opset}, of which onnxruntime {coreml.VERSION} reads up to {_OPSET}"
    return _kernels.missing(model) or (() if model.opset <= _OPSET or _readable(model) else (newer,))


def _write(model: Model, folder: Path) -> Mapping[str, Any]:
    static, by_row = shaped(model)
    if static.opset > _OPSET:
        static = ort.declare(static, _readable(static))
    static.graph.ir_version = min(static.graph.ir_version or _FORMAT, _FORMAT)
    settings = {"graph_optimization_level": "ORT_ENABLE_ALL", "providers": {"CoreMLExecutionProvider": _OPTIONS}}
    return {**ort.write(static, folder, settings), "by_row": by_row}


RUNTIME = Runtime(
    frozenset({"fp16"}),
    {"fp32": f"{_FLOAT} | clean", "fp16": f"{_FLOAT} | fp16 | clean"},
    {
        "bf16": "CoreML computes in float32 and float16",
        "int8": _NO_CODES,
        "int8-dynamic": _NO_CODES,
        "int8-weights": _NO_PACKED,
        "int4": _NO_PACKED,
        "int3": _NO_PACKED,
        "int2": _NO_PACKED,
    },
    ort.available,
    _problems,
    _write,
    lambda folder, signature, own: ort.open_build(folder, signature, own_process=own),
    mends=_kernels.older_opset,
)
