"""``clean``: remove what a model computes for nothing."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedFunctionsPass

from polycast.passbase import Numerics, Pass, PassContext

from ._duplicates import merge_initializers, merge_nodes
from ._edit import bodies, is_read, remove, replace, roots
from ._facts import Facts
from ._noops import same_as_input
from ._shapes import Shapes, infer
from ._shorten import shorten


@dataclass(frozen=True)
class Clean(Pass):
    """Remove dead code, duplicates, and nodes that give what they take.

    Goes: nodes, initializers, functions and opset imports that nobody uses; all but one of equal nodes and of equal
    initializers; Identity, inference Dropout, Cast, Reshape, Transpose, Pad, Slice, Expand and others where they change
    nothing or undo one another. Inputs stay, used or not, and so does a node that only an output's name needs.
    Subgraphs and functions are cleaned too; a mapped weight is read only when another one begins with the same bytes.

    Source: Aho, Lam, Sethi and Ullman, Compilers, 2nd edition, sections 8.5 and 9.1; ONNX opset 23 for each operator.
    """

    numerics = Numerics.EXACT

    def rewrite(self, graph: ir.Model, ctx: PassContext) -> int:
        """Clean until nothing is left to clean."""
        sites = 0
        while found := _clean(graph, ctx):
            sites += found
        return sites


def _clean(model: ir.Model, ctx: PassContext) -> int:
    """Sweep over the model until it does not change, with one inference of its shapes."""
    shapes = infer(model)
    sites = 0
    while True:
        ctx.skips.clear()  # the last sweep, which changes nothing, says what is skipped
        found = _sweep(model, shapes, ctx)
        if not found:
            return sites
        sites += found


def _sweep(model: ir.Model, shapes: Shapes, ctx: PassContext) -> int:
    sites = _remove_dead(model)
    for body in bodies(model):
        facts = Facts(body, shapes, ctx)
        for node in list(body.graph):
            value = same_as_input(node, facts)
            if value is not None and replace(node.outputs[0], value):
                remove(node)
                sites += 1
            else:
                sites += shorten(node, facts)
    sites += merge_initializers(model.graph)
    for root in roots(model):
        sites += merge_nodes(root, ctx)
    return sites


def _remove_dead(model: ir.Model) -> int:
    sites = 0
    for body in reversed(list(bodies(model))):
        for node in reversed(list(body.graph)):
            if not any(map(is_read, node.outputs)):
                remove(node)
                sites += 1
        if isinstance(body.graph, ir.Graph):
            for name, value in list(body.graph.initializers.items()):
                if not is_read(value) and not value.is_graph_input():
                    body.graph.initializers.pop(name)
                    sites += 1
    return sites + _remove_unused_declarations(model)


def _remove_unused_declarations(model: ir.Model) -> int:
    """Remove the functions that nothing calls, then the opset imports that nothing needs."""
    before = len(model.functions)
    RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    used = {""} | {domain for domain, _, _ in model.functions} | {node.domain for node in model.graph.all_nodes()}
    unused = [domain for domain in model.opset_imports if domain not in used]
    for domain in unused:
        del model.opset_imports[domain]
    return before - len(model.functions) + len(unused)
