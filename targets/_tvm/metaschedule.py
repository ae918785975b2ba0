"""What MetaSchedule proposes for one kernel, a few schedules at a time.

Source: Shao et al., Tensor Program Optimization with Probabilistic Programs, NeurIPS 2022.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from .cpu_arch import Cpu
from .gpu import Gpu
from .traces import Trace

#: Proposals that are made at once, and of how many unmeasured ones they are the likeliest.
BATCH, POPULATION = 8, 64


@dataclass
class Proposals:
    """Schedules of one kernel, of which each batch learns from the times of those before.

    most: how many are proposed at most. seed: another one proposes others.
    """

    on: Cpu | Gpu
    function: Any
    most: int
    seed: int
    _context: Any = field(init=False)
    _database: Any = field(init=False)
    _costs: Any = field(init=False)
    _batch: Any = field(init=False, default=None)

    def __post_init__(self) -> None:
        from tvm.s_tir import meta_schedule as ms

        with self.on.target():
            self._context = _context(self.function, self.on, self.seed)
            spaces = self._context.generate_design_space()
            self._database = ms.database.MemoryDatabase()
            self._costs = ms.CostModel.create("random") if find_spec("xgboost") is None else _learned()
            self._context.pre_tuning(self.most, BATCH, spaces, self._database, self._costs)

    def next(self) -> list[Trace]:
        """Propose some more; none where there are no others."""
        with self.on.target():
            self._batch = self._context.generate_measure_candidates() or []
        return [Trace(json.dumps(_plain(each.sch.trace.as_json()))) for each in self._batch]

    def learn(self, seconds: Sequence[float | None]) -> None:
        """Take the times of the last batch; None for what could not be built or run."""
        from tvm.s_tir import meta_schedule as ms

        results = [ms.runner.RunnerResult([t] if t else None, None if t else "failed") for t in seconds]
        with self.on.target():
            self._context.notify_runner_results(self._batch, results)
            self._costs.update(self._context, self._batch, results)
            workload = self._database.commit_workload(self._context.mod)
            for each, time in zip(self._batch, seconds, strict=True):
                if time:
                    record = ms.database.TuningRecord(
                        each.sch.trace, workload, [time], self.on.target(), each.args_info
                    )
                    self._database.commit_tuning_record(record)


def _context(function: Any, on: Cpu | Gpu, seed: int) -> Any:
    """Make what MetaSchedule keeps of a kernel.

    TVM's own constructor first parses every intrinsic for tensors that TVM has, which takes half a minute, and the
    rules that it takes by default for some CPUs want them. The rules here want none.
    """
    from tvm.s_tir import meta_schedule as ms
    from tvm.s_tir.meta_schedule import _ffi_api

    kind = "cuda" if isinstance(on, Gpu) else "llvm"
    space = ms.space_generator.PostOrderApply(
        sch_rules=ms.ScheduleRule.create(kind),
        postprocs=ms.Postproc.create(kind),
        mutator_probs=ms.Mutator.create(kind),
    )
    strategy = ms.search_strategy.EvolutionarySearch(
        population_size=POPULATION, init_min_unmeasured=2 * BATCH, genetic_num_iters=2
    )
    module = ms.tune_context._normalize_mod(function.with_attr("global_symbol", "main"))
    context = ms.TuneContext.__new__(ms.TuneContext)
    context.__init_handle_by_constructor__(
        _ffi_api.TuneContext, module, on.target(), space, strategy, "kernel", 1, seed, _silent
    )
    _ffi_api.TuneContextInitialize(context)
    return context


def _learned() -> Any:
    from tvm.s_tir import meta_schedule as ms

    return ms.CostModel.create("xgb", num_tuning_cores=1, tree_method="hist")


def _silent(level: int, file: str, line: int, message: str) -> None:
    """Take what MetaSchedule logs of itself."""


def _plain(value: Any) -> Any:
    """Give TVM's containers and numbers as Python's."""
    from tvm import tirx

    if isinstance(value, tirx.IntImm | tirx.FloatImm):
        return value.value
    if isinstance(value, str):
        return str(value)
    return value if isinstance(value, bool | int | float | None) else [_plain(each) for each in value]
