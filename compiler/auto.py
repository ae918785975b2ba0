"""Choosing a precision by measuring: the fastest build that changes nothing which its user would see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .build import Build
from .golden import Golden
from .measure import Stopwatch, time_in_turns

#: A build has to be faster than the first by more than two sessions on one file may differ.
FASTER = 1.05

#: How long each candidate is timed.
SECONDS = 1.0


@dataclass(frozen=True)
class Choice:
    """The precision that was chosen, and why each other one was not."""

    precision: str
    passed_over: Mapping[str, str]


def choose(builds: Mapping[str, Build], refused: Mapping[str, str], golden: Golden) -> Choice:
    """Choose among ``builds`` by precision, of which the first is the one to beat.

    A build that is not within rounding of the original has to keep the largest entry of every row on samples that
    the user gave: what it loses beyond that only labelled data can tell. Times are taken in turns.
    refused: why other precisions have no build.
    """
    reasons = dict(refused)
    first, *others = builds
    candidates = [first]
    for precision in others:
        reason = _changes(builds[precision].agreement)
        if reason:
            reasons[precision] = reason
        else:
            candidates.append(precision)
    times = _times({precision: builds[precision] for precision in candidates}, golden) if len(candidates) > 1 else {}
    fastest = min(times, key=lambda precision: times[precision], default=first)
    chosen = fastest if fastest != first and times[first] / times[fastest] > FASTER else first
    for precision in candidates:
        if precision != chosen:
            reasons[precision] = f"no faster than {chosen}, in turns on this machine"
    return Choice(chosen, dict(sorted(reasons.items())))


def _changes(agreement: Mapping[str, Any]) -> str:
    """Say what a build may change that its user would see, or nothing."""
    if not agreement["n"]:
        return "it could not be compared with the original"
    if agreement["within_tolerance"]:
        return ""
    if agreement["samples"] not in ("calibration", "data"):
        return "it is lossy, and there are no samples to see what it loses: give --calibration or --data"
    same = agreement["same_top1"]
    if same is None:
        return "it is lossy, and no output has a largest entry to compare"
    return "" if same == 1.0 else f"it changes the largest entry of {1 - same:.1%} of rows"


def _times(builds: Mapping[str, Build], golden: Golden) -> dict[str, float]:
    """Give the median seconds of a run of each build, timed in turns."""
    feeds = golden.feeds[0]
    sessions = {precision: build.open() for precision, build in builds.items()}
    subjects = {precision: Stopwatch(partial(session.run, feeds)) for precision, session in sessions.items()}
    series = time_in_turns(subjects, SECONDS)
    return {precision: float(np.median(times)) for precision, times in series.items() if not isinstance(times, str)}
