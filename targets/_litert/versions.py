"""The version that an operator needs: what a runtime looks at before it opens a file.

Source: TensorFlow Lite, tools/versioning/op_version.cc.
"""

from __future__ import annotations

from .tensors import Operator, Tensor

#: Operators that came to read int8 in their second version.
_SECOND = {
    "ABS", "ADD", "ARG_MAX", "ARG_MIN", "AVERAGE_POOL_2D", "BATCH_MATMUL", "CONCATENATION", "DEPTH_TO_SPACE",
    "DEQUANTIZE", "EQUAL", "GATHER", "GELU", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL", "LOGISTIC",
    "LOG_SOFTMAX", "MAXIMUM", "MAX_POOL_2D", "MEAN", "MINIMUM", "MIRROR_PAD", "MUL", "NOT_EQUAL", "PACK", "PAD",
    "PADV2", "REDUCE_MAX", "REDUCE_MIN", "RELU", "RELU6", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "RSQRT",
    "SLICE", "SOFTMAX", "SPACE_TO_DEPTH", "SPLIT", "SPLIT_V", "SQUARED_DIFFERENCE", "STRIDED_SLICE", "SUB", "SUM",
    "TANH", "TOPK_V2", "TRANSPOSE", "TRANSPOSE_CONV", "UNPACK",
}  # fmt: skip
#: Operators that came to read it in another.
_LATER = {"CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4, "TILE": 3}
#: The version that brought five axes, and 64-bit integers.
_RANK_5 = {"PAD": 4, "PADV2": 4, "SLICE": 5, "STRIDED_SLICE": 4, "TRANSPOSE": 4}
_INT64 = {"ADD": 4, "MUL": 5, "SUB": 4}
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
    options, present = operator.options, [t for t in operator.inputs if t is not None]
    if len(present[0].shape) > 4 and operator.kind in _RANK_5:
        more = operator.kind == "TRANSPOSE" and len(present[0].shape) > 5
        return 6 if more else _RANK_5[operator.kind]
    if present[0].dtype == "int64" and operator.kind in _INT64:
        return _INT64[operator.kind]
    match operator.kind:
        case "CONV_2D" if present[0].shape[-1] != present[1].shape[-1]:
            return 6  # groups
        case "TRANSPOSE_CONV" if len(present) > 3:
            return 3  # a bias
        case "RESIZE_BILINEAR" | "RESIZE_NEAREST_NEIGHBOR" if options.get("halfPixelCenters"):
            return 3
        case "RESIZE_NEAREST_NEIGHBOR" if options.get("alignCorners"):
            return 3
        case "DEPTHWISE_CONV_2D" if options.get("dilationHFactor", 1) > 1 or options.get("dilationWFactor", 1) > 1:
            return 2
        case "FULLY_CONNECTED" if options.get("keepNumDims"):
            return 5
        case "MUL" if _grows(operator):
            return 3
        case "DEQUANTIZE":
            return {"float16": 3, "int4": 6}.get(present[0].dtype, 5 if _has_channels(present[0]) else 1)
    return 1


def _grows(operator: Operator) -> bool:
    """Whether a product of codes is multiplied by 1 or more to be a code of the result."""
    scales = [t.grid.scale[0] for t in (*operator.inputs, *operator.outputs) if t is not None and t.grid is not None]
    return len(scales) == 3 and scales[0] * scales[1] / scales[2] >= 1


def _has_channels(tensor: Tensor) -> bool:
    return tensor.grid is not None and len(tensor.grid.scale) > 1
