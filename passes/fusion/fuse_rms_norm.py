"""Fuse the primitive form of root-mean-square normalisation into one RMSNormalization."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from polycast.passbase import Numerics, Pass, PassContext

from ._match import need_shapes, nodes, substitute
from ._norm import centred, match, shaped, squared


@dataclass(frozen=True)
class FuseRmsNorm(Pass):
    """Fuse ``x / sqrt(mean(x**2) + epsilon) * scale`` into ``RMSNormalization(x, scale)``.

    x: [..., N], normalised over its last axis or axes; scale: [N], may be missing. Half precision that is widened to
    float32 inside is taken in with its casts. What is squared after its mean was taken off is a layer normalisation,
    and is left to ``fuse_layer_norm``.
    Source: Zhang and Sennrich 2019, arXiv:1910.07467, section 3; ONNX RMSNormalization, opset 23.
    """

    numerics = Numerics.ROUNDING

    def rewrite(self, graph: ir.Model, ctx: PassContext) -> int:
        """Fuse every root-mean-square normalisation of ``graph``; what is nearly one is skipped with the reason."""
        squares = [(n, squared(n)) for n in nodes(graph, "ReduceMean")]
        means = [(n, x) for n, x in squares if x is not None and centred(x) is None]
        need_shapes(graph, (x for _, x in means))
        sites = 0
        for mean, x in means:
            found = match(mean, x)
            if isinstance(found, str):
                ctx.skip(mean, found)
            elif found is not None:
                scale = shaped(found.scale, found.shape, found.output, "scale")
                attributes = {"axis": -len(found.shape), "epsilon": found.epsilon}
                substitute([found.output], "RMSNormalization", [found.x, scale], attributes)
                sites += 1
        return sites
