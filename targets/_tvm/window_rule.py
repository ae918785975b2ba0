"""The schedule of sums of few terms, such as a depthwise convolution or a pooling: each thread sums for itself.

Threads that share such a sum would wait for each other longer than they add.
"""

from __future__ import annotations

from math import prod
from typing import Any

from .gpu import Gpu

#: Sums of up to this many terms are one thread's, and of up to this many where there are threads enough anyway.
FEW, SOME = 32, 1024

#: Threads of a block, which share nothing.
_THREADS = 256


def schedule(function: Any, gpu: Gpu, choice: Any = None) -> Any | None:
    """Schedule ``function``; None where it has no sum, several, or one of many terms. choice: there is none."""
    from tvm import s_tir
    from tvm.s_tir.dlight.analysis import normalize_prim_func
    from tvm.s_tir.dlight.base import try_inline_contiguous_spatial

    sch = s_tir.Schedule(function)
    blocks = normalize_prim_func(sch)
    if blocks is None:
        return None
    blocks = try_inline_contiguous_spatial(sch, blocks)
    sums = [block for block in blocks if block.is_reduction()]
    if len(sums) != 1 or not _is_worth_it(sums[0], gpu) or all(axis.kind == "S" for axis in sums[0].iters):
        return None
    main = sums[0].block_rv
    if blocks[-1] is sums[0]:
        last = sch.cache_write(main, 0, "local")
    elif len(blocks) == 2 and blocks[0] is sums[0]:
        last = blocks[1].block_rv
        sch.set_scope(main, 0, "local")
    else:
        return None
    loops = sch.get_loops(main)
    spatial = [loop for loop, axis in zip(loops, sums[0].iters, strict=True) if axis.kind == "S"]
    terms = [loop for loop, axis in zip(loops, sums[0].iters, strict=True) if axis.kind == "R"]
    sch.reorder(*spatial, *terms)
    # One result has no index that would keep other threads from writing it, so there are no others.
    results = prod(int(axis.dom) for axis in sums[0].iters if axis.kind == "S")
    block, thread = sch.split(sch.fuse(*spatial), [None, min(gpu.threads, _THREADS, results)])
    sch.bind(block, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    sch.reverse_compute_at(last, thread, preserve_unit_loops=True)
    sch.decompose_reduction(main, terms[0])
    return sch


def _is_worth_it(block: Any, gpu: Gpu) -> bool:
    terms = prod(int(axis.dom) for axis in block.iters if axis.kind == "R")
    results = prod(int(axis.dom) for axis in block.iters if axis.kind == "S")
    return terms <= FEW or (terms <= SOME and results >= gpu.units * gpu.resident_threads)
