"""Sizes as an int or a symbol, and how they combine.

The same symbol is the same size. Two sizes that meet in one element-wise operation and are not written as 1 are taken
to be one size. A symbol with an "@" in it is made up: it may be equal to another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol

import onnx_ir as ir

Dim = int | str
Dims = tuple[Dim, ...]
#: The elements of a small tensor: numbers, or symbols where it was computed from sizes; None for an unknown one.
Numbers = tuple[float | str | None, ...]


class Known(Protocol):
    """What is known of values so far, as the rules for single operators ask for it."""

    def of(self, value: ir.Value | None) -> Dims | None:
        """Give the dimensions of ``value``; None where not even the rank is known."""

    def numbers(self, value: ir.Value | None) -> Numbers | None:
        """Give the elements of ``value`` where it is small and of rank 0 or 1."""

    def integers(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """Give the elements of ``value`` where all of them are known integers."""


def show(dims: Dims | None) -> str:
    """Spell ``dims`` for a message: symbols that the model does not name are question marks."""
    if dims is None:
        return "of unknown rank"
    return f"[{', '.join('?' if isinstance(d, str) and '@' in d else str(d) for d in dims)}]"


def same_number(a: Dims | None, b: Dims | None) -> bool:
    """Whether ``a`` and ``b``, of equally many elements, are one shape: then one axis follows from the others."""
    if a is None or b is None or len(a) != len(b):
        return False
    differ = [(x, y) for x, y in zip(a, b, strict=True) if x != y]
    return not differ or (len(differ) == 1 and any(isinstance(d, str) for d in differ[0]))


def product(dims: Iterable[Dim]) -> tuple[int, Counter[str]]:
    """Multiply ``dims``: the number, and how often each symbol is in it."""
    number, symbols = 1, Counter[str]()
    for d in dims:
        if isinstance(d, int):
            number *= d
        else:
            symbols[d] += 1
    return number, symbols


def broadcast(shapes: Sequence[Dims | None]) -> Dims | None:
    """Give the shape that ``shapes`` broadcast to."""
    known = [s for s in shapes if s is not None]
    if len(known) < len(shapes):
        return None
    out: list[Dim] = []
    for i in range(max(map(len, known), default=0)):
        meeting = [s[-1 - i] for s in known if i < len(s)]
        others = [d for d in meeting if d != 1]
        fixed = [d for d in others if isinstance(d, int)]
        named = [d for d in others if isinstance(d, str) and "@" not in d]
        out.append((fixed or named or others or [1])[0])
    return tuple(reversed(out))


def symbol(value: ir.Value, axis: int, name: str | None = None) -> str:
    """Name a size. One that is made up, or that an exporter derived, has an "@" in it."""
    if not name or name in _ANONYMOUS or name.startswith("unk__"):
        return f"{value.name}@{axis}"
    return name if value.is_graph_input() else f"{name}@"


#: Names that exporters give to every unknown dimension alike.
_ANONYMOUS = {"?", "*", "None", "none", "unk", "unknown", "dynamic", "-1"}
