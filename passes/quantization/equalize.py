"""Equalize the ranges of the channels between two layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from polycast.model import named
from polycast.passbase import Numerics, Pass, PassContext

from ._channels import Group, groups, refuses_late


@dataclass(frozen=True)
class Equalize(Pass):
    """Scale the channels between two layers so that what makes a channel and what reads it have the same range.

    Where the constants that make channel c (weight, bias, bound of a Clip) reach ``a`` and the weights that read it
    reach ``b``, the first are divided and the second multiplied by the power of two nearest to ``sqrt(a / b)``. The
    bias and the bound count so that a channel of tiny weights does not blow up what it adds. A power of two scales
    floats without rounding: the outputs stay bit for bit, save for denormals and overflow. This is repeated until no
    channel moves; each move brings down the larger of a channel's two ranges, so that an end is reached.

    It goes through Relu, LeakyRelu, PRelu, pools, moves of elements, and joins of branches. A layer is a Conv,
    ConvTranspose, Gemm or MatMul, depthwise ones included. A site is a value whose channels were scaled.

    split_clip: whether a Clip such as Relu6 becomes a Relu and a Min with a bound per channel, which is exact too but
    one more operator to run. keep: names, op types and globs of layers whose weights stay as they are.
    Source: Nagel et al. 2019, arXiv:1906.04721, section 4.1.
    """

    numerics = Numerics.ROUNDING

    split_clip: bool = False
    keep: tuple[str, ...] = ()

    def rewrite(self, graph: ir.Model, ctx: PassContext) -> int:
        """Equalize every pair of layers that a factor can pass between; where it cannot, the reason is a skip."""
        if refuses_late(graph, ctx):
            return 0
        moved: set[str | None] = set()
        while True:
            # Read before acting: a Clip that is split gives its value's name away.
            names = [(group, group.value.name) for group in groups(graph, clips=self.split_clip)]
            now = {name for group, name in names if self._act(group, ctx)}
            if not now:
                return len(moved)
            moved |= now

    def _act(self, group: Group, ctx: PassContext) -> bool:
        """Scale the channels of ``group`` once; whether any of them moved."""
        layers = (*group.nodes, *(maker.slices.node for maker in group.makers))
        if group.value.producer() is None or any(named(layer, self.keep) for layer in layers):
            return False
        if group.reason:
            ctx.skip(group.nodes[0], group.reason)
        scale = _balance(group) if group.makers else np.ones(group.channels)
        if (scale == 1).all():
            return False
        reason = group.absorb(scale)
        if reason:
            ctx.skip(group.nodes[0], reason)
        return not reason


def _balance(group: Group) -> np.ndarray:
    """Give the power of two nearest to ``sqrt(a / b)`` for each channel: a is made upstream, b is read downstream.

    A channel that is all zero on one side, or not finite, stays as it is.
    """
    made = np.zeros(group.channels)
    for taker in group.takers:
        held = taker.index >= 0
        made[held] = np.maximum(made[held], taker.slices.largest()[taker.index[held]])
    read = np.max([consumer.largest() for consumer in group.consumers], axis=0)
    made, read = group.tied(made), group.tied(read)
    sound = (made > 0) & (read > 0) & np.isfinite(made) & np.isfinite(read)
    exponent = np.zeros(group.channels)
    exponent[sound] = np.round(np.log2(made[sound] / read[sound]) / 2)
    return np.exp2(exponent)
