"""Load: whatever holds a trained model -> Model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir

from polycast.reading import onnxfile
from polycast.reading.dims import fix_dims
from polycast.reading.exporters import from_hugging_face, from_torch
from polycast.reading.normal import normalise

from .errors import InputError
from .model import Dims, Model, Origin, digest
from .rows import mixing

if TYPE_CHECKING:
    import torch

    Source = str | Path | torch.nn.Module | torch.export.ExportedProgram | onnx.ModelProto | ir.Model | Model


def load(
    source: Source,
    *,
    example_inputs: tuple[Any, ...] | dict[str, Any] | None = None,
    shapes: Mapping[str, Dims] | None = None,
    name: str | None = None,
) -> Model:
    """Load a model, at a current opset, with its weights memory-mapped until touched.

    source: an ONNX file; a folder that holds one, or a Hugging Face model; a Hugging Face id such as ``org/name``
    (``hf:org/name?task=text-generation-with-past`` names the task too: by default a decoder takes no past); a torch
    module or exported program; an ONNX model in memory. An export is checked against the outputs of the original.
    example_inputs: what a torch module is called with, positional or by name.
    shapes: input name -> sizes, 8 to fix one, "..8" for any up to that; a symbol is replaced wherever it occurs.
    name: what to call the model; by default the name of its file, folder or class.

    Returns: the model; one that is loaded already comes back as it is, but for ``shapes`` and ``name``.
    Raises: InputError saying what is wrong, where, what was expected and what was found.
    """
    if isinstance(source, Model):
        model = source
    elif isinstance(source, (str, Path)):
        model = _load_path(str(source))
    elif isinstance(source, onnx.ModelProto):
        model = _in_memory(onnxfile.from_proto(source, "ModelProto"), "ModelProto", source.graph.name)
    elif isinstance(source, ir.Model):
        draft = Model("", source, Origin("", "")).draft()
        model = _in_memory(draft, "ir.Model", source.graph.name)
    else:
        graph, kind, feeds = from_torch(source, example_inputs)
        model = replace(_in_memory(graph, kind, kind), example=feeds)
    if shapes:
        graph = model.draft()
        fix_dims(graph, shapes)
        model = replace(model, graph=graph)
    if model.mixing is None or shapes:
        model = replace(model, mixing=cache(partial(mixing, replace(model, mixing=None))))
    return replace(model, name=name) if name else model


def _load_path(source: str) -> Model:
    location, _, task = source.removeprefix("hf:").partition("?task=")
    path = Path(location)
    if path.is_dir():
        return _load_folder(path, source, task)
    is_id = re.fullmatch(r"[\w.-]+/[\w.-]+", location) and not path.exists() and not path.parent.is_dir()
    if not (is_id or task or source.startswith("hf:")):
        return _load_file(path, source)
    graph, sha256, feeds = from_hugging_face(location, task, local=False)
    return replace(_model(graph, path.name, source, sha256), example=feeds)


def _load_folder(folder: Path, source: str, task: str) -> Model:
    files = sorted(folder.glob("*.onnx"))
    if len(files) == 1 and not task:
        return _load_file(files[0], source)
    if (folder / "config.json").is_file() and (task or not files):
        graph, sha256, feeds = from_hugging_face(str(folder), task, local=True)
        return replace(_model(graph, folder.resolve().name, source, sha256), example=feeds)
    found = ", ".join(file.name for file in files) or "none"
    raise InputError(
        f"{folder} is a folder: expected one .onnx file or a Hugging Face model with its config.json, found {found}",
        "Name the file itself" if files else "",
    )


def _load_file(path: Path, source: str) -> Model:
    graph, sha256 = onnxfile.read(path)
    return _model(graph, path.stem, source, sha256)


def _model(graph: ir.Model, name: str, uri: str, sha256: str) -> Model:
    return Model(name, normalise(graph, uri), Origin(uri, sha256))


def _in_memory(graph: ir.Model, uri: str, name: str | None) -> Model:
    normalise(graph, uri)
    return Model(name or "model", graph, Origin(uri, digest(graph)))
