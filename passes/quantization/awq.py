"""Scale the input channels of weights so that rounding them block by block loses less."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from polycast.calibrating.observe import observe
from polycast.calibrating.taps import Seen, Tap, Want
from polycast.model import named
from polycast.passbase import Numerics, Pass, PassContext

from ._channels import Group, groups, refuses_late
from ._gptq import scales_for
from ._grid import STORED, Grid
from ._halves import halved
from ._rounded import as_matrix
from ._search import rounded

#: The exponents that are tried.
ALPHAS = tuple(step / 10 for step in range(11))

#: Bytes of the matrices that are observed at a time; more groups than these hold take another pass over the samples.
HELD = 1 << 29

#: Node metadata of a layer whose scaling was decided, with the reason where it was left: a second run decides the same.
_DONE = "polycast.awq"


@dataclass(frozen=True)
class Awq(Pass):
    """Multiply the weights of an input channel by ``rms(x)^alpha`` and divide the channel by it.

    Of the weights in a block, those that large activations meet then lose less when the block is rounded, and the
    others more. What comes before absorbs the division: the weight of a normalisation, or of the layer before; the
    float model computes the same, but for rounding. alpha is searched for each value that MatMuls and Gemms read: that
    which loses least of what they give once their weights are rounded, on every other calibration sample. A site is a
    value whose channels were scaled. Weights are not clipped here: ``quantize_weights`` searches its scales itself.

    bits, block, symmetric, scales: how ``quantize_weights`` will store the weights. method: how they are rounded to
    compare: "rtn", "mse" or "hqq".
    margin: the least share of the squared error that has to go, on the samples that alpha was not searched on.
    keep: names, op types and globs of layers that stay as they are.
    Source: Lin et al. 2023, arXiv:2306.00978, section 3.2; with the root mean square of x for the mean of |x|.
    """

    numerics = Numerics.ROUNDING
    needs = ("calibration",)

    bits: int = 4
    block: int = 32
    symmetric: bool = False
    scales: str = "log8"
    method: str = "mse"
    margin: float = 0.05
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, allowed in _ALLOWED.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is one of {', '.join(map(str, allowed))}, not {getattr(self, name)!r}")
        if not 0 < self.margin < 1:
            raise ValueError(f"margin is between 0 and 1, not {self.margin}")

    def rewrite(self, graph: ir.Model, ctx: PassContext) -> int:
        """Scale the channels of every value whose readers gain; of the others each has its reason, with the figures."""
        if refuses_late(graph, ctx):
            return 0
        sites = 0
        # The last first: what a group takes from the weights before it changes how those see their own inputs.
        for batch in _batches(self._candidates(graph, ctx)):
            taps = [Tap(str(group.value.name), Want.GRAM, group.axis) for group in batch]
            halves = [observe(graph, taps, half) for half in halved(ctx)]
            for group in batch:
                reason = self._scale(group, [half.get(str(group.value.name)) for half in halves])
                sites += not reason
                for node in group.nodes:
                    node.metadata_props[_DONE] = reason
                if reason:
                    ctx.skip(group.nodes[0], reason)
        return sites

    def _candidates(self, graph: ir.Model, ctx: PassContext) -> list[Group]:
        found = []
        for group in reversed(groups(graph)):
            if group.value.producer() is None or any(named(node, self.keep) for node in group.nodes):
                continue
            if any(node.op_type not in ("MatMul", "Gemm") for node in group.nodes):
                continue  # weights of convolutions are not rounded in blocks
            decided = group.nodes[0].metadata_props.get(_DONE)
            if reason := group.reason or decided:
                ctx.skip(group.nodes[0], reason)
            elif decided is not None:
                continue
            elif ctx.calibration is None:
                ctx.skip(group.nodes[0], "no calibration samples")
            elif any(as_matrix(slices.node) is None for slices in group.consumers):
                ctx.skip(group.nodes[0], "its weight has more than two axes")
            else:
                found.append(group)
        return found

    def _scale(self, group: Group, halves: Sequence[Seen | None]) -> str:
        """Scale the channels of ``group``; give the reason where that was not done."""
        grams = [seen.gram for seen in halves if seen is not None and seen.gram is not None]
        if len(grams) < 2:
            return "the calibration samples show too little of what it reads"
        weights = [w[0, :, :, 0] for node in group.nodes if (w := as_matrix(node)) is not None]
        factors = {alpha: _factors(group, np.diag(grams[0] + grams[1]), alpha) for alpha in ALPHAS}
        alpha = min(ALPHAS, key=lambda each: self._loss(weights, grams[0], factors[each]))
        before, after = (self._loss(weights, grams[1], factors[each]) for each in (0.0, alpha))
        if not after <= before * (1 - self.margin):
            change = f"from {before:.3g} to {after:.3g}, not down by {self.margin:.0%}"
            return f"scaling with alpha {alpha:g} brings the squared error of its layers {change}"
        return group.absorb(factors[alpha])

    def _loss(self, weights: Sequence[np.ndarray], gram: np.ndarray, factor: np.ndarray) -> float:
        """Give the squared error of what layers give once their ``weights: [K, N]``, scaled, are rounded."""
        grid = Grid(self.bits, self.block, self.symmetric)
        total = 0.0
        for weight in weights:
            w = np.ascontiguousarray((weight * factor[:, None]).T, np.float32)
            found = rounded(w, grid, scales_for(w, grid, self.scales), self.method)
            error = (w - found.values()) / factor
            total += float(np.vdot(error, error @ gram))
        return total


_ALLOWED: dict[str, tuple[int | str, ...]] = {
    "bits": (8, 4, 3, 2),
    "block": (0, 16, 32, 64, 128, 256),
    "scales": STORED,
    "method": ("rtn", "mse", "hqq"),
}


def _factors(group: Group, power: np.ndarray, alpha: float) -> np.ndarray:
    """Give ``rms(x)^alpha`` of each channel, around 1; a channel without power stays in the middle."""
    power = group.tied(power)
    live = (power > 0) & np.isfinite(power)
    exponent = np.zeros(group.channels)
    exponent[live] = 0.5 * alpha * np.log(power[live])
    exponent[live] -= exponent[live].mean() if live.any() else 0.0
    factors: np.ndarray = np.exp(exponent)
    return factors


def _batches(found: Sequence[Group]) -> Iterator[list[Group]]:
    """Split ``found`` so that the matrices of each part fit."""
    batch: list[Group] = []
    held = 0
    for group in found:
        size = 2 * 8 * group.channels**2
        if batch and held + size > HELD:
            yield batch
            batch, held = [], 0
        batch.append(group)
        held += size
    if batch:
        yield batch
