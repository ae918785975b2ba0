"""Tiles and ways of sharing that were measured to be the fastest on this very GPU, kept for every later build here.

The models of ``tiles`` and ``matvec_tiles`` order what there is; the first few of that order are tried, each with
nothing of it in the second-level cache, as where the layers of a model take turns. What time is left goes to
MetaSchedule, which knows nothing of tensor cores here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from polycast.model import Model

from . import lowering, matvec_rule, nvcc, product_rule, schedules
from .gpu import Gpu
from .matvec_tiles import Rows
from .metaschedule import Proposals
from .records import Records, Search, Tell, Timer, calls_of, kernels_of, workload
from .searching import deepen, summary
from .tiles import Tile
from .traces import Trace

#: Of the schedules: what was measured with others is not used.
VERSION = 1

#: So many of each kernel are tried.
MOST = 6

#: Bytes that are written between two runs, more than the cache of any of these chips holds.
FLUSHED = 256 << 20

Choice = Tile | Rows | Trace


def chip(gpu: Gpu) -> str | None:
    """Name the GPU that is here, where it is one of the architecture of ``gpu``."""
    here = nvcc.device() if gpu.kind == "cuda" else None
    if here is None or not here.yes:
        return None
    name, _, capability = here.reason.rpartition(",")
    return name.strip() if f"sm_{capability.strip().replace('.', '')}" == gpu.arch else None


def records_of(gpu: Gpu, hardware: str) -> Records[Choice]:
    """Give those for ``gpu`` on ``hardware``."""
    return Records.about(gpu, hardware, VERSION, _spelt)


def known(gpu: Gpu) -> Mapping[str, Choice]:
    """Give what builds for ``gpu`` are made with on this machine; nothing where another GPU is here, or none."""
    hardware = chip(gpu)
    return records_of(gpu, hardware).read() if hardware else {}


def tune(model: Model, gpu: Gpu, minutes: float, tell: Tell | None = None) -> int:
    """Time the likeliest choices of every product of ``model`` that has no record yet, then what MetaSchedule proposes.

    Returns: how many kernels have a record when the minutes are over.
    """
    until, hardware = time.monotonic() + 60 * minutes, chip(gpu)
    assert hardware is not None, "a target that is tuned runs here"
    search = Search(records_of(gpu, hardware), partial(choices, gpu=gpu), partial(timer, gpu))
    _, module = lowering.fused(model, gpu)
    kernels = kernels_of(module)
    search.run({key: each for key, each in kernels.items() if choices(each, gpu)}, until, tell)
    found = deepen(search, kernels, calls_of(module), partial(Proposals, gpu), until, tell)
    if tell and found:
        tell(summary(found), 1, 1)
    return len(search.kept.read().keys() & kernels.keys())


def choices(function: Any, gpu: Gpu) -> list[Choice]:
    """Give what a kernel may be scheduled with, the likeliest first; none where there is nothing to choose."""
    return [*(matvec_rule.choices(function, gpu) or product_rule.choices(function, gpu))][:MOST]


def _spelt(found: Mapping[str, Any]) -> Choice:
    if "steps" in found:
        return Trace(str(found["steps"]))
    return Rows(**found) if "lanes" in found else Tile(**found)


def timer(gpu: Gpu, function: Any, choice: Choice | None) -> Timer:
    """Build a kernel. Returns: what runs it on zeros, and gives seconds a run."""
    import numpy as np
    import tvm

    target, device = gpu.target(), tvm.device(gpu.kind, 0)
    with target, tvm.transform.PassContext(opt_level=3, config={"tirx.disable_storage_rewrite": gpu.tensor_cores}):
        library = tvm.compile(scheduled(gpu, function, choice), target=target)
    types = [parameter.ty for parameter in function.params]
    arrays = [np.zeros([int(d) for d in each.shape], str(each.dtype.dtype)) for each in types]
    tensors = [tvm.runtime.tensor(array, device) for array in arrays]
    evaluate = library.mod.time_evaluator("main", device, number=1, repeat=3, cache_flush_bytes=FLUSHED)
    return lambda: float(min(evaluate(*tensors).results))


def scheduled(gpu: Gpu, function: Any, choice: Choice | None) -> Any:
    """Schedule one kernel as builds are, with ``choice`` where there is one. Returns: a module with ``main``.

    Raises: ValueError where a trace does not fit the kernel.
    """
    import tvm

    function = function.with_attr("global_symbol", "main")
    if not isinstance(choice, Trace):
        with gpu.target():
            return schedules.schedule(
                tvm.IRModule({"main": function}), gpu, {workload(function): choice} if choice else {}
            )
    if (found := choice.scheduled(function)) is None:
        raise ValueError("the trace does not fit the kernel")
    return tvm.IRModule({"main": found})
