"""Weights: put into a folder from where onnxruntime maps them; a file that holds them already is linked, not copied."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from polycast.model import graphs

#: Bytes from which on a tensor lies beside the graph; the runtime reads smaller ones to infer shapes.
_LEAST = 1024

#: What the offset of a tensor in a file is a multiple of, for the runtime to compute on it where it lies.
_ALIGNMENT = 8


def store(model: ir.Model, folder: Path) -> None:
    """Move the large weights of ``model`` into files in ``folder``: the runtime maps only what lies beside a graph."""
    bodies = (graph for graph in graphs(model) if isinstance(graph, ir.Graph))
    values = [value for graph in bodies for value in graph.initializers.values()]
    large = {id(t): t for v in values if (t := v.const_value) is not None and _is_large(t)}
    stored = _linked(large, folder)
    rest = {key: tensor for key, tensor in large.items() if key not in stored}
    if rest:
        copies = ir.external_data.convert_tensors_to_external(list(rest.values()), folder, "weights")
        stored |= dict(zip(rest, copies, strict=True))
    for value in values:
        tensor = value.const_value
        if id(tensor) in stored:
            value.const_value = stored[id(tensor)]
        elif isinstance(tensor, ir.ExternalTensor):
            value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)


def _is_large(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype != ir.DataType.STRING and tensor.nbytes >= _LEAST


def _linked(tensors: Mapping[int, ir.TensorProtocol], folder: Path) -> dict[int, ir.ExternalTensor]:
    """Link the files that ``tensors`` lie in, where a processor can read them there; give them by the same keys."""
    links: dict[str, str | None] = {}
    found: dict[int, ir.ExternalTensor] = {}
    for key, tensor in tensors.items():
        if isinstance(tensor, ir.ExternalTensor) and not (tensor.offset or 0) % _ALIGNMENT:
            path = os.path.realpath(tensor.path)
            if path not in links:
                links[path] = _link(path, folder, f"weights.{len(links)}")
            if (link := links[path]) is not None:
                place = (link, tensor.offset, tensor.length, tensor.dtype)
                shape = ir.Shape(tensor.shape)
                found[key] = ir.ExternalTensor(*place, shape=shape, name=tensor.name or "", base_dir=folder)
    return found


def _link(path: str, folder: Path, name: str) -> str | None:
    try:
        os.link(path, folder / name)
    except OSError:  # on another file system, or not allowed
        return None
    return name
