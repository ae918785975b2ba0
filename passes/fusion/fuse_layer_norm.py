"""Fuse the primitive form of layer normalisation into one LayerNormalization."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from polycast.passbase import Numerics, Pass, PassContext

from ._match import need_shapes, nodes, substitute
from ._norm import centred, last_axes, match, shaped, squared


@dataclass(frozen=True)
class FuseLayerNorm(Pass):
    """Fuse ``(x - mean(x)) / sqrt(var(x) + epsilon) * scale + bias`` into ``LayerNormalization(x, scale, bias)``.

    x: [..., N], normalised over its last axis or axes; scale, bias: [N], each may be missing. Half precision that is
    widened to float32 inside is taken in with its casts.
    Source: Ba, Kiros and Hinton 2016, arXiv:1607.06450, section 3; ONNX LayerNormalization, opset 17.
    """

    numerics = Numerics.ROUNDING

    def rewrite(self, graph: ir.Model, ctx: PassContext) -> int:
        """Fuse every layer normalisation of ``graph``; what is nearly one is skipped with the reason."""
        means = [n for n in nodes(graph, "ReduceMean") if centred(squared(n)) is not None]
        need_shapes(graph, (n.inputs[0] for n in means))
        sites = 0
        for mean in means:
            reason = _fuse(mean)
            sites += reason == ""
            if reason:
                ctx.skip(mean, reason)
        return sites


def _fuse(mean: ir.Node) -> str | None:
    """Fuse around ``mean``, the mean of the squares: "" where that was done, the reason where it was nearly one."""
    deviation = squared(mean)
    centre = centred(deviation)
    assert deviation is not None and centre is not None
    x, first = centre
    if last_axes(first, x) != last_axes(mean, deviation):
        return "mean and variance are over different axes"
    found = match(mean, x)
    if found is None or isinstance(found, str):
        return found
    output, shift = found.operand("Add") or (found.output, None)
    scale = shaped(found.scale, found.shape, found.output, "scale")
    bias = shaped(shift, found.shape, output, "bias") if shift is not None else None
    attributes = {"axis": -len(found.shape), "epsilon": found.epsilon}
    substitute([output], "LayerNormalization", [found.x, scale, *([bias] if bias else [])], attributes)
    return ""
