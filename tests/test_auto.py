"""-p auto: what is chosen follows from times, losses and the budget; what was not has its reason in the build."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from models import conv_net, labelled

import polycast
from polycast.auto import AIM, Auto
from polycast.candidates import Candidate, decide
from polycast.errors import BudgetError, PassError, RecipeError, UnsupportedError
from polycast.evaluating.budget import Budget
from polycast.evaluating.losses import Loss
from polycast.golden import Golden
from polycast.guard import Guarded
from polycast.passbase import PassContext
from polycast.recipe import Recipe
from polycast.targets import find
from polycast.targets.cpu import Cpu

#: The module: ``polycast.compile`` itself is the function, and asking for it imports the module.
LINE = sys.modules[polycast.compile.__module__]

GOLDEN = Golden("data", ({"x": np.zeros(1)},), ([np.zeros(1)],))
EXACT = {"n": 4, "within_tolerance": True, "samples": "seeded"}
LOSSY = {"n": 4, "within_tolerance": False, "samples": "data"}
NOTHING = Budget()


def loss(drop: float = 0.0) -> Loss:
    return Loss("same largest entry", drop, 1.0, "share", f"it changes the largest entry of {drop:.1%} of rows")


def candidate(name: str, *heats: float, size: int = 100, drop: float | None = None) -> Candidate:
    """A build of which nothing is known but its size, what it loses and the seconds that a run takes in each heat."""
    guarded = Guarded(Recipe(name, Recipe.of(find("cpu"), "fp32").pipeline, Recipe.of(find("cpu"), "fp32").promise))
    lost = None if drop is None else loss(drop)
    return Candidate(guarded, SimpleNamespace(bytes=size), lost, heats=heats)


def field_of(**heats: tuple[float, ...]) -> dict[str, Candidate]:
    return {name: candidate(name, *times, drop=None if name == "fp32" else 0.0) for name, times in heats.items()}


def test_the_fastest_wins() -> None:
    found = decide(field_of(fp32=(2, 2, 2), fp16=(1.5, 1.5, 1.5), int8=(1, 1, 1)), "fp32", NOTHING, {"int4": "no"})
    assert found.to_json() == {
        "chosen": "int8",
        "passed_over": {
            "fp16": "no faster than int8, in turns on this machine",
            "fp32": "no faster than int8, in turns on this machine",
            "int4": "no",
        },
    }


@pytest.mark.parametrize(
    ("times", "reason"),
    [
        ((1.0, 1.0, 1.0), "no faster than fp32"),
        ((0.97, 0.97, 0.97), "no faster than fp32"),
        ((0.5, 0.5, 1.01), "no faster than fp32"),
        ((1.02, 1.02, 1.02), "no faster than fp32"),
        ((1.05, 1.05, 0.5), "slower than the float build"),
    ],
    ids=["as fast", "within noise", "slower in one opening", "a little slower", "slower"],
)
def test_what_is_not_clearly_faster_is_passed_over(times: tuple[float, ...], reason: str) -> None:
    found = decide(field_of(fp32=(1, 1, 1), int8=times), "fp32", NOTHING, {})
    assert found.guarded.recipe.name == "fp32"
    assert found.passed_over == {"int8": f"{reason}, in turns on this machine"}


def test_where_float_is_too_large_the_least_loss_that_fits_is_taken() -> None:
    given = {
        "fp32": candidate("fp32", 1, 1, 1, size=1000),
        "int4": candidate("int4", 1, 1, 1, size=200, drop=0.02),
        "int8": candidate("int8", 1, 1, 1, size=300, drop=0.01),
        "int2": candidate("int2", 2, 2, 2, size=100, drop=0.0),
    }
    found = decide(given, "fp32", Budget(size=400), {})
    assert found.guarded.recipe.name == "int8"
    assert found.passed_over["fp32"] == "it is 1,000 bytes, over 400"
    assert found.passed_over["int2"] == "slower than the float build, in turns on this machine"
    assert decide(given, "fp32", Budget(size=250), {}).guarded.recipe.name == "int4"


def test_a_budget_that_none_keeps_says_what_each_reached() -> None:
    given = {"fp32": candidate("fp32", 0.002), "int8": candidate("int8", 0.001, drop=0.0)}
    with pytest.raises(BudgetError) as caught:
        decide(given, "fp32", Budget(latency=0.5), {"int4": "it changes the largest entry of 9.0% of rows"})
    assert caught.value.exit_status == 3
    assert caught.value.message == (
        "no build keeps the budget: int4: it changes the largest entry of 9.0% of rows; "
        "fp32: it takes 2 ms, over 0.5; int8: it takes 1 ms, over 0.5"
    )
    assert decide(given, "fp32", Budget(latency=1.5), {}).guarded.recipe.name == "int8"


def judged(monkeypatch: pytest.MonkeyPatch, agreement: dict, found: Loss | str, samples: object = "given", drop=None):
    """Judge one lossy build. Returns: whether it fits, and the reason why not."""
    monkeypatch.setattr("polycast.auto.losses", lambda *_: {"fp16": found})
    auto = Auto(find("cpu"), None, GOLDEN, PassContext(), lambda _: None, samples, Budget.parse(drop, None, None))
    builds = {"fp32": EXACT, "fp16": agreement}
    made = {
        name: Candidate(Guarded(Recipe.of(find("cpu"), name)), SimpleNamespace(agreement=each))
        for name, each in builds.items()
    }
    return "fp16" in auto._judge(made, "fp32"), auto.reasons.get("fp16", "")


@pytest.mark.parametrize(
    ("agreement", "found", "samples", "reason"),
    [
        (LOSSY, loss(0.25), "given", "it changes the largest entry of 25.0% of rows"),
        (LOSSY, "no output has", "given", "it is lossy, and what it loses cannot be told: no output has"),
        (LOSSY, loss(), None, "it is lossy, and there are no samples to see what it loses"),
        ({"n": 0, "not_run": "no input fits"}, loss(), "given", "it could not be compared with the original"),
    ],
)
def test_what_may_be_worse_is_no_candidate(monkeypatch, agreement, found, samples, reason) -> None:
    fits, why = judged(monkeypatch, agreement, found, samples)
    assert not fits
    assert why.startswith(reason)


@pytest.mark.parametrize(
    ("drop", "budget", "fits"),
    [(0.0, None, True), (0.001, None, False), (0.01, "1pp", True), (0.011, "1pp", False), (-0.02, "0pp", True)],
)
def test_a_loss_is_held_to_the_budget(monkeypatch, drop: float, budget: str | None, fits: bool) -> None:
    assert judged(monkeypatch, LOSSY, loss(drop), drop=budget)[0] == fits


def test_what_only_rounds_needs_no_samples(monkeypatch) -> None:
    assert judged(monkeypatch, EXACT, "never asked", samples=None) == (True, "")


def test_the_noise_of_a_mix_is_foretold_from_what_whole_precisions_lost() -> None:
    auto = Auto(find("cpu"), None, GOLDEN, PassContext(), lambda _: None, budget=Budget.parse("1pp", None, None))
    auto.measured["int8"] = loss(0.04)
    made = {"int8": SimpleNamespace(guarded=SimpleNamespace(after=None))}
    table = SimpleNamespace(parts={"int8": None}, sensitivity=SimpleNamespace(ways={"int8": ""}, whole=(1e-2,)))
    # A quarter of the drop is allowed, and AIM of that aimed at: its square of the noise.
    assert auto._noise(table, made) == pytest.approx(1e-2 * (AIM / 4) ** 2)


@pytest.mark.parametrize(("ratio", "size", "made"), [(0.5, None, True), (1.0, None, False), (1.0, "1MB", True)])
def test_what_hasty_weights_show_to_be_no_faster_is_not_searched(monkeypatch, ratio, size, made: bool) -> None:
    cast: list[str] = []

    def record(guarded: Guarded) -> SimpleNamespace:
        cast.append(guarded.recipe.name)
        return SimpleNamespace(path=Path(guarded.recipe.name), bytes=1)

    monkeypatch.setattr(Cpu, "precisions", ("fp32", "int4"))
    monkeypatch.setattr("polycast.auto.guard", lambda _, recipe, *rest: Guarded(recipe))
    times = {"fp32": 1.0, "int4-sketch": ratio}
    monkeypatch.setattr(
        "polycast.auto.race",
        lambda openings, *rest, stays: {k: [times[Path(each.path).name]] * 3 for k, each in openings.items()},
    )
    auto = Auto(find("cpu"), None, GOLDEN, PassContext(), record, budget=Budget.parse("1pp", size, None))
    found = dict(auto._make())
    assert ("int4" in found) is ("int4" in cast) is made
    assert auto.reasons.get("int4", "made").startswith("made" if made else "no faster than float")
    assert ("int4-sketch" in cast) is (size is None)  # what is to be small is made in any case


@pytest.mark.parametrize("drop", ["1pp", None])
def test_what_is_kept_in_float_is_tried_in_full_where_samples_tell_the_loss(monkeypatch, drop) -> None:
    monkeypatch.setattr(Cpu, "precisions", ("fp32", "int8"))
    monkeypatch.setattr(
        "polycast.auto.guard",
        lambda _, recipe, *rest: Guarded(recipe, {"last": "most of the noise"} if recipe.name == "int8" else {}),
    )
    auto = Auto(find("cpu"), None, GOLDEN, PassContext(), lambda guarded: None, budget=Budget.parse(drop, None, None))
    found = dict(auto._make())
    assert list(found) == ["fp32", "int8", *(["int8-whole"] if drop else [])]
    assert "keep" not in str(found[list(found)[-1]].guarded.recipe.pipeline)


def test_a_build_that_its_runtime_computes_wrongly_is_passed_over(monkeypatch) -> None:
    def cast(guarded: Guarded) -> None:
        if guarded.recipe.name == "int8":
            raise PassError("no pass, but the runtime moves output 'y'")

    monkeypatch.setattr(Cpu, "precisions", ("fp32", "int8"))
    monkeypatch.setattr("polycast.auto.guard", lambda _, recipe, *rest: Guarded(recipe))
    auto = Auto(find("cpu"), None, GOLDEN, PassContext(), cast)
    assert list(dict(auto._make())) == ["fp32"]
    assert auto.reasons == {"int8": "no pass, but the runtime moves output 'y'"}


# From a model to a build.


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time little, in one opening, and let no build verify itself: other tests do."""
    monkeypatch.setattr("polycast.auto.SECONDS", 0.05)
    monkeypatch.setattr("polycast.evaluating.race.HEATS", 1)
    monkeypatch.setattr(LINE, "_let_verify_itself", lambda *_: None)
    monkeypatch.setattr(Cpu, "precisions", ("fp32", "fp16", "int8"))
    monkeypatch.setattr("polycast.targets.others", lambda target: ())


