"""The error function, and the activation that is made of it."""

from __future__ import annotations

import onnx_ir as ir

from ._attributes import text
from .program import Program
from .registry import converts
from .tensors import Tensor

#: Numbers under this count as 0, whose quotients below would be none.
_LEAST = 1e-18

#: Numbers over this count as this, whose erf is 1 in float32: infinity would give quotients that are none.
_MOST = 10.0


@converts("Gelu")
def gelu(node: ir.Node, to: Program) -> None:
    """Write ``x * (1 + erf(x / sqrt(2))) / 2``, or what is near it by tanh."""
    x = node.inputs[0]
    assert x is not None
    order = to.common_order([x], len(to.shape(x)))
    tensor = to.read(x, order)
    to.give(node.outputs[0], _gelu(to, tensor, text(node, "approximate", "none") == "tanh"), order)


@converts("Erf")
def erf(node: ir.Node, to: Program) -> None:
    """Write ``(gelu(y) + gelu(-y)) / y`` for ``y = sqrt(2) * x``, which is erf(x), and 0 at 0.

    The two terms are of one sign, so that nothing cancels.
    """
    x = node.inputs[0]
    assert x is not None
    order = to.common_order([x], len(to.shape(x)))
    tensor = to.read(x, order)
    y = to.emit("MUL", [tensor, to.number(2**0.5)], tensor.shape)
    for kind, bound in (("MAXIMUM", -_MOST), ("MINIMUM", _MOST)):
        y = to.emit(kind, [to.number(bound), y], y.shape)  # in this order, of which NaN comes out as NaN
    size = to.emit("MAXIMUM", [to.emit("ABS", [y], y.shape), to.number(_LEAST)], y.shape)
    both = to.emit("ADD", [_gelu(to, y, False), _gelu(to, to.emit("NEG", [y], y.shape), False)], y.shape)
    sign = to.emit("DIV", [y, size], y.shape)
    to.give(node.outputs[0], to.emit("MUL", [to.emit("DIV", [both, size], y.shape), sign], y.shape), order)


def _gelu(to: Program, x: Tensor, approximate: bool) -> Tensor:
    return to.emit("GELU", [x], x.shape, approximate=approximate)
