"""Reading ONNX files: lazily, since models are large, and with care, since a model file is untrusted input."""

from __future__ import annotations

import hashlib
import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from polycast.errors import InputError

from .wire import LARGE, SAME_FILE, MalformedError, without_weights

_EXPORT = (
    "Export it to ONNX first: torch.onnx.export(module, args, 'model.onnx', dynamo=True), "
    "or give the module itself to polycast.load(module, example_inputs=args)"
)
_PICKLES = {".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".bin"}
_MAGIC = (
    (0, b"\x89PNG", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"\x89HDF", "an HDF5 file (Keras?)"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"GGUF", "a GGUF file"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself (git lfs pull fetches it)"),
    (4, b"TFL3", "a LiteRT (TensorFlow Lite) model"),
    (4, b"ORTM", "an onnxruntime .ort file"),
    (8, b'{"', "a safetensors file: weights without a graph"),
)


def read(path: Path) -> tuple[ir.Model, str]:
    """Read the ONNX file at ``path``. Weights above 1 KiB stay in their file, memory-mapped when touched.

    Returns: the model as the file has it, and the sha256 (hex) of the file followed by its external data.
    Raises: InputError for anything that is not a whole ONNX model with its weights beside it.
    """
    proto = _parse(path)
    _check_frame(proto, path)
    external = _bind_weights(proto, path)
    try:
        model = ir.serde.deserialize_model(proto)
    except Exception as error:  # onnx-ir raises many kinds on a graph that makes no sense
        raise InputError(f"{path} is not a valid model: {_first_line(error)}") from error
    return model, _sha256(path, *(external[location] for location in sorted(external)))


def from_proto(proto: onnx.ModelProto, source: str) -> ir.Model:
    """Give the model of ``proto``, which is in memory with its weights.

    Raises: InputError, also where weights lie in files: their folder is not known here.
    """
    _check_frame(proto, source)
    for tensor, _ in _tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise InputError(
                f"{source}: tensor {tensor.name!r} is external data of a file", "Load the file by its path"
            )
    return ir.serde.deserialize_model(proto)


def _parse(path: Path) -> onnx.ModelProto:
    try:
        with path.open("rb") as f:
            size = path.stat().st_size
            if size == 0:
                raise InputError(f"{path} is empty: expected an ONNX model")
            with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as file:
                return _parse_mapped(file, path)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _parse_mapped(file: mmap.mmap, path: Path) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(without_weights(file))
    except (MalformedError, DecodeError) as error:
        raise _not_a_model(file, path, error) from error
    if not proto.HasField("graph"):
        raise _not_a_model(file, path, "it holds no graph")
    return proto


def _not_a_model(file: mmap.mmap, path: Path, reason: object) -> InputError:
    size, head = len(file), file[:512]
    kind = next((kind for at, magic, kind in _MAGIC if head[at:].startswith(magic)), None)
    is_pickle = head[0] == 0x80 and head[1:2] in (b"\2", b"\3", b"\4", b"\5")
    if is_pickle or (path.suffix in _PICKLES and kind in (None, "a zip archive")):
        return InputError(
            f"{path} is a Python pickle ({path.suffix or 'no suffix'}): expected an ONNX model. "
            "No pickle is ever loaded, since loading one runs the code inside it",
            _EXPORT,
        )
    if kind is None and _is_text(head):
        kind = "a text file"
    if kind is not None:
        return InputError(f"{path} is {kind}: expected an ONNX model")
    if isinstance(reason, MalformedError) and reason.needed > size:
        return InputError(
            f"{path} is truncated or no ONNX model: expected at least {reason.needed} bytes, found {size}",
            "Copy or download the file again",
        )
    return InputError(f"{path} is not an ONNX model: {_first_line(reason)}")


def _is_text(head: bytes) -> bool:
    text = head.decode("utf-8", errors="ignore")
    return len(text.encode()) >= len(head) - 3 and all(c.isprintable() or c in "\t\r\n\f" for c in text)


def _check_frame(proto: onnx.ModelProto, source: Path | str) -> None:
    if not proto.opset_import:
        raise InputError(
            f"{source} has no opset_import: expected the version of each operator set, found none",
            "The file is truncated, or its exporter is broken: export the model again",
        )
    if not proto.graph.output:
        raise InputError(f"{source} has no outputs: expected at least one graph output, found none")
    if any(g.sparse_initializer for g in _graphs(proto.graph)):
        raise InputError(f"{source} has sparse initializers, which are not supported", "Store these weights dense")


@dataclass(frozen=True)
class _Place:
    """Where the bytes of a tensor lie."""

    file: Path
    offset: int
    length: int

    def read(self) -> bytes:
        with self.file.open("rb") as f:
            f.seek(self.offset)
            return f.read(self.length)


def _bind_weights(proto: onnx.ModelProto, path: Path) -> dict[str, Path]:
    """Check every tensor's bytes, and point each weight that stays on disk at its checked, absolute place.

    Returns: location -> file of the external data.
    """
    external: dict[str, Path] = {}
    for tensor, is_weight in _tensors(proto):
        expected = _expected_bytes(tensor, path)
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            if tensor.HasField("raw_data") and len(tensor.raw_data) != expected:
                raise _wrong_length(tensor, path, expected, len(tensor.raw_data))
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        file = path if location == SAME_FILE else external.setdefault(location, _contained(location, tensor.name, path))
        place = _place(entries, file, tensor, expected, path)
        del tensor.external_data[:]
        if is_weight and expected > LARGE:
            for key, text in (("location", place.file.absolute()), ("offset", place.offset), ("length", place.length)):
                tensor.external_data.add(key=key, value=str(text))
        else:
            tensor.data_location = onnx.TensorProto.DEFAULT
            tensor.raw_data = place.read()
    return external


def _contained(location: str, tensor: str, path: Path) -> Path:
    """Resolve ``location`` beside the model; where the model is a symbolic link, beside what it points to."""
    where = f"{path}: external data of tensor {tensor!r}"
    file = (path.parent / location).resolve()
    roots = (path.parent.resolve(), path.resolve().parent)
    if not location or Path(location).is_absolute() or not any(file.is_relative_to(root) for root in roots):
        raise InputError(
            f"{where} leaves the model's folder: expected a file under {roots[0]}, found {location!r}",
            "Put the data file beside the model and save the model again",
        )
    if not file.is_file():
        raise InputError(
            f"{where} is missing: expected {path.parent / location}, found no such file",
            "Copy the data file together with the model",
        )
    return file


def _place(entries: dict[str, str], file: Path, tensor: onnx.TensorProto, expected: int, path: Path) -> _Place:
    where = f"{path}: tensor {tensor.name!r} in {file.name}"
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", expected))
    except ValueError as error:
        raise InputError(f"{where}: offset and length are no numbers: {error}") from error
    if length != expected:
        raise _wrong_length(tensor, path, expected, length)
    size = file.stat().st_size
    if offset < 0 or offset + length > size:
        raise InputError(
            f"{where} lies at bytes {offset} to {offset + length}: expected at least {offset + length} "
            f"bytes, found {size}",
            "The file is truncated: copy or download it again",
        )
    return _Place(file, offset, length)


def _expected_bytes(tensor: onnx.TensorProto, path: Path) -> int:
    try:
        bits = 0 if tensor.data_type == onnx.TensorProto.STRING else ir.DataType(tensor.data_type).bitwidth
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: tensor {tensor.name!r} has unknown data type {tensor.data_type}") from error
    if any(d < 0 for d in tensor.dims):
        raise InputError(f"{path}: tensor {tensor.name!r} has shape {list(tensor.dims)}: expected no negative one")
    elements: int = math.prod(tensor.dims)
    return (elements * bits + 7) // 8


def _wrong_length(tensor: onnx.TensorProto, path: Path, expected: int, found: int) -> InputError:
    kind = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
    shape = list(tensor.dims)
    return InputError(f"{path}: tensor {tensor.name!r}: expected {expected} bytes for {kind}{shape}, found {found}")


def _tensors(proto: onnx.ModelProto) -> Iterator[tuple[onnx.TensorProto, bool]]:
    """Yield every tensor, with True for the main graph's initializers, which may stay in their file."""
    for graph in _graphs(proto.graph):
        for tensor in graph.initializer:
            yield tensor, graph is proto.graph
    for body in (*_graphs(proto.graph), *proto.functions):
        for node in body.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t, False
                for tensor in attribute.tensors:
                    yield tensor, False


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
            for inner in attribute.graphs:
                yield from _graphs(inner)


def _sha256(*files: Path) -> str:
    h = hashlib.sha256()
    for file in files:
        with file.open("rb") as f:
            hashlib.file_digest(f, lambda: h)
    return h.hexdigest()


def _first_line(error: object) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
