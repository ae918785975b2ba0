"""Round the weights of each quantized layer so that its outputs, not its weights, come closest to the original's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from polycast.calibrating.observe import observe
from polycast.calibrating.taps import ROWS_KEPT, Seen, Tap, Want
from polycast.model import named
from polycast.passbase import Numerics, Pass, PassContext

from ._pairs import Pair, pairs
from ._patches import Grouped, add_patches, grouped
from ._qdq import Names, stored
from ._rerounding import reround

#: Node metadata of a layer that was looked at.
_DONE = "polycast.adaround"

#: Bytes of rows that are observed at a time; more layers than these hold take another pass over the samples.
_AT_A_TIME = 256 << 20

#: Rows that a layer is judged by at least.
_FEWEST = 8


@dataclass(frozen=True)
class Adaround(Pass):
    """Move weights of quantized layers to the other integer beside them where that brings the outputs closer.

    Rounding each weight to the nearest integer is best for the weights, not for what the layer gives. On rows of what
    the quantized layer reads (patches, for a convolution), the squared error against what the float weights give is a
    quadratic form in the integers; it is brought down by coordinate descent over the two neighbours of each weight.
    A layer keeps its weights where its error on rows that were not used for this does not go down. A site is a layer
    whose weights were rounded anew. Conv, Gemm and MatMul with int8 weights.

    keep: names, op types and globs of layers that stay as they are.
    Source: Nagel et al. 2020, arXiv:2004.10568, section 3.2: the quadratic objective of each layer; solved here as it
    is, without the relaxation of section 3.3.
    """

    numerics = Numerics.LOSSY
    needs = ("calibration",)

    keep: tuple[str, ...] = ()

    def rewrite(self, graph: ir.Model, ctx: PassContext) -> int:
        """Round every quantized layer anew that gains; each that does not has its figures."""
        if ctx.original is None:
            return 0
        found: list[tuple[Pair, Grouped]] = []
        for pair in pairs(graph, ctx.original):
            if _DONE in pair.maker.metadata_props or any(named(n, self.keep) for n in (pair.original, pair.maker)):
                continue
            shape = grouped(pair) if ctx.calibration is not None else "no calibration samples"
            if isinstance(shape, str):
                ctx.skip(pair.maker, shape)
            else:
                found.append((pair, shape))
        sites, names = 0, Names.of(graph)
        for batch in _batches(found):
            for (pair, shape), seen in zip(batch, _look(batch, graph, ctx), strict=True):
                reason = _improve(pair, shape, seen, names)
                sites += not reason
                if reason:
                    ctx.skip(pair.maker, reason)
                pair.maker.metadata_props[_DONE] = "rounded"
        return sites


def _batches(found: Sequence[tuple[Pair, Grouped]]) -> list[list[tuple[Pair, Grouped]]]:
    """Split ``found`` so that the rows of each part fit."""
    batches: list[list[tuple[Pair, Grouped]]] = []
    held = _AT_A_TIME
    for pair, shape in found:
        size = shape.columns * ROWS_KEPT * np.dtype(np.float32).itemsize
        if held + size > _AT_A_TIME:
            batches.append([])
            held = 0
        batches[-1].append((pair, shape))
        held += size
    return batches


def _look(batch: Sequence[tuple[Pair, Grouped]], graph: ir.Model, ctx: PassContext) -> list[Seen | None]:
    """Observe rows of what each layer reads."""
    names, draft = Names.of(graph), graph.clone()
    made = {node.outputs[0].name: node for node in draft.graph.all_nodes()}
    taps = []
    for pair, _ in batch:
        taps.append(Tap(names.unused(f"{pair.after}.patches"), Want.ROWS, pair.channels))
        add_patches(made[pair.maker.outputs[0].name], taps[-1].value)
    seen = observe(draft, taps, ctx)
    return [seen.get(tap.value) for tap in taps]


def _improve(pair: Pair, shape: Grouped, seen: Seen | None, names: Names) -> str:
    """Round the weights of a layer anew; give the reason where they stay."""
    x, weight = seen.rows if seen is not None else None, stored(pair.maker, 1)
    if x is None or weight is None or len(x) < _FEWEST:
        return "the calibration samples show too little of what it reads"
    layer = shape.layer(x)
    # Every fourth row is held out.
    held = np.arange(len(x)) % 4 == 3
    codes = reround(layer.part(~held), int(np.abs(weight.codes).max()))
    if (codes == layer.codes).all():
        return "each weight is rounded the best way already"
    before, after = (layer.part(held).error(each) for each in (layer.codes, codes))
    if not after < before:
        return f"rounding anew brings the squared error on rows held out from {before:.3g} to {after:.3g}, not down"
    weight.exchange(shape.restored(codes).astype(weight.codes.dtype), names)
    return ""
