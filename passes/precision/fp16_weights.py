"""Store weights as float16, and keep computing in float32."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from polycast.model import graphs, named
from polycast.passbase import Numerics, Pass, PassContext

from ._numbers import loss, to_half

#: The ops whose weights are stored, and which inputs those are.
_WEIGHTS = {"Conv": (1,), "ConvTranspose": (1,), "Gather": (0,), "Gemm": (0, 1), "GRU": (1, 2), "LSTM": (1, 2),
            "MatMul": (0, 1), "RNN": (1, 2)}  # fmt: skip


@dataclass(frozen=True)
class Fp16Weights(Pass):
    """Store weights as float16; a Cast behind each brings it back to float32, so that everything computes as it did.

    w: float32, constant, of ``least`` elements and more. A site is a weight, however many nodes read it. Rows that a
    Gather looks up are widened as they are, and the table is not. A weight whose numbers float16 does not hold stays.

    keep: names, op types and globs of nodes whose weights stay as they are.
    Source: LiteRT's float16 quantization of weights; Micikevicius et al. 2018, arXiv:1710.03740, section 3.
    """

    numerics = Numerics.LOSSY

    least: int = 64
    keep: tuple[str, ...] = ()

    def rewrite(self, graph: ir.Model, ctx: PassContext) -> int:
        """Store every weight that float16 holds; one that stays is skipped with the reason."""
        wide: dict[ir.Value, ir.Value] = {}
        refused: dict[ir.Value, str] = {}
        for node, at, value, tensor in list(self._weights(graph)):
            if value not in wide and value not in refused:
                if reason := loss(tensor):
                    refused[value] = f"its weight {value.name} {reason}"
                else:
                    wide[value] = _halved(value, tensor)
            if value in refused:
                ctx.skip(node, refused[value])
            elif node.op_type == "Gather":
                _looked_up(node, wide[value])
            else:
                node.replace_input_with(at, _cast(wide[value], value.graph))
        for value in wide:
            if value.name and not value.uses() and not value.is_graph_output() and isinstance(value.graph, ir.Graph):
                value.graph.initializers.pop(value.name, None)
        return len(wide)

    def _weights(self, model: ir.Model) -> Iterator[tuple[ir.Node, int, ir.Value, ir.TensorProtocol]]:
        for graph in graphs(model):
            for node in graph:
                if node.domain or node.op_type not in _WEIGHTS or named(node, self.keep):
                    continue
                for at in _WEIGHTS[node.op_type]:
                    value = node.inputs[at] if at < len(node.inputs) else None
                    tensor = _stored(value)
                    if value is not None and tensor is not None and tensor.size >= self.least:
                        yield node, at, value, tensor


def _stored(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Give the float32 numbers that a graph holds for ``value``; None for what it computes or is given."""
    if value is None or not value.is_initializer() or value.is_graph_input():
        return None
    return value.const_value if value.dtype == ir.DataType.FLOAT else None


def _halved(value: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
    """Put the float16 of a weight beside it."""
    graph = value.graph
    assert isinstance(graph, ir.Graph)
    name = _unused(graph, f"{value.name}.fp16")
    half = ir.Value(
        name=name,
        type=ir.TensorType(ir.DataType.FLOAT16),
        shape=ir.Shape(tensor.shape.numpy()),
        const_value=ir.tensor(to_half(tensor.numpy()), name=name),
    )
    graph.register_initializer(half)
    return half


def _unused(graph: ir.Graph, wish: str) -> str:
    taken = {v.name for node in graph for v in node.outputs} | set(graph.initializers)
    return next(name for count in range(len(taken) + 1) if (name := f"{wish}{count or ''}") not in taken)


def _cast(half: ir.Value, graph: ir.Graph | ir.Function | None) -> ir.Value:
    """Give ``half`` as float32: the one Cast of it in its graph."""
    for node, _ in half.uses():
        if node.op_type == "Cast":
            return node.outputs[0]
    node = ir.node("Cast", [half], {"to": ir.DataType.FLOAT.value})
    value = node.outputs[0]
    value.name, value.type, value.shape = f"{half.name}.wide", ir.TensorType(ir.DataType.FLOAT), half.shape
    assert isinstance(graph, ir.Graph)
    graph.insert_before(graph[0], node)
    return value


def _looked_up(gather: ir.Node, half: ir.Value) -> None:
    """Let ``gather`` look rows of ``half`` up, and widen what it finds."""
    gather.replace_input_with(0, half)
    found = gather.outputs[0]
    cast = ir.node("Cast", [found], {"to": ir.DataType.FLOAT.value})
    wide = cast.outputs[0]
    wide.name, wide.type, wide.shape = found.name, ir.TensorType(ir.DataType.FLOAT), found.shape
    found.name, found.type = f"{found.name}.fp16", ir.TensorType(ir.DataType.FLOAT16)
    assert gather.graph is not None
    gather.graph.insert_after(gather, cast)
    ir.convenience.replace_all_uses_with(found, wide, replace_graph_outputs=True)
    cast.replace_input_with(0, found)
