"""Compute convolutions and matrix products in 8-bit integers, with ranges that the calibration samples gave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from polycast.calibrating.observe import observe
from polycast.calibrating.ranges import choose_range
from polycast.calibrating.taps import Seen, Tap, Want
from polycast.model import graphs, named
from polycast.passbase import Numerics, Pass, PassContext

from ._int8_grids import covering, grid_over, kept_of_product
from ._int8_plan import Plan, activation, is_code, is_constant, plan
from ._int8_roles import data
from ._int8_weights import Operands, read
from ._int8_write import Writer, drop_unread
from ._qdq import Grid, Names, grid_of, is_stored
from ._select import selected

_MULTIPLY = ("Conv", "ConvTranspose", "Gemm", "MatMul")

#: Node metadata under which a decision about numbers is kept, so that a second run decides the same.
_KEPT = "polycast.int8.kept"


@dataclass(frozen=True)
class Int8(Pass):
    """Put the weights and activations of Conv, ConvTranspose, Gemm and MatMul on 8-bit grids, as QDQ.

    Weights: int8, symmetric, a scale per output channel; biases int32 at the scale of the products. Activations: one
    grid per tensor, uint8, or int8 with zero at 0 where ``symmetric``. What lies between two of these nodes computes
    in integers too where its inputs are codes already (Add, Mul, Concat, pools, Sigmoid …) or where it only moves
    them, and a Relu or Clip becomes the end of a range. A site is a node that reads integers afterwards. Without the
    feature ``u8s8-exact``, products of uint8 and int8 may saturate in pairs, and weights take 7 bits; without
    ``integer-conv-to-float``, what a Conv gives is rounded to a grid even where nothing wants its codes.
    A Gemm or MatMul whose input loses too much on one grid for all its channels is left as it is.

    calibrate: how a range is chosen: minmax, average, percentile, entropy or mse. samples: how many to look at; 0: all.
    least_db: what signal-to-noise ratio the grid of its input has to leave of what a Gemm or MatMul gives.
    keep, only: names, op types and globs of nodes that stay in float, or that alone are changed.
    Source: Jacob et al. 2018, arXiv:1712.05877; Wu et al. 2020, arXiv:2004.09602; ONNX QuantizeLinear and
    DequantizeLinear, opset 21.
    """

    numerics = Numerics.LOSSY
    needs = ("calibration", "qdq")

    calibrate: str = "mse"
    samples: int = 0
    symmetric: bool = False
    per_channel: bool = True
    least_db: float = 30.0
    keep: tuple[str, ...] = ()
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.samples < 0:
            raise ValueError(f"samples is at least 0, not {self.samples}")

    def rewrite(self, graph: ir.Model, ctx: PassContext) -> int:
        """Quantize every node that can be; each that cannot has its reason."""
        operands = self._operands(graph, ctx)
        if not operands:
            return 0
        to_float = "integer-conv-to-float" in ctx.features
        plans = self._plan(graph, operands, to_float)
        seen = self._observe(graph, plans, ctx)
        for node, reason in [
            (n, r) for each in plans for n in each.multiply if (r := self._unsuited(n, operands[n], each, seen))
        ]:
            node.metadata_props[_KEPT] = reason
            ctx.skip(node, reason)
            del operands[node]
        plans = self._plan(graph, operands, to_float)
        top = 127 if self.symmetric or "u8s8-exact" in ctx.features else 64
        writer = Writer(Names.of(graph), top, self.per_channel)
        constants = {v: None for n in operands for v in n.inputs if v is not None and is_constant(v)}
        for each in plans:
            writer.write(each, operands, self._grids(each, seen))
        drop_unread(constants)
        return len(operands) + sum(len(each.between) for each in plans)

    def _operands(self, graph: ir.Model, ctx: PassContext) -> dict[ir.Node, Operands]:
        """Give the nodes that may be quantized, by what they are, with their constants."""
        found: dict[ir.Node, Operands] = {}
        for node in selected(graph, _MULTIPLY, self.only, self.keep):
            index = 1 - activation(node)
            if is_stored(node.inputs[index]) or is_stored(node.inputs[1 - index]):
                continue
            reason = _missing(ctx) or node.metadata_props.get(_KEPT, "") or _why_not(node)
            operands = reason or read(node, index)
            if isinstance(operands, str):
                ctx.skip(node, operands)
            else:
                found[node] = operands
        return found

    def _plan(self, graph: ir.Model, operands: Mapping[ir.Node, Operands], to_float: bool) -> list[Plan]:
        def may(node: ir.Node) -> bool:
            return not named(node, self.keep)

        found = (plan(each, operands, may, to_float=to_float) for each in graphs(graph) if isinstance(each, ir.Graph))
        return [each for each in found if each.multiply]

    def _observe(self, graph: ir.Model, plans: list[Plan], ctx: PassContext) -> dict[str, Seen]:
        wanted = {v.name: Want.HISTOGRAM for each in plans for v in (*each.tapped.values(), *each.readers)}
        for node in (node for each in plans for node in each.multiply):
            value = node.inputs[activation(node)]
            if value is not None and value.name in wanted and _rows_are_last(node):
                wanted[value.name] |= Want.CHANNELS
        taps = [Tap(name, want) for name, want in wanted.items() if name]
        return observe(graph, taps, ctx, samples=self.samples or None)

    def _unsuited(self, node: ir.Node, operands: Operands, each: Plan, seen: Mapping[str, Seen]) -> str:
        """Say why ``node`` cannot have static grids, going by what was seen."""
        unseen = [v for v in each.tapped.values() if not is_code(v) and not _is_seen(v, seen)]
        if unseen:
            return f"no sample shows {unseen[0].name}"
        value = node.inputs[activation(node)]
        assert value is not None
        if is_code(value):
            return ""
        found = seen[value.name or ""]
        if found.not_finite:
            return "its input holds NaN or infinity"
        if _rows_are_last(node):
            left = kept_of_product(found, self._grid(found), operands.weight, operands.axis)
            if left < self.least_db:
                return f"static int8 of its input keeps {left:.1f} dB, under {self.least_db:g}"
        return ""

    def _grids(self, each: Plan, seen: Mapping[str, Seen]) -> dict[ir.Value, Grid]:
        """Give the grid of each value that gets one, in the order of the graph.

        A Concat takes over a grid of its inputs where that reaches as far as the others: those codes stay as they are.
        """
        chosen: dict[ir.Value, Grid] = {}
        for tapped in dict.fromkeys(each.tapped.values()):
            maker = tapped.producer()
            ready = grid_of(tapped)
            if ready is None and maker is not None and maker.op_type == "Concat" and maker in each.between:
                ready = covering(chosen[each.tapped[v]] if v in each.tapped else grid_of(v) for v in data(maker))
            within = maker is not None and maker.op_type == "Clip"
            chosen[tapped] = ready or self._grid(seen[tapped.name or ""], within)
        return {value: chosen[tapped] for value, tapped in each.tapped.items()}

    def _grid(self, seen: Seen, within: bool = False) -> Grid:
        low, high = choose_range(seen, self.calibrate, 8, self.symmetric)
        return grid_over(low, high, self.symmetric, within)


def _rows_are_last(node: ir.Node) -> bool:
    """Whether ``node`` is a product over the last axis of its input."""
    transposed = node.attributes.get("transA")
    return node.op_type == "MatMul" or (node.op_type == "Gemm" and not (transposed and transposed.as_int()))


def _missing(ctx: PassContext) -> str:
    if ctx.calibration is None:
        return "no calibration samples: the range of its input is not known"
    return "" if "qdq" in ctx.features else "the target has no QuantizeLinear and DequantizeLinear"


def _why_not(node: ir.Node) -> str:
    if not isinstance(node.graph, ir.Graph):
        return "it lies in a function"
    if activation(node) == 1 and is_constant(node.inputs[0]):
        return "its weight is the left operand"
    return ""


def _is_seen(value: ir.Value, seen: Mapping[str, Seen]) -> bool:
    found = seen.get(value.name or "")
    return found is not None and found.elements > 0
