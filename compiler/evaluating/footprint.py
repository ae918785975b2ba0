"""Footprint: peak memory and load time of a model that is opened in a fresh process and run once."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from polycast.measure import Measurement
from polycast.model import Model, weights
from polycast.statistics import Interval


@dataclass(frozen=True)
class Footprint:
    """What opening a model and running it once took in one process.

    memory: what the peak resident set grew by over an interpreter that had imported everything, in bytes.
    """

    memory: int
    load_seconds: float


def medians(taken: Sequence[Footprint]) -> dict[str, Measurement]:
    """Give ``memory`` in bytes and ``load_time`` in ms, over several processes."""
    return {
        "memory": _median("memory", [each.memory for each in taken], "bytes"),
        "load_time": _median("load_time", [each.load_seconds * 1e3 for each in taken], "ms"),
    }


def _median(name: str, values: Sequence[float], unit: str) -> Measurement:
    spread = Interval(float(min(values)), float(max(values)), "min to max")
    return Measurement(name, float(np.median(values)), unit, len(values), "lower", "device", spread)


def peak() -> int:
    """Peak resident set of this process so far, in bytes.

    Linux hands ``ru_maxrss`` on from the parent through exec, so there the kernel's own high-water mark is read.
    """
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak() -> int:
    """Set the high-water mark to what is resident now, where the kernel can. Returns: the mark, in bytes."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak()


@contextmanager
def model_file(model: Model) -> Iterator[tuple[Path, int]]:
    """Give the ONNX file of the untouched model and the bytes that it takes on disk, weights beside it included.

    A model that did not come from an ONNX file is written as it was loaded, and removed again.
    """
    path = Path(model.origin.uri)
    if path.suffix == ".onnx" and path.is_file():
        beside = {Path(t.path).resolve() for t in weights(model.graph) if isinstance(t, ir.ExternalTensor)}
        yield path, sum(p.stat().st_size for p in {path.resolve(), *beside} if p.is_file())
        return
    with tempfile.TemporaryDirectory(prefix="polycast-") as folder:
        written = Path(folder) / "model.onnx"
        model.write(written)
        yield written, sum(p.stat().st_size for p in Path(folder).iterdir())
