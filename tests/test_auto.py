"""-p auto: what is chosen follows from times and agreement; what was not has its reason in the build."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from models import conv_net, labelled

import polycast
from polycast.auto import choose
from polycast.errors import RecipeError
from polycast.golden import Golden

GOLDEN = Golden("data", ({"x": np.zeros(1)},), ([np.zeros(1)],))
EXACT = {"n": 4, "within_tolerance": True, "samples": "seeded", "same_top1": 1.0}
LOSSY = {"n": 4, "within_tolerance": False, "samples": "data", "same_top1": 1.0}


def chosen(monkeypatch, times, **agreements):
    """Choose among builds of which nothing is known but their agreement and the seconds that a run takes."""
    session = SimpleNamespace(run=lambda feeds: [])
    builds = {name: SimpleNamespace(agreement=a, open=lambda: session) for name, a in agreements.items()}
    timed = {name: np.full((3, 4), seconds) for name, seconds in times.items()}
    monkeypatch.setattr("polycast.auto.time_in_turns", lambda subjects, seconds: {n: timed[n] for n in subjects})
    return choose(builds, {"int4": "nothing to make int4"}, GOLDEN)


def test_the_fastest_that_changes_nothing_wins(monkeypatch):
    found = chosen(monkeypatch, {"fp32": 2.0, "fp16": 1.0}, fp32=EXACT, fp16=LOSSY)
    assert found.precision == "fp16"
    assert found.passed_over == {
        "fp32": "no faster than fp16, in turns on this machine",
        "int4": "nothing to make int4",
    }


@pytest.mark.parametrize("seconds", [1.0, 0.97, 3.0], ids=["as fast", "within noise", "slower"])
def test_what_is_not_clearly_faster_is_passed_over(monkeypatch, seconds):
    found = chosen(monkeypatch, {"fp32": 1.0, "fp16": seconds}, fp32=EXACT, fp16=LOSSY)
    assert (found.precision, found.passed_over["fp16"]) == ("fp32", "no faster than fp32, in turns on this machine")


@pytest.mark.parametrize(
    ("agreement", "reason"),
    [
        (LOSSY | {"same_top1": 0.75}, "it changes the largest entry of 25.0% of rows"),
        (LOSSY | {"same_top1": None}, "it is lossy, and no output has a largest entry to compare"),
        (LOSSY | {"samples": "seeded"}, "it is lossy, and there are no samples to see what it loses"),
        ({"n": 0, "not_run": "no input fits"}, "it could not be compared with the original"),
    ],
)
def test_what_may_be_worse_is_never_chosen_however_fast(monkeypatch, agreement, reason):
    found = chosen(monkeypatch, {"fp32": 1.0, "fp16": 0.01}, fp32=EXACT, fp16=agreement)
    assert found.precision == "fp32"
    assert found.passed_over["fp16"].startswith(reason)


def test_the_build_says_what_was_chosen_and_why(tmp_path, capsys):
    source, data = conv_net(tmp_path / "m.onnx"), labelled(tmp_path / "d.npz")
    [build] = polycast.compile(source, precision="auto", data=data, out=tmp_path / "out")
    assert build.path.name == "cpu-auto"
    auto = build.manifest["auto"]
    assert {auto["chosen"], *auto["passed_over"]} == {"fp32", "fp16"}
    assert build.manifest["recipe"]["pipeline"] == str(polycast.Pipeline.parse(build.manifest["recipe"]["pipeline"]))
    assert build.verify() == []


def test_nothing_is_chosen_where_nothing_can_be_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(
        sys.modules["polycast.compile"], "make_golden", lambda *_: Golden("none", reason="no input fits")
    )
    with pytest.raises(
        RecipeError, match="-p auto chooses by measuring, and cpu cannot be measured here: no input fits"
    ):
        polycast.compile(conv_net(tmp_path / "m.onnx"), precision="auto", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
