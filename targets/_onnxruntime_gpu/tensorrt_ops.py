"""Which nodes TensorRT takes, by the table of its parser, and a graph that it takes more of.

Source: onnx-tensorrt 10.1, docs/operators.md, for the ops. What it does not take, the CUDA provider does, which stands
behind it. TensorRT Developer Guide, Explicit Quantization: activations on symmetric int8 grids, biases in float.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from polycast.model import Model, graphs, name_of

from . import cuda_kernels

#: The version that is installed beside onnxruntime-gpu, whose provider is linked with libnvinfer.so.10.
VERSION = "10.16.1.11"

#: The libraries by which no loader would look, by the package that holds them, each after those that it needs.
PRELOAD = {"tensorrt_libs": ["libnvinfer.so.10", "libnvinfer_plugin.so.10", "libnvonnxparser.so.10"]}

_KNOWN = frozenset(
    """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast CastLike Ceil Celu
    Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DeformConv DepthToSpace DequantizeLinear
    Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm
    GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization HardSigmoid
    HardSwish Hardmax Identity If ImageScaler InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu
    Less LessOrEqual Log LogSoftmax Loop LpNormalization LpPool MatMul Max MaxPool Mean MeanVarianceNormalization Min
    Mish Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or PRelu Pad ParametricSoftplus Pow QuantizeLinear RNN
    RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum
    ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize
    ReverseSequence RoiAlign Round ScaledTanh Scan Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign
    Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu
    Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
    """.split()
)

#: The newest opset whose ops the parser reads.
_OPSET = 20

_QUANTIZED = ("QuantizeLinear", "DequantizeLinear")


def prepared(model: Model) -> Model:
    """Give ``model`` with biases in float where they were stored in int32, at the opset that CUDA has most kernels for.

    A bias becomes the numbers that DequantizeLinear makes of it, so that nothing else comes out.
    """
    draft = model.draft()
    changed = 0
    for graph in graphs(draft):
        for node in list(graph):
            if node.op_type == "DequantizeLinear" and (wide := _bias(node)) is not None:
                value = ir.Value(
                    name=f"{name_of(node)}_float", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(wide.shape)
                )
                value.const_value = ir.tensor(wide, name=value.name)
                owner = graph.graph if isinstance(graph, ir.Function) else graph
                owner.register_initializer(value)
                ir.convenience.replace_all_uses_with(node.outputs[0], value)
                graph.remove(node, safe=True)
                changed += 1
    return cuda_kernels.declared(replace(model, graph=draft) if changed else model)


def _bias(node: ir.Node) -> np.ndarray | None:
    """Give the numbers that a bias of int32 stands for."""
    codes, scale = (value.const_value if value is not None else None for value in node.inputs[:2])
    if codes is None or scale is None or codes.dtype != ir.DataType.INT32:
        return None
    wide: np.ndarray = (codes.numpy().astype(np.float32) * scale.numpy()).astype(np.float32)
    return wide


def options(model: Model) -> dict[str, str]:
    """Give the provider what the dtypes of ``model`` ask for. A path under ~ is the user's where the build runs."""
    nodes = [node for graph in graphs(model.graph) for node in graph]
    dtypes = {value.dtype for node in nodes for value in node.outputs}
    return {
        "trt_fp16_enable": str(int(ir.DataType.FLOAT16 in dtypes)),
        "trt_int8_enable": str(int(any(node.op_type in _QUANTIZED for node in nodes))),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": "~/.cache/polycast/tensorrt",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": "~/.cache/polycast/tensorrt",
    }


def left_to_cuda(model: Model) -> dict[str, str]:
    """Give the nodes that TensorRT does not take: name -> why."""
    nodes = [node for graph in graphs(model.graph) for node in graph]
    return {name_of(node): reason for node in nodes if (reason := _why_not(node))}


def fallback(model: Model) -> dict[str, str]:
    """Give the nodes that neither TensorRT nor the CUDA provider behind it takes: name -> why."""
    shaped = prepared(model)
    behind, ahead = cuda_kernels.fallback(shaped), left_to_cuda(shaped)
    return {name: f"{reason}; {behind[name]}" for name, reason in ahead.items() if name in behind}


def _why_not(node: ir.Node) -> str:
    if node.domain not in ("", "ai.onnx"):
        return f"TensorRT does not know {node.domain}.{node.op_type}"
    if node.op_type not in _KNOWN:
        return f"TensorRT does not know {node.op_type}"
    if node.op_type in _QUANTIZED and len(node.inputs) > 2 and (zero := node.inputs[2]) is not None:
        return _unsuited(zero)
    return ""


def _unsuited(zero: ir.Value) -> str:
    if zero.dtype not in (ir.DataType.INT8, ir.DataType.INT4, ir.DataType.FLOAT8E4M3FN):
        return f"TensorRT quantizes to no {zero.dtype.name.lower() if zero.dtype else 'unknown type'}"
    known: Any = zero.const_value
    return "" if known is not None and not np.any(known.numpy()) else "TensorRT quantizes with zero at 0 only"
