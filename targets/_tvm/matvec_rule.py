"""The schedule of a matrix times one vector: threads side by side along a row, several rows to each.

The vector lies in shared memory. The matrix passes once, 16 bytes an instruction, neighbours beside each other. A
thread adds up its chunks of its rows, and then the threads of a row add up what each of them has: by shuffles within a
warp, through shared memory across warps. Where rows are few, the threads of several warps share one.
Source: the matrix-vector products of TVM's dlight and of llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import gcd
from typing import Any

from .gpu import Gpu
from .matvec import PART, VECTOR, WHOLE
from .matvec_tiles import UNROLL, Rows, Vector, staged, ways


def schedule(function: Any, gpu: Gpu, way: Any = None) -> Any | None:
    """Schedule ``function``; None where it is none of ``matvec``. way: instead of the one that the model chooses."""
    if (rule := _rule(function, gpu)) is None:
        return None
    rule.apply(way if isinstance(way, Rows) else ways(rule.vector, gpu)[0])
    return rule.sch


def choices(function: Any, gpu: Gpu) -> list[Rows]:
    """Give the ways of ``function``, the cheapest by the model first; none where it is none of ``matvec``."""
    rule = _rule(function, gpu)
    return ways(rule.vector, gpu) if rule else []


def _rule(function: Any, gpu: Gpu) -> _Rule | None:
    from tvm import s_tir

    sch = s_tir.Schedule(function)
    names = [sch.get(block).name_hint for block in sch.get_child_blocks(sch.get_sblock("root"))]
    return _Rule(sch, gpu) if names.count(PART) == names.count(WHOLE) == 1 else None


@dataclass
class _Rule:
    sch: Any
    gpu: Gpu

    def __post_init__(self) -> None:
        self.part, self.whole = self.sch.get_sblock(PART), self.sch.get_sblock(WHOLE)

    @cached_property
    def vector(self) -> Vector:
        """What there is to multiply. The first of what a part reads is the vector, the second is the matrix."""
        block = self.sch.get(self.part)
        rows, chunks, units, terms = (int(axis.dom.extent) for axis in block.iter_vars)
        x, matrix = (region.source.ty.dtype.dtype for region in list(block.reads)[:2])
        codes = str(matrix) == "uint32"
        item = x.bits // 8
        return Vector(rows, chunks, units * terms, (units if codes else terms) * matrix.bits // 8, item, codes)

    def apply(self, way: Rows) -> None:
        """Give the product its schedule."""
        from tvm.s_tir.dlight.gpu import matmul

        sch = self.sch
        *_, chunk = sch.get_loops(self.whole)
        _, lane = sch.split(chunk, [None, way.lanes])
        sums = sch.rfactor(lane, 0)
        *front, row, step, lane = sch.get_loops(sums)
        block, group, each = sch.split(row, [None, way.groups, way.each])
        block = sch.fuse(*front, block)
        sch.reorder(block, group, lane, step, each)
        sch.bind(block, "blockIdx.x")
        sch.bind(group, "threadIdx.y")
        sch.bind(lane, "threadIdx.x")
        sch.set_scope(sums, 0, "local")
        result = sch.cache_write(self.whole, 0, "local")
        matmul.auto_inline_consumer_chain(sch, result)
        self._across(result, block, way)
        sch.compute_at(self.part, step, preserve_unit_loops=True)
        sch.set_scope(self.part, 0, "local")
        self._read(lane, step, way)
        if self.vector.chunks // way.lanes <= UNROLL:
            sch.unroll(step)
        sch.unroll(each)
        self._begin(sums, step)

    def _across(self, result: Any, block: Any, way: Rows) -> None:
        """Add up what the threads of a row have, and write it out with what follows."""
        sch = self.sch
        sch.reverse_compute_at(self.whole, block, preserve_unit_loops=True)
        _, lane, *_, row = sch.get_loops(self.whole)
        group, each = sch.split(row, [None, way.each])
        sch.reorder(group, each, lane)
        sch.bind(group, "threadIdx.y")
        sch.bind(lane, "threadIdx.x")
        sch.reverse_compute_at(result, block, preserve_unit_loops=True)
        _, *loops = sch.get_loops(result)
        group, each = sch.split(sch.fuse(*loops), [None, way.each])
        sch.bind(group, "threadIdx.y")
        sch.unroll(each)

    def _read(self, lane: Any, step: Any, way: Rows) -> None:
        """Bring the matrix into registers, and the vector there by way of shared memory."""
        sch, vector = self.sch, self.vector
        matrix = sch.cache_read(self.part, 1, "local")
        sch.compute_at(matrix, step, preserve_unit_loops=True)
        *_, row, item = sch.get_loops(matrix)
        sch.unroll(row)
        wide, item = sch.split(item, [None, gcd(self.gpu.lanes, int(sch.get(item).extent))])
        sch.unroll(wide)
        sch.vectorize(item)
        several = gcd(vector.terms, min(VECTOR // vector.item, self.gpu.lanes))
        if staged(vector, self.gpu):
            self._stage(lane, way, several)
        *_, row, _, unit, term = sch.get_loops(self.part)
        sch.reorder(unit, row, term)
        x = sch.cache_read(self.part, 0, "local")
        sch.compute_at(x, unit, preserve_unit_loops=True)
        *_, item = sch.get_loops(x)
        wide, item = sch.split(item, [None, gcd(several, int(sch.get(item).extent))])
        sch.unroll(wide)
        sch.vectorize(item)
        for loop in (unit, row, term):
            sch.unroll(loop)
        self._begin(self.part, unit)

    def _stage(self, lane: Any, way: Rows, several: int) -> None:
        """Let all threads of a block fetch the vector together, each ``several`` numbers at a time."""
        sch, vector = self.sch, self.vector
        block = sch.cache_read(self.part, 0, "shared")
        sch.compute_at(block, lane, preserve_unit_loops=True)
        outer, item = sch.split(sch.get_loops(block)[-1], [None, several])
        _, group, lane = sch.split(outer, [None, way.groups, way.lanes])
        sch.bind(group, "threadIdx.y")
        sch.bind(lane, "threadIdx.x")
        sch.vectorize(item)
        sch.transform_layout(block, ("write", 0), lambda *at: (at[-1] // vector.terms, at[-1] % vector.terms))
        if vector.gap:
            sch.storage_align(block, 0, axis=-2, factor=vector.terms, offset=vector.gap // vector.item)

    def _begin(self, block: Any, loop: Any) -> None:
        """Set sums to zero before ``loop``."""
        sch = self.sch
        start = sch.decompose_reduction(block, loop)
        sch.unroll(sch.get_loops(start)[-1])
