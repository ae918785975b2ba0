"""How threads share a matrix times a vector: the cheapest of a few ways by a stated model of a GPU.

The matrix is read once whatever the way, so that what differs is how much of it is on its way at a time, how often each
block fetches the vector, and how long threads wait for each other when they have added up. In cycles of one
multiprocessor, where a step is a thread's read of one chunk of each of its rows:

    busy    = max(bytes of a step / bandwidth, instructions of a step / rate)
    all     = max(resident * steps * busy, waits * latency + steps * busy)
    cycles  = ceil(blocks / (units * resident)) * (resident * bytes of the vector / bandwidth + all + end)

Steps that are written out wait once, all together; of a loop, each waits for itself.
Source: as for ``tiles``.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from .gpu import Gpu
from .tiles import LATENCY

#: Instructions a term: a code is shifted, masked twice, less its zero, multiplied; a number converted and multiplied.
_PER_CODE, _PER_FLOAT = 5, 2

#: Threads of a block at most, and bytes that memory gives at once: what is read beside each other is as long.
_THREADS, _LINE = 256, 128

#: Cycles of one round of a sum across threads: a shuffle and an addition, or a write, a barrier and a read.
_SHUFFLE, _BARRIER = 30, 60

#: So many steps or fewer are written out, so that all are asked for before the first is there.
UNROLL = 4

#: Registers of a thread beside what it has read, and what a block may have of shared memory without asking.
_SPARE_REGISTERS, _STATIC = 40, 48 << 10


@dataclass(frozen=True)
class Vector:
    """A matrix of [rows, chunks], of which each is ``terms`` numbers of ``bytes``; codes: whether those are stored.

    item: bytes of a number of the vector.
    """

    rows: int
    chunks: int
    terms: int
    bytes: int
    item: int
    codes: bool

    @property
    def shared(self) -> int:
        """Bytes of the vector where threads share it: chunks stand apart, so that neighbours read other banks."""
        return self.chunks * (self.terms * self.item + self.gap)

    @property
    def gap(self) -> int:
        """Bytes between two chunks."""
        return 16 if self.terms * self.item > 16 else 0


@dataclass(frozen=True)
class Rows:
    """What a thread block takes: ``groups`` of ``lanes`` threads, each group ``each`` rows."""

    lanes: int
    each: int
    groups: int


def ways(vector: Vector, gpu: Gpu) -> list[Rows]:
    """Give the ways in which rows and chunks come out even, that of the fewest predicted cycles first.

    A group is a part of a warp, or is alone in its block. Of equal ways that of the fewest threads is the first.
    """
    whole = [many for many in range(1, min(vector.chunks, _THREADS) + 1) if vector.chunks % many == 0]
    lanes = [many for many in whole if many * vector.bytes >= _LINE] or whole[-1:]
    found = [Rows(*way) for way in product(lanes, (1, 2, 4), (1, 2, 4, 8, 16, 32))]
    even = [
        way
        for way in found
        if vector.rows % (way.each * way.groups) == 0
        and way.lanes * way.groups <= min(gpu.threads, _THREADS)
        and (way.groups == 1 or gpu.warp % way.lanes == 0)
    ]
    return sorted(even, key=lambda way: (cycles(vector, way, gpu), way.lanes * way.groups))


def staged(vector: Vector, gpu: Gpu) -> bool:
    """Whether the vector finds room in shared memory."""
    return vector.shared <= min(gpu.shared, _STATIC)


def cycles(vector: Vector, way: Rows, gpu: Gpu) -> float:
    """Predict how long it takes, in cycles."""
    threads, blocks = -(-way.lanes * way.groups // gpu.warp) * gpu.warp, vector.rows // (way.each * way.groups)
    resident = min(
        gpu.resident_threads // threads,
        gpu.resident_shared // max(vector.shared, 1) if staged(vector, gpu) else blocks,
        gpu.registers // (threads * (_SPARE_REGISTERS + 6 * way.each)),
        -(-blocks // gpu.units),
    )
    if resident < 1:
        return float("inf")
    reads = threads * way.each
    instructions = reads * vector.terms * (_PER_CODE if vector.codes else _PER_FLOAT)
    busy = max(reads * vector.bytes / gpu.bandwidth, instructions / gpu.rate)
    steps = vector.chunks // way.lanes
    waits = steps if steps > UNROLL else 1
    begin = resident * vector.chunks * vector.terms * vector.item / gpu.bandwidth
    end = way.each * (_SHUFFLE if gpu.warp % way.lanes == 0 else _BARRIER) * way.lanes.bit_length()
    whole = max(resident * steps * busy, waits * LATENCY + steps * busy)
    return -(-blocks // (gpu.units * resident)) * (begin + whole + end)
