"""What a LiteRT file is made of: tensors, and the operators between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Grid:
    """The numbers that codes stand for: ``(code - zero) * scale``; one scale, or one for each index of ``axis``.

    axis: an axis of the tensor as the file holds it; None for one scale.
    """

    scale: tuple[float, ...]
    zero: int = 0
    axis: int | None = None

    def moved(self, order: Sequence[int]) -> Grid:
        """Give the grid of the tensor whose axis ``i`` was ``order[i]``."""
        return self if self.axis is None else Grid(self.scale, self.zero, tuple(order).index(self.axis))

    @property
    def limits(self) -> tuple[float, float]:
        """The smallest and the largest number of int8 codes on one scale."""
        return (-128 - self.zero) * self.scale[0], (127 - self.zero) * self.scale[0]


@dataclass(eq=False)
class Tensor:
    """One tensor of the file. dtype: numpy's name, or ``int4``. data: what a constant holds, None for any other.

    least: what no element is less than, as far as that is known. blocks: the scales of int4 codes that have several
    in a row.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: np.ndarray | None = None
    grid: Grid | None = None
    signature: tuple[int, ...] | None = None
    least: float | None = None
    blocks: Blocks | None = None

    def __post_init__(self) -> None:
        if self.data is not None and self.data.dtype.kind == "i" and self.data.size and self.grid is None:
            self.least = float(self.data.min())

    @property
    def size(self) -> int:
        """How many elements it has."""
        return prod(self.shape)


@dataclass(frozen=True, eq=False)
class Blocks:
    """Scales of a matrix of int4 codes: one for so many columns of a row. scales: [rows, columns / size] float16."""

    scales: Tensor
    size: int


@dataclass(eq=False)
class Operator:
    """One operator. kind: as the schema spells it, ``CONV_2D``; options: fields of its options table."""

    kind: str
    inputs: Sequence[Tensor | None]
    outputs: Sequence[Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Subgraph:
    """A function of the file: what it reads, what it gives, and the operators in between, in order.

    short: sizes of axes that are cut further out than they reach, by what is cut: were they longer, it would show.
    """

    name: str
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    operators: list[Operator] = field(default_factory=list)
    short: dict[str, int] = field(default_factory=dict)

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor, in the order of first use."""
        used = [t for o in self.operators for t in (*o.inputs, *o.outputs) if t is not None]
        scales = [tensor.blocks.scales for tensor in used if tensor.blocks is not None]
        return list(dict.fromkeys((*self.inputs, *used, *self.outputs, *scales)))

    def sweep(self) -> None:
        """Take out operators whose results nothing reads."""
        read = set(self.outputs)
        kept = []
        for operator in reversed(self.operators):
            if not read.isdisjoint(operator.outputs):
                kept.append(operator)
                read.update(tensor for tensor in operator.inputs if tensor is not None)
        self.operators = kept[::-1]
