"""Fuse the erf and the tanh form of GELU into one Gelu."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from polycast.passbase import Numerics, Pass, PassContext

from ._match import consumer, either, need_shapes, nodes, producer, rank, scalar, substitute
from ._polynomial import Polynomial, polynomial

_CUBIC = 0.044715
_SLOPE = math.sqrt(2 / math.pi)
_QUICK = 1.702


@dataclass(frozen=True)
class FuseGelu(Pass):
    """Fuse ``0.5 * x * (1 + erf(x / sqrt(2)))``, or its tanh form, into ``Gelu(x)``.

    x: any shape, any float dtype; the result has the shape and dtype of x. The formula is known in whatever order
    and grouping it is written, its constants as their dtype rounds them.
    Source: Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2; ONNX Gelu, opset 20.
    """

    numerics = Numerics.ROUNDING

    def rewrite(self, graph: ir.Model, ctx: PassContext) -> int:
        """Fuse every GELU of ``graph``; what is nearly one is skipped with the number that differs."""
        sites = 0
        curves = list(nodes(graph, "Erf", "Tanh"))
        need_shapes(graph, (n.outputs[0] for n in curves))
        for node in curves:
            found = _match(node)
            if isinstance(found, str):
                ctx.skip(node, found)
            elif found is not None:
                output, x = found
                if rank(output) != rank(x):
                    ctx.skip(node, "a constant adds an axis to the result")
                    continue
                substitute([output], "Gelu", [x], {"approximate": "none" if node.op_type == "Erf" else "tanh"})
                sites += 1
        for node in nodes(graph, "Sigmoid"):
            if _is_quick(node):
                ctx.skip(node, f"x * sigmoid({_QUICK} * x) is QuickGELU, for which ONNX has no op")
        return sites


def _match(node: ir.Node) -> tuple[ir.Value, ir.Value] | str | None:
    """Find the output and the x of the GELU around ``node``; the reason where it is nearly one."""
    curve, argument = node.outputs[0], node.inputs[0]
    assert argument is not None
    reason = None
    for output in _above(curve):
        for x in _below(argument):
            gate = polynomial(output, x, curve)
            # x + x * curve, each with some factor: only GELU looks like this.
            if gate is None or gate.terms.keys() != {(1, 0), (1, 1)}:
                continue
            reason = _why_not(node, gate, polynomial(argument, x))
            if not reason:
                return output, x
    return reason


def _why_not(node: ir.Node, gate: Polynomial, argument: Polynomial | None) -> str:
    if argument is None:
        return f"{node.op_type.lower()} takes more than the x that it is multiplied with"
    for found in gate.terms.values():
        if not gate.agrees(found, 0.5):
            return f"the factor is {found:.7g}, not 0.5"
    first = argument.terms.get((1,), 0.0)
    if node.op_type == "Erf":
        if argument.is_close({(1,): math.sqrt(0.5)}):
            return ""
        if argument.terms.keys() == {(1,)} and first:
            return f"root2 is {1 / first:.6g}, not {math.sqrt(2):.6g}"
        return "the argument of erf is not x / sqrt(2)"
    if argument.is_close({(1,): _SLOPE, (3,): _SLOPE * _CUBIC}):
        return ""
    if argument.terms.keys() == {(1,), (3,)} and argument.agrees(first, _SLOPE):
        return f"the cubic term is {argument.terms[3,] / first:.6g}, not {_CUBIC}"
    return f"the slope of tanh is {first:.6g}, not {_SLOPE:.6g}"


def _above(value: ir.Value) -> Iterator[ir.Value]:
    """Yield what ``value`` goes into, step by step, as long as nothing else reads it."""
    for _ in range(5):
        node = consumer(value, "Add", "Mul", "Div")
        if node is None:
            return
        value = node.outputs[0]
        yield value


def _below(argument: ir.Value) -> Iterator[ir.Value]:
    """Yield what x may be, nearest first: ``argument`` and what it is computed from."""
    level, seen = [argument], set[ir.Value]()
    for _ in range(6):
        fresh = [v for v in dict.fromkeys(level) if v not in seen and scalar(v) is None]
        yield from fresh
        seen.update(fresh)
        makers = [producer(v, "Add", "Mul", "Div", "Pow") for v in fresh]
        level = [v for maker in makers if maker is not None for v in maker.inputs if v is not None]


def _is_quick(node: ir.Node) -> bool:
    argument, product = node.inputs[0], consumer(node.outputs[0], "Mul")
    if argument is None or product is None:
        return False
    for curve, x in either(product):
        inner = polynomial(argument, x)
        if curve is node.outputs[0] and inner is not None and inner.is_close({(1,): _QUICK}):
            return True
    return False
