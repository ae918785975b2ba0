"""Store the tables that embeddings are looked up in as 8 or 4 bits."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from polycast.passbase import Numerics, Pass, PassContext

from ._dynamic_edit import MICROSOFT
from ._embeddings import Lookup, tables, why_not
from ._grid import Grid
from ._qdq import Names
from ._select import selected

_BLOCKS = (0, 16, 32, 64, 128, 256)

#: A table of fewer bytes saves nothing worth a lookup more.
_LEAST_BYTES = 4096


@dataclass(frozen=True)
class QuantizeEmbeddings(Pass):
    """Store the tables that embeddings are looked up in as 8 or 4 bits; the rows that are read are widened as they are.

    w: [rows, columns] float32 or float16, the first input of a Gather along axis 0, of 4 KiB and more. A site is a
    table. With the feature ``gather-nbits`` one GatherBlockQuantized reads and widens rows; without it, two Gathers, of
    int8 rows and of their scales, do, for 8 bits and whole rows. 8 bits are symmetric, 4 bits have a zero point.
    A table that something else reads too is left as it is, since it would be stored twice: a pass before this one may
    quantize the layer that shares it. So is one whose rows are factors of activations.

    block: 16, 32, 64, 128 or 256 elements of a row to a scale; 0 for a whole row.
    keep, only: names, op types and globs of nodes that stay as they are, or that alone are changed.
    Source: Guan et al. 2019, arXiv:1911.02079, section 3 (row-wise quantized embedding tables); ONNX Gather, opset 13;
    onnxruntime's GatherBlockQuantized.
    """

    numerics = Numerics.LOSSY

    bits: int = 8
    block: int = 0
    keep: tuple[str, ...] = ()
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise ValueError(f"bits is 4 or 8, not {self.bits}")
        if self.block not in _BLOCKS:
            raise ValueError(f"block is one of {', '.join(map(str, _BLOCKS))}, not {self.block}")

    def rewrite(self, graph: ir.Model, ctx: PassContext) -> int:
        """Store every table that can be; each that cannot has its reason."""
        fused = "gather-nbits" in ctx.features
        lookup = Lookup(Names.of(graph), Grid(self.bits, self.block, symmetric=self.bits == 8), fused)
        sites = 0
        for table in tables(list(selected(graph, ("Gather",), self.only, self.keep)), _LEAST_BYTES):
            reason = why_not(table, self.bits)
            if not fused and not reason and (self.bits, self.block) != (8, 0):
                reason = "the target looks up whole rows of 8 bits only (it has no gather-nbits)"
            if reason:
                for node in table.nodes:
                    ctx.skip(node, reason)
                continue
            lookup.rewrite(table)
            sites += 1
        if any(node.domain == MICROSOFT for node in graph.graph.all_nodes()):
            graph.opset_imports.setdefault(MICROSOFT, 1)
        return sites
