"""An ``If`` whose condition is constant: the branch that is taken stands in its place."""

from __future__ import annotations

import onnx_ir as ir

from polycast.model import values

from ._edit import Body, bodies, constant_before, remove, replace_or_copy, subgraphs


def inline(node: ir.Node, condition: bool, body: Body, model: ir.Model) -> bool:
    """Move the nodes of the branch that is taken in front of ``node``, and take ``node`` out.

    Returns: whether the branch is there.
    """
    attribute = node.attributes.get("then_branch" if condition else "else_branch")
    outer = node.graph
    if attribute is None or attribute.is_ref() or outer is None:
        return False
    branch = attribute.as_graph()
    _rename_apart(branch, _names_outside(node, model))
    results = list(branch.outputs)
    branch.outputs.clear()
    for name, value in list(branch.initializers.items()):
        branch.initializers.pop(name)
        if body.holds_initializers:
            outer.register_initializer(value)
        elif value.const_value is not None:
            constant = constant_before(node, value.const_value, name, body)
            value.replace_all_uses_with(constant)
            results = [constant if result is value else result for result in results]
    nodes = list(branch)
    branch.remove(nodes)
    outer.insert_before(node, nodes)
    for old, new in zip(node.outputs, results, strict=True):
        replace_or_copy(old, new, node)
    remove(node)
    return True


def _rename_apart(branch: ir.Graph, taken: set[str]) -> None:
    inner = [value for graph in (branch, *branch.subgraphs()) for value in values(graph)]
    own = {value.name for value in inner}
    for value in inner:
        if value.name in taken:
            count = 1
            while f"{value.name}_{count}" in taken | own:
                count += 1
            own.add(f"{value.name}_{count}")
            value.name = f"{value.name}_{count}"


def _names_outside(node: ir.Node, model: ir.Model) -> set[str]:
    inside = [graph for held in subgraphs(node) for graph in (held, *held.subgraphs())]
    outside = (body.graph for body in bodies(model) if not any(body.graph is graph for graph in inside))
    return {value.name for graph in outside for value in values(graph) if value.name}
