"""What a file says of itself beside its operators: TensorFlow Lite's metadata, and the oldest runtime that opens it.

Source: TensorFlow Lite Support, metadata_schema.fbs 1.5.0, of which everything here is in the first version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from polycast.model import Model, Port

from . import runtimes
from .tensors import Subgraph, Tensor

if TYPE_CHECKING:
    from flatbuffers import Builder

_FIRST = "1.0.0"

#: Fields that each table has, in the order of the schema.
_MODEL = ("name", "description", "version", "subgraphs", "author", "license", "files", "min_parser_version")
_SUBGRAPH = ("name", "description", "inputs", "outputs", "files", "before", "after", "ins", "outs", "custom")
_TENSOR = ("name", "description", "dimensions", "content", "process", "stats", "files")
_CONTENT = ("kind", "properties", "range")
_UNIT = ("kind", "options")

#: Members of unions.
_NORMALIZATION, _FEATURE, _IMAGE = 1, 1, 2
_COLORS = {"RGB": 1, "L": 2}

_AXES = {"NCHW": ("batch", "channels", "height", "width"), "NHWC": ("batch", "height", "width", "channels")}


def of(model: Model, program: Subgraph) -> dict[str, bytes]:
    """Give the entries of a file that runs ``program``, which ``model`` became, by name."""
    return {"min_runtime_version": runtimes.entry(program.operators), "TFLITE_METADATA": _described(model, program)}


@dataclass(frozen=True)
class _Writer:
    """Writes tables of the schema. What a table refers to is written before it is begun."""

    builder: Builder

    def table(self, fields: Sequence[str], kind: int = 0, **given: int) -> int:
        """Write a table. kind: which member of a union it holds. given: where what it refers to is written."""
        self.builder.StartObject(len(fields))
        for name, place in given.items():
            if place:
                self.builder.PrependUOffsetTRelativeSlot(fields.index(name), place, 0)
        if kind:
            self.builder.PrependUint8Slot(fields.index("kind"), kind, 0)
        return int(self.builder.EndObject())

    def several(self, places: Sequence[int]) -> int:
        """Write a list of tables or texts; nothing where there is none."""
        if not places:
            return 0
        self.builder.StartVector(4, len(places), 4)
        for place in reversed(places):
            self.builder.PrependUOffsetTRelative(place)
        return int(self.builder.EndVector())

    def text(self, text: str) -> int:
        """Write a text."""
        return int(self.builder.CreateString(text))

    def numbers(self, numbers: Sequence[float]) -> int:
        """Write a list of float32."""
        return int(self.builder.CreateNumpyVector(np.array(numbers, np.float32)))


def _described(model: Model, program: Subgraph) -> bytes:
    import flatbuffers

    to = _Writer(flatbuffers.Builder(1024))
    signature = model.signature
    inputs = [
        _input(to, port, tensor, program, model.prepared.get(port.name, {}))
        for port, tensor in zip(signature.inputs, program.inputs, strict=True)
    ]
    outputs = [_tensor(to, port, _content(to)) for port in signature.outputs]
    main = to.table(_SUBGRAPH, name=to.text(program.name), inputs=to.several(inputs), outputs=to.several(outputs))
    names = {"name": to.text(model.name), "min_parser_version": to.text(_FIRST)}
    to.builder.Finish(to.table(_MODEL, **names, subgraphs=to.several([main])), b"M001")
    return bytes(to.builder.Output())


def _input(to: _Writer, port: Port, tensor: Tensor, program: Subgraph, prepared: Mapping[str, Any]) -> int:
    """Write an input; prepared: how images became it, as ``Preprocess.facts`` says."""
    if not prepared:
        limits = _grid_range(program, tensor)
        unit = _normalization(to, [0.0], [1.0]) if _is_normalised(program, tensor) else 0
        return _tensor(to, port, _content(to), _stats(to, [limits] if limits else []), unit)
    mean, std = prepared["mean"], prepared["std"]
    unit = _normalization(to, mean, std)
    ends = [sorted(((0 - m) / s, (255 - m) / s)) for m, s in zip(mean, std, strict=True)]
    stats = _stats(to, ends)
    content = _content(to, prepared["color"] if prepared["layout"] == "NHWC" else "")
    dimensions = to.several([to.text(axis) for axis in _AXES[prepared["layout"]]])
    return _tensor(to, port, content, stats, unit, dimensions)


def _tensor(to: _Writer, port: Port, content: int, stats: int = 0, process: int = 0, dimensions: int = 0) -> int:
    given = {"content": content, "stats": stats, "process": process, "dimensions": dimensions}
    return to.table(_TENSOR, name=to.text(port.name), description=to.text(str(port)), **given)


def _normalization(to: _Writer, mean: Sequence[float], std: Sequence[float]) -> int:
    """Write what the app does to an input before the model takes it: ``(x - mean) / std``."""
    options = to.table(("mean", "std"), mean=to.numbers(mean), std=to.numbers(std))
    return to.several([to.table(_UNIT, _NORMALIZATION, options=options)])


def _content(to: _Writer, color: str = "") -> int:
    """Write what a tensor holds: an image, which the schema wants with its channels last, or features of any kind."""
    if color not in _COLORS:
        return to.table(_CONTENT, _FEATURE, properties=to.table(()))
    to.builder.StartObject(2)
    to.builder.PrependInt8Slot(0, _COLORS[color], 0)
    return to.table(_CONTENT, _IMAGE, properties=int(to.builder.EndObject()))


def _stats(to: _Writer, ends: Sequence[Sequence[float]]) -> int:
    """Write the smallest and the largest number that are expected, by channel; nothing where nobody knows."""
    if not ends:
        return 0
    low, high = (to.numbers(each) for each in zip(*ends, strict=True))
    return to.table(("max", "min"), max=high, min=low)


def _is_normalised(program: Subgraph, tensor: Tensor) -> bool:
    """Whether the model begins with subtracting or scaling by constants: then the app leaves the input as it is."""
    readers = [operator for operator in program.operators if tensor in operator.inputs]
    if len(readers) != 1:
        return False
    if readers[0].kind == "TRANSPOSE":
        return _is_normalised(program, readers[0].outputs[0])
    others = [each for each in readers[0].inputs if each is not None and each is not tensor]
    return readers[0].kind in ("SUB", "DIV", "MUL") and len(others) == 1 and others[0].data is not None


def _grid_range(program: Subgraph, tensor: Tensor) -> tuple[float, float] | None:
    """Give what an input is cut off at, where all that reads it rounds it to one int8 grid."""
    readers = [operator for operator in program.operators if tensor in operator.inputs]
    grids = {operator.outputs[0].grid if operator.kind == "QUANTIZE" else None for operator in readers}
    grid = grids.pop() if len(grids) == 1 else None
    return grid.limits if grid is not None else None
