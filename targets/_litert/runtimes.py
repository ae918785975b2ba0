"""The oldest runtime that opens a file: what TensorFlow calls min_runtime_version.

Source: LiteRT, tflite/converter/tools/versioning/runtime_version.cc.
"""

from __future__ import annotations

from collections.abc import Iterable

from .tensors import Operator
from .versions import version

#: By operator, the release that brought its first version, its second, and so on.
_RELEASES = """
ABS 1.13.0 2.4.0 2.5.0 2.6.0 2.12.0
ADD 1.5.0 1.14.0 2.4.0 2.6.0 2.13.0 2.23.0
ARG_MAX 1.9.0 1.14.0 2.9.0
ARG_MIN 1.9.0 1.14.0 2.9.0
AVERAGE_POOL_2D 1.5.0 1.14.0 2.3.0
BATCH_MATMUL 2.3.0 2.3.0 2.4.0 2.5.0
BROADCAST_TO - 2.5.0 2.5.0 2.23.0
CAST 1.5.0 2.7.0 2.8.0 2.9.0 2.12.0 2.15.0 2.17.0 2.21.0 2.23.0
CEIL 1.14.0
CONCATENATION 1.5.0 1.14.0 2.3.0 2.14.0 2.21.0 2.23.0 2.23.0
CONV_2D 1.5.0 1.14.0 1.14.0 2.3.0 2.4.0 2.9.0 2.11.0 2.15.0
COS 1.14.0 2.23.0
CUMSUM 2.4.0
DEPTHWISE_CONV_2D 1.5.0 1.12.0 1.14.0 2.2.0 2.3.0 2.3.0 2.11.0
DEPTH_TO_SPACE 2.1.0 2.5.0
DEQUANTIZE 1.13.1 1.14.0 1.15.0 2.2.0 2.7.0 2.18.0 2.21.0 2.22.0 2.23.0
DIV 1.6.0 2.3.0
ELU 1.14.0
EQUAL 1.14.0 1.14.0 2.3.0 2.13.0 2.21.0
EXP 1.7.0 2.12.0
FILL 1.13.0 2.3.0 2.5.0 2.12.0 2.23.0
FLOOR 1.9.0
FLOOR_DIV 1.14.0 1.14.0 2.13.0
FULLY_CONNECTED 1.5.0 1.10.0 1.14.0 1.14.0 2.0.0 2.1.0 2.3.0 2.3.0 2.3.0 2.11.0 2.15.0 2.17.0 2.18.0 2.21.0
GATHER 1.6.0 1.14.0 1.15.0 2.4.0 2.5.0 2.13.0 2.15.0 2.23.0
GATHER_ND 1.14.0 2.3.0 2.5.0 2.13.0 2.16.0 2.23.0
GELU 2.9.0 2.9.0 2.23.0
GREATER 1.14.0 1.14.0
GREATER_EQUAL 1.14.0 1.14.0 2.13.0
HARD_SWISH 1.15.0
L2_NORMALIZATION 1.5.0 1.14.0
L2_POOL_2D 1.5.0
LEAKY_RELU 1.13.1 2.3.0
LESS 1.14.0 1.14.0 2.13.0
LESS_EQUAL 1.14.0 1.14.0
LOG 1.14.0 2.15.0
LOGICAL_AND 1.11.0
LOGICAL_NOT 1.11.0
LOGICAL_OR 1.11.0
LOGISTIC 1.14.0 1.14.0 2.3.0
LOG_SOFTMAX 1.14.0 1.14.0
LSTM 1.7.0 1.10.0 1.14.0 2.3.0
MAXIMUM 1.14.0 1.14.0 2.3.0 2.3.0
MAX_POOL_2D 1.5.0 1.14.0 2.3.0
MEAN 1.6.0 1.14.0 2.4.0
MINIMUM 1.14.0 1.14.0 2.3.0 2.3.0
MIRROR_PAD 1.13.1 2.3.0 2.12.0
MUL 1.5.0 1.14.0 1.15.0 2.3.0 2.6.0 2.11.0 2.13.0 2.23.0
NEG 1.9.0
NOT_EQUAL 1.14.0 1.14.0 2.3.0 2.21.0
ONE_HOT 1.11.0
PACK 1.11.0 1.14.0 2.3.0 2.13.0 2.23.0
PAD 1.5.0 1.14.0 2.4.0 2.6.0 2.20.0 2.23.0
PADV2 1.9.0 1.14.0 2.4.0 2.6.0 2.20.0 2.23.0
POW 1.10.0
PRELU 1.8.0
QUANTIZE 1.14.0 1.15.0 2.7.0 2.21.0 2.21.0 2.21.0
RANGE 1.13.0 2.14.0
REDUCE_ALL 2.6.0
REDUCE_ANY 1.11.0
REDUCE_MAX 1.11.0 1.14.0 2.5.0
REDUCE_MIN 1.11.0 1.14.0 2.5.0
REDUCE_PROD 1.11.0 2.6.0
RELU 1.5.0 2.1.0 2.5.0
RELU6 1.5.0 1.14.0 2.5.0
RELU_0_TO_1 2.10.0
RELU_N1_TO_1 1.5.0
RESHAPE 1.5.0
RESIZE_BILINEAR 1.7.0 1.14.0 2.2.0 2.5.0
RESIZE_NEAREST_NEIGHBOR 1.13.1 1.14.0 2.3.0 2.4.0
REVERSE_V2 1.14.0 2.2.0 2.5.0 2.23.0
ROUND 1.14.0
RSQRT 1.10.0 2.5.0 2.15.0
SCATTER_ND 2.1.0
SELECT_V2 2.2.0 2.12.0
SHAPE 1.10.0
SIGN 2.11.0 2.12.0
SIN 1.9.0 2.23.0
SLICE 1.14.0 1.14.0 1.14.0 2.4.0 2.5.0 2.14.0 2.21.0 2.23.0
SOFTMAX 1.5.0 1.14.0 2.3.0 2.23.0
SPACE_TO_DEPTH 1.5.0 1.14.0
SPLIT 1.5.0 1.14.0 1.14.0 2.3.0 2.23.0
SPLIT_V 1.13.1 2.3.0 2.23.0
SQRT 1.10.0 2.21.0
SQUARE 1.12.0
SQUARED_DIFFERENCE 1.13.1 2.5.0
STRIDED_SLICE 1.6.0 1.14.0 2.1.0 2.2.0 2.5.0 2.6.0 2.14.0 2.14.0
SUB 1.6.0 1.14.0 2.3.0 2.4.0 2.4.0
SUM 1.10.0 1.15.0
TANH 1.14.0 1.14.0 2.3.0
TILE 1.10.1 2.2.0 2.8.0
TOPK_V2 1.7.0 1.14.0 2.13.0
TRANSPOSE 1.6.0 1.14.0 1.15.0 2.3.0 2.4.0 2.12.0 2.14.4 2.22.0 2.23.0
TRANSPOSE_CONV 1.9.0 2.2.0 2.3.0 2.13.0 2.15.0
UNIDIRECTIONAL_SEQUENCE_LSTM 1.13.1 1.14.0 2.3.0 2.12.0
UNPACK 1.11.0 1.14.0 2.2.0 2.3.0 2.22.0 2.23.0
"""

_BY_OPERATOR = {name: releases for name, *releases in map(str.split, _RELEASES.strip().splitlines())}

#: Of how many bytes the entry is, whatever it says: TensorFlow fills it in place.
_SIZE = 16


def oldest(operators: Iterable[Operator]) -> str:
    """Give the first release that knows every one of ``operators`` in its version; 1.5.0 is the first of all."""
    return max(map(came_with, operators), key=_parts, default="1.5.0")


def entry(operators: Iterable[Operator]) -> bytes:
    """Give what the file says of it."""
    return oldest(operators).encode().ljust(_SIZE, b"\0")


def came_with(operator: Operator) -> str:
    """Give the release that brought ``operator`` in its version."""
    releases, number = _BY_OPERATOR.get(operator.kind, []), version(operator)
    return releases[number - 1] if number <= len(releases) else "1.5.0"  # what is not listed says nothing


def is_newer(release: str, other: str) -> bool:
    """Whether ``release`` came after ``other``."""
    return _parts(release) > _parts(other)


def _parts(release: str) -> tuple[int, ...]:
    return tuple(map(int, release.split(".")))
