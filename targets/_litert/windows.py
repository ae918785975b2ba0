"""Windows: the paddings of convolutions and pools, as LiteRT has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ._attributes import integer, integers, text

SAME, VALID = 0, 1


@dataclass(frozen=True)
class Window:
    """What slides over the spatial axes: sizes, and the zeros that it meets before and after each axis.

    after: what the windows really reach, which is less than ONNX pads where the last one stops short.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def padded(self) -> bool:
        """Whether there is any padding."""
        return any(self.before) or any(self.after)

    @property
    def lifted(self) -> Window:
        """The same over an image of one row, where this slides over a sequence."""
        sides = (self.kernel, self.stride, self.dilation, self.before, self.after)
        return Window(*((first, *rest) for first, rest in zip((1, 1, 1, 0, 0), sides, strict=True)))

    def padding(self, size: Sequence[int], result: Sequence[int]) -> int | None:
        """Give the padding of LiteRT that does the same; None where neither does."""
        if not self.padded:
            return VALID
        same = [
            _same(n, out, k, s, d)
            for n, out, k, s, d in zip(size, result, self.kernel, self.stride, self.dilation, strict=True)
        ]
        if None in same or same != list(zip(self.before, self.after, strict=True)):
            return None
        return SAME


def _same(size: int, result: int, kernel: int, stride: int, dilation: int) -> tuple[int, int] | None:
    """Give the padding that SAME puts before and after; None where it gives another size."""
    if result != -(-size // stride):
        return None
    total = max((result - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def window(node: ir.Node, kernel: Sequence[int], size: Sequence[int], result: Sequence[int]) -> Window:
    """Read the window of a convolution or pool. size, result: the spatial axes of what it reads and gives."""
    rank = len(kernel)
    stride = integers(node, "strides", (1,) * rank)
    dilation = integers(node, "dilations", (1,) * rank)
    reach = [
        max((out - 1) * s + (k - 1) * d + 1 - n, 0)
        for n, out, k, s, d in zip(size, result, kernel, stride, dilation, strict=True)
    ]
    match text(node, "auto_pad", "NOTSET"):
        case "SAME_UPPER":
            before = tuple(total // 2 for total in reach)
        case "SAME_LOWER":
            before = tuple(total - total // 2 for total in reach)
        case "VALID":
            before = (0,) * rank
        case _:
            before = integers(node, "pads", (0,) * 2 * rank)[:rank]
    after = tuple(
        max((out - 1) * s + (k - 1) * d + 1 - n - b, 0)
        for n, out, k, s, d, b in zip(size, result, kernel, stride, dilation, before, strict=True)
    )
    return Window(tuple(kernel), stride, dilation, before, after)


def groups(node: ir.Node) -> int:
    """Give the groups of a convolution."""
    return integer(node, "group", 1)
