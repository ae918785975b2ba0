"""Images of any height and width: which models get kernels that serve every size.

A row of such an image is computed in full tiles, so many columns more than it has; what is too much is not stored.
"""

from __future__ import annotations

from typing import Any

from polycast.model import Model

from . import static
from .cpu_arch import Cpu
from .gpu import Gpu

#: A row is filled up to a multiple of so many columns, which every tile divides; where one register holds all channels
#: of a pixel, to one of more, or there would be too few sums at once.
COLUMNS, COLUMNS_ALONE = 8, 16

#: What is computed where the size of an image is not known.
_OPS = frozenset(
    {
        "Abs", "Add", "Clip", "Conv", "DepthToSpace", "DequantizeLinear", "Div", "HardSigmoid", "HardSwish",
        "LeakyRelu", "Max", "Min", "Mul", "Neg", "QuantizeLinear", "Relu", "Sigmoid", "Sub", "Tanh",
    }
)  # fmt: skip


def suits(model: Model, on: Cpu | Gpu) -> bool:
    """Whether all that is open in ``model`` is the height and the width of images, and every op is one of these."""
    if not isinstance(on, Cpu) or on.machine != "x86_64" or not is_open(model):
        return False
    shapes = [port.shape or ("?",) for port in model.signature.inputs]
    fixed = all(isinstance(dim, int) for shape in shapes for dim in (shape[:2] if len(shape) == 4 else shape))
    if not fixed or any("?" in shape for shape in shapes):
        return False
    nodes = list(model.graph.graph)
    padded = (node.attributes["auto_pad"].value for node in nodes if "auto_pad" in node.attributes)
    return all(node.op_type in _OPS for node in nodes) and set(padded) <= {"NOTSET", "VALID", ""}


def one_row(model: Model, on: Cpu | Gpu) -> tuple[Model, bool]:
    """Give ``model`` with its batch fixed at one row, where it has one. Returns: the model, and whether it was."""
    one, was = static.fixed(model, others_open=True)
    return (one, was) if suits(one, on) else static.fixed(model)


def is_open(model: Model) -> bool:
    """Whether an input has a dimension that is not known."""
    return any(not isinstance(dim, int) for port in model.signature.inputs for dim in port.shape or ("?",))


def size(dim: Any) -> Any:
    """Give a dimension as a number, or simplified where it is not known."""
    from tvm import sym, tirx

    if isinstance(dim, int):
        return dim
    found = sym.Analyzer().simplify(dim)
    return int(found) if isinstance(found, tirx.IntImm) else found


def filled(dim: Any, registers: int) -> Any:
    """Give the columns that are computed for a row of ``dim`` pixels: itself, where that is known."""
    columns = COLUMNS if registers > 1 else COLUMNS_ALONE
    return dim if isinstance(dim, int) else (dim + columns - 1) // columns * columns
