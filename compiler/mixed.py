"""Mixed: a recipe in which each layer goes the way that suits it, solved for what the user allows in all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from math import floor, inf

import numpy as np

from .assignment import Limit, assign
from .guard import Parts, keeping
from .pipeline import Pipeline
from .promise import Promise
from .recipe import Recipe
from .sensitivity import Layer, Sensitivity
from .statistics import Array

#: The name of what is solved, beside the precisions of the target.
MIXED = "mixed"


@dataclass(frozen=True)
class Bounds:
    """What all layers together may cost: noise over signal, bytes of the model, seconds of a run."""

    noise: float = inf
    size: float = inf
    seconds: float = inf


@dataclass(frozen=True)
class Table:
    """What there is to choose from: for each layer to stay in float, or to go one of ``ways``.

    parts: by way, its recipe cut in three. seconds: [layers] by way, and those of the float model under "".
    size: bytes of the float model; beside: what a way saves on what is no layer, an embedding for one, in bytes.
    """

    sensitivity: Sensitivity
    parts: Mapping[str, Parts]
    seconds: Mapping[str, Array]
    size: int = 0
    beside: Mapping[str, int] = field(default_factory=dict)

    @property
    def layers(self) -> Sequence[Layer]:
        """The layers, in order."""
        return self.sensitivity.layers

    def column(self, of: Mapping[str, Array]) -> Array:
        """Put [layers] of each way side by side, those of float first: [layers, 1 + ways]."""
        return np.stack([of[name] for name in ("", *self.parts)], 1)

    @property
    def noise(self) -> Array:
        """Noise of every layer, [layers, 1 + ways]: 0 in float, infinite where the way does not act."""
        zero = np.zeros(len(self.layers))
        own = {name: np.nan_to_num(self.sensitivity.column(name), nan=inf) for name in self.parts}
        return self.column({"": zero, **own})

    @property
    def saved(self) -> Array:
        """Bytes that every layer gives up, [layers, 1 + ways]."""
        return self.column({"": np.zeros(len(self.layers)), **{w: self.sensitivity.saved(w) for w in self.parts}})


@dataclass(frozen=True)
class Mix:
    """What was solved: the way of each layer, "" for float, and the seconds of a run that are foretold for all."""

    table: Table
    chosen: tuple[str, ...]
    seconds: float

    @property
    def ways(self) -> list[str]:
        """The ways that some layer goes."""
        return [way for way in self.table.parts if way in self.chosen]

    @property
    def is_pure(self) -> bool:
        """Whether every layer goes the same way, so that a precision of the target is just that."""
        return len(set(self.chosen)) <= 1

    def recipe(self) -> Recipe:
        """Spell it: every way's passes, told to keep the layers that go another; then what comes after each."""
        parts = [self.table.parts[way] for way in self.ways]
        kept = [keeping(self.table.parts[way].way, self._others(way)) for way in self.ways]
        rest = dict.fromkeys(each for part in parts for each in part.rest.passes)
        pipeline = reduce(Pipeline.__add__, kept, parts[0].start) + Pipeline(tuple(rest))
        layers = self.table.layers
        inside = sum(layer.weights for layer, way in zip(layers, self.chosen, strict=True) if way)
        share = inside / max(1, sum(layer.weights for layer in layers))
        return Recipe(MIXED, pipeline, Promise("int8", weights=max(0.0, floor(share * 100 - 1) / 100)))

    def _others(self, way: str) -> tuple[str, ...]:
        pairs = zip(self.table.layers, self.chosen, strict=True)
        return tuple(node for layer, own in pairs if own != way for node in layer.nodes)

    def why(self) -> list[dict[str, str]]:
        """Say of every layer which way it goes, and why it is not another."""
        rows, noise = [], self.table.noise
        seconds = self.table.column(self.table.seconds)
        for number, (layer, own) in enumerate(zip(self.table.layers, self.chosen, strict=True)):
            at = ["", *self.table.parts].index(own)
            slower = [way for k, way in enumerate(self.table.parts, 1) if seconds[number, k] >= seconds[number, at]]
            noisier = [way for k, way in enumerate(self.table.parts, 1) if noise[number, k] > noise[number, at]]
            reasons = [f"{way} is slower" for way in slower if way != own]
            reasons += [f"{way} loses more" for way in noisier if way != own and way not in slower]
            rows.append({"layer": layer.name, "op": layer.op, "way": own or "float", "why": ", ".join(reasons)})
        return rows


def solve(table: Table, bounds: Bounds, *, least: str = "seconds") -> Mix | None:
    """Choose a way for each layer so that what is ``least``, "seconds" or "noise", is least within ``bounds``.

    Returns: None where nothing keeps the bounds. Ties go to the choice with less noise, or of fewer seconds.
    """
    noise, seconds = table.noise, table.column(table.seconds)
    acts = np.isfinite(noise)
    bounded = np.where(acts, noise, 0.0)
    limits = [Limit(bounded, bounds.noise)] if bounds.noise < inf else []
    if bounds.size < inf:
        need = table.size - bounds.size - min(table.beside.values(), default=0)
        limits.append(Limit(-table.saved, -need))
    if bounds.seconds < inf:
        limits.append(Limit(seconds, bounds.seconds))
    goals = {"seconds": np.where(acts, seconds, inf), "noise": noise}
    other = {"seconds": bounded, "noise": seconds}
    chosen = assign(goals[least], limits, other[least])
    if chosen is None:
        return None
    names = ["", *table.parts]
    total = float(seconds[np.arange(len(chosen)), chosen].sum())
    return Mix(table, tuple(names[at] for at in chosen), total)
