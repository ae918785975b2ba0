"""Model: an ONNX graph, its signature, where it came from and what was done to it."""

from __future__ import annotations

import copy
import hashlib
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from .errors import InputError

if TYPE_CHECKING:
    import numpy as np

# Inference that fails leaves the shapes open, which every pass can live with; a traceback on stderr helps nobody.
logging.getLogger("onnx_ir.passes.common.shape_inference").setLevel(logging.CRITICAL)

#: Graphs are brought to this opset at load. 23 is the first one with Attention, RotaryEmbedding and RMSNormalization.
OPSET = 23

#: Weights above this many bytes are written beside the graph, since one protobuf message holds 2 GiB at most.
INLINE_BYTES = 512 << 20

#: Where a tensor keeps its digest: in its own metadata, so that it goes when the tensor goes.
_DIGEST = "polycast.sha256"


@dataclass(frozen=True)
class Port:
    """One input or output of a model.

    ``shape`` holds an int for a fixed dimension, a str for a symbolic one, "?" for an unknown one;
    it is None where not even the rank is known.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...] | None

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape)) if self.shape is not None else '…'}]"


@dataclass(frozen=True)
class Signature:
    """What a model takes and gives, in order."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    @classmethod
    def of(cls, graph: ir.Graph) -> Signature:
        """Read the signature of ``graph``; an initializer that is listed as an input is not an input."""
        return cls(
            tuple(_port(v) for v in graph.inputs if v.name not in graph.initializers),
            tuple(_port(v) for v in graph.outputs),
        )

    @classmethod
    def from_json(cls, table: Mapping[str, list[dict[str, Any]]]) -> Signature:
        """Read what ``to_json`` gave."""

        def ports(key: str) -> tuple[Port, ...]:
            return tuple(
                Port(p["name"], p["dtype"], None if p["shape"] is None else tuple(p["shape"])) for p in table[key]
            )

        return cls(ports("inputs"), ports("outputs"))

    @property
    def batch(self) -> str | None:
        """Symbol that is the first dimension of every input, and no other dimension of any."""
        firsts = {port.shape[0] if port.shape else None for port in self.inputs}
        symbol = firsts.pop() if len(firsts) == 1 else None
        others = {"?", *(dim for port in self.inputs for dim in (port.shape or ())[1:])}
        return symbol if isinstance(symbol, str) and symbol not in others else None

    def to_json(self) -> dict[str, list[dict[str, Any]]]:
        """Spell the signature for a manifest."""
        return {"inputs": [asdict(p) for p in self.inputs], "outputs": [asdict(p) for p in self.outputs]}

    def check(self, feeds: Mapping[str, np.ndarray], where: str = "the feeds") -> None:
        """Hold one run's feeds against this signature: names, dtypes, ranks, fixed dimensions.

        Raises: InputError saying which input, where, expected, found.
        """
        ports = {port.name: port for port in self.inputs}
        for name in feeds:
            if name not in ports:
                near = get_close_matches(name, ports, n=1)
                raise InputError(
                    f"{where}: the model has no input {name!r}; it takes {', '.join(map(str, self.inputs))}",
                    f"Did you mean {near[0]!r}?" if near else "",
                )
        for name, port in ports.items():
            if name not in feeds:
                raise InputError(f"{where}: no array for the input {port}", f"Found: {', '.join(feeds) or 'nothing'}")
            array = feeds[name]
            if port.dtype != "str" and array.dtype.name != port.dtype:
                raise InputError(
                    f"{where}: {name} is {array.dtype.name}, the model takes {port.dtype}",
                    f'Convert it: {name}.astype("{port.dtype}")',
                )
            if port.shape is not None and not _fits(array.shape, port.shape):
                raise InputError(f"{where}: {name} has shape {list(array.shape)}, the model takes {port}")


@dataclass(frozen=True)
class Origin:
    """Where a model came from: ``uri`` as the user gave it, ``sha256`` over graph and weights as they were read."""

    uri: str
    sha256: str


@dataclass(frozen=True)
class Skip:
    """A place where a pass could have acted and did not."""

    node: str
    op: str
    reason: str

    def __str__(self) -> str:
        return f"{self.node} ({self.op}): {self.reason}"


