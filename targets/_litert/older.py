"""What TensorFlow Lite 2.17 cannot run, which apps for iOS link, and which is older than what opens builds here.

Source: the interpreter of TensorFlow 2.17.0 on files of ours. It refuses GATHER of float16, and crashes on weights with
a scale for each block, which its schema does not know, and where kernels broadcast over more axes than they have loops.
"""

from __future__ import annotations

from .runtimes import came_with, is_newer
from .tensors import Operator, Subgraph
from .versions import version

#: The release, as the package for Swift is numbered too.
RELEASE = "2.17.0"

#: How many axes there may be where what is read differs in shape, how many in any case, and how many anywhere else.
_COMPARED = ("EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL", "NOT_EQUAL")
_BROADCAST = {
    **dict.fromkeys((*_COMPARED, "FLOOR_DIV", "LOGICAL_AND", "LOGICAL_OR", "POW"), 4),
    **dict.fromkeys(("DIV", "MAXIMUM", "MINIMUM", "SELECT_V2"), 5),
}
_AXES = {"SLICE": 5, "STRIDED_SLICE": 5}
_ANYWHERE = 6


def lacking(program: Subgraph) -> tuple[str, ...]:
    """Name what ``program`` needs and this release has not: sorted."""
    found = {newer for operator in program.operators if (newer := _newer(operator) or _larger(operator))}
    return tuple(f"TensorFlow Lite {RELEASE} has no {each}" for each in sorted(found))


def _newer(operator: Operator) -> str:
    kind, data = operator.kind, [tensor for tensor in operator.inputs if tensor is not None]
    if any(tensor.blocks is not None for tensor in data):
        return f"{kind} by weights with a scale for each block"
    if kind == "GATHER" and data[0].dtype == "float16":
        return f"{kind} of float16"
    release = came_with(operator)
    return f"{kind} of version {version(operator)}, which came with {release}" if is_newer(release, RELEASE) else ""


def _larger(operator: Operator) -> str:
    shapes = {tensor.shape for tensor in operator.inputs if tensor is not None}
    axes = max(map(len, (*shapes, *(tensor.shape for tensor in operator.outputs))))
    if axes > _AXES.get(operator.kind, _ANYWHERE):
        return f"{operator.kind} over {axes} axes"
    if len(shapes) > 1 and axes > _BROADCAST.get(operator.kind, _ANYWHERE):
        return f"{operator.kind} of shapes that differ, over {axes} axes"
    return ""
