"""What MetaSchedule did to a kernel, written down, and done again in later builds with no measuring."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .records import workload


@dataclass(frozen=True)
class Trace:
    """The steps of one schedule. steps: those of an ``s_tir.schedule.Trace``, as JSON."""

    steps: str

    def scheduled(self, function: Any) -> Any | None:
        """Give ``function`` with its schedule; None where the steps do not fit it."""
        from tvm import s_tir

        schedule = s_tir.Schedule(function)
        try:
            s_tir.schedule.Trace.apply_json_to_schedule(json.loads(self.steps), schedule)
        except Exception:  # TVM raises its own types for what no longer fits, and Python's for what is damaged
            return None
        return schedule.mod["main"]


def is_scheduled(function: Any) -> bool:
    """Whether a kernel has its schedule."""
    return bool(function.attrs and "tirx.is_scheduled" in function.attrs)


def replay(module: Any, choices: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Do again what was found for kernels of ``module``; choices: by workload, of which some are traces.

    Returns: the module, and the choices but for the traces that do not fit.
    """
    from tvm import tirx

    module, fitting = module.clone(), dict(choices)
    for variable, function in list(module.functions.items()):
        key = workload(function) if choices and isinstance(function, tirx.PrimFunc) else ""
        if not isinstance(trace := fitting.get(key), Trace):
            continue
        if (scheduled := trace.scheduled(function)) is None:
            del fitting[key]
        else:
            module[variable] = scheduled.with_attr("tirx.is_scheduled", True)
    return module, fitting
