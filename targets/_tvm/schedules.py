"""Which schedule a kernel gets: the first rule that takes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import matvec_rule, product_rule, window_rule
from .gpu import Gpu
from .records import workload
from .traces import is_scheduled


def schedule(module: Any, gpu: Gpu, measured: Mapping[str, Any]) -> Any:
    """Give every kernel of ``module`` its schedule; measured: what some are to be scheduled with, by workload."""
    from tvm import tirx
    from tvm.s_tir import dlight

    module = module.clone()
    for variable, function in list(module.functions.items()):
        if not isinstance(function, tirx.PrimFunc) or is_scheduled(function):
            continue
        choice = measured.get(workload(function)) if measured else None
        for rule in (matvec_rule.schedule, product_rule.schedule, window_rule.schedule):
            if (scheduled := rule(function, gpu, choice)) is not None:
                module[variable] = scheduled.mod["main"].with_attr("tirx.is_scheduled", True)
                break
    rest = dlight.gpu.GEMV(), dlight.gpu.Reduction(), dlight.gpu.GeneralReduction(), dlight.gpu.Fallback()
    return dlight.ApplyDefaultSchedule(*rest)(module)
