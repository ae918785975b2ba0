"""Race: real processes in turns, and who falls behind."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
import pytest

from polycast.evaluating import race as module
from polycast.evaluating.race import BEHIND, HEATS, race


def raced(monkeypatch: pytest.MonkeyPatch, seconds: Mapping[str, float | str], **options: str):
    """Race with known times in place of processes. Returns: what came of it, and who ran in each heat."""
    heats: list[list[str]] = []

    def heat(openings: Mapping[str, object], budget: float, tell: object) -> SimpleNamespace:
        heats.append(list(openings))
        taken = {key: seconds[key] for key in openings}
        return SimpleNamespace(series={k: t if isinstance(t, str) else np.full((2, 3), t) for k, t in taken.items()})

    monkeypatch.setattr(module, "_heat", heat)
    return race(dict.fromkeys(seconds), 1.0, **options), heats


def test_who_falls_behind_runs_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    found, heats = raced(monkeypatch, {"fp32": 2.0, "int8": 1.0, "fp16": 1.1, "int4": BEHIND + 0.1}, stays="fp32")
    assert heats == [["fp32", "int8", "fp16", "int4"], *[["fp32", "int8", "fp16"]] * (HEATS - 1)]
    assert found == {"fp32": [2.0] * HEATS, "int8": [1.0] * HEATS, "fp16": [1.1] * HEATS, "int4": [BEHIND + 0.1]}


def test_who_cannot_run_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    found, heats = raced(monkeypatch, {"fp32": 1.0, "int8": "it left with status 1"})
    assert found == {"fp32": [1.0] * HEATS, "int8": "it left with status 1"}
    assert heats[1:] == [["fp32"]] * (HEATS - 1)
