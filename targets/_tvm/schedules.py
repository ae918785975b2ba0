"""Which schedule a kernel gets: the first rule that takes it."""

from __future__ import annotations

from typing import Any

from . import matvec_rule, product_rule, window_rule
from .gpu import Gpu


def schedule(module: Any, gpu: Gpu) -> Any:
    """Give every kernel of ``module`` its schedule."""
    from tvm import tirx
    from tvm.s_tir import dlight

    module = module.clone()
    for variable, function in list(module.functions.items()):
        if not isinstance(function, tirx.PrimFunc):
            continue
        for rule in (matvec_rule, product_rule, window_rule):
            if (scheduled := rule.schedule(function, gpu)) is not None:
                module[variable] = scheduled.mod["main"].with_attr("tirx.is_scheduled", True)
                break
    rest = dlight.gpu.GEMV(), dlight.gpu.Reduction(), dlight.gpu.GeneralReduction(), dlight.gpu.Fallback()
    return dlight.ApplyDefaultSchedule(*rest)(module)
