"""What each operator is to 8-bit integers: it multiplies them, combines them, only moves them, or clamps them."""

from __future__ import annotations

import enum

import onnx_ir as ir


class Role(enum.Enum):
    """What a node does with quantized values."""

    MULTIPLY = "multiplies with a weight and accumulates in int32"
    COMBINE = "computes from codes, and its result has a grid of its own"
    MOVE = "gives some of the codes that it reads: one grid holds for both"
    CLAMP = "cuts off what a grid after it cuts off too"
    NONE = "computes in float"


_ROLES = (
    dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "MatMul"), Role.MULTIPLY)
    | dict.fromkeys(
        ("Add", "AveragePool", "Concat", "GlobalAveragePool", "LeakyRelu", "Mul", "Sigmoid"), Role.COMBINE
    )
    | dict.fromkeys(
        (
            "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "Identity", "MaxPool", "Reshape",
            "Resize", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
        ),
        Role.MOVE,
    )
    | dict.fromkeys(("Clip", "Relu"), Role.CLAMP)
)  # fmt: skip

#: Of these every input is data; of the others only the first.
_ALL_DATA = {"Add", "Concat", "Mul"}


def role(node: ir.Node) -> Role:
    """Give what ``node`` does with quantized values."""
    found = _ROLES.get(node.op_type, Role.NONE) if node.domain == "" else Role.NONE
    match node.op_type:
        case "MaxPool" if len(node.outputs) > 1:
            return Role.NONE  # its second output indexes the first
        case "Resize" if not _interpolates(node):
            return Role.NONE
        case "Clip" if any(v is not None and ir.convenience.get_const_tensor(v) is None for v in node.inputs[1:]):
            return Role.NONE
    return found


def data(node: ir.Node) -> list[ir.Value]:
    """Give the activations that ``node`` reads and that its result is made of."""
    inputs = node.inputs if node.op_type in _ALL_DATA else node.inputs[:1]
    return [value for value in inputs if value is not None]


def shrinks(node: ir.Node) -> bool:
    """Whether a mover gives fewer codes than it reads."""
    return node.op_type in ("Gather", "GatherElements", "MaxPool", "Slice", "Split")


def _interpolates(node: ir.Node) -> bool:
    """Whether a Resize stays between the numbers that it reads: cubic overshoots, a crop extrapolates."""
    mode, frame = node.attributes.get("mode"), node.attributes.get("coordinate_transformation_mode")
    cubic = mode is not None and mode.as_string() == "cubic"
    return not cubic and (frame is None or frame.as_string() != "tf_crop_and_resize")
