"""Assignment: which way each layer takes, solved exactly for what the user allows in all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .statistics import Array

#: What the solver may miss a limit by, as a share of the limit's largest coefficient; see ``scipy.optimize.milp``.
_FEASIBLE = 1e-6
_ROUNDS = 16
#: The largest coefficient of the goal: the solver stops within an absolute gap of 1e-6, here 1e-12 of it.
_GOAL = 1e6
#: The first goal may be missed by this share of its largest coefficient, for the second to be met among equals.
_EQUAL = 1e-9


@dataclass(frozen=True)
class Limit:
    """What all layers together may cost at most. cost: [layers, ways]."""

    cost: Array
    most: float


def assign(goal: Array, limits: Sequence[Limit] = (), then: Array | None = None) -> list[int] | None:
    """Choose one way for each layer, so that the sum of ``goal`` is least and no limit is passed.

    goal: [layers, ways], infinite or NaN where a layer cannot go a way. then: [layers, ways], what is least among
    the choices that are equally good; without it, the number of layers that do not take the first way.
    Returns: the index of each layer's way, or None where no choice keeps every limit.
    Source: the multiple-choice knapsack problem, Kellerer, Pferschy and Pisinger 2004, chapter 11; solved by HiGHS.
    Raises: RuntimeError where the solver gives up.
    """
    count, ways = goal.shape
    if not count:
        return [] if all(limit.most >= 0 for limit in limits) else None
    open_ = np.isfinite(goal)
    if not open_.any(1).all():
        return None
    goal = np.where(open_, goal, 0.0)
    chosen = _solve(goal, limits, open_)
    if chosen is None:
        return None
    rows = np.arange(count)
    best = Limit(goal, float(goal[rows, chosen].sum()) + _EQUAL * _largest(goal))
    second = _solve(then if then is not None else np.sign(np.arange(ways)) + 0 * goal, (*limits, best), open_)
    return list(map(int, chosen if second is None else second))


def _solve(goal: Array, limits: Sequence[Limit], open_: Array) -> Array | None:
    """Solve, with every coefficient scaled to 1 at most.

    The solver may pass a limit within its tolerance. Then that very choice is ruled out, and after ROUNDS of them all
    that is as near to a limit.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    count, ways = goal.shape
    ruled_out: list[LinearConstraint] = []
    for number in range(_ROUNDS + 1):
        margin = 2 * _FEASIBLE if number == _ROUNDS else 0.0
        rows = [
            LinearConstraint(limit.cost.ravel() / scale, -np.inf, limit.most / scale - margin)
            for limit in limits
            for scale in [_largest(limit.cost)]
        ]
        found = milp(
            goal.ravel() * (_GOAL / _largest(goal)),
            integrality=np.ones(count * ways),
            bounds=Bounds(0, open_.ravel().astype(float)),
            constraints=[LinearConstraint(np.kron(np.eye(count), np.ones(ways)), 1, 1), *rows, *ruled_out],
            options={"mip_rel_gap": 0.0},
        )
        if found.status == 2:  # infeasible
            return None
        if found.status != 0:
            raise RuntimeError(f"the solver gives up: {found.message}")
        chosen: Array = found.x.reshape(count, ways).argmax(1)
        if not any(_passes(chosen, limit) for limit in limits):
            return chosen
        ruled_out.append(LinearConstraint(np.eye(ways)[chosen].ravel(), -np.inf, count - 1))
    return None


def _passes(chosen: Array, limit: Limit) -> bool:
    return float(limit.cost[np.arange(len(chosen)), chosen].sum()) > limit.most * (1 + 1e-12)


def _largest(numbers: Array) -> float:
    return float(np.abs(numbers).max()) or 1.0
