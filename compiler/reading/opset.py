"""Bringing a graph to the current opset.

Most operators mean the same in every version. The others are listed here, one small adapter for each version that
changed the meaning of a valid node; ``tests/test_opset.py`` holds this list against the schemas in ``onnx.defs``.
Adapters work in place on onnx-ir: weights stay where they are, custom domains and subgraphs need no special care.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, ShapeInferencePass

from polycast.errors import InputError
from polycast.model import OPSET, graphs, values

OLDEST = 7


def upgrade(model: ir.Model) -> ir.Model:
    """Bring ``model``, in place, to opset OPSET, with its functions inlined; a newer opset is kept.

    Returns: ``model``.
    Raises: InputError for an opset below 7, and for a node that no later opset can express.
    """
    bodies: list[tuple[ir.Graph | ir.Function, dict[str, int]]] = [
        (model.graph, model.opset_imports),
        *((function, function.opset_imports) for function in model.functions.values()),
    ]
    for _, imports in bodies:
        _spell_domain(imports)
    newest = max(imports[""] for _, imports in bodies)
    if newest < OPSET:
        _infer_shapes(model)
    names = {value.name for graph in graphs(model) for value in values(graph)}
    for body, imports in bodies:
        _adapt(body, imports[""], newest, names)
        imports[""] = newest
    if model.functions:
        _inline(model)
    _adapt(model.graph, newest, OPSET, names)
    model.opset_imports[""] = max(newest, OPSET)
    return model


def _spell_domain(imports: dict[str, int]) -> None:
    """Spell the default domain "", which may also be written "ai.onnx"."""
    long = imports.pop("ai.onnx", None)
    version = imports.setdefault("", long or OPSET)
    if version < OLDEST:
        raise InputError(
            f"the model is of opset {version}: {OLDEST} and up can be read",
            "Export it again with a newer opset",
        )


def _infer_shapes(model: ir.Model) -> None:
    """Fill in ranks and dtypes: the adapters give a plainer graph where these are known. Best effort."""
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(model)


def _inline(model: ir.Model) -> None:
    domains = {function.domain for function in model.functions.values()}
    try:
        InlinePass()(model)
    except Exception as error:  # onnx-ir raises ValueError and its own kinds for a function that calls itself
        raise InputError(f"the functions of the model cannot be inlined: {error.__cause__ or error}") from error
    used = {node.domain for graph in graphs(model) for node in graph}
    for domain in domains - used:
        model.opset_imports.pop(domain, None)


def _adapt(graph: ir.Graph | ir.Function, old: int, new: int, names: set[str | None]) -> None:
    for inner in (graph, *graph.subgraphs()):
        for node in inner:
            if node.domain in ("", "ai.onnx"):
                node.domain = ""
                for version in range(old + 1, new + 1):
                    if adapter := ADAPTERS.get((node.op_type, version)):
                        adapter(node, _Before(node, names))
                node.version = None


@dataclass(frozen=True)
class _Before:
    """Puts new nodes before ``node``, under names that are free in the whole model."""

    node: ir.Node
    names: set[str | None]

    def op(self, op: str, *inputs: ir.Value | None, **attributes: object) -> ir.Value:
        stem = f"{self.node.outputs[0].name}/{op.lower()}"
        name = next(n for n in (f"{stem}_{i}" for i in itertools.count()) if n not in self.names)
        self.names.add(name)
        new = ir.node(op, inputs, attributes, name=name)  # type: ignore[arg-type]  # ir converts the attributes
        new.outputs[0].name = name
        assert self.node.graph is not None
        self.node.graph.insert_before(self.node, new)
        return new.outputs[0]

    def constant(self, value: object, dtype: type[np.generic] = np.int64) -> ir.Value:
        return self.op("Constant", value=ir.tensor(np.asarray(value, dtype)))

    def like(self, value: float, x: ir.Value) -> ir.Value:
        """A scalar of the dtype of ``x``."""
        if x.dtype is None:
            return self.op("CastLike", self.constant(value, np.float32), x)
        return self.op("Constant", value=ir.tensor(np.asarray(value, x.dtype.numpy()), dtype=x.dtype))


Adapter = Callable[[ir.Node, _Before], None]
ADAPTERS: dict[tuple[str, int], Adapter] = {}
"""What to do with a node of this op on the way up to this opset."""


def _adapts(version: int, *ops: str) -> Callable[[Adapter], Adapter]:
    def register(adapter: Adapter) -> Adapter:
        ADAPTERS.update({(op, version): adapter for op in ops})
        return adapter

    return register


def _become(node: ir.Node, op: str, *inputs: ir.Value | None, **attributes: object) -> None:
    """Turn ``node`` into another one that keeps its name and outputs."""
    node.op_type = op
    node.resize_inputs(len(inputs))
    for i, value in enumerate(inputs):
        node.replace_input_with(i, value)
    node.attributes.clear()
    node.attributes.update({a.name: a for a in ir.convenience.convert_attributes(attributes)})  # type: ignore[arg-type]


def _take(node: ir.Node, name: str) -> Any:
    """Remove an attribute and give its value."""
    attribute = node.attributes.pop(name, None)
    if attribute is None:
        return None
    if attribute.is_ref():
        raise InputError(
            f"{_name(node)}: attribute {name!r} is a parameter of its function, and the functions of this model are "
            "of different opsets",
            "Inline the functions before saving the model (onnx.inliner.inline_local_functions)",
        )
    return attribute.value


def _input(node: ir.Node, i: int) -> ir.Value:
    value = node.inputs[i]
    assert value is not None  # the checker has seen this node
    return value


def _name(node: ir.Node) -> str:
    return f"node {node.name or node.outputs[0].name!r} ({node.op_type})"


def _attribute_to_input(version: int, attribute: str, index: int, *ops: str) -> None:
    """Register ops whose integer ``attribute`` is input number ``index`` from opset ``version`` on."""

    def adapter(node: ir.Node, before: _Before) -> None:
        value = _take(node, attribute)
        if value is not None:
            node.resize_inputs(max(len(node.inputs), index + 1))
            node.replace_input_with(index, before.constant(np.atleast_1d(np.asarray(value))))

    _adapts(version, *ops)(adapter)


_attribute_to_input(10, "k", 1, "TopK")
_attribute_to_input(13, "split", 1, "Split")
_attribute_to_input(13, "axes", 1, "Squeeze", "Unsqueeze", "ReduceSum")
_attribute_to_input(
    *(18, "axes", 1, "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean"),
    *("ReduceMin", "ReduceProd", "ReduceSumSquare"),
)


@_adapts(9, "BatchNormalization")
def _batch_norm_9(node: ir.Node, before: _Before) -> None:
    """``spatial=0`` normalizes each activation by itself: scale, bias, mean and variance have the shape of one x."""
    _check_inference(node)
    if _take(node, "spatial") != 0:
        return
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    x, scale, bias, mean, var = (_input(node, i) for i in range(5))
    deviation = before.op("Sqrt", before.op("Add", var, before.like(epsilon, x)))
    normal = before.op("Div", before.op("Sub", x, mean), deviation)
    _become(node, "Add", before.op("Mul", normal, scale), bias)


@_adapts(14, "BatchNormalization")
def _batch_norm_14(node: ir.Node, before: _Before) -> None:
    _check_inference(node)
    node.resize_outputs(1)


def _check_inference(node: ir.Node) -> None:
    """Before opset 14 a node that names its statistics, read or not, is in training mode."""
    if any(output.name for output in node.outputs[1:]):
        raise InputError(f"{_name(node)} is in training mode", "Export the model in inference mode")


@_adapts(9, "Scan")
def _scan_9(node: ir.Node, before: _Before) -> None:
    raise InputError(
        f"{_name(node)} is of opset 8, which had a batch axis of its own", "Export the model with opset 9 or newer"
    )


@_adapts(9, "Upsample")
def _upsample_9(node: ir.Node, before: _Before) -> None:
    _become(node, "Upsample", _input(node, 0), before.constant(_take(node, "scales"), np.float32), **_mode(node))


@_adapts(10, "Upsample")
def _upsample_10(node: ir.Node, before: _Before) -> None:
    node.op_type = "Resize"


@_adapts(11, "Resize")
def _resize_11(node: ir.Node, before: _Before) -> None:
    """Opset 10 samples at ``x / scale``. "nearest" rounds that down where it enlarges, up where it shrinks."""
    x, scales, mode = _input(node, 0), _input(node, 1), _mode(node)
    mode["coordinate_transformation_mode"] = "asymmetric"
    if mode["mode"] != "nearest":
        return _become(node, "Resize", x, None, scales, **mode)
    known = ir.convenience.get_const_tensor(scales)
    up, down = {**mode, "nearest_mode": "floor"}, {**mode, "nearest_mode": "ceil"}
    if known is not None and (known.numpy() >= 1).all():
        return _become(node, "Resize", x, None, scales, **up)
    if known is not None and (known.numpy() <= 1).all():
        return _become(node, "Resize", x, None, scales, **down)
    one = before.constant(1, np.float32)
    larger = before.op("Resize", x, None, before.op("Max", scales, one), **up)
    return _become(node, "Resize", larger, None, before.op("Min", scales, one), **down)


def _mode(node: ir.Node) -> dict[str, object]:
    return {"mode": node.attributes.get_string("mode", "nearest")}


@_adapts(10, "Dropout")
def _dropout_10(node: ir.Node, before: _Before) -> None:
    """Before opset 10 a mask has the dtype of x, and no meaning outside of training."""
    if any(mask.uses() or mask.is_graph_output() for mask in node.outputs[1:]):
        raise InputError(f"{_name(node)} is in training mode: its mask is read", "Export the model in inference mode")
    node.resize_outputs(1)


@_adapts(12, "Dropout")
def _dropout_12(node: ir.Node, before: _Before) -> None:
    """Without ``training_mode`` it is the identity, whatever the ratio."""
    _take(node, "ratio")


@_adapts(10, "Slice")
def _slice_10(node: ir.Node, before: _Before) -> None:
    starts, ends, axes = (_take(node, name) for name in ("starts", "ends", "axes"))
    places = [before.constant(v) for v in (starts, ends, axes) if v is not None]
    _become(node, "Slice", _input(node, 0), *places)


@_adapts(11, "Clip")
def _clip_11(node: ir.Node, before: _Before) -> None:
    x = _input(node, 0)
    bounds = [_take(node, "min"), _take(node, "max")]
    inputs = [None if b is None else before.like(b, x) for b in bounds]
    _become(node, "Clip", x, *inputs)


@_adapts(11, "Pad")
def _pad_11(node: ir.Node, before: _Before) -> None:
    x, pads, value = _input(node, 0), _take(node, "pads"), _take(node, "value")
    filler = [before.like(value, x)] if value else []
    mode = node.attributes.get_string("mode", "constant")
    _become(node, "Pad", x, before.constant(pads), *filler, mode=mode)


@_adapts(11, "Scatter")
def _scatter_11(node: ir.Node, before: _Before) -> None:
    node.op_type = "ScatterElements"


@_adapts(13, "Softmax", "LogSoftmax", "Hardmax")
def _softmax_13(node: ir.Node, before: _Before) -> None:
    """Before opset 13 all axes from ``axis`` on are normalized together."""
    x = _input(node, 0)
    axis = node.attributes.get_int("axis", 1)
    if x.shape is not None and axis in (-1, len(x.shape) - 1):
        return _become(node, node.op_type, x, axis=-1)
    flat = before.op(node.op_type, before.op("Flatten", x, axis=axis), axis=1)
    return _become(node, "Reshape", flat, before.op("Shape", x), allowzero=1)


@_adapts(16, "RoiAlign")
def _roi_align_16(node: ir.Node, before: _Before) -> None:
    node.attributes["coordinate_transformation_mode"] = ir.AttrString(
        "coordinate_transformation_mode", "output_half_pixel"
    )


@_adapts(18, "Split")
def _split_18(node: ir.Node, before: _Before) -> None:
    if len(node.inputs) < 2 or node.inputs[1] is None:
        node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(node.outputs))


@_adapts(20, "GridSample")
def _grid_sample_20(node: ir.Node, before: _Before) -> None:
    mode = node.attributes.get_string("mode", "bilinear")
    node.attributes["mode"] = ir.AttrString("mode", {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode))


@_adapts(20, "DFT")
def _dft_20(node: ir.Node, before: _Before) -> None:
    axis = _take(node, "axis")
    node.resize_inputs(3)
    node.replace_input_with(2, before.constant(1 if axis is None else axis))


@_adapts(21, "GroupNormalization")
def _group_norm_21(node: ir.Node, before: _Before) -> None:
    """Scale and bias, one for each group before, are one for each channel: repeat them."""
    groups = node.attributes.get_int("num_groups", 0)
    channels = before.op("Shape", _input(node, 0), start=1, end=2)
    repeats = before.op("Div", channels, before.constant([groups]))
    for i in (1, 2):
        column = before.op("Unsqueeze", _input(node, i), before.constant([1]))
        node.replace_input_with(i, before.op("Reshape", before.op("Expand", column, repeats), before.constant([-1])))
