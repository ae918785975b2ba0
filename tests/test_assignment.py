"""Assignment: the choice is the best of all choices, which are few enough here to be looked at one by one."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polycast.assignment import Limit, assign


def costs(layers: int, ways: int) -> st.SearchStrategy[np.ndarray]:
    """Whole numbers, so that sums are exact and a limit is kept or not whatever the order of the sum."""
    row = st.lists(st.integers(0, 1000), min_size=ways, max_size=ways)
    return st.lists(row, min_size=layers, max_size=layers).map(lambda rows: np.array(rows, float))


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, list[Limit]]:
    layers, ways = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    goal = draw(costs(layers, ways))
    shut = draw(st.lists(st.booleans(), min_size=goal.size, max_size=goal.size))
    goal[np.array(shut).reshape(goal.shape) & (goal > 700)] = np.inf
    limits = [
        Limit(draw(costs(layers, ways)), draw(st.integers(0, 1000 * layers))) for _ in range(draw(st.integers(0, 2)))
    ]
    return goal, limits


def total(cost: np.ndarray, chosen: list[int] | tuple[int, ...]) -> float:
    return float(sum(cost[layer, way] for layer, way in enumerate(chosen)))


def best(goal: np.ndarray, limits: list[Limit]) -> float | None:
    every = product(range(goal.shape[1]), repeat=len(goal))
    kept = [total(goal, c) for c in every if all(total(limit.cost, c) <= limit.most for limit in limits)]
    return min((value for value in kept if np.isfinite(value)), default=None)


@settings(max_examples=60)
@given(problems())
def test_no_other_choice_is_better(problem: tuple[np.ndarray, list[Limit]]) -> None:
    goal, limits = problem
    chosen, least = assign(goal, limits), best(goal, limits)
    if least is None:
        assert chosen is None
    else:
        assert chosen is not None
        assert total(goal, chosen) == least
        assert all(total(limit.cost, chosen) <= limit.most for limit in limits)


@settings(max_examples=10)
@given(problems())
def test_the_same_problem_has_the_same_answer(problem: tuple[np.ndarray, list[Limit]]) -> None:
    assert assign(*problem) == assign(*problem)


def test_goals_of_many_magnitudes_are_told_apart() -> None:
    goal = np.array([[1.0, 2.0], [3e-8, 1e-8]])
    assert assign(goal) == [0, 1]


def test_among_equals_the_fewest_leave_the_first_way() -> None:
    goal = np.zeros((4, 3))
    assert assign(goal) == [0, 0, 0, 0]
    assert assign(goal, [Limit(np.tile([2.0, 1.0, 0.0], (4, 1)), 6.0)]).count(0) == 3


def test_among_equals_the_second_goal_decides() -> None:
    assert assign(np.array([[1.0, 1.0], [1.0, 1.0]]), then=np.array([[5.0, 2.0], [1.0, 4.0]])) == [1, 0]


@pytest.mark.parametrize("most", [2.9999999, 3.0])
def test_a_limit_is_kept_whatever_the_tolerance_of_the_solver(most: float) -> None:
    cost = np.array([[1.0, 0.0]] * 3)
    chosen = assign(np.array([[0.0, 1.0]] * 3), [Limit(cost, most)])
    assert chosen is not None
    assert total(cost, chosen) <= most
    assert chosen.count(0) == int(most)


def test_bytes_of_large_models_are_counted_one_by_one() -> None:
    cost = np.array([[3_000_000_001.0, 0.0], [1.0, 0.0]])
    assert assign(np.array([[0.0, 5.0], [0.0, 1.0]]), [Limit(cost, 3_000_000_001.0)]) == [0, 1]


def test_no_layers_are_an_empty_choice() -> None:
    assert assign(np.zeros((0, 2))) == []
    assert assign(np.zeros((0, 2)), [Limit(np.zeros((0, 2)), -1.0)]) is None


def test_a_layer_that_can_go_no_way_leaves_no_choice() -> None:
    assert assign(np.array([[np.nan, np.inf], [0.0, 0.0]])) is None
