"""Plan: which weights are quantized, in which grid, and in what form the target takes them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace

import onnx_ir as ir

from ._grid import Grid
from ._matrix import Matrix, matrix_of

#: The operators whose weights can be quantized; the first two multiply by a matrix.
OPS = ("MatMul", "Gemm", "Conv", "ConvTranspose")
LINEAR = OPS[:2]

Skip = Callable[[ir.Node, str], None]


@dataclass(frozen=True)
class Layer:
    """A weight, the nodes that multiply by it, its grid, and the form in which the target takes it.

    form: "nbits" is MatMulNBits; "qdq" a DequantizeLinear; "float" is widened when the model is loaded.
    """

    matrix: Matrix
    nodes: tuple[ir.Node, ...]
    grid: Grid
    form: str


def layers(nodes: Iterable[ir.Node], grid: Grid, features: Collection[str], tied: bool, skip: Skip) -> Iterator[Layer]:
    """Yield each weight of ``nodes`` once; a node whose weight stays is skipped with the reason.

    tied: whether a weight may be a table that a Gather reads too.
    """
    groups: dict[tuple[ir.Value, int, float], tuple[Matrix, list[ir.Node]]] = {}
    for node in nodes:
        matrix = matrix_of(node)
        if isinstance(matrix, Matrix):
            key = matrix.source, matrix.axis, matrix.factor
            groups.setdefault(key, (matrix, []))[1].append(node)
        elif matrix:
            skip(node, matrix)
    for matrix, group in groups.values():
        form = _form(group[0], grid, features)
        reason = "" if form else _why_no_form(group[0], grid, features)
        if reason := reason or _also_read(matrix, group, tied):
            for node in group:
                skip(node, reason)
        elif form == "nbits":
            yield Layer(matrix, tuple(group), grid, form)
        else:  # the operator stays, and with it the alpha of a Gemm
            own = replace(grid, block=0, symmetric=True) if form == "float" else grid
            yield Layer(replace(matrix, factor=1.0), tuple(group), own, form)


def is_lookup(node: ir.Node) -> bool:
    """Whether ``node`` looks rows up."""
    return node.domain == "" and node.op_type == "Gather"


def _form(node: ir.Node, grid: Grid, features: Collection[str]) -> str:
    if node.op_type in LINEAR and "matmul-nbits" in features:
        return "nbits"
    if node.op_type in LINEAR and "blocked-qdq" in features and grid.bits in (4, 8):
        return "qdq"
    return "float" if grid.bits == 8 else ""


def _why_no_form(node: ir.Node, grid: Grid, features: Collection[str]) -> str:
    if node.op_type not in LINEAR:
        return f"the weight of a convolution takes 8 bits, not {grid.bits}"
    if "blocked-qdq" in features:
        return f"DequantizeLinear stores 4 or 8 bits, not {grid.bits}"
    return "the target has neither matmul-nbits nor blocked-qdq"


def _also_read(matrix: Matrix, group: list[ir.Node], tied: bool) -> str:
    """Say what else reads the weight, which would then be stored twice."""
    others = {node for node in matrix.readers() - set(group) if not (tied and node is not None and is_lookup(node))}
    if None in others:
        return "its weight is an output of the graph too, and stays"
    names = sorted({node.op_type for node in others if node is not None})
    return f"its weight is read by {', '.join(names)} too, and would be stored twice" if names else ""
