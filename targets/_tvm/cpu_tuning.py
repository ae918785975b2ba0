"""Tiles that were measured to be the fastest on this very CPU, kept for every later build.

The schedules leave one thing open, the tile, and there are some dozens of each kernel: all are tried.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from polycast.calibrating.folder import cache_folder
from polycast.model import Model

from . import cpu_lowering, cpu_rules
from .cpu_arch import Cpu, chip
from .cpu_tiles import Tile

#: A tile takes the place of the one that the model of costs chose where it is faster by more than two runs differ.
FASTER = 1.03
#: How often each is timed, and for how long, in seconds.
ROUNDS, SPAN = 5, 2e-3

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Records:
    """The tiles of one chip: a JSON file of its own, so that none is ever used on another."""

    path: Path

    @classmethod
    def of(cls, cpu: Cpu, hardware: str = "") -> Records:
        """Give those for ``cpu`` on ``hardware``, this machine's chip where none is named."""
        key = json.dumps([asdict(cpu), hardware or chip(), version("apache-tvm"), cpu_rules.VERSION])
        return cls(cache_folder() / "tuned" / f"cpu-{cpu.arch}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json")

    def read(self) -> dict[str, Tile]:
        """Give tiles by workload; a damaged file is as good as none."""
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            return {key: Tile(tuple(each["rows"]), int(each["columns"])) for key, each in found.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def add(self, workload: str, tile: Tile) -> None:
        """Keep one more, whole or not at all."""
        known = {key: asdict(each) for key, each in (self.read() | {workload: tile}).items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(f".{os.getpid()}.partial")
        part.write_text(json.dumps(known, indent=1, sort_keys=True), encoding="utf-8")
        part.replace(self.path)


def tune(model: Model, cpu: Cpu, minutes: float, tell: Tell | None = None) -> int:
    """Time every tile of every kernel of ``model`` that has no record yet, until the minutes are over.

    Returns: how many kernels have a record now. What was found before an interruption is kept.
    """
    records, until = Records.of(cpu), time.monotonic() + 60 * minutes
    functions = cpu_lowering.kernels(model, cpu)
    known = records.read()
    waiting = [key for key in functions if key not in known]
    for number, key in enumerate(waiting):
        if tell:
            tell("tune", number, len(waiting))
        if time.monotonic() >= until:
            break
        if (tile := fastest(functions[key], cpu, until)) is not None:
            records.add(key, tile)
    if tell and waiting:
        tell("tune", len(waiting), len(waiting))
    return len(records.read().keys() & functions.keys())


def fastest(function: Any, cpu: Cpu, until: float) -> Tile | None:
    """Time the tiles of one kernel in turns; None where the time ran out before all had been built."""
    first, *rest = cpu_rules.tiles(function, cpu)
    if not rest:
        return first
    timers = {}
    for tile in (first, *rest):
        if time.monotonic() >= until:
            return None
        timers[tile] = _timer(cpu_rules.scheduled(function, cpu, tile), cpu)
    rounds: dict[Tile, list[float]] = {tile: [] for tile in timers}
    for _ in range(ROUNDS):
        for tile, timed in timers.items():
            rounds[tile].append(timed())
    least = {tile: min(times) for tile, times in rounds.items()}
    best = min(least, key=lambda tile: least[tile])
    return best if least[best] * FASTER < least[first] else first


def _timer(function: Any, cpu: Cpu) -> Callable[[], float]:
    """Build a kernel. Returns: what runs it on zeros, and gives seconds a run."""
    import numpy as np
    import tvm

    library = tvm.compile(function.with_attr("global_symbol", "main"), target=cpu.target())
    types = [parameter.ty for parameter in function.params]
    arrays = [np.zeros([int(d) for d in each.shape], str(each.dtype.dtype)) for each in types]
    tensors = [tvm.runtime.tensor(array) for array in arrays]
    evaluate = library.mod.time_evaluator("main", tvm.cpu(), number=1, repeat=1, min_repeat_ms=int(1e3 * SPAN))
    return lambda: float(evaluate(*tensors).mean)


def known_tiles(cpu: Cpu) -> Mapping[str, Tile]:
    """Give the tiles that builds for ``cpu`` are made with on this machine."""
    return Records.of(cpu).read()
