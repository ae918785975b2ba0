"""Lower a model for a CPU: channels last, integer products, schedules of our own.

Weights stay constants, which the library holds: as parameters each would be checked again in every run, and kws in
int8, of 13 layers, takes 1.3 times as long.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from polycast.model import Model

from . import cpu_converters, cpu_dot, cpu_rules, frontend
from .cpu_arch import Cpu
from .cpu_tiles import Tile
from .frontend import Imported
from .lowering import Lowered, fuse
from .records import kernels_of
from .traces import Trace, replay


def lower(model: Model, cpu: Cpu, measured: Mapping[str, Tile | Trace] = MappingProxyType({})) -> Lowered:
    """Import ``model``, fuse it, and schedule every kernel for ``cpu``; measured: by workload, what to do it with."""
    import tvm

    imported, module = fused(model, cpu)
    tuned = {key: measured[key] for key in kernels_of(module).keys() & measured.keys()} if measured else {}
    module, tuned = replay(module, tuned)
    tiles = {key: each for key, each in tuned.items() if isinstance(each, Tile)}
    with cpu.target(), tvm.transform.PassContext(opt_level=3):
        module = cpu_rules.schedule(module, cpu, tiles)
    return Lowered(module, imported.inputs, imported.outputs, imported.weights, cpu, tuned)


def kernels(model: Model, cpu: Cpu) -> dict[str, Any]:
    """Give the kernels of ``model`` that have tiles, by workload, before they are scheduled."""
    return {key: each for key, each in kernels_of(fused(model, cpu)[1]).items() if cpu_rules.tiles(each, cpu)}


def fused(model: Model, cpu: Cpu) -> tuple[Imported, Any]:
    """Import ``model`` and fuse it. Returns: what was imported, and the module, of which no kernel is scheduled."""
    import tvm

    cpu_dot.register()
    imported = frontend.load(model, cpu_converters.own(cpu))
    with cpu.target(), tvm.transform.PassContext(opt_level=3):
        return imported, fuse(imported.module)
