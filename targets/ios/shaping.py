"""A graph shaped for CoreML: fixed shapes, and the same said in ops that an ML Program has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from polycast.model import Model, graphs

from .._tvm.static import fixed


def shaped(model: Model) -> tuple[Model, bool]:
    """Give ``model`` for CoreML; a batch becomes one row. Returns: it, and whether a batch goes row by row now."""
    static, by_row = fixed(model)
    draft = static.draft()
    ShapeInferencePass()(draft)
    for graph in graphs(draft):
        for node in list(graph):
            if rewrite := _REWRITES.get(node.op_type if not node.domain else ""):
                rewrite(graph, node)
    ShapeInferencePass()(draft)
    return replace(static, graph=draft), by_row


def _flatten(graph: ir.Graph | ir.Function, node: ir.Node) -> None:
    """Flatten is a Reshape to what is known."""
    shape = node.outputs[0].shape
    if shape is not None and shape.is_static():
        to = _constant(shape.numpy())
        _take_the_place(graph, node, [to, ir.node("Reshape", [node.inputs[0], to.outputs[0]])])


def _gather(graph: ir.Graph | ir.Function, node: ir.Node) -> None:
    """One index that has no dimension gets one, which is dropped again."""
    given = node.inputs[1]
    index = ir.convenience.get_const_tensor(given) if given is not None else None
    if index is None or index.shape.rank():
        return
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    at, dropped = _constant((int(index.numpy()),)), _constant((axis,))
    gather = ir.node("Gather", [node.inputs[0], at.outputs[0]], {"axis": axis})
    _take_the_place(graph, node, [at, gather, dropped, ir.node("Squeeze", [gather.outputs[0], dropped.outputs[0]])])


_REWRITES: dict[str, Callable[[ir.Graph | ir.Function, ir.Node], None]] = {"Flatten": _flatten, "Gather": _gather}


def _constant(values: tuple[int, ...]) -> ir.Node:
    return ir.node("Constant", [], {"value": ir.tensor(np.array(values, np.int64))})


def _take_the_place(graph: ir.Graph | ir.Function, node: ir.Node, nodes: list[ir.Node]) -> None:
    """Put ``nodes`` where ``node`` is; the last gives its output, and the one that does its work has its name."""
    old, new = node.outputs[0], nodes[-1].outputs[0]
    new.name, new.shape, new.type = old.name, old.shape, old.type
    for each in nodes:
        each.name = node.name if each.op_type in (node.op_type, "Reshape") else f"{node.name}/{each.op_type.lower()}"
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, [old], [new])
