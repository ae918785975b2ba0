"""Schedules that were measured to be the fastest on this very CPU, kept for every later build.

Our own schedules leave one thing open, the tile, and there are some dozens of each kernel: all are tried. What time is
left goes to MetaSchedule, which changes everything about a kernel, and knows nothing of our products of bytes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from polycast.model import Model

from . import cpu_lowering, cpu_rules, library
from .cpu_arch import Cpu, chip
from .cpu_tiles import Tile
from .metaschedule import Proposals
from .records import Records, Search, Tell, Timer, calls_of, kernels_of
from .searching import deepen, summary
from .traces import Trace

#: How long each is timed, in seconds.
SPAN = 2e-3

Choice = Tile | Trace


def records_of(cpu: Cpu, hardware: str = "") -> Records[Choice]:
    """Give those for ``cpu`` on ``hardware``, this machine's chip where none is named, with as many threads as here."""
    return Records.about(cpu, f"{hardware or chip()}, {_threads()} threads", cpu_rules.VERSION, _spelt)


def _threads() -> str:
    """Give how many threads a build runs with here."""
    return os.environ.get("POLYCAST_THREADS") or str(os.cpu_count() or 1)


def tune(model: Model, cpu: Cpu, minutes: float, tell: Tell | None = None) -> int:
    """Time every tile of every kernel of ``model`` that has no record yet, then what MetaSchedule proposes.

    Returns: how many kernels have a record when the minutes are over.
    """
    until = time.monotonic() + 60 * minutes
    search = Search(records_of(cpu), partial(cpu_rules.tiles, cpu=cpu), partial(timer, cpu))
    _, module = cpu_lowering.fused(model, cpu)
    kernels = {key: each for key, each in kernels_of(module).items() if is_fixed(each)}
    search.run({key: each for key, each in kernels.items() if cpu_rules.tiles(each, cpu)}, until, tell)
    free = {key: each for key, each in kernels.items() if not _multiplies_bytes(each)}
    found = deepen(search, free, calls_of(module), partial(Proposals, cpu), until, tell)
    if tell and found:
        tell(summary(found), 1, 1)
    return len(search.kept.read().keys() & kernels.keys())


def is_fixed(function: Any) -> bool:
    """Whether the sizes of all that a kernel reads and writes are known."""
    from tvm import tirx

    return all(isinstance(d, tirx.IntImm) for each in function.params for d in each.ty.shape)


def _multiplies_bytes(function: Any) -> bool:
    """Whether a kernel has sums of products of bytes, for which an instruction is there."""
    from tvm import s_tir

    sch = s_tir.Schedule(function)
    blocks = [sch.get(block) for block in sch.get_child_blocks(sch.get_sblock("root"))]
    return any(
        each.name_hint in ("dot", "taps") and str(each.writes[0].source.ty.dtype.dtype) == "int32" for each in blocks
    )


def _spelt(found: Mapping[str, Any]) -> Choice:
    return Trace(str(found["steps"])) if "steps" in found else Tile(tuple(found["rows"]), int(found["columns"]))


def timer(cpu: Cpu, function: Any, choice: Choice | None) -> Timer:
    """Build a kernel. Returns: what runs it on zeros, and gives seconds a run.

    Raises: ValueError where a trace does not fit the kernel.
    """
    import numpy as np
    import tvm

    os.environ.setdefault("TVM_NUM_THREADS", _threads())
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    scheduled = choice.scheduled(function) if isinstance(choice, Trace) else cpu_rules.scheduled(function, cpu, choice)
    if scheduled is None:
        raise ValueError("the trace does not fit the kernel")
    with tvm.transform.PassContext(opt_level=3, config=library.masks(cpu)):
        built = tvm.compile(scheduled.with_attr("global_symbol", "main"), target=cpu.target())
    types = [parameter.ty for parameter in function.params]
    arrays = [np.zeros([int(d) for d in each.shape], str(each.dtype.dtype)) for each in types]
    tensors = [tvm.runtime.tensor(array) for array in arrays]
    evaluate = built.mod.time_evaluator("main", tvm.cpu(), number=1, repeat=1, min_repeat_ms=int(1e3 * SPAN))
    return lambda: float(evaluate(*tensors).mean)


def known(cpu: Cpu) -> Mapping[str, Choice]:
    """Give what builds for ``cpu`` are made with on this machine."""
    return records_of(cpu).read()
