"""Layouts: in which order a tensor of the file holds the axes of an ONNX value.

Axis ``i`` of the tensor is axis ``order[i]`` of the value. A Transpose of the model thus changes an order and moves
nothing; data moves only where an operator reads a value in an order that no tensor has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

Order = tuple[int, ...]

NHWC: Order = (0, 2, 3, 1)


def plain(rank: int) -> Order:
    """Give the order of ONNX itself."""
    return tuple(range(rank))


def channels_last(rank: int) -> Order:
    """Give the order of LiteRT's convolutions: NWC, NHWC."""
    return (0, *range(2, rank), 1)


def physical(shape: Sequence[int], order: Order) -> tuple[int, ...]:
    """Give the shape that a tensor of ``order`` has."""
    return tuple(shape[axis] for axis in order)


def between(held: Order, wanted: Order) -> Order:
    """Give the permutation that brings a tensor of order ``held`` to ``wanted``."""
    return tuple(held.index(axis) for axis in wanted)


def moves_data(shape: Sequence[int], held: Order, wanted: Order) -> bool:
    """Whether the two orders differ in more than where axes of size 1 are."""
    return [a for a in held if shape[a] != 1] != [a for a in wanted if shape[a] != 1]


def reshaped(shape: Sequence[int], order: Order, result: Sequence[int]) -> Order | None:
    """Give an order of the reshaped value in which a tensor of ``order`` holds it already, or None where none does.

    Axes that a reshape merges or splits have to lie side by side in the order of ONNX; a group of axes that it leaves
    alone may lie anywhere.
    """
    if prod(shape) != prod(result) or prod(shape) == 0:
        return None
    found: list[int] = []
    groups = _groups(shape, result)
    place = {axis: at for at, axis in enumerate(axis for axis in order if shape[axis] != 1)}
    for group, _ in groups:
        places = [place[axis] for axis in group]
        if places != list(range(places[0], places[0] + len(places))):
            return None
    for _, after in sorted(groups, key=lambda group: place[group[0][0]]):
        found += after
    return _with_ones(found, result)


def _groups(shape: Sequence[int], result: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Give the smallest groups of axes with as many elements before as after; axes of size 1 are in none."""
    left = [axis for axis, size in enumerate(shape) if size != 1]
    right = [axis for axis, size in enumerate(result) if size != 1]
    groups = []
    while left or right:
        before, after = [left.pop(0)], [right.pop(0)]
        while (a := prod(shape[i] for i in before)) != (b := prod(result[i] for i in after)):
            if a < b:
                before.append(left.pop(0))
            else:
                after.append(right.pop(0))
        groups.append((before, after))
    return groups


def _with_ones(found: list[int], result: Sequence[int]) -> Order:
    """Put the axes of size 1 where they make an order that is of use: ONNX's own or channels last, if they can."""
    rank = len(result)
    for wish in (plain(rank), channels_last(rank) if rank > 2 else plain(rank)):
        if [axis for axis in wish if result[axis] != 1] == found:
            return wish
    return tuple([axis for axis in range(rank) if result[axis] == 1] + found)


def broadcast(order: Order, rank: int, whole: int) -> Order:
    """Give the order of a value of ``rank`` axes that is broadcast to ``whole`` axes which lie in ``order``."""
    missing = whole - rank
    return tuple(axis - missing for axis in order if axis >= missing)


def without(order: Order, axes: Iterable[int]) -> Order:
    """Give what is left of ``order`` when ``axes`` go and the others are numbered anew."""
    gone = set(axes)
    left = [axis for axis in range(len(order)) if axis not in gone]
    return tuple(left.index(axis) for axis in order if axis not in gone)