@dataclass(frozen=True)
class Step:
    """One pass that a model has been through. ``what`` is its exact recipe spelling; ``seconds`` is wall time."""

    what: str
    sites: int
    skips: tuple[Skip, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Model:
    """A frozen ONNX model.

    Nothing changes ``graph`` in place: a pass works on ``draft()``. Weights stay memory-mapped until touched.
    example: inputs that the framework it came from ran on, where it came from one.
    prepared: by input, how images became it, where the samples are images: see ``Preprocess.facts``.
    mixing: runs the original to say why rows of its batch cannot be run one by one; nothing where they can: ``rows``.
    """

    name: str
    graph: ir.Model
    origin: Origin
    history: tuple[Step, ...] = ()
    example: Mapping[str, np.ndarray] | None = field(default=None, compare=False, repr=False)
    prepared: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, compare=False, repr=False)
    mixing: Callable[[], str] | None = field(default=None, compare=False, repr=False)

    @cached_property
    def signature(self) -> Signature:
        """What the model takes and gives."""
        return Signature.of(self.graph.graph)

    @property
    def batch(self) -> str | None:
        """Symbol of the rows that inputs and outputs consist of, where each was seen to be computed on its own."""
        return self.signature.batch if not self.unsplit else None

    @property
    def unsplit(self) -> str:
        """Why the batch that its inputs have cannot be run row by row; nothing where it can, or there is none."""
        look = self.mixing or (lambda: "nobody saw whether its rows mix")
        return look() if self.signature.batch else ""

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of the structure and the weights; names inside the graph do not count."""
        return digest(self.graph)

    @property
    def opset(self) -> int:
        """Version of the default ONNX domain."""
        return self.graph.opset_imports[""]

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, each stored one counted once."""
        return sum({id(t): t.nbytes for t in weights(self.graph)}.values())

    def draft(self) -> ir.Model:
        """Copy the graph for a pass to work on; the copy shares the weights."""
        draft = self.graph.clone()
        for graph in graphs(draft):
            initializers = graph.initializers.values() if isinstance(graph, ir.Graph) else ()
            for value in (*graph.inputs, *initializers, *(v for node in graph for v in node.outputs)):
                value.type = copy.deepcopy(value.type)  # clone() shares it, and ``value.dtype = …`` changes it in place
        return draft

    def then(self, graph: ir.Model, step: Step) -> Model:
        """Give the model that ``step`` made of this one."""
        return replace(self, graph=graph, history=(*self.history, step))

    def write(self, path: Path) -> None:
        """Write the model to ``path`` (and ``path`` + ".data" above INLINE_BYTES): same model, same bytes.

        Raises: InputError when the disk is full or not writable.
        """
        draft = self.draft()
        data = path.with_name(path.name + ".data")
        if any(os.path.samefile(file, path) for file in _files(draft) if path.exists()):
            raise InputError(f"cannot write {path}: this model's weights are read from it", "Write to another file")
        try:
            if self.weight_bytes <= INLINE_BYTES:
                _unfile(draft)
                ir.save(draft, path)
            else:
                ir.save(draft, path, external_data=data.name)
        except OSError as error:
            for part in (path, data):
                if part.is_file():
                    part.unlink()
            raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def _files(model: ir.Model) -> set[str]:
    """Name the files that weights of ``model`` are read from."""
    return {tensor.path for tensor in weights(model) if isinstance(tensor, ir.ExternalTensor)}


def _unfile(model: ir.Model) -> None:
    """Turn each weight that lies in a file into one that is written with the graph; it stays memory-mapped.

    ``ir.external_data.load_to_model`` would unmap it, which fails while a pass's result still looks at it.
    """
    for graph in graphs(model):
        for value in graph.initializers.values() if isinstance(graph, ir.Graph) else ():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)


def graphs(model: ir.Model) -> Iterator[ir.Graph | ir.Function]:
    """Yield the main graph, every subgraph under it, and every function."""
    yield model.graph
    yield from model.graph.subgraphs()
    for function in model.functions.values():
        yield function
        yield from function.subgraphs()


def name_of(node: ir.Node) -> str:
    """Name a node for its user: by its own name, or by its first output where it has none."""
    return node.name or (node.outputs[0].name if node.outputs else "") or "?"


def named(node: ir.Node, patterns: Collection[str]) -> bool:
    """Whether one of ``patterns`` means ``node``: its name, its op type, or a glob that its name matches."""
    name = name_of(node)
    return name in patterns or node.op_type in patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


