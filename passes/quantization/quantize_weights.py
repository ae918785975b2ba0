"""Store weights in 8, 4, 3 or 2 bits, and keep computing with floats."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from polycast.passbase import Numerics, Pass, PassContext

from ._blocked import put_float, put_qdq
from ._dynamic_edit import MICROSOFT
from ._grams import Grams
from ._grid import STORED, Grid, Quantized, Scales
from ._matrix import Matrix, drop_unread
from ._nbits import Widening, put_nbits, widened
from ._pack import Packed
from ._plan_weights import LINEAR, OPS, Layer, layers
from ._qdq import Names
from ._search import rounded
from ._select import selected
from ._sequential import Sequential
from ._spill import Spill


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Store each weight as integers of ``bits`` bits, with a scale and a zero for every ``block`` of a row.

    w: [N, K] float32 or float16, row = output channel. A site is a weight; nodes that share it share its integers.
    A target with ``matmul-nbits`` gets MatMulNBits, one with ``blocked-qdq`` a DequantizeLinear of 4 or 8 bits. What
    neither takes, convolutions among it, is stored as int8 with a scale per output channel, and widened at load.
    The scales of MatMulNBits take 8 bits, most in steps of 1.4 %, and are searched among what those can say: 4 bits in
    blocks of 32 take 4.4 bits a weight, everything counted. 3 and 2 bits are spread to 4 when the model is loaded.

    block: 16, 32, 64, 128 or 256; 0 for a whole row. symmetric: zero is the middle of the grid, and is not stored.
    method: "rtn" reaches the extremes of each block; "mse" searches scale and zero for the least squared error; "hqq"
    for the least |error|**0.7; "gptq" for the least error of what the layer gives on the calibration samples, and is
    "mse" where none reaches the layer. "auto" is "gptq" below 8 bits where there are samples, and else "mse".
    sequential: whether "gptq" rounds a layer for what it reads once the layers before it are rounded, and makes up for
    their errors. The samples then run once for each depth, through two copies of the model; else once in all.
    scales: of MatMulNBits, as they are stored: float32, float16 or log8; "auto" is log8.
    accuracy_level: of MatMulNBits. 4 rounds activations to int8, block by block; 0 keeps float32, and is slower.
    tied: whether a weight is quantized that a Gather reads too: then the float table stays in the file, unless
    ``quantize_embeddings`` follows.
    Source: GPTQ, Frantar et al. 2023, arXiv:2210.17323; HQQ, Badri and Shaji 2023; scales that are quantized too,
    Dettmers et al. 2023, arXiv:2305.14314, section 3; MatMulNBits, com.microsoft 1; ONNX DequantizeLinear, opset 21.
    """

    numerics = Numerics.LOSSY
    hasty: ClassVar = {"method": "rtn"}

    bits: int = 4
    block: int = 32
    symmetric: bool = False
    method: str = "auto"
    sequential: bool = True
    scales: str = "auto"
    accuracy_level: int = 4
    tied: bool = False
    ops: tuple[str, ...] = LINEAR
    keep: tuple[str, ...] = ()
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, allowed in _ALLOWED.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is one of {', '.join(map(str, allowed))}, not {getattr(self, name)!r}")
        if unknown := sorted(set(self.ops) - set(OPS)):
            raise ValueError(f"ops are among {', '.join(OPS)}, not {', '.join(unknown)}")

    def rewrite(self, graph: ir.Model, ctx: PassContext) -> int:
        """Quantize each weight once; one that stays is skipped with the reason."""
        grid = Grid(self.bits, self.block, self.symmetric)
        nodes = selected(graph, self.ops, self.only, self.keep)
        found = list(layers(nodes, grid, ctx.features, self.tied, ctx.skip))
        names, spill = Names.of(graph), Spill.of(graph)
        calibrated = self._calibrated(graph, found, ctx)
        sites = 0
        for number, layer in enumerate(found):
            ctx.tell("quantize weights", number, len(found))
            to = Widening(layer.matrix.graph, layer.matrix.source.name or "weight", names, spill)
            reason = self._quantize(layer, calibrated, to)
            sites += not reason
            for node in layer.nodes if reason else ():
                ctx.skip(node, reason)
        ctx.tell("quantize weights", len(found), len(found))
        if any(node.domain == MICROSOFT for node in graph.graph.all_nodes()):
            graph.opset_imports.setdefault(MICROSOFT, 1)
        return sites

    def _calibrated(self, graph: ir.Model, found: list[Layer], ctx: PassContext) -> Sequential | Grams | None:
        """Give what rounds layers for the samples, where the method wants it."""
        wanted = self.method == "gptq" or (self.method == "auto" and self.bits < 8)
        if not wanted or ctx.calibration is None:
            return None
        return Sequential(graph, found, ctx) if self.sequential else Grams(graph.clone(), found, ctx)

    def _quantize(self, layer: Layer, calibrated: Sequential | Grams | None, to: Widening) -> str:
        """Quantize one weight. Returns: the reason where it stays."""
        matrix = layer.matrix
        if self.method == "gptq" and calibrated is None:
            return "gptq needs calibration samples"
        reach = _reach(matrix, layer.grid)
        scales = Scales.up_to(reach, self._stored(layer), matrix.dtype)
        if not np.isfinite(reach):
            return "its weight holds NaN or infinity, or numbers whose range overflows"
        if scales.nearest(np.array(reach)) < reach * 0.9:
            return f"its weight needs a scale of {reach:.3g}, which {scales.stored} does not hold"
        whole = calibrated.quantize(layer, scales) if calibrated is not None and layer.form != "float" else None
        method = "mse" if self.method in ("auto", "gptq") else self.method
        stripes = (rounded(w, layer.grid, scales, method) for w in matrix.stripes())
        parts: Iterable[Quantized] = stripes if whole is None else [whole]
        if layer.form == "nbits":
            return self._write_nbits(layer, Packed.of(parts), to)
        weight = Quantized.joined(parts)
        if weight.nbytes >= matrix.tensor.nbytes:
            return _grows(weight.nbytes, matrix)
        (put_qdq if layer.form == "qdq" else put_float)(matrix, weight, to)
        drop_unread(matrix.source)
        return ""

    def _stored(self, layer: Layer) -> str:
        """Say how the scales of a layer are stored."""
        if layer.form != "nbits":
            return "float32"
        return "log8" if self.scales == "auto" else self.scales

    def _write_nbits(self, layer: Layer, weight: Packed, to: Widening) -> str:
        if weight.nbytes >= layer.matrix.tensor.nbytes:
            return _grows(weight.nbytes, layer.matrix)
        dtype = layer.matrix.tensor.dtype
        inputs, attributes = widened(weight, to, dtype)
        to.done()
        if self.accuracy_level:
            attributes["accuracy_level"] = self.accuracy_level
        for node in layer.nodes:
            read = node.inputs[1]
            put_nbits(node, inputs, attributes, dtype, to.names)
            if read is not None:
                drop_unread(read)
        return ""


_ALLOWED: dict[str, tuple[int | str, ...]] = {
    "bits": (8, 4, 3, 2),
    "block": (0, 16, 32, 64, 128, 256),
    "method": ("auto", "rtn", "mse", "hqq", "gptq"),
    "scales": ("auto", *STORED),
    "accuracy_level": (0, 1, 2, 3, 4),
}


def _reach(matrix: Matrix, grid: Grid) -> float:
    """Give a scale that no block of the weight needs a larger one than; NaN or infinity where an element is."""
    low, high = (np.float32(each) for each in matrix.limits())
    with np.errstate(over="ignore"):
        return float(grid.reach(np.minimum(low, 0), np.maximum(high, 0)))


def _grows(stored: int, matrix: Matrix) -> str:
    return f"its weight would take {stored} bytes, and takes {matrix.tensor.nbytes}"
