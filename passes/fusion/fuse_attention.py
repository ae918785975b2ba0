"""Fuse scaled dot-product attention into one Attention."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from polycast.passbase import Numerics, Pass, PassContext

from ._attention import Match, Mismatch, is_reshaped, match
from ._attention_heads import keys_of, simplify
from ._attention_mask import Masks
from ._attention_sizes import Sizes
from ._match import nodes, substitute


@dataclass(frozen=True)
class FuseAttention(Pass):
    """Fuse ``softmax(scale * q @ k.T + mask) @ v`` into ``Attention(q, k, v, mask)``.

    q: [batch, heads, sequence, size]; k, v: [batch, kv_heads, total, size], where every ``heads / kv_heads`` query
    heads share one. Where the graph splits q, k and v from [batch, sequence, hidden] and merges the heads again, the
    Attention takes and gives those. Caches that k and v are appended to become its past and present.
    mask: bool (where to attend) or float (added), of rank 2 to 4. A row that is masked by -inf as a whole gives 0,
    as the operator has it, where the formula gives NaN.
    Attention that a model comes with is brought into the same form.
    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2; Ainslie et al. 2023, arXiv:2305.13245 (grouped
    queries); ONNX Attention, opset 23.
    """

    numerics = Numerics.ROUNDING

    def rewrite(self, graph: ir.Model, ctx: PassContext) -> int:
        """Fuse every attention of ``graph``; a Softmax between two MatMuls that is left is skipped with the reason."""
        sizes = Sizes(graph)
        masks = Masks(sizes)
        fused: set[ir.Node] = set()
        for softmax in nodes(graph, "Softmax"):
            try:
                found = match(softmax, sizes)
            except Mismatch as reason:
                ctx.skip(softmax, str(reason))
                continue
            if found is None:
                if is_reshaped(softmax):
                    ctx.skip(softmax, "the scores are reshaped between the products and the softmax")
                continue
            if found.q.dtype == ir.DataType.DOUBLE:
                ctx.skip(
                    softmax, "it is float64, for which runtimes have no Attention; its definition scales in float32"
                )
                continue
            fused.add(_fuse(found, sizes, masks))
        sites = len(fused)
        for attention in nodes(graph, "Attention"):
            changed = simplify(attention, sizes)
            sites += changed and attention not in fused
        return sites


def _fuse(found: Match, sizes: Sizes, masks: Masks) -> ir.Node:
    """Put an Attention in the place of ``found``, all of its tensors of rank 4."""
    last = found.output.producer()
    assert last is not None
    inputs = [found.q, keys_of(found.keys, last, sizes), found.v]
    if found.masks:
        inputs.append(masks.one(found, last))
    attention = substitute([found.output], "Attention", inputs, {"scale": found.scale})
    sizes.note(attention)
    return attention
