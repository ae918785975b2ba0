"""Fuse a residual Add with the normalisation that reads it."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from polycast.passbase import Numerics, Pass, PassContext

from ._match import constant, either, need_shapes, nodes, producer, substitute, used_once

_FUSED = {
    "LayerNormalization": "SkipLayerNormalization",
    "RMSNormalization": "SkipSimplifiedLayerNormalization",
}


@dataclass(frozen=True)
class FuseSkipNorm(Pass):
    """Fuse ``Norm(x + skip)`` into SkipLayerNormalization or SkipSimplifiedLayerNormalization of ``com.microsoft``.

    x, skip: one shape, [N, H] or [B, S, H], normalised over H; a constant bias [H] that is added to either of them is
    taken in. Where something else reads the sum too, it becomes the fused op's fourth output.
    Source: onnxruntime's contrib operators SkipLayerNormalization and SkipSimplifiedLayerNormalization, version 1.
    """

    numerics = Numerics.ROUNDING
    needs = ("skip-norm",)

    def rewrite(self, graph: ir.Model, ctx: PassContext) -> int:
        """Fuse where the target can; each residual normalisation that stays is skipped with the reason."""
        found = [(n, add) for n in nodes(graph, *_FUSED) if (add := _residual(n)) is not None]
        if "skip-norm" in ctx.features:
            need_shapes(graph, (v for norm, add in found for v in (*add.inputs, *norm.inputs)))
        sites = 0
        for norm, add in found:
            reason = _why_not(norm, add) if "skip-norm" in ctx.features else "the target has no skip-norm"
            if reason:
                ctx.skip(norm, reason)
                continue
            _fuse(norm, add)
            sites += 1
        if sites:
            graph.opset_imports.setdefault("com.microsoft", 1)
            # A scale that a Constant node makes may lie between the sum and the normalisation.
            graph.graph.sort()
        return sites


def _residual(norm: ir.Node) -> ir.Node | None:
    """Give the Add of two values, neither a constant, that ``norm`` reads."""
    add = producer(norm.inputs[0], "Add")
    return add if add is not None and all(constant(v) is None for v in add.inputs) else None


def _why_not(norm: ir.Node, add: ir.Node) -> str:
    x, skip = add.inputs
    assert x is not None and skip is not None
    if x.shape is None or skip.shape is None:
        return "the shapes of the sum's operands are unknown"
    if len(x.shape) not in (2, 3):
        return f"the sum has {len(x.shape)} axes, not 2 or 3"
    if not _is_equal(x.shape, skip.shape):
        return f"{x.shape} and {skip.shape} are not known to be one shape"
    axis = norm.attributes["axis"].as_int() if "axis" in norm.attributes else -1
    if axis not in (-1, len(x.shape) - 1):
        return f"the axis is {axis}, not the last one"
    for value in norm.inputs[1:]:
        if value is not None and (value.shape is None or tuple(value.shape) != (x.shape[-1],)):
            return "its scale or bias does not have the size of the last axis"
        if value is not None and value.dtype != x.dtype:
            return f"its scale or bias is {value.dtype}, its input {x.dtype}"
    if any(v.uses() or v.is_graph_output() for v in norm.outputs[1:]):
        return "its mean or deviation is read elsewhere"
    if x.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return f"it is computed in {x.dtype}, which the fused op has not"
    return ""


def _is_equal(a: ir.Shape, b: ir.Shape) -> bool:
    """Whether every axis has the same size, be it a number or a name."""
    return len(a) == len(b) and all(
        (isinstance(i, int) and i == j) or (not isinstance(i, int) and i.value is not None and i == j)
        for i, j in zip(a, b, strict=True)
    )


def _fuse(norm: ir.Node, add: ir.Node) -> None:
    total = add.outputs[0]
    x, skip, bias = _with_bias(add)
    scale, shift = norm.inputs[1], norm.inputs[2] if len(norm.inputs) > 2 else None
    is_read = total.is_graph_output() or len(total.uses()) > 1
    has_shift = norm.op_type == "LayerNormalization"
    inputs = [x, skip, scale, *([shift] if has_shift else []), bias]
    epsilon = norm.attributes["epsilon"].as_float() if "epsilon" in norm.attributes else 1e-5
    substitute(
        [norm.outputs[0], None, None, total] if is_read else [norm.outputs[0]],
        _FUSED[norm.op_type],
        inputs[: 1 + max(i for i, v in enumerate(inputs) if v is not None)],
        {"epsilon": epsilon},
        domain="com.microsoft",
        before=add,
    )


def _with_bias(add: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    """Give the two operands of ``add``, and the constant bias [H] that one of them ends with."""
    for x, skip in either(add):
        inner = producer(x, "Add")
        for rest, bias in either(inner) if inner is not None and used_once(x) else ():
            array = constant(bias)
            if array is not None and array.ndim == 1 and rest.shape == x.shape:
                return rest, skip, bias
    x, skip = (v for v in add.inputs if v is not None)
    return x, skip, None
