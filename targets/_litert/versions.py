"""The version that an operator needs: what a runtime looks at before it opens a file.

Source: TensorFlow Lite, tools/versioning/op_version.cc.
"""

from __future__ import annotations

from .tensors import Operator

#: Operators that came to read int8 in their second version.
_SECOND = {
    "ABS", "ADD", "ARG_MAX", "ARG_MIN", "AVERAGE_POOL_2D", "BATCH_MATMUL", "CONCATENATION", "DEPTH_TO_SPACE",
    "DEQUANTIZE", "EQUAL", "GATHER", "GELU", "GREATER", "GREATER_EQUAL", "LEAKY_RELU", "LESS", "LESS_EQUAL", "LOGISTIC",
    "LOG_SOFTMAX", "MAXIMUM", "MAX_POOL_2D", "MEAN", "MINIMUM", "MUL", "NOT_EQUAL", "PACK", "PAD", "PADV2", "QUANTIZE",
    "REDUCE_MAX", "REDUCE_MIN", "RELU", "RELU6", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "RSQRT", "SLICE",
    "SOFTMAX", "SPACE_TO_DEPTH", "SPLIT", "SPLIT_V", "SQUARED_DIFFERENCE", "STRIDED_SLICE", "SUB", "SUM", "TANH",
    "TILE", "TOPK_V2", "TRANSPOSE", "TRANSPOSE_CONV", "UNPACK",
}  # fmt: skip
#: Operators that came to read it in another.
_LATER = {"CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4}
#: Operators whose first version there is no more.
_FIRST = {"BROADCAST_TO": 2}
#: Operators that round floats as they run, to multiply them by codes with a scale for each channel.
_HYBRID = {"CONV_2D": 5, "DEPTHWISE_CONV_2D": 6, "FULLY_CONNECTED": 12}


def version(operator: Operator) -> int:
    """Give the version of ``operator``, from what it reads and how."""
    return max(_by_type(operator), _by_form(operator), _FIRST.get(operator.kind, 1))


def _by_type(operator: Operator) -> int:
    activation = next((t for t in operator.inputs if t is not None and t.data is None), operator.inputs[0])
    if activation is None or activation.dtype != "int8":
        weight = operator.inputs[1].dtype if len(operator.inputs) > 1 and operator.inputs[1] is not None else ""
        return _HYBRID.get(operator.kind, 1) if weight in ("int4", "int8") else 1
    return _LATER.get(operator.kind, 2 if operator.kind in _SECOND else 1)


def _by_form(operator: Operator) -> int:
    """Give the version that brought what ``operator`` does, whatever it reads."""
    rank = max((len(t.shape) for t in (*operator.inputs, *operator.outputs) if t is not None), default=0)
    first = operator.inputs[0].dtype if operator.inputs and operator.inputs[0] is not None else ""
    match operator.kind:
        case "TRANSPOSE_CONV" if len(operator.inputs) > 3:
            return 3  # a bias
        case "RESIZE_BILINEAR" | "RESIZE_NEAREST_NEIGHBOR" if operator.options.get("halfPixelCenters"):
            return 3
        case "DEPTHWISE_CONV_2D" if operator.options.get("dilationHFactor", 1) > 1:
            return 2
        case "FULLY_CONNECTED" if operator.options.get("keepNumDims"):
            return 5
        case "DEQUANTIZE" if first == "float16":
            return 3
        case "TRANSPOSE" if rank > 4:
            return 5
    return 1