def test_the_build_says_what_was_chosen_and_why(tmp_path, hasty) -> None:
    source, data = conv_net(tmp_path / "m.onnx"), labelled(tmp_path / "d.npz")
    [build] = polycast.compile(source, precision="auto", calibration=data, out=tmp_path / "out", max_drop="100pp")
    assert build.path.name == "cpu-auto"
    auto = build.manifest["auto"]
    assert {auto["chosen"], *auto["passed_over"]} >= set(find("cpu").precisions)
    assert build.manifest["recipe"]["pipeline"] == str(polycast.Pipeline.parse(build.manifest["recipe"]["pipeline"]))
    assert build.verify() == []


def test_a_size_that_nothing_keeps_is_a_missed_budget(tmp_path, hasty) -> None:
    source, data = conv_net(tmp_path / "m.onnx"), labelled(tmp_path / "d.npz")
    said = r"no build keeps the budget: .*fp32: it is [\d,]+ bytes, over 10; .*the smallest that can be made is \S+, \d"
    with pytest.raises(BudgetError, match=said):
        polycast.compile(source, precision="auto", data=data, out=tmp_path / "out", max_drop="100pp", max_size=10)
    assert not (tmp_path / "out").exists()


def test_nothing_is_chosen_where_nothing_can_be_measured(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(LINE, "make_golden", lambda *_: Golden("none", reason="no input fits"))
    with pytest.raises(
        RecipeError, match="-p auto chooses by measuring, and cpu cannot be measured here: no input fits"
    ):
        polycast.compile(conv_net(tmp_path / "m.onnx"), precision="auto", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_build_for_another_runtime_stands_beside_and_says_what_it_is_for() -> None:
    rival = replace(candidate("int8", 1, 1, 1, drop=0.0), target=find("cpu@tvm"))
    found = decide(field_of(fp32=(2, 2, 2), int8=(1.5, 1.5, 1.5)) | {"tvm int8": rival}, "fp32", NOTHING, {})
    assert found.target == find("cpu@tvm")
    assert found.to_json()["chosen"] == "tvm int8"
    assert found.passed_over["int8"] == "no faster than tvm int8, in turns on this machine"


def test_a_rival_that_cannot_be_built_is_passed_over_with_the_reason() -> None:
    auto = Auto(find("cpu"), None, GOLDEN, PassContext(), lambda _: None)
    rival = Auto(find("cpu@tvm"), None, GOLDEN, PassContext(), lambda _: None)
    rival._make = lambda: (_ for _ in ()).throw(UnsupportedError("input x has no fixed shape"))
    assert auto._made_by(rival) == {}
    assert auto.reasons == {"tvm": "input x has no fixed shape"}
