"""How many sums are kept in registers at once, chosen by what a cycle of loads and multiply-adds costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

from .cpu_arch import Cpu


@dataclass(frozen=True)
class Tile:
    """rows: of the last two axes before the columns, or the last. columns: registers beside each other."""

    rows: tuple[int, ...]
    columns: int

    @property
    def sums(self) -> int:
        """Registers that hold sums."""
        return prod(self.rows) * self.columns

    @property
    def cost(self) -> float:
        """Loads and multiply-adds for each multiply-add: a row is read once a column, a panel once for all rows.

        Four multiply-adds are under way at once on two units, so that fewer sums than eight wait for each other.
        """
        loads = self.columns + 0.5 * prod(self.rows)
        return (self.sums + loads) / self.sums * max(1.0, 8 / self.sums)


def tiles_for(shape: Sequence[int], cpu: Cpu) -> list[Tile]:
    """Give the tiles for sums of ``shape``, [.., rows, registers], the cheapest first."""
    return sorted(_tiles(shape, cpu.registers), key=lambda tile: (tile.cost, -tile.columns, max(tile.rows), tile.rows))


def _tiles(shape: Sequence[int], registers: int) -> Iterator[Tile]:
    choices = [*(_divisors(size, registers) for size in shape[-3:-1]), _divisors(shape[-1], 4)]
    for *rows, columns in product(*choices):
        tile = Tile(tuple(rows), columns)
        if tile.sums <= registers:
            yield tile


def _divisors(size: int, most: int) -> list[int]:
    return [many for many in range(1, min(size, most) + 1) if size % many == 0]
