"""Sizes: where the bytes of a build go, by layer and by dtype, and what its runtime weighs beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import onnx_ir as ir

from .model import Model, graphs, name_of, weights
from .shares import weight_of

#: So many layers are named, the heaviest; the others count together.
NAMED = 20

#: How the dtypes of weights are called here.
_CALLED = {ir.DataType.FLOAT: "fp32", ir.DataType.DOUBLE: "fp64", ir.DataType.FLOAT16: "fp16"}

#: The library that a device needs for a runtime: the packages that have it, and its files in them.
_LIBRARIES = {
    "onnxruntime": (("onnxruntime", "*/libonnxruntime.*"),),
    "tvm": (("apache-tvm", "*/libtvm_runtime.*"), ("apache-tvm-ffi", "*/libtvm_ffi.*")),
    "litert": (("ai-edge-litert", "*/libLiteRt.*"),),
}


@dataclass(frozen=True)
class Layer:
    """A node with the weights that it reads. stored: their bytes by precision, scales and biases among them."""

    name: str
    op: str
    stored: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """Spell for a manifest."""
        return {"layer": self.name, "op": self.op, "bytes": dict(self.stored)}


def facts(original: Model, lowered: Model) -> dict[str, Any]:
    """Give what the weights weigh, before and after, as a manifest spells it."""
    before = by_precision(original)
    found = layers(lowered)
    rest: Counter[str] = Counter()
    for layer in found[NAMED:]:
        rest.update(layer.stored)
    return {
        "original": {"bytes": _file_bytes(original, sum(before.values())), "weights": before},
        "weights": by_precision(lowered),
        "layers": [layer.to_json() for layer in found[:NAMED]],
        **({"others": {"layers": len(found) - NAMED, "bytes": dict(sorted(rest.items()))}} if rest else {}),
    }


def by_precision(model: Model) -> dict[str, int]:
    """Sum the bytes of all that is stored, by precision; what several nodes read counts once."""
    called = _precisions(model)
    found: Counter[str] = Counter()
    for key, tensor in {id(tensor): tensor for tensor in weights(model.graph)}.items():
        found[called.get(key) or _called(tensor)] += tensor.nbytes
    return dict(sorted(found.items()))


def layers(model: Model) -> list[Layer]:
    """Give the layers of ``model`` with what they store, the heaviest first."""
    called = _precisions(model)
    found: dict[str, Counter[str]] = {}
    ops: dict[str, str] = {}
    for tensor, node in _owned(model):
        name = name_of(node)
        ops[name] = node.op_type
        found.setdefault(name, Counter())[called.get(id(tensor)) or _called(tensor)] += tensor.nbytes
    every = [Layer(name, ops[name], dict(sorted(stored.items()))) for name, stored in found.items()]
    return sorted(every, key=lambda layer: -sum(layer.stored.values()))


def library(runtime: str) -> tuple[int, str]:
    """Give the bytes of the library that executes builds of ``runtime``, as it is installed here, and what that is.

    0 bytes with a reason where it is not installed, and where a build holds its own.
    """
    if runtime not in _LIBRARIES:
        return 0, "in the build" if runtime == "runner" else "not installed here"
    total, named = 0, []
    for package, pattern in _LIBRARIES[runtime]:
        try:
            there = distribution(package)
        except PackageNotFoundError:
            return 0, "not installed here"
        paths = [Path(str(there.locate_file(file))) for file in there.files or () if fnmatch(str(file), pattern)]
        total += sum(path.stat().st_size for path in paths if path.is_file())
        named.append(f"{package} {there.version}")
    return total, ", ".join(named)


def _precisions(model: Model) -> dict[int, str]:
    """Give by tensor the bits that are stored for an element of a layer's weight, which may be packed."""
    found = (weight_of(node) for graph in graphs(model.graph) for node in graph)
    return {id(weight.stored): weight.precision for weight in found if weight is not None}


def _called(tensor: ir.TensorProtocol) -> str:
    return _CALLED.get(tensor.dtype, tensor.dtype.name.lower())


def _owned(model: Model) -> Iterator[tuple[ir.TensorProtocol, ir.Node]]:
    """Yield every stored tensor once, with the node that it is for: the first one that reads no constants alone."""
    seen: set[int] = set()
    for graph in graphs(model.graph):
        held = graph.initializers.values() if isinstance(graph, ir.Graph) else ()
        constant = set(held)
        for node in graph:
            read = [value for value in node.inputs if value is not None]
            if constant.issuperset(read) and (read or node.op_type == "Constant"):
                constant |= set(node.outputs)
        for value in (*held, *(node.outputs[0] for node in graph if node.op_type == "Constant")):
            tensor = ir.convenience.get_const_tensor(value)
            reader = _reader(value, constant)
            if tensor is not None and reader is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor, reader


def _reader(value: ir.Value, constant: Container[ir.Value]) -> ir.Node | None:
    """Give the first node behind ``value`` whose result is not ``constant``."""
    reader = next((node for node, _ in value.uses()), None)
    while reader is not None and reader.outputs[0] in constant:
        reader = next((node for node, _ in reader.outputs[0].uses()), None)
    return reader


def _file_bytes(model: Model, stored: int) -> int:
    """Give the bytes of the file that ``model`` came from, and of its weights beside it; the weights' without one."""
    path = Path(model.origin.uri)
    if path.suffix != ".onnx" or not path.is_file():
        return stored
    beside = {
        Path(tensor.path)
        for graph in graphs(model.graph)
        if isinstance(graph, ir.Graph)
        for value in graph.initializers.values()
        if isinstance(tensor := value.const_value, ir.ExternalTensor)
    }
    files = {path.resolve(), *(each.resolve() for each in beside if each.is_file())}
    return sum(each.stat().st_size for each in files)
