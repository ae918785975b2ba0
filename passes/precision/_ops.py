"""What float16 means for each operator: worth it, unsafe, or neither."""

from __future__ import annotations

import onnx_ir as ir

#: Operators that multiply and accumulate: what float16 is for. Runtimes accumulate them in float32.
_WORTH = frozenset(
    "Attention Conv ConvTranspose DeformConv Einsum FusedConv FusedGemm FusedMatMul Gemm GroupQueryAttention MatMul"
    " MultiHeadAttention PackedMultiHeadAttention RotaryEmbedding".split()
)

#: Operators that keep float32, by reason. The list follows PyTorch's autocast where that has the operator.
_UNSAFE = {
    "takes exponentials": "Cosh Exp LogSoftmax Sinh Softmax Softplus",
    "raises to a power or divides by what may be small": "Pow Reciprocal",
    "is steep where float16 is coarse": "Acos Acosh Asin Asinh Atanh Log Tan",
    "sums over many elements": (
        "CumProd CumSum LRN LpNormalization LpPool ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMean"
        " ReduceProd ReduceSum ReduceSumSquare NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss DFT STFT Det"
    ),
    "divides by a variance without the means to compute it in float32": (
        "BatchNormalization InstanceNormalization MeanVarianceNormalization"
    ),
    "takes an angle, of which float16 has steps of 1 from 2048 on": "Cos Sin",
    "carries a state from step to step": "GRU LSTM RNN",
    "computes coordinates, or an order that ties would change": (
        "AffineGrid GridSample MaxRoiPool NonMaxSuppression RoiAlign TopK Unique"
    ),
    "is quantized": "ConvInteger DequantizeLinear DynamicQuantizeLinear MatMulInteger MatMulNBits QuantizeLinear",
    "makes numbers rather than taking them": (
        "Bernoulli BlackmanWindow ConstantOfShape EyeLike HammingWindow HannWindow MelWeightMatrix Multinomial"
        " RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range"
    ),
}
_REASONS = {op: reason for reason, ops in _UNSAFE.items() for op in ops.split()}

#: Operators that read either type and whose result does not depend on which; they are no place for this pass.
_EITHER = frozenset(("Cast", "Shape", "Size", "IsInf", "IsNaN"))


def reads_either(node: ir.Node) -> bool:
    """Whether ``node`` reads float16 and float32 alike."""
    return node.domain == "" and node.op_type in _EITHER


def is_worth_it(node: ir.Node) -> bool:
    """Whether ``node`` multiplies and accumulates; an outer product, one multiplication an element, does not."""
    if node.op_type not in _WORTH:
        return False
    left = node.inputs[0] if node.inputs else None
    return not (node.op_type == "MatMul" and left is not None and left.shape is not None and left.shape[-1:] == (1,))


def is_angle(node: ir.Node) -> bool:
    """Whether ``node`` takes an angle."""
    return node.op_type in ("Cos", "Sin")


def why_unsafe(node: ir.Node) -> str:
    """Give the reason why the operator of ``node`` keeps float32, or ""."""
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
        return "what lies in its body keeps float32"
    if node.domain == "ai.onnx.ml":
        return "classical machine learning has no float16"
    if node.op_type in _REASONS:
        return _REASONS[node.op_type]
    if node.op_type.startswith(("QLinear", "Quant", "Dequant")):
        return "is quantized"
    if node.op_type.endswith("LayerNormalization") and node.attributes.get_int("stash_type", 1) != 1:
        return "divides by a variance without the means to compute it in float32"
    return ""
