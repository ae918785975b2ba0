"""Give each quantized layer back the mean that rounding took from its outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from polycast.model import named
from polycast.passbase import Numerics, Pass, PassContext

from ._bias import add_bias, takes_bias
from ._gaps import Survey, means, survey
from ._pairs import Pair, pairs
from ._qdq import Names

#: Node metadata of a layer that was looked at: what it lacks is measured once.
_DONE = "polycast.bias"

#: Standard errors that a gap has to be off zero.
_SURE = 2.0


#: Share of the root mean square of a layer's output that a gap has to reach to be worth an operator of its own.
_WORTH = 0.01


@dataclass(frozen=True)
class CorrectBias(Pass):
    """Add to the bias of each quantized layer what its output channels lack on average.

    Rounding a weight shifts the mean of what the layer gives. The mean of each output channel is measured on the
    calibration samples, in the original and in the quantized graph, and what is missing goes into the bias: into the
    int32 codes or the float numbers of the one there is, else into a new one. A product that takes no bias gets an Add
    where what is missing is at least a hundredth of its output. A channel is corrected where the gap is more than two
    standard errors off zero, going by four parts of the samples. A site is a layer whose bias changed.

    looks: at how many looks at the samples the layers are corrected, those first that the others read from. With 1,
    all are corrected at once ("fast"), and what a layer inherits through its input is left to the layers before; with
    0, one after the other, each measured after those before it were corrected ("sequential").
    keep: names, op types and globs of layers that stay as they are.
    Source: Nagel et al. 2019, arXiv:1906.04721, section 4.2.
    """

    numerics = Numerics.LOSSY
    needs = ("calibration",)

    looks: int = 4
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.looks < 0:
            raise ValueError(f"looks is at least 0, not {self.looks}")

    def rewrite(self, graph: ir.Model, ctx: PassContext) -> int:
        """Correct every quantized layer; each that is left has its reason."""
        if ctx.original is None:
            return 0
        found = [p for p in pairs(graph, ctx.original) if _DONE not in p.maker.metadata_props]
        found = [p for p in found if not (named(p.original, self.keep) or named(p.maker, self.keep))]
        reason = _missing(ctx)
        if reason:
            for pair in found:
                ctx.skip(pair.maker, reason)
            return 0
        seen = survey(found, graph, ctx.original, ctx)
        after, sites, names = seen.after, 0, Names.of(graph)
        for number, batch in enumerate(_by_depth(found, self.looks)):
            if number:
                after = means(batch, graph, ctx)
            depths = _depths(batch)
            for pair in batch:
                result = pair.after
                missing = seen.missing(pair, after, own=depths[pair.maker] > 0)
                reason = _correct(pair, missing, seen, names)
                sites += not reason
                if reason:
                    ctx.skip(pair.maker, reason)
                for node in (pair.maker, *pair.maker.successors()):
                    if node is pair.maker or node.outputs[0].name == result:  # an Add that took over the name
                        node.metadata_props[_DONE] = "measured"
        return sites


def _missing(ctx: PassContext) -> str:
    if ctx.calibration is None:
        return "no calibration samples"
    return "one calibration sample does not tell how sure a mean is" if len(ctx.calibration) < 2 else ""


def _by_depth(found: Sequence[Pair], parts: int) -> list[list[Pair]]:
    """Split ``found`` into at most ``parts`` (0: one for each depth), those layers first that the others read from."""
    depths = _depths(found)
    deepest = max(depths.values(), default=0) + 1
    batches: list[list[Pair]] = [[] for _ in range(min(parts or deepest, deepest))]
    for pair in found:
        batches[depths[pair.maker] * len(batches) // deepest].append(pair)
    return [batch for batch in batches if batch]


def _depths(found: Sequence[Pair]) -> dict[ir.Node, int]:
    """Give how many layers of ``found`` each one's input comes through."""
    makers = {pair.maker for pair in found}
    through: dict[ir.Node, int] = {}
    for graph in {maker.graph: None for maker in makers}:
        for node in graph or ():
            above = (value.producer() for value in node.inputs if value is not None)
            through[node] = max((through.get(n, 0) + (n in makers) for n in above if n is not None), default=0)
    return {maker: through[maker] for maker in makers}


def _correct(pair: Pair, missing: np.ndarray | None, seen: Survey, names: Names) -> str:
    """Add what is missing to the bias of a layer; give the reason where nothing was added."""
    if missing is None:
        return "the calibration samples do not show what it gives"
    sure = np.where(np.abs(missing) > _SURE * seen.errors[pair.before], missing, 0.0)
    if not sure.any():
        return "no channel lacks more than two standard errors"
    share = float(np.sqrt(np.square(sure).sum() / seen.powers[pair.before].sum()))
    if share < _WORTH and not takes_bias(pair):
        return f"it has no bias, and what its channels lack is {share:.2%} of its output, not worth an Add"
    return "" if add_bias(pair, sure, names) else "what its channels lack is under half a step of its bias"
