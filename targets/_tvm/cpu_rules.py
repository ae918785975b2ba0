"""Schedules for a CPU: sums stay in registers, what follows them is done while they are there.

Source: Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication, TOMS 34(3), 2008, for the panels;
Georganas et al., Anatomy of High-Performance Deep Learning Convolutions on SIMD Architectures, SC 2018.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from math import inf, prod
from typing import Any

import numpy as np

from .cpu_arch import Cpu
from .cpu_tiles import Tile, tiles_for
from .records import workload
from .traces import is_scheduled

#: Of these schedules: what was measured with others is not used.
VERSION = 3

#: Work below these is done sooner than other threads would have begun: multiply-adds, and numbers.
_MUCH_TO_ADD, _MUCH_TO_MOVE = 1 << 20, 1 << 17

#: Bytes of an image above which it has left the nearest caches before it is read again.
_NEAR = 1 << 17


def schedule(module: Any, cpu: Cpu, tiles: Mapping[str, Tile]) -> Any:
    """Give every kernel of ``module`` its schedule; tiles: those that were measured, by workload."""
    from tvm import tirx

    module = module.clone()
    for variable, function in list(module.functions.items()):
        if isinstance(function, tirx.PrimFunc) and not is_scheduled(function):
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
    shape = [_known(d) for d in sch.get(sums).writes[0].source.ty.shape][:-1]
    return tiles_for(shape if "dot" in blocks else [*shape, 1], cpu)


def scheduled(function: Any, cpu: Cpu, tile: Tile | None = None) -> Any:
    """Give one kernel its schedule; tile: in place of the one that the model of costs chooses."""
    from tvm import s_tir

    sch = s_tir.Schedule(function)
    names = [sch.get(block).name_hint for block in _blocks(sch)]
    if names == ["depth_to_space"]:
        return _by_blocks(sch).mod["main"]
    for name, rule in (("dot", _dot), ("taps", _taps)):
        if names.count(name) == 1:
            return rule(sch, cpu, tile).mod["main"]
    return _plain(sch, cpu).mod["main"]


def _blocks(sch: Any) -> list[Any]:
    return list(sch.get_child_blocks(sch.get_sblock("root")))


def _extents(sch: Any, loops: list[Any]) -> list[int]:
    return [_known(sch.get(loop).extent) for loop in loops]


def _known(size: Any) -> int:
    """Give a size, or where it is open, what is known to divide it."""
    from tvm import sym, tirx

    return int(size) if isinstance(size, tirx.IntImm) else int(sym.Analyzer().modular_set(size).coeff)


def _total(sizes: Iterable[Any]) -> float:
    """Multiply sizes; what is open may be any."""
    from tvm import tirx

    return prod(int(size) if isinstance(size, tirx.IntImm) else inf for size in sizes)


def _reduces(sch: Any, block: Any) -> bool:
    from tvm import tirx

    return any(each.iter_type == tirx.IterVar.CommReduce for each in sch.get(block).iter_vars)


def _prepare(sch: Any, name: str, cpu: Cpu) -> tuple[Any, Any, Any]:
    """Schedule what comes before the block ``name``, and put all that follows it into one.

    Returns: both, and what pads an image that is too large to be padded as a whole, which is left as it is.
    """
    blocks = _blocks(sch)
    at = [sch.get(block).name_hint for block in blocks].index(name)
    padded = next((block for block in blocks[:at] if _is_large_image(sch, block)), None)
    for block in blocks[:at]:
        if block is not padded:
            _spread(sch, block, cpu)
    for block in blocks[at + 1 : -1]:
        sch.compute_inline(block)
    return blocks[at], blocks[-1], padded


def _is_large_image(sch: Any, block: Any) -> bool:
    """Whether a block pads an image with channels last, and that has left the near caches before it is read."""
    written = sch.get(block).writes[0].source
    shape, size = written.ty.shape, np.dtype(str(written.ty.dtype.dtype)).itemsize
    return sch.get(block).name_hint == "padded" and len(shape) == 4 and size * _total(shape) > _NEAR


def _dot(sch: Any, cpu: Cpu, tile: Tile | None) -> Any:
    """Sums of products: [.., rows, N / lanes, lanes] += input[.., K] * panels[N / lanes, .., K, lanes]."""
    from .cpu_dot import INTRINSICS

    dot, last, padded = _prepare(sch, "dot", cpu)
    work, written = _work(sch, dot), sch.get(dot).writes[0].source
    lanes, coded = int(written.ty.shape[-1]), str(written.ty.dtype.dtype) == "int32"
    if not cpu.masks and _extents(sch, sch.get_loops(last)[-1:])[0] % lanes:
        # What follows cannot read full registers: it gets a loop of its own.
        _spread(sch, last, cpu)
        last = sch.cache_write(dot, 0, "global")
        *_, panel, lane = sch.get_loops(last)
        sch.fuse(panel, lane)
    sums = _sums(sch, dot)
    *front, panel, lane = sch.get_loops(dot)[: -len(sums)]
    tile = tile or tiles_for(_extents(sch, [*front, panel]), cpu)[0]
    outer, inner = _tiled(sch, [*front, panel], tile, by_row=padded is not None)
    quad = [sums.pop()] if coded else []
    sch.reorder(*outer, *sums, *inner, lane, *quad)
    _follow(sch, last, outer[-1], lanes)
    _share(sch, outer, work, padded, cpu)
    if not coded:
        sch.vectorize(lane)
    start = _start(sch, dot, sums[0], [*inner, lane])
    if coded:
        sch.tensorize(lane, INTRINSICS[lanes])
    sch.set_scope(start, 0, "local")
    return sch


def _tiled(sch: Any, loops: list[Any], tile: Tile, *, by_row: bool) -> tuple[list[Any], list[Any]]:
    """Split ``loops``, [.., rows, panels], into those between tiles and those inside one.

    by_row: all panels are done for a row of tiles, not all rows for a panel.
    """
    *front, panel = loops
    rows = [sch.split(loop, [None, many]) for loop, many in zip(front[-2:], tile.rows, strict=True)]
    between, registers = sch.split(panel, [None, tile.columns])
    *above, row = [each[0] for each in rows]
    outer = [*front[:-2], *above, between, row] if by_row else [*front[:-2], between, *above, row]
    return outer, [*(row[1] for row in rows), registers]


def _follow(sch: Any, last: Any, tile: Any, lanes: int) -> None:
    """Do what follows the sums of a tile while they are in registers; what lies behind the end of a row is left."""
    from tvm import tirx

    before = len(sch.get_loops(last))
    sch.reverse_compute_at(last, tile, preserve_unit_loops=True)
    if not isinstance(sch.get(tile).extent, tirx.IntImm):
        sch.annotate(tile, "pragma_loop_partition_hint", 1)  # the tiles that are full get code that asks nothing
    *rows, channel = sch.get_loops(last)[-before:]
    registers, lane = sch.split(channel, [None, lanes])
    for loop in (*rows, registers):
        sch.unroll(loop)
    sch.vectorize(lane)


def _start(sch: Any, block: Any, sum_: Any, inside: list[Any]) -> Any:
    """Let the sums of a tile begin before the loop ``sum_``; inside: the loops of the tile. Returns: what does it."""
    *registers, _ = inside
    for loop in registers:
        sch.unroll(loop)
    start = sch.decompose_reduction(block, sum_)
    *again, lane = sch.get_loops(start)[-len(inside) :]
    for loop in again:
        sch.unroll(loop)
    sch.vectorize(lane)
    return start


def _sums(sch: Any, block: Any) -> list[Any]:
    """Give the loops over what is added up."""
    return [loop for loop, each in zip(sch.get_loops(block), sch.get(block).iter_vars, strict=True) if _is_sum(each)]


def _is_sum(variable: Any) -> bool:
    from tvm import tirx

    return bool(variable.iter_type == tirx.IterVar.CommReduce)


def _taps(sch: Any, cpu: Cpu, tile: Tile | None) -> Any:
    """Sums of taps: every tap of a register of channels is unrolled, for several pixels of a row at once."""
    taps, last, padded = _prepare(sch, "taps", cpu)
    work, sums = _work(sch, taps), _sums(sch, taps)
    *front, channel = sch.get_loops(taps)[: -len(sums)]
    lanes = _lanes(sch, channel, cpu)
    panel, lane = sch.split(channel, [None, lanes])
    tile = tile or tiles_for([*_extents(sch, front), 1], cpu)[0]
    outer, inner = _tiled(sch, [*front, panel], tile, by_row=padded is not None)
    sch.reorder(*outer, *sums, *inner, lane)
    for loop in sums:
        sch.unroll(loop)
    _follow(sch, last, outer[-1], lanes)
    _share(sch, outer, work, padded, cpu)
    sch.vectorize(lane)
    start = _start(sch, taps, sums[0], [*inner, lane])
    sch.set_scope(start, 0, "local")
    return sch


def _lanes(sch: Any, loop: Any, cpu: Cpu, most: int = 1) -> int:
    """Give the most numbers that divide ``loop`` and lie in a register, or in ``most`` registers."""
    size = _extents(sch, [loop])[0]
    return next((many for many in (most * cpu.lanes, cpu.lanes, cpu.lanes // 2, 4, 2) if size % many == 0), 1)


def _work(sch: Any, block: Any) -> float:
    return _total(variable.dom.extent for variable in sch.get(block).iter_vars)


def _share(sch: Any, outer: list[Any], work: float, padded: Any, cpu: Cpu) -> None:
    """Let threads share the outer loops where there is much to do; padded: what each does for its own rows first."""
    shared = outer[:-1] if padded is None else outer[:-2]
    if work < _MUCH_TO_ADD and padded is None:
        return
    rows = sch.fuse(*shared) if len(shared) > 1 else outer[0]
    if work >= _MUCH_TO_ADD:
        sch.parallel(rows)
    if padded is not None:
        sch.compute_at(padded, rows)
        _fill(sch, sch.get_loops(padded)[-1], cpu)


def _spread(sch: Any, block: Any, cpu: Cpu) -> None:
    """One number for one: fused into one loop where registers can be filled, else the last axis in registers."""
    loops = sch.get_loops(block)
    if not loops:
        return
    *front, last = loops
    total = _total(sch.get(loop).extent for loop in loops)
    front += _fill(sch, last, cpu)
    if total >= _MUCH_TO_MOVE and front:
        sch.parallel(sch.fuse(*front[:-1]) if len(front) > 1 else front[0])


def _fill(sch: Any, last: Any, cpu: Cpu) -> list[Any]:
    """Fill registers along the last axis. Returns: the loop around them, where some can be filled."""
    if (lanes := _lanes(sch, last, cpu, 2)) <= 2:
        return []
    between, lane = sch.split(last, [None, lanes])
    sch.vectorize(lane)
    return [between]


def _by_blocks(sch: Any) -> Any:
    """What a pixel is spread over lies in its own loops, so that no position has to be divided."""
    [block] = _blocks(sch)
    size = int(sch.get(block).annotations["block"])
    *front, y, x = sch.get_loops(block)
    rows, columns = sch.split(y, [None, size]), sch.split(x, [None, size])
    sch.unroll(columns[1])
    if _work(sch, block) >= _MUCH_TO_MOVE:
        sch.parallel(sch.fuse(*front, rows[0]))
    return sch


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
    variables, sums = sch.get(block).iter_vars, _sums(sch, block)
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
