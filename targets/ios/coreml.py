"""Which nodes onnxruntime's provider for CoreML takes into an ML Program, and why it leaves the others to the CPU.

Source: onnxruntime 1.24.2 for Apple silicon: the operators that its library registers, and the reasons that it gives
(core/providers/coreml/builders). iOS 16 is asked for, so CoreML 6, and with it float16.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from polycast.model import Model, graphs, name_of

from .shaping import shaped

#: Which version of onnxruntime the table is of: the newest that its Swift package has.
VERSION = "1.24.2"

#: What CoreML takes of dimensions, and a convolution of elements along one.
_RANK, _LONGEST = 5, 16384

_KNOWN = frozenset(
    """
    Add ArgMax AveragePool BatchNormalization Cast Clip Concat Conv ConvTranspose DepthToSpace Div Elu Erf Exp Gather
    Gelu Gemm GlobalAveragePool GlobalMaxPool GridSample GroupNormalization InstanceNormalization LayerNormalization
    LeakyRelu MatMul Max MaxPool Mul PRelu Pow ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu Reciprocal
    Reshape Resize Round Shape Sigmoid Slice Softmax Softplus Split Sqrt Squeeze Sub Tanh Transpose Unsqueeze
    """.split()
)

#: Known as layers of CoreML's older format alone.
_NO_PROGRAM = frozenset({"Flatten", "LRN", "Pad"})

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16})
_INTEGERS = frozenset({ir.DataType.INT32, ir.DataType.INT64})

#: Types of the first input, where they are not floats alone.
_TYPES = {
    "Cast": _FLOATS | _INTEGERS,
    "Gather": _FLOATS | {ir.DataType.INT64},
    "Shape": _FLOATS | _INTEGERS,
    "Slice": _FLOATS | {ir.DataType.INT64},
}

#: Inputs that have to be constants, by their place.
_CONSTANT = {
    "BatchNormalization": (1, 2, 3, 4),
    "Clip": (1, 2),
    "Conv": (2,),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "PRelu": (1,),
    "ReduceMax": (1,),
    "ReduceMean": (1,),
    "ReduceMin": (1,),
    "ReduceProd": (1,),
    "ReduceSum": (1,),
    "Reshape": (1,),
    "Resize": (2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
}


def fallback(model: Model) -> dict[str, str]:
    """Give the nodes of ``model``, shaped for it, that the provider leaves to the CPU: name -> why."""
    own = {name_of(node) for graph in graphs(model.graph) for node in graph}
    nodes = (node for graph in graphs(shaped(model)[0].graph) for node in graph)
    return {name_of(node): reason for node in nodes if (reason := _why_not(node)) and name_of(node) in own}


def _why_not(node: ir.Node) -> str:
    op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    if op == "Constant":
        return ""  # a session makes it a weight
    if op in _NO_PROGRAM:
        return f"CoreML's provider takes {op} into no ML Program"
    if op not in _KNOWN:
        return f"CoreML's provider has no {op}"
    return _of_inputs(node) or _RULES.get(node.op_type, _always)(node)


def _of_inputs(node: ir.Node) -> str:
    first = node.inputs[0] if node.inputs else None
    if first is not None and first.dtype not in _TYPES.get(node.op_type, _FLOATS):
        kind = "an unknown type" if first.dtype is None else first.dtype.name.lower()
        return f"CoreML's provider takes no {node.op_type} of {kind}"
    for value in filter(None, node.inputs):
        shape = value.shape
        if shape is None or not shape.is_static():
            return f"the shape of {value.name!r} is not fixed; --shape fixes those of inputs"
        if len(shape) > _RANK:
            return f"{value.name!r} has {len(shape)} dimensions, and CoreML takes {_RANK}"
        if 0 in shape.numpy() and node.op_type != "Resize":  # it leaves out what it is not told
            return f"{value.name!r} is empty"
    for place in _CONSTANT.get(node.op_type, ()):
        given = _input(node, place)
        if given is not None and ir.convenience.get_const_tensor(given) is None:
            return f"{given.name!r} is computed, and CoreML takes a constant there"
    return ""


def _input(node: ir.Node, place: int) -> ir.Value | None:
    return node.inputs[place] if place < len(node.inputs) else None


def _dims(value: ir.Value | None) -> tuple[int, ...]:
    return () if value is None or value.shape is None else tuple(value.shape.numpy())


def _int(node: ir.Node, name: str, otherwise: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else otherwise


def _ints(node: ir.Node, name: str) -> list[int]:
    return list(node.attributes[name].as_ints()) if name in node.attributes else []


def _text(node: ir.Node, name: str, otherwise: str) -> str:
    return node.attributes[name].as_string() if name in node.attributes else otherwise


def _always(node: ir.Node) -> str:
    return ""


def _cast(node: ir.Node) -> str:
    to = ir.DataType(_int(node, "to", 0))
    return "" if to in _FLOATS | {ir.DataType.INT32} else f"CoreML's provider casts nothing to {to.name.lower()}"


def _concat(node: ir.Node) -> str:
    return "" if len(node.inputs) > 1 else "CoreML concatenates two or more"


def _convolution(node: ir.Node) -> str:
    if len(_dims(node.inputs[0])) not in (3, 4):
        return "CoreML's provider has convolutions in one and two dimensions"
    longest = max(max(_dims(value)) for value in (*node.inputs[:2], node.outputs[0]) if _dims(value))
    return f"{longest} elements along one dimension, and CoreML takes {_LONGEST}" if longest > _LONGEST else ""


def _transposed(node: ir.Node) -> str:
    if _text(node, "auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
        return "CoreML's provider wants the padding of ConvTranspose as numbers"
    if len(set(_ints(node, "pads"))) > 1:
        return "CoreML's provider wants the same padding on every side of ConvTranspose"
    given = [name for name in ("output_shape", "output_padding") if any(_ints(node, name))]
    return f"CoreML's provider takes no ConvTranspose with {given[0]}" if given else ""


def _gather(node: ir.Node) -> str:
    if not _dims(_input(node, 1)):
        return "CoreML's provider takes no Gather of one index without a dimension"
    return f"the result has more than {_RANK} dimensions" if len(_dims(node.outputs[0])) > _RANK else ""


def _gemm(node: ir.Node) -> str:
    scaled = any(node.attributes[name].as_float() != 1 for name in ("alpha", "beta") if name in node.attributes)
    return "CoreML's provider takes Gemm without transA, alpha and beta" if scaled or _int(node, "transA", 0) else ""


def _matmul(node: ir.Node) -> str:
    return "CoreML's provider takes no MatMul with a vector" if any(len(_dims(v)) == 1 for v in node.inputs) else ""


def _pool(node: ir.Node) -> str:
    if len(_dims(node.inputs[0])) != 4:
        return "CoreML's provider pools over two dimensions alone"
    if set(_ints(node, "dilations")) - {1} or _int(node, "storage_order", 0) or len(node.outputs) > 1:
        return "CoreML's provider takes no pool with dilations, a storage order or indices"
    return ""


def _batch_norm(node: ir.Node) -> str:
    return "" if len(_dims(node.inputs[0])) == 4 else "CoreML's provider takes BatchNormalization in four dimensions"


def _resize(node: ir.Node) -> str:
    mode, how = _text(node, "mode", "nearest"), _text(node, "coordinate_transformation_mode", "half_pixel")
    if _int(node, "antialias", 0) or _int(node, "exclude_outside", 0) or mode not in ("nearest", "linear"):
        return f"CoreML's provider takes no Resize of mode {mode}, with antialias or exclude_outside"
    if mode == "linear":
        sized = _input(node, 3) is not None
        fine = how in ("half_pixel", "pytorch_half_pixel", "align_corners") or (how == "asymmetric" and sized)
        return "" if fine else f"CoreML's provider takes no linear Resize of {how}"
    rounding = _text(node, "nearest_mode", "round_prefer_floor")
    if (how, rounding) != ("asymmetric", "floor"):
        return f"CoreML's provider takes the nearest of asymmetric floor, and this is {how} {rounding}"
    before, after = _dims(node.inputs[0])[-2:], _dims(node.outputs[0])[-2:]
    whole = all(b % a == 0 for a, b in zip(before, after, strict=False))
    return "" if whole else "CoreML's provider takes whole factors of the nearest"


def _shape(node: ir.Node) -> str:
    return "CoreML's provider takes Shape as a whole" if _int(node, "start", 0) or "end" in node.attributes else ""


def _split(node: ir.Node) -> str:
    return "" if len(node.outputs) > 1 else "CoreML splits into two or more"


_RULES: dict[str, Callable[[ir.Node], str]] = {
    "AveragePool": _pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Concat": _concat,
    "Conv": _convolution,
    "ConvTranspose": _transposed,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": _pool,
    "GlobalMaxPool": _pool,
    "MatMul": _matmul,
    "MaxPool": _pool,
    "Resize": _resize,
    "Shape": _shape,
    "Split": _split,
}
