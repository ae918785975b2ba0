"""Schedules for a CPU: sums stay in registers, what follows them is done while they are there.

Source: Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication, TOMS 34(3), 2008, for the panels;
Georganas et al., Anatomy of High-Performance Deep Learning Convolutions on SIMD Architectures, SC 2018.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from math import prod
from typing import Any

from .cpu_arch import Cpu
from .cpu_tiles import Tile, tiles_for
from .records import workload

#: Of these schedules: what was measured with others is not used.
VERSION = 1

#: Work below these is done sooner than other threads would have begun: multiply-adds, and numbers.
_MUCH_TO_ADD, _MUCH_TO_MOVE = 1 << 20, 1 << 17


def schedule(module: Any, cpu: Cpu, tiles: Mapping[str, Tile]) -> Any:
    """Give every kernel of ``module`` its schedule; tiles: those that were measured, by workload."""
    from tvm import tirx

    module = module.clone()
    for variable, function in list(module.functions.items()):
        if isinstance(function, tirx.PrimFunc):
            tile = tiles.get(workload(function)) if tiles else None
            module[variable] = scheduled(function, cpu, tile).with_attr("tirx.is_scheduled", True)
    return module


def tiles(function: Any, cpu: Cpu) -> list[Tile]:
    """Give the tiles that a kernel may have, the one that is taken unmeasured first; none where it has none."""
    from tvm import s_tir

    sch = s_tir.Schedule(function)
    blocks = {sch.get(block).name_hint: block for block in _blocks(sch)}
    sums = blocks.get("dot") or blocks.get("taps")
    if sums is None:
        return []
    shape = [int(d) for d in sch.get(sums).writes[0].source.ty.shape][:-1]
    return tiles_for(shape if "dot" in blocks else [*shape, 1], cpu)


def scheduled(function: Any, cpu: Cpu, tile: Tile | None = None) -> Any:
    """Give one kernel its schedule; tile: in place of the one that the model of costs chooses."""
    from tvm import s_tir

    sch = s_tir.Schedule(function)
    names = [sch.get(block).name_hint for block in _blocks(sch)]
    for name, rule in (("dot", _dot), ("taps", _taps)):
        if names.count(name) == 1:
            return rule(sch, cpu, tile).mod["main"]
    return _plain(sch, cpu).mod["main"]


def _blocks(sch: Any) -> list[Any]:
    return list(sch.get_child_blocks(sch.get_sblock("root")))


def _extents(sch: Any, loops: list[Any]) -> list[int]:
    return [int(sch.get(loop).extent) for loop in loops]


def _reduces(sch: Any, block: Any) -> bool:
    from tvm import tirx

    return any(each.iter_type == tirx.IterVar.CommReduce for each in sch.get(block).iter_vars)


def _prepare(sch: Any, name: str, cpu: Cpu) -> tuple[Any, Any]:
    """Schedule what comes before the block ``name``, and put all that follows it into one. Returns: both."""
    blocks = _blocks(sch)
    at = [sch.get(block).name_hint for block in blocks].index(name)
    for block in blocks[:at]:
        _spread(sch, block, cpu)
    for block in blocks[at + 1 : -1]:
        sch.compute_inline(block)
    return blocks[at], blocks[-1]


def _dot(sch: Any, cpu: Cpu, tile: Tile | None) -> Any:
    """Sums of products: [.., rows, N / lanes, lanes] += input[.., K] * panels[N / lanes, .., K, lanes]."""
    dot, last = _prepare(sch, "dot", cpu)
    work, lanes = _work(sch, dot), int(sch.get(dot).writes[0].source.ty.shape[-1])
    *front, column = sch.get_loops(last)
    if _extents(sch, [column])[0] % lanes:  # what follows cannot read full registers: it gets a loop of its own
        _spread(sch, last, cpu)
        last = sch.cache_write(dot, 0, "global")
        *front, panel, lane = sch.get_loops(last)
    else:
        panel, lane = sch.split(column, [None, lanes])
    outer = _tiled(sch, last, [*front, panel, lane], tile or tiles_for(_extents(sch, [*front, panel]), cpu)[0])
    sch.compute_at(dot, outer[-1], preserve_unit_loops=True)
    _share(sch, outer, work)
    _sum(sch, dot, cpu)
    return sch


def _tiled(sch: Any, block: Any, loops: list[Any], tile: Tile) -> list[Any]:
    """Split ``loops``, [.., rows, panels, lanes], into those between tiles, which are given, and those inside one."""
    *front, panel, lane = loops
    rows = [sch.split(loop, [None, many]) for loop, many in zip(front[-2:], tile.rows, strict=True)]
    between, registers = sch.split(panel, [None, tile.columns])
    outer = [*front[:-2], between, *(row[0] for row in rows)]
    inner = [*(row[1] for row in rows), registers]
    sch.reorder(*outer, *inner, lane)
    for loop in inner:
        sch.unroll(loop)
    sch.vectorize(lane)
    return outer


def _sum(sch: Any, dot: Any, cpu: Cpu) -> None:
    """Order the loops of the sum inside a tile: those of the reduction outside, the registers inside."""
    from .cpu_dot import INTRINSICS

    variables, written = sch.get(dot).iter_vars, sch.get(dot).writes[0].source
    loops = sch.get_loops(dot)[-len(variables) :]
    sums = [loop for loop, each in zip(loops, variables, strict=True) if _is_sum(each)]
    *registers, lane = loops[: -len(sums)]
    coded = str(written.ty.dtype.dtype) == "int32"
    quad = [sums.pop()] if coded else []
    sch.reorder(*sums, *registers, lane, *quad)
    for loop in registers:
        sch.unroll(loop)
    if not coded:
        sch.vectorize(lane)
    start = sch.decompose_reduction(dot, sums[0])
    *again, first = sch.get_loops(start)[-len(registers) - 1 :]
    for loop in again:
        sch.unroll(loop)
    sch.vectorize(first)
    if coded:
        sch.tensorize(lane, INTRINSICS[int(written.ty.shape[-1])])
    sch.set_scope(start, 0, "local")


def _is_sum(variable: Any) -> bool:
    from tvm import tirx

    return bool(variable.iter_type == tirx.IterVar.CommReduce)


def _taps(sch: Any, cpu: Cpu, tile: Tile | None) -> Any:
    """Sums of taps: every tap of a register of channels is unrolled, for several pixels of a row at once."""
    taps, last = _prepare(sch, "taps", cpu)
    work = _work(sch, taps)
    *front, channel = sch.get_loops(last)
    panel, lane = sch.split(channel, [None, _lanes(sch, channel, cpu)])
    outer = _tiled(sch, last, [*front, panel, lane], tile or tiles_for([*_extents(sch, front), 1], cpu)[0])
    sch.compute_at(taps, outer[-1], preserve_unit_loops=True)
    _share(sch, outer, work)
    *_, y, x, lane, ry, rx = sch.get_loops(taps)
    sch.reorder(ry, rx, y, x, lane)
    for loop in (ry, rx, y, x):
        sch.unroll(loop)
    sch.vectorize(lane)
    *_, y, x, lane = sch.get_loops(start := sch.decompose_reduction(taps, ry))
    sch.unroll(y)
    sch.unroll(x)
    sch.vectorize(lane)
    sch.set_scope(start, 0, "local")
    return sch


def _lanes(sch: Any, loop: Any, cpu: Cpu, most: int = 1) -> int:
    """Give the most numbers that divide ``loop`` and lie in a register, or in ``most`` registers."""
    size = _extents(sch, [loop])[0]
    return next((many for many in (most * cpu.lanes, cpu.lanes, cpu.lanes // 2, 4, 2) if size % many == 0), 1)


def _work(sch: Any, block: Any) -> int:
    return prod(int(variable.dom.extent) for variable in sch.get(block).iter_vars)


def _share(sch: Any, outer: list[Any], work: int) -> None:
    """Let threads share the outer loops where there is much to do."""
    if work >= _MUCH_TO_ADD:
        sch.parallel(sch.fuse(*outer[:-1]) if len(outer) > 2 else outer[0])


def _spread(sch: Any, block: Any, cpu: Cpu) -> None:
    """One number for one: fused into one loop where registers can be filled, else the last axis in registers."""
    loops = sch.get_loops(block)
    if not loops:
        return
    *front, last = loops
    total = prod(_extents(sch, loops))
    if (lanes := _lanes(sch, last, cpu, 2)) > 2:
        between, lane = sch.split(last, [None, lanes])
        sch.vectorize(lane)
        front = [*front, between]
    if total >= _MUCH_TO_MOVE and front:
        sch.parallel(sch.fuse(*front[:-1]) if len(front) > 1 else front[0])


def _plain(sch: Any, cpu: Cpu) -> Any:
    """What is no product: inline what can be, fill registers along the last axis, reduce with the registers inside."""
    from tvm.s_tir.schedule import ScheduleError

    for block in _blocks(sch)[:-1]:
        if not _reduces(sch, block):
            with suppress(ScheduleError):  # it reads what is reduced, or lies where it cannot be put into its readers
                sch.compute_inline(block)
    for block in _blocks(sch):
        if _reduces(sch, block):
            _reduce(sch, block, cpu)
        else:
            _spread(sch, block, cpu)
    return sch


def _reduce(sch: Any, block: Any, cpu: Cpu) -> None:
    """Sum up beside each other what lies beside each other."""
    loops = sch.get_loops(block)
    variables = sch.get(block).iter_vars
    sums = [loop for loop, each in zip(loops, variables, strict=True) if _is_sum(each)]
    kept = [loop for loop, each in zip(loops, variables, strict=True) if not _is_sum(each)]
    if not kept:
        return
    sizes, lanes = _extents(sch, kept), _lanes(sch, kept[-1], cpu)
    if lanes > 2 and loops[-1] is not kept[-1]:
        between, lane = sch.split(kept[-1], [None, lanes])
        sch.reorder(*kept[:-1], between, *sums, lane)
        sch.vectorize(lane)
        kept = [*kept[:-1], between]
    if _work(sch, block) >= _MUCH_TO_MOVE and prod(sizes) > 1:
        sch.parallel(sch.fuse(*kept) if len(kept) > 1 else kept[0])
