"""Open this build with LiteRT. It lies in the build as session.py, and needs numpy alone beside its runtime."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


class LiteRtSession:
    """A build that is open, and runs on arrays by input name."""

    def __init__(self, folder: Path, threads: int = 1) -> None:
        from ai_edge_litert.interpreter import Interpreter

        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        self.by_row = manifest["runtime"]["by_row"]
        self.ports = manifest["signature"]["inputs"]
        self.names = [port["name"] for port in self.ports]
        self.interpreter: Any = Interpreter(str(folder / manifest["runtime"]["model"]), num_threads=threads)
        details = self.interpreter.get_input_details()
        self.inputs = [each["index"] for each in details]
        self.outputs = [each["index"] for each in self.interpreter.get_output_details()]
        self.sizes = [each["shape_signature"].tolist() or each["shape"].tolist() for each in details]  # -1: any
        self.shapes: list[tuple[int, ...]] | None = None
        self.one_at_a_time = threading.Lock()
        self.is_open = any(-1 in size for size in self.sizes)
        if not self.is_open:
            self._allocate([tuple(size) for size in self.sizes])

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run once; a batch that the build was not made for is run row by row.

        Raises: ValueError naming the input, for a missing one, or a wrong dtype or shape.
        """
        for port, size in zip(self.ports, self.sizes, strict=True):
            self._check(port, size, feeds)
        return self.run_checked(feeds)

    def run_checked(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run once on what is known to fit: a small model takes less time than looking at its inputs does."""
        arrays = [feeds[name] for name in self.names]
        if not self.by_row or all(array.shape[0] == 1 for array in arrays):
            return self.compute(arrays)
        counts = {array.shape[0] for array in arrays}
        if len(counts) > 1 or 0 in counts:
            raise ValueError(f"the inputs have batches of {' and '.join(map(str, sorted(counts)))}")
        parts = [self.compute([array[row : row + 1] for array in arrays]) for row in range(counts.pop())]
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]

    def compute(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """Run on arrays of shapes that the file was made for, in the order of its inputs."""
        shapes = [array.shape for array in arrays]
        with self.one_at_a_time:  # inputs and outputs have their places in the interpreter
            if shapes != self.shapes:
                self._allocate(shapes)
            for index, array in zip(self.inputs, arrays, strict=True):
                self.interpreter.set_tensor(index, array)
            self.interpreter.invoke()
            return [self.interpreter.get_tensor(index) for index in self.outputs]

    def _allocate(self, shapes: list[tuple[int, ...]]) -> None:
        self.shapes = None
        if self.is_open:
            for index, shape in zip(self.inputs, shapes, strict=True):
                self.interpreter.resize_tensor_input(index, shape)
        try:
            self.interpreter.allocate_tensors()
        except RuntimeError as error:
            sizes = ", ".join(str(list(shape)) for shape in shapes)
            raise ValueError(f"the build is for no inputs of shapes {sizes}: {error}") from error
        self.shapes = shapes

    def _check(self, port: dict[str, Any], size: list[int], feeds: Mapping[str, np.ndarray]) -> None:
        name = port["name"]
        if name not in feeds:
            raise ValueError(f"input {name!r} is missing")
        array = feeds[name]
        if array.dtype != np.dtype(port["dtype"]):
            raise ValueError(f"input {name!r} is {array.dtype}, not {port['dtype']}")
        fits = array.ndim == len(size) and all(
            wanted in (-1, found) or (self.by_row and axis == 0)
            for axis, (found, wanted) in enumerate(zip(array.shape, size, strict=True))
        )
        if not fits:
            raise ValueError(f"input {name!r} has shape {list(array.shape)}, not {port['shape']}")


def open_session(folder: Path, threads: int, own_process: bool = False) -> LiteRtSession:
    """Open the build in ``folder``; own_process: as other runners take it, nothing here holds for a whole process."""
    return LiteRtSession(folder, threads)
