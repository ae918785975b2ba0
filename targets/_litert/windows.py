"""Windows: the paddings of convolutions and pools, as LiteRT has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from ._attributes import integer, integers, text
from .program import Unsupported

SAME, VALID = 0, 1


@dataclass(frozen=True)
class Window:
    """What slides over the spatial axes: sizes, and the zeros that it meets before and after each axis.

    after: what the windows really reach, which is less than ONNX pads where the last one stops short.
    fixed: whether ``padding`` may go by the sizes; where they are those of an example it is ``always``, or none.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    fixed: bool = True
    always: int | None = None

    @property
    def padded(self) -> bool:
        """Whether there is any padding."""
        return any(self.before) or any(self.after)

    @property
    def lifted(self) -> Window:
        """The same over an image of one row, where this slides over a sequence."""
        sides = (self.kernel, self.stride, self.dilation, self.before, self.after)
        kernel, stride, dilation, before, after = (
            (first, *rest) for first, rest in zip((1, 1, 1, 0, 0), sides, strict=True)
        )
        return replace(self, kernel=kernel, stride=stride, dilation=dilation, before=before, after=after)

    def padding(self, size: Sequence[int], result: Sequence[int]) -> int | None:
        """Give the padding of LiteRT that does the same; None where neither does."""
        if self.always is not None:
            return self.always
        if not self.padded:
            return VALID
        if not self.fixed and max(self.stride) > 1:
            return None
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


def window(
    node: ir.Node, kernel: Sequence[int], size: Sequence[int], result: Sequence[int], fixed: bool = True
) -> Window:
    """Read the window of a convolution or pool. size, result: the spatial axes of what it reads and gives.

    fixed: whether these are the sizes of every run, and not of an example.
    """
    rank = len(kernel)
    stride = integers(node, "strides", (1,) * rank)
    dilation = integers(node, "dilations", (1,) * rank)
    reach = [
        max((out - 1) * s + (k - 1) * d + 1 - n, 0)
        for n, out, k, s, d in zip(size, result, kernel, stride, dilation, strict=True)
    ]
    declared = integers(node, "pads", (0,) * 2 * rank)
    least = [n + b + a for n, b, a in zip(size, declared[:rank], declared[rank:], strict=True)]
    if text(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID") and any(
        (k - 1) * d >= n for k, d, n in zip(kernel, dilation, least, strict=True)
    ):
        raise Unsupported("its window is larger than what it slides over")
    always = None
    match text(node, "auto_pad", "NOTSET"):
        case "SAME_UPPER":
            before = tuple(total // 2 for total in reach)
            always = None if fixed else SAME
        case "SAME_LOWER":
            before = tuple(total - total // 2 for total in reach)
        case "VALID":
            before = (0,) * rank
        case _:
            before = declared[:rank]
    after = tuple(
        max((out - 1) * s + (k - 1) * d + 1 - n - b, 0)
        for n, out, k, s, d, b in zip(size, result, kernel, stride, dilation, before, strict=True)
    )
    if not fixed and "pads" in node.attributes and not integer(node, "ceil_mode", 0):
        after = declared[rank:]
    return Window(tuple(kernel), stride, dilation, before, after, fixed, always)


def groups(node: ir.Node) -> int:
    """Give the groups of a convolution."""
    return integer(node, "group", 1)
