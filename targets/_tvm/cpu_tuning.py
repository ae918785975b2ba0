"""Tiles that were measured to be the fastest on this very CPU, kept for every later build.

The schedules leave one thing open, the tile, and there are some dozens of each kernel: all are tried.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from polycast.model import Model

from . import cpu_lowering, cpu_rules
from .cpu_arch import Cpu, chip
from .cpu_tiles import Tile
from .records import Records, Search, Tell, Timer

#: How long each is timed, in seconds.
SPAN = 2e-3


def records_of(cpu: Cpu, hardware: str = "") -> Records[Tile]:
    """Give those for ``cpu`` on ``hardware``, this machine's chip where none is named."""
    return Records.about(
        cpu, hardware or chip(), cpu_rules.VERSION, lambda found: Tile(tuple(found["rows"]), int(found["columns"]))
    )


def tune(model: Model, cpu: Cpu, minutes: float, tell: Tell | None = None) -> int:
    """Time every tile of every kernel of ``model`` that has no record yet, until the minutes are over.

    Returns: how many kernels have a record now.
    """
    search = Search(records_of(cpu), partial(cpu_rules.tiles, cpu=cpu), partial(_timer, cpu))
    return search.run(cpu_lowering.kernels(model, cpu), minutes, tell)


def _timer(cpu: Cpu, function: Any, tile: Tile) -> Timer:
    """Build a kernel. Returns: what runs it on zeros, and gives seconds a run."""
    import numpy as np
    import tvm

    scheduled = cpu_rules.scheduled(function, cpu, tile)
    library = tvm.compile(scheduled.with_attr("global_symbol", "main"), target=cpu.target())
    types = [parameter.ty for parameter in function.params]
    arrays = [np.zeros([int(d) for d in each.shape], str(each.dtype.dtype)) for each in types]
    tensors = [tvm.runtime.tensor(array) for array in arrays]
    evaluate = library.mod.time_evaluator("main", tvm.cpu(), number=1, repeat=1, min_repeat_ms=int(1e3 * SPAN))
    return lambda: float(evaluate(*tensors).mean)


def known_tiles(cpu: Cpu) -> Mapping[str, Tile]:
    """Give the tiles that builds for ``cpu`` are made with on this machine."""
    return records_of(cpu).read()
