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


def lower(model: Model, cpu: Cpu, tiles: Mapping[str, Tile] = MappingProxyType({})) -> Lowered:
    """Import ``model``, fuse it, and schedule every kernel for ``cpu``; tiles: by workload, where measured."""
    import tvm

    imported, module = _fused(model, cpu)
    tuned = {key: tiles[key] for key in kernels_of(module).keys() & tiles.keys()} if tiles else {}
    with cpu.target(), tvm.transform.PassContext(opt_level=3):
        module = cpu_rules.schedule(module, cpu, tuned)
    return Lowered(module, imported.inputs, imported.outputs, imported.weights, cpu, tuned)


def kernels(model: Model, cpu: Cpu) -> dict[str, Any]:
    """Give the kernels of ``model`` that have tiles, by workload, before they are scheduled."""
    _, module = _fused(model, cpu)
    return {key: each for key, each in kernels_of(module).items() if cpu_rules.tiles(each, cpu)}


def _fused(model: Model, cpu: Cpu) -> tuple[Imported, Any]:
    import tvm

    cpu_dot.register()
    imported = frontend.load(model, cpu_converters.own(cpu))
    with cpu.target(), tvm.transform.PassContext(opt_level=3):
        return imported, fuse(imported.module)
