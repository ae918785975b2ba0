"""Guard: what is left in float buys most accuracy, costs least arithmetic, and is spelt in the recipe."""

from __future__ import annotations

import numpy as np
import pytest
from coarse import Coarse
from given import Given, parsed

from polycast.guard import MARGIN, cut, guard, keeping, spend
from polycast.passbase import PassContext
from polycast.passes.graph.clean import Clean
from polycast.passes.precision.fp16 import Fp16
from polycast.pipeline import Pipeline
from polycast.promise import Promise
from polycast.recipe import Recipe
from polycast.sensitivity import Layer, Sensitivity

FLOATS = Recipe("fp32", Pipeline((Clean(),)), Promise())


def recipe(**parameters: object) -> Recipe:
    return Recipe("int8", Pipeline((Clean(), Coarse(**parameters))), Promise("int8", weights=0.9, macs=0.9))


def found(noise: list[float | None], macs: list[int], weights: list[int] | None = None, whole: float = 5e-3):
    """The sensitivity of so many layers, a, b, c …"""
    names = [chr(ord("a") + number) for number in range(len(macs))]
    sizes = weights or macs
    layers = [Layer(name, "MatMul", (name,), size, each) for name, size, each in zip(names, sizes, macs, strict=True)]
    rows = tuple((value,) for value in noise)
    none, zero = tuple((None,) for _ in names), tuple((0,) for _ in names)
    return Sensitivity(tuple(layers), {"int8": "coarse"}, rows, none, zero, (whole,), 100, 4)


def names(chosen: dict[Layer, str]) -> list[str]:
    return [layer.name for layer in chosen]


def test_the_layer_that_makes_most_of_the_noise_is_bought() -> None:
    chosen = spend(found([1e-4, 8e-3, 1e-4, 1e-4], [300, 40, 330, 330]), "int8", 0.1, 0.1)
    assert names(chosen) == ["b"]
    assert list(chosen.values()) == ["96% of the noise for 4.0% of the multiply-accumulates"]


@pytest.mark.parametrize("of", ["macs", "weights"])
def test_no_more_is_spent_than_the_promise_leaves(of: str) -> None:
    noise = [1e-4, 4e-3, 4e-3, 1e-4]
    counts = [440, 60, 60, 440]
    other = [250] * 4 if of == "macs" else counts
    given = found(noise, counts, other) if of == "macs" else found(noise, [490, 10, 10, 490], counts)
    free = 1.0
    chosen = spend(given, "int8", *((0.1, free) if of == "macs" else (free, 0.1)))
    assert len(chosen) == 1
    assert len(spend(given, "int8", free, free)) == 2
    spent = sum(getattr(layer, of) for layer in chosen) / sum(counts)
    assert spent <= 0.1 - MARGIN


def test_what_the_pass_leaves_in_float_has_been_spent() -> None:
    given = found([None, 8e-3, 1e-4], [50, 60, 890])
    assert names(spend(given, "int8", 0.1, 0.1)) == []
    assert names(spend(given, "int8", 0.12, 0.12)) == ["b"]


def test_a_layer_that_costs_what_it_brings_stays_in_integers() -> None:
    given = found([1e-3, 1e-3, 1e-3, 1e-3], [90, 300, 300, 310])
    assert names(spend(given, "int8", 0.1, 0.1)) == []


def test_where_accuracy_is_at_stake_a_layer_may_cost_more() -> None:
    noise, macs = [1e-2, 3e-2, 3e-2], [90, 455, 455]
    assert names(spend(found(noise, macs, whole=7e-2), "int8", 0.1, 0.1)) == ["a"]
    assert names(spend(found([n / 100 for n in noise], macs, whole=7e-4), "int8", 0.1, 0.1)) == []


def test_what_ruins_the_model_alone_is_left_out_whatever_it_is() -> None:
    chosen = spend(found([2.0, 1e-3, 1e-3], [600, 200, 200], whole=3.0), "int8", 0.1, 0.1)
    assert names(chosen) == ["a"]
    assert chosen[next(iter(chosen))].endswith("which alone ruins the outputs")


