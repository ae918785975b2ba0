"""Which buffer holds which tensor: tensors that are never alive at once share one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """From the launch that writes a tensor to the last one that reads it, both included. size: bytes."""

    first: int
    last: int
    size: int

    def meets(self, other: Span) -> bool:
        """Whether both are alive during one launch."""
        return self.first <= other.last and other.first <= self.last


def share(spans: Mapping[str, Span]) -> tuple[list[int], dict[str, int]]:
    """Give each tensor a buffer, the largest first, in the first one that is free whenever the tensor is alive.

    Two tensors of one launch never share: WebGPU binds no buffer for reading and writing at once.
    Returns: the size of every buffer in bytes, and the number of the buffer by tensor.
    Source: Pisarchyk and Lee 2020, arXiv:2001.03288, section 4 (shared objects, greedy by size).
    """
    sizes: list[int] = []
    held: list[list[Span]] = []
    placed: dict[str, int] = {}
    for name, span in sorted(spans.items(), key=lambda item: -item[1].size):
        number = next((i for i, others in enumerate(held) if not any(map(span.meets, others))), len(held))
        if number == len(held):
            sizes.append(span.size)
            held.append([])
        held[number].append(span)
        placed[name] = number
    return sizes, placed


def spans(
    sizes: Mapping[str, int], launches: Iterable[Iterable[str]], inputs: Iterable[str], outputs: Iterable[str]
) -> dict[str, Span]:
    """Give the span of every tensor in ``sizes``: an input is there before the first launch, an output after the last.

    launches: the operands of each; names that are not in ``sizes`` are left out.
    """
    alive: dict[str, tuple[int, int]] = dict.fromkeys(inputs, (-1, -1))
    count = -1
    for count, operands in enumerate(launches):
        for name in operands:
            alive[name] = (alive.get(name, (count, count))[0], count)
    for name in outputs:
        alive[name] = (alive.get(name, (-1, -1))[0], count + 1)
    return {name: Span(*alive[name], size) for name, size in sizes.items() if name in alive}
