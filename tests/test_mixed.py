"""Mixed: what is solved for a budget, spelt as a recipe."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
from coarse import Coarse

from polycast.guard import Parts
from polycast.mixed import Bounds, Table, solve
from polycast.passes.graph.clean import Clean
from polycast.pipeline import Pipeline
from polycast.sensitivity import Layer, Sensitivity

WAYS = ("int8", "int4")
LAYERS = tuple(Layer(name, "MatMul", (name,), 100, 100) for name in "abcd")
NOISE = ((1e-3, 9e-3), (2e-3, 9e-3), (1e-3, 5e-2), (5e-1, None))
SECONDS = {"": [4.0, 4, 4, 4], "int8": [1.0, 2, 5, 1], "int4": [2.0, 1, 6, 1]}
BYTES = ((-300, -350),) * 4


def table(noise=NOISE, seconds=SECONDS) -> Table:
    none = ((None, None),) * 4
    found = Sensitivity(LAYERS, dict.fromkeys(WAYS, "coarse"), noise, none, BYTES, (1e-2, 1e-1), 1600, 4)
    start, clean = Pipeline((Clean(),)), Pipeline((Clean(),))
    parts = {
        name: Parts(start, Pipeline((Coarse(step=step),)), clean) for name, step in zip(WAYS, (0.1, 0.5), strict=True)
    }
    return Table(
        found, parts, {name: np.array(times) for name, times in seconds.items()}, 2000, {"int8": -50, "int4": 0}
    )


def test_a_layer_that_would_be_slower_stays_in_float() -> None:
    mix = solve(table(), Bounds())
    assert mix is not None
    assert mix.chosen == ("int8", "int4", "", "int8")
    assert mix.seconds == 1 + 1 + 4 + 1
    rows = {row["layer"]: row for row in mix.why()}
    assert rows["c"] == {"layer": "c", "op": "MatMul", "way": "float", "why": "int8 is slower, int4 is slower"}


@pytest.mark.parametrize(
    ("noise", "chosen"),
    [
        (1.2e-2, ("int8", "int4", "", "")),
        (5e-3, ("int8", "int8", "", "")),
        (1.5e-3, ("int8", "", "", "")),
        (0.0, ("", "", "", "")),
    ],
)
def test_within_less_noise_more_stays_in_float(noise: float, chosen: tuple[str, ...]) -> None:
    mix = solve(table(), Bounds(noise=noise))
    assert mix is not None
    assert mix.chosen == chosen


def test_a_layer_that_loses_more_says_so() -> None:
    mix = solve(table(), Bounds(noise=5e-3))
    assert mix is not None
    assert mix.why()[3] == {"layer": "d", "op": "MatMul", "way": "float", "why": "int8 loses more, int4 loses more"}


def test_least_noise_within_a_size() -> None:
    """2,000 bytes, and int8 puts 50 beside: 1,400 need 650, which three layers at 300 give with least noise."""
    mix = solve(table(), Bounds(size=1400), least="noise")
    assert mix is not None
    assert mix.chosen == ("int8", "int8", "int8", "")
    assert solve(table(), Bounds(size=100), least="noise") is None


def test_a_latency_is_kept() -> None:
    mix = solve(table(), Bounds(seconds=10.5), least="noise")
    assert mix is not None
    assert mix.chosen == ("int8", "int4", "", "")
    assert mix.seconds == 10


def test_the_recipe_keeps_from_each_way_what_goes_another() -> None:
    mix = solve(table(), Bounds(noise=1.2e-2))
    assert mix is not None
    made = mix.recipe()
    assert str(made.pipeline) == (
        "clean | coarse(step=0.1, keep=('b', 'c', 'd')) | coarse(step=0.5, keep=('a', 'c', 'd')) | clean"
    )
    assert made.promise.weights == 0.49
    assert not mix.is_pure


def test_one_way_for_all_is_no_mix() -> None:
    fast = {"": [4.0] * 4, "int8": [1.0] * 4, "int4": [2.0] * 4}
    mix = solve(table(noise=((1e-3, 1e-2),) * 4, seconds=fast), Bounds(noise=inf))
    assert mix is not None
    assert mix.is_pure
