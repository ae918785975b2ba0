"""Where the zero of a token lies among its 256 codes, going by the operator that makes the token."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ._slices import constant

#: The zero point of a token that may go as far down as up.
MIDDLE = 128

#: The zero point of a token that dips below zero a little: 191 codes are left for what lies above. Should the dip be as
#: deep as the top is high after all, that is one bit less than MIDDLE leaves.
DIPPING = 64

#: The smallest scale.
TINY = float(np.finfo(np.float32).tiny)

_NEVER_NEGATIVE = frozenset({"Abs", "Exp", "HardSigmoid", "Relu", "Sigmoid", "Softmax", "Softplus", "Sqrt"})

#: Their least value is between -0.38 and -0.16, however large the others get.
_DIPS = frozenset({"BiasGelu", "FastGelu", "Gelu", "HardSwish", "Mish", "QuickGelu", "Swish"})

_MOVES = frozenset({"Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


def usual_zero(value: ir.Value) -> int:
    """Give the zero point that suits the operator that makes ``value``: 0 where that is never negative."""
    node = value.producer()
    while node is not None and node.op_type in _MOVES and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None:
        return MIDDLE
    if node.op_type in _NEVER_NEGATIVE or (node.op_type == "Clip" and _clips_at_zero(node)):
        return 0
    return DIPPING if node.op_type in _DIPS or _is_silu(node) else MIDDLE


def _clips_at_zero(node: ir.Node) -> bool:
    least = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return least is not None and float(least.reshape(())) >= 0


def _is_silu(node: ir.Node) -> bool:
    """Whether ``node`` is ``x * sigmoid(x)``."""
    if node.op_type != "Mul":
        return False
    a, b = node.inputs
    return any(
        gate is not None
        and (maker := gate.producer()) is not None
        and maker.op_type == "Sigmoid"
        and maker.inputs[0] is x
        for gate, x in ((a, b), (b, a))
    )
