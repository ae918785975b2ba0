"""Bias: adding a number to each output channel of a layer, wherever its bias is."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ._pairs import Pair
from ._qdq import Names, Stored, dequantize, grid_of, stored
from ._slices import constant, exchange


def takes_bias(pair: Pair) -> bool:
    """Whether the layer has a bias, or can have one, so that correcting it costs no operator."""
    node = pair.maker
    if node.domain == "" and node.op_type in _WITH_BIAS:
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        return bias is None or stored(node, 2) is not None or constant(bias) is not None
    return node.op_type == "Add" and any(constant(value) is not None for value in node.inputs)


_WITH_BIAS = ("Conv", "ConvTranspose", "Gemm")


def add_bias(pair: Pair, missing: np.ndarray, names: Names) -> bool:
    """Add ``missing: [channels]`` to what ``pair.maker`` gives; whether that changes any number.

    It goes into the codes or the numbers of the bias there is, else into a new one of the same kind, else into an Add.
    """
    node = pair.maker
    if node.domain == "" and node.op_type in _WITH_BIAS:
        missing = missing / (node.attributes["beta"].as_float() if "beta" in node.attributes else 1.0)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        codes = stored(node, 2)
        if codes is not None:
            return _add_codes(codes, missing, names)
        if bias is None and (scale := _product_scale(node, missing.size)) is not None:
            return _new_codes(node, scale, missing, names)
        if bias is None or constant(bias) is not None:
            return _add_floats(node, 2, missing)
    for position in range(2):
        if node.op_type == "Add" and constant(node.inputs[position]) is not None:
            return _add_floats(node, position, _along(pair, missing))
    _append(pair, missing, names)
    return True


def _add_codes(bias: Stored, missing: np.ndarray, names: Names) -> bool:
    codes = bias.codes + np.round(missing / bias.scale)
    if codes.shape != bias.codes.shape or (codes == bias.codes).all():
        return False
    limits = np.iinfo(bias.codes.dtype)
    bias.exchange(np.clip(codes, limits.min, limits.max).astype(bias.codes.dtype), names)
    return True


def _product_scale(node: ir.Node, channels: int) -> np.ndarray | None:
    """Give the scale of the products of ``node``, () or [channels], where it multiplies codes by codes."""
    grid, weight = grid_of(node.inputs[0]), stored(node, 1)
    if grid is None or weight is None or weight.scale.size not in (1, channels):
        return None
    scale = weight.scale * np.float32(grid.scale)
    return scale if weight.axis is not None else scale.reshape(())


def _new_codes(node: ir.Node, scale: np.ndarray, missing: np.ndarray, names: Names) -> bool:
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    limits = np.iinfo(np.int32)
    codes = np.clip(np.round(missing / scale), limits.min, limits.max).astype(np.int32)
    if not codes.any():
        return False
    base = f"{node.outputs[0].name}.bias"
    held = names.constant(graph, f"{base}.codes", codes)
    back = dequantize(names, held, [names.constant(graph, f"{base}.scale", scale)], 0 if scale.ndim else None)
    graph.insert_before(node, back)
    node.resize_inputs(3)
    node.replace_input_with(2, back.outputs[0])
    return True


def _add_floats(node: ir.Node, position: int, missing: np.ndarray) -> bool:
    old = constant(node.inputs[position]) if position < len(node.inputs) else None
    dtype = old.dtype if old is not None else np.dtype(np.float32)
    start = old.astype(np.float64) if old is not None else np.zeros(1)
    new = (start + missing).astype(dtype)
    if old is not None and new.shape == old.shape and (new == old).all():
        return False
    exchange(node, position, new, f"{node.outputs[0].name}.bias")
    return True


def _along(pair: Pair, missing: np.ndarray) -> np.ndarray:
    """Shape ``missing`` so that it broadcasts along the channels of the layer's result."""
    if pair.channels == -1 or pair.original.op_type == "Gemm":
        return missing
    weight = constant(pair.original.inputs[1])
    assert weight is not None
    return missing.reshape(-1, *(1,) * (weight.ndim - 2))


def _append(pair: Pair, missing: np.ndarray, names: Names) -> None:
    """Put an Add after the layer; its result takes over the name."""
    graph, old = pair.maker.graph, pair.value
    assert isinstance(graph, ir.Graph)
    dtype = old.dtype.numpy() if old.dtype is not None else np.float32
    held = names.constant(graph, f"{old.name}.bias", _along(pair, missing).astype(dtype))
    node = ir.node("Add", [old, held], name=names.unused(f"{old.name}.corrected"))
    new = node.outputs[0]
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    node.replace_input_with(0, old)
    new.name, new.type, new.shape = old.name, old.type, old.shape
    old.name = names.unused(f"{old.name}.short")
    graph.insert_after(pair.maker, node)
