"""Which types LiteRT's kernels take, where they read numbers and no codes: some crash on any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .tensors import Tensor

_INTS = frozenset({"int32", "int64"})
_FLOAT = frozenset({"float32"})
_NUMBERS = _FLOAT | _INTS
_BYTES = frozenset({"int8", "uint8"})
_MOVED = _NUMBERS | _BYTES | {"bool", "int16"}
_HALF = frozenset({"float16"})

#: By operator; one that is not here takes float32 alone.
_TAKES: Mapping[str, frozenset[str]] = {
    "ABS": _FLOAT | {"int32"},
    "ADD": _NUMBERS,
    "ARG_MAX": _FLOAT | {"int32"},
    "ARG_MIN": _FLOAT | {"int32"},
    "BROADCAST_TO": _MOVED,
    "CAST": _MOVED | _HALF | {"float64", "uint16", "uint32"},
    "CONCATENATION": _MOVED,
    "CUMSUM": _NUMBERS,
    "DEQUANTIZE": _BYTES | _HALF | {"int16"},
    "DIV": _FLOAT | {"int32"},
    "EMBEDDING_LOOKUP": _FLOAT,
    "EQUAL": _NUMBERS | {"bool"},
    "FLOOR_DIV": _FLOAT | {"int32"},
    "GATHER": _MOVED | _HALF,
    "GATHER_ND": _MOVED,
    "GREATER": _NUMBERS,
    "GREATER_EQUAL": _NUMBERS,
    "LESS": _NUMBERS,
    "LESS_EQUAL": _NUMBERS,
    "LOGICAL_AND": frozenset({"bool"}),
    "LOGICAL_NOT": frozenset({"bool"}),
    "LOGICAL_OR": frozenset({"bool"}),
    "MAXIMUM": _NUMBERS | _BYTES | {"int16"},
    "MEAN": _NUMBERS,
    "MINIMUM": _NUMBERS | _BYTES | {"int16"},
    "MIRROR_PAD": _NUMBERS,
    "MUL": _NUMBERS,
    "NEG": _NUMBERS,
    "NOT_EQUAL": _NUMBERS | {"bool"},
    "ONE_HOT": _MOVED,
    "PAD": _NUMBERS,
    "PADV2": _NUMBERS,
    "POW": _FLOAT | {"int32"},
    "FILL": _INTS,
    "RANGE": _NUMBERS,
    "REDUCE_MAX": _NUMBERS,
    "REDUCE_MIN": _NUMBERS,
    "REDUCE_PROD": _NUMBERS,
    "RESHAPE": _MOVED | _HALF | {"float64"},
    "SCATTER_ND": _NUMBERS | {"bool"},
    "SELECT_V2": _MOVED,
    "SLICE": _MOVED,
    "SPLIT": _NUMBERS | {"int16"},
    "SPLIT_V": _NUMBERS | {"int16"},
    "STRIDED_SLICE": _MOVED,
    "SUB": _NUMBERS,
    "SUM": _NUMBERS,
    "TILE": _NUMBERS | {"bool"},
    "TOPK_V2": _NUMBERS,
    "TRANSPOSE": _MOVED,
}

#: Which input is looked at, where it is not the first: that one says where, or whether.
_DATA = {"EMBEDDING_LOOKUP": 1, "ONE_HOT": 2, "SELECT_V2": 1, "SPLIT": 1, "SCATTER_ND": 1, "TRANSPOSE_CONV": 2}

#: Operators whose two operands are of one type.
_ALIKE = {
    "ADD", "DIV", "EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL", "MAXIMUM", "MINIMUM", "MUL", "NOT_EQUAL",
    "POW", "SUB",
}  # fmt: skip


def lacking(kind: str, inputs: Sequence[Tensor | None]) -> str:
    """Say why no kernel takes ``inputs``; "" where one does, and for codes, which the caller knows about."""
    data = inputs[_DATA.get(kind, 0)]
    if data is None or data.grid is not None or data.dtype == "int4":
        return ""
    if data.dtype not in _TAKES.get(kind, _FLOAT):
        return f"{kind} of {data.dtype}"
    if kind in _ALIKE and len({tensor.dtype for tensor in inputs if tensor is not None}) > 1:
        return f"{kind} of {' and '.join(tensor.dtype for tensor in inputs if tensor is not None)}"
    return ""
