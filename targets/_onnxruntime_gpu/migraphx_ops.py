"""Which nodes onnxruntime's MIGraphX provider takes, by the list in its source.

Source: onnxruntime, migraphx_execution_provider.cc, ``mgx_supported_ops`` and ``GetCapability``; names that the library
of onnxruntime-migraphx 1.27.1 does not hold are left out.
"""

from __future__ import annotations

from polycast.model import Model, graphs, name_of

#: Which version of onnxruntime-migraphx the list is of.
VERSION = "1.27.1"

#: With more nodes than this that it does not know, the provider takes none at all.
_MOST_UNKNOWN = 10

_KNOWN = frozenset(
    """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization BiasGelu Cast
    Ceil Celu Clip Concat Constant ConstantOfShape Conv ConvInteger ConvTranspose Cos Cosh CumSum DepthToSpace
    DequantizeLinear Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand EyeLike FastGelu Flatten Floor
    GRU Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GroupNorm
    GroupNormalization GroupQueryAttention HardSigmoid HardSwish Identity If InstanceNormalization LRN LSTM
    LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop LpNormalization MatMul MatMulInteger MatMulNBits
    Max MaxPool Mean Min Mod Mul MultiHeadAttention Multinomial Neg NegativeLogLikelihoodLoss NhwcConv
    NonMaxSuppression NonZero Not OneHot Or PRelu Pad Pow QLinearAdd QLinearConv QLinearMatMul QuantizeLinear QuickGelu
    RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum
    ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize
    ReverseSequence RotaryEmbedding Round Scatter ScatterElements ScatterND Selu Shape Sigmoid Sign
    SimplifiedLayerNormalization Sin Sinh SkipLayerNormalization SkipSimplifiedLayerNormalization Slice Softmax
    SoftmaxCrossEntropyLoss Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile
    TopK Transpose Trilu Unsqueeze Upsample Where Xor
    """.split()
)


def fallback(model: Model) -> dict[str, str]:
    """Give the nodes that it does not take: name -> why."""
    nodes = [node for graph in graphs(model.graph) for node in graph]
    unknown = {name_of(n): f"the MIGraphX provider does not know {n.op_type}" for n in nodes if n.op_type not in _KNOWN}
    if len(unknown) <= _MOST_UNKNOWN:
        return unknown
    example = next(iter(unknown.values()))
    reason = f"the MIGraphX provider takes nothing where it does not know more than {_MOST_UNKNOWN} nodes: {example}"
    return {name_of(node): reason for node in nodes}
