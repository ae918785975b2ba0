"""The bytes of a LiteRT file: its FlatBuffer, the same for the same operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .tensors import Blocks, Grid, Operator, Subgraph, Tensor
from .versions import version

#: Operators whose table of options is not called after them.
_OPTIONS = {
    "ABS": "AbsOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "BATCH_MATMUL": "BatchMatMulOptions",
    "L2_NORMALIZATION": "L2NormOptions",
    "L2_POOL_2D": "Pool2DOptions",
    "LSTM": "LSTMOptions",
    "MAXIMUM": "MaximumMinimumOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "MEAN": "ReducerOptions",
    "MINIMUM": "MaximumMinimumOptions",
    "PADV2": "PadV2Options",
    "REDUCE_ALL": "ReducerOptions",
    "REDUCE_ANY": "ReducerOptions",
    "REDUCE_MAX": "ReducerOptions",
    "REDUCE_MIN": "ReducerOptions",
    "REDUCE_PROD": "ReducerOptions",
    "REVERSE_V2": "ReverseV2Options",
    "SELECT_V2": "SelectV2Options",
    "SPLIT_V": "SplitVOptions",
    "SUM": "ReducerOptions",
    "TOPK_V2": "TopKV2Options",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "UnidirectionalSequenceLSTMOptions",
}

#: The one function that a program calls, under the name that LiteRT's own tools look for.
_SIGNATURE = "serving_default"

#: Weights lie at multiples of this many bytes, as the schema asks.
_ALIGNMENT = 16

#: A FlatBuffer addresses its parts with 31 bits.
LARGEST = (1 << 31) - 1


def write(main: Subgraph, names: tuple[Sequence[str], Sequence[str]], metadata: Mapping[str, bytes]) -> bytes:
    """Give the bytes of a file that runs ``main``.

    names: of its inputs and of its outputs, for its signature. metadata: by name.
    """
    from ai_edge_litert import schema_py_generated as schema

    return _Writer(schema, metadata).write([main], names)


class _Writer:
    def __init__(self, schema: Any, metadata: Mapping[str, bytes]) -> None:
        self.schema = schema
        self.metadata = metadata
        self.buffers: list[Any] = [schema.BufferT()]  # the first one is empty, and stands for no data
        self.known: dict[tuple[str, bytes], int] = {}
        self.codes: dict[tuple[str, int], int] = {}

    def write(self, subgraphs: Sequence[Subgraph], names: tuple[Sequence[str], Sequence[str]]) -> bytes:
        model = self.schema.ModelT()
        model.version = 3
        model.description = "polycast"
        model.subgraphs = [self._subgraph(one) for one in subgraphs]
        model.operatorCodes = [self._code(kind, number) for kind, number in self.codes]
        model.signatureDefs = [self._signature(subgraphs[0], *names)]
        model.metadata = [self._metadata(name, content) for name, content in self.metadata.items()]
        model.buffers = self.buffers
        return _pack(model)

    def _subgraph(self, subgraph: Subgraph) -> Any:
        tensors = subgraph.tensors
        index = {tensor: at for at, tensor in enumerate(tensors)}
        made = self.schema.SubGraphT()
        made.name = subgraph.name
        made.tensors = [self._tensor(tensor, index) for tensor in tensors]
        made.inputs = _indices(index, subgraph.inputs)
        made.outputs = _indices(index, subgraph.outputs)
        made.operators = [self._operator(each, index) for each in subgraph.operators]
        return made

    def _tensor(self, tensor: Tensor, index: Mapping[Tensor, int]) -> Any:
        made = self.schema.TensorT()
        made.name = tensor.name
        made.shape = np.array(tensor.shape, np.int32)
        if tensor.signature is not None:
            made.shapeSignature = np.array(tensor.signature, np.int32)
        made.type = getattr(self.schema.TensorType, tensor.dtype.upper())
        made.hasRank = True
        made.buffer = self._buffer(tensor)
        if tensor.grid is not None:
            made.quantization = self._quantization(tensor.grid)
        if tensor.blocks is not None:
            made.quantization = self._blockwise(tensor.blocks, index)
        return made

    def _buffer(self, tensor: Tensor) -> int:
        if tensor.data is None:
            return 0
        content = packed(tensor.data) if tensor.dtype == "int4" else np.ascontiguousarray(tensor.data).tobytes()
        key = (tensor.dtype, content)
        if key not in self.known:
            self.known[key] = self._hold(content)
        return self.known[key]

    def _hold(self, content: bytes) -> int:
        buffer = self.schema.BufferT()
        buffer.data = np.frombuffer(content, np.uint8)
        self.buffers.append(buffer)
        return len(self.buffers) - 1

    def _quantization(self, grid: Grid) -> Any:
        made = self.schema.QuantizationParametersT()
        made.scale = np.array(grid.scale, np.float32)
        made.zeroPoint = np.full(len(grid.scale), grid.zero, np.int64)
        made.quantizedDimension = grid.axis or 0
        return made

    def _blockwise(self, blocks: Blocks, index: Mapping[Tensor, int]) -> Any:
        details = self.schema.BlockwiseQuantizationT()
        details.scales, details.zeroPoints, details.blockSize = index[blocks.scales], -1, blocks.size
        made = self.schema.QuantizationParametersT()
        made.detailsType = self.schema.QuantizationDetails.BlockwiseQuantization
        made.details = details
        return made

    def _operator(self, operator: Operator, index: Mapping[Tensor, int]) -> Any:
        made = self.schema.OperatorT()
        made.opcodeIndex = self.codes.setdefault((operator.kind, version(operator)), len(self.codes))
        made.inputs = np.array([-1 if t is None else index[t] for t in operator.inputs], np.int32)
        made.outputs = _indices(index, operator.outputs)
        if (name := options_of(operator.kind, self.schema)) is not None:
            made.builtinOptionsType = getattr(self.schema.BuiltinOptions, name)
            made.builtinOptions = getattr(self.schema, f"{name}T")()
            for key, value in operator.options.items():
                assert hasattr(made.builtinOptions, key), f"{name} has no {key}"
                setattr(made.builtinOptions, key, value)
        return made

    def _code(self, kind: str, number: int) -> Any:
        made = self.schema.OperatorCodeT()
        code = getattr(self.schema.BuiltinOperator, kind)
        made.builtinCode = code
        made.deprecatedBuiltinCode = min(code, 127)  # what readers of before 2021 look at
        made.version = number
        return made

    def _signature(self, main: Subgraph, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
        index = {tensor: at for at, tensor in enumerate(main.tensors)}
        made = self.schema.SignatureDefT()
        made.signatureKey = _SIGNATURE
        made.subgraphIndex = 0
        made.inputs = [self._port(name, index[t]) for name, t in zip(inputs, main.inputs, strict=True)]
        made.outputs = [self._port(name, index[t]) for name, t in zip(outputs, main.outputs, strict=True)]
        return made

    def _port(self, name: str, at: int) -> Any:
        made = self.schema.TensorMapT()
        made.name, made.tensorIndex = name, at
        return made

    def _metadata(self, name: str, content: bytes) -> Any:
        made = self.schema.MetadataT()
        made.name, made.buffer = name, self._hold(content)
        return made


def _indices(index: Mapping[Tensor, int], tensors: Sequence[Tensor]) -> np.ndarray:
    return np.array([index[tensor] for tensor in tensors], np.int32)


def options_of(kind: str, schema: Any) -> str | None:
    """Name the table of options of an operator; None where it has none."""
    named = "".join(part if part[0].isdigit() else part.capitalize() for part in kind.split("_"))
    name = _OPTIONS.get(kind, f"{named.replace('2d', '2D').replace('3d', '3D')}Options")
    return name if hasattr(schema.BuiltinOptions, name) else None


def packed(codes: np.ndarray) -> bytes:
    """Give int4 codes two to a byte, the first in the low bits."""
    assert not codes.size or (codes.min() >= -8 and codes.max() <= 7), "codes of more than 4 bits"
    flat = codes.reshape(-1).astype(np.uint8) & 15
    low, high = flat[0::2], np.append(flat, 0)[1::2] if flat.size % 2 else flat[1::2]
    return (low | high << 4).astype(np.uint8).tobytes()


def _pack(model: Any) -> bytes:
    import flatbuffers

    class Builder(flatbuffers.Builder):  # type: ignore[misc]  # the package has no types
        """Aligns bulk data as the schema asks; the classes that are made from the schema do not."""

        def StartVector(self, size: int, count: int, alignment: int) -> Any:
            return super().StartVector(size, count, _ALIGNMENT if size == 1 else alignment)

    builder = Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