def test_a_recipe_is_cut_where_it_leaves_the_float_one() -> None:
    floats = Pipeline((Clean(), Fp16()))
    repair, rough, clean = Fp16(headroom=3.0), Coarse(), Clean()
    parts = cut(Pipeline((Clean(), repair, rough, Coarse(step=0.5), clean)), floats)
    assert parts is not None
    assert [each.passes for each in (parts.start, parts.way, parts.rest)] == [
        (Clean(),),
        (repair, rough, Coarse(step=0.5)),
        (clean,),
    ]
    assert parts.bare == parts.way
    mended = cut(Pipeline((Clean(), repair, rough, repair, Coarse(step=0.5))), floats)
    assert mended is not None
    assert mended.way.passes == (repair, rough, repair, Coarse(step=0.5))
    assert mended.bare.passes == (repair, rough, Coarse(step=0.5))
    assert cut(floats, floats) is None


def test_what_is_kept_is_kept_by_every_pass_that_quantizes_layers() -> None:
    pipeline = keeping(Pipeline((Fp16(), Coarse(keep=("a",)), Coarse(step=0.5))), ("b", "a"))
    assert str(pipeline) == "fp16 | coarse(keep=('a', 'b')) | coarse(step=0.5, keep=('b', 'a'))"


# With a model.

WIDE = "g (float[n, 32] x) => (float[n, 4] y) { h = MatMul(x, a) r = Relu(h) k = MatMul(r, b) y = MatMul(k, c) }"


def weights(step: float) -> dict[str, np.ndarray]:
    """``a`` and ``b`` lie on the grid of ``step``, or nearly; ``c``, with 1 % of the arithmetic, does not."""
    rng = np.random.default_rng(0)
    grid = {"a": (32, 64), "b": (64, 8)}
    exact = {name: (rng.integers(-2, 3, shape) * step).astype(np.float32) for name, shape in grid.items()}
    off = {name: array + np.float32(step / 100) for name, array in exact.items()}
    return off | {"c": rng.uniform(-step, step, (8, 4)).astype(np.float32)}


@pytest.fixture
def samples() -> Given:
    rng = np.random.default_rng(1)
    return Given([{"x": rng.standard_normal((1, 32)).astype(np.float32)} for _ in range(6)])


def test_the_recipe_spells_what_is_kept(samples: Given) -> None:
    model = parsed(WIDE, weights(0.25))
    made = guard(model, recipe(), FLOATS, PassContext(calibration=samples))
    assert str(made.recipe.pipeline) == "clean | coarse(keep=('MatMul_3',))"
    assert list(made.kept) == ["MatMul_3"]
    assert made.before is not None and made.after is not None
    assert made.after < 0.9 * made.before
    assert made.to_json()["sqnr_db"]["kept"] > made.to_json()["sqnr_db"]["all"]
    again = guard(model, recipe(), FLOATS, PassContext(calibration=samples))
    assert again == made


def test_what_does_not_help_is_given_back(samples: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polycast.guard.Sweep.noise", lambda self, pipeline: 1.0)
    monkeypatch.setattr("polycast.guard.sensitivity", lambda *_: found([1e-4, 8e-3], [960, 40]))
    made = guard(parsed(WIDE, weights(0.25)), recipe(), FLOATS, PassContext(calibration=samples))
    assert (made.recipe, made.kept) == (recipe(), {})


@pytest.mark.parametrize("why", ["no samples", "nothing lost", "nothing quantizes"])
def test_a_recipe_stays_as_it_is(samples: Given, why: str) -> None:
    ctx = PassContext(calibration=None if why == "no samples" else samples)
    given = {"nothing lost": recipe(step=1e-5), "nothing quantizes": FLOATS}.get(why, recipe())
    made = guard(parsed(WIDE, weights(0.25)), given, FLOATS, ctx)
    assert made.recipe == given
    assert not made.kept
