"""Move the difficulty of quantizing activations into the weights, as far as that pays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from polycast.calibrating.observe import observe
from polycast.calibrating.taps import ROWS_KEPT, Seen, Tap, Want
from polycast.model import name_of, named
from polycast.passbase import Numerics, Pass, PassContext

from ._channels import Group, groups, refuses_late
from ._layout import MOVES
from ._rounded import Activation, as_matrix, error

#: The exponents that a search tries.
_GRID = tuple(step / 10 for step in range(11))

#: Rows that a search looks at: half of them choose alpha, the others confirm it.
_ROWS = 512

#: Bytes of rows that are observed at a time; more groups than these hold take another pass over the samples.
_AT_A_TIME = 256 << 20


@dataclass(frozen=True)
class SmoothQuant(Pass):
    """Divide each channel of an activation by ``max|x|^alpha / max|w|^(1 - alpha)`` and multiply its weights by it.

    Outliers in few channels of an activation take the resolution of an 8-bit grid from all others. Once divided by a
    factor per channel that the layer before or a normalisation absorbs, the activation is easier to quantize and the
    weights are harder; alpha says how much is moved. The factors are powers of two, so that the float model computes
    the same (within rounding, where a normalisation multiplies in another order). Convolutions are smoothed alike.
    A site is a value whose channels were scaled.

    alpha: 0 to 1, or -1 to search it for each value: that which makes the layers' outputs, quantized to 8 bits, come
    closest to their float outputs on rows of the calibration samples.
    activations: how they are quantized later: "tensor", one grid for all, or "token", one for each row.
    margin: the least share of the squared error that has to go, on rows that alpha was not searched on.
    explicit: whether a new Mul divides where nothing upstream can absorb that. keep: names, op types and globs of
    layers that stay as they are.
    Source: Xiao et al. 2022, arXiv:2211.10438, section 4.
    """

    numerics = Numerics.ROUNDING
    needs = ("calibration",)

    alpha: float = -1.0
    activations: str = "tensor"
    margin: float = 0.1
    explicit: bool = False
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.alpha != -1 and not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is from 0 to 1, or -1 to search it, not {self.alpha}")
        if self.activations not in ("tensor", "token"):
            raise ValueError(f'activations is "tensor" or "token", not {self.activations!r}')
        if not 0 < self.margin < 1:
            raise ValueError(f"margin is between 0 and 1, not {self.margin}")

    def rewrite(self, graph: ir.Model, ctx: PassContext) -> int:
        """Smooth every activation that gains; of the others each has its reason, with the figures."""
        if refuses_late(graph, ctx):
            return 0
        sites = 0
        # The last first: what a group takes from the weights before it changes how those see their own inputs.
        for batch in _batches(self._candidates(graph, ctx)):
            seen = observe(graph, [Tap(str(g.value.name), Want.CHANNELS | Want.ROWS, g.axis) for g in batch], ctx)
            for group in batch:
                reason = self._smooth(group, seen.get(str(group.value.name)))
                sites += not reason
                if reason:
                    ctx.skip(group.nodes[0], reason)
        return sites

    def _candidates(self, graph: ir.Model, ctx: PassContext) -> list[Group]:
        found = []
        for group in reversed(groups(graph)):
            inside = group.value.producer() is not None or self.explicit
            if any(named(node, self.keep) for node in group.nodes) or not inside:
                continue
            if group.reason and not (self.explicit and group.closed):
                ctx.skip(group.nodes[0], group.reason)
            elif ctx.calibration is None:
                ctx.skip(group.nodes[0], "no calibration samples")
            elif self.activations == "tensor" and group.takers and (between := _quantized_between(group)) is not None:
                ctx.skip(group.nodes[0], f"what {name_of(between)} ({between.op_type}) reads has a grid of its own")
            elif any(as_matrix(slices.node) is None for slices in group.consumers):
                ctx.skip(group.nodes[0], "its weight has more than two axes")
            else:
                found.append(group)
        return found

    def _smooth(self, group: Group, seen: Seen | None) -> str:
        """Scale the channels of ``group``; give the reason where that was not done."""
        if seen is None or seen.rows is None or seen.channels is None or len(seen.rows) < 2:
            return "the calibration samples show too little of what it reads"
        activation = Activation.of(seen.rows[:: -(-len(seen.rows) // _ROWS)], seen.channels.largest)
        weights = [matrix for slices in group.consumers if (matrix := as_matrix(slices.node)) is not None]
        halves = activation.halves()
        per_row = self.activations == "token"
        plain = np.ones(group.channels)
        scales = {
            alpha: _scale(group, activation.largest, alpha) for alpha in (_GRID if self.alpha < 0 else (self.alpha,))
        }
        alpha = min(scales, key=lambda one: error(halves[0], weights, scales[one], per_row=per_row))
        before, after = (error(halves[1], weights, s, per_row=per_row) for s in (plain, scales[alpha]))
        if not after <= before * (1 - self.margin):
            change = f"from {before:.3g} to {after:.3g}, not down by {self.margin:.0%}"
            return f"smoothing with alpha {alpha:g} brings the squared error of its layers {change}"
        return group.absorb(scales[alpha], explicit=self.explicit)


def _quantized_between(group: Group) -> ir.Node | None:
    """Give a node between the channels and what absorbs the factor whose input would get a grid for other ranges."""
    absorbing = {taker.slices.node for taker in group.takers}
    node = group.value.producer()
    while node is not None and node not in absorbing:
        if node.op_type not in _KEEP_RANGES:
            return node
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return None


#: What gives the ranges of its channels that it reads, or has no grid on its input where a layer comes before.
_KEEP_RANGES = (*MOVES, "Clip", "LeakyRelu", "MaxPool", "PRelu", "Relu")


def _scale(group: Group, largest: np.ndarray, alpha: float) -> np.ndarray:
    """Give the power of two nearest to ``max|x|^alpha / max|w|^(1 - alpha)`` for each channel, around 1.

    A channel that is all zero on one side stays in the middle.
    """
    read = group.tied(np.max([consumer.largest() for consumer in group.consumers], axis=0))
    largest = group.tied(largest)
    sound = (read > 0) & (largest > 0) & np.isfinite(read)
    if not sound.any():
        return np.ones(group.channels)
    exponent = np.zeros(group.channels)
    exponent[sound] = alpha * np.log2(largest[sound]) - (1 - alpha) * np.log2(read[sound])
    # A whole number, so that a second run finds the same factors for what is scaled already.
    middle = np.round(exponent[sound].mean())
    return np.exp2(np.where(sound, np.round(exponent) - middle, 0))


def _batches(found: Sequence[Group]) -> Iterator[list[Group]]:
    """Split ``found`` so that the rows of each part fit."""
    batch: list[Group] = []
    held = 0
    for group in found:
        size = group.channels * ROWS_KEPT * np.dtype(np.float32).itemsize
        if batch and held + size > _AT_A_TIME:
            yield batch
            batch, held = [], 0
        batch.append(group)
        held += size
    if batch:
        yield batch
