"""Transposed convolutions: TRANSPOSE_CONV."""

from __future__ import annotations

import onnx_ir as ir

from ._attributes import integers, operand, text
from .biases import read_bias
from .layout import NHWC
from .program import Program
from .registry import converts
from .tensors import Tensor
from .windows import SAME, VALID, groups


@converts("ConvTranspose", codes="product")
def conv_transpose(node: ir.Node, to: Program) -> None:
    """Write x: [N, C, H, W], w: [C, M, kH, kW], with its bias: as far as it reaches; then what is wanted is cut out."""
    x, w, y = node.inputs[0], node.inputs[1], node.outputs[0]
    assert x is not None and w is not None
    shape, result = to.shape(x), to.shape(y)
    if len(shape) != 4:
        to.refuse(f"a convolution over {len(shape) - 2} axes")
    if groups(node) != 1:
        to.refuse("it has groups")
    if to.array(w) is None and to.stored(w) is None:
        to.refuse("its weight is not constant")
    if any(size != 1 for size in integers(node, "dilations", (1, 1))):
        to.refuse("its window is dilated")
    tensor, weight = to.read(x, NHWC), to.read(w, (1, 2, 3, 0))
    stride = integers(node, "strides", (1, 1))
    reach = tuple((n - 1) * s + k for n, s, k in zip(shape[2:], stride, weight.shape[1:3], strict=True))
    before = _before(node, reach, result[2:])
    bias = read_bias(to, operand(node, 2), result[1], tensor, weight)
    is_same = all(
        out == n * s and b == max(r - out, 0) // 2 and r >= out
        for n, s, r, b, out in zip(shape[2:], stride, reach, before, result[2:], strict=True)
    )
    sizes = (shape[0], *(result[2:] if is_same else reach), result[1])
    given = to.emit(
        "TRANSPOSE_CONV",
        [to.ints(sizes), weight, tensor, bias],
        sizes,
        tensor.dtype,
        padding=SAME if is_same else VALID,
        strideH=stride[0],
        strideW=stride[1],
    )
    wanted = (shape[0], *result[2:], result[1])
    to.give(y, given if is_same else _cut(to, given, (0, *before, 0), wanted), NHWC)


def _before(node: ir.Node, reach: tuple[int, ...], result: tuple[int, ...]) -> tuple[int, ...]:
    """Give how much is cut off before each axis."""
    total = [r - out for r, out in zip(reach, result, strict=True)]
    match text(node, "auto_pad", "NOTSET"):
        case "SAME_UPPER":
            return tuple(max(each, 0) // 2 for each in total)
        case "SAME_LOWER":
            return tuple(max(each, 0) - max(each, 0) // 2 for each in total)
        case "VALID":
            return (0,) * len(reach)
    if "output_shape" in node.attributes and "pads" not in node.attributes:
        return tuple(max(each, 0) - max(each, 0) // 2 for each in total)
    return integers(node, "pads", (0,) * 2 * len(reach))[: len(reach)]


def _cut(to: Program, tensor: Tensor, begin: tuple[int, ...], wanted: tuple[int, ...]) -> Tensor:
    """Cut the result out; what no window reached of it is a refusal, since it is the bias and not 0."""
    if any(b + w > size for b, w, size in zip(begin, wanted, tensor.shape, strict=True)):
        to.refuse("its result is larger than its windows reach")
    if tensor.shape == wanted:
        return tensor
    return to.emit("SLICE", [tensor, to.ints(begin), to.ints(wanted)], wanted)
