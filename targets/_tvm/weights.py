"""The weights of a build, in one file that can be mapped: the safetensors layout, written in one fixed order."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

#: Spelling of dtypes in the file.
DTYPES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "float16": "F16",
    "uint32": "U32", "int32": "I32", "float32": "F32", "uint64": "U64", "int64": "I64", "float64": "F64",
}  # fmt: skip


def write(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Write ``arrays`` to ``path``, the widest dtypes first, so that each starts at a multiple of its item size.

    Source: the safetensors format: 8 bytes of length, a JSON header, the bytes of every tensor with no gap.
    """
    order = sorted(arrays, key=lambda name: -arrays[name].itemsize)
    header: dict[str, object] = {}
    at = 0
    for name in order:
        array = arrays[name]
        end = at + array.nbytes
        header[name] = {"dtype": DTYPES[array.dtype.name], "shape": list(array.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(np.ascontiguousarray(arrays[name]).data)
