"""Open this build with TVM's runtime. It lies in the build as session.py, and needs numpy alone beside that."""

from __future__ import annotations

import json
import mmap
import os
import platform
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

#: How safetensors spells dtypes.
_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "F16": "float16",
    "U32": "uint32", "I32": "int32", "F32": "float32", "U64": "uint64", "I64": "int64", "F64": "float64",
}  # fmt: skip
#: What systems call the machines of a manifest; 32-bit ARM is told by its kernel, which may be a 64-bit one's.
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64", "armv7l": "armv7a", "armv8l": "armv7a"}

_WARM_UPS = 5


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Map a safetensors file. Returns: arrays by name, which stay in the file until they are read."""
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    size = int.from_bytes(data[:8], "little")
    arrays = {}
    for name, entry in json.loads(data[8 : 8 + size]).items():
        begin, end = entry["data_offsets"]
        dtype = np.dtype(_DTYPES[entry["dtype"]])
        flat = np.frombuffer(data, dtype, (end - begin) // dtype.itemsize, 8 + size + begin)
        arrays[name] = flat.reshape(entry["shape"])
    return arrays


def _flags() -> frozenset[str]:
    """Give the instruction sets of this CPU, as Linux spells them."""
    try:
        return frozenset(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return frozenset()


class Kernels:
    """Kernels for inputs of one shape each. weights: tensors on the device, in the order of the parameters."""

    def __init__(self, main: Any, weights: list[Any], inside: dict[str, Any], device: Any, on_cpu: bool) -> None:
        import tvm

        self.main, self.weights, self.device, self.tensor = main, weights, device, tvm.runtime.tensor
        self.rows = next((port["shape"][0] for port in inside.values() if port["shape"]), 1)
        any_size = any(isinstance(dim, str) for port in inside.values() for dim in port["shape"])
        self.on_cpu = on_cpu
        self.one_at_a_time = threading.Lock()
        self.slots = [self._slot(**port) for port in inside.values()] if on_cpu and not any_size else []

    def compute(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """Run the kernels on arrays of the shapes that they were made for."""
        with self.one_at_a_time:  # inputs have their places here, and so has what is between the kernels
            results = self.main(*self.upload(arrays), *self.weights)
            if self.on_cpu:
                return [np.array(np.from_dlpack(result)) for result in results]
            return [result.numpy() for result in results]

    def upload(self, arrays: list[np.ndarray]) -> list[Any]:
        """Bring ``arrays`` to the device; on a CPU that is a copy within the same memory."""
        if self.slots:
            for (_, view), array in zip(self.slots, arrays, strict=True):
                view[...] = array
            return [tensor for tensor, _ in self.slots]
        return [self.tensor(np.asarray(array, order="C"), self.device) for array in arrays]

    def _slot(self, dtype: str, shape: list[int]) -> tuple[Any, np.ndarray]:
        """Give a tensor for an input, and its memory as numpy sees it."""
        tensor = self.tensor(np.zeros(shape, dtype), self.device)
        return tensor, np.from_dlpack(tensor)


class TvmSession:
    """A build that is open: its weights are on the device, and it runs on arrays by input name."""

    def __init__(self, folder: Path, threads: int = 0) -> None:
        self.manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        runtime = self.manifest["runtime"]
        machine = _MACHINES.get(platform.machine().lower(), platform.machine().lower())
        if (made_for := runtime.get("machine", machine)) != machine:
            raise RuntimeError(f"this build is machine code for {made_for}, and this machine is {machine}")
        if lacking := sorted(set(runtime.get("instructions", ())) - _flags()):
            raise RuntimeError(f"this build needs instructions that this CPU lacks: {', '.join(lacking)}")
        wanted_threads = str(threads or os.environ.get("POLYCAST_THREADS") or os.cpu_count() or 1)
        os.environ.setdefault("TVM_NUM_THREADS", wanted_threads)
        os.environ.setdefault("TVM_BIND_THREADS", "0")
        try:
            import tvm
            from tvm.runtime.vm import VirtualMachine
        except ImportError as error:
            raise RuntimeError(f"TVM's runtime cannot be imported ({error}): pip install apache-tvm") from error

        self.device = tvm.device(runtime["device"], 0)
        if not self.device.exist:
            raise RuntimeError(f"this build runs on a {runtime['device']} device, and there is none here")
        sets = [runtime, *filter(None, [runtime.get("larger")])]
        wanted = {name for each in sets for name in each["parameters"]}
        arrays = read_weights(folder / runtime["weights"]) if wanted else {}
        there = {name: tvm.runtime.tensor(arrays[name], self.device) for name in wanted}

        def opened(each: dict[str, Any]) -> Kernels:
            machine = VirtualMachine(tvm.runtime.load_module(str(folder / each["library"])), self.device)
            weights = [there[name] for name in each["parameters"]]
            return Kernels(machine["main"], weights, each["inside"], self.device, runtime["device"] == "cpu")

        self.kernels = opened(runtime)
        self.larger = opened(sets[1]) if sets[1:] else None
        self.inside = runtime["inside"]
        self.inputs = self.manifest["signature"]["inputs"]
        self.outputs = self.manifest["signature"]["outputs"]

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run once; a batch that the build was not made for is run in blocks, or row by row.

        Raises: ValueError naming the input, for a missing one, or a wrong dtype or shape.
        """
        arrays = [self._checked(port, feeds) for port in self.inputs]
        rows = self._rows(arrays)
        if rows is None:
            found = self.kernels.compute(arrays)
        else:
            parts = list(self._parts(arrays, rows))
            found = [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]
        return [array.astype(port["dtype"], copy=False) for port, array in zip(self.outputs, found, strict=True)]

    def seconds(self, feeds: Mapping[str, np.ndarray], count: int) -> list[float]:
        """Time ``count`` runs of the kernels alone, each in seconds: the inputs are on the device already."""
        arrays, kernels = [self._checked(port, feeds) for port in self.inputs], self.kernels
        if self._rows(arrays) is not None:
            kernels = self.larger or kernels
            arrays = [array[: kernels.rows] for array in arrays]
        arguments = kernels.upload(arrays)
        times = []
        for _ in range(_WARM_UPS + count):
            started = time.perf_counter()
            kernels.main(*arguments, *kernels.weights)
            self.device.sync()
            times.append(time.perf_counter() - started)
        return times[_WARM_UPS:]

    def _parts(self, arrays: list[np.ndarray], rows: int) -> Iterator[list[np.ndarray]]:
        """Run the rows one by one, or where they fill at least half a block, all at once with copies of the last."""
        if self.larger is None or 2 * rows < self.larger.rows:
            for row in range(rows):
                yield self.kernels.compute([array[row : row + 1] for array in arrays])
            return
        if rows > self.larger.rows:
            raise ValueError(f"a batch of {rows}, and the build is made for {self.larger.rows} at most")
        missing = self.larger.rows - rows
        filled = [np.concatenate([array, np.repeat(array[-1:], missing, 0)]) for array in arrays]
        yield [output[:rows] for output in self.larger.compute(filled)]

    def _checked(self, port: dict[str, Any], feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        name, inside = port["name"], self.inside[port["name"]]
        if name not in feeds:
            raise ValueError(f"input {name!r} is missing")
        array = np.asarray(feeds[name])
        if array.dtype != np.dtype(port["dtype"]):
            raise ValueError(f"input {name!r} is {array.dtype}, not {port['dtype']}")
        shape, batched = inside["shape"], self.manifest["runtime"]["by_row"]
        fits = array.ndim == len(shape) and all(
            found == wanted or (batched and axis == 0) or (isinstance(wanted, str) and found > 0)
            for axis, (found, wanted) in enumerate(zip(array.shape, shape, strict=True))
        )
        if not fits:
            raise ValueError(f"input {name!r} has shape {list(array.shape)}, not {shape}")
        narrow = array.astype(inside["dtype"])
        if array.dtype.kind in "iu" and narrow.dtype != array.dtype and not np.array_equal(narrow, array):
            raise ValueError(f"input {name!r} holds numbers that do not fit {inside['dtype']}")
        return narrow

    def _rows(self, arrays: list[np.ndarray]) -> int | None:
        counts = {array.shape[0] for array in arrays} if self.manifest["runtime"]["by_row"] else {1}
        if counts == {1}:
            return None
        if len(counts) > 1 or 0 in counts:
            raise ValueError(f"the inputs have batches of {' and '.join(map(str, sorted(counts)))}")
        return int(counts.pop())


def open_session(folder: Path, threads: int, own_process: bool = False) -> TvmSession:
    """Open the build in ``folder``; own_process: as other runners take it, nothing here holds for a whole process."""
    return TvmSession(folder, threads)