def values(graph: ir.Graph | ir.Function) -> Iterator[ir.Value]:
    """Yield every value that ``graph`` itself makes: inputs, initializers, outputs of nodes; no subgraph's."""
    yield from graph.inputs
    if isinstance(graph, ir.Graph):
        yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def weights(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Yield the tensor of every initializer and of every tensor attribute, subgraphs and functions included."""
    for graph in graphs(model):
        if isinstance(graph, ir.Graph):
            for value in graph.initializers.values():
                if value.const_value is not None:
                    yield value.const_value
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    yield attribute.as_tensor()


#: The sizes that an input is given: a number, or ``..8`` for any up to that one.
Dims = tuple[int | str, ...]

#: What a dimension that may have any size up to some number is called; ONNX knows no bounds, so that the name says it.
_UP_TO = "upto_"


def up_to(most: int) -> str:
    """Give the symbol of a dimension that has ``most`` at most."""
    return f"{_UP_TO}{most}"


def most_of(dim: int | str) -> int | None:
    """Give the largest size that ``dim`` may have; None where nothing is said of it."""
    if isinstance(dim, int):
        return dim
    number = dim.removeprefix(_UP_TO)
    return int(number) if dim.startswith(_UP_TO) and number.isdecimal() else None


def _fits(found: tuple[int, ...], wanted: tuple[int | str, ...]) -> bool:
    if len(found) != len(wanted):
        return False
    return all(f == w if isinstance(w, int) else f <= (most_of(w) or f) for f, w in zip(found, wanted, strict=True))


def _port(value: ir.Value) -> Port:
    shape: tuple[int | str, ...] | None = None
    if value.shape is not None:
        shape = tuple(d if isinstance(d, int) else (d.value or "?") for d in value.shape)
    dtype = value.dtype.numpy().name if value.dtype is not None and value.dtype != ir.DataType.STRING else "str"
    return Port(value.name or "", dtype, shape)


def digest(model: ir.Model) -> str:
    """sha256 (hex) of structure and weights; values are numbered in order, so renaming changes nothing."""
    h = hashlib.sha256()
    numbers: dict[ir.Value | None, int] = {None: -1}

    def put(*parts: object) -> None:
        h.update(repr(parts).encode())

    def number(value: ir.Value | None) -> int:
        return numbers.setdefault(value, len(numbers))

    def put_attribute(attribute: ir.Attr) -> None:
        kind = ir.AttributeType
        if attribute.is_ref():
            put(attribute.name, "ref", attribute.ref_attr_name)
        elif attribute.type == kind.TENSOR:
            put(attribute.name, tensor_digest(attribute.as_tensor()))
        elif attribute.type == kind.GRAPH:
            put(attribute.name, "graph")
            put_graph(attribute.as_graph())
        elif attribute.type == kind.GRAPHS:
            for graph in attribute.as_graphs():
                put_graph(graph)
        else:
            put(attribute.name, attribute.type, attribute.value)

    def put_graph(graph: ir.Graph | ir.Function) -> None:
        if isinstance(graph, ir.Graph):
            # An initializer that nothing reads is dead weight, not structure: it is counted, so that removing it shows.
            put("initializers", len(graph.initializers))
            for value in graph.initializers.values():
                if value.is_graph_output() or not value.uses():
                    put(number(value), value.const_value and tensor_digest(value.const_value))
        put("inputs", [(number(v), v.name, str(v.type), str(v.shape)) for v in graph.inputs])
        for node in graph:
            for operand in node.inputs:
                if operand is not None and operand not in numbers and operand.const_value is not None:
                    put(number(operand), tensor_digest(operand.const_value))
            put(node.domain, node.op_type, node.overload, [number(v) for v in node.inputs])
            for name in sorted(node.attributes):
                put_attribute(node.attributes[name])
            put([number(v) for v in node.outputs])
        put("outputs", [(number(v), v.name if graph is model.graph else "") for v in graph.outputs])

    put(sorted(model.opset_imports.items()))
    put_graph(model.graph)
    for key in sorted(model.functions):
        put(key)
        put_graph(model.functions[key])
    return h.hexdigest()


def tensor_digest(tensor: ir.TensorProtocol) -> str:
    """sha256 (hex) of dtype, shape and bytes. Remembered, since drafts share their weights."""
    known: str | None = tensor.meta.get(_DIGEST)
    if known is not None:
        return known
    h = hashlib.sha256(repr((str(tensor.dtype), [str(d) for d in tensor.shape])).encode())
    if tensor.dtype == ir.DataType.STRING:
        h.update(repr(tensor.numpy().tolist()).encode())
    elif isinstance(tensor, ir.ExternalTensor):
        for chunk in _file_chunks(tensor):
            h.update(chunk)
    else:
        h.update(tensor.tobytes())
    tensor.meta[_DIGEST] = h.hexdigest()
    return h.hexdigest()


def _file_chunks(tensor: ir.ExternalTensor, size: int = 16 << 20) -> Iterator[bytes]:
    """Read the bytes of a mapped tensor from its file: pages read this way do not count as ours."""
    left = tensor.nbytes
    with open(tensor.path, "rb") as file:
        file.seek(tensor.offset or 0)
        while left and (chunk := file.read(min(size, left))):
            left -= len(chunk)
            yield chunk
