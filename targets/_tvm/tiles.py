"""Which part of a matrix product one thread block takes: the cheapest of a few by a stated model of a GPU.

Nothing is measured here, since the GPU is elsewhere. The model counts cycles of one multiprocessor for a block that
walks along the terms of its sums, ``tile.terms`` at a time:

    busy    = max(multiply-adds / rate, bytes of both operands / bandwidth)           of one step, of one block
    step    = max(resident * busy, latency + busy)        blocks that share a multiprocessor hide each other's waiting
    cycles  = ceil(blocks / (units * resident)) * ceil(terms / tile.terms) * step

It knows what decides: small products want many small tiles, so that every multiprocessor has one; large ones want
large tiles, which read each operand fewer times; and what a tile sticks out over the edge is computed for nothing.
Source: Williams, Waterman and Patterson 2009, Roofline; waves and tiles as in NVIDIA's Matrix Multiplication Guide.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .gpu import Gpu

#: Cycles from asking for memory to having it, with the barrier behind it.
LATENCY = 800

#: Registers of a thread beside the sums that it holds.
_SPARE_REGISTERS = 32


@dataclass(frozen=True)
class Product:
    """``batch`` products of [rows, terms] and [terms, columns]; item: bytes of a factor."""

    batch: int
    rows: int
    columns: int
    terms: int
    item: int


@dataclass(frozen=True)
class Tile:
    """What a thread block takes: [rows, columns] of the result, ``terms`` at a time.

    down, across: how its threads, or on tensor cores its warps, share rows and columns.
    """

    rows: int
    columns: int
    terms: int
    down: int
    across: int
    tensor: bool = False

    def threads(self, gpu: Gpu) -> int:
        """Threads of one block."""
        return self.down * self.across * (gpu.warp if self.tensor else 1)

    def shared(self, item: int) -> int:
        """Bytes of memory that the threads of a block share.

        On tensor cores the factors of two steps lie there at once, and the sums pass through the same memory.
        """
        if not self.tensor:
            return (self.rows + self.columns) * self.terms * item
        return max(2 * (self.rows + self.columns) * (self.terms + 8) * item, self.rows * (self.columns + 4) * 4)


#: Tiles whose threads each multiply and add for themselves.
PLAIN = (
    Tile(128, 128, 8, 16, 16),
    Tile(64, 128, 8, 8, 16),
    Tile(128, 64, 8, 16, 8),
    Tile(64, 64, 16, 16, 16),
    Tile(64, 64, 16, 8, 8),
    Tile(32, 64, 16, 8, 16),
    Tile(64, 32, 16, 16, 8),
    Tile(32, 32, 32, 16, 16),
    Tile(32, 32, 16, 8, 8),
    Tile(16, 64, 16, 4, 16),
    Tile(64, 16, 16, 16, 4),
    Tile(16, 32, 32, 8, 16),
    Tile(16, 16, 32, 8, 8),
)

#: Tiles whose warps multiply on tensor cores, in steps of 16 by 16 by 16.
TENSOR = (
    Tile(128, 128, 32, 4, 2, tensor=True),
    Tile(128, 64, 32, 4, 2, tensor=True),
    Tile(64, 128, 32, 2, 4, tensor=True),
    Tile(64, 64, 32, 2, 2, tensor=True),
    Tile(32, 64, 64, 2, 2, tensor=True),
    Tile(64, 32, 64, 2, 2, tensor=True),
    Tile(32, 32, 64, 2, 2, tensor=True),
    Tile(16, 128, 64, 1, 4, tensor=True),
    Tile(128, 16, 64, 4, 1, tensor=True),
    Tile(16, 64, 64, 1, 4, tensor=True),
    Tile(64, 16, 64, 4, 1, tensor=True),
    Tile(16, 32, 64, 1, 2, tensor=True),
)


def cycles(product: Product, tile: Tile, gpu: Gpu) -> float:
    """Predict how long ``product`` takes in tiles like ``tile``, in cycles."""
    blocks = product.batch * -(-product.rows // tile.rows) * -(-product.columns // tile.columns)
    threads = tile.threads(gpu)
    sums = tile.rows * tile.columns // threads
    resident = min(
        gpu.resident_threads // threads,
        gpu.resident_shared // tile.shared(product.item),
        gpu.registers // (threads * (sums + _SPARE_REGISTERS)),
        -(-blocks // gpu.units),
    )
    if resident < 1:
        return float("inf")
    work = tile.rows * tile.columns * tile.terms / (gpu.tensor_rate if tile.tensor else gpu.rate)
    # Each thread reads its rows and columns from shared memory once for every term.
    reads = threads * (tile.rows / tile.down + tile.columns / tile.across) * tile.terms * product.item
    fetched = (tile.rows + tile.columns) * tile.terms * product.item
    busy = max(work, fetched / gpu.bandwidth, 0 if tile.tensor else reads / gpu.warp / gpu.shared_rate)
    step = max(resident * busy, LATENCY + busy)
    return -(-blocks // (gpu.units * resident)) * -(-product.terms // tile.terms) * step


def ranked(product: Product, gpu: Gpu, *, half: bool) -> list[Tile]:
    """Give the tiles for ``product``, that of the fewest predicted cycles first, of equal ones the larger.

    half: both factors are float16, so that tensor cores can take them.
    """
    fitting: Iterable[Tile] = (*(TENSOR if half and gpu.tensor_cores else ()), *PLAIN)
    allowed = [tile for tile in fitting if tile.threads(gpu) <= gpu.threads and tile.shared(product.item) <= gpu.shared]
    return sorted(allowed, key=lambda tile: cycles(product, tile, gpu))


def choose(product: Product, gpu: Gpu, *, half: bool) -> Tile:
    """Choose the first of ``ranked``."""
    return ranked(product, gpu, half=half)[0]
