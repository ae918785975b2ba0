#!/usr/bin/env python3
"""Run this build with LiteRT; nothing else is needed but numpy.

python run.py --input x.npz [--output y.npz]   run the model on arrays saved under the names of its inputs
python run.py --verify                         check every file's hash, and the golden outputs
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def cores() -> int:
    """Count the cores that this process may use: physical ones in its affinity, within its container quota."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    physical = set()
    for cpu in usable:
        try:
            siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
        except OSError:
            siblings = str(cpu)
        physical.add(siblings.strip())
    count = len(physical)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            count = min(count, -(-int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return max(1, count)


class LiteRtSession:
    """A build that is open, and runs on arrays by input name. threads: 0 means one per usable core."""

    def __init__(self, folder: Path, threads: int = 0) -> None:
        from ai_edge_litert.interpreter import Interpreter

        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        threads = threads or int(os.environ.get("POLYCAST_THREADS", "0")) or cores()
        self.by_row = manifest["runtime"]["by_row"]
        self.ports = manifest["signature"]["inputs"]
        self.names = [port["name"] for port in self.ports]
        self.interpreter: Any = Interpreter(str(folder / manifest["runtime"]["model"]), num_threads=threads)
        details = self.interpreter.get_input_details()
        self.inputs = [each["index"] for each in details]
        self.outputs = [each["index"] for each in self.interpreter.get_output_details()]
        self.sizes = [each["shape_signature"].tolist() or each["shape"].tolist() for each in details]  # -1: any
        self.shapes: list[tuple[int, ...]] | None = None
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
        self.interpreter.allocate_tensors()
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


def open_session(folder: Path, own_process: bool = False) -> LiteRtSession:
    """Open the build in ``folder``; own_process: as other runners take it, nothing here holds for a whole process."""
    return LiteRtSession(folder)


def main() -> int:
    """Run the command line. Returns the exit status: 0 fine, 1 wrong input or a build that does not verify."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, metavar="X.npz", help="arrays by input name, batch axis included")
    parser.add_argument("--output", type=Path, metavar="Y.npz", help="where the outputs go, by output name")
    parser.add_argument("--verify", action="store_true", help="check hashes and golden outputs")
    parser.add_argument("--threads", type=int, default=0, help="0: one per usable core")
    options = parser.parse_args()
    folder = Path(__file__).resolve().parent
    sys.path.insert(0, str(folder))  # python -I leaves it out
    sys.dont_write_bytecode = True
    try:
        if options.verify:
            return _verify(folder, options.threads)
        if options.input is None:
            parser.error("give --input X.npz, or --verify")
        return _run(folder, options.threads, options.input, options.output)
    except ImportError as error:
        print(f"run.py: LiteRT cannot be imported ({error}): pip install ai-edge-litert", file=sys.stderr)
    except (RuntimeError, OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        print(f"run.py: {error}", file=sys.stderr)
    return 1


def _verify(folder: Path, threads: int) -> int:
    from verify import verify  # type: ignore[import-not-found]  # lies beside this file in a build

    problems = verify(folder, None) or verify(folder, LiteRtSession(folder, threads).run)
    print("\n".join(problems) if problems else "verified: every file's hash and every golden output")
    return 1 if problems else 0


def _run(folder: Path, threads: int, given: Path, output: Path | None) -> int:
    with np.load(given, allow_pickle=False) as arrays:
        feeds = {name: arrays[name] for name in arrays.files if name != "label"}
    found = LiteRtSession(folder, threads).run(feeds)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    names = [port["name"] for port in manifest["signature"]["outputs"]]
    for name, array in zip(names, found, strict=True):
        print(f"{name}: {array.dtype} {list(array.shape)}", np.array2string(array, threshold=40, precision=5), sep="\n")
    if output:
        with output.open("wb") as file:
            np.savez(file, **dict(zip(names, found, strict=True)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
