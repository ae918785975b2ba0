"""The weights of a build: packed one after the other into a few buffers, each of which is a few files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

#: Where a binding may begin: no adapter asks for more than WebGPU's own default.
ALIGN = 256

#: A buffer that every adapter can bind, and a file that every host of static files takes.
BUFFER_BYTES, FILE_BYTES = 128 << 20, 16 << 20


@dataclass(frozen=True)
class Place:
    """Where a weight lies. bytes: as they are bound, whole words."""

    buffer: int
    offset: int
    bytes: int


def write(arrays: Mapping[str, np.ndarray], folder: Path) -> tuple[list[dict[str, Any]], dict[str, Place]]:
    """Write ``weights-<n>.bin`` into ``folder``, equal arrays once.

    Returns: the buffers, each with its ``bytes`` and its ``files``, for the plan; and the place of each array.
    """
    seen: dict[str, Place] = {}
    places: dict[str, Place] = {}
    buffers: list[bytearray] = []
    for name, array in arrays.items():
        data = np.ascontiguousarray(array).tobytes()
        data += b"\0" * (-len(data) % 4)
        digest = hashlib.sha256(data).hexdigest()
        if digest not in seen:
            if not buffers or len(buffers[-1]) + len(data) > BUFFER_BYTES:
                buffers.append(bytearray())
            seen[digest] = Place(len(buffers) - 1, len(buffers[-1]), len(data))
            buffers[-1] += data + b"\0" * (-len(data) % ALIGN)
        places[name] = seen[digest]
    files = 0
    table = []
    for buffer in buffers:
        parts = []
        for start in range(0, len(buffer), FILE_BYTES):
            part = bytes(buffer[start : start + FILE_BYTES])
            file = f"weights-{files}.bin"
            (folder / file).write_bytes(part)
            parts.append({"file": file, "bytes": len(part), "sha256": hashlib.sha256(part).hexdigest()})
            files += 1
        table.append({"bytes": len(buffer), "files": parts})
    return table, places
