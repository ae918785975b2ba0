"""Fuse a linear layer's MatMul and bias Add into Gemm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from polycast.passbase import Numerics, Pass, PassContext

from ._match import constant, dtype_of, either, need_shapes, new_constant, nodes, producer, substitute, used_once


@dataclass(frozen=True)
class FuseGemm(Pass):
    """Fuse ``x @ w + b`` into ``Gemm(x, w, b)``, where b is added as the product is made and not read back from memory.

    x: [..., K]; of more than two axes it is flattened to [rows, K] for the Gemm, which moves no data.
    w: [K, N], constant; b: [N], constant; float.
    Source: ONNX Gemm, opset 13.
    """

    numerics = Numerics.ROUNDING

    def rewrite(self, graph: ir.Model, ctx: PassContext) -> int:
        """Fuse every linear layer with a bias; one that stays is skipped with the reason."""
        found = [(add, *layer) for add in nodes(graph, "Add") if (layer := _linear(add)) is not None]
        need_shapes(graph, (product.inputs[0] for _, product, _ in found))
        leading = _Leading()
        sites = 0
        for add, product, bias in found:
            reason = _why_not(add, product, bias)
            if reason:
                ctx.skip(product, reason)
                continue
            _fuse(add, product, bias, leading)
            sites += 1
        return sites


def _linear(add: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """Give the MatMul by a constant matrix, and the constant, that ``add`` adds up."""
    for value, bias in either(add):
        product = producer(value, "MatMul")
        if product is not None and constant(bias) is not None and constant(product.inputs[1]) is not None:
            return product, bias
    return None


def _why_not(add: ir.Node, product: ir.Node, bias: ir.Value) -> str:
    x, w = product.inputs
    assert x is not None
    added, matrix = constant(bias), constant(w)
    assert added is not None and matrix is not None
    if matrix.ndim != 2:
        return f"the weight has {matrix.ndim} axes, not 2"
    if added.ndim == 0 or added.shape != (1,) * (added.ndim - 1) + matrix.shape[1:]:
        return f"the bias is {list(added.shape)}, not [{matrix.shape[1]}]"
    if not used_once(product.outputs[0]):
        return "the product without the bias is read elsewhere"
    if x.shape is None or len(x.shape) < 2:
        return "the rank of the input is unknown" if x.shape is None else "the input is a vector"
    if added.ndim > len(x.shape):
        return f"the bias has {added.ndim} axes, the input {len(x.shape)}"
    if dtype_of(x) not in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE):
        return f"the product is of {dtype_of(x)}"
    return ""


def _fuse(add: ir.Node, product: ir.Node, bias: ir.Value, leading: _Leading) -> None:
    x, w = product.inputs
    added = constant(bias)
    assert x is not None and w is not None and x.shape is not None and added is not None and add.graph is not None
    if added.ndim > 1:
        bias = new_constant(f"{bias.name}/flat", added.reshape(-1), add)
    if len(x.shape) == 2:
        substitute(add.outputs, "Gemm", [x, w, bias])
        return
    matrix = constant(w)
    assert matrix is not None
    rows, back = leading.of(x, matrix.shape, add)
    flat = _insert(add, "Reshape", [x, rows], "flat")
    gemm = _insert(add, "Gemm", [flat, w, bias], "gemm")
    substitute(add.outputs, "Reshape", [gemm, back])


class _Leading:
    """Makes the shapes that flatten [..., K] to [rows, K] and back; layers of one shape share them."""

    def __init__(self) -> None:
        self._made: dict[tuple[object, ...], ir.Value] = {}

    def of(self, x: ir.Value, matrix: tuple[int, ...], before: ir.Node) -> tuple[ir.Value, ir.Value]:
        """Give ``[-1, K]`` and ``[*x.shape[:-1], N]``, the latter computed where more than one size is open.

        matrix: K and N of the weight.
        """
        assert x.shape is not None
        depth, width = matrix
        sizes = [d if isinstance(d, int) else d.value for d in x.shape[:-1]]
        rows = self._constant([-1, depth], before)
        fixed = [d if isinstance(d, int) else -1 for d in sizes]
        if fixed.count(-1) <= 1 and 0 not in fixed:
            return rows, self._constant([*fixed, width], before)
        # Dimensions of one name have one size, so one Shape serves every layer that has the same names.
        names: tuple[object, ...] = tuple(sizes) if None not in sizes else (x,)
        lead = self._once((before.graph, "lead", *names), "lead", before, "Shape", [x], {"start": 0, "end": -1})
        parts = [lead, self._constant([width], before)]
        return rows, self._once((lead, width), f"back{width}", before, "Concat", parts, {"axis": 0})

    def _constant(self, numbers: list[int], before: ir.Node) -> ir.Value:
        key = (before.graph, *numbers)
        if key not in self._made:
            name = "polycast/gemm/" + "x".join(map(str, numbers))
            self._made[key] = new_constant(name, np.array(numbers, np.int64), before)
        return self._made[key]

    def _once(
        self,
        key: tuple[object, ...],
        what: str,
        before: ir.Node,
        op: str,
        inputs: list[ir.Value],
        attributes: dict[str, int],
    ) -> ir.Value:
        if key not in self._made:
            self._made[key] = _insert(before, op, inputs, what, attributes)
        return self._made[key]


def _insert(
    before: ir.Node, op: str, inputs: list[ir.Value], what: str, attributes: dict[str, int] | None = None
) -> ir.Value:
    node = ir.node(op, inputs, attributes or {})
    node.name = node.outputs[0].name = f"{before.name or before.outputs[0].name}/{what}"
    assert before.graph is not None
    before.graph.insert_before(before, node)
    return node.outputs[0]
