"""Candidates of ``-p auto``: what each loses and takes, and which one of them is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np

from polycast.evaluating.budget import Budget
from polycast.evaluating.losses import Loss

from .build import Build
from .errors import BudgetError
from .guard import Guarded
from .mixed import Mix
from .targetbase import Target

#: A build has to be faster than the first by more than two sessions on one file may differ.
FASTER = 1.05
#: Below this it is slower than the first.
SLOWER = 0.97


@dataclass(frozen=True)
class Choice:
    """The recipe that was chosen, why each other one was not, and for a mix the way of every layer.

    target: what it is for, where that is not the one that was asked for, but a rival. on: where it was measured, where
    that is no such device.
    """

    guarded: Guarded
    passed_over: Mapping[str, str]
    layers: Sequence[Mapping[str, str]] = ()
    target: Target | None = None
    on: str = ""

    def to_json(self) -> dict[str, Any]:
        """Spell for a manifest. Nothing in it is a time: the same choice gives the same bytes."""
        name = f"{self.target.executor} " if self.target else ""
        table = {"chosen": name + self.guarded.recipe.name, "passed_over": dict(sorted(self.passed_over.items()))}
        table |= {"on": self.on} if self.on else {}
        return table | ({"layers": [dict(row) for row in self.layers]} if self.layers else {})


@dataclass(frozen=True)
class Candidate:
    """A build that could be chosen. loss: what it loses, None where that is rounding; heats: its seconds a run.

    target: what it is for, where it is a rival's.
    """

    guarded: Guarded
    build: Build
    loss: Loss | None = None
    mix: Mix | None = None
    heats: tuple[float, ...] = ()
    target: Target | None = None

    @property
    def drop(self) -> float:
        """What it loses; never less than nothing."""
        return max(0.0, self.loss.drop) if self.loss else 0.0

    @property
    def seconds(self) -> float:
        """Median of its heats."""
        return float(np.median(self.heats)) if self.heats else inf


def decide(timed: Mapping[str, Candidate], first: str, budget: Budget, reasons: Mapping[str, str]) -> Choice:
    """Choose among candidates of which each loses what it may: the fastest, where one is clearly faster than the first.

    Where none is, the one that loses least. What is slower than the first is never chosen.
    reasons: why others are no candidates. Raises: BudgetError where none keeps to size and latency.
    """
    over = dict(reasons)
    fit: dict[str, Candidate] = {}
    for name, each in timed.items():
        reason = _misses(each, budget) or ("" if name == first else _slower(each, timed.get(first)))
        if reason:
            over[name] = reason
        else:
            fit[name] = each
    if not fit:
        raise BudgetError(
            "no build keeps the budget: " + "; ".join(f"{name}: {reason}" for name, reason in over.items()),
            "Allow more drop, size or latency, or give --calibration samples that are like what the model will see",
        )
    base = timed.get(first)
    quick = {name: each for name, each in fit.items() if base is not None and name != first and faster(each, base)}
    if quick:
        chosen = min(quick, key=lambda name: quick[name].seconds)
    else:
        chosen = min(fit, key=lambda name: (name != first, fit[name].drop, fit[name].seconds))
    for name in fit:
        if name != chosen:
            over[name] = f"no faster than {chosen}, in turns on this machine"
    mix = fit[chosen].mix
    return Choice(fit[chosen].guarded, over, mix.why() if mix else (), fit[chosen].target)


def smallest(made: Mapping[str, Candidate]) -> str:
    """Say what the smallest is that could be made, whatever it loses."""
    name = min(made, key=lambda name: made[name].build.bytes)
    return f"the smallest that can be made is {name}, {made[name].build.bytes:,} bytes"


def too_large(each: Candidate, budget: Budget) -> bool:
    """Whether a build has more bytes than it may."""
    return budget.size is not None and each.build.bytes > budget.size


def _misses(each: Candidate, budget: Budget) -> str:
    """Say which limit a build misses, or nothing."""
    if too_large(each, budget):
        return f"it is {each.build.bytes:,} bytes, over {budget.size:,}"
    if budget.latency is not None and each.seconds * 1e3 > budget.latency:
        return f"it takes {each.seconds * 1e3:.3g} ms, over {budget.latency:g}"
    return ""


def _ratios(each: Candidate, base: Candidate) -> list[float]:
    return [before / own for before, own in zip(base.heats, each.heats, strict=False)]  # one may have fallen behind


def _slower(each: Candidate, base: Candidate | None) -> str:
    """Say that a build is slower than the first one, or nothing."""
    slower = base is not None and each.heats and float(np.median(_ratios(each, base))) < SLOWER
    return "slower than the float build, in turns on this machine" if slower else ""


def faster(each: Candidate, base: Candidate) -> bool:
    """Whether a build is faster than the first one in every heat, and clearly so in most."""
    ratios = _ratios(each, base)
    return bool(ratios) and min(ratios) > 1 and float(np.median(ratios)) > FASTER
